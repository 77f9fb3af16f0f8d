"""The binding rule against what a real istiod programmed into a real Envoy: equality, scenario by scenario.

`bound` is the rule itself; `http`, `tcp`, `routed` and `own_name` tell whether the model behind it is right, or right by luck.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from canal_dns.mesh.binding import bind
from canal_dns.mesh.report import to_plain
from canal_dns.mesh.result import CLAIM_DESTINATION, Reason
from canal_dns.mesh.serving import serve
from canal_dns.settings import BindingSettings, CrossNamespace, InternalGateway, PortGuard
from tests.mesh import oracle

SETTINGS = BindingSettings(
    gateways=(InternalGateway("istio-system", "internalgateway"),),
    port_guard=PortGuard.WARN,
    cross_namespace=CrossNamespace.ALLOW,
)

UNSERVED = {267: "web.default.svc.cluster.local"}
"""Scenario -> a name in `bound` of which the fields beside it say that all its requests get 503.

They come to the virtual host `*`, whose only routes to it name a subset that does not exist (`known`: false); another
virtual host of the port reaches the Service. With `portGuard: warn`, the setting of these data, it is bound with a warning;
with `enforce`, the default, it is not."""


@cache
def load(name: str) -> Any:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def scenarios(*, refused: bool = False) -> list[Any]:
    found = []
    for name in ("binding", "binding-cases"):
        for scenario in load(name)["scenarios"]:
            if ("refused" in scenario) == refused:
                label = str(scenario.get("seed", scenario.get("case")))
                found.append(pytest.param(load(name)["meta"], scenario, id=f"{name}-{label}"))
    return found


@pytest.mark.parametrize(("meta", "scenario"), scenarios())
def test_the_bound_names_with_their_ports_and_claims(meta: Any, scenario: Any) -> None:
    view = oracle.view_of(meta["world"], scenario["objects"])
    result = bind(view, SETTINGS)
    found = {name: {"ports": list(bound.ports), "as": list(bound.claims)} for name, bound in result.bound.items()}
    assert found == scenario["bound"]
    assert all(bound.v4 == ("10.96.9.9",) for bound in result.bound.values())


@pytest.mark.parametrize(("meta", "scenario"), scenarios())
def test_with_the_port_guard_those_whose_ports_are_all_served(meta: Any, scenario: Any) -> None:
    view = oracle.view_of(meta["world"], scenario["objects"])
    ports = {
        f"{name}.{namespace}.svc.cluster.local": {port.port for port in service.ports}
        for (namespace, name), service in view.services.items()
    }
    result = bind(view, replace(SETTINGS, port_guard=PortGuard.ENFORCE))
    bound = {name: one for name, one in scenario["bound"].items() if name != UNSERVED.get(scenario.get("seed"))}
    assert set(result.bound) == {name for name, one in bound.items() if ports[name] <= set(one["ports"])}


@pytest.mark.parametrize(("meta", "scenario"), scenarios())
def test_every_cluster_of_every_virtual_host_is_known_and_reached_as_in_envoy(meta: Any, scenario: Any) -> None:
    view = oracle.view_of(meta["world"], scenario["objects"])
    binder = oracle.binder_of(view, SETTINGS)
    names = {f"{name}.{namespace}.svc.cluster.local" for namespace, name in view.services}
    http = oracle.http_entries(binder, [*sorted(names), "foo", "a.shop.example", "shop.example"])
    tcp = oracle.tcp_entries(binder)
    assert http == {
        (entry["port"], entry["route"], domain, entry["cluster"]): (entry["known"], entry["reachable"])
        for entry in scenario["http"]
        for domain in entry["domains"]
    }
    assert tcp == {
        (entry["port"], tuple(sorted(entry["sni"])), entry["cluster"]): (entry["known"], entry["reachable"])
        for entry in scenario["tcp"]
        if not entry["cluster"].startswith("outbound_")
    }
    assert oracle.routed(binder.cluster.models[0], http, tcp, names) == scenario["routed"]


@pytest.mark.parametrize(("meta", "scenario"), scenarios())
def test_requests_for_a_services_own_name_arrive_where_they_did(meta: Any, scenario: Any) -> None:
    """`own_name` does not ask whether the cluster exists: so every destination exists here."""
    view = oracle.view_of(meta["world"], scenario["objects"])
    binder = oracle.binder_of(view, SETTINGS)
    model = binder.cluster.models[0]
    find = binder.cluster.finder(model)
    found = {}
    for namespace, name in view.services:
        full = f"{name}.{namespace}.svc.cluster.local"
        served = serve(
            model, full, binder.cluster.aliases(full), lambda target: replace(find(target), exists=True), lambda _: True
        )
        ports = [port for port, part in sorted(served.items()) if CLAIM_DESTINATION in part.claims]
        if ports:
            found[full] = ports
    assert found == scenario["own_name"]


@pytest.mark.parametrize(("meta", "scenario"), scenarios(refused=True))
def test_what_envoy_refuses_is_not_programmed_and_said(meta: Any, scenario: Any) -> None:
    """All but a missing certificate, which is not to be seen in the objects: Secrets are never read."""
    view = oracle.view_of(meta["world"], scenario["objects"])
    result = bind(view, SETTINGS)
    assert result.problems or "certificate missing" in scenario["case"]


@pytest.mark.parametrize(("meta", "scenario"), scenarios())
def test_every_service_is_bound_or_skipped_with_a_reason(meta: Any, scenario: Any) -> None:
    view = oracle.view_of(meta["world"], scenario["objects"])
    plain = to_plain(bind(view, SETTINGS), view, SETTINGS)
    bound = {entry["name"] for entry in plain["bound"]}
    skipped = {entry["name"]: entry for entry in plain["skipped"]}
    assert not bound & set(skipped)
    assert {f"{name}.{namespace}.svc.cluster.local" for namespace, name in view.services} <= bound | set(skipped)
    assert all(entry["message"] and Reason(entry["reason"]) for entry in skipped.values())


def test_a_name_that_gets_503_is_bound_with_a_warning_or_not_at_all() -> None:
    scenario = next(one for one in load("binding")["scenarios"] if one["seed"] == 267)
    name = UNSERVED[267]
    clusters = [one for one in scenario["http"] if "*" in one["domains"] and one["cluster"].endswith(name)]
    assert clusters
    assert not any(one["known"] for one in clusters)
    view = oracle.view_of(load("binding")["meta"]["world"], scenario["objects"])
    assert any("503" in warning for warning in bind(view, SETTINGS).bound[name].warnings)
    enforced = bind(view, replace(SETTINGS, port_guard=PortGuard.ENFORCE))
    assert enforced.skipped[name].reason is Reason.TARGET_NOT_FOUND
