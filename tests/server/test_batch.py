"""The packet loop, each filling of it, on a kernel that does what a script says: an error costs one reply, none a turn."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.responder import Reply, answer_from_table, decide
from canal_dns.dns.table import AnswerTable
from canal_dns.metrics import Counters
from canal_dns.server import _batch_mmsg as mmsg
from canal_dns.server import _batch_py as pure
from canal_dns.server import batch
from canal_dns.server.sockets import open_udp, reply_control
from canal_dns.settings import AccessSettings, Endpoint
from tests.server.serving import BOUND, WEB, is_vip, query, udp_client

NOW = 1000.0
CLIENT = ("10.1.2.3", 40_000)
ASKED = bytes([127, 0, 0, 2])
PKTINFO = (socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 7, ASKED, ASKED))
REPLY_PKTINFO = (socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 0, ASKED, ASKED))


class Script:
    """A socket: what it receives (a packet, a packet and its peer, or an error), and which send meets which error."""

    def __init__(self, packets: Iterable[Any], *, wildcard: bool = False, failing: dict[int, int] | None = None) -> None:
        self.packets = list(packets)
        self.wildcard = wildcard
        self.failing = failing or {}
        self.sent: list[tuple[bytes, Any]] = []
        self.controls: list[Any] = []
        self.receives = 0
        self.sends = 0

    def receive(self, size: int) -> tuple[bytes, Any]:
        self.receives += 1
        if not self.packets:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        one = self.packets.pop(0)
        if isinstance(one, OSError):
            raise one
        packet, peer = one if isinstance(one, tuple) else (one, CLIENT)
        return packet[:size], peer

    def send(self, wire: bytes, peer: Any, control: Any) -> None:
        self.sends += 1
        if (number := self.failing.get(self.sends)) is not None:
            raise OSError(number, os.strerror(number))
        self.sent.append((wire, peer))
        self.controls.append(control)


class OneByOne(Script):
    """As the socket module has it."""

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        return self.receive(size)

    def recvmsg(self, size: int, control: int) -> tuple[bytes, Any, int, Any]:
        packet, peer = self.receive(size)
        return packet, [PKTINFO], 0, peer

    def sendto(self, wire: bytes, peer: Any) -> int:
        self.send(wire, peer, ())
        return len(wire)

    def sendmsg(self, parts: Iterable[bytes], control: Any, flags: int, peer: Any) -> int:
        self.send(b"".join(parts), peer, tuple(control))
        return 1


class ManyAtOnce(Script):
    """As the kernel has it: structures in memory, the number of those that went well, an error only for the first one."""

    def fileno(self) -> int:
        return -1

    def recvmmsg(self, _fd: int, _address: int, count: int, _flags: int, _timeout: None) -> int:
        for slot in range(count):
            if slot and self.packets and isinstance(self.packets[0], OSError):
                return slot
            try:
                packet, (host, port) = self.receive(pure.MAX_PACKET)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return slot or -1
            at = slot * pure.MAX_PACKET
            mmsg._packets.octets[at : at + len(packet)] = packet
            mmsg._received.halves[16 * slot + 14] = len(packet)
            name = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s", port, socket.inet_aton(host))
            mmsg._names.octets[28 * slot : 28 * slot + 8] = name
            control = struct.pack("=QII", 28, *PKTINFO[:2]) + PKTINFO[2]
            mmsg._controls.octets[64 * slot : 64 * slot + len(control)] = control
        return count

    def sendmmsg(self, _fd: int, address: int, count: int, _flags: int) -> int:
        for number in range(count):
            if number and self.sends + 1 in self.failing:
                return number
            header = (ctypes.c_uint64 * 8).from_address(address + 64 * number)
            name = ctypes.string_at(header[0], 8)
            wire = ctypes.string_at(*(ctypes.c_uint64 * 2).from_address(header[2]))
            control = ctypes.string_at(header[4], header[5]) if header[5] else b""
            kinds = ((*struct.unpack("=II", control[8:16]), control[16:28]),) if control else ()
            peer = (socket.inet_ntoa(name[4:]), int.from_bytes(name[2:4], "big"))
            try:
                self.send(wire, peer, kinds)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1
        return count


class Filling:
    """One filling of the packet loop, and sockets that it can read."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = {"pure": pure, "mmsg": mmsg}[name]
        self._monkeypatch = monkeypatch

    def socket(self, packets: Iterable[Any], **different: Any) -> Script:
        if self._module is pure:
            return OneByOne(packets, **different)
        sock = ManyAtOnce(packets, **different)
        self._monkeypatch.setattr(mmsg, "_recvmmsg", sock.recvmmsg)
        self._monkeypatch.setattr(mmsg, "_sendmmsg", sock.sendmmsg)
        return sock

    def drain(
        self,
        sock: Any,
        budget: int = batch.BUDGET,
        *,
        bound: bool = True,
        at: Gate | None = None,
        of: AnswerTable | None = None,
    ) -> tuple[list[Any], Counters]:
        counters = Counters()
        return self._module.drain(sock, (of or table()) if bound else None, at or gate(), budget, counters, NOW), counters


