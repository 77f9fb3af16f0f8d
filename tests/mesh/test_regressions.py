"""Defects of the original controller that must not come back, where they concern the rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.result import Reason
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, InternalGateway
from tests.mesh.builders import (
    HELLO,
    SETTINGS,
    delegate,
    full,
    gateway,
    gateway_service,
    http,
    l4,
    outcome,
    pod,
    server,
    service,
    sni,
    tcp_server,
    tls_server,
    virtual_service,
    world,
)


def test_c1_nothing_is_called_as_the_original_called_it() -> None:
    """Namespace, gateway Service, pod labels and cluster domain are free."""
    chosen = BindingSettings(gateways=(InternalGateway("edge", "in"),), cluster_domain="k8s.corp")
    objects = (
        gateway_service("in", "edge", selector={"role": "in"}),
        pod("in-0", "edge", {"role": "in"}),
        gateway(name="g", namespace="edge", selector={"role": "in"}),
        virtual_service(http("helloworld.default.svc.k8s.corp"), namespace="edge", gateways=["g"]),
    )
    assert set(outcome(*objects, settings=chosen, base=()).bound) == {"helloworld.default.svc.k8s.corp"}


@pytest.mark.parametrize("place", ["istio-system", "default"])
@pytest.mark.parametrize("name", ["istio-system/internalgateway", "internalgateway.istio-system"])
def test_c2_the_virtual_service_may_live_elsewhere(place: str, name: str) -> None:
    assert HELLO in outcome(gateway(), virtual_service(namespace=place, gateways=[name])).bound


@pytest.mark.parametrize(
    "objects",
    [
        (gateway(tcp_server(80)), virtual_service(tcp=[l4(HELLO)])),
        (gateway(tls_server(80)), virtual_service(tls=[sni(HELLO)], hosts=[HELLO])),
        (gateway(), virtual_service(http(delegate={"name": "d"})), delegate(http(HELLO))),
    ],
)
def test_c3_all_kinds_of_routes(objects: Any) -> None:
    assert HELLO in outcome(*objects).bound


@pytest.mark.parametrize(
    "more",
    [
        {"hosts": ["x.example"]},
        {"exportTo": ["x"]},
        {"http": [http(HELLO, match={"gateways": ["mesh"]})]},
        {"http": [http(HELLO, match={"port": 1})]},
    ],
)
def test_c3_all_conditions(more: Any) -> None:
    assert HELLO not in outcome(gateway(), virtual_service(**more)).bound


def test_c4_a_name_with_a_dot_is_not_completed() -> None:
    result = outcome(gateway(), virtual_service(http("helloworld.default")))
    assert set(result.skipped) == {HELLO}


@pytest.mark.parametrize("gateways", [(), (gateway(name="a"), gateway(name="b"), gateway(name="c", selector={"x": "y"}))])
def test_c5_no_gateways_and_many(gateways: Any) -> None:
    result = outcome(*gateways, virtual_service(gateways=["istio-system/a"]))
    assert (HELLO in result.bound) == bool(gateways)


def test_c6_a_deleted_service_is_not_answered() -> None:
    view = world(gateway(), virtual_service())
    binder = Binder(view, SETTINGS)
    binder.refresh()
    view.delete("Service", "default", "helloworld")
    assert binder.refresh() == {HELLO: None}


def test_c7_an_update_is_one_step() -> None:
    """There is no moment in which the name is not bound."""
    view = world(gateway(), virtual_service())
    binder = Binder(view, SETTINGS)
    binder.refresh()
    record = parse(virtual_service(http(HELLO, match={"uri": {"prefix": "/new"}})))
    assert record is not None
    view.apply(record)
    assert binder.refresh() == {}
    assert HELLO in binder.result.bound


def test_c8_and_c9_starting_again_gives_the_same() -> None:
    objects = [
        gateway(),
        virtual_service(),
        service("b"),
        virtual_service(http(full("b.default"), match={"uri": {"exact": "/b"}}), name="b"),
    ]
    once = bind(world(*objects), SETTINGS)
    view = world(*objects)
    for raw in [*objects, *reversed(objects)]:
        record = parse(raw)
        assert record is not None
        view.apply(record)
    assert bind(view, SETTINGS) == once
    backwards = View(filter(None, map(parse, reversed([gateway_service(), pod(), service(), *objects]))))
    assert bind(backwards, SETTINGS).bound == once.bound


def test_c12_the_gateway_itself_is_never_bound() -> None:
    own = full("internalgateway.istio-system")
    result = outcome(gateway(server(), tcp_server(), server(8443)), virtual_service(http(own)))
    assert result.skipped[own].reason is Reason.PROTECTED


def test_c13_headless_services_keep_their_pods_addresses() -> None:
    assert outcome(gateway(), virtual_service(), service(clusterIP="None")).skipped[HELLO].reason is Reason.HEADLESS
    opted = outcome(gateway(), virtual_service(), service(clusterIP="None"), settings=replace(SETTINGS, headless=True))
    assert set(opted.bound) == {HELLO}
