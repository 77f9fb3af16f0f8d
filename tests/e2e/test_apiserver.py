"""The API server goes away, forgets, falls silent, loses its store or its CRDs: what canal-dns answers meanwhile, and after.

On the real cluster, in Layout B, with the shipped ServiceAccount. All the time three kinds of names are asked for, of
CoreDNS and of canal-dns itself: bound ones, Services that nothing binds, and a name that does not exist.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import cluster, mesh, objects
from tests.e2e.account import Account
from tests.e2e.conftest import Tell
from tests.e2e.instances import Instance
from tests.e2e.layouts import B
from tests.e2e.processes import http, until
from tests.e2e.relay import Relay
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.stream import Stream
from tests.e2e.world import Workload, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]

VIP = mesh.VIP
SERVERS = {"CoreDNS": cluster.KUBE_DNS[0], "canal-dns": cluster.CANAL_DNS[0]}
READY_AFTER = 1.0
CRDS = "gateways", "virtualservices"

SYNCED = 2.0
"""Seconds from an API server that is back to answers that know everything (faults K1, K3, K11)..."""
RETRY = 50.0
"""A kind that is not there is asked for every 30 to 45 s."""
BUSY = 8.0
"""...and how much more a machine may take that has other things to do."""


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    made.open()
    yield made
    made.close()


@pytest.fixture(scope="module")
def account(world: World) -> Iterator[Account]:
    made = Account(world.control).create()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def dns(
    make_cluster_site: Callable[..., ClusterSite], relay: Relay, account: Account, tmp_path_factory: pytest.TempPathFactory
) -> ClusterSite:
    """Layout B; canal-dns alone reaches the API server through the relay."""
    folder = tmp_path_factory.mktemp("api-server")
    kubeconfig = relay.through(account.kubeconfig(folder), folder / "kubeconfig")
    settings = {
        "binding": {"settle": "200ms"},
        "snapshot": {"path": str(folder / "table"), "readyAfter": f"{READY_AFTER}s"},
    }
    site = make_cluster_site(B, settings=settings, kubeconfig=kubeconfig)
    site.start()
    return site


@pytest.fixture
def whole(dns: ClusterSite, relay: Relay) -> Iterator[ClusterSite]:
    """Everything runs, and runs again after the test, whatever happened."""
    yield dns
    control = dns.world.control
    control.etcd.resume()
    if control.apiserver.running is None:
        control.start_apiserver()
    control.apiserver.resume()
    relay.close()
    relay.open()
    dns.start()
    until(lambda: dns.canal_dns.bindings()["source"]["problems"] == [], 60, lambda: str(dns.canal_dns.bindings()["source"]))


def bound_to(workload: Workload, **rest: object) -> objects.Object:
    """A VirtualService that binds exactly this name."""
    rule = {"route": [objects.destination(workload.host)]}
    return objects.virtual_service(workload.name, hosts=[workload.host], http=[rule], **rest)


@pytest.fixture(scope="module")
def workloads(world: World, dns: ClusterSite) -> Iterator[list[Workload]]:
    """Made before anything happens: CoreDNS's own watch needs up to half a minute to see new Services after an outage."""
    made = [world.workload(world.fresh(stem)) for stem in ("kept", "loses", "gains")]
    for one in made:
        dns.wait_for_address(one.short, one.cluster_ip)
    yield made
    for one in made:
        one.remove()


class Names:
    """What every scenario begins with: two bound names and one that is not, asked for all the time."""

    def __init__(self, dns: ClusterSite, scene: Scene, workloads: list[Workload]) -> None:
        self.dns, self.scene = dns, scene
        self.kept, self.loses, self.gains = workloads
        self.routes = {one.name: bound_to(one) for one in (self.kept, self.loses, self.gains)}
        scene.create(objects.gateway(), self.routes[self.kept.name], self.routes[self.loses.name])
        self.stream = Stream(SERVERS)

    def settled(self) -> None:
        for one, answer in ((self.kept, VIP), (self.loses, VIP), (self.gains, self.gains.cluster_ip)):
            self.stream.allow(one.host, one.cluster_ip, VIP)
            self.stream.becomes(one.host, answer)

    def change(self) -> None:
        """One name less, one more: deletions, too, happen while nobody looks."""
        for one in (self.loses, self.gains):
            self.stream.allow(one.host, one.cluster_ip, VIP)
        self.scene.remove(self.routes[self.loses.name])
        self.scene.create(self.routes[self.gains.name])

    def changed(self) -> float:
        """Until both are known; the seconds of the slower one."""
        asked = time.monotonic()
        self.stream.becomes(self.loses.host, self.loses.cluster_ip)
        self.stream.becomes(self.gains.host, VIP)
        return time.monotonic() - asked


