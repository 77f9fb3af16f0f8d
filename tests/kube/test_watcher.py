"""All kinds together: when the source is in step, what a kind that is missing means, and what people are told."""

from __future__ import annotations

import asyncio
import time

import pytest

from canal_dns.errors import ClusterError
from canal_dns.kube.cluster import ApiServer
from canal_dns.kube.timing import Pauses
from canal_dns.kube.watcher import ClusterSource
from canal_dns.mesh.resources import KINDS
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters
from canal_dns.settings import ClusterSettings, InternalGateway
from tests.e2e.certificates import Authority
from tests.kube.apiserver import FakeApiServer, Refuse
from tests.kube.world import EVERYTHING, World, world
from tests.mesh import builders as make

FORBIDDEN = 'is forbidden: User "system:serviceaccount:canal-dns:canal-dns" cannot list resource'


@pytest.fixture
async def w(tmp_path):
    async with world(tmp_path) as made:
        made.server.put(*make.BASE, make.gateway(make.server(80)), make.pod(), make.endpoints(), make.namespace("default"))
        made.server.put(make.virtual_service(make.http(make.HELLO)), make.destination_rule(make.HELLO, "v1"))
        yield made


async def in_step(w: World, *gateways, **changes) -> ClusterSource:
    source = w.run(w.source(*gateways, **changes))
    await w.until(lambda: source.synced)
    await w.server.watching(*EVERYTHING)
    return source


async def test_all_kinds_are_read_and_followed(w):
    source = w.source()
    assert not source.synced
    assert len(source.waiting()) == 6
    w.run(source)
    await w.until(lambda: source.synced)
    await w.until(w.agrees)
    assert w.told[0] is None
    assert source.waiting() == source.problems() == []
    await w.server.watching(*EVERYTHING)
    w.server.delete("Pod", "istio-system", "gw-0")
    w.server.put(make.service("new"), make.virtual_service(make.http("a.b"), name="more"), make.endpoints(ready=False))
    await w.until(w.agrees)
    assert source.place == f"cluster {w.server.url}"
    assert w.told[-1] is not None and w.told[-1] <= time.monotonic()


async def test_nobody_is_told_anything_before_everything_was_read(w):
    """K15: one kind that does not come holds all of it back, and says so."""
    w.server.always["virtualservices"] = Refuse(500, "etcd is away")
    source = w.run(w.source())
    await w.server.watching("services", "namespaces", "gateways", "destinationrules", "endpointslices", "pods")
    w.server.put(make.service("new"))
    await w.until(lambda: ("default", "new") in w.view.services)
    await w.until(lambda: source.waiting() == ["virtualservices.networking.istio.io: etcd is away"])
    assert not source.synced
    assert w.told == []
    source.observe(w.counters)
    assert (w.count("synced", "VirtualService"), w.count("synced", "Service")) == (0, 1)
    del w.server.always["virtualservices"]
    await w.until(lambda: source.synced)
    assert w.told == [None]
    assert w.agrees()


async def test_the_api_server_is_down_at_the_start(w):
    """K1: it goes on trying; when the server is there, it is in step at once, whatever the pauses have come to."""
    await w.server.stop()
    source = w.run(w.source(pauses=Pauses(first=60.0, longest=60.0)))
    await w.until(source.problems)
    assert "cannot be reached since 2" in source.problems()[0]
    assert source.problems()[0].endswith("UTC: Connection refused")
    assert "services: Connection refused" in source.waiting()
    assert len(source.waiting()) == 6
    await w.server.start()
    await w.until(lambda: source.synced)
    assert source.problems() == []
    assert w.agrees()


async def test_the_api_server_goes_away_and_comes_back(w):
    """K2: the last objects stay."""
    source = await in_step(w)

    def whole_lists() -> int:
        return len([one for one in w.server.requests if one.verb == "list" and one.query.get("limit") == "3"])

    lists = whole_lists()
    w.told.clear()
    await w.server.stop()
    await w.until(lambda: len(source.problems()) == 1 and "refused" in source.problems()[0])
    assert source.problems()[0].endswith("Connection refused; the last objects are kept")
    assert source.synced and source.waiting() == []
    assert not source.is_current()
    assert w.view.count("Service") == 1
    assert w.told == []
    w.server.put(make.service("later"))
    await w.server.start()
    await w.until(w.agrees)
    await w.until(lambda: source.problems() == [])
    assert source.is_current()
    assert whole_lists() == lists, "no list was needed"


