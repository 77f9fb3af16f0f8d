"""The chart and the plain manifests on the real thing: Helm renders and installs them, a real API server takes them.

Not proved here: pods (there is no kubelet, so neither `helm test` nor a probe runs), Istio's injection (no webhook), and the
objects of the Prometheus operator, whose CRDs are not installed: tests/manifests holds their shape.
"""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from canal_dns.cli import main
from manifests.tools import plain
from manifests.tools.places import CHART, MANIFESTS, ROOT
from tests.e2e import document
from tests.e2e.kube import ApiError, Object
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CI = sorted((CHART / "ci").glob("*-values.yaml"))
OF_THE_OPERATOR = "monitoring.coreos.com/v1"
OURS = ("--set", "service.clusterIP=10.96.0.53")
"""For the API server, whose Service range is not that of every platform."""
NAMESPACES = ("canal-dns", "shop-gateways")

Helm = Callable[..., subprocess.CompletedProcess[str]]


def name_of(path: Path) -> str:
    return path.name.removesuffix("-values.yaml")


@pytest.fixture(scope="module")
def helm(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs Helm with the chart in the place of CHART; gives what it said, whatever it was."""
    home = tmp_path_factory.mktemp("helm")

    def run(*arguments: object, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "KUBECONFIG": str(kubeconfig or home / "none")}
        command = [programs["helm"], *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)

    return run


@pytest.fixture(scope="module")
def render(helm: Helm) -> Callable[..., list[Object]]:
    """The objects that the chart makes of values."""

    def rendered(*arguments: object) -> list[Object]:
        said = helm("template", "canal-dns", CHART, "--namespace", "canal-dns", *arguments)
        assert said.returncode == 0, said.stderr
        return [one for one in yaml.safe_load_all(said.stdout) if one]

    return rendered


@pytest.fixture(scope="module")
def notes(helm: Helm) -> Callable[..., str]:
    """What `helm install` prints at its end."""

    def printed(*arguments: object) -> str:
        said = helm("install", "canal-dns", CHART, "--namespace", "canal-dns", "--dry-run=client", *arguments)
        assert said.returncode == 0, said.stderr
        return said.stdout.partition("\nNOTES:\n")[2]

    return printed


# -- Helm alone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", CI, ids=name_of)
def test_lint_has_nothing_to_say(helm: Helm, values: Path) -> None:
    said = helm("lint", "--strict", CHART, "--values", values)
    assert said.returncode == 0 and "[WARNING]" not in said.stdout, said.stdout + said.stderr


def test_the_plain_manifests_are_the_chart_rendered(programs: dict[str, Path]) -> None:
    made = plain.make(programs["helm"])
    for path, text in made.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `make manifests`"
    assert {*MANIFESTS.glob("*.yaml"), *(MANIFESTS / "optional").glob("*.yaml")} == set(made)


@pytest.mark.parametrize("values", CI, ids=name_of)
def test_canal_dns_accepts_the_configuration(
    render: Callable[..., list[Object]], values: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = [one["data"]["canal-dns.yaml"] for one in render("--values", values) if "canal-dns.yaml" in one.get("data", {})]
    path = tmp_path / "canal-dns.yaml"
    path.write_text(config)
    assert main(["check", "--config", str(path)]) == 0, capsys.readouterr().err


def test_the_example_configuration_passes_the_schema(helm: Helm, tmp_path: Path) -> None:
    """The schema may be laxer than the parser, never stricter: every key with its default."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"config": yaml.safe_load((ROOT / "config" / "canal-dns.yaml").read_text())}))
    said = helm("template", "canal-dns", CHART, "--values", values)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ("config.ttl=0", "ttl"),
        ("config.tttl=5", "tttl"),
        ("config.workers=many", "workers"),
        ("config.binding.portGuard=maybe", "portGuard"),
        ("config.lameduck=15", "lameduck"),
        ("config.upstreams={kube-dns.kube-system:53}", "upstreams"),
        ("config.upstreams=null", "upstreams"),
        ("config.gateways[0].service=internalgateway", "gateways"),
        ("config.limits.tcpIdle=never", "tcpIdle"),
        ("config.admin=off", "admin"),
        ("service.clusterIP=canal-dns.default.svc", "clusterIP"),
        ("service.internalTrafficPolicy=Local", "internalTrafficPolicy"),
        ("coredns.platform=openwhisk", "platform"),
        ("coredns.layout=E", "layout"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("replicaCount=0", "replicaCount"),
        ("replicacount=3", "replicacount"),
        ("internalGateway.ports[0].name=http", "ports"),
    ],
)
def test_the_schema_refuses(helm: Helm, bad: str, word: str) -> None:
    said = helm("template", "canal-dns", CHART, "--set", bad)
    assert said.returncode != 0 and "schema" in said.stderr and word in said.stderr, said.stderr


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (["config.upstreamSentinel=none"], "Layout B needs `do`"),
        (["coredns.layout=A"], "in Layout A it must be the Service coredns-plain"),
        (["config.upstreams={10.96.0.53:53}"], "is the Service of canal-dns itself"),
        (["config.admin=127.0.0.1:8080"], "probes do not reach"),
        (["terminationGracePeriodSeconds=20"], "at least 25 is needed"),
        (["internalGateway.enabled=true", "internalGateway.name=other"], "istio-system/other must stand here"),
    ],
)
def test_combinations_that_would_not_work_are_refused(helm: Helm, bad: list[str], words: str) -> None:
    said = helm("template", "canal-dns", CHART, *(part for one in bad for part in ("--set", one)))
    assert said.returncode != 0 and words in said.stderr, said.stderr


