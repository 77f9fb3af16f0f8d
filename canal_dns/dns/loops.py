"""Does an upstream lead back to us? The probes that find out, the answer that they are known by, and what was found.

Rules of this file:
- a probe is a question under the zone in doubt, whose first label is a mark and a nonce; whoever of us it reaches knows the
  mark as its own and answers with an address made of the nonce. That, in a reply that matches strictly, is the only proof;
- the mark says how the upstream is asked, and is no secret: all workers and replicas have the same one, and of two pools, one
  behind the other, neither takes the probes of the other for its own;
- silence, failures and truncated replies prove nothing: what is held of an upstream then stays as it is;
- what loops is a zone, the widest of those that were seen to, and only names in it are kept from the upstream;
- nothing here sends: `due` says whom to probe for what, `now` comes in with every call, randomness with the constructor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf

from canal_dns.dns import names
from canal_dns.dns.codes import FAILURES, IN, Type
from canal_dns.dns.records import ANSWER, scan
from canal_dns.dns.upstreams import Upstream
from canal_dns.dns.wire import MAX_UDP, RD, Query

PROBE_LABEL = 48
"""Octets of a probe's first label. Other labels of this length are rare: who is in a hurry looks no further."""
PERIOD = 30.0
"""Seconds between probes of an upstream of which nothing is suspected."""
SOON = 5.0
"""Seconds between probes of a zone that loops, after a probe that proved nothing, and from one suspicion to the next."""
CONFIRM = 1.0
"""Seconds between the probes after a first one that did not come back."""
CLEAN = 3
"""Probes in a row that must not come back until a zone is asked for again: one of several servers may loop, and not all."""
MAX_ZONES = 8
"""Zones of one upstream that are kept from it at most; what loops beside them ends as it would if nobody had found out."""
NONCE = 8
"""Octets."""

_PROBE = re.compile(rb"\x30canal-dns-loop-([0-9a-f]{16})-([0-9a-f]{16})", re.DOTALL)
_TC = 2
_A = int(Type.A).to_bytes(2) + IN.to_bytes(2)


def mark_of(upstream: str, always_do: bool) -> bytes:
    """What stands for "asked at this address, in this way" in a probe: 16 octets of hexadecimal."""
    return sha256(f"{upstream} {'do' if always_do else 'none'}".encode()).hexdigest()[:16].encode()


def probe(mark: bytes, nonce: bytes, zone: bytes) -> Query:
    """The question of a probe: for an A record, as most clients ask."""
    name = b"\x30canal-dns-loop-" + mark + b"-" + nonce.hex().encode() + zone
    return Query(0, RD, name + _A, name, Type.A, IN, MAX_UDP, False, MAX_UDP)


def answer_to(query: Query, marks: Collection[bytes]) -> bytes | None:
    """What answers a probe with one of our own marks (ANCOUNT, NSCOUNT and the records behind the question); else None.

    240.0.0.0/4 is nobody's (RFC 1112 section 4), and with TTL 0 nobody keeps it.
    """
    found = _PROBE.match(query.name)
    if found is None or query.qtype != Type.A or found[1] not in marks:
        return None
    return b"\0\1\0\0\xc0\x0c" + _A + b"\0\0\0\0\0\4" + _address(found[2])


def came_back(query: Query, reply: bytes) -> bool | None:
    """True if this reply, which match_reply() accepted, proves that our probe reached us; None if it says nothing at all."""
    if reply[2] & _TC or reply[3] & 15 in FAILURES:
        return None
    found, probed = scan(reply), _PROBE.match(query.name)
    assert found is not None and probed is not None  # noqa: S101 - for the type checker
    wanted = _address(probed[2])
    return any(
        record.section == ANSWER and record.rtype == Type.A and reply[record.data : record.end] == wanted
        for record in found.records
    )


def _address(nonce: bytes) -> bytes:
    return b"\xf0" + bytes.fromhex(nonce[:6].decode())