@pytest.mark.parametrize("kind", ["Service", "Gateway", "VirtualService"])
async def test_a_kind_that_the_rule_needs_is_denied(w, kind):
    resource = {"Service": "services", "Gateway": "gateways", "VirtualService": "virtualservices"}[kind]
    w.server.always[resource] = Refuse(403, f"{resource} {FORBIDDEN}")
    source = w.run(w.source())
    await w.until(source.problems)
    await w.server.watching("namespaces", "destinationrules", "endpointslices")
    (line,) = [line for line in source.waiting() if FORBIDDEN in line]
    assert line.startswith(resource)
    assert "give the ClusterRole list and watch; tried again every" in line
    assert not source.synced
    del w.server.always[resource]
    await w.until(lambda: source.synced)
    assert w.agrees()


@pytest.mark.parametrize("kind", ["Namespace", "DestinationRule", "EndpointSlice", "Pod"])
async def test_a_kind_that_the_rule_can_do_without_is_denied(w, kind):
    resource = kind.lower() + "s"
    w.server.always[resource] = Refuse(403, f"{resource} {FORBIDDEN}")
    source = w.run(w.source())
    await w.until(lambda: source.synced)
    assert w.view.unavailable == {kind}
    assert source.waiting() == []
    (problem,) = source.problems()
    role = "a Role in istio-system" if kind in ("EndpointSlice", "Pod") else "the ClusterRole"
    assert f"give {role} list and watch" in problem

    def shown():
        source.observe(w.counters)
        return w.count("available", kind), w.count("synced", kind), w.count("available", "Service")

    # Where the refusal came after the server had said that it is ready, it is asked once more.
    await w.until(lambda: shown() == (0, 1, 1))
    w.told.clear()
    del w.server.always[resource]
    await w.until(lambda: not w.view.unavailable)
    await w.until(w.agrees)
    assert w.told[0] is None
    assert source.problems() == []


async def test_rights_that_are_taken_away(w):
    """K13: the last objects stay, the other kinds go on."""
    source = await in_step(w)
    w.server.always["virtualservices"] = Refuse(403, FORBIDDEN)
    w.server.watches("virtualservices")[0].end()
    await w.until(
        lambda: any("forbidden" in line and line.endswith("The last objects are kept.") for line in source.problems())
    )
    assert source.synced and w.view.count("VirtualService") == 1 and not w.view.unavailable
    source.observe(w.counters)
    assert (w.count("available", "VirtualService"), w.count("synced", "VirtualService")) == (0, 1)
    w.server.put(make.service("new"))
    await w.until(lambda: ("default", "new") in w.view.services)


async def test_istio_is_not_installed(w):
    w.server.versions["networking.istio.io"] = []
    source = w.run(w.source())
    await w.until(lambda: source.synced)
    assert w.view.count("VirtualService") == 0
    assert w.view.unavailable == set()
    assert sorted(line.partition(":")[0] for line in source.problems()) == [
        "destinationrules.networking.istio.io",
        "gateways.networking.istio.io",
        "virtualservices.networking.istio.io",
    ]
    assert "not installed; tried again every" in source.problems()[0]
    w.server.versions["networking.istio.io"] = ["v1"]
    await w.until(w.agrees)
    assert source.problems() == []


# Pods and EndpointSlices


async def test_pods_follow_the_selector_of_the_gateway_service(w):
    w.server.put(make.pod("other", labels={"istio": "egress"}))
    await in_step(w)
    assert w.names("Pod") == {"istio-system/gw-0"}
    assert w.server.asked("pods")[0].query["labelSelector"] == "istio=internalgateway"
    w.server.put(make.gateway_service(selector={"istio": "egress"}))
    await w.until(lambda: w.names("Pod") == {"istio-system/other"})
    w.server.put(make.gateway_service(selector={}))
    await w.until(lambda: w.names("Pod") == {"istio-system/other", "istio-system/gw-0"})
    await w.until(lambda: any("labelSelector" not in one.request.query for one in w.server.watches("pods")))
    w.server.delete("Service", "istio-system", "internalgateway")
    await w.until(lambda: not w.names("Pod"))
    await w.until(lambda: not w.server.watches("pods"))
    w.server.put(make.gateway_service())
    await w.until(lambda: w.names("Pod") == {"istio-system/gw-0"})


async def test_no_gateway_service_no_pods_to_wait_for(w):
    w.server.delete("Service", "istio-system", "internalgateway")
    source = w.run(w.source())
    await w.until(lambda: source.synced)
    assert w.server.asked("pods") == []
    assert source.to_plain()["kinds"]["Pod"]["outcome"] == "idle"


