"""What docs/install.md, migrate.md and operate.md show is done, in their order, on the real cluster.

A document is a journey: its YAML files are written, its "cluster" blocks run one after the other in one folder, and what it
shows of their output is compared. What a test has to do in the place of a kubelet, of kube-controller-manager or of the reader
(start the pods behind a Service or a Deployment) hangs on the second word of a block: `HOOKS` of each journey.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import cluster, document, mesh, objects
from tests.e2e.account import NAME, NAMESPACE, Account
from tests.e2e.ask import ask
from tests.e2e.conftest import Tell
from tests.e2e.kube import ApiError
from tests.e2e.layouts import B
from tests.e2e.processes import ADMIN, CanalDns, CoreDns, until
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.traffic import Traffic
from tests.e2e.world import PORT, Workload, World
from tests.meta import prose

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
GATEWAY = "istio-system/internalgateway"
IN_DOCUMENTS = "127.0.0.1:8080"
"""canal-dns's admin port behind a port-forward; here it is ADMIN."""

Hook = Callable[[], None]


class Journey:
    """One document in one folder. `aliases`: address -> what the document shows in its place."""

    def __init__(self, name: str, world: World, programs: Mapping[str, Path], folder: Path) -> None:
        self.name = name
        self.blocks = prose.blocks(ROOT / "docs" / name)
        self.aliases: dict[str, str] = {}
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        for tool in ("kubectl", "helm"):
            (tools / tool).symlink_to(programs[tool])
        ours = tools / "canal-dns"
        ours.write_text(f'#!/bin/sh\nexec {sys.executable} -m canal_dns "$@"\n')
        ours.chmod(0o755)
        for part in ("manifests", "config", "docs"):
            (folder / part).symlink_to(ROOT / part)
        assert shutil.which("dig"), "`dig` is not on PATH; install dnsutils (bind9-dnsutils)"
        self.environ = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "KUBECONFIG": str(world.control.kubeconfig),
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
        }

    def run(self, hooks: Mapping[str, Hook], place: str = "cluster") -> int:
        """Do all of it; how many commands had an output to compare. `hooks`: done after a block with that second word."""
        compared = 0
        for block in self.blocks:
            if block.language == "yaml" and block.kind.endswith(".yaml"):
                (self.folder / block.kind).write_text(block.text)
            elif block.kind == place:
                compared += self.do(block)
                for word in block.words[1:]:
                    hooks[word]()
        return compared

    def do(self, block: prose.Block) -> int:
        """Run one block. Raises AssertionError with what was printed."""
        if block.language == "sh":
            done = self._bash(block.text)
            assert done.returncode == 0, f"{block}: {block.text}\n{done.stdout}{done.stderr}"
            return 0
        shown = block.commands()
        for command, output in shown:
            done = self._bash(command)
            printed = done.stdout
            for address, alias in self.aliases.items():
                printed = printed.replace(address, alias)
            said = f"{block}: $ {command}\n{printed}{done.stderr}is not what the document shows:\n{output}"
            assert prose.shows(output, printed), said
        return len(shown)

    def postpone(self, word: str, before: str) -> None:
        """Do a block later: how to go back stands beside the step that it takes back."""
        [later] = [block for block in self.blocks if word in block.words[1:]]
        self.blocks.remove(later)
        at = next(at for at, block in enumerate(self.blocks) if block.kind == later.kind and before in block.words[1:])
        self.blocks.insert(at, later)

    def clean_up(self, command: str) -> None:
        """For other tests, where the document did not get to its end."""
        self._bash(command)

    def _bash(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace(IN_DOCUMENTS, ADMIN)],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@contextmanager
