"""Sockets on which queries come in: how they are bound, and which options they have.

Rules of this file:
- every socket is non-blocking, close-on-exec and of one family only (IPV6_V6ONLY), so `0.0.0.0` and `::` go side by side;
- a UDP socket on a wildcard address asks the kernel where each packet was sent to, because the reply must come from there;
- a failure is a ListenError in the kernel's words, and leaves no socket behind.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from canal_dns.errors import ListenError
from canal_dns.metrics import Counters
from canal_dns.settings import Endpoint

Peer = tuple[str, int] | tuple[str, int, int, int]
"""Where a datagram came from, as the kernel gives it and takes it back."""
Control = Sequence[tuple[int, int, bytes]]
"""Control messages of a datagram: level, type, data."""

BUFFER = 1 << 20
"""Octets asked for in each direction of a UDP socket, as far as net.core.rmem_max allows. The kernel makes it room for some
2,700 queries: more than come while a worker does anything else, and few enough that in a flood no answer is old, since the
slowest worker there is gets through them in a second."""
STREAM_BUFFER = 128 << 10
"""Octets in each direction of a connection: without it the kernel would keep up to 10 MiB for a client that reads nothing."""
BACKLOG = 1024
"""Connections that may wait for accept."""

IP_PKTINFO = 8
"""Linux's number; the socket module has a name for it since Python 3.14 only."""
_SO_MEMINFO = 55
_MEMINFO_DROPS = 8
_NO_INTERFACE = bytes(4)
_ANY_PORT_TRIES = 20


_NO_ROOM = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
_PENDING = frozenset((errno.EINTR, errno.ECONNREFUSED))
"""What says nothing about this datagram: the call was interrupted, or an earlier one met ICMP on its way."""


class Patience:
    """Which replies that the kernel did not take are sent once more: it waits for room, but WAITS times in a SPAN at most.

    Whoever is never given room drops what he has: a client asks again, and a loop that waits answers nobody.
    """

    SPAN = 0.1
    """Seconds."""
    WAITS, WAIT = 10, 0.001
    """And of how many seconds each."""
    RETRIES = 100
    """Without a wait, in a SPAN: an error that stays is no pending one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._until = -math.inf
        self._waits = self._retries = 0

    def again(self, number: int) -> bool:
        """True, after a wait if one helps, where a reply that met this error is to be sent once more."""
        now = self._clock()
        if now >= self._until:
            self._until, self._waits, self._retries = now + self.SPAN, self.WAITS, self.RETRIES
        if number in _NO_ROOM and self._waits:
            self._waits -= 1
            self._sleep(self.WAIT)
            return True
        if number in _PENDING and self._retries:
            self._retries -= 1
            return True
        return False


patience = Patience()
"""Of this process: it has one loop, which all of its sockets keep waiting."""


class UdpSocket(socket.socket):
    """A datagram socket that knows whether it must be read by recvmsg."""

    wildcard = False
    """Bound to every address: the address that a client asked is in a control message (RFC 1122 section 4.1.3.5)."""

    def dropped(self) -> int:
        """Datagrams that the kernel threw away since the buffer was full; 0 where it does not tell."""
        try:
            words = memoryview(self.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))).cast("I")
        except OSError:
            return 0
        return words[_MEMINFO_DROPS] if len(words) > _MEMINFO_DROPS else 0


def open_udp(endpoint: Endpoint, *, shared: bool) -> UdpSocket:
    """A bound datagram socket; `shared`: other processes of ours bind the same address. Raises ListenError."""
    with _listen_error(endpoint, "UDP"), contextlib.ExitStack() as undo:
        sock = undo.enter_context(UdpSocket(_family(endpoint), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        if endpoint.is_wildcard:
            sock.wildcard = True
            if endpoint.is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        _bind(sock, endpoint, shared=shared)
        undo.pop_all()
    return sock


def open_tcp(endpoint: Endpoint, *, shared: bool) -> socket.socket:
    """A listening stream socket. Raises ListenError."""
    with _listen_error(endpoint, "TCP"), contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(_family(endpoint), socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        # Connections of the process before us may linger in TIME_WAIT; a socket that listens still makes bind fail.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, STREAM_BUFFER)
        _bind(sock, endpoint, shared=shared)
        sock.listen(BACKLOG)
        undo.pop_all()
    return sock


def open_both(endpoint: Endpoint, *, shared: bool) -> tuple[UdpSocket, socket.socket]:
    """UDP and TCP on one address; for port 0 the kernel chooses, the same one for both. Raises ListenError."""
    for attempt in range(_ANY_PORT_TRIES):
        udp = open_udp(endpoint, shared=shared)
        try:
            return udp, open_tcp(Endpoint(endpoint.host, port_of(udp)), shared=shared)
        except ListenError:
            udp.close()
            if endpoint.port != 0 or attempt == _ANY_PORT_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def probe(endpoint: Endpoint) -> Endpoint:
    """Find out whether nobody, not even a process of ours, has this address: an address shared by SO_REUSEPORT never says.

    Gives the endpoint with the port that the kernel chose for 0. Raises ListenError.
    """
    udp, tcp = open_both(endpoint, shared=False)
    found = Endpoint(endpoint.host, port_of(udp))
    udp.close()
    tcp.close()
    return found


def reply_control(control: Control) -> Control:
    """Control messages that let a reply leave from the address that was asked.

    The interface in them is cleared: routing decides the way back (struct in_pktinfo, ip(7); RFC 3542 section 6.1).
    """
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return ((level, kind, _NO_INTERFACE + data[4:]),)
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return ((level, kind, data[:16] + _NO_INTERFACE),)
    return ()


def readable(sock: socket.socket) -> bool:
    """True where something waits to be read now."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def count_send_error(error: OSError, counters: Counters) -> None:
    """One reply that the kernel did not take."""
    counters["canal_dns_send_errors_total"][(errno.errorcode.get(error.errno or 0, "other"),)] += 1


def port_of(sock: socket.socket) -> int:
    """The local port."""
    return int(sock.getsockname()[1])


def _family(endpoint: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET


def _bind(sock: socket.socket, endpoint: Endpoint, *, shared: bool) -> None:
    if endpoint.is_ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((endpoint.host, endpoint.port))


@contextlib.contextmanager
def _listen_error(endpoint: Endpoint, transport: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EACCES and endpoint.port < 1024:
            problem += "; ports below 1024 need a privilege, 1053 needs none"
        raise ListenError(str(endpoint), transport, problem) from error
