"""canal-dns and the gateway side by side: marks that tell when both are quiet, what they say, and how long they differ.

Rules of this file:
- quiet means seen, not slept: after its changes a step moves a mark that depends on one object of each kind, and each kind's
  watch is in order, so who serves the mark has read all that was before it;
- while objects change both are read ten times a second and only looked at later;
- an interval in which they differ lasts from the first to the last look that saw it: never longer than it was.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e import mesh, objects
from tests.e2e.cluster import fqdn
from tests.e2e.invention import SAMPLES
from tests.e2e.kube import Kube
from tests.e2e.processes import ADMIN, until
from tests.e2e.processes import http as fetch
from tests.e2e.programmed import Programmed, Served

GATEWAY_PORTS = tuple(number for number, _ in mesh.PORTS)
MARK_PORT = 443

POLICIES = frozenset(
    {
        "PortNotServed", "CrossNamespace", "Protected", "Headless", "ExternalName", "OptedOut", "Conflicted",
        "GatewayNotUsable", "GatewayNotReady", "LimitExceeded",
    }
)  # fmt: skip
"""Reasons that are canal-dns's own: the gateway may serve such a name."""
_FORGIVEN = "get 503 on routes where"
"""In a warning: with `portGuard: warn` a port counts that Envoy answers with 503."""
_NO_SERVICE = "there is no Service for"
"""In a message."""

_REFUSES = re.compile(r"Envoy refuses port (\d+):")


# --- quiet ----------------------------------------------------------------------------------------------------------------


class Mark:
    """A Service that is served on port 443 once its Service, Gateway, VirtualService and DestinationRule are all there."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._kube = kube
        self._name = name
        self._number = 0

    @property
    def host(self) -> str:
        return fqdn(f"{self._name}-{self._number}.default")

    def move(self) -> None:
        """Another Service, with all that belongs to it; the one before goes."""
        old = self._service()
        self._number += 1
        self._kube.create(self._service())
        for thing in self._others():
            self._kube.apply(thing)
        self._kube.remove(old)

    def clear(self) -> None:
        self._kube.remove(*reversed(self._others()), self._service())

    def _service(self) -> objects.Object:
        return objects.service(f"{self._name}-{self._number}", ports=((MARK_PORT, "http"),))

    def _others(self) -> list[objects.Object]:
        subset = f"s{self._number}"
        rule = objects.destination_rule(self._name, mesh.NAMESPACE, self.host, {subset: {"version": subset}})
        rule["spec"]["exportTo"] = ["."]  # comes before everybody else's, also before wildcards
        route = {"route": [objects.destination(self.host, subset=subset)]}
        return [
            rule,
            objects.gateway(self._name, selector=mesh.LABELS, ports=((MARK_PORT, "http"),), hosts=(self.host,)),
            objects.virtual_service(self._name, hosts=(self.host,), gateways=(self._name,), http=[route]),
        ]


# --- what both say ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A name in the words of `/bindings`."""

    bound: bool
    ports: tuple[int, ...] = ()
    claims: tuple[str, ...] = ()
    reason: str = ""
    forgiven: bool = False
    absent: bool = False
    """There is no Service of this name."""

    @property
    def comparable(self) -> bool:
        return self.bound or not (self.absent or self.reason in POLICIES)

    def __str__(self) -> str:
        return f"bound {list(self.ports)} as {' and '.join(self.claims)}" if self.bound else f"skipped, {self.reason}"


def said_of(bindings: Mapping[str, Any]) -> dict[str, Said]:
    found = {
        one["name"]: Said(False, reason=one["reason"], absent=one["message"].startswith(_NO_SERVICE))
        for one in bindings["skipped"]
    }
    for one in bindings["bound"]:
        forgiven = any(_FORGIVEN in warning for warning in one["warnings"])
        found[one["name"]] = Said(True, tuple(one["ports"]), tuple(one["claims"]), forgiven=forgiven)
    return found


def refused_ports(bindings: Mapping[str, Any]) -> set[int]:
    """The ports of which canal-dns says that Envoy refuses what istiod wants there."""
    found = (_REFUSES.match(one["message"]) for one in bindings["problems"])
    return {int(one[1]) for one in found if one}


@dataclass(frozen=True, slots=True)
class Look:
    """Both at one moment, as texts."""

    at: float
    bindings: str
    dump: str

    def said(self) -> dict[str, Said]:
        return said_of(json.loads(self.bindings))

    def programmed(self) -> Programmed:
        return Programmed(json.loads(self.dump), SAMPLES)


def look() -> Look | None:
    """None: one of them did not answer."""
    first, bindings = fetch(f"http://{ADMIN}/bindings")
    second, dump = fetch(f"http://{mesh.ADMIN}/config_dump")
    return Look(time.monotonic(), bindings, dump) if (first, second) == (200, 200) else None


