"""A packet from an upstream: is it the reply that is waited for, and what does the client get of it?

An input: an octet of circumstances, one that says how long the client's query is, the query, then the packet.
"""

from __future__ import annotations

import struct

from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.memory import Memory
from canal_dns.dns.names import from_text
from canal_dns.dns.relay import relay
from canal_dns.dns.wire import MAX_STREAM, Mismatch, Query, match_reply, parse_query
from canal_dns.server import _batch_py as pure
from canal_dns.server import batch
from canal_dns.server.forwarding import QUICK
from tests.conformance import message as strict
from tests.conformance.lab import load
from tests.dns.packets import WEB, bound_table, opt, packet, question, upstream_reply
from tests.fuzz.targets import Finding, need, target
from tests.fuzz.valid import question_of, readable, sound

NOW = 1000.0
IDENT = 0x4242
_STREAM, _UNBOUND, _IDENT, _QUESTION = (1 << bit for bit in range(4))
"""_IDENT: the packet's own ID is the one that is waited for; _QUESTION: the query's question is put into the packet."""

_TABLE = bound_table()
_ADDRESSES = {1: "v4", 28: "v6"}

RECORDS = [
    ("a1.up.test.", 300, "A", "192.0.2.1"),
    ("A1.Up.test.", 300, "AAAA", "2001:db8::1"),
    ("a1.up.test.", 300, "CNAME", "b.up.test."),
    ("a1.up.test.", 300, "CNAME", f"{WEB}."),
    ("b.up.test.", 30, "A", "192.0.2.3"),
    (f"{WEB}.", 30, "A", "10.0.0.1"),
    (f"{WEB}.".upper(), 30, "AAAA", "fd00::1"),
    (f"{WEB}.", 30, "HTTPS", "1 . ipv4hint=10.0.0.1"),
    ("x.up.test.", 30, "SVCB", f"1 {WEB}. ipv4hint=10.0.0.1"),
    (f"{WEB}.", 30, "RRSIG", "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"),
    ("up.test.", 300, "NS", "ns.up.test."),
    ("up.test.", 30, "SOA", "ns.up.test. root.up.test. 1 2 3 4 30"),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("_x._tcp.up.test.", 30, "SRV", "0 100 80 www.up.test."),
    ("1.2.0.192.in-addr.arpa.", 30, "PTR", "www.up.test."),
    ("up.test.", 30, "TXT", '"text" "more"'),
    ("up.test.", 30, "TYPE65280", r"\# 6 c00cc00c00ff"),
    ("up.test.", 30, "DNAME", "down.test."),
    ("up.test.", 30, "NAPTR", '1 2 "a" "b" "c" up.test.'),
    ("up.test.", 30, "NSEC", "z.up.test. A"),
]


def _input(circumstances: int, query: bytes, reply: bytes) -> bytes:
    return bytes([circumstances, len(query)]) + query + reply


def _seeds() -> list[bytes]:
    asking = [
        packet(name, qtype, additional=own)
        for name, qtype in (("a1.up.test", 1), (WEB, 1), (WEB, 65), (WEB, 16), ("up.test", 255), ("a1.up.test", 28))
        for own in (b"", opt(), opt(flags=0x8000))
    ]
    made = []
    for number, wire in enumerate(asking):
        query = parse_query(wire, stream=False)
        assert isinstance(query, Query)
        for at in range(len(RECORDS)):
            for section in range(3):
                lines = [RECORDS[at], RECORDS[(at + number) % len(RECORDS)]]
                sections: list[list[tuple[str, int, str, str]]] = [[], [], []]
                sections[section] = lines
                rcode = ("NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED")[(at + section) % 4]
                made.append(_input((at + number) % 2, wire, upstream_reply(query, *sections, rcode=rcode)))
        made.append(_input(0, wire, struct.pack(">HHHHHH", IDENT, 0x8182, 0, 0, 0, 0)))
    for case in load().values():
        for wire in case.packets:
            made.append(_input(_IDENT | _QUESTION, asking[0], bytes([0x42, 0x42, 0x81, 0x80]) + wire[4:]))
    return made


_ASK = packet("a1.up.test", additional=opt(flags=0x8000))
_HEAD = struct.pack(">HHHHHH", IDENT, 0x8180, 1, 0, 0, 0)


