"""A mesh behind a scripted API server, and canal-dns that follows it: what the rows of the Kubernetes API have in common.

    mesh = await Mesh.of(bench)                       # API server, objects, upstream
    server = await mesh.serve()
    async with mesh.traffic() as traffic:             # bound and forwarded names, every query accounted for
        await mesh.api.stop()
        await traffic.for_(5)
    traffic.clean, traffic.said()

Rules of this file:
- the API server speaks HTTP on a real socket, in the runner's loop; canal-dns knows it by a kubeconfig, as anywhere;
- a name that is bound is asked for the gateway's address, one that is not is forwarded to an upstream with another address;
- `settle` is 0 where nothing else is said: what is measured is how long the API takes, not a wait that is set.
"""

from __future__ import annotations

import asyncio
import collections
import json
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.e2e.certificates import Authority
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.server import VIP, Server
from tests.kube.apiserver import FakeApiServer, Raw
from tests.kube.world import EVERYTHING
from tests.mesh import builders as make
from tests.server.scripted import TRUE, Scripted

FORWARDED = socket.inet_aton(TRUE)
"""What the upstream answers to everything."""
OTHER_VIP = socket.inet_aton("10.96.9.10")
OTHER = "othergateway"
"""A second internal gateway, for rows that need one."""
NAMES = 20
"""Names bound from the beginning, the bench's own apart."""
BOUND_RATE, FORWARDED_RATE = 400, 100
"""Queries per second."""
WARM = 400
"""Forwarded queries before the figures of descriptors and memory are taken that must be the same at the end."""
GATEWAYS = [{"service": f"istio-system/{name}"} for name in ("internalgateway", OTHER)]


def name_of(number: int) -> str:
    return f"s{number}.default.svc.cluster.local"


def service(number: int, **different: Any) -> Raw:
    return make.service(f"s{number}", clusterIP=f"10.97.{number // 250}.{number % 250 + 1}", **different)


def route(number: int, gateway: str = "internalgateway", **different: Any) -> Raw:
    """The VirtualService that binds a name, called after its gateway."""
    name = name_of(number)
    described = {
        "name": f"s{number}-{gateway}",
        "namespace": "default",
        "gateways": [f"istio-system/{gateway}"],
        "hosts": [name],
    }
    return make.virtual_service(make.http(name), **{**described, **different})


def pair(number: int) -> tuple[Raw, Raw]:
    """All that it takes to bind a name."""
    return service(number), route(number)


def other_gateway(**different: Any) -> tuple[Raw, ...]:
    labels = {"istio": OTHER}
    return (
        make.gateway_service(OTHER, **{"clusterIP": socket.inet_ntoa(OTHER_VIP), **different}),
        make.endpoints(OTHER, pods=("gw-1",), addresses=("10.244.0.2",)),
        make.pod("gw-1", labels=labels),
        make.gateway(name=OTHER, selector=labels),
    )


def questions(numbers: Iterable[int], expect: bytes = VIP) -> list[Question]:
    return [Question(name_of(number), expect) for number in numbers]


class Traffic:
    """Two streams at once: names that are bound, and names that are forwarded."""

    def __init__(self, bound: Stream, forwarded: Stream) -> None:
        self.bound = bound
        self.forwarded = forwarded

    async def __aenter__(self) -> Traffic:
        await self.bound.__aenter__()
        await self.forwarded.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(self.bound.__aexit__(*exc), self.forwarded.__aexit__(*exc))

    async def for_(self, seconds: float) -> None:
        await asyncio.gather(self.bound.for_(seconds), self.forwarded.for_(seconds))

    @property
    def clean(self) -> bool:
        """Every query was answered right, once."""
        return all(one.right == one.sent > 0 and not one.strays for one in (self.bound, self.forwarded))

    def said(self) -> str:
        """One line."""
        lost, failed, wrong, strays = (
            sum(getattr(one, what) for one in (self.bound, self.forwarded)) for what in ("lost", "failed", "wrong", "strays")
        )
        sent = f"{self.bound.sent} bound and {self.forwarded.sent} forwarded queries"
        text = f"{sent}: {lost} lost, {failed} failed, {wrong} wrong"
        return text + (f", {strays} strays" if strays else "")


