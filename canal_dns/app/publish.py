"""From what is bound to what is answered: hold new names back for `settle`, then hand the table's delta to the data plane.

Rules of this file:
- make before break: a name that becomes bound waits `settle` seconds, since istiod needs time to program the gateway;
  one that stops being bound goes at once, and so does a change of its addresses;
- the first table is published whole and without waiting: its names were bound before we looked;
- a saved table is answered from until the first one is there, whose names do not wait either;
- all calls take `now` (monotonic seconds); nothing here reads a clock.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Protocol

from canal_dns.dns import names
from canal_dns.dns.table import Addresses, Delta
from canal_dns.mesh.result import Bound


class Publish(Protocol):
    """The part of a data plane that is needed here."""

    def publish(self, delta: Delta, generation: int, serial: int, *, full: bool, since: float | None = None) -> None: ...


class Publisher:
    """Keeps the table of a data plane equal to the bindings, except for names that are still settling."""

    def __init__(self, plane: Publish, settle: float, serial: Callable[[], int]) -> None:
        self.generation = 0
        """Count of published tables and deltas; 0: nothing was published."""
        self.settle = settle
        self._plane = plane
        self._serial = serial
        self._live: dict[str, Addresses] = {}
        self._settling: dict[str, tuple[Addresses, float]] = {}

    @property
    def live(self) -> Mapping[str, Addresses]:
        """The names that are answered, and how."""
        return self._live

    def settling(self, now: float) -> dict[str, float]:
        """The names that wait, with the seconds that are left."""
        return {name: max(0.0, due - now) for name, (_, due) in self._settling.items()}

    def restore(self, saved: Mapping[str, Addresses]) -> None:
        """Publish a saved table."""
        self._live = dict(saved)
        self._send({names.from_text(name): one for name, one in saved.items()}, full=True)

    def replace(self, bound: Mapping[str, Bound]) -> None:
        """Publish a whole table: the first one, or one under other rules. Only names that were settling go on waiting."""
        addresses = {name: addresses_of(one) for name, one in bound.items()}
        self._settling = {name: (addresses[name], due) for name, (_, due) in self._settling.items() if name in addresses}
        self._live = {name: one for name, one in addresses.items() if name not in self._settling}
        self._send({names.from_text(name): one for name, one in self._live.items()}, full=True)

    def update(self, changes: Mapping[str, Bound | None], now: float, since: float | None = None) -> bool:
        """Take over changed bindings (None: no longer bound) and publish what need not wait. True: something was published.

        `since`: when the event behind it came, for whoever measures how long an answer took.
        """
        delta: dict[bytes, Addresses | None] = {}
        for name, bound in changes.items():
            if bound is None:
                self._settling.pop(name, None)
                if self._live.pop(name, None) is not None:
                    delta[names.from_text(name)] = None
                continue
            addresses = addresses_of(bound)
            if name not in self._live and self.settle > 0:
                due = self._settling[name][1] if name in self._settling else now + self.settle
                self._settling[name] = (addresses, due)
            elif self._live.get(name) != addresses:
                self._live[name] = addresses
                delta[names.from_text(name)] = addresses
        return self._send(delta, since=since)

    def settled(self, now: float) -> bool:
        """Publish the names whose waiting is over. True: there were some."""
        delta: dict[bytes, Addresses | None] = {}
        for name in [name for name, (_, due) in self._settling.items() if due <= now]:
            addresses, _ = self._settling.pop(name)
            self._live[name] = addresses
            delta[names.from_text(name)] = addresses
        return self._send(delta)

    def next_due(self) -> float | None:
        """When `settled` has something to do next; None: nothing waits."""
        return min((due for _, due in self._settling.values()), default=None)

    def _send(self, delta: Delta, *, full: bool = False, since: float | None = None) -> bool:
        if not delta and not full:
            return False
        self.generation += 1
        self._plane.publish(delta, self.generation, self._serial(), full=full, since=since)
        return True


class Pace:
    """How often the table may change: the first events cost no time, a flood of them a few tables a second.

    A token bucket that may be overdrawn by the step just made.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = self._tokens = float(burst)
        self._at: float | None = None

    def pause(self, now: float) -> float:
        """Seconds to wait after a step at `now` (monotonic) before the next."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second)


def addresses_of(bound: Bound) -> Addresses:
    """A binding as the answer table wants it: packed addresses."""
    return Addresses(
        v4=tuple(ipaddress.IPv4Address(address).packed for address in bound.v4),
        v6=tuple(ipaddress.IPv6Address(address).packed for address in bound.v6),
        ttl=bound.ttl,
    )
