"""What the forwarder knows of loops: `dns.loops` with counters, a log, and the signs by which a question of ours is suspected.

Rules of this file:
- a sign proves nothing and costs one probe at most, now and then: only names of the cluster domain, or what comes from an
  upstream's own address, is worth one;
- the gauge is always right; the log says a thing once, when it is known how much of an upstream leads back.
"""

from __future__ import annotations

import logging
import os

from canal_dns.dns import names
from canal_dns.dns.loops import Loops
from canal_dns.dns.upstreams import Upstream, Upstreams
from canal_dns.dns.wire import MAX_UDP, Query
from canal_dns.metrics import Counters

_log = logging.getLogger(__name__)


class UpstreamLoops(Loops):
    """Of one process. `hosts`: the upstreams' addresses, of which a client may have one; `always_do`: as it is configured."""

    def __init__(self, upstreams: Upstreams, counters: Counters) -> None:
        super().__init__(os.urandom)
        self._upstreams = upstreams
        self._domain = b""
        self.hosts: frozenset[str] = frozenset()
        self.always_do = True
        self._came_back = counters["canal_dns_loops_total"]
        self._sent = counters["canal_dns_loop_probes_total"]
        self._looping = counters["canal_dns_forward_upstream_looping"]
        self._told: dict[Upstream, list[bytes]] = {}

    def reconfigure(self, domain: bytes | None, always_do: bool, now: float) -> None:
        """The upstreams have changed, or how they are asked; `domain`: another cluster domain, None: as it was. Without any
        nobody is probed."""
        self.always_do = always_do
        self.hosts = frozenset(upstream.endpoint.host for upstream in self._upstreams)
        self._domain = domain or self._domain
        if self._domain:
            self.configure(self._upstreams, self._domain, always_do, now)

    def forget(self, upstream: Upstream) -> None:
        """It is not configured any more."""
        self._looping.pop((upstream.text,), None)
        self._told.pop(upstream, None)

    def is_sign(self, query: Query, client: str) -> bool:
        """True where a query that asks what is under way comes from an upstream, or carries the OPT record that we send."""
        return client in self.hosts or (query.payload == MAX_UDP and (query.do or not self.always_do))

    def suspect_from(self, client: str, name: bytes, now: float) -> bool:
        """A question for this name (lower-cased, in wire form) seems to have come back from this address; True: a probe is due.

        If it is no upstream's it may be that of a server behind one: of whom most is asked.
        """
        if client in self.hosts:
            suspects = [upstream for upstream in self._upstreams if upstream.endpoint.host == client]
        else:
            suspects = [self._upstreams.first] if self._upstreams.first is not None and name.endswith(self._domain) else []
        return any([self.suspect(upstream, name, now) for upstream in suspects])  # noqa: C419 - each of them

    def suspect_failure(self, upstream: Upstream, name: bytes, now: float) -> bool:
        """An upstream says SERVFAIL for this name, as another process of ours does that knows better; True: probe it."""
        return name.endswith(self._domain) and self.suspect(upstream, name, now)

    def count_own(self) -> None:
        """A query of ours came back, a probe or another."""
        self._came_back[()] += 1

    def count_probe(self, upstream: Upstream) -> None:
        """One has been sent."""
        self._sent[(upstream.text,)] += 1

    def tell(self, upstream: Upstream) -> None:
        """Whether an upstream leads back to us: to the gauge always, to the log once it is known how much of it does."""
        self._looping[(upstream.text,)] = int(upstream.leads_back is not None)
        zones = self.zones(upstream)
        if self._told.get(upstream, []) == zones or self.searching(upstream):
            return
        self._told[upstream] = zones
        if zones:
            _log.error(
                "upstream %s sends our own questions back to us: it is not asked for names in %s until it stops. It must be "
                "CoreDNS itself, whose block that leads to canal-dns must not take what canal-dns asks (docs/layouts.md)",
                upstream.text,
                ", ".join(map(names.to_text, zones)),
            )
        else:
            _log.info("upstream %s does not send our own questions back to us any more", upstream.text)
