"""Bound names in replies of others: whatever an upstream says of their addresses, the client learns the VIP.

Rules of this file:
- A and AAAA records of a bound name become its VIPs, in every section; without a VIP of that family they go;
- HTTPS and SVCB records of a bound name go, and those of other names that carry the addresses of a bound one;
- a chain of CNAMEs from the question ends at the first bound name in it, as if that name had been asked for:
  NOERROR whatever the upstream thought of the rest;
- signatures over what was changed go; everything else stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from canal_dns.dns.codes import IN, Rcode, Type
from canal_dns.dns.encoder import Entry, kept, made
from canal_dns.dns.records import ANSWER, AUTHORITY, Record, Scan
from canal_dns.dns.table import MAX_TTL, Addresses, AnswerTable, negative_ttl
from canal_dns.dns.wire import Query

_FAMILIES = frozenset({Type.A, Type.AAAA})
_SERVICE = frozenset({Type.HTTPS, Type.SVCB})
_CHAINED = _FAMILIES | _SERVICE
"""What a bound name answers itself. (ANY is no type of a record, and its answer follows no CNAME.)"""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A reply that was changed."""

    entries: list[Entry]
    rcode: int


def concerns(query: Query, scan: Scan, table: AnswerTable) -> bool:
    """True where a reply says something of a bound name that scrub() may have to change: the test that most replies fail."""
    names = table.names
    if query.qtype in _CHAINED and query.name in names:
        return True
    for record in scan.records:
        rtype = record.rtype
        if rtype in _CHAINED:
            if record.owner.lower() in names or (rtype in _SERVICE and _target(scan, record) in names):
                return True
        elif rtype == Type.CNAME:
            if scan.names[record.data].lower() in names:
                return True
        elif rtype == Type.RRSIG and record.owner.lower() in names:
            return True
    return False


def mentioned(query: Query, scan: Scan) -> frozenset[bytes]:
    """The names, lower-cased, on whose being bound it depends what concerns() and scrub() make of a reply: all others may be
    bound to whatever one likes."""
    found = {query.name}
    for record in scan.records:
        rtype = record.rtype
        if rtype in _CHAINED or rtype == Type.RRSIG:
            found.add(record.owner.lower())
            if rtype in _SERVICE:
                found.add(_target(scan, record))
        elif rtype == Type.CNAME:
            found.add(scan.names[record.data].lower())
    found.discard(b"")
    return frozenset(found)


def scrub(query: Query, scan: Scan, table: AnswerTable, rcode: int) -> Scrubbed | None:
    """The records of a reply with every bound name's addresses replaced; None: nothing had to change."""
    chain = _chain(query, scan, table) if query.qtype in _CHAINED else None
    if chain is None:
        entries, changed = _rewrite(scan.records, scan, table)
        return Scrubbed(entries, rcode) if changed else None

    links, end = chain
    addresses = table.names[end]
    answers = [kept(scan, record) for record in scan.records if record.section == ANSWER and _is_link(scan, record, links)]
    vips = _vips(ANSWER, end, query.qtype, addresses, _lowest_ttl(scan, end, query.qtype))
    rest, _ = _rewrite([record for record in scan.records if record.section != ANSWER], scan, table)
    if vips:
        # What an authority section would say now is that there is no such name, or where else to ask.
        rest = [entry for entry in rest if entry.section != AUTHORITY]
    elif not any(entry.section == AUTHORITY and entry.rtype == Type.SOA for entry in rest):
        ttl = negative_ttl(addresses.ttl)
        owner, data = table.soa(ttl)
        rest.insert(0, made(AUTHORITY, owner, Type.SOA, ttl, data))
    return Scrubbed(answers + vips + rest, Rcode.NOERROR)