def test_the_test_pod_asks_the_service(render: Callable[..., list[Object]]) -> None:
    (pod,) = [one for one in render() if one["kind"] == "Pod"]
    (container,) = pod["spec"]["containers"]
    script, *arguments = container["args"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert script.strip() == (CHART / "files" / "ask.py").read_text().strip()
    assert arguments[:3] == ["10.96.0.53", "53", "kubernetes.default.svc.cluster.local"]


def test_a_service_of_another_name_is_never_bound_itself(render: Callable[..., list[Object]]) -> None:
    (config,) = [one for one in render("--set", "fullnameOverride=mesh-dns") if "canal-dns.yaml" in one.get("data", {})]
    assert yaml.safe_load(config["data"]["canal-dns.yaml"])["binding"]["protected"] == ["canal-dns/mesh-dns"]


# -- NOTES -------------------------------------------------------------------------------------------------------------


def has_block(text: str, block: str) -> bool:
    """Does a text contain a block, indented as a whole by any number of blanks?"""
    return any(textwrap.indent(block.rstrip("\n"), " " * width) in text for width in range(16))


COREFILES, YAML = document.blocks("corefile"), document.blocks("yaml")
LAYOUT_A = ("--set", "coredns.layout=A", "--set", "config.upstreams={10.96.0.54:53}")
LAYOUT_F = ("--set", "coredns.layout=F", "--set", "config.upstreams={10.96.0.54:53}", "--set", "config.upstreamSentinel=none")


@pytest.mark.parametrize("platform", ["kubeadm", "eks", "k3s", "rke2", "aks"])
def test_notes_have_layout_b_where_a_block_can_be_added(notes: Callable[..., str], platform: str) -> None:
    text = notes("--set", f"coredns.platform={platform}")
    assert has_block(text, COREFILES["B"])
    custom = has_block(text, "name: coredns-custom\nnamespace: kube-system")
    assert custom == (platform in ("k3s", "rke2", "aks"))


@pytest.mark.parametrize("platform", ["kubeadm", "eks"])
def test_notes_have_layout_a_where_the_corefile_is_ours(notes: Callable[..., str], platform: str) -> None:
    text = notes(*LAYOUT_A, "--set", f"coredns.platform={platform}")
    assert has_block(text, COREFILES["A"]) and has_block(text, YAML["A-service"])


def test_notes_have_the_block_of_older_coredns(notes: Callable[..., str]) -> None:
    assert has_block(notes(*LAYOUT_A, "--set", "coredns.failover=false"), COREFILES["A-old"])
    assert has_block(notes("--set", "coredns.failover=false"), COREFILES["B-old"])


def test_notes_have_layout_e_for_a_narrow_zone(notes: Callable[..., str]) -> None:
    assert has_block(notes("--set", "coredns.zones={shop.svc.cluster.local}"), COREFILES["E"])


def test_notes_have_the_service_of_layout_f(notes: Callable[..., str]) -> None:
    assert has_block(notes(*LAYOUT_F), YAML["F-service"])


@pytest.mark.parametrize("platform", ["k3s", "rke2", "aks"])
def test_notes_say_where_layout_a_is_not_possible(notes: Callable[..., str], platform: str) -> None:
    text = notes(*LAYOUT_A, "--set", f"coredns.platform={platform}")
    assert "is not\n   possible here" in text and "{" not in text.partition("2. ")[2].partition("3. ")[0]


@pytest.mark.parametrize("platform", ["gke", "openshift"])
def test_notes_say_plainly_what_gke_and_openshift_cannot(notes: Callable[..., str], platform: str) -> None:
    text = notes("--set", f"coredns.platform={platform}")
    assert "takes no server block" in text and "would loop" in text and "forward ." not in text
    assert "nameservers: [10.96.0.53]" in notes(*LAYOUT_F, "--set", f"coredns.platform={platform}")


def test_notes_have_the_addresses_of_the_values(notes: Callable[..., str]) -> None:
    text = notes("--values", CHART / "ci" / "k3s-values.yaml")
    assert has_block(text, COREFILES["B"].replace("10.96.0.53", "10.43.0.53"))


# -- the API server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kubectl(world: World, programs: dict[str, Path]) -> Callable[..., str]:
    """Runs kubectl as the administrator; it must succeed, and warn of nothing."""

    def run(*arguments: object, stdin: str = "") -> str:
        command = [programs["kubectl"], "--kubeconfig", world.control.kubeconfig, *arguments]
        said = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False, input=stdin
        )
        assert said.returncode == 0 and "Warning" not in said.stderr, said.stderr
        return said.stdout

    return run