def _records(made: list[bytes], section: int = 0) -> bytes:
    counts = [0, 0, 0]
    counts[section] = len(made)
    body = b"".join(made)
    return _input(_STREAM, _ASK, _HEAD[:6] + struct.pack(">HHH", *counts) + question("a1.up.test") + body)


def _record(owner: bytes, rtype: int, data: bytes) -> bytes:
    return owner + struct.pack(">HHIH", rtype, 1, 300, len(data)) + data


def _addresses(octets: int) -> bytes:
    return _records([_record(b"\xc0\x0c", 1, b"\1\2\3\4")] * (octets // 16))


def _empty_records(octets: int) -> bytes:
    return _records([_record(b"\0", 65280, b"")] * (octets // 11))


def _pointers(octets: int) -> bytes:
    """Each owner is a label and a pointer to the owner before it: names of 127 labels, over and over."""
    made, at, before, depth = [], len(_HEAD) + len(question("a1.up.test")), 0x0C, 5
    while at < octets + 40 and at < 0x3FF0:
        depth = depth + 1 if depth < 120 else 6
        owner = b"\1x" + struct.pack(">H", 0xC000 | (before if depth > 6 else 0x0C))
        made.append(_record(owner, 16, b"\0"))
        before, at = at, at + len(made[-1])
    return _records(made)


def _labels_and_pointers(octets: int) -> bytes:
    """One half labels of one octet, the other half names that begin somewhere in them."""
    start = len(_HEAD) + len(question("a1.up.test")) + 12
    size = min(octets // 2, 16_000)
    text = (b"\1a" * 120 + b"\0") * (size // 241 + 1)
    names = [_record(struct.pack(">H", 0xC000 | (start + at)), 5, b"\0") for at in range(0, size - 1, 2)]
    return _records([_record(b"\0", 65280, text[:size]), *names[: octets // 2 // 13]])


def _chain(octets: int) -> bytes:
    """CNAMEs one after another that lead to a bound name at last."""
    count = max(1, octets // 40)
    made = [_record(b"\2a1\2up\4test\0", 5, b"\4n000\0")]
    made += [_record(b"\4n%03x\0" % at, 5, b"\4n%03x\0" % (at + 1)) for at in range(count)]
    made.append(_record(b"\4n%03x\0" % count, 5, from_text(WEB)))
    return _records(made)


def _bound_records(octets: int) -> bytes:
    owner = from_text(WEB)
    return _records([_record(owner.upper() if at % 2 else owner, (1, 28, 65, 46)[at % 4], b"\0" * (4, 16, 3, 20)[at % 4])
                     for at in range(max(1, octets // 54))])  # fmt: skip


def _soas(octets: int) -> bytes:
    return _records([_record(b"\xc0\x0c", 6, b"\xc0\x0c\xc0\x0c" + bytes(20))] * (octets // 36), 1)


WORDS = (
    b"\xc0\x0c", b"\xc0\x0f", b"\xc0\x12", b"\0\1\0\1\0\0\1\x2c\0\4\xc0\0\2\1", b"\0\x1c\0\1\0\0\1\x2c\0\x10",
    b"\0\5\0\1\0\0\1\x2c\0\2\xc0\x0c", b"\0\6\0\1", b"\0\2\0\1", b"\0\x0f\0\1", b"\0\x21\0\1", b"\0\x10\0\1", b"\0\x0c\0\1",
    b"\0\x41\0\1", b"\0\x2e\0\1", b"\0\x27\0\1", b"\0\x23\0\1", from_text(WEB), b"\2a1\2up\4test\0", opt(), opt(rcode=1),
    b"\x81\x80\0\1\0\1\0\0\0\0", b"\x81\x83\0\1\0\0\0\1\0\0", b"\0\xfa\0\xff\0\0\0\0",
)  # fmt: skip


@target(
    "replies",
    "a packet from an upstream: accepted or not, relayed, rewritten, kept and answered again, in Python and in the extension",
    seeds=_seeds,
    families=(_addresses, _empty_records, _pointers, _labels_and_pointers, _chain, _bound_records, _soas),
    fixed=4000,
    per_octet=120,
    words=WORDS,
)
def replies(data: bytes) -> None:
    if len(data) < 2:
        return
    circumstances, size = data[:2]
    wire, reply = data[2 : 2 + size], data[2 + size :]
    query = parse_query(wire, stream=bool(circumstances & _STREAM))
    if not isinstance(query, Query):
        return
    if circumstances & _QUESTION and len(reply) >= 12:
        reply = reply[:2] + bytes([reply[2] & 0x87 | 0x80]) + reply[3:4] + b"\0\1" + reply[6:12] + query.question + reply[12:]
    ident = int.from_bytes(reply[:2]) if circumstances & _IDENT else IDENT
    reply = reply[:MAX_STREAM]
    table = None if circumstances & _UNBOUND else _TABLE
    memory = Memory()
    accepted = match_reply(query, ident, reply)
    if ident == int.from_bytes(reply[:2]):
        for _ in range(2):
            need(memory.match(query, ident, reply) is accepted, "what is remembered of a reply is not what was found")
    if accepted is None:
        _acceptable(query, ident, reply)
        _relayed(wire, query, reply, memory, circumstances)
    else:
        need(isinstance(accepted, Mismatch), f"{accepted!r}")
    if QUICK is not None and not circumstances & _STREAM and table is not None:
        _quick(wire, query, reply, accepted)


def _acceptable(query: Query, ident: int, reply: bytes) -> None:
    """What is accepted has the ID and the question, and is well formed to the end."""
    try:
        message = strict.read(reply)
    except strict.MalformedError as problem:
        raise Finding(f"a malformed reply was accepted, {problem}") from None
    need(message.id == ident and not message.opcode, "a reply to something else was accepted")
    asked = [(name.lower(), qtype, qclass) for name, qtype, qclass in message.questions]
    wanted = [(query.name, query.qtype, query.qclass)]
    need(asked == wanted or (not asked and message.flags & 15 and not message.answer), f"another question: {asked}")


def _relayed(wire: bytes, query: Query, reply: bytes, memory: Memory, circumstances: int) -> None:
    table = None if circumstances & _UNBOUND else _TABLE
    relayed = relay(query, reply, table)
    _passable(wire, query, relayed.wire, reply, bound=table is not None)
    for _ in range(2):
        need(memory.relay(query, reply, table) == (relayed.wire, relayed.rewritten), "another reply the second time")
    if table is None:
        return
    cache = AnswerCache(2)
    cache.put(query, reply, table, NOW)
    for age in (0.0, 0.5, 1.0, 5.0, 29.0, 2000.0):
        native = batch.answer(wire, table, cache, NOW + age, bool(circumstances & _STREAM))
        need(
            native in (None, pure.answer(wire, table, cache, NOW + age, bool(circumstances & _STREAM))),
            "the extension says something else from the cache",
        )
        hit = cache.look(query, NOW + age)
        if hit is not None:
            _passable(wire, query, hit.wire, reply, bound=True)
    stale = AnswerCache(2, 10.0)
    stale.put(query, reply, table, NOW)
    late = stale.look_stale(query, NOW + 5.0)
    if late is not None:
        _passable(wire, query, late, reply, bound=True)


def _passable(wire: bytes, query: Query, own: bytes, reply: bytes, *, bound: bool) -> None:
    message = sound(wire, own, query.limit, source=reply)
    need(message.opt is None or query.payload is not None, "an OPT record for a client that sent none")
    need(not message.opt or not message.options or message.flags & 15 == 2, "an option of the upstream's got through")
    if not bound:
        return
    for record in message.records:
        known = _TABLE.names.get(record.name.lower())
        if known is None or record.rclass != 1:
            continue
        need(record.rtype not in (64, 65), "a service record of a bound name got through")
        if record.rtype in _ADDRESSES:
            need(record.rdata in getattr(known, _ADDRESSES[record.rtype]), f"another address of a bound name: {own.hex()}")


def _quick(wire: bytes, query: Query, reply: bytes, accepted: Mismatch | None) -> None:
    from canal_dns.server._forward_c import relayed

    own = relayed(wire, reply, _TABLE.names)
    if own is None:
        return
    need(accepted in (None, Mismatch.ID), f"the extension relays what is not accepted, {accepted}")
    need(match_reply(query, int.from_bytes(reply[:2]), reply) is None, "the extension relays what is not accepted")
    need(own == relay(query, reply, _TABLE).wire, f"the extension relays {own.hex()}, Python something else")
    need(question_of(wire) == own[12 : 12 + len(query.question)], "another question")
    need(readable(own) or not readable(reply), "dnspython cannot read it")
