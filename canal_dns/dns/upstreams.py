"""The upstreams in their order of preference, and which of them are up.

Rules of this file:
- only silence brings an upstream down: a query or probe without a reply is a fail, more than MAX_FAILS in a row are "down";
- one client's unanswered query proves little (its name may be the slow thing), so it counts as one fail and starts the
  probes, which decide; a report by ICMP starts them and counts nothing, since anybody can send one (TuDoor);
- any reply, whatever it says, makes an upstream up again and ends its probes;
- an upstream that leads back to us for a name is not asked for that name, as if it were not there (`dns.loops`);
- nothing here sends: `due` says whom to probe, `now` comes in with every call, in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf

from canal_dns.dns.names import ROOT
from canal_dns.dns.wire import IN, MAX_UDP, Query, Type
from canal_dns.settings import Endpoint

MAX_FAILS = 2
"""An upstream is down after more fails than these: CoreDNS's `max_fails` and its default."""
PROBE_INTERVAL = 0.5
"""Seconds between probes of one upstream, and so the time it has to answer one: CoreDNS's `health_check` and its default."""
PROBE = Query(0, 0x0100, b"\0\0\2\0\1", b"\0", Type.NS, IN, MAX_UDP, True, MAX_UDP)
"""What a probe asks: `. IN NS`, as CoreDNS does."""
_PROBE_TAIL = PROBE.question + bytes.fromhex("00 0029 04d0 00 01 8000 0000")


def probe_packet(ident: int) -> bytes:
    """A probe: the question in EDNS version 1, so that an upstream answers BADVERS itself, at once (RFC 6891 section 6.1.3).

    In version 0 CoreDNS would forward it to the Internet, and seem dead whenever the Internet is out of reach; and so
    would canal-dns, should an upstream lead back to it. Any reply will do.
    """
    return ident.to_bytes(2) + b"\1\0\0\1\0\0\0\0\0\1" + _PROBE_TAIL


class Upstream:
    """One upstream and its health. Compared and hashed by identity: the same address configured anew has to prove itself."""

    __slots__ = ("endpoint", "failing", "fails", "leads_back", "probe_at", "probed_at", "probing", "text", "up")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.text = str(endpoint)
        self.up = True
        self.leads_back: Callable[[bytes], bool] | None = None
        """Says of a name (lower-cased, in wire form) whether a question for it would come back to us; None: none does."""
        self.failing = False
        """Under suspicion: probed until it answers."""
        self.fails = 0
        self.probing = False
        """A probe was sent that has not been answered."""
        self.probe_at = inf
        self.probed_at = -inf

    def __repr__(self) -> str:
        return f"<Upstream {self.text} {'up' if self.up else 'down'}, {self.fails} fails>"


class Upstreams:
    """The choice among them. `first` is the preferred one that is up, None when all are down (or there is none)."""

    __slots__ = ("_order", "_turn", "first")

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._order: tuple[Upstream, ...] = ()
        self._turn = 0
        self.first: Upstream | None = None
        self.replace(endpoints)

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._order)

    def replace(self, endpoints: Iterable[Endpoint]) -> list[Upstream]:
        """Take over a new order; who stays keeps his health. Returns those that are gone."""
        known = {upstream.endpoint: upstream for upstream in self._order}
        self._order = tuple(known.get(endpoint) or Upstream(endpoint) for endpoint in dict.fromkeys(endpoints))
        self._choose()
        return [upstream for upstream in known.values() if upstream not in self._order]

    def alternative(self, asked: Collection[Upstream], name: bytes = ROOT) -> Upstream | None:
        """The preferred one for this name that is up and was not asked yet."""
        for upstream in self._order:
            if upstream.up and upstream not in asked and not _leads_back(upstream, name):
                return upstream
        return None

    def retry(self, last: Upstream, name: bytes = ROOT) -> Upstream:
        """Whom to ask after `last` was silent: the preferred other one that is up; else any other; else the same again."""
        others = [upstream for upstream in self._order if upstream is not last and not _leads_back(upstream, name)]
        for upstream in others:
            if upstream.up:
                return upstream
        return last if last.up or not others else others[0]

    def trial(self, name: bytes = ROOT) -> Upstream | None:
        """Whom to ask although all are down, in turn: the probes may be what is broken. None: there is nobody."""
        usable = [upstream for upstream in self._order if not _leads_back(upstream, name)]
        if not usable:
            return None
        self._turn = (self._turn + 1) % len(usable)
        return usable[self._turn]

    def failed(self, upstream: Upstream, now: float) -> None:
        """A query was not answered in time."""
        if upstream.fails == 0:
            upstream.fails = 1
        self.hinted(upstream, now)

    def hinted(self, upstream: Upstream, now: float) -> None:
        """The network says that nobody listens there: reason enough for a probe, for nothing else."""
        if not upstream.failing:
            upstream.failing = True
            upstream.probe_at = max(now, upstream.probed_at + PROBE_INTERVAL)

    def answered(self, upstream: Upstream) -> None:
        """Some reply was accepted."""
        upstream.failing = upstream.probing = False
        upstream.fails = 0
        upstream.probe_at = inf
        if not upstream.up:
            upstream.up = True
            self._choose()

    def due(self, now: float) -> list[Upstream]:
        """Whom to probe now. Each call counts the probes before that were not answered."""
        due = [upstream for upstream in self._order if upstream.probe_at <= now]
        for upstream in due:
            if upstream.probing:
                upstream.fails += 1
                if upstream.fails > MAX_FAILS and upstream.up:
                    upstream.up = False
                    self._choose()
            upstream.probing = True
            upstream.probed_at = now
            upstream.probe_at = now + PROBE_INTERVAL
        return due

    def next_probe(self) -> float:
        """When `due` has something to say; infinity while nobody is suspect."""
        return min((upstream.probe_at for upstream in self._order), default=inf)

    def _choose(self) -> None:
        self.first = next((upstream for upstream in self._order if upstream.up), None)


def _leads_back(upstream: Upstream, name: bytes) -> bool:
    return upstream.leads_back is not None and upstream.leads_back(name)
