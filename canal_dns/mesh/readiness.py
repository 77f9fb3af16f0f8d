"""When a gateway counts as without ready endpoints: not at the first empty EndpointSlice, and not for ever.

Rules of this file:
- it takes `now` and is asked when to be asked again: no clock, no timer;
- both ways take the same time: a gateway must be unready (ready) that long without a break before it counts as such;
- what is seen first counts at once: after a start there is no former state to hold on to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from canal_dns.mesh.result import GatewayState


@dataclass(slots=True)
class _Seen:
    counts_ready: bool
    since: float | None = None
    """When the opposite was first seen, without a break since."""


class Readiness:
    """The readiness of every internal gateway. `hold`: seconds (binding.gatewayUnreadyAfter)."""

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._seen: dict[str, _Seen] = {}

    def observe(self, states: Iterable[GatewayState], now: float) -> frozenset[str]:
        """Take in what the objects show at `now` (seconds, monotonic). Returns the gateways that count as unready."""
        known = {state.gateway: state.ready for state in states}
        for gateway in [gateway for gateway in self._seen if gateway not in known]:
            del self._seen[gateway]
        for gateway, ready in known.items():
            seen = self._seen.setdefault(gateway, _Seen(ready))
            if ready == seen.counts_ready:
                seen.since = None
                continue
            if seen.since is None:
                seen.since = now
            if now - seen.since >= self._hold:
                seen.counts_ready, seen.since = ready, None
        return self.unready

    @property
    def unready(self) -> frozenset[str]:
        """Gateways (`namespace/name`) that count as without ready endpoints: `unready` of `bind`."""
        return frozenset(gateway for gateway, seen in self._seen.items() if not seen.counts_ready)

    def next_look(self) -> float | None:
        """When to observe again even if no object changes, in the same clock; None: not needed."""
        times = [seen.since + self._hold for seen in self._seen.values() if seen.since is not None]
        return min(times, default=None)
