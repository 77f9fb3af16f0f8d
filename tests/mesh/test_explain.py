"""The questions that people ask, and the link of the chain that answers each."""

# ruff: noqa: E501 - one question, one line

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.explain import Explanation, explain
from canal_dns.settings import BindingSettings, GatewayUnready, InternalGateway, PortGuard
from tests.mesh.builders import (
    HELLO,
    SETTINGS,
    endpoints,
    full,
    gateway,
    gateway_service,
    http,
    outcome,
    pod,
    server,
    service,
    to,
    virtual_service,
    world,
)

UNREADY = frozenset({"istio-system/internalgateway"})


def ask(
    *objects: Any, name: str = HELLO, settings: BindingSettings = SETTINGS, unready: frozenset[str] = frozenset()
) -> Explanation:
    view = world(*objects)
    binder = Binder(view, settings)
    binder.refresh(unready)
    found = explain(binder, view, settings, name)
    assert explain(bind(view, settings, unready), view, settings, name, unready) == found
    return found


def broken(found: Explanation) -> tuple[str, str, str]:
    """The first link that does not hold."""
    step = next(step for step in found.steps if not step.ok)
    return step.object, step.field, step.text


def test_a_bound_name_is_a_whole_chain() -> None:
    found = ask(gateway(), virtual_service())
    assert found.bound
    assert all(step.ok and step.text for step in found.steps)
    assert found.verdict == f"bound: {HELLO} is 10.96.9.9, the address of istio-system/internalgateway"
    texts = [f"{step.object}: {step.text}" for step in found.steps]
    assert texts[0] == "Service default/helloworld: it exists, with the ports 80/TCP"
    assert "Service istio-system/internalgateway: the gateway's address is 10.96.9.9" in texts
    assert "Service istio-system/internalgateway: it has ready pods" in texts
    assert "Gateway istio-system/internalgateway: is attached to the gateway's pods" in texts
    assert "VirtualService istio-system/helloworld: is not hidden behind another route" in texts
    assert texts[-1].endswith("port 80 is served as http by istio-system/internalgateway on istio-system/internalgateway")


def test_warnings_are_notes() -> None:
    found = ask(gateway(selector={}), virtual_service())
    assert found.steps[-1].text.startswith("note: Gateway istio-system/internalgateway has no selector")
    loose = ask(gateway(), virtual_service(), service(ports=(80, 81)), settings=replace(SETTINGS, port_guard=PortGuard.WARN))
    assert any(step.text == "port 81/TCP is not served on istio-system/internalgateway" for step in loose.steps)


@pytest.mark.parametrize(
    ("question", "objects", "want"),
    [
        ("is the Gateway attached?", (gateway(selector={"istio": "x"}), virtual_service()), ("Gateway istio-system/internalgateway", "spec.selector", "selector asks for istio=x")),
        ("is the port open on the Gateway?", (gateway(server(8443)), virtual_service()), ("Service default/helloworld", "spec.ports[0]", "no server of an attached Gateway listens on port 80")),
        ("is the port open on the gateway's Service?", (gateway(server(8081)), virtual_service()), ("Gateway istio-system/internalgateway", "spec.servers[0]", "port 8081 is no port of the gateway's Service")),
        ("is the Service's port open?", (gateway(), virtual_service(), service(ports=(80, 81))), ("Service default/helloworld", "spec.ports[1]", "has no port 81")),
        ("is it bound to this Gateway by name?", (gateway(), virtual_service(gateways=["x"])), ("VirtualService istio-system/helloworld", "spec.gateways", "istio-system/x, which does not exist")),
        ("... by namespace?", (gateway(), virtual_service(namespace="default", gateways=["internalgateway"])), ("VirtualService default/helloworld", "spec.gateways", "there is istio-system/internalgateway")),
        ("... exported?", (gateway(), virtual_service(exportTo=["x"])), ("VirtualService istio-system/helloworld", "spec.exportTo", "exported to x")),
        ("do the hosts meet?", (gateway(server(hosts=["x"])), virtual_service()), ("VirtualService istio-system/helloworld", "spec.hosts", "the gateway answers 404")),
        ("behind which route is it hidden?", (gateway(), virtual_service(http(full("p.default")), name="a"), virtual_service(), service("p")), ("VirtualService istio-system/helloworld", "spec.http[0]", "VirtualService istio-system/a spec.http[0]")),
        ("does the destination's port exist?", (gateway(), virtual_service(http(to(port=81)))), ("VirtualService istio-system/helloworld", "spec.http[0].route[0].destination.port", "no TCP port 81")),
        ("does the subset?", (gateway(), virtual_service(http(to(subset="v1")))), ("VirtualService istio-system/helloworld", "spec.http[0].route[0].destination.subset", "subset v1")),
        ("is there a gateway at all?", (gateway(), virtual_service(), gateway_service(clusterIP="None")), ("Service istio-system/internalgateway", "spec.clusterIPs", "is headless")),
        ("is it protected?", (gateway(), virtual_service(), service(annotations={"canal-dns.io/bind": "false"})), ("Service default/helloworld", "metadata.annotations[canal-dns.io/bind]", "says no")),
        ("does anything route to it?", (gateway(),), ("Service default/helloworld", "", "no VirtualService names the Service")),
        ("is there any Gateway?", (), ("Service istio-system/internalgateway", "", "attached Gateways, by their selectors: nothing")),
        ("do others govern it?", (gateway(), virtual_service(namespace="shop")), ("VirtualService shop/helloworld", "metadata.namespace", "governs the name too")),
    ],
)  # fmt: skip
def test_the_questions(question: str, objects: tuple[Any, ...], want: tuple[str, str, str]) -> None:
    found = ask(*objects)
    assert not found.bound
    thing, field, text = broken(found)
    assert (thing, field) == want[:2], found
    assert want[2] in text
    assert found.verdict.startswith("not bound: ")


