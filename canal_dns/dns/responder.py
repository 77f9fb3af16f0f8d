"""The decision for one packet: answer it, forward it, or drop it.

Rules of this file:
- `decide` is complete and its order of checks fixed: length, QR, source port, ACL, limit, opcode, counts, question, OPT,
  EDNS version, class, meta type, bound name, probe of ours, cache, forward; the first seven look at the header alone and at
  who sent it;
- whoever has a limit (dns/access) gets no reply over UDP longer than AMPLIFICATION times his query, wherever it comes from;
- `answer_from_table` is the short cut for what most packets are: it gives the very bytes that `decide` would, or None;
- the same functions serve every transport (CVE-2026-86003).
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import NamedTuple

from canal_dns.dns.access import DROPPED_PORTS, Gate, Verdict
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.codes import IN, Rcode, Type
from canal_dns.dns.loops import PROBE_LABEL, answer_to
from canal_dns.dns.names import MAX_LABEL, ROOT
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import (
    AA,
    CD,
    HEADER,
    QR,
    RA,
    RD,
    Fault,
    Query,
    error_reply,
    opt_record,
    options_fit,
    parse_query,
    plain_reply,
    reply_flags,
    truncated_reply,
)

AMPLIFICATION = 3
"""Octets of a reply for each octet of its query, at most, where the query may have been sent in somebody else's name; QUIC's
figure for the same (RFC 9000 section 8.1). What is longer is to be had over TCP, where nobody can pretend."""
MAX_READY = 4096
"""Whole replies that are remembered: clients that ask the same do so in the same octets, but for the ID."""


class Source(Enum):
    """Where a reply comes from. Values: labels of metrics."""

    TABLE = "table"
    CACHE = "cache"
    UPSTREAM = "upstream"
    LOCAL = "local"


class Reply(NamedTuple):
    """Send this."""

    wire: bytes
    rcode: int
    source: Source
    qtype: int
    """0 where the question could not be read."""
    refresh: Query | None = None
    """What an upstream is to be asked beside, so that the cache goes on knowing it."""


class Forward(NamedTuple):
    """Ask an upstream. `exempt`: the client gets the reply as if nothing were bound (relay() without a table)."""

    query: Query
    exempt: bool = False


class Drop(NamedTuple):
    """Say nothing. `reason` is one of a few words: a label of metrics."""

    reason: str


_header = Struct(">HHHHH")
_flags_and_questions = Struct(">HH")


def _heads() -> dict[bytes, tuple[bytes, int]]:
    """Octets 2 to 11 of a usual query -> octets 2 to 5 of its reply, and where its OPT record begins, from the end.

    Usual: opcode QUERY, response code 0, one question, at most one more record; any other flag may be set and is ignored
    (RFC 8906 section 8.1.3), of which RD and CD are copied into the reply.
    """
    heads = {}
    for flags in range(0, QR, 0x10):
        if flags & 0x7800:
            continue
        reply = _flags_and_questions.pack(QR | AA | RA | flags & (RD | CD), 1)
        heads[_header.pack(flags, 1, 0, 0, 0)] = reply, 0
        heads[_header.pack(flags, 1, 0, 0, 1)] = reply, -11
    return heads


_HEADS = _heads()
_OPT, _OPT_DO = opt_record(do=False), opt_record(do=True)
_OPT_START = _OPT[:3]
_NO_OPTIONS = b"\0\0"
_ROOT_NS = ROOT + int(Type.NS).to_bytes(2) + IN.to_bytes(2)


def answer_from_table(packet: bytes, table: AnswerTable, stream: bool) -> bytes | None:
    """The reply to a query for a bound name; None for anything else and for anything unusual, which decide() settles.

    Every answer fits every client (dns/table), so `stream` changes nothing. The caller has seen to the ACL and the limits.
    """
    ready = table.ready.get(packet[2:])
    if ready is not None:
        return packet[:2] + ready
    head = _HEADS.get(packet[2:12])
    if head is None:
        return None
    flags, end = head
    opt = b""
    if end:
        tail = packet[end:]
        if tail[:3] == _OPT_START and tail[9:] == _NO_OPTIONS:
            if tail[6]:
                return None
            opt = _OPT_DO if tail[7] & 0x80 else _OPT
        else:
            return _answer_with_options(packet, table, flags)
    else:
        end = len(packet)
    body = _body(packet[HEADER:end], table)
    if body is None:
        return None
    reply = b"".join((flags, body[:4], packet[10:end], body[4:], opt))
    if len(table.ready) >= MAX_READY:
        table.ready.clear()
    table.ready[packet[2:]] = reply
    return packet[:2] + reply


def _body(question: bytes, table: AnswerTable) -> bytes | None:
    """What follows a bound name's question. Only the name is folded: the octets of type and class have no case."""
    return table.exact.get(question) or table.exact.get(question[:-4].lower() + question[-4:])


