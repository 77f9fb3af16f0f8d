"""The decision for a packet: `decide`, the short cut to the table, the extension's `answer`, the question as it is forwarded.

An input: an octet of circumstances (_STREAM and the like), then a packet.
"""

from __future__ import annotations

from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.codes import Ede
from canal_dns.dns.responder import Drop, Forward, Reply, Source, answer_from_table, decide
from canal_dns.dns.wire import MAX_STREAM, Query, parse_query, servfail, truncated_reply, upstream_query
from canal_dns.server import _batch_py as pure
from canal_dns.server import batch
from canal_dns.settings import AccessSettings, RateLimitSettings
from tests.conformance import message as strict
from tests.conformance.lab import load
from tests.dns.packets import BOUND, ask, bound_table, opt, packet, upstream_reply
from tests.fuzz.targets import need, target
from tests.fuzz.valid import question_of, readable, sound, udp_limit

NOW = 1000.0
CLIENT, STRANGER = "10.1.2.3", "192.0.2.77"
_STREAM, _UNBOUND, _EXEMPT, _CACHED, _STRANGER, _LIMITED, _AGED = (1 << bit for bit in range(7))


def _known() -> list[tuple[Query, bytes]]:
    """Queries, and the replies to them that are in the cache."""
    address, long = ("a1.up.test.", 20, "A", "192.0.2.1"), ("a1.up.test.", 20, "TXT", '"' + "x" * 250 + '"')
    plain, dnssec, missing = ask("a1.up.test"), ask("a1.up.test", additional=opt(flags=0x8000)), ask("a2.up.test")
    soa = ("up.test.", 300, "SOA", "ns.up.test. root.up.test. 1 2 3 4 20")
    return [
        (plain, upstream_reply(plain, [address], flags="QR RD RA AD")),
        (dnssec, upstream_reply(dnssec, [address], [], [long, ("b.up.test.", 20, "TXT", long[3])], flags="QR RD RA AD")),
        (missing, upstream_reply(missing, [], [soa], rcode="NXDOMAIN")),
    ]


_TABLE = bound_table()
_KNOWN = _known()
_UNLIMITED = AccessSettings(error_replies_per_second=1 << 30)
"""A limit on error replies would make an input depend on those before it."""
_GATE = Gate(_UNLIMITED)
_EXEMPTING = Gate(_UNLIMITED, [CLIENT])


def _cache() -> AnswerCache:
    cache = AnswerCache(10)
    for query, reply in _KNOWN:
        cache.put(query, reply, _TABLE, NOW)
    return cache


def _gate(circumstances: int) -> Gate:
    if circumstances & _LIMITED:
        gate = Gate(AccessSettings(error_replies_per_second=1, rate_limit=RateLimitSettings(1, 1)))
        gate.verdict(CLIENT, stream=False, now=NOW)
        return gate
    return _EXEMPTING if circumstances & _EXEMPT else _GATE


def _seeds() -> list[bytes]:
    packets = {wire for case in load().values() for wire in case.packets}
    names = (*BOUND, "a1.up.test", "a2.up.test", "foo.web.shop.svc.cluster.local")
    options = bytes.fromhex("000a0008") + b"12345678"
    own = (b"", opt(), opt(flags=0x8000), opt(65535, options=options), opt(version=1), opt(options=options[:-1]))
    packets |= {packet(name, qtype, additional=one) for name in names for qtype in (1, 28, 65, 255, 16) for one in own}
    return [bytes([kind]) + one for one in sorted(packets) for kind in (0, _STREAM | _CACHED)] + [
        bytes([kind]) + packet(name) for kind in range(128) for name in ("web.shop.svc.cluster.local", "a1.up.test")
    ]


