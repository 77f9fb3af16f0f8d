"""The packet loop, each filling of it, on a kernel that does what a script says: an error costs one reply, none a turn."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.responder import Reply, Source, answer_from_table, decide
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import MAX_STREAM, Framer, frame
from canal_dns.metrics import Counters
from canal_dns.server import _batch_mmsg as mmsg
from canal_dns.server import _batch_py as pure
from canal_dns.server import batch
from canal_dns.server.sockets import Patience, open_udp, patience, reply_control
from canal_dns.server.tally import Tally
from canal_dns.settings import AccessSettings, Endpoint
from tests.dns.packets import ask, opt, packet, upstream_reply
from tests.server.serving import BOUND, WEB, is_vip, query, udp_client

try:
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1":
        raise ImportError
    from canal_dns.server import _batch_c as native
except ImportError:
    FILLINGS: dict[str, Any] = {"pure": pure, "mmsg": mmsg}
else:
    FILLINGS = {"pure": pure, "mmsg": mmsg, "native": native}

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

    def recvmmsg(self, _fd: int, address: int, count: int, _flags: int, _timeout: None) -> int:
        for slot in range(count):
            if slot and self.packets and isinstance(self.packets[0], OSError):
                return slot
            try:
                packet, (host, port) = self.receive(pure.MAX_PACKET)
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return slot or -1
            header = (ctypes.c_uint64 * 8).from_address(address + 64 * slot)
            part = (ctypes.c_uint64 * 2).from_address(header[2])
            assert (header[1], part[1], header[5]) == (28, pure.MAX_PACKET, 64), "as new"
            ctypes.memmove(part[0], packet, len(packet))
            header[7] = len(packet)
            name = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", port, socket.inet_aton(host))
            control = struct.pack("=QII", 28, *PKTINFO[:2]) + PKTINFO[2] if self.wildcard else b""
            ctypes.memmove(header[0], name, len(name))
            ctypes.memmove(header[4], control, len(control))
            header[1], header[5] = len(name), (len(control) + 7) // 8 * 8
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


_RECEIVE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, use_errno=True
)
_SEND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, use_errno=True)


class Filling:
    """One filling of the packet loop, and sockets that it can read."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module: Any = FILLINGS[name]
        self._monkeypatch = monkeypatch
        self.answer = getattr(self.module, "answer", pure.answer)
        self.answer_stream = getattr(self.module, "answer_stream", pure.answer_stream)

    def socket(self, packets: Iterable[Any], **different: Any) -> Script:
        if self.module is pure:
            return OneByOne(packets, **different)
        sock = ManyAtOnce(packets, **different)
        if self.module is mmsg:
            self._monkeypatch.setattr(mmsg, "_recvmmsg", sock.recvmmsg)
            self._monkeypatch.setattr(mmsg, "_sendmmsg", sock.sendmmsg)
        else:
            calls = (_RECEIVE(sock.recvmmsg), _SEND(sock.sendmmsg))
            for address, call in zip(self.module.CALLS, calls, strict=True):
                # With the call, so that it is there as long as its address is.
                place = Place(address, call)
                self._monkeypatch.setattr(place, "value", ctypes.cast(call, ctypes.c_void_p).value)
        return sock

    def drain(
        self,
        sock: Any,
        budget: int = batch.BUDGET,
        *,
        bound: bool = True,
        at: Gate | None = None,
        of: AnswerTable | None = None,
        cache: AnswerCache | None = None,
    ) -> tuple[list[Any], Counters]:
        counters, tally = Counters(), Tally()
        of = (of or table()) if bound else None
        misses = self.module.drain(sock, of, cache, at or gate(), budget, tally.words, counters, NOW)
        tally.add_to(counters)
        return misses, counters


class Place:
    """A word in memory."""

    def __init__(self, address: int, call: object) -> None:
        self._word = ctypes.c_void_p.from_address(address)
        self._call = call

    @property
    def value(self) -> int | None:
        return self._word.value

    @value.setter
    def value(self, number: int | None) -> None:
        self._word.value = number


@pytest.fixture(params=FILLINGS)
def filling(request: pytest.FixtureRequest) -> Iterator[Filling]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(mmsg, "_hosts", {socket.inet_aton(CLIENT[0]): CLIENT[0]})
        # What another test has used up is there again.
        monkeypatch.setattr(patience, "_until", 0.0)
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


NO_ROOM = [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM]
PENDING = [errno.ECONNREFUSED, errno.EINTR]
PERMANENT = [errno.EPERM, errno.EINVAL, errno.EMSGSIZE, errno.ENETUNREACH]