def test_has_the_gateway_ready_pods() -> None:
    none = endpoints(ready=False)
    found = ask(gateway(), virtual_service(), none, unready=UNREADY)
    assert broken(found) == ("Service istio-system/internalgateway", "endpoints", "it has no ready pod")
    assert "GatewayNotReady" in found.verdict
    waiting = ask(gateway(), virtual_service(), none)
    assert waiting.bound
    assert any("does not count (yet)" in step.text for step in waiting.steps)
    returning = ask(gateway(), virtual_service(), unready=UNREADY)
    assert broken(returning)[2] == "it has ready pods, not long enough yet"
    kept = ask(
        gateway(), virtual_service(), none, unready=UNREADY, settings=replace(SETTINGS, gateway_unready=GatewayUnready.KEEP)
    )
    assert kept.bound


def test_links_that_hold_come_before_the_one_that_does_not() -> None:
    found = ask(gateway(), virtual_service(http(to(port=81))))
    chain = [step.ok for step in found.steps if step.object.startswith(("VirtualService", "Gateway"))]
    assert chain == [True] * (len(chain) - 1) + [False]
    assert len(chain) > 8


def test_the_limit_is_told_though_every_link_holds() -> None:
    other = virtual_service(http(full("a.default"), match={"uri": {"prefix": "/a"}}), name="a")
    found = ask(gateway(), other, virtual_service(), service("a"), settings=replace(SETTINGS, max_bindings=1))
    assert not found.bound
    assert "binding.maxBindings is 1" in broken(found)[2]


@pytest.mark.parametrize(
    "name", [HELLO, f"{HELLO}.", HELLO.upper(), "helloworld.default", "helloworld.default.svc", "helloworld", " helloworld "]
)
def test_names_as_people_write_them(name: str) -> None:
    assert ask(gateway(), virtual_service(), name=name).name == HELLO


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("www.example.com", "is not the name of a Service of cluster.local"),
        ("nosuch", "there is no Service called 'nosuch' in any namespace"),
        ("web", "Service 'web' is in the namespaces a, b: say which, e.g. web.a"),
    ],
)
def test_names_that_mean_no_service(name: str, verdict: str) -> None:
    found = ask(gateway(), service("web", "a"), service("web", "b"), name=name)
    assert not found.bound
    assert found.steps == ()
    assert verdict in found.verdict


def test_a_service_that_does_not_exist() -> None:
    found = ask(gateway(), name="gone.default")
    assert broken(found)[2] == "there is no such Service"
    assert "TargetNotFound" in found.verdict
    named = ask(gateway(), virtual_service(http(full("gone.default"))), name="gone.default")
    assert "VirtualService istio-system/helloworld" in named.verdict


def test_a_bare_name_that_only_virtual_services_know() -> None:
    objects = (gateway(), virtual_service(http(full("gone.default")), hosts=[full("gone.default"), "gone.example.com"]))
    assert ask(*objects, name="gone") == ask(*objects, name="gone.default")
    assert "TargetNotFound" in ask(*objects, name="gone").verdict
    other = virtual_service(http(full("gone.shop")), name="other")
    assert "is in the namespaces default, shop: say which, e.g. gone.default" in ask(*objects, other, name="gone").verdict
    unusable = service("gone", "default", clusterIP=None, clusterIPs=[""])
    assert ask(gateway(), unusable, name="gone") == ask(gateway(), unusable, name="gone.default")


def test_a_service_that_is_not_usable() -> None:
    found = ask(gateway(), virtual_service(), service(clusterIP=None, clusterIPs=[""]), name="helloworld.default")
    assert broken(found)[:2] == ("Service default/helloworld", "spec.clusterIPs[0]")
    assert broken(found)[2].startswith("Service default/helloworld is there but not usable: ")
    assert "not bound: Invalid: " in found.verdict


def test_every_skipped_name_is_explained() -> None:
    result = outcome(gateway(), virtual_service(http(to(weight=0), to(full("x.y"), weight=1))))
    assert set(result.skipped) == {HELLO, full("x.y")}


def test_only_the_gateway_that_serves_it_is_told_of() -> None:
    two = replace(SETTINGS, gateways=(*SETTINGS.gateways, InternalGateway("shop", "second")))
    second = (
        gateway_service("second", "shop", clusterIP="10.96.9.2"),
        pod("gw-1", "shop", {"istio": "second"}),
        gateway(name="second", namespace="shop", selector={"istio": "second"}),
        virtual_service(name="second", gateways=["shop/second"]),
    )
    found = ask(gateway(), virtual_service(), *second, settings=two)
    assert found.bound
    assert not any("shop/second" in step.text for step in found.steps)
