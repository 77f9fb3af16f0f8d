"""The records of a message, found in one pass that also proves the message well formed.

Rules of this file:
- a message is taken whole or not at all: every name, count and length must be right and no octet may be left over;
- a compression pointer leads strictly backwards (RFC 1035 section 4.1.4), every target is walked once: work grows with
  the size of the message, whatever its pointers say (CVE-2024-8508, CVE-2026-44390);
- nothing is decoded that need not be: a record is where it stands, its owner and its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import NamedTuple

from canal_dns.dns.codes import IN, Type
from canal_dns.dns.names import MAX_NAME, ROOT
from canal_dns.errors import WireError

HEADER = 12
"""Octets of a message header (RFC 1035 section 4.1.1)."""
ANSWER, AUTHORITY, ADDITIONAL = 0, 1, 2

_MAX_POINTERS = 127
"""Pointers in a row without a name known before: as many as a name can have labels."""

_counts = Struct(">HHHH")
_fields = Struct(">HHIH")

COMPRESSIBLE = frozenset({
    Type.NS, Type.MD, Type.MF, Type.CNAME, Type.SOA, Type.MB, Type.MG, Type.MR, Type.PTR, Type.MINFO, Type.MX,
})  # fmt: skip
"""Types of RFC 1035: the only ones in whose data a sender may compress names (RFC 3597 section 4)."""

_LAYOUT: dict[int, tuple[int, int, int | None]] = {
    **dict.fromkeys((Type.NS, Type.MD, Type.MF, Type.CNAME, Type.MB, Type.MG, Type.MR, Type.PTR, Type.DNAME), (0, 1, 0)),
    **dict.fromkeys((Type.MX, Type.AFSDB, Type.RT), (2, 1, 0)),
    **dict.fromkeys((Type.MINFO, Type.RP), (0, 2, 0)),
    Type.SOA: (0, 2, 20),
    Type.PX: (2, 2, 0),
    Type.SRV: (6, 1, 0),
    Type.SIG: (18, 1, None),
    Type.NXT: (0, 1, None),
    Type.NAPTR: (4, 1, 0),
}
"""Types in whose data a receiver must expect compressed names (RFC 3597 section 4; DNAME: RFC 6672 section 2.5): octets
before the names, number of names, octets behind them (None: any number). NAPTR has three texts behind its 4 octets."""

_SIZE = {int(Type.A): 4, int(Type.AAAA): 16}
_OPT, _NAPTR = int(Type.OPT), int(Type.NAPTR)


class Record(NamedTuple):
    """One record, where it stands in its message."""

    section: int
    start: int
    owner: bytes
    """In full, in the case of the message."""
    rtype: int
    rclass: int
    ttl: int
    """32 bits as they stand there."""
    data: int
    """Offset of the first octet of RDATA."""
    end: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a message found."""

    packet: bytes
    records: tuple[Record, ...]
    """Of all sections, in order, without the OPT record."""
    opt: Record | None
    types: frozenset[int]
    """Of these records."""
    names: dict[int, bytes]
    """Names in full by the offset at which they begin; only read after the pass."""

    def data(self, record: Record) -> list[tuple[bytes, bool]]:
        """RDATA in pieces, (octets, is a name): names in full, so that they may stand at another offset."""
        if record.rtype in _LAYOUT:
            return list(_pieces(self.packet, record.rtype, record.data, record.end, self.names))
        return [(self.packet[record.data : record.end], False)]


@lru_cache(maxsize=2)
def scan(packet: bytes) -> Scan | None:
    """The records of a message with at most one question; None: it is malformed.

    The last results are kept, because a reply is scanned when it is matched and again for each client that waits for it.
    """
    try:
        return _scan(packet)
    except (IndexError, StructError, WireError):
        return None


def _scan(packet: bytes) -> Scan:
    size = len(packet)
    questions, *counts = _counts.unpack_from(packet, 4)
    names: dict[int, bytes] = {}
    at = HEADER
    asked = b""
    if questions == 1:
        asked, at = _read_name(packet, at, names)
        at += 4
    elif questions:
        raise WireError("more than one question")

    records = []
    opt = None
    for section, count in enumerate(counts):
        for _ in range(count):
            start = at
            if asked and packet[at] == 0xC0 and packet[at + 1] == HEADER:
                owner = names[start] = asked  # what most owners are, spared a call
                at += 2
            else:
                owner, at = _read_name(packet, at, names)
            rtype, rclass, ttl, length = _fields.unpack_from(packet, at)
            data = at + 10
            at = data + length
            if at > size:
                raise WireError("RDATA beyond the end")
            record = Record(section, start, owner, rtype, rclass, ttl, data, at)
            if rtype == _OPT:
                if opt is not None or section != ADDITIONAL or owner != ROOT:
                    raise WireError("an OPT record where none may be")
                opt = record
                continue
            if rtype in _LAYOUT:
                for _piece in _pieces(packet, rtype, data, at, names):
                    pass
            elif rclass == IN and length != _SIZE.get(rtype, length):
                raise WireError("an address of a wrong size")
            records.append(record)
    if at != size:
        raise WireError("octets left over")
    return Scan(packet, tuple(records), opt, frozenset([record.rtype for record in records]), names)


def _pieces(packet: bytes, rtype: int, at: int, end: int, names: dict[int, bytes]) -> Iterator[tuple[bytes, bool]]:
    before, count, after = _LAYOUT[rtype]
    start = at
    at += before
    if rtype == _NAPTR:
        for _ in range(3):
            at += 1 + packet[at]
    yield packet[start:at], False
    for _ in range(count):
        name, at = _read_name(packet, at, names)
        yield name, True
    if at > end or (after is not None and at + after != end):
        raise WireError("RDATA of a wrong length")
    yield packet[at:end], False


def _read_name(packet: bytes, at: int, names: dict[int, bytes]) -> tuple[bytes, int]:
    """The name at an offset, in full, and the offset behind it. Raises WireError or IndexError."""
    start = at
    length = packet[at]
    while 0 < length < 0x40:
        at += 1 + length
        length = packet[at]
    if length == 0:
        end = at + 1
        name = packet[start:end]
    elif length >= 0xC0:
        end = at + 2
        target = (length & 0x3F) << 8 | packet[at + 1]
        tail = names.get(target) if target < start else None
        name = packet[start:at] + (tail or _follow(packet, target, start, names))
    else:
        raise WireError("an unknown kind of label")
    if len(name) > MAX_NAME:
        raise WireError("a name too long")
    names[start] = name
    return name, end


def _follow(packet: bytes, target: int, before: int, names: dict[int, bytes]) -> bytes:
    """The name that a pointer standing in a name which begins at `before` leads to."""
    runs: list[tuple[int, int]] = []
    while True:
        if not HEADER <= target < before or len(runs) > _MAX_POINTERS:
            raise WireError("a pointer that does not lead back to a name")
        tail = names.get(target)
        if tail is not None:
            break
        at = target
        length = packet[at]
        while 0 < length < 0x40:
            at += 1 + length
            length = packet[at]
        if length == 0:
            tail = packet[target : at + 1]
            if len(tail) > MAX_NAME:
                raise WireError("a name too long")
            names[target] = tail
            break
        if length < 0xC0:
            raise WireError("an unknown kind of label")
        runs.append((target, at))
        before, target = target, (length & 0x3F) << 8 | packet[at + 1]
    for start, stop in reversed(runs):
        tail = packet[start:stop] + tail
        if len(tail) > MAX_NAME:
            raise WireError("a name too long")
        names[start] = tail
    return tail
