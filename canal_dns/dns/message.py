"""Whole messages as objects, through dnslib: for the demo's stand-in CoreDNS and for reading a reply as text.

Rules of this file:
- it alone imports dnslib, and nothing on the packet path imports it: one message costs dnslib some 30 microseconds;
- dnslib sees only what records.scan() found well formed, for it takes names too long, data too short and octets left over;
- whatever it raises comes out as WireError: it refuses labels that are not UTF-8, and a chain of pointers overflows its stack.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dnslib

from canal_dns.dns import names
from canal_dns.dns.codes import Rcode, Type, rcode_text, type_text
from canal_dns.dns.records import scan
from canal_dns.dns.wire import HEADER, MAX_STREAM, Fault, Query, error_reply, parse_query
from canal_dns.errors import WireError

TTL = 5
"""Seconds; CoreDNS's default for Services."""

Zone = Mapping[str, Sequence[tuple[str, str]]]
"""Name, lower case and without the final dot -> its records as (type, data as in a zone file, names with the final dot)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply says."""

    rcode: str
    records: tuple[str, ...]
    """The answer section: `NAME TTL IN TYPE DATA`."""


def parse(packet: bytes) -> Any:
    """A dnslib.DNSRecord. Raises WireError for whatever is not a well-formed message."""
    if not HEADER <= len(packet) <= MAX_STREAM or scan(packet) is None:
        raise WireError("not a well-formed message")
    try:
        return dnslib.DNSRecord.parse(packet)
    except (dnslib.DNSError, RecursionError, ValueError, struct.error) as problem:
        raise WireError(f"dnslib cannot read it: {problem}") from None


def make_query(name: str, qtype: str, ident: int) -> bytes:
    """A query with RD=1 and an OPT record. Raises WireError for a name or type that is none."""
    question = names.from_text(name)
    try:
        code = getattr(dnslib.QTYPE, qtype.upper())
    except dnslib.DNSError:
        raise WireError(f"{qtype!r} is not a type of records") from None
    query = dnslib.DNSRecord(dnslib.DNSHeader(id=ident, rd=1), q=dnslib.DNSQuestion(list(names.labels(question)), code))
    query.add_ar(dnslib.EDNS0(udp_len=1232))
    return bytes(query.pack())


def read_answer(packet: bytes) -> Answer:
    """A reply as text. Raises WireError."""
    record = parse(packet)
    lines = (f"{rr.rname} {rr.ttl} IN {type_text(rr.rtype)} {rr.rdata}" for rr in record.rr)
    return Answer(rcode_text(record.header.rcode), tuple(lines))


def answer(packet: bytes, zone: Zone, origin: str) -> bytes | None:
    """Answer a query as CoreDNS would from these records; other names below `origin` do not exist, others are refused.

    None: no reply. NODATA and NXDOMAIN carry the SOA of `origin`; a CNAME is followed inside the zone.
    """
    query = parse_query(packet, stream=True)
    if isinstance(query, Fault):
        return None if query.rcode is None else error_reply(query.query or packet, query.rcode)
    try:
        asked = parse(packet)
    except WireError:
        return error_reply(query, Rcode.FORMERR)
    name = names.to_text(query.name).removesuffix(".")
    if name not in zone and name != origin and not name.endswith("." + origin):
        return error_reply(query, Rcode.REFUSED)

    reply = asked.reply(ra=1, aa=1)
    soa = f"{origin}. {TTL} IN SOA ns.dns.{origin}. hostmaster.{origin}. 1 7200 1800 86400 {TTL}"
    found = [soa] if name == origin and query.qtype == Type.SOA else _records(query, name, zone)
    for line in found:
        reply.add_answer(*dnslib.RR.fromZone(line))
    if not found:
        reply.add_auth(*dnslib.RR.fromZone(soa))
        if not any(known == name or known.endswith("." + name) for known in (*zone, origin)):
            reply.header.rcode = Rcode.NXDOMAIN
    if query.payload is not None:
        reply.add_ar(dnslib.EDNS0(udp_len=1232, flags="do" if query.do else ""))
    return bytes(reply.pack())


def _records(query: Query, name: str, zone: Zone) -> Sequence[str]:
    """The lines of an answer; each CNAME is followed once."""
    qtype = type_text(query.qtype)
    lines: list[str] = []
    followed: set[str] = set()
    while name in zone and name not in followed:
        followed.add(name)
        records = zone[name]
        lines.extend(f"{name}. {TTL} IN {rtype} {data}" for rtype, data in records if rtype in (qtype, "CNAME"))
        alias = [data for rtype, data in records if rtype == "CNAME" != qtype]
        if not alias:
            break
        name = alias[0].removesuffix(".").lower()
    return lines
