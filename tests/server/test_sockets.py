"""What the kernel did not take is sent again while that is worth it, and no longer."""

from __future__ import annotations

import errno
import socket

from canal_dns.server.sockets import Patience, open_udp
from canal_dns.settings import Endpoint


class Clock:
    """Time passes by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_p5_room_is_waited_for_10_ms_of_every_100() -> None:
    clock = Clock()
    patience = Patience(clock, clock.sleep)
    tries = 0
    while clock.now < 1001.0:
        tries += patience.again(errno.EAGAIN)
        clock.now += 0.0001
    assert 0.08 <= clock.slept <= 0.11
    assert tries <= 110


def test_p5_a_pending_error_is_not_waited_for_and_not_for_ever_one() -> None:
    clock = Clock()
    patience = Patience(clock, clock.sleep)
    assert sum(patience.again(errno.ECONNREFUSED) for _ in range(1000)) == Patience.RETRIES
    assert clock.slept == 0
    clock.now += Patience.SPAN
    assert patience.again(errno.EINTR)


def test_p5_a_permanent_error_is_final() -> None:
    clock = Clock()
    patience = Patience(clock, clock.sleep)
    assert not any(patience.again(number) for number in (errno.EPERM, errno.EINVAL, errno.EMSGSIZE, errno.ENETUNREACH, 0))


def test_p1_what_waits_in_a_socket_is_answered_within_a_second() -> None:
    """By a worker that answers 3,000 queries per second: plain Python that forwards, with half of a CPU."""
    smallest = 768
    with open_udp(Endpoint("127.0.0.1", 0), shared=False) as sock:
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert 100 <= room / smallest <= 3000