@wildcard
@pytest.mark.parametrize("number", PERMANENT, ids=errno.errorcode.get)
def test_p5_a_permanent_error_of_send_costs_exactly_one_reply(filling: Filling, number: int, wildcard: bool) -> None:
    sock = filling.socket([query(ident=ident) for ident in range(10)], wildcard=wildcard, failing={4: number})
    misses, counters = filling.drain(sock)
    assert misses == []
    assert [wire[1] for wire, _ in sock.sent] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert counters["canal_dns_send_errors_total"] == {(errno.errorcode[number],): 1}
    assert counters["canal_dns_answers_total"] == {("table",): 9}


@wildcard
@pytest.mark.parametrize("number", NO_ROOM + PENDING, ids=errno.errorcode.get)
def test_p5_an_error_that_passes_costs_no_reply(filling: Filling, number: int, wildcard: bool) -> None:
    failing = {1: number, 4: number, 5: number, 10: number}
    sock = filling.socket([query(ident=ident) for ident in range(10)], wildcard=wildcard, failing=failing)
    misses, counters = filling.drain(sock)
    assert misses == []
    assert [wire[1] for wire, _ in sock.sent] == list(range(10))
    assert counters["canal_dns_send_errors_total"] == {}
    assert counters["canal_dns_answers_total"] == {("table",): 10}


@wildcard
@pytest.mark.parametrize("number", NO_ROOM + PENDING, ids=errno.errorcode.get)
def test_p5_a_kernel_that_takes_nothing_is_not_waited_for_long(filling: Filling, number: int, wildcard: bool) -> None:
    always = dict.fromkeys(range(1, 10_000), number)
    sock = filling.socket([query(ident=ident) for ident in range(10)], wildcard=wildcard, failing=always)
    misses, counters = filling.drain(sock)
    assert (misses, sock.sent) == ([], [])
    assert sock.sends <= 10 + (Patience.WAITS if number in NO_ROOM else Patience.RETRIES)
    assert counters["canal_dns_send_errors_total"] == {(errno.errorcode[number],): 10}


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
    assert answer_from_table(query(), of, False)
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


# -- one query, and a stream ---------------------------------------------------------------------------------------------

UP = "a1.up.test"
DO = opt(flags=0x8000)
COOKIE = opt(options=bytes.fromhex("000a0008") + b"12345678")


def filled() -> AnswerCache:
    """One that knows a name for 20 seconds from NOW on, for those who want DNSSEC records too, and that there is no other."""
    cache = AnswerCache(10)
    address, signature = (f"{UP}.", 20, "A", "192.0.2.1"), (f"{UP}.", 20, "TXT", "x" * 200)
    for asked, lines in ((b"", [address]), (DO, [address, signature])):
        wanted = ask(UP, additional=asked)
        cache.put(wanted, upstream_reply(wanted, lines, flags="QR RD RA AD"), table(), NOW)
    missing = ask("a2.up.test")
    soa = ("up.test.", 300, "SOA", "ns.up.test. root.up.test. 1 2 3 4 20")
    cache.put(missing, upstream_reply(missing, [], [soa], rcode="NXDOMAIN"), table(), NOW)
    assert len(cache.entries) == 3
    return cache