def _many_options(octets: int) -> bytes:
    options = b"\xff\xf0\0\0" * max(1, octets // 4)
    return bytes([_STREAM]) + packet("a.up.test", additional=opt(options=options[:65532]))


def _many_labels(octets: int) -> bytes:
    return bytes([_STREAM]) + packet(b"\1a" * (octets // 2) + b"\0")


def _long_tail(octets: int) -> bytes:
    return bytes([_STREAM | _CACHED]) + packet("a1.up.test", additional=opt()) + bytes(octets)


WORDS = (
    b"\3web\4shop\3svc\7cluster\5local\0", b"\2a1\2up\4test\0", b"\0\1\0\1", b"\0\x1c\0\1", b"\0\x41\0\1", b"\0\xff\0\1",
    opt(), opt(flags=0x8000), opt(512), b"\0\x0a\0\x08", b"\xc0\x0c", b"\0\1\0\0\0\0\0\0", b"\0\1\0\0\0\0\0\1",
)  # fmt: skip


@target(
    "queries",
    "the decision for a packet, from the table and the cache, in Python and in the extension; the question as it is forwarded",
    seeds=_seeds,
    families=(_many_options, _many_labels, _long_tail),
    fixed=2000,
    per_octet=8,
    words=WORDS,
)
def queries(data: bytes) -> None:
    if not data:
        return
    circumstances, wire = data[0], data[1:]
    stream = bool(circumstances & _STREAM)
    table = None if circumstances & _UNBOUND else _TABLE
    cache = _cache() if circumstances & _CACHED else None
    now = NOW + (19.5 if circumstances & _AGED else 0.0)
    address = STRANGER if circumstances & _STRANGER else CLIENT
    gate = _gate(circumstances)
    gate.error_allowed(now)
    verdict = decide(wire, address, 40_000, stream, table, gate, now, cache)
    if isinstance(verdict, Reply):
        _answered(wire, verdict, stream)
    elif isinstance(verdict, Forward):
        _forwarded(wire, verdict.query)
    else:
        need(isinstance(verdict, Drop), f"{verdict!r}")
    _short_cuts(wire, stream, now, cache)


def _answered(wire: bytes, reply: Reply, stream: bool) -> None:
    message = sound(wire, reply.wire, MAX_STREAM if stream else udp_limit(wire))
    rcode = message.flags & 15 | ((message.opt.ttl >> 24) << 4 if message.opt else 0)
    need(rcode == reply.rcode, f"response code {rcode} is counted as {reply.rcode}")
    need(len(reply.wire) <= max(512, 3 * len(wire)) or stream or reply.source is Source.CACHE, "an amplifier")
    if reply.source is Source.TABLE:
        bound = _TABLE.names[message.questions[0][0].lower()]
        for record in message.answer:
            need(record.rdata in (*bound.v4, *bound.v6), f"not the VIP: {reply.wire.hex()}")
    for other in (reply.refresh,) if reply.refresh is not None else ():
        _forwarded(wire, other)


def _forwarded(wire: bytes, query: Query) -> None:
    need(question_of(wire) == query.question, f"another question is forwarded: {query.question.hex()}")
    asked = upstream_query(query, 0x4242, do=query.do)
    need(readable(asked), f"dnspython cannot read what is forwarded: {asked.hex()}")
    message = strict.read(asked, reply=False)
    need(message.opt is not None and not message.options and message.flags & ~0x0130 == 0, f"forwarded: {asked.hex()}")
    limit = query.limit
    for own in (servfail(query, Ede.OTHER), truncated_reply(query)):
        sound(wire, own, limit)


def _short_cuts(wire: bytes, stream: bool, now: float, cache: AnswerCache | None) -> None:
    """What is answered without a decision is what the decision would be."""
    ready = answer_from_table(wire, _TABLE, stream)
    verdict = decide(wire, CLIENT, 40_000, stream, _TABLE, _GATE, now)
    if ready is not None:
        need(isinstance(verdict, Reply) and verdict.wire == ready, f"the table says {ready.hex()}, decide() {verdict!r}")
        need(answer_from_table(wire, _TABLE, stream) == ready, "another answer the second time")
    known = pure.answer(wire, _TABLE, cache, now, stream)
    native = batch.answer(wire, _TABLE, cache, now, stream)
    need(native in (None, known), f"the extension says {native and native.hex()}, Python {known and known.hex()}")
    if known is not None:
        asked = parse_query(wire, stream=stream)
        need(isinstance(asked, Query), "an answer to what is no query")
        sound(wire, known, asked.limit if isinstance(asked, Query) else 0)
