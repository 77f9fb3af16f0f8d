"""What users do, from the first Service on the gateway to the way back, on the real cluster and in Layout B.

Everything that is asked goes the whole way: curl through libc and the pod's resolv.conf, CoreDNS with its `kubernetes`
plugin, canal-dns, the VIP, Envoy programmed by istiod, a backend that says who it is. canal-dns has the default settings,
`settle` included; only the TTL is a second, so that waiting for one costs less.
"""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e import mesh, objects
from tests.e2e.conftest import Say, Tell
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.traffic import Kind, Traffic
from tests.e2e.world import PORT, Workload, curl

pytestmark = pytest.mark.e2e

TTL = 1
ROUNDS = 10
VIP = mesh.VIP

each_api = pytest.mark.parametrize("api", ["v1alpha3", "v1"])


@pytest.fixture(scope="module")
def dns(make_cluster_site: Callable[..., ClusterSite]) -> ClusterSite:
    """Layout B on the real cluster."""
    site = make_cluster_site(B, settings={"ttl": TTL})
    site.start()
    return site


def route_to(workload: Workload, api: str = "v1", **rest: Any) -> objects.Object:
    """The VirtualService of the flows: hosts `*`, uri exact /hello, no port given."""
    match = [{"uri": {"exact": "/hello"}}]
    rule = {"match": match, "route": [objects.destination(workload.host)]}
    return objects.virtual_service(workload.name, http=[rule], version=api, **rest)


def assert_own_address(dns: ClusterSite, workload: Workload) -> None:
    """DNS and requests: the Service as it is without a gateway."""
    assert dns.address(workload.short) == {workload.cluster_ip}
    reply = curl(workload.url())
    assert (reply.status, reply.address, reply.through_gateway) == (200, workload.cluster_ip, False), reply


def assert_through_gateway(dns: ClusterSite, workload: Workload) -> None:
    assert dns.address(workload.short) == {VIP}
    reply = curl(workload.url())
    assert (reply.status, reply.address, reply.through_gateway) == (200, VIP, True), reply
    assert reply.service == workload.backend


# --- 1. a new Service ----------------------------------------------------------------------------------------------------


@each_api
def test_new_service(dns: ClusterSite, scene: Scene, tell: Tell, api: str) -> None:
    workload = scene.workload(on_cluster_ip=True)
    dns.wait_for_address(workload.short, workload.cluster_ip)
    assert_own_address(dns, workload)
    tell(f"dig and curl {workload.url()} before there is a VirtualService", f"{workload.cluster_ip}; {curl(workload.url())}")

    gateway, route = objects.gateway(version=api), route_to(workload, api)
    began = time.monotonic()
    scene.create(gateway, route)
    dns.wait_for_vip(workload.short)
    took = time.monotonic() - began
    assert_through_gateway(dns, workload)
    tell(f"dig {workload.host} {took:.1f} s after Gateway and VirtualService ({api})", VIP)
    tell(f"curl {workload.url()}", str(curl(workload.url())))
    status, said = dns.explain(workload.host)
    assert status == 0, said
    assert f"istio-system/{route['metadata']['name']}" in said

    # the gateway's rules hold for it now: what no rule meets is the gateway's 404
    other = curl(workload.url("/other"))
    assert (other.status, other.address) == (404, VIP)
    tell(f"curl {workload.url('/other')}, which no rule meets", f"{other.status} from {other.address}")

    scene.remove(route)
    dns.wait_for_address(workload.short, workload.cluster_ip)
    assert_own_address(dns, workload)
    assert dns.explain(workload.host)[0] == 1
    tell(f"dig and curl {workload.url()} after the VirtualService is gone", f"{workload.cluster_ip}; {curl(workload.url())}")


