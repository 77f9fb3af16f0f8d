"""Messages as bytes: one query read, its replies and its upstream form built, messages framed on a stream.

Rules of this file:
- a peer's bytes never raise: what cannot be used is a value (`Fault`, `Mismatch`) with its reason;
- the 12 octets of the header are judged before anything behind them is read, and nothing is allocated by a count in them;
- a client's question is echoed octet for octet; everything else that leaves is built here, never spliced from what came in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import NamedTuple

from canal_dns.dns.codes import FAILURES, IN, Ede, Rcode, Type, rcode_text, type_label, type_text
from canal_dns.dns.names import MAX_LABEL, MAX_NAME
from canal_dns.dns.records import HEADER, scan

__all__ = [
    "AA", "AD", "CD", "DO", "HEADER", "IN", "MAX_STREAM", "MAX_UDP", "MIN_UDP", "OPCODE", "QR", "RA", "RD", "TC",
    "Ede", "Fault", "Framer", "Mismatch", "Query", "Rcode", "Type",
    "error_reply", "frame", "match_reply", "opt_record", "options_fit", "parse_query", "plain_reply", "rcode_text",
    "reply_flags", "servfail", "truncated_reply", "type_label", "type_text", "upstream_query",
]  # fmt: skip

MIN_UDP = 512
"""Octets that every UDP client takes (RFC 1035 section 2.3.4)."""
MAX_UDP = 1232
"""Octets of the largest UDP message that we send or ask for: it crosses every IPv6 path unfragmented (DNS flag day 2020)."""
MAX_STREAM = 65_535
"""Octets of the largest message on a stream: its length has 16 bits (RFC 1035 section 4.2.2)."""
MAX_OPTIONS = 100
"""EDNS options in one query; Unbound's figure against CVE-2026-41292."""

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
DO = 0x8000
"""The flag in the TTL field of an OPT record (RFC 3225)."""

_head = Struct(">HHHHHH")
_opt = Struct(">BHHBBHH")
_ede = Struct(">HHH")
_OPT_PLAIN, _OPT_DO = (_opt.pack(0, Type.OPT, MAX_UDP, 0, 0, flags, 0) for flags in (0, DO))
_EDE_OPTION = 15

_META = dict.fromkeys(range(128, 255), Rcode.REFUSED) | dict.fromkeys(map(int, (Type.OPT, Type.NXNAME)), Rcode.FORMERR)
"""Types that no record answers (RFC 6895 section 3.1: 128 to 254, and 255 is ANY), with the code for a question that asks
for one; NXNAME: RFC 9824."""


