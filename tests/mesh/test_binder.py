"""The Binder, change by change: what each touches, and what not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh import model
from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.result import Reason
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, CrossNamespace, GatewayUnready, InternalGateway, PortGuard
from tests.mesh import builders as make
from tests.mesh.builders import HELLO, SETTINGS, full

TWO_GATEWAYS = (InternalGateway("istio-system", "internalgateway"), InternalGateway("shop", "second"))


def binder(*objects_: Any, settings: BindingSettings = SETTINGS) -> tuple[View, Binder]:
    view = make.world(*objects_)
    made = Binder(view, settings)
    made.refresh()
    return view, made


def put(view: View, raw: Any) -> bool:
    record = parse(raw)
    assert record is not None
    return view.apply(record)


def test_a_status_update_changes_nothing() -> None:
    view, made = binder(make.gateway(), make.virtual_service())
    assert not put(view, {**make.virtual_service(), "status": {"conditions": []}})
    assert not put(view, {**make.pod(), "status": {"phase": "Running"}})
    assert made.refresh() == {}


def test_an_edit_without_effect_is_no_gap() -> None:
    """Rows 55 and 56: of two routes to it one goes; a route is edited. The name stays as it is, in one step."""
    view, made = binder(
        make.gateway(),
        make.virtual_service(),
        make.virtual_service(make.http(HELLO, match={"uri": {"prefix": "/a"}}), name="b"),
    )
    assert put(view, make.virtual_service(make.http(make.to(port=80)), name="helloworld"))
    assert made.refresh() == {}
    view.delete("VirtualService", "istio-system", "b")
    assert made.refresh()[HELLO].routes == ("istio-system/helloworld",)  # type: ignore[union-attr]
    view.delete("VirtualService", "istio-system", "helloworld")
    assert made.refresh() == {HELLO: None}


def test_the_gateway_goes_and_comes_within_one_refresh() -> None:
    """Rows 14, 63 and 65."""
    view, made = binder(make.gateway(), make.virtual_service())
    view.delete("Gateway", "istio-system", "internalgateway")
    assert made.refresh() == {HELLO: None}
    put(view, make.gateway())
    assert set(made.refresh()) == {HELLO}
    put(view, make.gateway_service(clusterIP="10.96.9.10"))
    assert made.refresh()[HELLO].v4 == ("10.96.9.10",)  # type: ignore[union-attr]
    view.delete("Service", "istio-system", "internalgateway")
    assert made.refresh() == {HELLO: None}


def test_a_deleted_service_is_unbound_at_once() -> None:
    """Row 46: the original kept answering for it."""
    view, made = binder(make.gateway(), make.virtual_service())
    view.delete("Service", "default", "helloworld")
    assert made.refresh() == {HELLO: None}
    assert made.result.skipped[HELLO].reason is Reason.TARGET_NOT_FOUND


def test_an_unready_gateway_is_kept_if_told_so() -> None:
    unready = frozenset({"istio-system/internalgateway"})
    _, made = binder(make.gateway(), make.virtual_service(), settings=replace(SETTINGS, gateway_unready=GatewayUnready.KEEP))
    assert made.refresh(unready) == {}
    _, made = binder(make.gateway(), make.virtual_service())
    assert made.refresh(unready) == {HELLO: None}
    assert made.result.skipped[HELLO].reason is Reason.GATEWAY_NOT_READY
    assert set(made.refresh()) == {HELLO}


def test_the_limit_is_kept_in_order_of_name() -> None:
    other = full("a.default")
    view, made = binder(make.gateway(), make.virtual_service(), settings=replace(SETTINGS, max_bindings=1))
    put(view, make.service("a"))
    put(view, make.virtual_service(make.http(other, match={"uri": {"prefix": "/a"}}), name="a"))
    changed = made.refresh()
    assert changed[HELLO] is None
    assert set(made.result.bound) == {other}
    assert made.result.skipped[HELLO].reason is Reason.LIMIT_EXCEEDED
    view.delete("Service", "default", "a")
    assert set(made.refresh()) == {HELLO, other}


def test_a_name_of_two_gateways_goes_to_the_older_virtual_service() -> None:
    objects_ = (
        make.gateway(),
        make.gateway_service("second", "shop", clusterIP="10.96.9.2"),
        make.pod("gw-1", "shop", {"istio": "second"}),
        make.gateway(name="second", namespace="shop", selector={"istio": "second"}),
    )
    older = make.virtual_service(namespace="shop", gateways=["shop/second"], created=1)
    younger = make.virtual_service(created=2)
    chosen = replace(SETTINGS, gateways=TWO_GATEWAYS, cross_namespace=CrossNamespace.ALLOW)
    view, made = binder(*objects_, older, younger, settings=chosen)
    result = made.result
    assert result.bound[HELLO].gateway == "shop/second"
    assert result.bound[HELLO].v4 == ("10.96.9.2",)
    conflict = next(one for one in result.problems if one.reason is Reason.CONFLICTED)
    assert conflict.object == "VirtualService istio-system/helloworld"
    view.delete("VirtualService", "shop", "helloworld")
    assert made.refresh()[HELLO].gateway == "istio-system/internalgateway"  # type: ignore[union-attr]
    assert not made.result.problems


def test_destination_rules_that_may_not_be_read() -> None:
    view, made = binder(make.gateway(), make.virtual_service(make.http(make.to(subset="v1"))))
    assert HELLO not in made.result.bound
    view.set_unavailable(["DestinationRule"])
    bound = made.refresh()[HELLO]
    assert bound is not None
    assert any("cannot be read" in text for text in bound.warnings)


def test_a_pod_that_moves_shows_at_once_and_no_name_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    view, made = binder(make.gateway(), make.virtual_service())
    assert made.result.gateways[0].endpoints == ("10.244.0.1",)
    monkeypatch.setattr(Binder, "_evaluate", None)
    for raw, seen in [
        (make.endpoints(addresses=("10.244.0.7",)), ("10.244.0.7",)),
        (make.endpoints(name="more", ready=False, addresses=("10.244.0.10", "10.244.0.7")), ("10.244.0.10", "10.244.0.7")),
        (make.endpoints("helloworld", "istio-system", addresses=("10.244.0.9",)), ("10.244.0.10", "10.244.0.7")),
    ]:
        assert put(view, raw)
        assert made.refresh() == {}
        assert made.result.gateways[0].endpoints == seen
    view.delete("EndpointSlice", "istio-system", "more")
    assert made.refresh() == {}
    assert made.result.gateways[0].endpoints == ("10.244.0.7",)


def test_endpoint_slices_and_namespaces_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    view, made = binder(make.gateway(), make.virtual_service(), make.endpoints(ready=False))
    before = made.result.gateways[0]
    assert (before.ready, before.warnings) == (False, ())
    monkeypatch.setattr(Binder, "_evaluate", None)
    view.reset("EndpointSlice", [])
    view.set_unavailable(["EndpointSlice", "Namespace"])
    assert made.refresh() == {}
    state = made.result.gateways[0]
    assert (state.ready, state.endpoints) == (True, ())
    assert state.warnings[0].startswith("EndpointSlices cannot be read: it counts as ready")
    assert state.warnings[1].startswith("Namespaces cannot be read")
    put(view, make.endpoints(ready=False))
    view.set_unavailable([])
    assert made.refresh() == {}
    assert made.result.gateways[0] == before


def test_the_result_is_to_be_read_only() -> None:
    _, made = binder(make.gateway(), make.virtual_service())
    with pytest.raises(TypeError):
        made.result.bound[HELLO] = made.result.bound[HELLO]  # type: ignore[index]
    assert len(made.result.skipped) == 0
    assert list(made.result.skipped) == []


def test_a_reason_is_found_once() -> None:
    _, made = binder(make.gateway(), make.virtual_service(make.http(make.to(port=81))))
    skipped = made.result.skipped
    assert skipped[HELLO] is skipped[HELLO]


def test_a_domain_that_only_redirects_stays_when_its_routes_go() -> None:
    view, made = binder(
        make.gateway(make.server(hosts=[HELLO], tls={"httpsRedirect": True}), make.server()), make.virtual_service()
    )
    assert made.result.skipped[HELLO].reason is Reason.NO_ACTION
    view.delete("VirtualService", "istio-system", "helloworld")
    put(view, make.virtual_service(make.http(HELLO), name="b"))
    assert made.refresh() == {}
    assert made.result.skipped[HELLO].reason is Reason.NO_ACTION


def test_a_delegate_follows_its_roots() -> None:
    root = make.virtual_service(make.http(delegate={"name": "d"}))
    second = make.virtual_service(make.http(delegate={"name": "d"}), name="second", hosts=["x.example"])
    view, made = binder(make.gateway(), root, second, make.delegate(make.http(HELLO)))
    assert set(made.result.bound) == {HELLO}
    view.delete("VirtualService", "istio-system", "second")
    assert made.refresh() == {}
    put(view, make.delegate(make.http(full("other.default"))))
    assert made.refresh() == {HELLO: None}
    put(view, make.delegate(make.http(HELLO)))
    assert set(made.refresh()) == {HELLO}
    view.delete("VirtualService", "istio-system", "helloworld")
    assert made.refresh() == {HELLO: None}
    assert made.result.skipped[HELLO].reason is Reason.DELEGATE


def test_a_destination_that_goes_takes_the_hosts_with_it() -> None:
    """The name of an http host and of a server name depend on Services that they do not name."""
    other = full("other.default")
    routes = make.virtual_service(make.http(other), hosts=[HELLO], tls=[make.sni(HELLO, to_host=other)])
    chosen = replace(SETTINGS, port_guard=PortGuard.WARN)
    view, made = binder(make.gateway(make.server(80), make.tls_server()), routes, make.service("other"), settings=chosen)
    assert made.result.bound[HELLO].ports == (80, 8443)
    view.delete("Service", "default", "other")
    assert made.refresh() == {HELLO: None}
    for alias in ("alias", "also"):
        put(view, make.service(alias, type="ExternalName", externalName=full("third.default")))
    put(view, make.virtual_service(make.http(full("alias.default")), hosts=["*.default.svc.cluster.local"], name="b"))
    assert made.refresh() == {}
    put(view, make.service("third"))
    assert set(made.refresh()) == {full("third.default")}
    view.delete("Service", "default", "alias")
    assert made.refresh() == {full("third.default"): None}


def test_a_namespace_that_forbids_nothing_has_no_name_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    view, made = binder(make.gateway(), make.virtual_service())
    monkeypatch.setattr(Binder, "_evaluate", None)
    put(view, make.namespace("default", bind="what"))
    assert made.refresh() == {}
    assert [one.object for one in made.result.problems] == ["Namespace default"]
    view.delete("Namespace", "", "default")
    assert made.refresh() == {}


def test_a_destination_rule_touches_the_names_that_stand_for_its_host() -> None:
    aim = make.http(make.to(full("alias.default"), subset="v1"))
    view, made = binder(
        make.gateway(),
        make.service(),
        make.service("alias", type="ExternalName", externalName=HELLO),
        make.virtual_service(aim, hosts=[HELLO]),
    )
    assert made.result.bound == {}
    put(view, make.destination_rule(HELLO, "v1"))
    assert set(made.refresh()) == {HELLO}
    assert set(made.result.bound) == {HELLO}
    view.delete("DestinationRule", "default", "dr")
    assert made.refresh() == {HELLO: None}


def test_a_namespace_that_opts_out_takes_its_names_along() -> None:
    view, made = binder(make.gateway(), make.virtual_service())
    put(view, make.namespace("default", bind="false"))
    assert made.refresh() == {HELLO: None}
    put(view, make.namespace("default", bind="what"))
    assert set(made.refresh()) == {HELLO}
    assert [one.object for one in made.result.problems] == ["Namespace default"]


def test_chains_that_become_refused_and_are_so_no_more() -> None:
    gateway = make.gateway(
        make.tls_server(8443, "SIMPLE", "HTTPS", hosts=["*.default.svc.cluster.local"]), make.tls_server(8443)
    )
    chosen = replace(SETTINGS, port_guard=PortGuard.WARN)
    view, made = binder(gateway, make.virtual_service(), settings=chosen)
    assert made.result.bound[HELLO].ports == (8443,)
    put(view, make.virtual_service(tls=[make.sni("*.default.svc.cluster.local")], name="t", hosts=["*"]))
    assert made.refresh() == {HELLO: None}
    assert any("Envoy refuses port 8443" in one.message for one in made.result.problems)
    view.delete("VirtualService", "istio-system", "t")
    assert set(made.refresh()) == {HELLO}


def test_filter_chains_are_made_once_per_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all changes together: made for each of them, a load of 2,000 tls routes took half a minute."""
    made_of: list[int] = []
    check = model._checked

    def count(port: int, chains: Any) -> Any:
        made_of.append(len(chains))
        return check(port, chains)

    monkeypatch.setattr(model, "_checked", count)
    names = [full(f"s{number}.default") for number in range(5)]
    routes = [make.virtual_service(tls=[make.sni(one, to_host=one)], name=f"v{n}") for n, one in enumerate(names)]
    services = [make.service(f"s{number}", ports=(8443,)) for number in range(5)]
    view, made = binder(make.gateway(make.tls_server()), *services, *routes)
    assert set(made.result.bound) == set(names)
    assert made_of == [0, 5]
    for number in (0, 1, 2):
        view.delete("VirtualService", "istio-system", f"v{number}")
    assert made.refresh() == dict.fromkeys(names[:3])
    assert made_of == [0, 5, 2]


