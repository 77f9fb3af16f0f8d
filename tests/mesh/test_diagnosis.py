"""Reasons: for each thing that can be in the way the object, the field and what a person is told."""

# ruff: noqa: E501 - one case, one line

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.result import Reason, Skipped
from canal_dns.settings import BindingSettings, InternalGateway, MeshSettings, PortGuard
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
    server,
    service,
    sni,
    tcp_server,
    tls_server,
    to,
    virtual_service,
    world,
)

PLAIN = full("plain.default")
LOOSE = replace(SETTINGS, port_guard=PortGuard.WARN)
ROUTE = "VirtualService istio-system/helloworld"
ON_8443 = gateway(tls_server())


def skipped(*objects: Any, name: str = HELLO, settings: BindingSettings = LOOSE) -> Skipped:
    kinds = {one["kind"] for one in objects}
    usual = [gateway()] * ("Gateway" not in kinds)
    return outcome(*usual, service("plain"), *objects, settings=settings).skipped[name]


def tls(*routes: Any, **more: Any) -> Any:
    return virtual_service(tls=list(routes), **{"hosts": ["*"], **more})


def tcp(*routes: Any, **more: Any) -> Any:
    return virtual_service(tcp=list(routes), **more)


CASES: list[tuple[str, tuple[Any, ...], Reason, str, str, str]] = [
    ("bare gateway name of another namespace", (virtual_service(namespace="default", gateways=["internalgateway"]),), Reason.GATEWAY_NOT_FOUND, "VirtualService default/helloworld", "spec.gateways", "gateways: [internalgateway] means default/internalgateway, which does not exist; there is istio-system/internalgateway"),
    ("a gateway of no such name", (virtual_service(gateways=["mesh", "x"]),), Reason.GATEWAY_NOT_FOUND, ROUTE, "spec.gateways", "[x] means istio-system/x, which does not exist"),
    ("mesh only", (virtual_service(gateways=["mesh"]),), Reason.GATEWAY_NOT_FOUND, ROUTE, "spec.gateways", "names only `mesh`"),
    ("no gateways", (virtual_service(gateways=None),), Reason.GATEWAY_NOT_FOUND, ROUTE, "spec.gateways", "names no gateways"),
    ("selector", (gateway(selector={"istio": "x"}), virtual_service()), Reason.NOT_ATTACHED, "Gateway istio-system/internalgateway", "spec.selector", "its selector asks for istio=x"),
    ("export", (virtual_service(exportTo=["prod"]),), Reason.NOT_EXPORTED, ROUTE, "spec.exportTo", "exported to prod, and the gateway's pods are in namespace istio-system"),
    ("an unused delegate", (delegate(http(HELLO), name="helloworld"),), Reason.DELEGATE, ROUTE, "spec.hosts", "no root VirtualService names it"),
    ("a delegate whose root goes elsewhere", (virtual_service(http(delegate={"name": "d"}), gateways=["x"]), delegate(http(HELLO, match={"uri": {"exact": "/"}}))), Reason.GATEWAY_NOT_FOUND, ROUTE, "spec.gateways", "does not exist"),
    ("a delegate that is no route of the root", (virtual_service(http(delegate={"name": "d"}, match={"uri": {"exact": "/b"}}), http(PLAIN)), delegate(http(HELLO, match={"uri": {"exact": "/"}}))), Reason.DELEGATE, "VirtualService istio-system/d", "spec.http[0]", "its match is not part of the match of the root route"),
    ("http on TCP", (gateway(tcp_server()), virtual_service()), Reason.PROTOCOL, ROUTE, "spec.http[0].route[0].destination.host", "needs a server of kind HTTP or HTTPS, Gateway istio-system/internalgateway has TCP:9000"),
    ("tcp on HTTP", (tcp(l4(HELLO)),), Reason.PROTOCOL, ROUTE, "spec.tcp[0].route[0].destination.host", "kind TCP"),
    ("tls on SIMPLE", (gateway(tls_server(8443, "SIMPLE")), tls(sni(HELLO))), Reason.PROTOCOL, ROUTE, "", "has TLS:8443 SIMPLE"),
    ("tls on AUTO_PASSTHROUGH", (gateway(tls_server(8443, "AUTO_PASSTHROUGH")), tls(sni(HELLO))), Reason.GATEWAY_NOT_PROGRAMMED, ROUTE, "", "AUTO_PASSTHROUGH"),
    ("a dropped server", (gateway(tcp_server(80), server(80)), virtual_service()), Reason.GATEWAY_NOT_PROGRAMMED, "Gateway istio-system/internalgateway", "spec.servers[1]", "istiod drops the server: port 80 is taken by istio-system/internalgateway spec.servers[0]"),
    ("a server on loopback", (gateway(server(bind="127.0.0.1")), virtual_service()), Reason.GATEWAY_NOT_PROGRAMMED, "Gateway istio-system/internalgateway", "spec.servers[0]", "bound to 127.0.0.1"),
    ("a server on another port", (gateway(server(8080)), virtual_service()), Reason.GATEWAY_NOT_PROGRAMMED, "Gateway istio-system/internalgateway", "spec.servers[0]", "port 8080 is no port of the gateway's Service istio-system/internalgateway, which has 80, 8443, 9000"),
    ("hosts that do not meet", (gateway(server(hosts=["prod/*"])), virtual_service()), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", "its hosts * and the hosts prod/* of the Gateway's servers have nothing in common for namespace istio-system"),
    ("hosts that do not meet, tcp", (gateway(tcp_server(hosts=["prod/*"])), tcp(l4(HELLO))), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", "nothing in common"),
    ("hosts that do not meet, tls", (gateway(tls_server(hosts=["prod/*"])), tls(sni(HELLO))), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", "nothing in common"),
    ("a port that does not match", (virtual_service(http(HELLO, match=[{"port": 1}, {"port": 2}])),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match[0].port", "it asks for port 1, the server has 80"),
    ("source labels, one of two", (virtual_service(http(HELLO, match={"sourceLabels": {"app": "internalgateway", "b": "c"}})),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match[0].sourceLabels", "do not have b=c"),
    ("source labels", (virtual_service(http(HELLO, match={"sourceLabels": {"a": "b"}})),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match[0].sourceLabels", "do not have a=b"),
    ("source namespace", (virtual_service(http(HELLO, match={"sourceNamespace": "x"})),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match[0].sourceNamespace", "it asks for x"),
    ("match on other gateways", (virtual_service(http(HELLO, match={"gateways": ["mesh"]})),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match[0].gateways", "it names mesh"),
    ("tcp port that does not match", (gateway(tcp_server()), tcp(l4(HELLO, match={"port": 1}))), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.tcp[0].match", "port 9000"),
    ("tls port that does not match", (ON_8443, tls(sni(HELLO, port=1))), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.tls[0].match", "port 8443"),
    ("an authority that is another", (virtual_service(http(HELLO, match={"authority": {"exact": "x"}})),), Reason.MATCH_NOT_APPLICABLE, ROUTE, "spec.http[0].match", "an authority that requests"),
    ("a mirror", (virtual_service(http(PLAIN, mirror={"host": HELLO})),), Reason.NO_ACTION, ROUTE, "spec.http[0].mirror", "copies"),
    ("a redirect", (virtual_service(http(HELLO, redirect={"uri": "/"})),), Reason.NO_ACTION, ROUTE, "spec.http[0]", "redirects"),
    ("a direct response", (virtual_service(http(HELLO, directResponse={"status": 200})),), Reason.NO_ACTION, ROUTE, "spec.http[0]", "directResponse"),
    ("weight 0", (virtual_service(http(to(weight=0), to(PLAIN, weight=1))),), Reason.NO_ACTION, ROUTE, "spec.http[0].route[0].destination.host", "weight 0"),
    ("weight 0, tcp", (gateway(tcp_server()), tcp(l4(to(weight=0), to(PLAIN, weight=1)))), Reason.NO_ACTION, ROUTE, "spec.tcp[0].route[0].destination.host", "weight 0"),
    ("a host without routes", (virtual_service(http=[], hosts=[HELLO]),), Reason.NO_ACTION, ROUTE, "spec", "no routes"),
    ("a host whose delegate is missing", (virtual_service(http(delegate={"name": "x"}), hosts=[HELLO]),), Reason.DELEGATE, ROUTE, "spec.http[0].delegate", "does not exist"),
    ("404", (virtual_service(hosts=["x.example"]),), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", f"the gateway answers 404 for {HELLO}: its virtual hosts are x.example"),
    ("a literal host", (virtual_service(http(PLAIN), hosts=["helloworld.default"]),), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", "Istio takes 'helloworld.default' literally"),
    ("a literal host beside a wildcard", (virtual_service(http(PLAIN), hosts=["helloworld.default", "*.local"]),), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts[0]", "literally: it is another domain"),
    ("another virtual host", (virtual_service(), virtual_service(http(PLAIN), name="b", hosts=["*.local"])), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts", "go to the virtual host *.local of istio-system/b, where this VirtualService has no route"),
    ("a redirecting server", (gateway(server(tls={"httpsRedirect": True})), virtual_service()), Reason.NO_ACTION, ROUTE, "spec.http[0].route[0].destination.host", "redirects * to HTTPS"),
    ("hidden by itself", (virtual_service(http(PLAIN), http(HELLO)),), Reason.SHADOWED, ROUTE, "spec.http[1]", "an earlier route of the same VirtualService takes every request (spec.http[0])"),
    ("hidden by another", (virtual_service(http(PLAIN), name="a"), virtual_service()), Reason.SHADOWED, ROUTE, "spec.http[0]", "an earlier route takes every request that would come to this one: VirtualService istio-system/a spec.http[0]"),
    ("hidden by several", (virtual_service(http(PLAIN, match={"headers": {"x": {"exact": "1"}}}), http(PLAIN, match={"withoutHeaders": {"x": {"exact": "1"}}}), http(HELLO)),), Reason.SHADOWED, ROUTE, "spec.http[2]", "earlier routes take every request"),
    ("a second tcp route", (gateway(tcp_server()), tcp(l4(PLAIN), l4(HELLO))), Reason.SHADOWED, ROUTE, "spec.tcp[1]", "only the first tcp route of a server"),
    ("another's tcp route", (gateway(tcp_server()), tcp(l4(PLAIN), name="a"), tcp(l4(HELLO))), Reason.SHADOWED, ROUTE, "spec.tcp[0]", "VirtualService istio-system/a spec.tcp[0] comes first"),
    ("a server name that is taken", (ON_8443, tls(sni("x.example", to_host=PLAIN), name="a"), tls(sni(HELLO, "x.example"), name="b")), Reason.SHADOWED, "VirtualService istio-system/b", "spec.tls[0].match[0].sniHosts", "already used"),
    ("a server name that is another", (ON_8443, tls(sni("x.example"))), Reason.HOST_NOT_SERVED, ROUTE, "spec.tls[0].match[0].sniHosts", "its sniHosts are x.example"),
    ("tcp hosts name nobody", (gateway(tcp_server()), tcp(l4(PLAIN), hosts=[HELLO])), Reason.HOST_NOT_SERVED, ROUTE, "spec.hosts[0]", "a tcp route is found by port, not by hosts"),
    ("tls hosts name nobody", (ON_8443, tls(sni(HELLO, to_host="x.example"), hosts=[HELLO])), Reason.TARGET_NOT_FOUND, ROUTE, "spec.tls[0].route[0].destination.host", "no Service is called 'x.example'"),
    ("a port that the Service lacks", (virtual_service(http(to(port=81))),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.port", "Service default/helloworld has no TCP port 81: the gateway answers 503"),
    ("a subset of nobody", (virtual_service(http(to(subset="v1"))),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.subset", "defines subset v1"),
    ("a literal destination", (virtual_service(http("helloworld.default")),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.host", f"Istio takes 'helloworld.default' literally and knows no such host; {HELLO} is meant, it seems"),
    ("a Service that is not exported", (virtual_service(), service(annotations={"networking.istio.io/exportTo": "."})), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.host", "not exported to the gateway's namespace"),
    ("a host whose destination is missing", (virtual_service(http(full("gone.x")), hosts=[HELLO]),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.host", "no Service is called"),
    ("a tcp destination that is missing", (gateway(tcp_server()), tcp(l4(to(port=81)))), Reason.TARGET_NOT_FOUND, ROUTE, "spec.tcp[0].route[0].destination.port", "no TCP port 81"),
    ("a host whose port is missing", (virtual_service(http(to(port=81)), hosts=[HELLO]),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.port", "no TCP port 81"),
    ("a host whose subset is missing", (virtual_service(http(to(subset="v1")), hosts=[HELLO]),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[0].destination.subset", "subset v1"),
    ("the second of two destinations", (virtual_service(http(to(weight=0), to(port=81, weight=1))),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[1].destination.port", "no TCP port 81"),
    ("a host and the second of two destinations", (virtual_service(http(to(weight=0), to(port=81, weight=1)), hosts=[HELLO]),), Reason.TARGET_NOT_FOUND, ROUTE, "spec.http[0].route[1].destination.port", "no TCP port 81"),
    ("a delegate's destination", (virtual_service(http(delegate={"name": "d"})), delegate(http(to(weight=0), to(subset="v1", weight=1)))), Reason.TARGET_NOT_FOUND, "VirtualService istio-system/d", "spec.http[0].route[1].destination.subset", "subset v1"),
    ("a host whose delegate's destination is missing", (virtual_service(http(PLAIN, match={"uri": {"exact": "/"}}, redirect={}), http(delegate={"name": "d"}), hosts=[HELLO]), delegate(http(to(port=81)))), Reason.TARGET_NOT_FOUND, "VirtualService istio-system/d", "spec.http[0].route[0].destination.port", "no TCP port 81"),
    ("the second tcp destination", (gateway(tcp_server()), tcp(l4(to(weight=0), to(port=81, weight=1)))), Reason.TARGET_NOT_FOUND, ROUTE, "spec.tcp[0].route[1].destination.port", "no TCP port 81"),
    ("a tls destination", (ON_8443, tls(l4(to(weight=0), to(port=81, weight=1), match={"sniHosts": [HELLO]}))), Reason.TARGET_NOT_FOUND, ROUTE, "spec.tls[0].route[1].destination.port", "no TCP port 81"),
    ("a host that only redirects", (virtual_service(http(redirect={"uri": "/"}), hosts=[HELLO]),), Reason.NO_ACTION, ROUTE, "spec.http[0]", "they redirect or answer"),
    ("chains that Envoy refuses", (gateway(tls_server(), server(8443)), tls(sni("*"))), Reason.GATEWAY_NOT_PROGRAMMED, ROUTE, "", "Envoy refuses port 8443: any connection is taken"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("objects", "reason", "thing", "field", "message"), [one[1:] for one in CASES], ids=[one[0] for one in CASES]
)
def test_the_first_rule_that_fails(objects: tuple[Any, ...], reason: Reason, thing: str, field: str, message: str) -> None:
    found = skipped(*objects)
    assert found.reason is reason, found
    assert found.object == thing
    assert found.field.startswith(field) if not field else found.field == field
    assert message in found.message
    assert found.service == "default/helloworld"
    assert found.route


def test_the_route_that_came_furthest_is_told() -> None:
    near = virtual_service(http(HELLO), name="a", hosts=["x.example"])
    nearer = virtual_service(http(to(port=81)), name="b")
    assert skipped(near, nearer, settings=SETTINGS).object == "VirtualService istio-system/b"
    assert skipped(near, virtual_service(name="c", hosts=["y.example"])).object == "VirtualService istio-system/a"


def test_a_revision_that_is_another() -> None:
    chosen = replace(LOOSE, mesh=MeshSettings(revision="stable"))
    found = skipped(virtual_service(labels={"istio.io/rev": "canary"}), settings=chosen)
    assert (found.reason, found.field) == (Reason.REVISION, "metadata.labels[istio.io/rev]")


def test_a_used_delegate_says_that_its_root_decides() -> None:
    root = virtual_service(http(delegate={"name": "d"}, match={"uri": {"exact": "/x"}}), labels={"istio.io/rev": "canary"})
    chosen = replace(LOOSE, mesh=MeshSettings(revision="stable"))
    found = skipped(root, delegate(http(HELLO)), settings=chosen)
    assert found.reason in (Reason.REVISION, Reason.DELEGATE)
    assert (
        skipped(
            virtual_service(http(delegate={"name": "d"}, redirect={"uri": "/"}), name="r", hosts=["x.y"], gateways=["mesh"]),
            delegate(http(HELLO)),
        ).reason
        is Reason.DELEGATE
    )


def test_a_gateway_that_is_not_usable_is_named_even_where_nothing_attaches() -> None:
    found = outcome(gateway(), virtual_service(), base=()).skipped[HELLO]
    assert (found.reason, found.object) == (Reason.GATEWAY_NOT_USABLE, "Service istio-system/internalgateway")
    assert "does not exist" in found.message


def test_of_two_gateways_the_one_where_it_came_further_is_told() -> None:
    chosen = replace(LOOSE, gateways=(InternalGateway("shop", "none"), *SETTINGS.gateways))
    found = skipped(virtual_service(http(to(port=81))), settings=chosen)
    assert found.reason is Reason.TARGET_NOT_FOUND


def test_a_name_made_by_a_gateways_server_alone() -> None:
    """The hosts of the VirtualService are `*`: the server names the domain, whose destination is missing."""
    found = skipped(gateway(server(hosts=[HELLO])), virtual_service(http(full("gone.x"))))
    assert (found.reason, found.field) == (Reason.TARGET_NOT_FOUND, "spec.http[0].route[0].destination.host")


def test_an_alias_is_followed_to_what_it_stands_for() -> None:
    alias = service("alias", type="ExternalName", externalName=HELLO, ports=(81,))
    found = skipped(alias, virtual_service(http(full("alias.default"))))
    assert (found.reason, found.field) == (Reason.TARGET_NOT_FOUND, "spec.http[0].route[0].destination.port")


def test_the_destination_that_is_named_is_told_of() -> None:
    """Not the one beside it, and counted as it is written."""
    found = skipped(virtual_service(http(to(full("gone.x"), weight=0), to(PLAIN, weight=1), to(port=81, weight=1))))
    assert found.field == "spec.http[0].route[2].destination.port"


def test_a_name_without_a_service() -> None:
    gone = full("gone.default")
    found = skipped(virtual_service(http(gone)), name=gone)
    assert (found.reason, found.service, found.field) == (Reason.TARGET_NOT_FOUND, "", "spec.http[0].route[0].destination.host")
    assert gone not in outcome(gateway(), virtual_service(http("gone.default"))).skipped


def test_problems_of_refused_chains_and_dropped_servers() -> None:
    result = outcome(
        gateway(tls_server(80, "SIMPLE", "HTTPS"), server(80), server(80, hosts=["*/*", "./x"])), gateway_service()
    )
    assert {(one.field, one.reason) for one in result.problems} == {
        ("spec.servers[1]", Reason.INVALID),
        ("spec.servers[2]", Reason.GATEWAY_NOT_PROGRAMMED),
    }


BROKEN = service(clusterIP=None, clusterIPs=[""])
UNUSABLE = "Service default/helloworld is there but not usable: "


def without_servers(name: str = "internalgateway") -> Any:
    found = gateway(name=name)
    found["spec"]["servers"] = []
    return found


@pytest.mark.parametrize(
    "objects",
    [
        (without_servers(), virtual_service()),
        (gateway(name="other", selector={"istio": "x"}), without_servers(), virtual_service(gateways=["other", "internalgateway"])),
    ],
)  # fmt: skip
def test_a_gateway_that_is_there_but_not_usable(objects: tuple[Any, ...]) -> None:
    found = skipped(*objects)
    assert (found.reason, found.object, found.field) == (
        Reason.INVALID,
        "Gateway istio-system/internalgateway",
        "spec.servers",
    )
    assert found.message == f"{found.object} is there but not usable: a Gateway without servers serves nothing"
    assert found.route == "istio-system/helloworld"


@pytest.mark.parametrize("host", [HELLO, "helloworld.default"])
def test_a_service_that_is_there_but_not_usable(host: str) -> None:
    found = skipped(virtual_service(http(host)), BROKEN)
    assert (found.reason, found.object, found.field) == (Reason.INVALID, "Service default/helloworld", "spec.clusterIPs[0]")
    assert found.message.startswith(UNUSABLE)


@pytest.mark.parametrize("host", [HELLO, full("alias.default")])
def test_a_destination_that_is_there_but_not_usable(host: str) -> None:
    """A domain leads to the Service, by itself or by an ExternalName."""
    alias = service("alias", type="ExternalName", externalName=HELLO)
    found = skipped(virtual_service(http(host), hosts=[PLAIN]), alias, BROKEN, name=PLAIN)
    assert (found.reason, found.object, found.field) == (Reason.INVALID, "Service default/helloworld", "spec.clusterIPs[0]")
    assert found.message.startswith(UNUSABLE)
    assert found.service == "default/plain"


def test_the_gateways_service_is_there_but_not_usable() -> None:
    """It is told as soon as it is so, also by a Binder that saw it missing."""
    view = world(gateway(), virtual_service(), base=())
    binder = Binder(view, LOOSE)
    binder.refresh()
    assert binder.skipped(HELLO).message == "the gateway's Service istio-system/internalgateway does not exist"
    record = parse(gateway_service(clusterIP=None, clusterIPs=[""]))
    assert record is not None
    view.apply(record)
    binder.refresh()
    found = binder.skipped(HELLO)
    assert found == bind(view, LOOSE).skipped[HELLO]
    assert found.reason is Reason.GATEWAY_NOT_USABLE
    assert found.message.startswith(
        "the gateway's Service istio-system/internalgateway is there but not usable (spec.clusterIPs[0]: "
    )


@pytest.mark.parametrize("uri", [{"exact": "/a?x=1"}, {"regex": r"/\bfoo"}, {"prefix": "/a b"}])
def test_a_match_that_no_request_surely_has_is_told_as_that(uri: Any) -> None:
    found = skipped(virtual_service(http(HELLO, match={"uri": uri})))
    assert (found.reason, found.field) == (Reason.MATCH_NOT_APPLICABLE, "spec.http[0].match")
    assert "no request surely has" in found.message