@pytest.fixture(params=["pure", "mmsg"])
def filling(request: pytest.FixtureRequest) -> Iterator[Filling]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(mmsg, "_hosts", {socket.inet_aton(CLIENT[0]): CLIENT[0]})
        yield Filling(request.param, monkeypatch)


def table() -> AnswerTable:
    made = AnswerTable(names.from_text("cluster.local"))
    made.apply(BOUND, 1, 1)
    return made


def gate(**settings: Any) -> Gate:
    """One that knows the client already."""
    made = Gate(AccessSettings(**settings))
    made.verdict(CLIENT[0], stream=False, now=NOW)
    return made


wildcard = pytest.mark.parametrize("wildcard", [False, True], ids=["one address", "wildcard"])


@wildcard
def test_hits_are_sent_misses_come_back_in_order(filling: Filling, wildcard: bool) -> None:
    other = [query("a.up.test", ident=2), query(WEB, 16, ident=4)]
    sock = filling.socket([query(ident=1), other[0], query(ident=3), other[1]], wildcard=wildcard)
    misses, _ = filling.drain(sock)
    assert [wire[:2] for wire, _ in sock.sent] == [b"\0\1", b"\0\3"]
    assert all(is_vip(wire) and peer == CLIENT for wire, peer in sock.sent)
    assert [(miss.packet, miss.peer) for miss in misses] == [(packet, CLIENT) for packet in other]
    assert all(miss.control == ((REPLY_PKTINFO,) if wildcard else ()) for miss in misses)


def test_a_wildcard_reply_leaves_from_the_address_that_was_asked_by_any_interface(filling: Filling) -> None:
    sock = filling.socket([query()], wildcard=True)
    filling.drain(sock)
    assert [control for (control,) in sock.controls] == [REPLY_PKTINFO]
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
def test_p5_an_error_of_send_costs_exactly_one_reply(filling: Filling, number: int, wildcard: bool) -> None:
    sock = filling.socket([query(ident=ident) for ident in range(10)], wildcard=wildcard, failing={4: number})
    misses, counters = filling.drain(sock)
    assert misses == []
    assert [wire[1] for wire, _ in sock.sent] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert counters["canal_dns_send_errors_total"] == {(errno.errorcode[number],): 1}
    assert counters["canal_dns_answers_total"] == {("table",): 9}


@wildcard
def test_p5_errors_of_receive_lose_no_datagram_and_do_not_spin(filling: Filling, wildcard: bool) -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "an earlier ICMP")
    sock = filling.socket([refused, query(ident=1), refused, query(ident=2)], wildcard=wildcard)
    for _ in range(4):
        filling.drain(sock)
    assert len(sock.sent) == 2
    endless = filling.socket([refused] * 1000, wildcard=wildcard)
    filling.drain(endless)
    assert 1 <= endless.receives <= batch.BUDGET