def quiet(host: str, seconds: float, alive: Callable[[], None]) -> Look:
    """The first look at which both serve the mark `host` and Envoy has nothing half done. Raises AssertionError."""
    seen: list[str] = []

    def both() -> Look | None:
        seen[:] = ["somebody does not answer"]
        alive()
        now = look()
        if now is None:
            return None
        programmed = now.programmed()
        ours, theirs = now.said().get(host), programmed.served([host], [MARK_PORT])
        seen[:] = [f"canal-dns: {ours}; Envoy: {'served' if theirs else 'not served'}; warming: {programmed.warming}"]
        return now if ours is not None and ours.bound and theirs and not programmed.warming else None

    return until(both, seconds, lambda: f"both serve the mark {host}: {seen}", pause=0.03)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One look at the quiet cluster."""

    differences: dict[str, str]
    agreed: dict[str, Said]
    forgiven: int
    policies: int
    absent: int


NOBODY = Said(False, absent=True)
"""What is said of a name by its absence: every Service is listed."""


def compare(said: Mapping[str, Said], served: Mapping[str, Served], names: Mapping[str, bool]) -> Comparison:
    """Name by name: bound or not, with which ports, as destination or host. `names`: with whether there is such a Service;
    where there is none the gateway may serve what it likes, and the name is not bound."""
    differences: dict[str, str] = {}
    agreed: dict[str, Said] = {}
    forgiven = policies = absent = 0
    for name, there in names.items():
        ours = said.get(name, NOBODY)
        theirs = served.get(name, Served())
        same = (list(ours.ports), list(ours.claims)) == (theirs.ports, theirs.claims)
        if ours.absent or not there:
            absent += 1
            if ours.bound or ours.absent is there:
                differences[name] = f"canal-dns: {ours}; there is {'a' if there else 'no'} Service"
        elif not ours.comparable:
            policies += 1
        elif ours.forgiven and not same and set(theirs.ports) <= set(ours.ports):
            forgiven += 1
        elif same:
            agreed[name] = ours
        else:
            told = f"served on {theirs.ports} as {' and '.join(theirs.claims)}" if theirs.ways else "not served"
            differences[name] = f"canal-dns: {ours}; Envoy: {told}"
    return Comparison(differences, agreed, forgiven, policies, absent)


# --- while objects change ---------------------------------------------------------------------------------------------------


class Watcher(threading.Thread):
    """Looks all the time; keeps a look when something is different from the one before, and the last."""

    def __init__(self, pause: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._pause = pause
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._looks: list[Look] = []
        self.count = 0

    def run(self) -> None:
        while not self._ended.wait(self._pause):
            now = look()
            if now is not None:
                self.count += 1
                with self._lock:
                    self._looks.append(now)

    def take(self) -> list[Look]:
        """All since the last call."""
        with self._lock:
            taken, self._looks = self._looks, []
        return taken

    def end(self) -> None:
        self._ended.set()
        self.join(30)


@dataclass(frozen=True, slots=True)
class Apart:
    """An interval in which canal-dns and Envoy differed about a name."""

    name: str
    bound: bool
    """canal-dns binds it, and Envoy does not serve it; or the other way round."""
    seconds: float
    began_by: str
    """Who changed first: "canal-dns", "envoy", "both" or "" (it began before)."""
    ended_by: str

    def __str__(self) -> str:
        state = "bound and not served" if self.bound else "served and not bound"
        return f"{self.name} {state} for {self.seconds:.2f} s, from {self.began_by} to {self.ended_by}"

    @property
    def late(self) -> bool:
        """canal-dns followed Envoy, not the reverse."""
        return self.began_by == "envoy" and self.ended_by == "canal-dns"


def apart(looks: list[Look], names: Iterable[str]) -> list[Apart]:
    """Every such interval. Policies aside: a name that one of them forbids is as if nobody had looked."""
    parsed: dict[str, dict[str, bool]] = {}
    states: dict[str, list[tuple[float, bool, bool]]] = {name: [] for name in names}
    for one in looks:
        if one.dump not in parsed:
            served = one.programmed().served(states, GATEWAY_PORTS)
            parsed[one.dump] = {name: name in served for name in states}
        said = one.said()
        for name, list_of in states.items():
            ours = said.get(name, NOBODY)
            if ours.comparable:
                list_of.append((one.at, ours.bound, parsed[one.dump][name]))
    return [interval for name, list_of in states.items() for interval in _intervals(name, list_of)]


def _intervals(name: str, states: list[tuple[float, bool, bool]]) -> Iterator[Apart]:
    before: tuple[float, bool, bool] | None = None
    start: tuple[float, bool, bool] | None = None
    began_by, last = "", 0.0
    for state in states:
        at, bound, served = state
        changed = start is not None and (bound, served) != start[1:]
        if start is not None and changed:
            yield Apart(name, start[1], last - start[0], began_by, _who(start, state))
            start = None
        if bound != served:
            if start is None:
                start, began_by = state, _who(before, state)
            last = at
        before = state
    if start is not None:
        yield Apart(name, start[1], last - start[0], began_by, "")


def _who(before: tuple[float, bool, bool] | None, now: tuple[float, bool, bool]) -> str:
    if before is None:
        return ""
    ours, theirs = before[1] != now[1], before[2] != now[2]
    return "both" if ours and theirs else "canal-dns" if ours else "envoy"