def test_two_versions_by_weight_and_by_header(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    workload = scene.workload(versions=("v1", "v2"), pods=True)
    subsets = {version: {"version": version} for version in ("v1", "v2")}
    by_header = {
        "match": [{"uri": {"exact": "/hello"}, "headers": {"x-version": {"exact": "v2"}}}],
        "route": [objects.destination(workload.host, subset="v2")],
    }
    by_weight = {
        "match": [{"uri": {"exact": "/hello"}}],
        "route": [objects.destination(workload.host, subset=name, weight=part) for name, part in (("v1", 80), ("v2", 20))],
    }
    scene.create(
        objects.gateway(),
        objects.destination_rule(workload.name, "default", workload.host, subsets),
        objects.virtual_service(workload.name, http=[by_header, by_weight]),
    )
    dns.wait_for_vip(workload.short)
    header = ("-H", "x-version: v2")
    asked = Counter(curl(workload.url(), *header).version for _ in range(20))
    assert asked == {"v2": 20}
    tell(f"curl -H 'x-version: v2' {workload.url()}, 20 times", f"{dict(asked)}")
    asked = Counter(curl(workload.url()).version for _ in range(200))
    # 200 throws at 20 %: outside of 18 to 66 once in some hundred thousand runs
    assert asked.keys() == {"v1", "v2"}
    assert 18 <= asked["v2"] <= 66
    tell(f"curl {workload.url()}, 200 times at 80/20", f"{dict(sorted(asked.items()))}")


# --- 2. an existing Service ----------------------------------------------------------------------------------------------


def bind_and_unbind(dns: ClusterSite, scene: Scene, workload: Workload, traffic: Traffic, api: str) -> None:
    """Onto the gateway and back, in the order that loses nothing: annotation, a TTL, then the VirtualService."""
    gateway, route = objects.gateway(version=api), route_to(workload, api)
    scene.create(gateway, route)
    dns.wait_for_vip(workload.short)
    for kind in (traffic.fresh, traffic.ttl):
        wait_for_more(traffic, kind, through=True)
    dns.world.kube.annotate("Service", workload.name, workload.namespace, bind="false")
    dns.wait_for_address(workload.short, workload.cluster_ip)
    for kind in (traffic.fresh, traffic.ttl):
        wait_for_more(traffic, kind, through=False)
    time.sleep(TTL)  # what a person does: nobody can ask all clients whether they have forgotten
    scene.remove(route, gateway)
    scene.world.mesh.wait_for_route(workload.host, there=False)
    dns.world.kube.annotate("Service", workload.name, workload.namespace, bind=None)


def wait_for_more(traffic: Traffic, kind: Kind, *, through: bool, requests: int = 10) -> None:
    """Until clients of this kind have had so many more answers, on this way."""
    before = traffic.seen(kind)[not through]
    until(lambda: traffic.seen(kind)[not through] >= before + requests or bool(kind.failures), 20, "requests go on")
    assert kind.failures == []


@pytest.mark.timeout(240)
def test_existing_service_with_traffic_flowing(dns: ClusterSite, scene: Scene, tell: Tell, measured: Say) -> None:
    """Bound and unbound ten times over while it is called: not one request fails."""
    workload = scene.workload()
    dns.wait_for_address(workload.short, workload.cluster_ip)
    with Traffic(workload.short, PORT).flowing() as traffic:
        wait_for_more(traffic, traffic.fresh, through=False)
        for number in range(ROUNDS):
            bind_and_unbind(dns, scene, workload, traffic, ("v1alpha3", "v1")[number % 2])
    assert traffic.fresh.failures == []
    assert traffic.ttl.failures == []
    for name, kind in (("looked up for each request", traffic.fresh), ("kept for its TTL", traffic.ttl)):
        tell(
            f"{kind.requests} requests, the name {name}, while bound and unbound {ROUNDS} times",
            f"{kind.through} through the gateway, {kind.requests - kind.through} past it, 0 failed",
        )
    kept = traffic.kept
    measured(
        f"one connection kept all the time, bound and unbound {ROUNDS} times: {kept.requests} requests, {kept.through} through "
        f"the gateway, {len(kept.failures)} failed{f' (the first: {kept.failures[0]})' if kept.failures else ''}"
    )


def test_old_connections_stay_where_they_are(dns: ClusterSite, scene: Scene, measured: Say) -> None:
    """DNS moves new connections only: one that was opened through the gateway meets its 404 when the route goes."""
    workload = scene.workload()
    gateway, route = objects.gateway(), route_to(workload)
    scene.create(gateway, route)
    dns.wait_for_vip(workload.short)
    connection = http.client.HTTPConnection(workload.short, PORT, timeout=5)
    try:

        def status() -> int:
            connection.request("GET", "/hello")
            reply = connection.getresponse()
            reply.read()
            return reply.status

        assert status() == 200
        dns.world.kube.annotate("Service", workload.name, workload.namespace, bind="false")
        dns.wait_for_address(workload.short, workload.cluster_ip)
        time.sleep(TTL)
        assert {status() for _ in range(10)} == {200}, "the gateway goes on serving it as long as the route is there"
        scene.remove(route)
        scene.world.mesh.wait_for_route(workload.host, there=False)
        until(lambda: status() == 404, 10, "the route is gone")
    finally:
        connection.close()
    measured("a connection opened through the gateway and kept: 200 after the annotation and a TTL, 404 once the route is gone")


@pytest.fixture
def hasty(dns: ClusterSite) -> Iterator[ClusterSite]:
    """`settle: 0s`: a name is bound in DNS before the gateway knows it."""
    dns.canal_dns.configure(binding={"settle": "0s"})
    reloads = "canal_dns_config_reloads_total"
    until(lambda: dns.canal_dns.series(reloads)[0] >= 1, 20, "the configuration is loaded")
    try:
        yield dns
    finally:
        before = dns.canal_dns.series(reloads)[0]
        dns.canal_dns.configure(binding={})
        until(lambda: dns.canal_dns.series(reloads)[0] > before, 20, "the configuration is loaded")


def test_what_settle_is_for(hasty: ClusterSite, scene: Scene, measured: Say) -> None:
    """The same without it: how many requests the gateway answers 404. No bound: istiod may be quick."""
    workload = scene.workload()
    hasty.wait_for_address(workload.short, workload.cluster_ip)
    failed = 0
    for _ in range(3):
        with Traffic(workload.short, PORT).flowing() as traffic:
            wait_for_more(traffic, traffic.fresh, through=False)
            gateway, route = objects.gateway(), route_to(workload)
            scene.create(gateway, route)
            hasty.wait_for_vip(workload.short)
            until(lambda: traffic.seen(traffic.fresh)[0] >= 10, 20, "requests arrive through the gateway")
        failed += len(traffic.fresh.failures)
        scene.remove(route, gateway)
        hasty.wait_for_address(workload.short, workload.cluster_ip)
        scene.world.mesh.wait_for_route(workload.host, there=False)
    measured(f"`settle: 0s`, a Service bound three times while it is called: {failed} requests failed (with the default: none)")


# --- 3. a replacement Service --------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_replacement_service_under_a_new_name(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """The old one stays as it is; callers move to the new name; then the old one is removed."""
    old = scene.workload()
    new = scene.named_workload(f"{old.name}-on-canal")
    scene.create(objects.gateway(), route_to(new))
    dns.wait_for_vip(new.short)
    assert_through_gateway(dns, new)
    assert_own_address(dns, old)
    tell(f"curl {new.url()}, the new name", str(curl(new.url())))
    tell(f"curl {old.url()}, the old name", str(curl(old.url())))
    old.remove()
    # CoreDNS's own cache (`cache 30` in its Corefile) still knows it
    until(lambda: dns.ask(old.host, "A").rcode == "NXDOMAIN", 45, "the old name is gone", pause=0.2)
    assert_through_gateway(dns, new)
    tell(f"dig {old.host} after the old Service is removed", "NXDOMAIN")


def test_replacement_service_under_the_old_name(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """Callers keep the name; a VirtualService with hosts [old name] sends its requests to the new Service."""
    old = scene.workload()
    new = scene.named_workload(f"{old.name}-on-canal")
    dns.wait_for_address(old.short, old.cluster_ip)
    assert curl(old.url()).service == old.backend
    scene.create(objects.gateway(), route_to(new, hosts=[old.host]))
    dns.wait_for_vip(old.short)
    reply = curl(old.url(host=old.host))
    assert (reply.status, reply.address, reply.service) == (200, VIP, new.backend), reply
    # the new name is no host of the gateway: requests for it would get nothing there, so it keeps its own address
    assert_own_address(dns, new)
    tell(f"curl {old.url(host=old.host)}, sent to the new Service by hosts [{old.host}]", str(reply))
    tell(f"dig {new.host}, which is destination only", new.cluster_ip)
    # `hosts` are what callers write: short names are not among them, and canal-dns says so
    [bound] = [one for one in dns.table()["bound"] if one["name"] == old.host]
    warning = next(one for one in bound["warnings"] if f"{old.short}" in one)
    assert (curl(old.url()).status, curl(old.url()).address) == (404, VIP)
    tell(f"curl {old.url()}, a short name that hosts do not list", f"404; warned: {warning}")
    scene.apply(route_to(new, hosts=[old.host, old.short]))
    until(lambda: curl(old.url()).service == new.backend, 20, f"{old.short} is served")
    assert curl(old.url(host=old.host)).service == new.backend
    tell(f"curl {old.url()} with hosts [{old.host}, {old.short}]", str(curl(old.url())))
    # the bare name cannot be listed: istiod reads it as a Service of the VirtualService's own namespace
    assert curl(old.url(host=old.name)).status == 404


def test_two_routes_with_one_match_are_told_apart(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """Hosts `*` and the same match twice: the older one gets the requests of both names, so the younger one is skipped."""
    first, second = scene.workload(), scene.workload()
    scene.create(objects.gateway(), route_to(first))
    time.sleep(1.1)  # creation times have whole seconds, and by name the younger could come first
    scene.create(route_to(second))
    dns.wait_for_vip(first.short)
    until(lambda: "Shadowed" in dns.explain(second.host)[1], 20, lambda: dns.explain(second.host)[1])
    assert_through_gateway(dns, first)
    assert_own_address(dns, second)
    # what would have happened: the gateway gives the younger one's requests to the older one's Service
    stolen = curl(second.url(), "--resolve", f"{second.short}:{PORT}:{VIP}")
    assert stolen.service == first.backend
    tell(f"canal-dns explain {second.host}", verdict(dns, second.host))
    tell(f"curl {second.url()}", str(curl(second.url())))


# --- 4. looking for the fault --------------------------------------------------------------------------------------------


def verdict(dns: ClusterSite, name: str) -> str:
    """The sentence that `explain` ends with."""
    lines = dns.explain(name)[1].splitlines()
    return next(line.strip() for line in reversed(lines) if "bound:" in line)


def selector_meets_nothing(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    gateway["spec"]["selector"] = {"app": "another-gateway"}


def another_port_on_the_gateway(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    gateway["spec"]["servers"][0]["port"]["number"] = 9000


def port_closed_on_the_gateway_service(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    gateway["spec"]["servers"][0]["port"]["number"] = 5001


def route_bound_to_another_gateway(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    route["spec"]["gateways"] = ["default/canal"]


def route_not_exported(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    route["metadata"]["namespace"], route["spec"]["gateways"] = "default", ["istio-system/canal"]
    route["spec"]["exportTo"] = ["."]


def hosts_do_not_meet(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    gateway["spec"]["servers"][0]["hosts"] = ["*.example.org"]


def destination_is_misspelt(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    route["spec"]["hosts"] = [route["spec"]["http"][0]["route"][0]["destination"]["host"]]
    route["spec"]["http"][0]["route"][0]["destination"]["host"] = "hallowelt.default.svc.cluster.local"


def destination_has_no_such_port(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    route["spec"]["http"][0]["route"][0]["destination"]["port"] = {"number": 81}


def destination_has_no_such_subset(gateway: objects.Object, route: objects.Object, service: objects.Object) -> None:
    route["spec"]["http"][0]["route"][0]["destination"]["subset"] = "v9"


FAULTS = {
    selector_meets_nothing: "NotAttached",
    another_port_on_the_gateway: "PortNotServed",
    port_closed_on_the_gateway_service: "GatewayNotProgrammed",
    route_bound_to_another_gateway: "GatewayNotFound",
    route_not_exported: "NotExported",
    hosts_do_not_meet: "HostNotServed",
    destination_is_misspelt: "TargetNotFound",
    destination_has_no_such_port: "TargetNotFound",
    destination_has_no_such_subset: "TargetNotFound",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_explain_names_the_fault(dns: ClusterSite, scene: Scene, tell: Tell, fault: Callable[..., None]) -> None:
    workload = scene.workload()
    gateway, route = objects.gateway(), route_to(workload)
    fault(gateway, route, workload.made[0])
    scene.create(gateway, route)
    until(lambda: f" {FAULTS[fault]}:" in verdict(dns, workload.host), 20, lambda: dns.explain(workload.host)[1])
    status, said = dns.explain(workload.host)
    assert status == 1, said
    [skipped] = [one for one in dns.table()["skipped"] if one["name"] == workload.host]
    assert skipped["reason"] == FAULTS[fault]
    assert_own_address(dns, workload)
    tell(f"canal-dns explain {workload.host}", verdict(dns, workload.host))


def test_explain_when_no_gateway_pod_is_ready(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """After `gatewayUnreadyAfter`; with ready pods again the name is bound again."""
    workload = scene.workload()
    scene.create(objects.gateway(), route_to(workload))
    dns.wait_for_vip(workload.short)
    kube = dns.world.kube
    try:
        for thing in mesh.gateway_objects(ready=False)[1:2]:
            kube.apply(thing)
        dns.wait_for_address(workload.short, workload.cluster_ip)
        assert "GatewayNotReady" in verdict(dns, workload.host)
        tell(f"canal-dns explain {workload.host}, gateway without ready pods", verdict(dns, workload.host))
        assert_own_address(dns, workload)
    finally:
        for thing in mesh.gateway_objects()[1:2]:
            kube.apply(thing)
    dns.wait_for_vip(workload.short)
    tell(f"dig {workload.host}, a gateway pod ready again", VIP)


def test_who_says_what(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """A bound name, asked of each: the chain, canal-dns, and CoreDNS past canal-dns."""
    workload = scene.workload()
    scene.create(objects.gateway(), route_to(workload))
    dns.wait_for_vip(workload.short)
    assert dns.address_of_canal_dns(workload.short) == {VIP}
    assert dns.address_alone(workload.short) == {workload.cluster_ip}
    tell(f"dig {workload.host} @10.96.0.10, @10.96.0.53, and CoreDNS alone", f"{VIP}, {VIP}, {workload.cluster_ip}")
    [bound] = [one for one in dns.table()["bound"] if one["name"] == workload.host]
    assert bound["vips"] == [VIP]
    assert bound["gateway"] == "istio-system/internalgateway"