TABLE, FILLED = table(), filled()
USUAL = [
    packet(name, qtype, flags=flags, additional=additional)
    for name in (WEB, UP, "a2.up.test", "A1.uP.TeSt")
    for qtype in (1, 28)
    for flags in (0, 0x0100, 0x0130, 0x07F0)
    for additional in (b"", opt(), DO, opt(0), COOKIE)
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("age", [0.0, 0.9, 1.0, 7.5, 17.9, 18.0, 21.0])
def test_an_answer_is_what_decide_says(filling: Filling, age: float, stream: bool) -> None:
    of, cache, found = table(), filled(), 0
    for one in USUAL:
        answer = filling.answer(one, of, cache, NOW + age, stream)
        assert answer == pure.answer(one, of, cache, NOW + age, stream)
        verdict = decide(one, *CLIENT, stream, of, gate(), NOW + age, cache)
        if isinstance(verdict, Reply) and verdict.source is not Source.TABLE and age >= 18.0:
            # The last tenth of its life is for decide(), until that has had it fetched anew.
            assert answer in (None, verdict.wire)
        elif isinstance(verdict, Reply):
            assert answer == verdict.wire
            found += 1
        else:
            assert answer is None
    assert found >= 40


def test_what_is_answered_from_the_cache_is_marked_as_used(filling: Filling) -> None:
    cache = filled()
    assert filling.answer(query(UP), table(), cache, NOW, False)
    assert [cache.visited[entry.slot] for entry in cache.entries.values()] == [1, 0, 0]


def test_before_the_first_table_there_is_no_answer(filling: Filling) -> None:
    assert filling.answer(query(), None, filled(), NOW, False) is None
    tally = Tally()
    assert filling.answer_stream(frame(query()), None, filled(), NOW, tally.words, 9) == (b"", [query()], 2 + len(query()), 1)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packet=st.sampled_from(USUAL),
    changes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 20),
    more=st.binary(max_size=20),
    age=st.floats(-1, 30),
    stream=st.booleans(),
)
def test_the_fillings_agree_or_leave_it_to_python(
    filling: Filling, packet: bytes, changes: list[tuple[int, int]], cut: int, more: bytes, age: float, stream: bool
) -> None:
    mutated = bytearray(packet[: len(packet) - cut] + more if cut < 5 else packet)
    for at, octet in changes:
        mutated[at % len(mutated)] = octet
    one, of, cache = bytes(mutated), TABLE, FILLED
    answer = filling.answer(one, of, cache, NOW + age, stream)
    assert answer in (None, pure.answer(one, of, cache, NOW + age, stream))
    sock = filling.socket([one])
    misses, _ = filling.drain(sock, of=of, cache=cache)
    assert sock.sent in ([], [(pure.answer(one, of, cache, NOW, False), CLIENT)])
    assert [miss.packet for miss in misses] == ([] if sock.sent else [one])


@given(octets=st.binary(max_size=400), most=st.integers(0, 5))
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_octets_of_a_stream_raise(filling: Filling, octets: bytes, most: int) -> None:
    _, misses, used, taken = filling.answer_stream(memoryview(octets), table(), None, NOW, Tally().words, most)
    assert used == sum(2 + len(miss) for miss in misses) <= len(octets)
    assert len(misses) == taken <= most


def test_a_stream_is_answered_frame_by_frame(filling: Filling) -> None:
    messages = [query(ident=1), query("b.up.test", ident=2), query(WEB, 28, ident=3)]
    octets = b"".join(frame(message) for message in messages)
    tally, of = Tally(), table()
    part = frame(query(ident=9))[:-1]
    wire, misses, used, taken = filling.answer_stream(octets + part, of, None, NOW, tally.words, 100)
    replies = [answer_from_table(messages[at], of, True) for at in (0, 2)]
    assert wire == b"".join(frame(reply) for reply in replies if reply)
    assert (misses, used, taken) == ([messages[1]], len(octets), 3)
    counters = Counters()
    tally.add_to(counters)
    assert counters["canal_dns_requests_total"] == {("tcp", "A"): 1, ("tcp", "AAAA"): 1}
    assert counters["canal_dns_answers_total"] == {("table",): 2}
    assert sum(counters.histograms["canal_dns_request_duration_seconds"][("table",)].counts) == 2
    first = filling.answer_stream(octets, of, None, NOW, tally.words, 1)
    assert first == (frame(replies[0] or b""), [], len(frame(messages[0])), 1)


@pytest.mark.parametrize("garbage", [b"", b"x", query()[:11], query(flags=0x8100)])
def test_nothing_is_taken_after_what_is_no_query(filling: Filling, garbage: bytes) -> None:
    octets = frame(query()) + frame(garbage)
    wire, *others = filling.answer_stream(octets + frame(query()), table(), None, NOW, Tally().words, 9)
    assert is_vip(wire)
    assert others == [[garbage], len(octets), 2]


def test_more_replies_than_are_gathered_at_once_come_in_order(filling: Filling) -> None:
    octets = b"".join(frame(query(ident=ident)) for ident in range(3000))
    replies, pieces = [], []
    while octets:
        wire, misses, used, taken = filling.answer_stream(octets, table(), None, NOW, Tally().words, 5000)
        assert (misses, used) == ([], taken * len(frame(query())))
        replies += Framer().feed(wire)
        pieces.append(len(wire))
        octets = octets[used:]
    assert [int.from_bytes(reply[:2], "big") for reply in replies] == list(range(3000))
    assert all(MAX_STREAM < piece < MAX_STREAM + 512 for piece in pieces[:-1]), "what a client does not take is bounded"


