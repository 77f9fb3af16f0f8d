"""The answer table: what bound names answer, encoded once, when a name changes, so that a query costs one look-up.

Rules of this file:
- keys are wire-form bytes, lower-cased; the type octets of a key are raw, since `A` (0x41) is also the type HTTPS;
- a body may follow any spelling of its question: it refers to the question only by compression pointers, and it is so short
  that header, question, body and an OPT record together stay within 512 octets: no reader needs to check a limit;
- a change is made in one step or not at all; its cost depends on what changes, not on what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from canal_dns.dns.codes import IN, Type
from canal_dns.dns.names import MAX_LABEL, MAX_NAME, to_text
from canal_dns.dns.wire import HEADER, MIN_UDP
from canal_dns.errors import TableError

MAX_TTL = 0x7FFF_FFFF
"""Seconds (RFC 2181 section 8)."""
NEGATIVE_TTL = 30
"""Upper bound in seconds for "no such record": a name whose gateway gets a second family is then seen soon."""
REFRESH, RETRY, EXPIRE = 7200, 1800, 86400
"""SOA timers in seconds; nobody transfers this zone, they only have to be plausible (CoreDNS's figures)."""

ANSWERED = (Type.A, Type.AAAA, Type.HTTPS, Type.SVCB, Type.ANY)
"""The types that a bound name answers itself: every type a client could learn an address from."""

_TYPE_CLASS = tuple(int(qtype).to_bytes(2) + IN.to_bytes(2) for qtype in ANSWERED)
_TO_QUESTION = (0xC000 | HEADER).to_bytes(2)
_OPT_SIZE = 11
_RECORD_SIZE = 12
"""Octets of a record whose owner is a pointer, without its data."""
_MAX_ZONE = 200
_MNAME, _RNAME = b"\2ns\3dns", b"\nhostmaster"

_record = Struct(">HHIH")
_soa = Struct(">IIIII")
_counts = Struct(">HH")


@dataclass(frozen=True, slots=True)
class Addresses:
    """What a bound name answers: addresses of 4 and 16 octets in order of preference, and their TTL in seconds."""

    v4: tuple[bytes, ...]
    v6: tuple[bytes, ...]
    ttl: int


Delta = Mapping[bytes, Addresses | None]
"""What changes: lower-cased wire name -> its new answers, or None where it is no longer bound."""


class AnswerTable:
    """The answers of every bound name. Whoever reads it must not change it."""

    __slots__ = ("exact", "generation", "names", "ready", "serial", "zone")

    def __init__(self, zone: bytes) -> None:
        """An empty table for names below `zone`, the wire name of the cluster domain. Raises TableError."""
        check({}, zone, 0)
        self.zone = zone
        self.exact: dict[bytes, bytes] = {}
        """Lower-cased question (name, type, class) -> body: ANCOUNT and NSCOUNT, 2 octets each, then the records."""
        self.names: dict[bytes, Addresses] = {}
        self.ready: dict[bytes, bytes] = {}
        """The responder's memory of whole replies: query without ID -> reply without ID. Emptied by every change."""
        self.generation = 0
        self.serial = 0

    def apply(self, delta: Delta, generation: int, serial: int) -> None:
        """Make one change. `serial` goes into the SOA of the names that change, 32 bits.

        Raises TableError for a name or addresses that cannot be answered; the table is then what it was.
        """
        check({}, self.zone, serial)
        bodies: dict[bytes, bytes] = {}
        bound: dict[bytes, Addresses] = {}
        for name, addresses in delta.items():
            if addresses is not None:
                bodies.update(_bodies(name, addresses, self.zone, serial))
                bound[name] = addresses
        for name, addresses in delta.items():
            if addresses is None and self.names.pop(name, None) is not None:
                for suffix in _TYPE_CLASS:
                    del self.exact[name + suffix]
        self.exact.update(bodies)
        self.names.update(bound)
        self.ready.clear()
        self.generation = generation
        self.serial = serial

    def soa(self, ttl: int) -> tuple[bytes, bytes]:
        """Owner and RDATA of the zone's SOA, names in full: for replies that are not ours alone."""
        return self.zone, _MNAME + self.zone + _RNAME + self.zone + _timers(self.serial, ttl)


def check(delta: Delta, zone: bytes, serial: int) -> None:
    """Raise the TableError that `AnswerTable(zone).apply(delta, ..., serial)` would, without encoding anything."""
    if len(zone) > _MAX_ZONE:
        raise TableError(f"{to_text(zone)[:80]}: a cluster domain may have {_MAX_ZONE} octets")
    if not 0 <= serial <= 0xFFFF_FFFF:
        raise TableError(f"serial {serial}: it has 32 bits")
    for name, addresses in delta.items():
        if addresses is not None:
            _offset_of_zone(name, zone)
            _check(name, addresses)


class TableCell:
    """Where readers find the table; `current` is None before the first sync, when everything is forwarded."""

    __slots__ = ("current",)

    def __init__(self, current: AnswerTable | None = None) -> None:
        self.current = current


def negative_ttl(ttl: int) -> int:
    """Seconds for which a missing type of a bound name may be remembered."""
    return min(ttl, NEGATIVE_TTL)


def _timers(serial: int, ttl: int) -> bytes:
    return _soa.pack(serial, REFRESH, RETRY, EXPIRE, ttl)


def _bodies(name: bytes, addresses: Addresses, zone: bytes, serial: int) -> Iterable[tuple[bytes, bytes]]:
    """Every question about a name, with its body. Names behind one gateway share their bodies."""
    at_zone = _offset_of_zone(name, zone)
    _check(name, addresses)
    room = MIN_UDP - HEADER - len(name) - 4 - _OPT_SIZE - _counts.size
    most = max(len(addresses.v4), len(addresses.v6)) * (_RECORD_SIZE + 16)
    v4, v6, both = _positive(addresses, min(room, most))
    nothing = _negative(HEADER + at_zone, negative_ttl(addresses.ttl), serial)
    answers = (v4 or nothing, v6 or nothing, nothing, nothing, both)
    return [(name + suffix, body) for suffix, body in zip(_TYPE_CLASS, answers, strict=True)]


@lru_cache(maxsize=256)
def _positive(addresses: Addresses, room: int) -> tuple[bytes, bytes, bytes]:
    """Bodies for A, AAAA and ANY (one address of each family: RFC 8482); an empty one where there is no such address.

    As many records as `room` octets hold: a client needs one, and TC=1 for the rest would cost it a TCP connection.
    """
    v4 = _records(Type.A, addresses.v4, addresses.ttl)[: room // (_RECORD_SIZE + 4)]
    v6 = _records(Type.AAAA, addresses.v6, addresses.ttl)[: room // (_RECORD_SIZE + 16)]
    return _answer(v4), _answer(v6), _answer(v4[:1] + v6[:1])


def _records(rtype: Type, addresses: tuple[bytes, ...], ttl: int) -> list[bytes]:
    return [_TO_QUESTION + _record.pack(rtype, IN, ttl, len(address)) + address for address in addresses]


def _answer(records: list[bytes]) -> bytes:
    return _counts.pack(len(records), 0) + b"".join(records) if records else b""


@lru_cache(maxsize=256)
def _negative(at_zone: int, ttl: int, serial: int) -> bytes:
    """The body without an answer, but with an SOA, whose TTL is the lesser of TTL and MINIMUM (RFC 2308 section 3)."""
    zone = (0xC000 | at_zone).to_bytes(2)
    data = _MNAME + zone + _RNAME + zone + _timers(serial, ttl)
    return _counts.pack(0, 1) + zone + _record.pack(Type.SOA, IN, ttl, len(data)) + data


def _offset_of_zone(name: bytes, zone: bytes) -> int:
    """Where in the name the zone begins. Raises TableError for a name that is not a lower-cased one below the zone."""
    at = 0
    found = -1
    end = len(name) - len(zone)
    while at < len(name) and (length := name[at]) != 0:
        if length > MAX_LABEL:
            break
        if at == end and name.endswith(zone):
            found = at
        at += 1 + length
    if at != len(name) - 1 or len(name) > MAX_NAME or name != name.lower():
        raise TableError(f"{name[:80]!r}: not a lower-cased name in wire form")
    if found <= 0:
        raise TableError(f"{to_text(name)}: not below {to_text(zone)}, so no SOA could go with its negative answers")
    return found


def _check(name: bytes, addresses: Addresses) -> None:
    if not addresses.v4 and not addresses.v6:
        raise TableError(f"{to_text(name)}: no address at all")
    if any(len(one) != 4 for one in addresses.v4) or any(len(one) != 16 for one in addresses.v6):
        raise TableError(f"{to_text(name)}: an address that has not 4 (v4) or 16 (v6) octets")
    if not 0 < addresses.ttl <= MAX_TTL:
        raise TableError(f"{to_text(name)}: a TTL of {addresses.ttl}, allowed is 1 to {MAX_TTL}")
