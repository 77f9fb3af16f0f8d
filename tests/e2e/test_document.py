"""docs/layouts.md as data: every block is used by a test, and what must agree does. No e2e mark: needs no CoreDNS."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from canal_dns.settings import Sentinel, parse
from tests.e2e import cluster, document
from tests.e2e.layouts import ALL, LOOP

SETTINGS = {"source": {"manifests": "/etc/canal-dns/manifests"}, "gateways": [{"service": "istio-system/internalgateway"}]}


def test_every_corefile_is_run_by_a_layout() -> None:
    assert {name for layout in (*ALL, LOOP) for name in layout.corefile} == {*document.blocks("corefile")}


def test_every_yaml_block_is_known() -> None:
    assert {layout.settings for layout in ALL} | {"A-service", "F-service"} == {*document.blocks("yaml")}


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_the_settings_are_settings(layout) -> None:
    settings = parse({**SETTINGS, **yaml.safe_load(document.blocks("yaml")[layout.settings])})
    assert settings.warnings == ()
    [upstream] = settings.forward.upstreams
    assert upstream.host in layout.alone
    uses_view = any("view " in document.blocks("corefile")[name] for name in layout.corefile)
    assert settings.forward.sentinel is Sentinel.DO or not uses_view


@pytest.mark.parametrize(("block", "target"), [("A-service", 8053), ("F-service", 53)])
def test_the_services_lead_where_coredns_listens(block: str, target: int) -> None:
    spec = yaml.safe_load(document.blocks("yaml")[block])["spec"]
    assert spec["clusterIP"] == cluster.PLAIN_COREDNS[0]
    assert [(port["port"], port["targetPort"], port["protocol"]) for port in spec["ports"]] == [
        (53, target, "UDP"),
        (53, target, "TCP"),
    ]


def test_only_three_things_are_changed_to_run_a_corefile() -> None:
    written = document.blocks("corefile")["A"]
    bind = {"53": "192.0.2.1", "8053": "192.0.2.2"}
    made = document.runnable(written, bind=bind, source=document.with_zones("    file z\n"), resolv_conf=Path("/r"))
    lines = [line for line in made.splitlines() if not line.startswith("    bind 192.0.2.")]
    lines = [line.replace("/r", "/etc/resolv.conf") for line in lines]
    before, after = written.split("    kubernetes", 1)
    assert "\n".join(lines) + "\n" == before + "    file z\n" + after.split("    }\n", 1)[1]
    assert made.count("    bind 192.0.2.1\n") == 2
    assert made.count("    bind 192.0.2.2\n") == 1


def test_the_kubernetes_plugin_is_only_told_its_kubeconfig() -> None:
    written = document.blocks("corefile")["vendor"]
    source = document.with_kubeconfig(Path("/k"))
    made = document.runnable(written, bind={"53": "192.0.2.1"}, source=source, resolv_conf=Path("/etc/resolv.conf"))
    added = ["    bind 192.0.2.1", "        kubeconfig /k"]
    assert [line for line in made.splitlines() if line not in added] == written.splitlines()
    assert made.index("kubernetes cluster.local") < made.index("kubeconfig /k") < made.index("pods insecure")


def test_a_block_that_stands_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layouts.md"
    path.write_text("```corefile A\n.:53 {\n}\n```\n" * 2)
    monkeypatch.setattr(document, "PATH", path)
    with pytest.raises(ValueError, match="two blocks"):
        document.blocks("corefile")