class Query(NamedTuple):
    """One question, as a client asked it and as it is forwarded. One is made per packet: a tuple costs a fifth of a record."""

    id: int
    flags: int
    """The 16 bits as received."""
    question: bytes
    """Name, type and class as received, in the client's case."""
    name: bytes
    """The name, lower-cased."""
    qtype: int
    qclass: int
    payload: int | None
    """UDP payload size that the OPT record announces; None: no OPT record."""
    do: bool
    """The client wants DNSSEC records (RFC 3225)."""
    limit: int
    """Octets that the reply may have."""

    @property
    def rd(self) -> bool:
        return self.flags & RD != 0

    @property
    def ad(self) -> bool:
        return self.flags & AD != 0

    @property
    def cd(self) -> bool:
        return self.flags & CD != 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A query that is not to be answered or forwarded."""

    rcode: Rcode | None
    """What the client is told; None: nothing, the packet is dropped."""
    reason: str
    """One of a few words: a label of metrics."""
    query: Query | None = None
    """What was understood of it; None: not even the question, so that no reply can echo it."""


class Mismatch(Enum):
    """Why a packet from an upstream is not the reply that is waited for (RFC 5452 section 9.1). Values: labels of metrics."""

    SHORT = "short"
    ID = "id"
    NOT_A_REPLY = "not-a-reply"
    OPCODE = "opcode"
    QUESTION = "question"
    MALFORMED = "malformed"


def parse_query(packet: bytes, *, stream: bool) -> Query | Fault:
    """Read a client's packet; `stream` says that it came over TCP. The checks and their order are those of decide().

    The name is walked once and at most 255 octets far: a compression pointer has nothing before it that it could mean.
    """
    size = len(packet)
    if size < HEADER:
        return Fault(None, "short")
    ident, flags, questions, answers, authorities, additionals = _head.unpack_from(packet)
    if flags & QR:
        return Fault(None, "response")
    if flags & OPCODE:
        return Fault(Rcode.NOTIMP, "opcode")
    if questions != 1 or answers or authorities or additionals > 1:
        return Fault(Rcode.FORMERR, "counts")

    at = HEADER
    while at < size and (length := packet[at]) != 0:
        if length > MAX_LABEL:
            return Fault(Rcode.FORMERR, "name")
        at += 1 + length
    end = at + 5
    if end > size or at + 1 - HEADER > MAX_NAME:
        return Fault(Rcode.FORMERR, "name")
    question = packet[HEADER:end]
    qtype = packet[at + 1] << 8 | packet[at + 2]
    qclass = packet[at + 3] << 8 | packet[at + 4]
    name = question[:-4].lower()

    if not additionals:
        query = Query(ident, flags, question, name, qtype, qclass, None, False, MAX_STREAM if stream else MIN_UDP)
        if end != size:
            return Fault(Rcode.FORMERR, "trailing", query)
    else:
        opt = _read_opt(packet, end)
        if opt is None:
            limit = MAX_STREAM if stream else MIN_UDP
            return Fault(Rcode.FORMERR, "opt", Query(ident, flags, question, name, qtype, qclass, None, False, limit))
        payload, version, do = opt
        limit = MAX_STREAM if stream else min(max(payload, MIN_UDP), MAX_UDP)
        query = Query(ident, flags, question, name, qtype, qclass, payload, do, limit)
        if version:
            return Fault(Rcode.BADVERS, "edns-version", query)

    if qclass != IN:
        return Fault(Rcode.REFUSED, "class", query)
    if qtype in _META:
        return Fault(_META[qtype], "meta-type", query)
    return query


def _read_opt(packet: bytes, at: int) -> tuple[int, int, bool] | None:
    """Payload size, version and DO of an OPT record that fills the packet from `at` on (RFC 6891 section 6.1.2)."""
    size = len(packet)
    if at + 11 > size:
        return None
    owner, rtype, payload, _, version, flags, length = _opt.unpack_from(packet, at)
    at += 11
    if owner or rtype != Type.OPT or at + length != size or not options_fit(packet, at):
        return None
    return payload, version, flags & DO != 0


def options_fit(packet: bytes, at: int) -> bool:
    """True where the octets from `at` to the end of the packet are at most MAX_OPTIONS whole options."""
    size = len(packet)
    for _ in range(MAX_OPTIONS):
        if at == size:
            return True
        if at + 4 > size:
            return False
        at += 4 + (packet[at + 2] << 8 | packet[at + 3])
    return at == size


def opt_record(*, do: bool) -> bytes:
    """Our own OPT record: version 0, MAX_UDP, no option of the peer's (hop by hop, RFC 6891 section 6.2.6)."""
    return _OPT_DO if do else _OPT_PLAIN


def reply_flags(query: Query) -> int:
    """What every reply to a query carries: QR, RA, and the client's RD and CD (RFC 4035 section 3.2.2)."""
    return QR | RA | query.flags & (RD | CD)


def plain_reply(query: Query, flags: int, opt: bytes = b"") -> bytes:
    """A reply without records: header with these flags and response code, the client's question, `opt` if there is one."""
    return _head.pack(query.id, flags, 1, 0, 0, 1 if opt else 0) + query.question + opt