class Mesh:
    """The API server with its objects, an upstream, and the canal-dns of `serve`."""

    server: Server

    def __init__(self, bench: Bench, api: FakeApiServer, upstream: Scripted) -> None:
        self.bench = bench
        self.api = api
        self.upstream = upstream

    @classmethod
    async def of(cls, bench: Bench, names: int = NAMES, *, authority: Authority | None = None) -> Mesh:
        made = cls(bench, await bench.enter(FakeApiServer(authority)), await bench.upstream())
        # Nobody looks at what was forwarded, and it is much.
        made.upstream.asks = collections.deque(maxlen=1)
        made.api.put(*make.BASE, make.gateway(), make.service(), make.virtual_service(namespace="default"))
        for number in range(names):
            made.api.put(*pair(number))
        return made

    async def serve(self, **different: Any) -> Server:
        """Start canal-dns; `different`: as for `Bench.server`."""
        folder = self.bench.folder / f"api-{self.api.port}"
        folder.mkdir(exist_ok=True)
        source = {"cluster": {"kubeconfig": self.api.kubeconfig(folder).kubeconfig}}
        settings = {"source": source, "binding": {"settle": "0s"}, **different}
        self.server = await self.bench.server(self.upstream, **settings)
        if different.get("ready", True):
            await self.api.watching(*EVERYTHING)
            async with self.traffic(forwarded_rate=WARM / 0.25):
                # What forwards has all its sockets from now on: they are replaced, not closed, while queries come.
                await asyncio.sleep(0.25)
            self.bench.baseline(self.server)
        return self.server

    def traffic(
        self,
        bound: Sequence[Question] = (),
        *,
        expect: bytes = VIP,
        rate: float = BOUND_RATE,
        forwarded_rate: float = FORWARDED_RATE,
    ) -> Traffic:
        """`bound`: instead of the names that are there from the beginning; `expect`: what these are answered with."""
        others = [Question(f"other-{number}.default.svc.cluster.local", FORWARDED) for number in range(1000)]
        return Traffic(
            Stream(self.server.endpoint, list(bound) or questions(range(NAMES), expect), rate),
            Stream(self.server.endpoint, others, forwarded_rate, sockets=4),
        )

    # -- what canal-dns knows --------------------------------------------------------------------------------------------

    async def answered(self, name: str, expect: bytes, seconds: float = 10.0) -> float:
        """Seconds until a name is answered so. Raises TimeoutError."""
        wanted = f"{name} as {socket.inet_ntoa(expect)}"
        return await self.bench.until(lambda: self.server.answers(name, expect, seconds=0.5), seconds, wanted)

    async def counted(self, metric: str, **labels: str) -> float:
        return await asyncio.to_thread(self.server.counted, metric, **labels)

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self.server.get, path)

    async def bindings(self) -> dict[str, Any]:
        return json.loads((await self.get("/bindings"))[1])

    # -- what happens in the cluster ---------------------------------------------------------------------------------------

    def miss(self, change: Callable[..., object], *arguments: object) -> None:
        """A change of which no watch that is open now is told."""
        for watch in self.api.watches():
            watch.mute()
        change(*arguments)
        for watch in self.api.watches():
            watch.unmute()

    def swap(self, gone: int, new: int) -> None:
        """One name is bound no more, another one is."""
        self.api.delete("VirtualService", "default", f"s{gone}-internalgateway")
        self.api.put(*pair(new))

    async def swapped(self, gone: int, new: int, since: float | None = None, seconds: float = 60.0) -> float:
        """Seconds until both are known, from `since` (monotonic)."""
        began = time.monotonic() if since is None else since
        await self.answered(name_of(gone), FORWARDED, seconds)
        await self.answered(name_of(new), VIP, seconds)
        return time.monotonic() - began