@pytest.fixture
def names(whole: ClusterSite, workloads: list[Workload], scene: Scene) -> Iterator[Names]:
    made = Names(whole, scene, workloads)
    with made.stream.flowing():
        made.settled()
        yield made


def problems(dns: ClusterSite) -> str:
    return "\n".join(dns.canal_dns.bindings()["source"]["problems"])


def kinds(dns: ClusterSite) -> dict[str, str]:
    return {name: one["outcome"] for name, one in dns.canal_dns.bindings()["source"]["kinds"].items()}


# --- killed, forgetful, silent, without a store ------------------------------------------------------------------------


def test_killed_and_started_again(names: Names, tell: Tell) -> None:
    dns, control = names.dns, names.dns.world.control
    control.kill_apiserver()
    until(lambda: "cannot be reached since" in problems(dns), 15, lambda: problems(dns))
    said = problems(dns)
    assert "the last objects are kept" in said
    assert dns.canal_dns.ready()[0] == 200
    (refused,) = dns.canal_dns.series("canal_dns_source_errors_total", code="connect")
    assert refused > 0
    names.stream.stays()
    tell("two bound names, an unbound one and a missing one, while the API server is dead", f"as before; /bindings: {said}")
    control.start_apiserver()
    names.change()
    took = names.changed()
    assert took < SYNCED + BUSY
    until(lambda: not problems(dns), 10, lambda: problems(dns))
    tell(f"the same {took:.1f} s after it is back, with one name bound and one unbound", f"both known; {names.stream}")


def test_history_compacted(names: Names, relay: Relay, tell: Tell) -> None:
    dns, control = names.dns, names.dns.world.control
    (before,) = dns.canal_dns.series("canal_dns_source_relists_total", reason="expired")
    relay.close()
    names.change()
    control.compact()
    control.restart_apiserver()
    names.stream.stays(5)
    relay.open()
    took = names.changed()
    assert took < SYNCED + BUSY
    (after,) = dns.canal_dns.series("canal_dns_source_relists_total", reason="expired")
    assert after > before, "nobody was told 410"
    until(lambda: not problems(dns), 10, lambda: problems(dns))
    tell(
        f"bound, unbound and missing names, etcd compacted and changed while canal-dns was cut off, {took:.1f} s later",
        f"the changes known after {after - before:.0f} lists because of 410; {names.stream}",
    )


def test_silent_and_awake_again(names: Names, tell: Tell) -> None:
    control = names.dns.world.control
    control.apiserver.pause()
    names.stream.stays(60)
    assert names.dns.canal_dns.ready()[0] == 200
    control.apiserver.resume()
    names.change()
    took = names.changed()
    assert took < SYNCED + BUSY
    tell(
        f"bound, unbound and missing names, the API server stopped (SIGSTOP), resumed, changed {took:.1f} s ago",
        str(names.stream),
    )


def test_etcd_away(names: Names, tell: Tell) -> None:
    dns, control = names.dns, names.dns.world.control
    control.etcd.kill()
    until(lambda: not control.ready(), 30, "the API server misses etcd")
    names.stream.stays(60)
    assert dns.canal_dns.ready()[0] == 200
    control.etcd.launch()
    until(control.ready, 60, control.apiserver.said)
    names.change()
    took = names.changed()
    assert took < SYNCED + BUSY
    until(lambda: not problems(dns), 40, lambda: problems(dns))
    tell(f"bound, unbound and missing names, etcd killed, started, changed {took:.1f} s ago", str(names.stream))


def test_etcd_restored_from_a_backup(names: Names, relay: Relay, tmp_path: Path, tell: Tell) -> None:
    """Time goes back: what was done since the backup is undone, and versions count from there once more."""
    dns, control = names.dns, names.dns.world.control
    data, backup = control.folder / "etcd", tmp_path / "backup"
    for process in (control.apiserver, control.etcd):
        process.kill()
    shutil.copytree(data, backup)
    control.etcd.launch()
    control.start_apiserver()
    names.change()
    names.changed()
    # so much that the versions of the time before are far away
    for number in range(60):
        control.kube.patch("VirtualService", names.kept.name, mesh.NAMESPACE, {"metadata": {"labels": {"n": str(number)}}})
    for one in (names.loses, names.gains):
        names.stream.allow(one.host, one.cluster_ip, VIP)
    relay.close()  # or some kinds would be read anew because a starting server refuses everybody
    for process in (control.apiserver, control.etcd):
        process.kill()
    shutil.rmtree(data)
    shutil.copytree(backup, data)
    control.etcd.launch()
    control.start_apiserver()
    relay.open()
    began = time.monotonic()
    names.stream.becomes(names.loses.host, VIP)
    names.stream.becomes(names.gains.host, names.gains.cluster_ip)
    took = time.monotonic() - began
    assert took < SYNCED + BUSY
    until(lambda: not problems(dns), 10, lambda: problems(dns))
    tell(
        f"one name bound and one unbound, and etcd restored from before that, {took:.1f} s later", f"as before; {names.stream}"
    )


