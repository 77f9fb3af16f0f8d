"""Whatever happens to an API server, and in whatever order: in the end the view holds what the server has.

A machine of random changes and faults on the fake server, with a source that follows it all the time.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from canal_dns.kube.cluster import ApiServer
from canal_dns.mesh.records import EndpointSlice, Pod
from canal_dns.mesh.resources import parse
from tests.kube.apiserver import PLURALS, RESOURCES, TOO_LARGE, Body, FakeApiServer, Refuse, Reset, status
from tests.kube.world import World
from tests.mesh import builders as make

NAMES = st.sampled_from("abcde")
NAMESPACES = st.sampled_from(["default", "istio-system"])
KIND = st.sampled_from(sorted(PLURALS))
RESOURCE = st.sampled_from(sorted(RESOURCES))
FAULTS = st.sampled_from(
    [
        Refuse(410),
        Refuse(429, retry_after=0),
        Refuse(500),
        Refuse(503, body=b"<html>"),
        Refuse(504, body=TOO_LARGE),
        Refuse(403),
        Refuse(404, body=b"404 page not found"),
        Reset(),
        Body(b""),
        Body(b"garbage\n"),
        Body(b'{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":['),
        Body(status(410)),
    ]
)
LINES = st.sampled_from(
    [
        b"garbage\n",
        b"\n",
        b'{"type":"ADDED","object":{}}\n',
        b'{"type":"NEW","object":{}}\n',
        b"[1,2]\n",
        b'{"type":"DELETED"}\n',
    ]
)


def made(kind: str, namespace: str, name: str, number: int):
    """An object of a kind; `number` makes it another one than before, and now and then one that cannot be used."""
    match kind:
        case "Service" if name == "e":
            return make.gateway_service(namespace=namespace, selector={"istio": f"{number % 2}"} if number % 3 else {})
        case "Service":
            return make.service(name, namespace, clusterIP="" if number % 5 else 7, ports=[80, 1000 + number])
        case "Pod":
            return make.pod(name, namespace, {"istio": f"{number % 2}"})
        case "EndpointSlice":
            of = "internalgateway" if number % 4 else "other"
            return make.endpoints(of, namespace, name=name, addresses=[f"10.1.1.{number}"])
        case "Namespace":
            return make.namespace(name, bind=str(bool(number % 2)).lower())
        case "Gateway":
            return make.gateway(make.server(80 + number), name=name, namespace=namespace)
        case "VirtualService":
            return make.virtual_service(make.http(f"s{number}.default"), name=name, namespace=namespace)
        case _:
            return make.destination_rule(f"h{number}", "v1", name=name, namespace=namespace)


class Server(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.up = True

    def run(self, work) -> None:
        self.loop.run_until_complete(work)

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0.0005)

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            self.server = FakeApiServer()
            for kind in PLURALS:
                self.server.put(*(made(kind, "istio-system", name, 1) for name in "abc"))
            await self.server.start()
            self.world = World(self.server, ApiServer(self.server.kubeconfig(Path(self.folder.name))))
            self.source = self.world.run(self.world.source(page=2))

        self.run(begin())

    @rule(kind=KIND, namespace=NAMESPACES, name=NAMES, number=st.integers(0, 20), turns=st.integers(0, 5))
    def put(self, kind, namespace, name, number, turns) -> None:
        self.server.put(made(kind, namespace, name, number))
        self.run(self.turns(turns))

    @rule(kind=KIND, data=st.data(), turns=st.integers(0, 5))
    def delete(self, kind, data, turns) -> None:
        known = sorted(self.server.objects(PLURALS[kind]))
        if known:
            self.server.delete(kind, *data.draw(st.sampled_from(known)))
        self.run(self.turns(turns))

    @rule(turns=st.integers(1, 30))
    def wait(self, turns) -> None:
        self.run(self.turns(turns))

    @rule(resource=RESOURCE, verb=st.sampled_from(["list", "watch"]), faults=st.lists(FAULTS, min_size=1, max_size=4))
    def fail(self, resource, verb, faults) -> None:
        self.server.next(resource, verb, *faults)

    @rule(resource=RESOURCE, happens=st.integers(0, 8), line=LINES, turns=st.integers(0, 5))
    def disturb(self, resource, happens, line, turns) -> None:
        for watch in self.server.watches(resource):
            match happens:
                case 0:
                    watch.end()
                case 1:
                    watch.cut(b'{"type":"MOD')
                case 2:
                    watch.reset()
                case 3:
                    watch.error(410)
                case 4:
                    watch.error(500)
                case 5:
                    watch.error(504, body=TOO_LARGE)
                case 6:
                    watch.bookmark()
                case 7:
                    watch.error(429)
                case _:
                    watch.send(line)
        self.run(self.turns(turns))

    @rule(how=st.sampled_from(["compact", "forget"]))
    def history(self, how) -> None:
        getattr(self.server, how)()

    @rule(versions=st.sampled_from([["v1"], ["v1", "v1beta1"], ["v1beta1"], ["v1alpha3"], []]))
    def installed(self, versions) -> None:
        self.server.versions["networking.istio.io"] = versions

    @rule(resource=RESOURCE, denied=st.booleans())
    def rights(self, resource, denied) -> None:
        self.server.always.pop(resource, None)
        if denied:
            self.server.always[resource] = Refuse(403)

    @rule(packed=st.booleans(), drip=st.sampled_from([None, (50, 0.0), (300, 0.0)]))
    def travel(self, packed, drip) -> None:
        self.server.gzip, self.server.drip = packed, drip

    @precondition(lambda self: self.up)
    @rule()
    def stop(self) -> None:
        self.up = False
        self.run(self.server.stop())

    @precondition(lambda self: not self.up)
    @rule(forgetful=st.booleans())
    def start(self, forgetful) -> None:
        self.up = True
        if forgetful:
            self.server.forget()
        self.run(self.server.start())

    def wanted(self) -> dict[tuple[str, str, str], object]:
        """What the view has to hold: of EndpointSlices and Pods, those of the gateway."""
        found: dict[tuple[str, str, str], object] = {}
        gateway = self.server.objects("services").get(("istio-system", "internalgateway"))
        for resource, (_, _, kind) in RESOURCES.items():
            for (namespace, name), item in self.server.objects(resource).items():
                record = parse(item)
                if isinstance(record, EndpointSlice) and (namespace, record.service) != ("istio-system", "internalgateway"):
                    continue
                if isinstance(record, Pod):
                    selector = gateway["spec"]["selector"] if gateway else None
                    if selector is None or namespace != "istio-system" or not selector.items() <= dict(record.labels).items():
                        continue
                found[kind, namespace, name] = record
        return found

    def held(self) -> dict[tuple[str, str, str], object]:
        view = self.world.view
        kinds = [kind for _, _, kind in RESOURCES.values()]
        return {(kind, *key): view.find(kind, key) for kind in kinds for key in view.keys(kind)}

    def teardown(self) -> None:
        async def end() -> None:
            try:
                if not self.up:
                    await self.server.start()
                self.server.always.clear()
                self.server._next.clear()
                self.server.versions["networking.istio.io"] = ["v1"]
                self.server.drip = None
                await self.server.until(lambda: self.source.synced and self.held() == self.wanted(), 20.0)
                await self.server.until(lambda: not self.source.problems(), 20.0)
                # And it goes on from there.
                for kind, resource in PLURALS.items():
                    for namespace, name in sorted(self.server.objects(resource))[::2]:
                        self.server.delete(kind, namespace, name)
                    self.server.put(made(kind, "istio-system", "z", 3))
                await self.server.until(lambda: self.held() == self.wanted(), 20.0)
                assert not self.world.view.unavailable
            except TimeoutError:
                assert self.held() == self.wanted(), self.source.to_plain()
                raise AssertionError(self.source.problems()) from None
            finally:
                for task in self.world.tasks:
                    task.cancel()
                await asyncio.gather(*self.world.tasks, return_exceptions=True)
                await self.server.stop()

        try:
            if hasattr(self, "source"):
                self.run(end())
        finally:
            self.run(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.folder.cleanup()


TestConvergence = Server.TestCase
TestConvergence.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