def test_hits_of_the_cache_are_counted_as_such(filling: Filling) -> None:
    sock = filling.socket([query(UP), query("a2.up.test"), query()])
    misses, counters = filling.drain(sock, cache=filled())
    if filling.module in (pure, mmsg):
        assert len(misses) == 2, "decide() answers these"
        return
    assert misses == []
    assert counters["canal_dns_answers_total"] == {("table",): 1, ("cache",): 2}
    assert counters["canal_dns_responses_total"] == {("NOERROR",): 2, ("NXDOMAIN",): 1}
    durations = counters.histograms["canal_dns_request_duration_seconds"]
    assert {labels: sum(one.counts) for labels, one in durations.items()} == {("table",): 1, ("cache",): 2}


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
    built = "native" if find_spec("canal_dns.server._batch_c") else "mmsg"
    assert implementation == ("pure" if forbidden == "1" else built)
    assert ("forbids" in reason) == (forbidden == "1")


def test_the_extension_is_there_where_it_must_be() -> None:
    if os.environ.get("CANAL_DNS_REQUIRE_NATIVE") == "1":
        assert "native" in FILLINGS


@pytest.mark.parametrize("call", ["_recvmmsg", "_sendmmsg"])
def test_a_kernel_that_refuses_a_call_is_found_out_at_import(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    mmsg.check()
    monkeypatch.setattr(mmsg, call, refused)
    with pytest.raises(ImportError, match=f"{call[1:]} cannot be called here: Operation not permitted"):
        mmsg.check()


@pytest.mark.parametrize("filling", [name for name in FILLINGS if name != "pure"], indirect=True)
def test_a_call_that_fails_later_costs_no_datagram(
    filling: Filling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pure, "_told", set())
    with open_udp(Endpoint("127.0.0.1", 0), shared=False) as sock, udp_client() as client:
        for ident in range(3):
            filling.socket([OSError(errno.ENOSYS, "")])
            client.sendto(query("a.up.test", ident=ident), sock.getsockname())
            (miss,) = filling.drain(sock, bound=False)[0]
            assert miss.packet[:2] == ident.to_bytes(2, "big")
            assert miss.peer == client.getsockname()
    assert [record.getMessage() for record in caplog.records] == [
        "recvmmsg failed, datagrams are read one by one: Function not implemented"
    ]


def test_nothing_is_leaked(filling: Filling) -> None:
    """Hits, misses and streams of every kind, again and again: as many blocks of memory, and references, as before."""
    of, cache, known = table(), filled(), gate()
    body = of.exact[names.from_text(WEB) + b"\0\1\0\1"]
    octets = b"".join(frame(one) for one in USUAL)
    tally, counters = Tally(), Counters()

    sock = filling.socket((), wildcard=True, failing=dict.fromkeys(range(0, 30_000, 7), errno.EPERM))

    def turn() -> None:
        sock.packets += [*USUAL[:100], query("b.up.test"), b"", (query(), ("10.9.9.9", 5000))]
        sock.sent.clear()
        sock.controls.clear()
        while sock.packets:
            filling.module.drain(sock, of, cache, known, 64, tally.words, counters, NOW)
        filling.answer_stream(octets, of, cache, NOW, tally.words, 1000)

    for _ in range(5):
        turn()
    gc.collect()
    before = sys.getallocatedblocks(), sys.getrefcount(body), sys.getrefcount(of), sys.getrefcount(cache)
    for _ in range(200):
        turn()
    gc.collect()
    after = sys.getallocatedblocks(), sys.getrefcount(body), sys.getrefcount(of), sys.getrefcount(cache)
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 100


@pytest.mark.parametrize("count", [3_000, 20_000])
def test_large_tables_answer_the_same(filling: Filling, count: int) -> None:
    """Their memory is asked for ahead, by indices of 2 and of 4 octets."""
    of = AnswerTable(names.from_text("cluster.local"))
    bound = {names.from_text(f"s{number}.shop.svc.cluster.local"): BOUND[names.from_text(WEB)] for number in range(count)}
    of.apply(bound, 1, 1)
    packets = [query(f"S{number}.shop.svc.cluster.local", ident=number) for number in range(0, count + 200, 37)]
    sock = filling.socket(packets)
    misses = []
    while sock.packets:
        misses += filling.drain(sock, of=of)[0]
    answers = [answer_from_table(one, of, False) for one in packets]
    assert [wire for wire, _ in sock.sent] == [one for one in answers if one]
    assert [miss.packet for miss in misses] == [one for one, answer in zip(packets, answers, strict=True) if answer is None]
    assert len(misses) in (5, 6)
