"""An upstream's reply made fit for the client that asked.

Rules of this file:
- a reply in which nothing has to change is relayed as octets: only ID, flags, question and OPT record are the client's;
- what is hop by hop stays on its hop: OPT record, extended response codes, RA, and AD for clients that did not ask for it;
- a client gets no DNSSEC record that it did not ask for: DO upstream is ours (upstreamSentinel), not always the client's;
- a reply too long loses its additional records, else all of them (TC=1): never a part of a record or of a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from canal_dns.dns.codes import Ede, Rcode, Type
from canal_dns.dns.encoder import Body, encode, kept
from canal_dns.dns.records import Scan, scan
from canal_dns.dns.scrub import Scrubbed, concerns, scrub
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import AA, AD, HEADER, MAX_STREAM, TC, Query, opt_record, plain_reply, reply_flags, servfail

_DNSSEC = frozenset(map(int, (Type.RRSIG, Type.NSEC, Type.NSEC3, Type.DNSKEY, Type.DS)))
"""Records that only a client with DO=1 gets unasked (RFC 4035 section 3.2.1)."""

_head = Struct(">HHHHHH")


@dataclass(frozen=True, slots=True)
class Relayed:
    """What the client is sent."""

    wire: bytes
    rcode: int
    rewritten: bool
    """Addresses of a bound name were replaced or removed."""


def relay(query: Query, reply: bytes, table: AnswerTable | None) -> Relayed:
    """Make a reply that match_reply() accepted fit for its client; `table` None: nothing is bound yet.

    A malformed reply, or one that cannot be passed on, becomes SERVFAIL.
    """
    found = scan(reply)
    if found is None or (found.opt is not None and found.opt.ttl >> 24):
        # An extended response code (BADVERS, BADCOOKIE) is about the OPT record that we sent, not about the question.
        return _failure(query)
    _, flags, questions, *counts = _head.unpack_from(reply)
    rcode = flags & 15
    opt = b"" if query.payload is None else opt_record(do=query.do)
    own = reply_flags(query) | flags & AA
    if flags & TC:
        return Relayed(plain_reply(query, own | TC | rcode, opt), rcode, False)
    if questions == 0:
        return Relayed(plain_reply(query, own | rcode, opt), rcode, False)

    changed = scrub(query, found, table, rcode) if table is not None and concerns(query, found, table) else None
    body = _body(query, found, changed, counts)
    if changed is not None:
        rcode = changed.rcode
    elif flags & AD and (query.ad or query.do):
        own |= AD
    wire = fit(query, own | rcode, body, opt)
    return _failure(query) if wire is None else Relayed(wire, rcode, changed is not None)


def _failure(query: Query) -> Relayed:
    return Relayed(servfail(query, Ede.OTHER), Rcode.SERVFAIL, False)


def _body(query: Query, found: Scan, changed: Scrubbed | None, counts: list[int]) -> Body:
    """The records for this client: the octets as they came wherever that is possible."""
    unwanted = _unwanted(query)
    if changed is not None:
        return encode(query.question, [entry for entry in changed.entries if entry.rtype not in unwanted])
    opt = found.opt
    end = len(found.packet) if opt is None else opt.start
    opt_is_last = opt is None or opt.end == len(found.packet)
    if not opt_is_last or not unwanted.isdisjoint(found.types):
        return encode(query.question, [kept(found, record) for record in found.records if record.rtype not in unwanted])
    answers, authorities, additionals = counts
    if opt is not None:
        additionals -= 1
    start = HEADER + len(query.question)
    additional = found.records[-additionals].start if additionals else end
    return Body((answers, authorities, additionals), found.packet[start:end], additional - start)


def _unwanted(query: Query) -> frozenset[int]:
    if query.do or query.qtype == Type.ANY:
        return frozenset()
    return _DNSSEC - {query.qtype} if query.qtype in _DNSSEC else _DNSSEC


def fit(query: Query, flags: int, body: Body, opt: bytes) -> bytes | None:
    """The message within the client's limit; None: it cannot be sent on a stream either."""
    size = HEADER + len(query.question) + len(opt)
    if size + len(body.octets) <= query.limit:
        return _message(query, flags, body, opt)
    # Additional records may be left out without a word (RFC 2181 section 9).
    short = Body((body.counts[0], body.counts[1], 0), body.octets[: body.additional], body.additional)
    if size + len(short.octets) <= query.limit:
        return _message(query, flags, short, opt)
    if query.limit < MAX_STREAM:
        return plain_reply(query, flags | TC, opt)
    # There is nothing to fall back to on a stream: better the answer without an OPT record than none.
    return _message(query, flags, short, b"") if size - len(opt) + len(short.octets) <= MAX_STREAM else None


def _message(query: Query, flags: int, body: Body, opt: bytes) -> bytes:
    answers, authorities, additionals = body.counts
    head = _head.pack(query.id, flags, 1, answers, authorities, additionals + (1 if opt else 0))
    return b"".join((head, query.question, body.octets, opt))
