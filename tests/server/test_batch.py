"""The packet loop on a socket that does what a script says: every error the kernel knows costs one reply, none a turn."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.responder import Reply, answer_from_table, decide
from canal_dns.dns.table import AnswerTable
from canal_dns.metrics import Counters
from canal_dns.server import batch
from canal_dns.server.sockets import reply_control
from canal_dns.settings import AccessSettings
from tests.server.serving import BOUND, WEB, is_vip, query

NOW = 1000.0
CLIENT = ("10.1.2.3", 40_000)
PKTINFO = [(socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 7, bytes([127, 0, 0, 2]), bytes([127, 0, 0, 2])))]


class Script:
    """A socket: what `recv*` gives (a packet, a packet and its peer, or an error), and which errors `send*` meets."""

    def __init__(self, packets: Iterable[Any], *, wildcard: bool = False, failing: dict[int, int] | None = None) -> None:
        self.packets = list(packets)
        self.wildcard = wildcard
        self.failing = failing or {}
        self.sent: list[tuple[bytes, Any]] = []
        self.controls: list[Any] = []
        self.calls = 0
        self.sends = 0

    def _next(self) -> tuple[bytes, Any]:
        self.calls += 1
        if not self.packets:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        one = self.packets.pop(0)
        if isinstance(one, OSError):
            raise one
        return one if isinstance(one, tuple) else (one, CLIENT)

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        packet, peer = self._next()
        return packet[:size], peer

    def recvmsg(self, size: int, control: int) -> tuple[bytes, Any, int, Any]:
        packet, peer = self._next()
        return packet[:size], PKTINFO, 0, peer

    def sendto(self, wire: bytes, peer: Any) -> int:
        self.sends += 1
        if (number := self.failing.get(self.sends)) is not None:
            raise OSError(number, os.strerror(number))
        self.sent.append((wire, peer))
        return len(wire)

    def sendmsg(self, parts: Iterable[bytes], control: Any, flags: int, peer: Any) -> int:
        self.controls.append(control)
        return self.sendto(b"".join(parts), peer)


def table() -> AnswerTable:
    made = AnswerTable(names.from_text("cluster.local"))
    made.apply(BOUND, 1, 1)
    return made


def gate(**settings: Any) -> Gate:
    """One that knows the client already."""
    made = Gate(AccessSettings(**settings))
    made.verdict(CLIENT[0], stream=False, now=NOW)
    return made


def drain(
    sock: Script, budget: int = batch.BUDGET, *, bound: bool = True, at: Gate | None = None
) -> tuple[list[Any], Counters]:
    counters = Counters()
    return batch.drain(sock, table() if bound else None, at or gate(), budget, counters, NOW), counters  # type: ignore[arg-type]


wildcard = pytest.mark.parametrize("wildcard", [False, True], ids=["one address", "wildcard"])


@wildcard
def test_hits_are_sent_misses_come_back_in_order(wildcard: bool) -> None:
    other = [query("a.up.test", ident=2), query(WEB, 16, ident=4)]
    sock = Script([query(ident=1), other[0], query(ident=3), other[1]], wildcard=wildcard)
    misses, _ = drain(sock)
    assert [wire[:2] for wire, _ in sock.sent] == [b"\0\1", b"\0\3"]
    assert all(is_vip(wire) and peer == CLIENT for wire, peer in sock.sent)
    assert [(miss.packet, miss.peer) for miss in misses] == [(packet, CLIENT) for packet in other]
    assert all(miss.control == reply_control(PKTINFO if wildcard else ()) for miss in misses)


def test_a_wildcard_reply_leaves_from_the_address_that_was_asked_by_any_interface() -> None:
    sock = Script([query()], wildcard=True)
    drain(sock)
    (((level, kind, data),),) = sock.controls
    assert (level, kind) == (socket.IPPROTO_IP, 8)
    assert struct.unpack("=I4s", data[:8]) == (0, bytes([127, 0, 0, 2]))
    v6 = reply_control([(1, 2, b"other"), (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, b"\xfd" * 16 + b"\7\0\0\0")])
    assert v6 == ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, b"\xfd" * 16 + bytes(4)),)


@wildcard
@pytest.mark.parametrize(
    "number",
    [
        errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.EINVAL, errno.EMSGSIZE, errno.ECONNREFUSED, errno.ENETUNREACH,
        errno.EINTR, errno.ENOMEM,
    ],
    ids=errno.errorcode.get,
)  # fmt: skip
def test_p5_an_error_of_send_costs_exactly_one_reply(number: int, wildcard: bool) -> None:
    sock = Script([query(ident=ident) for ident in range(10)], wildcard=wildcard, failing={4: number})
    misses, counters = drain(sock)
    assert misses == []
    assert [wire[1] for wire, _ in sock.sent] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert counters["canal_dns_send_errors_total"] == {(errno.errorcode[number],): 1}
    assert counters["canal_dns_answers_total"] == {("table",): 9}


@wildcard
def test_p5_errors_of_receive_do_not_end_the_batch_and_do_not_spin(wildcard: bool) -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "an earlier ICMP")
    sock = Script([refused, query(ident=1), refused, query(ident=2)], wildcard=wildcard)
    drain(sock)
    assert len(sock.sent) == 2
    endless = Script([refused] * 1000, wildcard=wildcard)
    drain(endless)
    assert endless.calls == batch.BUDGET


@wildcard
def test_an_empty_datagram_is_not_the_end(wildcard: bool) -> None:
    sock = Script([b"", b"", query()], wildcard=wildcard)
    misses, _ = drain(sock)
    assert [miss.packet for miss in misses] == [b"", b""]
    assert len(sock.sent) == 1


@wildcard
def test_the_budget_is_kept(wildcard: bool) -> None:
    sock = Script([query()] * 100, wildcard=wildcard)
    drain(sock, 10)
    assert (len(sock.sent), sock.calls) == (10, 10)


@wildcard
def test_before_the_first_table_everything_is_a_miss(wildcard: bool) -> None:
    misses, counters = drain(Script([query()], wildcard=wildcard), bound=False)
    assert len(misses) == 1
    assert not counters["canal_dns_requests_total"]


@wildcard
@pytest.mark.parametrize("port", [0, 7, 13, 19, 37])
def test_ports_that_answer_anything_get_no_hit(port: int, wildcard: bool) -> None:
    sock = Script([(query(), (CLIENT[0], port))], wildcard=wildcard)
    misses, _ = drain(sock)
    assert (len(misses), sock.sent) == (1, [])


@wildcard
def test_who_may_not_ask_gets_no_hit(wildcard: bool) -> None:
    sock = Script([query()], wildcard=wildcard)
    misses, _ = drain(sock, at=gate(allow=()))
    assert (len(misses), sock.sent) == (1, [])


def test_hits_are_counted_by_type_once_per_batch() -> None:
    types = [1, 1, 28, 255, 64, 65, 1]
    _, counters = drain(Script([query(WEB, qtype) for qtype in types]))
    assert counters["canal_dns_requests_total"] == {
        ("udp", "A"): 3, ("udp", "AAAA"): 1, ("udp", "ANY"): 1, ("udp", "SVCB"): 1, ("udp", "HTTPS"): 1,
    }  # fmt: skip
    assert counters["canal_dns_responses_total"] == {("NOERROR",): 7}
    durations = counters.histograms["canal_dns_request_duration_seconds"]
    assert sum(durations[("table",)].counts) == 7


@given(st.binary(max_size=600))
def test_no_bytes_raise(packet: bytes) -> None:
    for wild in (False, True):
        sock = Script([packet], wildcard=wild)
        misses, _ = drain(sock)
        assert len(misses) + len(sock.sent) == 1


@given(
    st.sampled_from([1, 28, 64, 65, 255, 5, 16]),
    st.integers(0, 0xFFFF),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    st.booleans(),
)
def test_a_hit_is_what_decide_says(qtype: int, flags: int, changes: list[tuple[int, int]], opt: bool) -> None:
    packet = bytearray(query(WEB, qtype, flags=flags) + (b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if opt else b""))
    packet[11] = int(opt)
    for at, octet in changes:
        packet[at % len(packet)] = octet
    answer = answer_from_table(bytes(packet), table(), False)
    if answer is not None:
        verdict = decide(bytes(packet), *CLIENT, False, table(), gate(), NOW)
        assert isinstance(verdict, Reply)
        assert verdict.wire == answer
        assert drain(Script([bytes(packet)]))[0] == []


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_what_runs_and_why(forbidden: str) -> None:
    script = "from canal_dns.server import batch; print(batch.IMPLEMENTATION, '-', batch.REASON)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"CANAL_DNS_NO_EXTENSIONS": forbidden},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("pure - ")
    assert ("forbids" in done.stdout) == (forbidden == "1")
