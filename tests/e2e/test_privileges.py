"""canal-dns as the Deployment runs it, on the real API server and CoreDNS: read-only root, an ordinary user, no capability, the
shipped seccomp profile, the account's token; and everything works.

tests/app/test_confined.py does the same with scripted servers, and looks at what workers hold.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests import confined, seccomp
from tests.e2e import cluster, mesh, objects
from tests.e2e.account import Account
from tests.e2e.ask import ask
from tests.e2e.conftest import Tell
from tests.e2e.instances import Instance
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEPLOYMENT = Path(__file__).parents[2] / "manifests" / "30-deployment.yaml"
LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@pytest.fixture
def account(world: World) -> Iterator[Account]:
    made = Account(world.control).create()
    yield made
    made.remove()


@pytest.fixture
def _port_53() -> Iterator[None]:
    """For every user of this network namespace, as container runtimes set it for a pod; the Service's port is 53 here, too."""
    before = LOW_PORTS.read_text()
    LOW_PORTS.write_text("0")
    yield
    LOW_PORTS.write_text(before)


def in_a_pod(instance: Instance, folder: Path) -> list[str]:
    """The command of the Deployment with its volumes and security contexts. Raises AssertionError for one that is not known."""
    pod = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = {**pod["securityContext"], **container["securityContext"]}
    assert (context["capabilities"], context["allowPrivilegeEscalation"]) == ({"drop": ["ALL"]}, False)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = [
        f"{instance.config.parent if 'configMap' in volume else ''}:{mounts[volume['name']]}" for volume in pod["volumes"]
    ]
    before = confined.command(
        user=context["runAsUser"], read_only=context["readOnlyRootFilesystem"], volumes=volumes, profile=seccomp.PROFILE
    )
    return [*before, sys.executable, "-m", "canal_dns", *container["args"]]


def statuses(instance: Instance) -> dict[int, dict[str, str]]:
    return {
        pid: dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for pid in instance.members()
    }


@pytest.mark.usefixtures("_port_53")
def test_as_the_deployment_runs_it(
    world: World, account: Account, make_cluster_site: Callable[..., ClusterSite], scene: Scene, tmp_path: Path, tell: Tell
) -> None:
    if why := confined.unable() or seccomp.unable():
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    make_cluster_site(B).start()
    bound, plain = scene.workload("guarded"), scene.workload("plain")
    rule = {"route": [objects.destination(bound.host)]}
    route = objects.virtual_service(
        bound.name, mesh.NAMESPACE, hosts=[bound.host], http=[rule], gateways=[f"{mesh.NAMESPACE}/canal"]
    )
    scene.create(objects.gateway(), route)
    (tmp_path / "config").mkdir()
    saved = "/var/lib/canal-dns/table"
    instance = Instance(
        tmp_path / "config", 30, {"cluster": {}}, {"workers": 2, "snapshot": {"path": saved}}, account.mount(account.token())
    )
    instance.log = tmp_path / "canal-dns.log"
    instance.command = in_a_pod(instance, tmp_path)
    try:
        instance.start()
        until(lambda: instance.addresses_of(bound.short) == {mesh.VIP}, 20, instance.said)
        assert ask(instance.address, bound.host, "A", tcp=True).addresses() == {mesh.VIP}
        assert instance.addresses_of(plain.short) == {plain.cluster_ip}
        assert ask(instance.address, plain.host, "A", tcp=True).addresses() == {plain.cluster_ip}
        assert ask(instance.address, cluster.fqdn("no-such-service.default"), "A").rcode == "NXDOMAIN"

        scene.remove(route)
        until(lambda: instance.addresses_of(bound.short) == {bound.cluster_ip}, 20, instance.said)
        scene.create(route)
        until(lambda: instance.addresses_of(bound.short) == {mesh.VIP}, 20, instance.said)
        instance.configure(ttl=17)
        until(lambda: ask(instance.address, bound.host, "A").message.answer[0].ttl == 17, 20, instance.said)

        before = instance.members()
        assert len(before) == 3
        os.kill(max(before), signal.SIGKILL)
        until(lambda: len(instance.members()) == 3 and instance.members().keys() != before.keys(), 20, instance.said)
        until(lambda: instance.series("canal_dns_workers") == (2,), 20, instance.said)
        assert instance.running is not None
        inside = Path(f"/proc/{instance.running.pid}/root{saved}")
        until(inside.exists, 20, "the table is saved")

        for status in statuses(instance).values():
            assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
            assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
        assert not instance.problems()
        instance.running.send_signal(signal.SIGTERM)
        assert instance.wait_for_end() == 0
    finally:
        instance.end()
    written = instance.log.read_text()
    assert "Traceback" not in written and "Operation not permitted" not in written
    tell(
        "everything, by 65532 without capabilities under the shipped seccomp profile on a read-only root",
        f"{mesh.VIP}, {plain.cluster_ip}, NXDOMAIN; a reload, a killed worker, a saved table",
    )