def _answer_with_options(packet: bytes, table: AnswerTable, flags: bytes) -> bytes | None:
    """A query whose OPT record has options: they are passed over, but must be well formed. Not remembered: cookies differ."""
    size = len(packet)
    at = HEADER
    while at < size and (length := packet[at]) != 0:
        if length > MAX_LABEL:
            return None
        at += 1 + length
    end = at + 5
    opt = packet[end : end + 11]
    if len(opt) < 11 or opt[:3] != _OPT_START or opt[6] or end + 11 + (opt[9] << 8 | opt[10]) != size:
        return None
    body = _body(packet[HEADER:end], table)
    if body is None or not options_fit(packet, end + 11):
        return None
    own = _OPT_DO if opt[7] & 0x80 else _OPT
    return b"".join((packet[:2], flags, body[:4], packet[10:end], body[4:], own))


def decide(
    packet: bytes,
    address: str,
    port: int,
    stream: bool,
    table: AnswerTable | None,
    gate: Gate,
    now: float,
    cache: AnswerCache | None = None,
    marks: frozenset[bytes] = frozenset(),
) -> Reply | Forward | Drop:
    """Judge one packet from `address` (text, as the kernel gives it) and `port`; `table` None: nothing is bound yet, as
    nothing ever is for an exempt client. What the cache says is for those alone for whom something may be. `marks`: those of
    our own probes; one that comes in has come back (dns/loops)."""
    exempt = gate.is_exempt(address)
    if exempt:
        table = None
    if len(packet) >= HEADER and not packet[2] & 0x80:  # else parse_query() has it dropped, whoever sent it
        if port in DROPPED_PORTS:
            return Drop("source-port")
        verdict = gate.verdict(address, stream=stream, now=now)
        if verdict is not Verdict.PASS:
            return _turned_away(packet, verdict, stream, table, gate, now)
    query = parse_query(packet, stream=stream)
    if isinstance(query, Fault):
        return _error(packet, query, stream, gate, now)
    if not stream and gate.is_limited(address):
        query = query._replace(limit=min(query.limit, AMPLIFICATION * len(packet)))
    if table is not None:
        body = table.exact.get(query.name + query.question[-4:])
        if body is not None:
            return Reply(_from_body(query, body), Rcode.NOERROR, Source.TABLE, query.qtype)
    if query.question == _ROOT_NS:
        return Reply(_root_servers(query), Rcode.NOERROR, Source.LOCAL, query.qtype)
    if query.name[0] == PROBE_LABEL:
        body = answer_to(query, marks)
        if body is not None:
            return Reply(_from_body(query, body), Rcode.NOERROR, Source.LOCAL, query.qtype)
    if cache is not None and not exempt:
        hit = cache.look(query, now)
        if hit is not None:
            return Reply(hit.wire, hit.rcode, Source.CACHE, query.qtype, query if hit.refresh else None)
    return Forward(query, exempt)


def _turned_away(
    packet: bytes, verdict: Verdict, stream: bool, table: AnswerTable | None, gate: Gate, now: float
) -> Reply | Drop:
    if verdict is Verdict.DROP:
        return Drop("rate-limit")
    if verdict is Verdict.REFUSE and not _error_allowed(stream, gate, now):
        return Drop("error-limit")
    # Only now is the question looked for: without it a stub resolver would not take the reply for its own.
    parsed = parse_query(packet, stream=stream)
    query = parsed.query if isinstance(parsed, Fault) else parsed
    if verdict is Verdict.REFUSE:
        return Reply(error_reply(query or packet, Rcode.REFUSED), Rcode.REFUSED, Source.LOCAL, _qtype(query))
    if query is None:
        return Drop("rate-limit")
    bound = table is not None and query.name in table.names
    return Reply(truncated_reply(query, authoritative=bound), Rcode.NOERROR, Source.LOCAL, query.qtype)


def _error(packet: bytes, fault: Fault, stream: bool, gate: Gate, now: float) -> Reply | Drop:
    if fault.rcode is None:
        return Drop(fault.reason)
    if not _error_allowed(stream, gate, now):
        return Drop("error-limit")
    return Reply(error_reply(fault.query or packet, fault.rcode), fault.rcode, Source.LOCAL, _qtype(fault.query))


def _error_allowed(stream: bool, gate: Gate, now: float) -> bool:
    """The limit is there against reflection and reply loops: a stream, whose address is proven, has neither."""
    return stream or gate.error_allowed(now)


def _qtype(query: Query | None) -> int:
    return 0 if query is None else query.qtype


def _from_body(query: Query, body: bytes) -> bytes:
    opt = b"" if query.payload is None else opt_record(do=query.do)
    plain = plain_reply(query, reply_flags(query) | AA)
    if len(plain) + len(body) - 4 + len(opt) > query.limit:
        return truncated_reply(query, authoritative=True)
    arcount = b"\0\1" if opt else b"\0\0"
    return b"".join((plain[:6], body[:4], arcount, query.question, body[4:], opt))


def _root_servers(query: Query) -> bytes:
    """The reply to `. IN NS`, CoreDNS's health probe, which must not depend on an upstream: NOERROR without records.

    CoreDNS takes any reply for health. We do not know the root servers and are no authority for the root, so there is
    nothing to list, AA is 0, and no SOA goes along: without one nobody remembers the answer (RFC 2308 section 5).
    """
    opt = b"" if query.payload is None else opt_record(do=query.do)
    return plain_reply(query, reply_flags(query), opt)
