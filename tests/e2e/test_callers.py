"""What a caller without a sidecar gets once its target is on the gateway: retries, faults, time limits, routing by header.

None of it is the caller's doing: curl asks for the same URL as before, and the VirtualService decides. Layout B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e import mesh, objects
from tests.e2e.conftest import Tell
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.world import Reply, Workload, curl

pytestmark = pytest.mark.e2e

VIP = mesh.VIP


@pytest.fixture(scope="module")
def dns(make_cluster_site: Callable[..., ClusterSite]) -> ClusterSite:
    site = make_cluster_site(B, settings={"binding": {"settle": "500ms"}})
    site.start()
    return site


def route(workload: Workload, *rules: objects.Object) -> objects.Object:
    """Each rule with a route to the workload, unless it has one."""
    whole = [{"route": [objects.destination(workload.host)]} | rule for rule in rules]
    return objects.virtual_service(workload.name, http=whole)


def bound(dns: ClusterSite, scene: Scene, *rules: objects.Object, **rest: Any) -> Workload:
    """A workload on the gateway with these rules, in force."""
    workload = scene.workload(**rest)
    scene.create(objects.gateway(), route(workload, *rules))
    dns.wait_for_vip(workload.short)
    until(lambda: curl(workload.url()).address == VIP, 20, "libc has the VIP")
    return workload


def ask(workload: Workload, *arguments: str) -> Reply:
    reply = curl(workload.url(), *arguments)
    assert reply.address == VIP, reply
    return reply


def test_retries(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """Two failures of the Service that the caller never sees; past the gateway it sees the first one."""
    # without hosts to avoid: there is only one
    retries = {"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx", "backoff": "1ms"}
    workload = bound(dns, scene, {"retries": retries})
    dns.world.backends.fail(workload.backend, first=2)
    before = workload.requests()
    reply = ask(workload)
    assert (reply.status, workload.requests() - before) == (200, 3), reply
    tell(f"curl {workload.url()}, which fails twice, with retries", f"{reply}, after 3 attempts")
    dns.world.backends.fail(workload.backend, first=1)
    past = curl(workload.url(), "--resolve", f"{workload.short}:{workload.port}:{workload.cluster_ip}")
    assert (past.status, past.through_gateway) == (503, False)
    tell("the same past the gateway, one failure", str(past))


def test_fault_injection_abort(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    workload = bound(
        dns, scene,
        {"match": [{"headers": {"x-chaos": {"exact": "yes"}}}],
         "fault": {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}},
        {},
    )  # fmt: skip
    assert ask(workload).status == 200
    before = workload.requests()
    reply = ask(workload, "-H", "x-chaos: yes")
    assert (reply.status, reply.body, workload.requests() - before) == (418, "fault filter abort", 0), reply
    tell(f"curl -H 'x-chaos: yes' {workload.url()} with an abort of 418", str(reply))


def test_fault_injection_delay(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    workload = bound(
        dns, scene,
        {"match": [{"headers": {"x-chaos": {"exact": "yes"}}}],
         "fault": {"delay": {"fixedDelay": "1.5s", "percentage": {"value": 100}}}},
        {},
    )  # fmt: skip
    quick, slow = ask(workload), ask(workload, "-H", "x-chaos: yes")
    assert (quick.status, slow.status) == (200, 200)
    assert slow.seconds >= 1.5
    assert slow.seconds > quick.seconds
    tell(f"curl -H 'x-chaos: yes' {workload.url()} with a delay of 1.5 s", f"{slow.status} after {slow.seconds:.2f} s")


def test_time_limit(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    workload = bound(dns, scene, {"timeout": "0.5s"})
    dns.world.backends.slow(workload.backend, 5)
    try:
        reply = ask(workload)
    finally:
        dns.world.backends.slow(workload.backend, 0)
    assert reply.status == 504
    tell(f"curl {workload.url()}, which needs 5 s, with a timeout of 0.5 s", f"{reply} after {reply.seconds:.2f} s")


def test_routing_by_header_prefix_and_weight(dns: ClusterSite, scene: Scene, tell: Tell) -> None:
    """To another Service by header and by path; the caller's name for it stays the same."""
    other = scene.workload("canary")
    canary = {"route": [objects.destination(other.host)]}
    workload = bound(
        dns, scene,
        {"match": [{"headers": {"cookie": {"regex": ".*user=tester.*"}}}], **canary},
        {"match": [{"uri": {"prefix": "/beta/"}}], "rewrite": {"uri": "/"}, **canary},
        {"headers": {"request": {"set": {"x-by": "gateway"}}}},
    )  # fmt: skip
    assert ask(workload).service == workload.backend
    assert ask(workload).said["headers"]["x-by"] == "gateway"
    by_cookie = ask(workload, "-H", "cookie: a=b; user=tester")
    assert by_cookie.service == other.backend
    by_path = curl(workload.url("/beta/hello"))
    assert (by_path.service, by_path.said["path"]) == (other.backend, "/hello")
    tell(f"curl -H 'cookie: user=tester' {workload.url()}", str(by_cookie))
    tell(f"curl {workload.url('/beta/hello')}, rewritten", f"{by_path}, asked for {by_path.said['path']}")
