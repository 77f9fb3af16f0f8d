"""The rights and the token that canal-dns ships with, on the real API server: enough, no more, and what it is like without.

canal-dns runs as in a pod: its own ServiceAccount, the rights of manifests/10-rbac.yaml, token and CA as files. A kind that
may not be read is asked for every 30 to 45 seconds, so all that wait for a right to come back wait together.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.e2e import cluster, mesh, objects
from tests.e2e.account import NAMESPACE, Account, Right, path, rights, shipped
from tests.e2e.ask import ask
from tests.e2e.conftest import Tell
from tests.e2e.instances import Instance
from tests.e2e.kube import Kube
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.relay import RELAY_PORT, Relay
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.stream import MISSING, Stream
from tests.e2e.world import Workload, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

VIP = mesh.VIP
RETRY = 60.0
"""Every 30 to 45 s, and what a busy machine takes."""

KIND = {
    "services": "Service",
    "namespaces": "Namespace",
    "gateways": "Gateway",
    "virtualservices": "VirtualService",
    "destinationrules": "DestinationRule",
    "endpointslices": "EndpointSlice",
    "pods": "Pod",
}
REQUIRED = "services", "gateways", "virtualservices"
RIGHTS = sorted(rights(shipped()), key=lambda right: [*KIND].index(right[2]))


@pytest.fixture(scope="module")
def account(world: World) -> Iterator[Account]:
    made = Account(world.control).create()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    made.open()
    yield made
    made.close()


@pytest.fixture(scope="module")
def dns(make_cluster_site: Callable[..., ClusterSite], account: Account) -> ClusterSite:
    """Layout B; canal-dns has what a pod of the shipped account has. A relay, since a running watch is not denied any more."""
    site = make_cluster_site(B, settings={"source": {"cluster": {}}, "binding": {"settle": "200ms"}})
    site.canal_dns.variables = account.mount(account.token()) | {"KUBERNETES_SERVICE_PORT": str(RELAY_PORT)}
    return site


@pytest.fixture
def running(dns: ClusterSite, relay: Relay) -> Iterator[ClusterSite]:
    dns.start()
    yield dns


def route_to(workload: Workload, subset: str = "", namespace: str = mesh.NAMESPACE) -> objects.Object:
    rule = {"route": [objects.destination(workload.host, subset=subset)]}
    gateway = f"{mesh.NAMESPACE}/canal"
    return objects.virtual_service(workload.name, namespace, hosts=[workload.host], http=[rule], gateways=[gateway])


def streaming() -> Stream:
    return Stream({"CoreDNS": cluster.KUBE_DNS[0], "canal-dns": cluster.CANAL_DNS[0]})


# --- enough, and nothing more ------------------------------------------------------------------------------------------


def held(kube: Kube, namespace: str) -> set[tuple[str, str, str]]:
    """What the holder of a token may do in a namespace: (verb, group, resource or path), as the API server says it."""
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    status = kube.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)["status"]
    assert not status["incomplete"]
    found = set()
    for rule in status["resourceRules"]:
        assert not rule.get("resourceNames"), rule
        found |= {(v, g, r) for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]}
    for rule in status["nonResourceRules"]:
        found |= {(v, "", p) for v in rule["verbs"] for p in rule["nonResourceURLs"]}
    return found


FORBIDDEN = [
    ("GET", "/api/v1/namespaces/default/services/kubernetes"), ("GET", "/api/v1/secrets"), ("GET", "/api/v1/configmaps"),
    ("GET", "/api/v1/nodes"), ("GET", "/api/v1/pods"), ("GET", "/apis/discovery.k8s.io/v1/endpointslices"),
    ("GET", "/api/v1/namespaces/default/pods"), ("DELETE", "/api/v1/namespaces/default/services/kubernetes"),
    ("GET", "/apis/coordination.k8s.io/v1/leases"),
]  # fmt: skip


def check_rights(kube: Kube, nobody: Kube, world: World) -> None:
    """`nobody`: what every account has is no right of ours."""
    for namespace in ("default", "kube-system", NAMESPACE, mesh.NAMESPACE):
        wanted = {
            (verb, group, resource)
            for place, group, resource in RIGHTS
            if place in ("", namespace)
            for verb in ("list", "watch")
        }
        assert held(kube, namespace) - held(nobody, namespace) == wanted, namespace
    # and by doing it: what may be listed can be, what is not said cannot
    for right in RIGHTS:
        assert kube.raw("GET", path(right) + "?limit=1")[0] == 200, right
    for method, asked in FORBIDDEN:
        assert kube.raw(method, asked)[0] == 403, (method, asked)
    service = json.dumps(objects.service(world.fresh("mine"))).encode()
    assert kube.raw("POST", "/api/v1/namespaces/default/services", service)[0] == 403


def test_the_shipped_rights_are_list_and_watch_and_nothing_else(
    world: World, account: Account, programs: dict[str, Path], tmp_path: Path, tell: Tell
) -> None:
    assert {frozenset(verbs) for verbs in rights(shipped()).values()} == {frozenset({"list", "watch"})}
    assert {right[2] for right in RIGHTS} == KIND.keys()
    with closing(account.kube()) as kube, closing(world.kube.as_token(world.control.account("default", "nobody"))) as nobody:
        check_rights(kube, nobody, world)
    listed = subprocess.run(
        [str(programs["kubectl"]), "--kubeconfig", str(account.kubeconfig(tmp_path)), "auth", "can-i", "--list",
         "-n", mesh.NAMESPACE],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    lines = [line.split() for line in listed.splitlines() if "[list" in line or "watch]" in line]
    assert {line[0].partition(".")[0] for line in lines} == KIND.keys()
    assert all(line[-2:] == ["[list", "watch]"] for line in lines), listed
    tell(f"kubectl auth can-i --list -n {mesh.NAMESPACE}, as the shipped account", "list watch: " + " ".join(sorted(KIND)))
    tell(f"{len(FORBIDDEN) + 1} requests for anything else", "403 each")


def test_it_works_with_them_as_a_pod(running: ClusterSite, scene: Scene, tell: Tell) -> None:
    assert running.settings["source"] == {"cluster": {}}
    bound, plain = scene.workload("bound"), scene.workload("plain")
    stream = streaming()
    stream.allow(plain.host, plain.cluster_ip)
    stream.allow(bound.host, bound.cluster_ip)
    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)
        stream.stays()
    source = running.canal_dns.bindings()["source"]
    assert {one["outcome"] for one in source["kinds"].values()} == {"listed"}
    assert source["problems"] == []
    assert running.canal_dns.ready()[0] == 200
    assert ask(cluster.CANAL_DNS[0], MISSING, "A").rcode == "NXDOMAIN"
    tell("a canal-dns with the shipped rights, token and CA as files: bound, unbound and missing names", f"{VIP}; {stream}")


# --- the token ---------------------------------------------------------------------------------------------------------


def test_the_token_is_exchanged_and_expires(
    running: ClusterSite, account: Account, relay: Relay, scene: Scene, tell: Tell
) -> None:
    canal_dns = running.canal_dns
    bound, later = scene.workload("bound"), scene.workload("later")
    stream = streaming()
    stream.allow(later.host, later.cluster_ip)
    stream.allow(bound.host, bound.cluster_ip)

    def problems() -> str:
        return "\n".join(canal_dns.bindings()["source"]["problems"])

    with stream.flowing():
        scene.create(objects.gateway(), route_to(bound))
        stream.becomes(bound.host, VIP)

        # as a kubelet does it, long before the end: nobody notices
        short = account.short_token(8)
        expires = time.monotonic() + 8
        account.mount(short)
        (before,) = canal_dns.series("canal_dns_source_errors_total", code="401")
        relay.cut()
        until(lambda: not problems(), 10, problems)
        assert canal_dns.series("canal_dns_source_errors_total", code="401") == (before,)

        # as it is when nobody exchanges it: the API server keeps what it has found out about a token for ten seconds
        until(lambda: time.monotonic() > expires, 20, "the token is too old")
        cuts = iter(range(1000))

        def refused() -> bool:
            if next(cuts) % 20 == 0:
                relay.cut()
            return problems().count("Unauthorized") == len(KIND)

        until(refused, 60, problems)
        said = problems().splitlines()[0]
        assert "Unauthorized" in canal_dns.log.read_text()
        assert canal_dns.series("canal_dns_source_errors_total", code="401") > (before,)
        assert canal_dns.ready()[0] == 200
        stream.stays()
        tell("a bound name, the token expired and the watches cut", f"{VIP}; {len(KIND)} problems such as {said!r}")

        account.mount(account.token())
        began = time.monotonic()
        until(lambda: not problems(), 15, problems)
        took = time.monotonic() - began
        stream.allow(later.host, later.cluster_ip, VIP)
        scene.create(route_to(later))
        stream.becomes(later.host, VIP)
    tell(f"the same {took:.1f} s after another token is in the file, and a name bound since", f"{VIP}; {stream}")


# --- one right less ----------------------------------------------------------------------------------------------------


class Lacking:
    """A canal-dns whose account lacks one right from the start."""

    def __init__(self, world: World, folder: Path, number: int, right: Right) -> None:
        self.right = right
        self.resource = right[2]
        self.kind = KIND[self.resource]
        self.account = Account(world.control, f"canal-dns-without-{self.resource}").create(right)
        kubeconfig = self.account.kubeconfig(folder)
        settings = {"binding": {"settle": "200ms"}}
        self.server = Instance(folder / self.resource, number, {"cluster": {"kubeconfig": str(kubeconfig)}}, settings)

    def end(self) -> None:
        self.server.end()
        self.account.remove()

    def says(self) -> str:
        """The line about it, in /bindings. Raises AssertionError where there is none, or others too."""
        [line] = self.server.problems()
        check_words(line, self.right)
        assert f"{self.resource}" in self.server.log.read_text()
        return line


def check_words(line: str, right: Right) -> None:
    """Which kind, what the server says, and what helps."""
    namespace, _, resource = right
    assert line.startswith(resource), line
    assert "is forbidden" in line, line
    assert f'resource "{resource}"' in line, line
    assert f"give {f'a Role in {namespace}' if namespace else 'the ClusterRole'} list and watch" in line, line


def asked_by_the_gateway(server: Instance, workload: Workload) -> set[str]:
    return ask(server.address, workload.host, "A", client=mesh.POD_IP).addresses()


def test_each_right_missing_at_the_start_and_taken_away_later(
    running: ClusterSite, world: World, account: Account, relay: Relay, scene: Scene, tmp_path: Path, tell: Tell
) -> None:
    bound, subset = scene.workload("bound"), scene.workload("subset")
    quiet = world.fresh("quiet")
    scene.create(objects.made("v1", "Namespace", quiet, None, annotations={"canal-dns.io/bind": "false"}))
    opted = scene.workload("opted", quiet)
    scene.create(objects.gateway(), route_to(bound), route_to(subset, "undefined"), route_to(opted))
    stream = streaming()
    stream.allow(bound.host, bound.cluster_ip, VIP)
    stream.allow(subset.host, subset.cluster_ip)
    stream.allow(opted.host, opted.cluster_ip)

    with ExitStack() as ends, stream.flowing():
        lacking = []
        for number, right in enumerate(RIGHTS, 1):
            lacking.append(Lacking(world, tmp_path, number, right))
            ends.callback(lacking[-1].end)
            lacking[-1].server.launch()
        stream.becomes(bound.host, VIP)

        # missing at the start
        for one in lacking:
            server = one.server
            if one.resource in REQUIRED:
                server.wait_until_it_answers()
                until(lambda one=one: f"source: {one.resource}" in one.server.ready()[1], 30, server.said)
                until(lambda one=one: "is forbidden" in one.server.ready()[1], 30, server.said)
                status, why = server.ready()
                assert status == 503
                [line] = [line for line in why.splitlines() if line.startswith(f"source: {one.resource}")]
                check_words(line.removeprefix("source: "), one.right)
                assert server.series("canal_dns_source_synced", kind=one.kind) == (0,)
                gets = {bound.cluster_ip}
            else:
                until(lambda server=server: server.ready()[0] == 200, 60, server.said)
                gets = {VIP}
            assert server.series("canal_dns_source_available", kind=one.kind) == (0,)
            assert server.series("canal_dns_source_errors_total", kind=one.kind, code="403") >= (1,)
            others = [kind for kind in KIND.values() if kind != one.kind and (one.kind, kind) != ("Service", "Pod")]
            assert all(server.series("canal_dns_source_available", kind=kind) == (1,) for kind in others)
            assert server.addresses_of(bound.short) == gets, one.resource
            # what cannot be known then
            assert server.addresses_of(subset.short) == ({VIP} if one.resource == "destinationrules" else {subset.cluster_ip})
            assert server.addresses_of(opted.short) == ({VIP} if one.resource == "namespaces" else {opted.cluster_ip})
            if one.resource not in REQUIRED:
                knows_askers = one.resource != "endpointslices"
                assert asked_by_the_gateway(server, bound) == ({bound.cluster_ip} if knows_askers else {VIP})
            ready = "ready" if server.ready()[0] == 200 else "/ready 503"
            tell(f"a bound name of a canal-dns that may not read {one.resource}", f"{' '.join(gets)}, {ready}; {one.says()}")

        # taken away later, one after the other: what is known stays, the others go on
        canal_dns = running.canal_dns

        def problems() -> list[str]:
            return list(canal_dns.bindings()["source"]["problems"])

        def problems_text() -> str:
            return "\n".join(problems())

        missed = scene.workload("missed")
        stream.allow(missed.host, missed.cluster_ip)
        for number, right in enumerate(reversed(RIGHTS), 1):
            account.take(right)
            relay.cut()
            until(lambda number=number: str(problems()).count("is forbidden") == len(problems()) == number, 20, problems_text)
            [line] = [one for one in problems() if one.startswith(right[2])]
            check_words(line, right)
            assert "The last objects are kept" in line
            assert right[2] in canal_dns.log.read_text()
            assert canal_dns.series("canal_dns_source_available", kind=KIND[right[2]]) == (0,)
            assert canal_dns.ready()[0] == 200
            stream.stays(2)
            tell(f"bound, unbound and missing names after {right[2]} may no longer be read", f"as before; {line}")
        scene.create(route_to(missed))

        # given back, to all of them
        stream.allow(missed.host, missed.cluster_ip, VIP)
        account.restore()
        for one in lacking:
            one.account.restore()
        began = time.monotonic()
        for server in (one.server for one in lacking):
            until(lambda server=server: not server.problems(), RETRY, lambda server=server: str(server.problems()))
            until(lambda server=server: server.ready()[0] == 200, 10, server.said)
            until(lambda server=server: server.addresses_of(bound.short) == {VIP}, 10, server.said)
            until(lambda server=server: server.addresses_of(subset.short) == {subset.cluster_ip}, 10, server.said)
            until(lambda server=server: server.addresses_of(opted.short) == {opted.cluster_ip}, 10, server.said)
            until(lambda server=server: asked_by_the_gateway(server, bound) == {bound.cluster_ip}, 10, server.said)
            assert all(server.series("canal_dns_source_available", kind=kind) == (1,) for kind in KIND.values())
        stream.becomes(missed.host, VIP, RETRY)
        until(lambda: not problems(), RETRY, problems_text)
        took = time.monotonic() - began
    tell(f"all eight {took:.0f} s after the rights are given back", f"as they should be; {stream}")
