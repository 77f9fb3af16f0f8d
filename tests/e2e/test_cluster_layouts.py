"""Layouts A, B and F on the real cluster: CoreDNS answers from the API server by its `kubernetes` plugin.

The same yardstick as in `test_layouts`: bound names have the VIP, everything else is what CoreDNS says alone, octet for
octet, over UDP and TCP, IPv4 and IPv6. And requests: through the gateway with canal-dns, past it without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dns.reversename
import pytest

from tests.e2e import mesh, objects
from tests.e2e.ask import records
from tests.e2e.cluster import fqdn
from tests.e2e.conftest import Tell
from tests.e2e.layouts import A, B, F, Layout
from tests.e2e.processes import until
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.test_layouts import Question, assert_unchanged, each_family, each_transport
from tests.e2e.world import Workload, World, curl

pytestmark = pytest.mark.e2e

VIP = mesh.VIP


@dataclass(frozen=True, slots=True)
class Stage:
    """What stands in the cluster, whichever layout asks about it."""

    bound: Workload
    plain: Workload
    headless: str
    alias_of_bound: str
    alias_of_plain: str
    alias_outside: str
    both_families: str
    world: World


@pytest.fixture(scope="module")
def stage(world: World) -> Iterator[Stage]:
    made = Scene(world)
    bound, plain = made.workload("cart"), made.workload("stock")
    names = {key: world.fresh(key) for key in ("db", "alias", "alias-plain", "outside", "both")}
    pods = [world.pod_ip(), world.pod_ip()]
    endpoints = objects.endpoint_slice(names["db"], "default", pods)
    for number, endpoint in enumerate(endpoints["endpoints"]):
        endpoint["hostname"] = f"pod-{number}"
    targets = {"alias": bound.host, "alias-plain": plain.host, "outside": "www.example.org"}
    made.create(
        objects.gateway(),
        objects.virtual_service(bound.name, http=[{"route": [objects.destination(bound.host)]}]),
        objects.service(names["db"], clusterIP="None"),
        endpoints,
        objects.service(names["both"], ipFamilyPolicy="RequireDualStack"),
        *(
            objects.made("v1", "Service", names[key], "default", spec={"type": "ExternalName", "externalName": target})
            for key, target in targets.items()
        ),
    )
    full = {key: fqdn(f"{name}.default") for key, name in names.items()}
    try:
        yield Stage(bound, plain, full["db"], full["alias"], full["alias-plain"], full["outside"], full["both"], world)
    finally:
        made.clear()


@pytest.fixture(scope="module", params=[A, B, F], ids=lambda layout: layout.name)
def real(request: pytest.FixtureRequest, make_cluster_site: Callable[..., ClusterSite], stage: Stage) -> Iterator[ClusterSite]:
    layout: Layout = request.param
    site = make_cluster_site(layout)
    try:
        site.start()
        site.wait_for_vip(stage.bound.short)
        until(lambda: site.ask(stage.both_families, "AAAA").message.answer, 20, "CoreDNS knows them all")
        yield site
    finally:
        site.end()


@each_family
@each_transport
def test_bound_name_has_the_vip(real: ClusterSite, stage: Stage, tcp: bool, v6: bool, tell: Tell) -> None:
    for name in (stage.bound.host, stage.bound.host.upper(), stage.alias_of_bound):
        reply = real.ask(name, "A", tcp=tcp, v6=v6)
        assert (reply.rcode, reply.addresses()) == ("NOERROR", {VIP}), name
        nodata = real.ask(name, "AAAA", tcp=tcp, v6=v6)
        assert (nodata.rcode, nodata.addresses()) == ("NOERROR", set()), name
    if not tcp and not v6:
        alone = real.ask_alone(stage.bound.host, "A").addresses()
        assert alone == {stage.bound.cluster_ip}
        tell(f"dig {stage.bound.host}; CoreDNS alone", f"{VIP}; {alone.pop()}")


@each_family
@each_transport
def test_srv_of_a_bound_name_does_not_leak_its_own_address(real: ClusterSite, stage: Stage, tcp: bool, v6: bool) -> None:
    service = f"_http._tcp.{stage.bound.host}"
    alone = real.ask_alone(service, "SRV", tcp=tcp, v6=v6)
    assert {record[3] for record in records(alone.message.additional)} == {stage.bound.cluster_ip}
    reply = real.ask(service, "SRV", tcp=tcp, v6=v6)
    assert [record[3] for record in records(reply.message.answer)] == [record[3] for record in records(alone.message.answer)]
    assert {record[3] for record in records(reply.message.additional)} <= {VIP}


@each_family
@each_transport
def test_everything_else_is_what_coredns_says(real: ClusterSite, stage: Stage, tcp: bool, v6: bool, tell: Tell) -> None:
    asked = [
        Question(stage.plain.host, "A"),
        Question(stage.plain.host, "AAAA"),  # NODATA
        Question(stage.both_families, "A"),
        Question(stage.both_families, "AAAA"),
        Question(stage.headless, "A"),
        Question(f"pod-0.{stage.headless}", "A"),
        Question(f"_http._tcp.{stage.headless}", "SRV"),
        Question(f"_http._tcp.{stage.plain.host}", "SRV"),
        Question(stage.alias_of_plain, "A"),
        Question(stage.alias_outside, "A"),
        Question(stage.bound.host, "TXT"),
        Question(fqdn("missing.default"), "A"),
        Question("www.example.org." + fqdn("default"), "A"),  # what a search list makes of an external name
        Question("10-244-0-7.default.pod.cluster.local", "A"),
        Question("default.svc.cluster.local", "A"),  # empty non-terminal
        Question("cluster.local", "SOA"),
        Question("kubernetes.default.svc.cluster.local", "A"),
        Question("dns-version.cluster.local", "TXT"),
        Question(dns.reversename.from_address(stage.bound.cluster_ip).to_text(omit_final_dot=True), "PTR"),
        Question(dns.reversename.from_address(stage.plain.cluster_ip).to_text(omit_final_dot=True), "PTR"),
        Question("www.example.org", "A"),
        Question("nowhere.example.org", "A"),
    ]
    found = {question: assert_unchanged(real, question, tcp, v6).rcode for question in asked}
    assert {*found.values()} == {"NOERROR", "NXDOMAIN"}
    if not tcp and not v6:
        tell(f"{len(asked)} other names and types, each way", "CoreDNS's own answers, octet for octet")


def test_requests_take_the_way_that_dns_says(real: ClusterSite, stage: Stage, tell: Tell) -> None:
    """Through the gateway; and when canal-dns stops, past it in A and B, while F has no DNS at all."""
    site = real
    reply = curl(stage.bound.url())
    assert (reply.status, reply.address, reply.through_gateway) == (200, VIP, True), reply
    other = curl(stage.plain.url())
    assert (other.status, other.address, other.through_gateway) == (200, stage.plain.cluster_ip, False), other
    tell(f"curl {stage.bound.url()} and {stage.plain.url()}", f"{reply}; {other}")
    assert site.canal_dns.stop() == 0
    try:
        without = curl(stage.bound.url())
        if site.layout.fallback:
            assert (without.status, without.address, without.through_gateway) == (200, stage.bound.cluster_ip, False), without
        else:
            assert without.status == 0
            assert "resolve host" in without.problem
        tell(f"curl {stage.bound.url()} while canal-dns is stopped", str(without))
    finally:
        site.start()
    site.wait_for_vip(stage.bound.short)
    assert curl(stage.bound.url()).through_gateway
