"""Internal gateways as clusters have them: without ready pods, moved to another VIP, two of them, with several Gateways.

On the real cluster. Names, bound and not, are asked for all the time; what is asked of CoreDNS (Layout B) or of canal-dns in
front (Layout F) has the way that a pod's question takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e import cluster, mesh, objects
from tests.e2e.ask import ask
from tests.e2e.conftest import Tell
from tests.e2e.layouts import B, F
from tests.e2e.processes import until
from tests.e2e.scene import Scene
from tests.e2e.sites import GATEWAY, ClusterSite
from tests.e2e.stream import Stream
from tests.e2e.world import Workload, World, curl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

VIP = mesh.VIP
OTHER_VIP = "10.96.9.10"
UNREADY_AFTER = 1.0

Sites = Callable[..., ClusterSite]


def settings(**binding: Any) -> dict[str, Any]:
    return {"binding": {"settle": "200ms", "gatewayUnreadyAfter": f"{UNREADY_AFTER}s", **binding}}


@pytest.fixture
def gateway_again(world: World) -> Iterator[None]:
    """The internal gateway is as it was, after the test."""
    yield
    restore_gateway(world)


def restore_gateway(world: World) -> None:
    service, *others = mesh.gateway_objects()
    present = [one for one in world.kube.list("Service", mesh.NAMESPACE) if one["metadata"]["name"] == mesh.NAME]
    if not present or present[0]["spec"]["clusterIP"] != VIP:
        world.kube.delete("Service", mesh.NAME, mesh.NAMESPACE, missing_ok=True)
    for thing in (service, *others):
        world.kube.apply(thing)
        if "status" in thing:
            world.kube.status(thing)


@pytest.fixture
def site(make_cluster_site: Sites) -> Iterator[Sites]:
    """As `make_cluster_site`, and started; ended with the test."""
    made = []

    def make(*arguments: Any, **rest: Any) -> ClusterSite:
        made.append(make_cluster_site(*arguments, **rest))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.end()


def route_to(workload: Workload, *gateways: str) -> objects.Object:
    rule = {"route": [objects.destination(workload.host)]}
    return objects.virtual_service(workload.name, hosts=[workload.host], http=[rule], gateways=gateways or ("canal",))


def streaming(*workloads: Workload) -> Stream:
    stream = Stream({"CoreDNS": cluster.KUBE_DNS[0], "canal-dns": cluster.CANAL_DNS[0]})
    for one in workloads:
        stream.allow(one.host, one.cluster_ip)
    return stream


def set_ready(world: World, ready: bool) -> None:
    """What the gateway's readiness probe, kubelet and endpoint controller would do."""
    for thing in mesh.gateway_objects(ready=ready):
        if thing["kind"] == "EndpointSlice":
            world.kube.apply(thing)
        if thing["kind"] == "Pod":
            world.kube.status(thing)


# --- readiness ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gateway_again")
def test_no_ready_pods_then_forward_and_back(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    dns = site(B, settings=settings())
    bound, plain = scene.workload("bound"), scene.workload("plain")
    stream = streaming(bound, plain)
    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)

        # not for a moment's sake
        set_ready(world, False)
        set_ready(world, True)
        stream.stays()

        set_ready(world, False)
        down = stream.becomes(bound.host, bound.cluster_ip)
        assert down > UNREADY_AFTER * 0.9
        status, why = dns.explain(bound.host)
        assert status == 1
        assert "GatewayNotReady" in why
        reply = curl(bound.url(host=bound.host))
        assert (reply.status, reply.address) == (200, bound.cluster_ip)
        set_ready(world, True)
        up = stream.becomes(bound.host, VIP)
        assert up > UNREADY_AFTER * 0.9
    tell(f"a bound name whose gateway has no ready pods, {down:.1f} s later (gatewayUnready: forward)", bound.cluster_ip)
    tell(f"the same {up:.1f} s after a pod is ready again", f"{VIP}; {stream}")


@pytest.mark.usefixtures("gateway_again")
def test_no_ready_pods_and_the_vip_kept(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    dns = site(B, settings=settings(gatewayUnready="keep"))
    bound = scene.workload("bound")
    stream = streaming(bound)
    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)
        set_ready(world, False)
        until(
            lambda: not dns.canal_dns.bindings()["gateways"][0]["ready"], 10, lambda: str(dns.canal_dns.bindings()["gateways"])
        )
        shown = dns.canal_dns.bindings()["gateways"]
        stream.stays(100)
        set_ready(world, True)
        stream.stays()
    tell("a bound name whose gateway has no ready pods (gatewayUnready: keep)", f"{VIP}; {stream}; /bindings: {shown}")