# --- canal-dns starts while it is away ---------------------------------------------------------------------------------


def saved_now(dns: ClusterSite, path: Path, *hosts: str) -> None:
    until(lambda: path.exists() and all(f'"{host}"' in path.read_text() for host in hosts), 10, "the table is saved")


def test_started_without_an_api_server(names: Names, relay: Relay, tell: Tell) -> None:
    """Without a saved table: every query is forwarded."""
    dns, stream = names.dns, names.stream
    Path(dns.settings["snapshot"]["path"]).unlink(missing_ok=True)
    with stream.without("canal-dns"):
        for one in (names.kept, names.loses):
            stream.allow(one.host, VIP, one.cluster_ip)
        dns.canal_dns.kill()
        Path(dns.settings["snapshot"]["path"]).unlink(missing_ok=True)
        relay.close()
        dns.canal_dns.launch()
        until(lambda: dns.canal_dns.alive() and dns.canal_dns.ready()[0], 20, dns.canal_dns.said)
        until(lambda: answers(dns), 20, dns.canal_dns.said)
    for one in (names.kept, names.loses):
        stream.becomes(one.host, one.cluster_ip)
    until(lambda: dns.canal_dns.ready()[1].count("Connection refused") >= 6, 20, lambda: str(dns.canal_dns.ready()))
    status, why = dns.canal_dns.ready()
    assert status == 503
    for kind in ("services", "virtualservices.networking.istio.io", "gateways.networking.istio.io"):
        assert f"source: {kind}: " in why, why
    stream.stays()
    names.change()
    relay.open()
    began = time.monotonic()
    stream.becomes(names.kept.host, VIP)
    took = time.monotonic() - began
    assert took < SYNCED + BUSY
    names.changed()
    assert dns.canal_dns.ready()[0] == 200
    tell(
        "a bound name of a canal-dns that started without API server and saved table",
        f"{names.kept.cluster_ip}, /ready 503: {why}",
    )
    tell(f"the same {took:.1f} s after the API server is there", f"{VIP}; {stream}")


def test_started_from_the_saved_table(names: Names, relay: Relay, tell: Tell) -> None:
    dns, stream = names.dns, names.stream
    saved_now(dns, Path(dns.settings["snapshot"]["path"]), names.kept.host, names.loses.host)
    with stream.without("canal-dns"):
        for one in (names.kept, names.loses):
            stream.allow(one.host, VIP, one.cluster_ip)
        dns.canal_dns.kill()
        relay.close()
        dns.canal_dns.launch()
        until(lambda: dns.canal_dns.alive() and dns.canal_dns.ready()[0], 20, dns.canal_dns.said)
        until(lambda: answers(dns), 20, dns.canal_dns.said)
    for one in (names.kept, names.loses):
        stream.becomes(one.host, VIP)
    until(lambda: dns.canal_dns.ready()[0] == 200, READY_AFTER + BUSY, lambda: str(dns.canal_dns.ready()))
    assert dns.canal_dns.series("canal_dns_snapshot_in_use") == (1,)
    assert dns.canal_dns.bindings()["snapshot"]["inUse"] is True
    stream.stays()
    tell("a bound name of a canal-dns that started without API server from a saved table", VIP)
    names.change()
    relay.open()
    took = names.changed()
    assert took < SYNCED + BUSY
    until(lambda: dns.canal_dns.series("canal_dns_snapshot_in_use") == (0,), 5, "the objects count again")
    tell(f"the same, and what was changed meanwhile, {took:.1f} s after the API server is there", str(stream))


def answers(dns: ClusterSite) -> bool:
    try:
        return bool(dns.address_of_canal_dns("kubernetes.default"))
    except (TimeoutError, ConnectionError):
        return False