def test_a_server_name_in_capitals_is_bound_from_nothing_as_in_steps() -> None:
    """Envoy compares it in lower case; no Service is meant by it letter for letter, and so nobody looked at the name."""
    capitals = make.sni("A.default.svc.cluster.local", to_host=HELLO)
    chosen = replace(SETTINGS, port_guard=PortGuard.WARN)
    objects_ = make.gateway(make.server(80), make.tls_server()), make.service("a")
    view, made = binder(*objects_, settings=chosen)
    put(view, make.virtual_service(tls=[capitals], name="v"))
    assert full("a.default") in made.refresh()
    assert made.result.bound == bind(view, chosen).bound
    put(view, make.virtual_service(tls=[make.sni("A.default.svc.cluster.local", to_host=full("gone.shop"))], name="v"))
    assert made.refresh()[full("a.default")] is None
    assert made.result.skipped[full("a.default")].route == "istio-system/v"


def test_destination_rules_that_may_not_be_read_touch_hosts_of_routes_to_other_services() -> None:
    """The name of an http host depends on a subset of a Service that is not its own."""
    other = full("other.default")
    aim = make.virtual_service(make.http(make.to(other, subset="v1")), hosts=[HELLO])
    view, made = binder(make.gateway(), make.service("other"), aim)
    assert made.result.bound == {}
    view.set_unavailable(["DestinationRule"])
    assert HELLO in made.refresh()
    assert made.result.bound == bind(view, SETTINGS).bound
    view.set_unavailable([])
    assert made.refresh()[HELLO] is None
