"""A fake API server, a client of it, and quick time-outs: what the tests of the watcher share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from canal_dns.kube import kinds
from canal_dns.kube.cluster import ApiServer
from canal_dns.kube.reflector import Reflector
from canal_dns.kube.timing import Pauses, Timing
from canal_dns.kube.watcher import ClusterSource
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters
from tests.kube.apiserver import RESOURCES, FakeApiServer
from tests.mesh import builders as make

QUICK = Timing(
    page=3,
    list_silence=5.0,
    silence=20.0,
    silence_without_bookmarks=20.0,
    brief=0.005,
    retry=0.02,
    attend=0.01,
    pauses=Pauses(first=0.005, longest=0.02, reset=60.0),
)

EVERYTHING = tuple(RESOURCES)


@dataclass
class World:
    """One reflector or one source on a fake server."""

    server: FakeApiServer
    api: ApiServer
    view: View = field(default_factory=View)
    counters: Counters = field(default_factory=Counters)
    told: list[float | None] = field(default_factory=list)
    """Arguments of each `told` or `on_change`."""
    seen: list[set[str]] = field(default_factory=list)
    """Services of the view at each of these calls."""
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def tell(self, arrived: float | None) -> None:
        self.told.append(arrived)
        self.seen.append(self.names())

    def reflector(self, kind: kinds.Kind = kinds.SERVICE, **changes: Any) -> Reflector:
        timing = replace(QUICK, **changes)
        return Reflector(self.api, kind, self.view, self.counters, self.tell, timing=timing)

    def source(self, *gateways: Any, **changes: Any) -> ClusterSource:
        timing = replace(QUICK, **changes)
        wanted = gateways or (make.GATEWAY,)
        return ClusterSource(self.api.settings, wanted, self.view, self.counters, api=self.api, timing=timing)

    def run(self, one: Reflector | ClusterSource) -> Any:
        self.tasks.append(asyncio.create_task(one.run() if isinstance(one, Reflector) else one.run(self.tell)))
        return one

    def names(self, kind: str = "Service") -> set[str]:
        """Objects of a kind that the view has, as namespace/name."""
        return {f"{namespace}/{name}" for namespace, name in self.view.keys(kind)}

    def agrees(self) -> bool:
        """Does the view hold what the server has?"""
        for resource, (_, _, kind) in RESOURCES.items():
            wanted = {key: parse(item) for key, item in self.server.objects(resource).items()}
            if {key: self.view.find(kind, key) for key in self.view.keys(kind)} != wanted:
                return False
        return True

    async def until(self, condition: Any, seconds: float = 10.0) -> None:
        await self.server.until(condition, seconds)

    def count(self, metric: str, *labels: str) -> float:
        return self.counters[f"canal_dns_source_{metric}"][labels]


@contextlib.asynccontextmanager
async def world(folder: Path, server: FakeApiServer | None = None) -> AsyncIterator[World]:
    async with server or FakeApiServer() as running:
        made = World(running, ApiServer(running.kubeconfig(folder)))
        try:
            yield made
        finally:
            for task in made.tasks:
                task.cancel()
            done = await asyncio.gather(*made.tasks, return_exceptions=True)
            await made.api.close()
            unexpected = [one for one in done if isinstance(one, Exception)]
            assert not unexpected
