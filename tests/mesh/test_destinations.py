"""Which destinations exist for the gateway: Service, port, subset, ExternalName, visibility."""

# ruff: noqa: E501 - one row, one line

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.resources import parse
from canal_dns.mesh.routes import Target
from canal_dns.settings import BindingSettings, InternalGateway, MeshSettings
from tests.mesh import builders as make
from tests.mesh import oracle
from tests.mesh.builders import HELLO, SETTINGS, destination_rule, full, service

ALIAS = full("alias.default")


def found(
    *objects: Any, host: str = HELLO, port: int | None = None, subset: str = "", settings: BindingSettings = SETTINGS
) -> str:
    """ "" where the destination exists, else the field that is wrong."""
    view = make.world(*objects)
    binder = oracle.binder_of(view, settings)
    answer = binder.cluster.finder(binder.cluster.models[0])(Target(host, port, subset, 80))
    assert answer.exists == (not answer.problem)
    return answer.field


def alias(of: str, **more: Any) -> Any:
    return service("alias", type="ExternalName", externalName=of, **more)


@pytest.mark.parametrize(
    ("objects", "asked", "want"),
    [
        ((), {}, ""),
        ((), {"port": 80}, ""),
        ((), {"port": 81}, "port"),
        ((), {"host": full("x.default")}, "host"),
        ((), {"host": HELLO.upper()}, "host"),
        ((), {"host": "10.0.0.1"}, "host"),
        ((service(ports=(8080,)),), {}, ""),
        ((service(ports=(80, 8080)),), {}, ""),
        ((service(ports=(81, 8080)),), {}, "port"),
        ((service(ports=({"port": 80, "protocol": "UDP"},)),), {}, "port"),
        ((service(ports=()),), {}, "port"),
        ((service(clusterIP="None"),), {}, ""),
        ((alias(HELLO, ports=()),), {"host": ALIAS, "port": 80}, ""),
        ((alias(HELLO, ports=(81,)),), {"host": ALIAS}, "port"),
        ((alias(HELLO, ports=()),), {"host": ALIAS}, ""),
        ((alias("x.example"),), {"host": ALIAS}, "host"),
        ((alias(full("alias.default")),), {"host": ALIAS}, "host"),
        ((alias(full("gone.default")),), {"host": ALIAS}, "host"),
        *(
            ((service(annotations={"networking.istio.io/exportTo": to}),), {}, want)
            for to, want in (
                ("*", ""),
                ("istio-system", ""),
                ("prod", "host"),
                (".", "host"),
                ("~", "host"),
                ("~,istio-system", "host"),
            )
        ),
        ((), {"subset": "v1"}, "subset"),
        ((destination_rule("helloworld", "v1"),), {"subset": "v1"}, ""),
        ((destination_rule("helloworld", "v1"),), {"subset": "v2"}, "subset"),
        ((destination_rule(HELLO, "v1"), alias(HELLO)), {"host": ALIAS, "subset": "v1", "port": 80}, ""),
    ],
)
def test_what_exists(objects: Any, asked: dict[str, Any], want: str) -> None:
    assert found(*objects, **asked) == want


DEFAULT = "default"
ROOT = "istio-system"
IN_SHOP = replace(SETTINGS, gateways=(InternalGateway("shop", "internalgateway"),))
SHOP = (make.gateway_service(namespace="shop"), make.pod(namespace="shop"))


@pytest.mark.parametrize(
    ("rules", "settings", "want"),
    [
        ([destination_rule(HELLO, "v1", namespace=ROOT)], SETTINGS, True),
        ([destination_rule("*.local", "v1")], SETTINGS, True),
        ([destination_rule("*.local", "v1"), destination_rule(HELLO, "v2", name="b")], SETTINGS, False),
        ([destination_rule("*", "v1"), destination_rule("*.local", "v2", name="b")], SETTINGS, False),
        ([destination_rule(HELLO.upper(), "v1")], SETTINGS, False),
        ([destination_rule("helloworld", "v1", namespace="shop")], SETTINGS, False),
        ([destination_rule(HELLO, "v1", namespace="prod")], SETTINGS, False),
        ([destination_rule(HELLO, "v1", exportTo=["."])], SETTINGS, False),
        ([destination_rule(HELLO, "v1", exportTo=[DEFAULT])], SETTINGS, False),
        ([destination_rule(HELLO, "v1", exportTo=[ROOT])], SETTINGS, True),
        ([destination_rule(HELLO, "v1", exportTo=["prod"])], SETTINGS, False),
        ([destination_rule(HELLO, "v1", exportTo=["."], namespace=ROOT)], SETTINGS, True),
        ([destination_rule(HELLO, "v1", namespace=ROOT), destination_rule(HELLO, "v2")], SETTINGS, False),
        ([destination_rule(HELLO, "v2"), destination_rule(HELLO, "v1", name="b")], SETTINGS, True),
        ([destination_rule(HELLO, "v1", exportTo=["*"]), destination_rule(HELLO, "v2", name="e", exportTo=[ROOT])], SETTINGS, False),
        ([destination_rule(HELLO, "v2", exportTo=[ROOT]), destination_rule(HELLO, "v1", name="e", exportTo=[ROOT, "x"])], SETTINGS, True),
        ([destination_rule(HELLO, "v1")], replace(SETTINGS, mesh=MeshSettings(default_destination_rule_export_to=(".",))), False),
        ([destination_rule(HELLO, "v1")], replace(SETTINGS, mesh=MeshSettings(revision="x")), True),
        ([destination_rule(HELLO, "v1", namespace="shop")], IN_SHOP, True),
        ([destination_rule(HELLO, "v1", namespace="shop", exportTo=["prod"])], IN_SHOP, False),
        ([destination_rule(HELLO, "v1", namespace="shop"), destination_rule(HELLO, "v2")], IN_SHOP, True),
        ([destination_rule(HELLO, "v1", namespace="shop", workloadSelector={"matchLabels": {"app": "internalgateway"}})], IN_SHOP, True),
        ([destination_rule(HELLO, "v1", namespace="shop", workloadSelector={"matchLabels": {"app": "x"}})], IN_SHOP, False),
        ([destination_rule(HELLO, "v1", workloadSelector={"matchLabels": {}})], SETTINGS, False),
    ],
)  # fmt: skip
def test_which_destination_rule_the_gateway_reads(rules: Any, settings: BindingSettings, want: bool) -> None:
    """The gateway's namespace first (its private rules only, if it is the mesh's root), then the Service's, then the root's."""
    assert (found(*SHOP, *rules, subset="v1", settings=settings) == "") == want


def test_a_rule_of_another_revision_does_not_count() -> None:
    raw = destination_rule(HELLO, "v1")
    raw["metadata"]["labels"] = {"istio.io/rev": "canary"}
    assert found(raw, subset="v1", settings=replace(SETTINGS, mesh=MeshSettings(revision="stable"))) == "subset"


def test_rules_come_and_go() -> None:
    view = make.world(make.gateway(), make.virtual_service(make.http(make.to(subset="v1"))))
    binder = oracle.binder_of(view, SETTINGS)
    view.drain()
    for host, changes in (("helloworld", True), ("*.local", False), ("other", True), ("*.local", True)):
        record = parse(destination_rule(host, "v1"))
        assert record is not None
        view.apply(record)
        assert bool(binder.refresh()) == changes
    view.delete("DestinationRule", "default", "dr")
    assert binder.refresh() == {HELLO: None}