def test_started_together_with_the_api_server(names: Names, account: Account, tmp_path: Path, tell: Tell) -> None:
    """It refuses everybody (403) until it has read who may do what: that is no word on rights, and no reason to go without."""
    control = names.dns.world.control
    source = {"cluster": {"kubeconfig": str(account.kubeconfig(tmp_path))}}
    early = Instance(tmp_path / "early", 3, source)
    control.kill_apiserver()
    try:
        early.begin()
        control.start_apiserver()
        began = time.monotonic()
        until(lambda: early.ready()[0] == 200, SYNCED + BUSY, lambda: f"{early.ready()}\n{early.said()}")
        took = time.monotonic() - began
        bindings = early.bindings()
        assert {one["outcome"] for one in bindings["source"]["kinds"].values()} == {"listed"}
        assert early.addresses_of(names.kept.short) == {VIP}
        (refused,) = early.series("canal_dns_source_errors_total", code="403")
        until(lambda: not early.problems() and not problems(names.dns), SYNCED + BUSY, early.said)
        names.stream.stays(5)
    finally:
        early.end()
    tell(
        f"a bound name of a canal-dns that starts with the API server, ready {took:.1f} s after it",
        f"{VIP}; {refused:.0f} requests were refused by a server that was not ready; {names.stream}",
    )


# --- CRDs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def istio_again(world: World) -> Iterator[None]:
    """The CRDs are there again after the test, and istiod follows them."""
    yield
    world.control.install_crds(*CRDS)
    world.mesh.istiod.kill()
    world.mesh.istiod.launch()
    until(lambda: world.mesh.istiod.alive() and http("http://127.0.0.1:15080/ready")[0] == 200, 60, world.mesh.istiod.said)


def test_crds_removed_and_installed_again(
    names: Names, relay: Relay, account: Account, tmp_path: Path, tell: Tell, istio_again: None
) -> None:
    """Three of them: one sees the objects go, one sees nothing but that the kinds are gone, one starts without Istio."""
    dns, control, stream = names.dns, names.dns.world.control, names.stream
    source = {"cluster": {"kubeconfig": str(account.kubeconfig(tmp_path))}}
    settings = {"binding": {"settle": "200ms"}}
    present, late = (Instance(tmp_path / name, at, source, settings) for at, name in ((1, "present"), (2, "late")))
    try:
        present.start()
        assert present.addresses_of(names.kept.short) == {VIP}
        relay.close()
        control.remove_crds(*CRDS)

        # Kubernetes deletes the objects with their kind: who watches is told so
        until(lambda: present.addresses_of(names.kept.short) == {names.kept.cluster_ip}, 10, present.said)
        until(lambda: str(present.problems()).count("not installed") == len(CRDS), 40, lambda: str(present.problems()))
        tell("a bound name of a canal-dns that watched the CRDs go", f"{names.kept.cluster_ip}; {present.problems()}")

        # who was away keeps the last objects, and says so (K13)
        relay.open()
        until(lambda: problems(dns).count("not installed") == len(CRDS), 40, lambda: problems(dns))
        stream.stays()
        for kind in ("Gateway", "VirtualService"):
            assert dns.canal_dns.series("canal_dns_source_available", kind=kind) == (0,)
        assert dns.canal_dns.series("canal_dns_source_available", kind="Service") == (1,)
        tell("a bound name of a canal-dns that was cut off while they went", f"{VIP}; {problems(dns)}")

        # the other kinds are followed
        other = names.scene.workload("other")
        until(lambda: other.host in followed(dns), 10, lambda: str(followed(dns)))
        assert dns.canal_dns.ready()[0] == 200

        # a cluster without Istio is a cluster without anything bound
        late.start()
        assert late.addresses_of(names.kept.short) == {names.kept.cluster_ip}
        assert str(late.problems()).count("not installed") == len(CRDS)
        assert {late.bindings()["source"]["kinds"][kind]["outcome"] for kind in ("Gateway", "VirtualService")} == {"missing"}
        tell("a canal-dns that starts where Istio is not installed", f"ready, {names.kept.cluster_ip}; {late.problems()}")

        for one in (names.kept, names.loses):
            stream.allow(one.host, VIP, one.cluster_ip)
        control.install_crds(*CRDS)
        names.scene.create(objects.gateway(), names.routes[names.kept.name])
        began = time.monotonic()
        stream.becomes(names.loses.host, names.loses.cluster_ip, RETRY)
        stream.becomes(names.kept.host, VIP, RETRY)
        for one in (present, late):
            until(lambda one=one: one.addresses_of(names.kept.short) == {VIP}, RETRY, one.said)
            until(lambda one=one: not one.problems(), RETRY, lambda one=one: str(one.problems()))
        until(lambda: not problems(dns), RETRY, lambda: problems(dns))
        took = time.monotonic() - began
        tell(f"all three {took:.0f} s after the CRDs are there again, with one of two VirtualServices", f"{VIP}; {stream}")
    finally:
        present.end()
        late.end()


def followed(dns: ClusterSite) -> list[str]:
    return [one["name"] for one in dns.canal_dns.bindings()["skipped"]]
