"""Replicas of canal-dns are replaced behind a real CoreDNS and a Service, while clients ask all the time: nobody notices.

Every question counts: bound names have their VIP (an answer of CoreDNS's own would be the ClusterIP), others what CoreDNS says,
each within the client's time, over UDP and TCP. The Service is tests/e2e/service.py; times are those of a cluster, scaled down:
endpoints follow /ready after 0.5 s, UDP flows stay with a replica that goes for 1.5 s more, the lameduck is 4 s (15 s).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import cluster
from tests.e2e.ask import ask
from tests.e2e.document import with_zones
from tests.e2e.instances import Instance
from tests.e2e.layouts import A, corefile
from tests.e2e.processes import CoreDns, until
from tests.e2e.service import Service
from tests.e2e.stream import Stream

pytestmark = pytest.mark.e2e

LAMEDUCK = 4.0
ROUNDS = 20

Say = Callable[[str], None]


class Deployment:
    """Replicas of one configuration, each with a folder, an address and objects of its own, behind one Service."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.service = service
        self.replicas: list[Instance] = []
        self.lameduck = LAMEDUCK
        self._folder = folder
        self._made: list[Instance] = []

    def create(self) -> Instance:
        """One more replica, of which the Service does not know yet."""
        number = len(self._made)
        folder = self._folder / f"replica-{number}"
        manifests = folder / "manifests"
        manifests.mkdir(parents=True)
        cluster.write_manifests(manifests)
        wanted = cluster.settings(manifests)
        settings = {
            "gateways": wanted["gateways"],
            "upstreams": [f"{cluster.PLAIN_COREDNS[0]}:53"],
            "access": {"peers": ["10.244.0.0/16"]},
            "lameduck": f"{self.lameduck:g}s",
            "workers": 2,
            "snapshot": {"path": str(folder / "table"), "readyAfter": "1s"},
        }
        replica = Instance(folder, number, wanted["source"], settings)
        self._made.append(replica)
        return replica

    def add(self) -> Instance:
        """One more replica, until the Service gives it clients."""
        replica = self.create()
        self.replicas.append(replica)
        replica.launch()
        self.service.add(replica.address, replica.admin)
        self.wait_for(replica)
        return replica

    def wait_for(self, replica: Instance) -> None:
        until(lambda: replica.alive() and replica.address in self.service.serving(), 60, replica.said)

    def terminate(self, replica: Instance) -> None:
        """SIGTERM, as the kubelet sends it; `reap` waits for the end."""
        self.replicas.remove(replica)
        replica.signal(signal.SIGTERM)

    def reap(self, replica: Instance) -> None:
        """Until it has ended by itself, and well."""
        assert replica.wait_for_end(self.lameduck + 15) == 0, replica.said()
        self.service.remove(replica.address)

    def roll(self, *, surge: bool) -> None:
        """Every replica is replaced. `surge`: the new one is ready before the old one goes, which then ends beside the next new
        one (maxSurge 1, maxUnavailable 0); else the old one is gone before the new one is started (maxUnavailable 1)."""
        going: list[Instance] = []
        for old in list(self.replicas):
            if surge:
                self.add()
                self.terminate(old)
                going.append(old)
            else:
                self.terminate(old)
                self.reap(old)
                self.add()
        for old in going:
            self.reap(old)

    def end(self) -> None:
        for replica in self._made:
            replica.end()


@pytest.fixture
def deployment(binary: Path, resolv_conf: Path, tmp_path: Path) -> Iterator[Deployment]:
    """Two replicas, the Service, and CoreDNS with Layout A in front of it."""
    service = Service(cluster.CANAL_DNS[0])
    made = Deployment(tmp_path, service)
    written = corefile(A, resolv_conf, with_zones(cluster.zone_lines(tmp_path)))
    core_dns = CoreDns(binary, tmp_path, written, (*A.core_dns, *A.alone))
    try:
        service.start()
        core_dns.start()
        for _ in range(2):
            made.add()
        yield made
    finally:
        made.end()
        core_dns.kill()
        service.end()