def error_reply(source: Query | bytes, rcode: int, *, ede: Ede | None = None) -> bytes:
    """A reply that says no more than a response code.

    A Query has its question echoed, and an OPT record if it had one, which carries `ede` and the upper bits of BADVERS.
    For a packet whose question cannot be echoed only a header is left: RD and CD copied and RA set for opcode QUERY,
    nothing but ID and opcode for any other (RFC 8906 section 3.1.4).
    """
    if not isinstance(source, Query):
        ident, flags = _head.unpack_from(source)[:2]
        kept = flags & OPCODE or RA | flags & (RD | CD)
        return _head.pack(ident, QR | kept | rcode & 15, 0, 0, 0, 0)
    opt = b""
    if source.payload is not None:
        options = b"" if ede is None else _ede.pack(_EDE_OPTION, 2, ede)
        opt = _opt.pack(0, Type.OPT, MAX_UDP, rcode >> 4, 0, DO if source.do else 0, len(options)) + options
    return plain_reply(source, reply_flags(source) | rcode & 15, opt)


class Failure(bytes):
    """A SERVFAIL of our own, so that it is not counted as an upstream's."""

    __slots__ = ()


def servfail(query: Query, ede: Ede) -> Failure:
    """SERVFAIL of our own, with the reason for those who can read it."""
    return Failure(error_reply(query, Rcode.SERVFAIL, ede=ede))


def truncated_reply(query: Query, *, authoritative: bool = False) -> bytes:
    """An empty reply with TC=1: ask again over TCP."""
    opt = b"" if query.payload is None else opt_record(do=query.do)
    return plain_reply(query, reply_flags(query) | TC | (AA if authoritative else 0), opt)


def upstream_query(query: Query, ident: int, *, do: bool) -> bytes:
    """The question as it is forwarded: built anew, with an ID and an OPT record of our own.

    RD, AD and CD are the client's: RD=0 stays 0, AD asks for AD in the reply (RFC 6840 section 5.7).
    `do` is DO upstream, which need not be the client's. No option of the client gets through (RFC 7871 section 12).
    """
    head = _head.pack(ident, query.flags & (RD | AD | CD), 1, 0, 0, 1)
    return head + query.question + opt_record(do=do)


def match_reply(query: Query, ident: int, packet: bytes) -> Mismatch | None:
    """None where `packet` is a reply to this query that went out under the ID `ident`, else the first difference.

    The whole message must parse, without an octet left over. A reply without question is taken only as a failure
    (FORMERR, SERVFAIL, NOTIMP, REFUSED with no records), since some servers send no more than a header then.
    """
    if len(packet) < HEADER:
        return Mismatch.SHORT
    got, flags, questions, answers, authorities, _ = _head.unpack_from(packet)
    if got != ident:
        return Mismatch.ID
    if not flags & QR:
        return Mismatch.NOT_A_REPLY
    if flags & OPCODE:
        return Mismatch.OPCODE
    if questions == 0:
        if flags & 15 not in FAILURES or answers or authorities:
            return Mismatch.QUESTION
        return Mismatch.MALFORMED if scan(packet) is None else None
    end = HEADER + len(query.question)
    echoed = packet[HEADER:end]
    if questions != 1 or echoed[-4:] != query.question[-4:] or echoed[:-4].lower() != query.name:
        return Mismatch.QUESTION
    return Mismatch.MALFORMED if scan(packet) is None else None


def frame(message: bytes) -> bytes:
    """A message as it goes over a stream: its length in two octets first (RFC 1035 section 4.2.2)."""
    return len(message).to_bytes(2) + message


class Framer:
    """Cuts a stream into messages. What is buffered is only what arrived, never what a length announced."""

    __slots__ = ("_buffer", "empty_frame")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.empty_frame = False
        """A frame of no octets arrived: no message can be so short, the peer does not speak DNS."""

    @property
    def pending(self) -> int:
        """Octets of a message that is not complete yet, its length included."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that became complete, in order; shorter ones than a header too, for decide() to drop."""
        buffer = self._buffer
        buffer += data
        messages = []
        at = 0
        while at + 2 <= len(buffer):
            end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
            if end > len(buffer):
                break
            if end == at + 2:
                self.empty_frame = True
            else:
                messages.append(bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]
        return messages
