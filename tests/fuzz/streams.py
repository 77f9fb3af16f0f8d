"""Octets of a TCP client: cut into messages, answered in Python and by the extension, and a whole connection of them.

An input: an octet that says in what pieces the others arrive (_PIECES), then what arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from canal_dns.dns.access import Gate
from canal_dns.dns.responder import Drop, decide
from canal_dns.dns.table import TableCell
from canal_dns.dns.wire import Ede, Framer, Query, frame, servfail
from canal_dns.metrics import Counters
from canal_dns.server import _batch_py as pure
from canal_dns.server import batch
from canal_dns.server.connection import Connection
from canal_dns.server.intake import Intake
from canal_dns.server.tally import Tally
from canal_dns.server.tcp import Connections
from canal_dns.settings import AccessSettings, TcpSettings
from tests.conformance.lab import load
from tests.dns.packets import bound_table, opt, packet
from tests.fuzz.queries import CLIENT, NOW, WORDS
from tests.fuzz.targets import Finding, need, target
from tests.fuzz.valid import question_of, sound

PORT = 40_000
_PIECES = (1, 2, 3, 7, 16, 100, 1000, 1 << 16)
_LATE = 8
"""Bit of the first octet: what is forwarded is answered at the end only."""

_TABLE = bound_table()
_GATE = Gate(AccessSettings())
"""A stream has no limits, so that nothing is remembered here that counts."""


def _pieces(data: bytes) -> list[bytes]:
    size = _PIECES[data[0] & 7]
    return [data[at : at + size] for at in range(1, len(data), size)]


def _seeds() -> list[bytes]:
    packets = [wire for case in load().values() for wire in case.packets]
    usual = [packet(ident=1), packet("b.up.test", ident=2), packet(qtype=28, ident=3, additional=opt()), packet(flags=0x8100)]
    made = [bytes([at % 16]) + frame(wire) + frame(usual[0]) for at, wire in enumerate(packets)]
    for at in range(16):
        made.append(bytes([at]) + b"".join(map(frame, usual)))
        made.append(bytes([at]) + frame(usual[0]) * 20 + frame(usual[1])[:-3])
        made.append(bytes([at]) + frame(usual[0]) * 130)
        made.append(bytes([at]) + frame(usual[1]) + frame(b"") + frame(usual[0]))
    return made


def _hits(octets: int) -> bytes:
    one = frame(packet())
    return b"\7" + one * (octets // len(one))


def _empty(octets: int) -> bytes:
    return b"\7" + bytes(octets)


def _drops(octets: int) -> bytes:
    """Octet by octet."""
    return b"\0" + frame(packet("a.up.test", additional=opt(options=b"\xff\xf0\0\1x" * 90))) * (octets // 480)


def _one_message(octets: int) -> bytes:
    """The largest message, in small pieces."""
    return b"\4" + octets.to_bytes(2) + packet() + bytes(octets - len(packet()))


@target(
    "frames",
    "a stream cut into messages, in any pieces, and answered in Python and by the extension",
    seeds=_seeds,
    families=(_hits, _empty, _drops),
    fixed=1000,
    per_octet=30,
    words=(*WORDS, b"\0\x2b", b"\0\0", b"\xff\xff", b"\0\1", frame(packet())),
)
def frames(data: bytes) -> None:
    if not data:
        return
    whole = data[1:]
    framer = Framer()
    messages: list[bytes] = []
    for piece in _pieces(data):
        messages += framer.feed(piece)
        need(framer.pending <= len(whole), "more is pending than came")
    again = Framer()
    need(again.feed(whole) == messages and again.pending == framer.pending, "it depends on the pieces what a stream says")
    need(again.empty_frame == framer.empty_frame, "an empty frame is one in some pieces only")
    for most in (1, 3, 1000):
        for twin in (pure, batch):
            _answered(twin, whole, most)


def _answered(twin: Any, whole: bytes, most: int) -> None:
    wire, misses, used, taken = twin.answer_stream(memoryview(whole), _TABLE, None, NOW, Tally().words, most)
    at, replies, left = 0, b"", []
    for _ in range(taken):
        end = at + 2 + int.from_bytes(whole[at : at + 2])
        message = whole[at + 2 : end]
        need(end <= len(whole), "more was taken than there is")
        reply = twin.answer(message, _TABLE, None, NOW, True)
        if reply is None:
            left.append(message)
        else:
            replies += frame(reply)
        at = end
    need((wire, misses, used) == (replies, left, at), "a stream is not answered as its messages are")
    rest = whole[at:]
    ended = bool(left) and (len(left[-1]) < 12 or left[-1][2] & 0x80)
    complete = len(rest) >= 2 and len(rest) >= 2 + int.from_bytes(rest[:2])
    need(taken <= most and (taken == most or ended or not complete), "a whole message was left")


# -- a connection ---------------------------------------------------------------------------------------------------------


class _Elsewhere:
    """An upstream of the intake: it fails each query, at once or when it is told to."""

    def __init__(self, *, late: bool) -> None:
        self.waiting: list[tuple[Query, Callable[[bytes | None], None]]] = []
        self._late = late

    @property
    def marks(self) -> frozenset[bytes]:
        return frozenset()

    def is_own(self, query: Query, host: str, port: int) -> bool:
        return False

    def submit(self, query: Query, client: str, reply_to: Callable[[bytes | None], None], exempt: bool) -> None:
        self.waiting.append((query, reply_to))
        if not self._late:
            self.answer()

    def take(self, misses: Any, *_: object) -> Any:
        return misses

    def refresh(self, query: Query) -> None:
        raise AssertionError("there is no cache")

    def answer(self) -> None:
        while self.waiting:
            query, reply_to = self.waiting.pop(0)
            reply_to(servfail(query, Ede.OTHER))


class _Wire:
    """A transport, and the client behind it, who takes everything."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.reading, self.open, self.ended = True, True, False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        need(self.open and not self.ended, "written to what is closed")
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return not self.open

    def close(self) -> None:
        self.open = False

    abort = close