@pytest.fixture(scope="module")
def namespaces(world: World, kubectl: Callable[..., str]) -> Iterator[None]:
    """What a dry run does not make. canal-dns's is the shipped one, so Pod Security is enforced in it."""
    kubectl("apply", "--server-side", "-f", MANIFESTS / "00-namespace.yaml")
    for name in NAMESPACES[1:]:
        world.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield
    # a deleted namespace would stay Terminating and take nothing more: without a controller nobody ends it


@pytest.mark.usefixtures("namespaces")
def test_the_api_server_takes_the_plain_manifests(kubectl: Callable[..., str], tell: Callable[[str, str], None]) -> None:
    said = kubectl("apply", "--server-side", "--dry-run=server", "-f", MANIFESTS)
    assert len(said.splitlines()) == 11, said
    optional = sorted(
        {path.name for path in (MANIFESTS / "optional").glob("*.yaml")} - {"servicemonitor.yaml", "prometheusrule.yaml"}
    )
    for name in optional:
        # the gateway is there already, made by somebody else
        kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", MANIFESTS / "optional" / name)
    tell("kubectl apply --server-side --dry-run=server -f manifests/", f"11 objects, and optional: {', '.join(optional)}")


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", CI, ids=name_of)
def test_the_api_server_takes_the_chart(
    kubectl: Callable[..., str], render: Callable[..., list[Object]], tell: Callable[[str, str], None], values: Path
) -> None:
    objects = [one for one in render("--values", values, *OURS) if one["apiVersion"] != OF_THE_OPERATOR]
    said = kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(objects)
    )
    assert len(said.splitlines()) == len(objects)
    tell(f"helm template -f ci/{values.name} | kubectl apply --dry-run=server", f"{len(objects)} objects taken")


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", CI, ids=name_of)
def test_pod_security_restricted_lets_the_pods_in(world: World, render: Callable[..., list[Object]], values: Path) -> None:
    """Admission judges pods; a Deployment only gets a warning."""
    for one in render("--values", values, *OURS):
        if one["metadata"].get("namespace") == "canal-dns" and one["kind"] in ("Deployment", "Pod"):
            create_dry(world, pod_of(one))