@wildcard
def test_an_empty_datagram_is_not_the_end(filling: Filling, wildcard: bool) -> None:
    sock = filling.socket([b"", b"", query()], wildcard=wildcard)
    misses, _ = filling.drain(sock)
    assert [miss.packet for miss in misses] == [b"", b""]
    assert len(sock.sent) == 1


@wildcard
def test_the_budget_is_kept(filling: Filling, wildcard: bool) -> None:
    sock = filling.socket([query()] * 100, wildcard=wildcard)
    filling.drain(sock, 10)
    assert (len(sock.sent), sock.receives) == (10, 10)


@wildcard
def test_before_the_first_table_everything_is_a_miss(filling: Filling, wildcard: bool) -> None:
    misses, counters = filling.drain(filling.socket([query()], wildcard=wildcard), bound=False)
    assert len(misses) == 1
    assert not counters["canal_dns_requests_total"]


@wildcard
@pytest.mark.parametrize("port", [0, 7, 13, 19, 37])
def test_ports_that_answer_anything_get_no_hit(filling: Filling, port: int, wildcard: bool) -> None:
    sock = filling.socket([(query(), (CLIENT[0], port))], wildcard=wildcard)
    misses, _ = filling.drain(sock)
    assert (len(misses), sock.sent) == (1, [])


@wildcard
def test_who_may_not_ask_gets_no_hit(filling: Filling, wildcard: bool) -> None:
    sock = filling.socket([query()], wildcard=wildcard)
    misses, _ = filling.drain(sock, at=gate(allow=()))
    assert (len(misses), sock.sent) == (1, [])


@wildcard
def test_exempt_clients_get_no_hit_whatever_is_ready(filling: Filling, wildcard: bool) -> None:
    of, at = table(), gate()
    of_others = filling.socket([query()], wildcard=wildcard)
    assert (filling.drain(of_others, at=at, of=of)[0], len(of_others.sent)) == ([], 1)
    assert of.ready
    at.exempt([CLIENT[0]])
    for _ in range(2):
        at.verdict(CLIENT[0], stream=False, now=NOW)
        sock = filling.socket([query()], wildcard=wildcard)
        misses, _ = filling.drain(sock, at=at, of=of)
        assert (len(misses), sock.sent) == (1, [])


def test_hits_are_counted_by_type_once_per_batch(filling: Filling) -> None:
    types = [1, 1, 28, 255, 64, 65, 1]
    _, counters = filling.drain(filling.socket([query(WEB, qtype) for qtype in types]))
    assert counters["canal_dns_requests_total"] == {
        ("udp", "A"): 3, ("udp", "AAAA"): 1, ("udp", "ANY"): 1, ("udp", "SVCB"): 1, ("udp", "HTTPS"): 1,
    }  # fmt: skip
    assert counters["canal_dns_responses_total"] == {("NOERROR",): 7}
    durations = counters.histograms["canal_dns_request_duration_seconds"]
    assert sum(durations[("table",)].counts) == 7


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packet=st.binary(max_size=600))
def test_no_bytes_raise(filling: Filling, packet: bytes) -> None:
    for wild in (False, True):
        sock = filling.socket([packet], wildcard=wild)
        misses, _ = filling.drain(sock)
        assert len(misses) + len(sock.sent) == 1


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    qtype=st.sampled_from([1, 28, 64, 65, 255, 5, 16]),
    flags=st.integers(0, 0xFFFF),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    opt=st.booleans(),
)
def test_a_hit_is_what_decide_says(filling: Filling, qtype: int, flags: int, changes: list[tuple[int, int]], opt: bool) -> None:
    packet = bytearray(query(WEB, qtype, flags=flags) + (b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if opt else b""))
    packet[11] = int(opt)
    for at, octet in changes:
        packet[at % len(packet)] = octet
    answer = answer_from_table(bytes(packet), table(), False)
    if answer is not None:
        verdict = decide(bytes(packet), *CLIENT, False, table(), gate(), NOW)
        assert isinstance(verdict, Reply)
        assert verdict.wire == answer
        sock = filling.socket([bytes(packet)])
        assert filling.drain(sock)[0] == []
        assert sock.sent == [(answer, CLIENT)]