# --- the VIP -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gateway_again")
def test_the_vip_changes(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    dns = site(B, settings=settings())
    bound, plain = scene.workload("bound"), scene.workload("plain")
    stream = streaming(bound, plain)
    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)
        service = mesh.gateway_objects(OTHER_VIP)[0]
        stream.allow(bound.host, VIP, bound.cluster_ip, OTHER_VIP)
        world.kube.delete("Service", mesh.NAME, mesh.NAMESPACE)
        gone = stream.becomes(bound.host, bound.cluster_ip)
        stream.allow(bound.host, bound.cluster_ip, OTHER_VIP)
        world.kube.create(service)
        moved = stream.becomes(bound.host, OTHER_VIP)
        until(lambda: curl(bound.url(host=bound.host)).status == 200, 20, lambda: str(curl(bound.url(host=bound.host))))
        reply = curl(bound.url(host=bound.host))
        assert (reply.status, reply.address, reply.through_gateway) == (200, OTHER_VIP, True), reply
    tell(f"a bound name {gone * 1000:.0f} ms after the gateway's Service is deleted", bound.cluster_ip)
    tell(
        f"the same {moved * 1000:.0f} ms after it is there with another ClusterIP (settle 200 ms)",
        f"{OTHER_VIP}; {stream}; {reply}",
    )
    assert dns.canal_dns.ready()[0] == 200