def _rewrite(records: list[Record] | tuple[Record, ...], scan: Scan, table: AnswerTable) -> tuple[list[Entry], bool]:
    """Record by record; a set of addresses is replaced where its first record stands."""
    entries: list[Entry] = []
    replaced: set[tuple[int, bytes, int]] = set()
    changed = False
    for record in records:
        owner = record.owner.lower()
        bound = table.names.get(owner) if record.rclass == IN else None
        if bound is not None and record.rtype in _FAMILIES:
            changed = True
            place = (record.section, owner, record.rtype)
            if place not in replaced:
                replaced.add(place)
                entries.extend(_vips(record.section, record.owner, record.rtype, bound, _ttl(record)))
        elif _is_foreign(scan, record, bound, table):
            changed = True
        else:
            entries.append(kept(scan, record))
    return entries, changed


def _is_foreign(scan: Scan, record: Record, bound: Addresses | None, table: AnswerTable) -> bool:
    """True for a record that has no place in a reply of ours: another way to a bound name, or a signature over one."""
    if record.rtype in _SERVICE:
        return bound is not None or _target(scan, record) in table.names
    return bound is not None and record.rtype == Type.RRSIG and _covered(scan, record) in _CHAINED


def _target(scan: Scan, record: Record) -> bytes:
    """The name whose addresses an HTTPS or SVCB record in ServiceMode may carry as hints (RFC 9460 section 2.4.3); else none.

    In AliasMode (priority 0) it carries none: the client asks for the target's addresses, and gets the VIP.
    """
    data = scan.packet[record.data : record.end]
    return data[2:].lower()[: _name_length(data, 2)] if data[:2] != b"\0\0" else b""


def _name_length(data: bytes, start: int) -> int:
    """Octets of the uncompressed name at an offset of RDATA, as far as it goes."""
    at = start
    while at < len(data) and data[at] != 0:
        at += 1 + data[at]
    return at + 1 - start


def _covered(scan: Scan, record: Record) -> int:
    """The type that an RRSIG record covers (RFC 4034 section 3.1.1)."""
    return int.from_bytes(scan.packet[record.data : min(record.data + 2, record.end)])


def _chain(query: Query, scan: Scan, table: AnswerTable) -> tuple[frozenset[bytes], bytes] | None:
    """The owners of the CNAMEs that lead from the question to a bound name, and that name; None: they lead to none."""
    targets: dict[bytes, bytes] = {}
    for record in scan.records:
        if record.section == ANSWER and record.rtype == Type.CNAME and record.rclass == IN:
            targets.setdefault(record.owner.lower(), scan.names[record.data].lower())
    links = set()
    name = query.name
    while name not in table.names:
        target = targets.pop(name, None)
        if target is None:
            return None
        links.add(name)
        name = target
    return frozenset(links), name


def _is_link(scan: Scan, record: Record, links: frozenset[bytes]) -> bool:
    """True for the records that make up a chain: its CNAMEs, any DNAME they come from (RFC 6672), and signatures of both."""
    rtype = _covered(scan, record) if record.rtype == Type.RRSIG else record.rtype
    return rtype == Type.DNAME or (rtype == Type.CNAME and record.owner.lower() in links)


def _vips(section: int, owner: bytes, rtype: int, addresses: Addresses, ttl: int) -> list[Entry]:
    family = addresses.v4 if rtype == Type.A else addresses.v6 if rtype == Type.AAAA else ()
    return [made(section, owner, rtype, min(ttl, addresses.ttl), address) for address in family]


def _ttl(record: Record) -> int:
    """A TTL with the top bit set means 0 (RFC 2181 section 8)."""
    return record.ttl if record.ttl <= MAX_TTL else 0


def _lowest_ttl(scan: Scan, name: bytes, qtype: int) -> int:
    return min(_ttls(scan, name, qtype), default=MAX_TTL)


def _ttls(scan: Scan, name: bytes, qtype: int) -> Iterator[int]:
    for record in scan.records:
        if record.section == ANSWER and record.rtype == qtype and record.owner.lower() == name:
            yield _ttl(record)