@pytest.fixture
def stream() -> Stream:
    """Four clients over UDP and two over TCP, of both families."""
    v4, v6 = cluster.KUBE_DNS
    udp = {"udp 1": v4, "udp 2": v4, "udp 3": v4, "udp over IPv6": v6}
    made = Stream({**udp, "tcp": v4, "tcp over IPv6": v6}, tcp=("tcp", "tcp over IPv6"))
    for name, addresses in cluster.BOUND.items():
        made.allow(name, addresses["A"])
    for service in ("plain.default", "single.default", "stock.shop"):
        made.allow(cluster.fqdn(service), cluster.BY_NAME[cluster.fqdn(service)].v4)
    made.allow("www.example.org", "198.51.100.7")
    return made


@pytest.fixture
def settled(deployment: Deployment) -> Deployment:
    """CoreDNS has found out by its probes that canal-dns is there."""
    until(lambda: all(_says_vip(tcp=tcp) for tcp in (False, True) for _ in range(5)), 15, "CoreDNS asks canal-dns")
    return deployment


def _says_vip(*, tcp: bool) -> bool:
    try:
        return ask(cluster.KUBE_DNS[0], cluster.fqdn("helloworld.default"), "A", tcp=tcp).addresses() == {cluster.VIP["A"]}
    except (TimeoutError, ConnectionError):
        return False


@pytest.mark.timeout(180)
@pytest.mark.parametrize("surge", [True, False], ids=["maxSurge 1", "maxUnavailable 1"])
def test_a_rolling_restart_is_not_noticed(settled: Deployment, stream: Stream, surge: bool, measured: Say) -> None:
    with stream.flowing():
        stream.stays(ROUNDS)
        settled.roll(surge=surge)
        stream.stays(ROUNDS)
    fresh = {replica.address for replica in settled.replicas}
    assert fresh == settled.service.serving()
    # Where one is replaced after the other all flows may have moved before the last one came.
    assert fresh & settled.service.picked.keys()
    order = "maxSurge 1" if surge else "maxUnavailable 1"
    measured(f"rolling restart of two replicas, {order}: {stream}, flows given to each replica: {settled.service.picked}")


@pytest.mark.timeout(180)
def test_without_a_lameduck_it_would_be_noticed(settled: Deployment, stream: Stream) -> None:
    """The test can fail: replicas that go at once take the questions with them that still come to them."""
    for old in settled.replicas:
        old.configure(lameduck="0s")
        until(lambda old=old: old.series("canal_dns_config_reloads_total", result="ok") == (1,), 10, old.said)
    settled.service.pinned = 60.0
    with pytest.raises(AssertionError, match="said"), stream.flowing():
        stream.stays(ROUNDS)
        settled.roll(surge=True)
        stream.stays(ROUNDS)


@pytest.mark.timeout(120)
def test_a_restart_with_nothing_to_read_is_not_noticed(settled: Deployment, stream: Stream, measured: Say) -> None:
    """The container is started anew while the source is away, and answers from the table that the one before saved."""
    replica = settled.replicas[0]
    objects = Path(replica.settings["source"]["manifests"])
    with stream.flowing():
        stream.stays(ROUNDS)
        until(Path(replica.settings["snapshot"]["path"]).exists, 10, "the table is saved")
        replica.signal(signal.SIGTERM)
        assert replica.wait_for_end(LAMEDUCK + 15) == 0, replica.said()
        shutil.move(objects, objects.with_name("away"))
        replica.launch()
        settled.wait_for(replica)
        assert replica.series("canal_dns_snapshot_in_use") == (1,)
        stream.stays(ROUNDS)
        # Now it carries all of it.
        settled.terminate(other := settled.replicas[1])
        settled.reap(other)
        assert settled.service.serving() == {replica.address}
        stream.stays(ROUNDS)
        shutil.move(objects.with_name("away"), objects)
        until(lambda: replica.series("canal_dns_snapshot_in_use") == (0,), 20, replica.said)
        stream.stays(ROUNDS)
    measured(f"restart from the saved table, then alone, then with its objects again: {stream}")