def test_a_batch_is_never_larger_than_its_buffers(filling: Filling) -> None:
    sock = filling.socket([query(ident=ident) for ident in range(300)])
    while sock.packets:
        filling.drain(sock, 1000)
    assert [wire[:2] for wire, _ in sock.sent] == [ident.to_bytes(2, "big") for ident in range(300)]


def test_hits_among_misses_keep_their_clients_and_their_addresses(filling: Filling) -> None:
    mixed = [(query(WEB if number % 3 else "a.up.test", ident=number), (CLIENT[0], 1000 + number)) for number in range(60)]
    sock = filling.socket(mixed, wildcard=True)
    misses, _ = filling.drain(sock)
    assert [peer for _, peer in sock.sent] == [(CLIENT[0], 1000 + number) for number in range(60) if number % 3]
    assert [int.from_bytes(wire[:2], "big") for wire, _ in sock.sent] == [number for number in range(60) if number % 3]
    assert [miss.peer[1] for miss in misses] == list(range(1000, 1060, 3))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_what_real_sockets_give(filling: Filling, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fillings, both families: the same peers, the same control messages, the same replies."""
    monkeypatch.undo()
    with open_udp(Endpoint(host, 0), shared=False) as sock, udp_client("::1" if ":" in host else "127.0.0.1") as client:
        client.settimeout(2)
        target = ("::1" if ":" in host else "127.0.0.1", sock.getsockname()[1])
        known = Gate(AccessSettings())
        known.verdict(target[0], stream=False, now=NOW)
        replies = []
        for ident in range(3):
            client.sendto(query(ident=ident), target)
            misses, _ = filling.drain(sock, at=known)
            for miss in misses:
                # The first packet of a client: nothing is remembered of it yet.
                assert (miss.packet, miss.peer) == (query(ident=ident), client.getsockname())
                assert bool(miss.control) == sock.wildcard
                sock.sendmsg([b"\0\0 from where it was asked"], miss.control, 0, miss.peer)
            replies.append(client.recvfrom(512))
        assert all(peer[:2] == target for _, peer in replies)
        assert is_vip(replies[1][0])
        assert is_vip(replies[2][0])


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_what_runs_and_why(forbidden: str) -> None:
    script = "from canal_dns.server import batch; print(batch.IMPLEMENTATION, '-', batch.REASON)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"CANAL_DNS_NO_EXTENSIONS": forbidden},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    implementation, _, reason = done.stdout.partition(" - ")
    assert implementation == ("pure" if forbidden == "1" else "mmsg")
    assert ("forbids" in reason) == (forbidden == "1")


@pytest.mark.parametrize("call", ["_recvmmsg", "_sendmmsg"])
def test_a_kernel_that_refuses_a_call_is_found_out_at_import(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    mmsg.check()
    monkeypatch.setattr(mmsg, call, refused)
    with pytest.raises(ImportError, match=f"{call[1:]} cannot be called here: Operation not permitted"):
        mmsg.check()


def test_a_call_that_fails_later_costs_no_datagram(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refused(*_: Any) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    monkeypatch.setattr(mmsg, "_told", set())
    monkeypatch.setattr(mmsg, "_recvmmsg", refused)
    with open_udp(Endpoint("127.0.0.1", 0), shared=False) as sock, udp_client() as client:
        for ident in range(3):
            client.sendto(query("a.up.test", ident=ident), sock.getsockname())
            (miss,) = mmsg.drain(sock, None, Gate(AccessSettings()), 64, Counters(), NOW)
            assert miss.packet[:2] == ident.to_bytes(2, "big")
            assert miss.peer == client.getsockname()
    assert [record.getMessage() for record in caplog.records] == [
        "recvmmsg failed, datagrams are read one by one: Function not implemented"
    ]