@dataclass(slots=True)
class _Zone:
    due: float
    clean: int = 0
    """Probes in a row that did not come back."""


@dataclass(slots=True)
class _Search:
    """For the widest zone that loops: `name` with `high` labels does, with `low` it does not (-1: nothing is known)."""

    name: bytes
    low: int
    high: int

    @property
    def zone(self) -> bytes:
        return _with_labels(self.name, (self.low + self.high) // 2)


@dataclass(slots=True, eq=False)
class _Watch:
    """What is known of one upstream."""

    mark: bytes
    domain: bytes
    due: float
    """When the cluster domain is probed next."""
    clean: bool = False
    """The cluster domain does not loop, whatever does around it."""
    zones: dict[bytes, _Zone] = field(default_factory=dict)
    search: _Search | None = None
    suspect: bytes | None = None
    """A zone to be probed for a suspicion."""
    suspected: float = -inf
    """When there was a suspicion last."""
    asked: Query | None = None
    """The probe that is on its way, ..."""
    zone: bytes = b""
    """... and what it is for."""

    def leads_back(self, name: bytes) -> bool:
        """True if a question for this name (lower-cased, in wire form) would come back."""
        at = 0
        while True:
            suffix = name[at:]
            if suffix in self.zones:
                return True
            if suffix == names.ROOT or (self.clean and suffix == self.domain):
                return False
            at += 1 + name[at]

    def next(self) -> float:
        if self.suspect is not None and self.search is None:
            # Whatever is on its way may be lost, and whoever waits for an answer does not wait for that.
            return -inf
        if self.asked is not None:
            return inf
        if self.search is not None:
            return -inf
        return min([self.due, *(zone.due for zone in self.zones.values())])

    def choose(self, now: float) -> bytes:
        """The zone to be probed now that something is due."""
        if self.search is not None:
            return self.search.zone
        if self.suspect is not None:
            zone, self.suspect = self.suspect, None
            return zone
        return next((name for name, zone in self.zones.items() if zone.due <= now), self.domain)

    def postpone(self, now: float) -> None:
        """Nothing can be found out at present."""
        self.search = self.suspect = None
        self.put_off(self.domain, now + SOON)
        for name in self.zones:
            self.put_off(name, now + SOON)

    def put_off(self, zone: bytes, due: float) -> None:
        if zone == self.domain:
            self.due = due
        if (known := self.zones.get(zone)) is not None:
            known.due = due

    def looped(self, zone: bytes, now: float) -> None:
        self.put_off(zone, now + SOON)
        if zone == self.domain:
            self.clean = False
        if (known := self.zones.get(zone)) is not None:
            known.clean = 0
        else:
            self._add(zone, now)
        if self.search is not None:
            self.search.high = _depth(zone)
            self._end_search()

    def passed(self, zone: bytes, now: float) -> None:
        self.put_off(zone, now + PERIOD)
        if zone == self.domain:
            self.clean = True
        if (known := self.zones.get(zone)) is not None:
            known.clean += 1
            known.due = now + CONFIRM
            if known.clean >= CLEAN:
                del self.zones[zone]
        if self.search is not None:
            self.search.low = _depth(zone)
            self._end_search()

    def _add(self, zone: bytes, now: float) -> None:
        self.zones = {name: known for name, known in self.zones.items() if not _is_below(name, zone)}
        if len(self.zones) == MAX_ZONES:
            self.search = None
            return
        self.zones[zone] = _Zone(now + SOON)
        if self.suspect is not None and _is_below(self.suspect, zone):
            self.suspect = None
        if self.search is None:
            # What is above the cluster domain cannot loop alone where that does not.
            within = self.clean and _is_below(zone, self.domain)
            self.search = _Search(zone, _depth(self.domain) if within else -1, _depth(zone))

    def _end_search(self) -> None:
        if self.search is not None and self.search.high - self.search.low <= 1:
            self.search = None


class Loops:
    """What is known of all upstreams of one process."""

    def __init__(self, randomness: Callable[[int], bytes]) -> None:
        """`randomness(n)`: n octets that nobody can foresee."""
        self._randomness = randomness
        self._watches: dict[Upstream, _Watch] = {}
        self.marks: frozenset[bytes] = frozenset()
        """Of our own probes: `answer_to` wants them."""

    def configure(self, upstreams: Iterable[Upstream], domain: bytes, always_do: bool, now: float) -> None:
        """Probe these upstreams, and no others, under the cluster domain (lower-cased, in wire form): the new ones at once.

        `always_do`: every query upstream has DO=1. What is known stays known as long as all of this does.
        """
        watches = {}
        for upstream in upstreams:
            mark, watch = mark_of(upstream.text, always_do), self._watches.get(upstream)
            if watch is None or (watch.mark, watch.domain) != (mark, domain):
                watch = _Watch(mark, domain, now)
                upstream.leads_back = None
            watches[upstream] = watch
        self._watches = watches
        self.marks = frozenset(watch.mark for watch in watches.values())

    def close(self) -> None:
        """Probe nobody any more."""
        self._watches = {}

    def suspect(self, upstream: Upstream, name: bytes, now: float) -> bool:
        """A question for this name (lower-cased, in wire form) seems to have come back; True: a probe is due for it."""
        watch = self._watches.get(upstream)
        if watch is None or now - watch.suspected < SOON or watch.leads_back(name):
            return False
        watch.suspected = now
        watch.suspect = name if 1 + PROBE_LABEL + len(name) <= names.MAX_NAME else watch.domain
        return True

    def due(self, now: float) -> list[tuple[Upstream, Query]]:
        """The probes to be sent now, each to its upstream and no other, and in place of one that may be on its way to that.
        What becomes of them is told to `answered`."""
        probes = []
        for upstream, watch in self._watches.items():
            if watch.next() > now:
                continue
            if not upstream.up:
                watch.postpone(now)
                continue
            watch.zone = watch.choose(now)
            watch.asked = probe(watch.mark, self._randomness(NONCE), watch.zone)
            probes.append((upstream, watch.asked))
        return probes

    def next_probe(self) -> float:
        """When `due` has something to say; infinity while every probe is on its way."""
        return min((watch.next() for watch in self._watches.values()), default=inf)

    def answered(self, upstream: Upstream, query: Query, reply: bytes | None, now: float) -> bool:
        """The reply to a probe, which match_reply() accepted, None for none in time. True: it came back."""
        watch = self._watches.get(upstream)
        if watch is None or watch.asked is not query:
            return False
        watch.asked = None
        back = None if reply is None else came_back(query, reply)
        if back is None:
            watch.search = None
            watch.put_off(watch.zone, now + SOON)
        elif back:
            watch.looped(watch.zone, now)
        else:
            watch.passed(watch.zone, now)
        upstream.leads_back = watch.leads_back if watch.zones else None
        return back is True

    def zones(self, upstream: Upstream) -> list[bytes]:
        """What is kept from an upstream: names that it does not lead back for may be below."""
        watch = self._watches.get(upstream)
        return [] if watch is None else sorted(watch.zones)

    def searching(self, upstream: Upstream) -> bool:
        """True while it is being found out how wide a zone loops."""
        watch = self._watches.get(upstream)
        return watch is not None and watch.search is not None


def _depth(name: bytes) -> int:
    return sum(1 for _ in names.labels(name))


def _is_below(name: bytes, zone: bytes) -> bool:
    """True if a name is the zone's, or in it."""
    while len(name) > len(zone):
        name = name[1 + name[0] :]
    return name == zone


def _with_labels(name: bytes, count: int) -> bytes:
    """The last labels of a name, so many."""
    labels = list(names.labels(name))
    return b"".join(bytes([len(label)]) + label for label in labels[len(labels) - count :]) + names.ROOT