async def test_several_gateways(w):
    """In one namespace and in two; each EndpointSlice and Pod once."""
    w.server.put(make.gateway_service("second", clusterIP="10.96.9.10"), make.gateway_service("third", "mesh"))
    w.server.put(make.endpoints("second"), make.endpoints("third", "mesh"), make.endpoints("unrelated"))
    w.server.put(make.pod("gw-2", labels={"istio": "second"}), make.pod("gw-3", "mesh", labels={"istio": "third"}))
    w.server.put(make.pod("elsewhere", "default"), make.pod("not-ours", "mesh"))
    gateways = make.GATEWAY, InternalGateway("istio-system", "second"), InternalGateway("mesh", "third")
    await in_step(w, *gateways)
    await w.until(lambda: len(w.server.watches("pods")) == 2)
    assert w.names("EndpointSlice") == {"istio-system/internalgateway-1", "istio-system/second-1", "mesh/third-1"}
    assert w.names("Pod") == {"istio-system/gw-0", "istio-system/gw-2", "mesh/gw-3"}
    selectors = {(one.namespace, one.query.get("labelSelector", "")) for one in w.server.asked("pods")}
    assert selectors == {("istio-system", ""), ("mesh", "istio=third")}, "two selectors cannot be joined"
    w.server.compact()
    w.server.delete("Pod", "mesh", "gw-3")
    for watch in w.server.watches("pods"):
        watch.error(410)
    await w.until(lambda: w.names("Pod") == {"istio-system/gw-0", "istio-system/gw-2"})


# Credentials


async def test_a_token_that_is_refused_until_its_file_changes(tmp_path, monkeypatch):
    """K12: nobody waits for the end of a pause."""
    async with FakeApiServer(Authority(tmp_path)) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        account = server.account(tmp_path / "account")
        server.bearer = "second"
        made = World(server, ApiServer(ClusterSettings(), account=account))
        source = made.run(made.source(pauses=Pauses(first=60.0, longest=60.0)))
        await made.until(lambda: len(source.problems()) == 6)
        assert all("Unauthorized" in line or "401" in line for line in source.problems())
        server.account(account)
        await made.until(lambda: source.synced)
        made.tasks[0].cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


# Once


async def test_read_once(w):
    source = w.source()
    await source.read()
    assert w.agrees()
    assert source.synced
    assert not w.server.watches()
    assert source.problems() == []


async def test_read_once_degrades_too(w):
    w.server.always["destinationrules"] = Refuse(403, FORBIDDEN)
    w.server.versions["networking.istio.io"] = ["v1beta1"]
    source = w.source()
    await source.read()
    assert w.view.unavailable == {"DestinationRule"}
    assert w.view.count("Gateway") == 1
    assert len(source.problems()) == 1


async def test_read_once_says_why_it_cannot(w):
    w.server.always["services"] = Refuse(403, f"services {FORBIDDEN}")
    with pytest.raises(ClusterError, match=r"services: services is forbidden.*give the ClusterRole list and watch"):
        await w.source().read()
    await w.server.stop()
    with pytest.raises(ClusterError, match="Connection refused") as found:
        await w.source().read()
    assert found.value.place == w.server.url


def test_a_configuration_that_cannot_work(tmp_path):
    with pytest.raises(ClusterError, match="no such file"):
        ClusterSource(ClusterSettings(str(tmp_path / "none")), (make.GATEWAY,), View(), Counters())


# For people and programs


async def test_skipped_objects(w):
    broken = make.service("broken")
    broken["spec"]["ports"] = [{"port": 0}]
    w.server.put(broken)
    source = await in_step(w)
    (line,) = map(str, source.skips)
    assert line.startswith("Service default/broken is there but not usable (spec.ports[0].port")


async def test_observe(w):
    source = await in_step(w)
    source.observe(w.counters)
    for kind in KINDS:
        assert w.count("synced", kind) == w.count("available", kind) == 1
        assert w.count("objects", kind) == w.view.count(kind)
        assert w.count("last_event_timestamp_seconds", kind) == pytest.approx(time.time(), abs=30)


async def test_to_plain(w):
    source = await in_step(w)
    plain = source.to_plain()
    assert (source.synced, source.waiting(), source.problems()) == (True, [], [])
    assert set(plain["kinds"]) == set(KINDS)
    assert plain["kinds"]["Pod"] == {"outcome": "listed", "objects": 1, "lastEvent": pytest.approx(time.time(), abs=30)}