@pytest.mark.usefixtures("gateway_again")
def test_the_vip_gets_a_second_family_in_place(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    """An address that comes or goes while the Service stays: the very next table has it, without settling."""
    dns = site(B, settings=settings())
    bound = scene.workload("bound")
    stream = streaming(bound)
    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)
        assert dns.address(bound.short, "AAAA") == set()
        dual = {"spec": {"ipFamilyPolicy": "PreferDualStack"}}
        changed = world.kube.patch("Service", mesh.NAME, mesh.NAMESPACE, dual)
        v4, v6 = changed["spec"]["clusterIPs"]
        assert v4 == VIP
        until(lambda: dns.address(bound.short, "AAAA") == {v6}, 10, lambda: str(dns.address(bound.short, "AAAA")))
        stream.stays()
        single = {"spec": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": [VIP]}}
        world.kube.patch("Service", mesh.NAME, mesh.NAMESPACE, single)
        until(lambda: dns.address(bound.short, "AAAA") == set(), 10, lambda: str(dns.address(bound.short, "AAAA")))
        stream.stays()
    tell("AAAA of a bound name after the gateway's Service became dual-stack", f"{v6}, and A stayed {VIP}: {stream}")


# --- several -----------------------------------------------------------------------------------------------------------


def test_two_gateways_attached(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    """The original panicked. Both are merged; each name goes where its own Gateway is, and one may leave."""
    dns = site(B, settings=settings())
    first, second, both = (scene.workload(stem) for stem in ("first", "second", "both"))
    stream = streaming(first, second, both)
    stream.may_become(VIP, first.host, second.host, both.host)
    elder, younger = objects.gateway(), objects.gateway("canal-more", selector={"istio": mesh.NAME})
    with stream.flowing():
        scene.create(elder, younger, route_to(first), route_to(second, "canal-more"), route_to(both, "canal", "canal-more"))
        for one in (first, second, both):
            stream.becomes(one.host, VIP)
            world.mesh.wait_for_route(one.host)
            until(
                lambda one=one: curl(one.url(host=one.host)).through_gateway,
                10,
                lambda one=one: str(curl(one.url(host=one.host))),
            )
        tell(
            "three names, two Gateway objects on one gateway: a VirtualService on each, one on both", f"{VIP} for all; {stream}"
        )
        stream.may_become(second.cluster_ip, second.host)
        scene.remove(younger)
        stream.becomes(second.host, second.cluster_ip)
        stream.stays()
        assert "Gateway" in dns.explain(second.host)[1]
    tell("the same after the younger Gateway is gone", f"{second.cluster_ip} for the one that was on it alone; {stream}")


def test_two_internal_gateways(site: Sites, world: World, scene: Scene, tell: Tell) -> None:
    """Each with its own Service and pods; a name that both serve belongs to the older VirtualService."""
    name, labels = world.fresh("second-gateway"), {"istio": "second", "app": "second-gateway"}
    pod = objects.pod(f"{name}-0", mesh.NAMESPACE, "10.244.9.10", labels)
    scene.create(
        objects.service(name, mesh.NAMESPACE, ports=mesh.PORTS, selector=labels, clusterIP=OTHER_VIP),
        objects.endpoint_slice(name, mesh.NAMESPACE, ["10.244.9.10"], ports=mesh.PORTS, pods=[f"{name}-0"]),
        pod,
        objects.gateway(),
        objects.gateway("canal-second", selector={"app": "second-gateway"}),
    )
    world.kube.status(pod)
    gateways = [{"service": GATEWAY}, {"service": f"{mesh.NAMESPACE}/{name}"}]
    dns = site(B, settings={**settings(), "gateways": gateways})
    one, other, shared = (scene.workload(stem) for stem in ("one", "other", "shared"))
    stream = streaming(one, other, shared)
    with stream.flowing():
        stream.may_become(VIP, one.host, shared.host)
        stream.may_become(OTHER_VIP, other.host)
        younger = route_to(shared, "canal-second")
        younger["metadata"]["name"] += "-younger"
        scene.create(route_to(one), route_to(other, "canal-second"), route_to(shared))
        # creationTimestamps count whole seconds; of equal ones the name would decide, and "-younger" comes later too
        scene.create(younger)
        stream.becomes(one.host, VIP)
        stream.becomes(other.host, OTHER_VIP)
        stream.becomes(shared.host, VIP)
        [conflict] = [one for one in dns.canal_dns.bindings()["problems"] if one["reason"] == "Conflicted"]
        assert conflict["object"] == f"VirtualService {mesh.NAMESPACE}/{shared.name}-younger"
        tell("names of two internal gateways, and one of both", f"{VIP}, {OTHER_VIP}, and {VIP}; {conflict['message']}")
        stream.may_become(OTHER_VIP, shared.host)
        scene.remove(route_to(shared))
        stream.becomes(shared.host, OTHER_VIP)
        # one gateway's pods go, the other's names stay
        for thing in (other, shared):
            stream.may_become(thing.cluster_ip, thing.host)
        scene.apply(
            objects.endpoint_slice(name, mesh.NAMESPACE, ["10.244.9.10"], ports=mesh.PORTS, ready=False, pods=[f"{name}-0"])
        )
        for thing in (other, shared):
            stream.becomes(thing.host, thing.cluster_ip)
        stream.stays()
    tell(
        "the same after the second one has no ready pods", f"{VIP} for the first one's, own addresses for the others; {stream}"
    )


# --- gateway pods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [B, F], ids=["asked directly", "in front"])
def test_gateway_pods_get_the_real_answer(site: Sites, world: World, scene: Scene, tell: Tell, layout: Any) -> None:
    """Wherever their address is seen, that is: in F by everybody, in B by canal-dns when it is asked past CoreDNS."""
    # CoreDNS and nothing else: a peer is never exempt, since others stand behind it
    peers = {"access": {"peers": [f"{cluster.CLIENT[0]}/32"]}} if layout is B else {}
    site(layout, settings={**settings(), **peers})
    server = layout.canal_dns[0]
    numbers = itertools.count(60)
    bound = scene.workload("bound")
    scene.create(objects.gateway(), route_to(bound))

    def asks(address: str, *, tcp: bool = False) -> set[str]:
        return ask(server, bound.host, "A", client=address, tcp=tcp).addresses()

    def becomes(address: str, answer: str) -> None:
        until(lambda: asks(address) == {answer}, 10, lambda: f"{address} gets {answer}: {asks(address)}")
        until(lambda: asks(address, tcp=True) == {answer}, 10, lambda: f"{address} gets {answer}: {asks(address, tcp=True)}")

    becomes(cluster.CLIENT[0], VIP)
    becomes(mesh.POD_IP, bound.cluster_ip)
    tell(f"a bound name, from the gateway pod's {mesh.POD_IP} and from {cluster.CLIENT[0]}", f"{bound.cluster_ip}, {VIP}")

    # one pod more
    address = f"10.244.9.{next(numbers)}"
    more = objects.endpoint_slice(mesh.NAME, mesh.NAMESPACE, [address], ports=mesh.PORTS, suffix="more", pods=["more"])
    becomes(address, VIP)
    scene.create(more)
    becomes(address, bound.cluster_ip)
    # not ready yet, or about to end: its look-ups must not come back to the gateway either
    scene.apply(
        objects.endpoint_slice(
            mesh.NAME, mesh.NAMESPACE, [address], ports=mesh.PORTS, ready=False, suffix="more", pods=["more"]
        )
    )
    for _ in range(20):
        assert asks(address) == {bound.cluster_ip}
    # it goes, and its address is another pod's
    scene.remove(more)
    stranger = objects.pod(world.fresh("stranger"), "default", address, {"app": "stranger"})
    scene.create(stranger)
    world.kube.status(stranger)
    becomes(address, VIP)
    becomes(mesh.POD_IP, bound.cluster_ip)
    tell(
        f"the same from {address}: before it is a gateway pod, while, and when another pod has the address",
        f"{VIP}, {bound.cluster_ip}, {VIP}",
    )