def namespaces_end(world: World) -> Iterator[None]:
    """What kube-controller-manager does at the end of a namespace that is empty already."""
    stop = threading.Event()

    def finalize() -> None:
        while not stop.wait(0.2):
            for one in world.kube.list("Namespace"):
                if "deletionTimestamp" in one["metadata"]:
                    name = one["metadata"]["name"]
                    one |= {"apiVersion": "v1", "kind": "Namespace"}
                    with contextlib.suppress(ApiError):  # it may be gone by now
                        world.kube.request("PUT", f"/api/v1/namespaces/{name}/finalize", one | {"spec": {"finalizers": []}})
        world.kube.close()

    thread = threading.Thread(target=finalize, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def wait_until_gone(world: World, kind: str, name: str) -> None:
    def gone() -> bool:
        try:
            world.kube.get(kind, name, None)
        except ApiError as problem:
            return problem.status == 404
        return False

    until(gone, 20, f"{kind} {name} is gone")


# --- install.md ----------------------------------------------------------------------------------------------------------


class Installation:
    """A cluster with a CoreDNS like kubeadm's, and canal-dns as the shipped Deployment would run it."""

    def __init__(self, world: World, binary: Path, resolv_conf: Path, folder: Path) -> None:
        self.world = world
        self.binary = binary
        self.resolv_conf = resolv_conf
        self.folder = folder
        self.core_dns: CoreDns | None = None
        self.canal_dns: CanalDns | None = None

    def start_core_dns(self) -> None:
        """With the Corefile that stands in the ConfigMap, as the plugin `reload` would take it."""
        written = self.world.kube.get("ConfigMap", "coredns", "kube-system")["data"]["Corefile"]
        bind = {"53": f"{cluster.KUBE_DNS[0]} 127.0.0.1"}
        source = document.with_kubeconfig(self.world.control.kubeconfig)
        corefile = document.runnable(written, bind=bind, source=source, resolv_conf=self.resolv_conf)
        if self.core_dns is not None:
            self.core_dns.kill()
        self.core_dns = CoreDns(self.binary, self.folder, corefile, (cluster.KUBE_DNS[0],))
        self.core_dns.start()

    def start_canal_dns(self) -> None:
        """What the Deployment's pod does: the ConfigMap's configuration, the shipped account's token and rights."""
        settings = yaml.safe_load(self.world.kube.get("ConfigMap", NAME, NAMESPACE)["data"]["canal-dns.yaml"])
        assert settings["source"] == {"cluster": {}}
        settings |= {
            "listen": [f"{cluster.CANAL_DNS[0]}:53"],  # without kube-proxy
            "admin": ADMIN,
            "snapshot": {"path": str(self.folder / "table")},
            "binding": settings.get("binding", {}),
            "lameduck": "1s",
        }
        account = Account(self.world.control)
        self.canal_dns = CanalDns(self.folder, cluster.CANAL_DNS[:1], settings, account.mount(account.token()))
        self.canal_dns.start()

    def end(self) -> None:
        for process in (self.core_dns, self.canal_dns):
            if process is not None:
                process.kill()

    def end_canal_dns(self) -> None:
        """As its pods do when they are told to go."""
        assert self.canal_dns is not None
        assert self.canal_dns.stop() == 0
        self.canal_dns = None


@pytest.fixture
def installation(world: World, binary: Path, resolv_conf: Path, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(world, binary, resolv_conf, tmp_path)
    try:
        yield made
    finally:
        made.end()


def kube_dns(scene: Scene) -> None:
    """The Service and the ConfigMap of CoreDNS, as kubeadm makes them."""
    ports = [{"name": name, "port": 53, "protocol": protocol} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))]
    spec = {"clusterIP": cluster.KUBE_DNS[0], "selector": {"k8s-app": "kube-dns"}, "ports": ports}
    corefile = document.blocks("corefile")["vendor"]
    scene.create(
        objects.made("v1", "Service", "kube-dns", "kube-system", labels={"k8s-app": "kube-dns"}, spec=spec),
        objects.made("v1", "ConfigMap", "coredns", "kube-system", data={"Corefile": corefile}),
    )


def gateway_object() -> objects.Object:
    return objects.gateway("internalgateway", selector={"istio": "internalgateway"})


def test_install(
    installation: Installation, programs: dict[str, Path], helloworld: Workload, scene: Scene, tmp_path: Path, tell: Tell
) -> None:
    world = installation.world
    kube_dns(scene)
    scene.create(gateway_object(), route_to("helloworld"))
    journey = Journey("install.md", world, programs, make(tmp_path / "journey"))
    journey.aliases[helloworld.cluster_ip] = "10.96.1.1"
    installation.start_core_dns()
    asked: list[set[str]] = []

    def core_dns() -> None:
        installation.start_core_dns()
        asked.append(address(helloworld.host))

    hooks = {
        "apply": installation.start_canal_dns,
        "coredns": core_dns,
        "coredns-back": core_dns,
        "custom": lambda: world.kube.delete("ConfigMap", "coredns-custom", "kube-system"),
        "uninstall": installation.end_canal_dns,
    }
    journey.postpone("coredns-back", "uninstall")
    with namespaces_end(world):
        try:
            compared = journey.run(hooks)
        finally:
            journey.clean_up("kubectl delete --ignore-not-found -f manifests/")
        wait_until_gone(world, "Namespace", NAMESPACE)
    assert compared >= 12
    assert asked == [{mesh.VIP}, {mesh.VIP}, {helloworld.cluster_ip}], "a namespace's block, the whole domain's, and back"
    tell(f"docs/install.md, {compared} outputs compared; the block for `default`, for all, and taken back", str(asked))