_runner: list[asyncio.Runner] = []


@target(
    "connection",
    "a client's TCP connection from accept to close: every query answered once, whatever else comes",
    seeds=_seeds,
    families=(_hits, _empty, _drops, _one_message),
    fixed=2000,
    per_octet=60,
    words=(*WORDS, b"\0\x2b", b"\0\0", b"\xff\xff", b"\0\1", frame(packet())),
    largest=512,
)
def connection(data: bytes) -> None:
    if not data:
        return
    if not _runner:
        _runner.append(asyncio.Runner())
    written = _runner[0].run(_connected(_pieces(data), late=bool(data[0] & _LATE)))
    replies = Framer()
    got = replies.feed(written)
    need(not replies.pending and not replies.empty_frame, "half a reply was written")
    asked = _wanted(data[1:])
    need(len(got) == len(asked), f"{len(got)} replies to {len(asked)} queries")
    open_: dict[bytes, list[bytes]] = {}
    for query in asked:
        open_.setdefault(query[:2], []).append(query)
    for reply in got:
        _judge(reply, open_.get(reply[:2], []))


def _judge(reply: bytes, queries: list[bytes]) -> None:
    """Find the query that a reply belongs to, among those with its ID, and take it out: one whose question must be echoed comes
    before one whose question need not be."""
    problem = Finding(f"a reply to nothing: {reply.hex()}")
    for query in sorted(queries, key=lambda query: question_of(query) is None):
        try:
            sound(query, reply, 65_535)
        except Finding as found:
            problem = found
        else:
            queries.remove(query)
            return
    raise problem


def _wanted(octets: bytes) -> list[bytes]:
    """The messages that are to be answered: all up to the first that is no query, and as many as one connection may send."""
    found = []
    messages = 0
    at = 0
    while at + 2 <= len(octets) and messages < TcpSettings().queries_per_connection:
        end = at + 2 + int.from_bytes(octets[at : at + 2])
        if end > len(octets):
            break
        message = octets[at + 2 : end]
        if isinstance(decide(message, CLIENT, PORT, True, _TABLE, _GATE, NOW), Drop):
            break
        found.append(message)
        messages += 1
        at = end
    return found


async def _connected(pieces: list[bytes], *, late: bool) -> bytes:
    upstream = _Elsewhere(late=late)
    counters = Counters()
    intake = Intake(TableCell(_TABLE), _GATE, upstream, counters, Tally())
    connections = Connections(intake, TcpSettings(), ())
    one = connections.admit((CLIENT, PORT))
    assert isinstance(one, Connection)
    wire = _Wire()
    one.connection_made(cast(asyncio.Transport, wire))
    for piece in pieces:
        while not wire.reading and wire.open:
            upstream.answer()
            await asyncio.sleep(0)
        if not wire.open:
            break
        one.get_buffer(-1)[: len(piece)] = piece
        one.buffer_updated(len(piece))
    if wire.open:
        one.eof_received()
    for _ in range(10_000):
        if not wire.open and not upstream.waiting:
            break
        upstream.answer()
        await asyncio.sleep(0)
    need(not wire.open, "a connection is not closed after everything is answered")
    one.connection_lost(None)
    need(len(connections) == 0, "a connection is left over")
    need(not counters["canal_dns_dropped_total"][("internal",)], "a message was not handled")
    return bytes(wire.written)