@pytest.mark.usefixtures("namespaces")
def test_pod_security_is_enforced_here(world: World, render: Callable[..., list[Object]]) -> None:
    (deployment,) = [one for one in render() if one["kind"] == "Deployment"]
    pod = pod_of(deployment)
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(ApiError, match="restricted"):
        create_dry(world, pod)


def pod_of(one: Object) -> dict[str, Any]:
    if one["kind"] == "Pod":
        return dict(one)
    template = one["spec"]["template"]
    metadata = {**template["metadata"], "name": "dry", "namespace": one["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}


def create_dry(world: World, pod: Object) -> None:
    world.kube.request("POST", f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All", pod)


@pytest.fixture
def kube_dns(world: World) -> Iterator[None]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]},
    }
    try:
        world.kube.create(service)
    except ApiError as problem:
        if problem.status != 409:
            raise
        yield
        return
    yield
    world.kube.remove(service)


@pytest.mark.usefixtures("namespaces", "kube_dns")
def test_helm_installs_upgrades_and_leaves_nothing(world: World, helm: Helm, tell: Callable[[str, str], None]) -> None:
    def run(*arguments: object) -> str:
        said = helm(*arguments, "--namespace", "canal-dns", kubeconfig=world.control.kubeconfig)
        assert said.returncode == 0, said.stderr
        return said.stdout

    mine = ("--set", "service.clusterIP=10.96.0.77")
    try:
        first = run("install", "rehearsal", CHART, *mine)
        assert has_block(first, COREFILES["B"].replace("10.96.0.53", "10.96.0.77")) and "WARNING" not in first
        assert world.kube.get("Service", "rehearsal-canal-dns", "canal-dns")["spec"]["clusterIP"] == "10.96.0.77"
        second = run("upgrade", "rehearsal", CHART, *mine, "--set", "config.upstreams={10.96.0.11:53}")
        assert "WARNING: config.upstreams names 10.96.0.11:53, and the cluster's DNS Service is 10.96.0.10" in second
        config = world.kube.get("ConfigMap", "rehearsal-canal-dns", "canal-dns")["data"]["canal-dns.yaml"]
        assert yaml.safe_load(config)["upstreams"] == ["10.96.0.11:53"]
    finally:
        run("uninstall", "rehearsal")
    for kind in ("ServiceAccount", "ConfigMap", "Service", "apps/v1/Deployment", "policy/v1/PodDisruptionBudget"):
        assert world.kube.list(kind, "canal-dns", labels="app.kubernetes.io/instance=rehearsal") == [], kind
    for kind, namespace in (
        ("ClusterRole", None),
        ("ClusterRoleBinding", None),
        ("Role", "istio-system"),
        ("RoleBinding", "istio-system"),
    ):
        full = f"rbac.authorization.k8s.io/v1/{kind}"
        assert world.kube.list(full, namespace, labels="app.kubernetes.io/instance=rehearsal") == [], kind
    tell("helm install, upgrade, uninstall", "installed with its notes, a wrong upstream is warned of, nothing is left")


@pytest.mark.usefixtures("namespaces")
def test_an_address_outside_of_the_service_range_is_refused_at_once(world: World, helm: Helm) -> None:
    said = helm(
        "install", "elsewhere", CHART, "--namespace", "canal-dns", "--set", "service.clusterIP=10.43.0.53",
        kubeconfig=world.control.kubeconfig,
    )  # fmt: skip
    helm("uninstall", "elsewhere", "--namespace", "canal-dns", kubeconfig=world.control.kubeconfig)
    assert said.returncode != 0 and "failed to allocate IP 10.43.0.53" in said.stderr