def test_install_with_helm(
    world: World, programs: dict[str, Path], scene: Scene, tmp_path: Path, tell: Tell
) -> None:  # fmt: skip
    """On the API server, without a kubelet: what Helm makes is there, and is gone afterwards."""
    journey = Journey("install.md", world, programs, make(tmp_path / "journey"))
    there: list[dict[str, Any]] = []
    hooks = {
        "install": lambda: there.append(world.kube.get("Service", NAME, NAMESPACE)),
        "uninstall": lambda: wait_until_gone(world, "Namespace", NAMESPACE),
    }
    with namespaces_end(world):
        try:
            journey.run(hooks, "helm")
        finally:
            journey.clean_up(f"helm uninstall --ignore-not-found canal-dns --namespace {NAMESPACE}")
    assert there[0]["spec"]["clusterIP"] == cluster.CANAL_DNS[0]
    tell(
        "helm install and uninstall of docs/install.md",
        f"Service {NAMESPACE}/{NAME} {there[0]['spec']['clusterIP']}, then nothing",
    )


# --- migrate.md and operate.md -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dns(make_cluster_site: Callable[..., ClusterSite]) -> Iterator[ClusterSite]:
    """Layout B on the real cluster, with the default settings."""
    site = make_cluster_site(B)
    site.start()
    yield site
    site.end()


@pytest.fixture(scope="module")
def helloworld(world: World) -> Iterator[Workload]:
    """One for all documents: CoreDNS's own cache knows its address for 30 s."""
    made = world.workload("helloworld")
    yield made
    made.remove()


def route_to(name: str, **rest: Any) -> objects.Object:
    """A VirtualService without a match, in the Service's namespace."""
    http = [{"route": [objects.destination(cluster.fqdn(f"{name}.default"))]}]
    return objects.virtual_service(name, "default", http=http, gateways=(GATEWAY,), **rest)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def address(name: str) -> set[str]:
    """What a pod gets."""
    return ask(cluster.KUBE_DNS[0], name, "A").addresses()


def serve(world: World, scene: Scene, *names: str) -> dict[str, str]:
    """The pods behind Services that the document made: their EndpointSlices and backends; name -> ClusterIP."""
    found = {}
    for name in names:
        cluster_ip = world.kube.get("Service", name, "default")["spec"]["clusterIP"]
        pod = world.pod_ip()
        for where in (pod, cluster_ip):
            world.backends.serve(f"{name}.default", (where, PORT), version="v1")
        scene.create(objects.endpoint_slice(name, "default", [pod], ports=((PORT, "http"),)))
        found[name] = cluster_ip
    return found


def test_migrate(
    dns: ClusterSite, programs: dict[str, Path], helloworld: Workload, scene: Scene, tmp_path: Path, tell: Tell
) -> None:
    """All three flows; while the existing Service is bound and unbound again it is called all the time."""
    world = dns.world
    journey = Journey("migrate.md", world, programs, make(tmp_path / "journey"))
    journey.aliases[helloworld.cluster_ip] = "10.96.1.2"
    coming = [["greeter"], ["orders", "orders-v2"]]

    def serve_next() -> None:
        found = serve(world, scene, *coming.pop(0))
        if "greeter" in found:
            journey.aliases[found["greeter"]] = "10.96.1.1"

    try:
        with Traffic("helloworld.default", PORT).flowing() as traffic:
            compared = journey.run({"serve": serve_next})
    finally:
        world.kube.remove(
            *(objects.service(name) for name in ("greeter", "orders", "orders-v2")),
            *(objects.virtual_service(name, "default", http=()) for name in ("helloworld", "greeter", "orders")),
            gateway_object(),
        )
        for name in ("greeter", "orders", "orders-v2"):
            world.backends.close(f"{name}.default")
    assert compared >= 9
    assert traffic.fresh.failures == []
    assert traffic.ttl.failures == []
    assert min(traffic.seen(traffic.fresh)) > 0, "some went through the gateway, some past it"
    tell(
        f"docs/migrate.md, {compared} outputs compared; {traffic.fresh.requests} requests for helloworld",
        "0 failed",
    )


def test_operate(
    dns: ClusterSite, programs: dict[str, Path], helloworld: Workload, scene: Scene, tmp_path: Path, tell: Tell
) -> None:
    """A name at the wrong address, in five steps."""
    world = dns.world
    scene.create(
        gateway_object(),
        objects.service("orders", ports=((PORT, "http"), (9999, "grpc-admin"))),
        route_to("helloworld", hosts=[helloworld.host]),
        route_to("orders", hosts=[cluster.fqdn("orders.default")]),
    )
    dns.wait_for_vip(helloworld.short)
    journey = Journey("operate.md", world, programs, make(tmp_path / "journey"))
    journey.aliases[helloworld.cluster_ip] = "10.96.1.1"
    compared = journey.run({})
    assert compared >= 6
    tell("docs/operate.md", f"{compared} outputs compared")
