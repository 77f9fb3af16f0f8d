"""An API server as the source of objects: one reflector per kind, joined into one view.

Rules of this file:
- a kind that is denied or not installed degrades alone (what that means for the rule: `View.set_unavailable`);
- EndpointSlices and Pods are read in the gateways' namespaces only, the Pods by the gateway Service's selector;
- `on_change` is not called before every kind was read, or is known to be unreadable: half a cluster is never acted upon;
- while the server is away one look per second asks whether it is back, instead of every kind by itself;
- a refusal (403, 404) of a server that is only starting is asked again as soon as it is ready.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from canal_dns.errors import ClusterError
from canal_dns.kube import kinds
from canal_dns.kube.cluster import ApiServer
from canal_dns.kube.failures import ApiError
from canal_dns.kube.reflector import Outcome, Reflector
from canal_dns.kube.source import OnChange
from canal_dns.kube.timing import Timing
from canal_dns.mesh.records import KINDS, Service
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters
from canal_dns.settings import ClusterSettings, InternalGateway

log = logging.getLogger(__name__)

PROBE = "/readyz"
"""Everybody may ask for it (ClusterRole system:public-info-viewer)."""


class ClusterSource:
    """Objects of an API server for `sink`. Raises ClusterError for a configuration that cannot work.

    `api` is for those that bring their own; the source closes it when it ends.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        gateways: Sequence[InternalGateway],
        sink: View,
        counters: Counters,
        *,
        api: ApiServer | None = None,
        timing: Timing = Timing(),  # noqa: B008
    ) -> None:
        self.synced = False
        self._api = api or ApiServer(settings)
        self._sink = sink
        self._timing = timing
        self._gateways: dict[str, list[str]] = {}
        for gateway in gateways:
            self._gateways.setdefault(gateway.namespace, []).append(gateway.name)
        self._on_change: OnChange | None = None
        self._doubt: float | None = float("inf")
        """Until when (monotonic) a server that was away, or is new to us, is not believed what it refuses; None: it is..."""
        self._ready = 0.0
        """...what it has refused since this time."""
        self._tasks: dict[Reflector, asyncio.Task[NoReturn]] = {}
        self._group: asyncio.TaskGroup | None = None

        def reflector(kind: kinds.Kind, namespace: str = "", selector: str = "") -> Reflector:
            return Reflector(self._api, kind, sink, counters, self._told, namespace=namespace, selector=selector, timing=timing)

        self._pods = {namespace: reflector(kinds.POD, namespace) for namespace in self._gateways}
        self._others = [reflector(kind) for kind in kinds.EVERYWHERE]
        for namespace, names in self._gateways.items():
            selector = f"kubernetes.io/service-name in ({','.join(sorted(set(names)))})"
            self._others.append(reflector(kinds.ENDPOINT_SLICE, namespace, selector))
        self._idle = set(self._pods)
        """Namespaces whose gateway Services are not there: of them no Pods are read."""

    @property
    def place(self) -> str:
        return f"cluster {self._api.place}"

    @property
    def skips(self) -> Sequence[object]:
        return [skip.text for skip in self._sink.skips()]

    def waiting(self) -> list[str]:
        if self.synced:
            return []
        return [
            f"{one.title}: {self._words(one) if one.problem else 'not read yet'}"
            for one in self._reflectors()
            if not self._known(one)
        ]

    def problems(self) -> list[str]:
        lines = []
        away = self._troubled("connect")
        if away:
            why = away[0].problem.text if away[0].problem else ""
            kept = "; the last objects are kept" if self.synced else ""
            lines.append(f"{self._api.place} cannot be reached since {_moment(min(one.since for one in away))}: {why}{kept}")
        lines += [
            f"{one.title}: {self._words(one)}" for one in self._reflectors() if one.problem is not None and one not in away
        ]
        return lines

    def is_current(self) -> bool:
        """What is not installed, or was never allowed, is not there: that is current."""
        return self.synced and not any(one.problem is not None and one.outcome is Outcome.LISTED for one in self._reflectors())

    def to_plain(self) -> dict[str, Any]:
        return {
            "kinds": {
                name: {
                    "outcome": "/".join(sorted({"idle" if self._idles(one) else one.outcome.value for one in of_kind})),
                    "objects": self._sink.count(name),
                    "lastEvent": max(one.last_event for one in of_kind) or None,
                }
                for name, of_kind in self._by_kind().items()
            },
        }

    def observe(self, counters: Counters) -> None:
        for name, of_kind in self._by_kind().items():
            denied = any(one.outcome in (Outcome.DENIED, Outcome.MISSING) for one in of_kind)
            gone = any(one.problem is not None and one.problem.code in ("403", "404") for one in of_kind)
            counters["canal_dns_source_synced"][(name,)] = int(all(self._known(one) for one in of_kind))
            counters["canal_dns_source_available"][(name,)] = int(not (denied or gone))
            counters["canal_dns_source_objects"][(name,)] = self._sink.count(name)
            # Of several namespaces the one that was heard least recently: an alert is about the worst.
            counters["canal_dns_source_last_event_timestamp_seconds"][(name,)] = min(one.last_event for one in of_kind)

    async def read(self) -> None:
        """Read every kind once. Raises ClusterError where a kind that the rule needs cannot be read."""
        self._doubt = None
        try:
            await self._read(self._others)
            self._follow()
            await self._read([one for one in self._pods.values() if not self._idles(one)])
        finally:
            await self._api.close()
        self._settle()

    async def _read(self, those: Sequence[Reflector]) -> None:
        for one, problem in zip(
            those, await asyncio.gather(*(one.list() for one in those), return_exceptions=True), strict=True
        ):
            if isinstance(problem, ApiError):
                one.refuse(problem)
                degrades = (problem.code == "403" and not one.kind.required) or (problem.code == "404" and one.kind.optional)
                if not degrades:
                    raise ClusterError(self._api.place, f"{one.title}: {self._words(one)}")
            elif problem is not None:
                raise problem

    async def run(self, on_change: OnChange) -> NoReturn:
        self._on_change = on_change
        try:
            async with asyncio.TaskGroup() as self._group:
                for one in self._others:
                    self._start(one)
                await self._attend()
        finally:
            self._group = None
            self._tasks.clear()
            await self._api.close()
        raise AssertionError("unreachable")

    def _start(self, one: Reflector) -> None:
        if self._group is not None:
            self._tasks[one] = self._group.create_task(one.run(), name=f"watch {one.title}")

    def _reflectors(self) -> list[Reflector]:
        return [*self._others, *(one for namespace, one in self._pods.items() if namespace not in self._idle)]

    def _by_kind(self) -> dict[str, list[Reflector]]:
        every = [*self._others, *self._pods.values()]
        found = {name: [one for one in every if one.kind.name == name] for name in KINDS}
        return {name: of_kind for name, of_kind in found.items() if of_kind}

    def _known(self, one: Reflector) -> bool:
        """Is there nothing to wait for any more?"""
        if one.outcome is Outcome.DENIED:
            return not one.kind.required and self._doubt is None and one.refused[1] >= self._ready
        if one.outcome is Outcome.UNKNOWN:
            return self._idles(one) and self._known(self._others[0])
        return True

    def _idles(self, one: Reflector) -> bool:
        """Without a gateway Service there are no Pods to read."""
        return one.kind is kinds.POD and one.namespace in self._idle

    def _troubled(self, code: str) -> list[Reflector]:
        return [one for one in self._reflectors() if one.problem is not None and one.problem.code == code]

    def _words(self, one: Reflector) -> str:
        """What is wrong with a kind, and what helps."""
        problem = one.problem
        if problem is None:
            return ""
        kept = " The last objects are kept." if one.outcome is Outcome.LISTED else ""
        again = f"; tried again every {self._timing.retry:.0f} s" if self._group is not None else ""
        if problem.code == "403":
            role = f"a Role in {one.namespace}" if one.namespace else "the ClusterRole"
            return f"{problem.text}: give {role} list and watch{again}.{kept}"
        if problem.code == "404":
            return f"not installed{again}.{kept}"
        return f"{problem.text}{'.' if kept else ''}{kept}"

    # What the reflectors tell

    def _told(self, arrived: float | None) -> None:
        """Something changed in the view, or what is known of a kind."""
        self._follow()
        if arrived is None:
            self._settle()
        if self.synced and self._on_change is not None:
            self._on_change(arrived)

    def _settle(self) -> None:
        every = [*self._others, *self._pods.values()]
        denied = {one.kind.name for one in every if one.outcome is Outcome.DENIED}
        self._sink.set_unavailable(denied)
        if not self.synced and all(self._known(one) for one in every):
            self.synced = True
            # All these objects stay: the collector need not look at them again and again.
            gc.freeze()
            total = sum(self._sink.count(kind) for kind in KINDS)
            log.info("%s: all kinds read, %d objects", self.place, total)

    def _follow(self) -> None:
        """Read the Pods that the gateway Services select now."""
        if self._others[0].outcome is not Outcome.LISTED:
            return
        for namespace, names in self._gateways.items():
            one = self._pods[namespace]
            wanted = self._pod_selector(namespace, names)
            if wanted is None:
                if namespace not in self._idle:
                    self._idle.add(namespace)
                    self._stop(one)
                    for key in self._sink.keys(kinds.POD.name):
                        if key[0] == namespace:
                            self._sink.delete(kinds.POD.name, *key)
            elif namespace in self._idle or one.selector != wanted:
                self._idle.discard(namespace)
                self._stop(one)
                one.retarget(wanted)
                self._start(one)

    def _stop(self, one: Reflector) -> None:
        task = self._tasks.pop(one, None)
        if task is not None:
            task.cancel()

    def _pod_selector(self, namespace: str, names: Sequence[str]) -> str | None:
        """A labelSelector for the Pods of all gateways of a namespace; "": all Pods; None: no such gateway is there."""
        found = {
            ",".join(f"{key}={value}" for key, value in service.selector)
            for service in (self._sink.find("Service", (namespace, name)) for name in names)
            if isinstance(service, Service)
        }
        # Selectors cannot be joined by "or": with two, all Pods of the namespace are read.
        return None if not found else found.pop() if len(found) == 1 else ""

    async def _attend(self) -> NoReturn:
        """Look for what the reflectors wait for: the server, or new credentials."""
        self._begin_doubt()
        while True:
            await asyncio.sleep(self._timing.attend)
            away = self._troubled("connect")
            refused = [*self._troubled("403"), *self._troubled("404")]
            if away or (self._doubt is None and any(one.refused[0] > self._ready for one in refused)):
                self._begin_doubt()
            if self._doubt is None:
                if not self.synced:
                    # What was refused once more counts now.
                    self._told(None)
            else:
                await self._ask_whether_ready(away)
            if self._troubled("401") and self._api.outdated():
                for one in self._troubled("401"):
                    one.wake()

    def _begin_doubt(self) -> None:
        self._doubt = time.monotonic() + self._timing.doubt

    async def _ask_whether_ready(self, away: Sequence[Reflector]) -> None:
        """A server that has just started answers 403 to everybody, until it has read who may do what; then it is ready."""
        status = await self._probe()
        if status == 200 or (self._doubt is not None and time.monotonic() > self._doubt):
            self._doubt, self._ready = None, time.monotonic()
            for one in self._reflectors():
                if one.problem is not None and one.problem.retry_after is None:
                    one.wake()
        elif 0 < status < 500:
            # We may not ask for that; but somebody answers.
            for one in away:
                one.wake()

    async def _probe(self) -> int:
        """The status of the server's own word on whether it is ready; 0: nobody answers."""
        try:
            async with self._api.get(PROBE, {}, silence=self._timing.attend * 5) as reply:
                return reply.status
        except ApiError:
            return 0


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
