"""Records encoded anew, behind a question that stays as it is: for the replies in which something had to change.

Rules of this file:
- owner names, and the names in the data of RFC 1035's types, are compressed; names in other data are written in full
  (RFC 3597 section 4), all other data is copied octet for octet;
- a name is compressed whatever its case, and keeps its own where it is written out;
- the work on compression is bounded: beyond it names are written in full, and the message is the longer for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from canal_dns.dns.codes import IN
from canal_dns.dns.names import ROOT
from canal_dns.dns.records import ADDITIONAL, COMPRESSIBLE, HEADER, Record, Scan

MAX_STEPS = 32_768
"""Labels looked up for one message; 5000 records of distinct names need 10,000."""
_MAX_TARGET = 0x3FFF

_fields = Struct(">HHI")


class Entry(NamedTuple):
    """A record to be written."""

    section: int
    owner: bytes
    rtype: int
    rclass: int
    ttl: int
    data: list[tuple[bytes, bool]]
    """RDATA in pieces: octets, and whether they are a name."""


def kept(scan: Scan, record: Record) -> Entry:
    """A record of a message as it is."""
    return Entry(record.section, record.owner, record.rtype, record.rclass, record.ttl, scan.data(record))


def made(section: int, owner: bytes, rtype: int, ttl: int, data: bytes) -> Entry:
    """A record of our own."""
    return Entry(section, owner, rtype, IN, ttl, [(data, False)])


class Body(NamedTuple):
    """What follows the question of a message, without an OPT record."""

    counts: tuple[int, int, int]
    """Records per section."""
    octets: bytes
    additional: int
    """Where in `octets` the additional section begins."""


def encode(question: bytes, entries: Iterable[Entry]) -> Body:
    """Write the entries, which are in the order of their sections, for a message with this question."""
    writer = _Writer(question)
    counts = [0, 0, 0]
    additional = None
    for entry in entries:
        if entry.section == ADDITIONAL and additional is None:
            additional = len(writer.out)
        counts[entry.section] += 1
        writer.record(entry)
    octets = bytes(writer.out)
    return Body((counts[0], counts[1], counts[2]), octets, len(octets) if additional is None else additional)


class _Writer:
    def __init__(self, question: bytes) -> None:
        self.out = bytearray()
        self._base = HEADER + len(question)
        self._steps = 0
        self._targets: dict[bytes, int] = {}
        name = question[:-4].lower()
        at = 0
        while name[at] != 0:
            self._targets[name[at:]] = HEADER + at
            at += 1 + name[at]

    def record(self, entry: Entry) -> None:
        out = self.out
        self._name(entry.owner)
        out += _fields.pack(entry.rtype, entry.rclass, entry.ttl)
        length_at = len(out)
        out += b"\0\0"
        compress = entry.rtype in COMPRESSIBLE
        for octets, is_name in entry.data:
            if is_name and compress:
                self._name(octets)
            else:
                out += octets
        out[length_at : length_at + 2] = (len(out) - length_at - 2).to_bytes(2)

    def _name(self, name: bytes) -> None:
        out = self.out
        targets = self._targets
        start = self._base + len(out)
        suffix = name.lower()
        at = 0
        while suffix != ROOT and self._steps < MAX_STEPS:
            self._steps += 1
            target = targets.get(suffix)
            if target is not None:
                out += name[:at] + (0xC000 | target).to_bytes(2)
                return
            if start + at <= _MAX_TARGET:
                targets[suffix] = start + at
            step = 1 + suffix[0]
            at += step
            suffix = suffix[step:]
        out += name
