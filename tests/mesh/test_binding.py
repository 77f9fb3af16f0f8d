"""The edge cases of the rule, one row each: what the objects are, and what a query for helloworld.default gets.

The base of every row (see builders): Service `default/helloworld` with TCP port 80, the gateway's Service, its pod, its endpoints.
Rows without a Gateway of their own get the usual one, rows without a VirtualService the usual one.
Rows 66 to 69 and 71 are about DNS messages (other types, PTR, search lists, case, sidecars): tests/dns and tests/server have
them; 70, the gateway's own queries, is a matter of who asks.
"""

# ruff: noqa: E501 - one row, one line

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from canal_dns.mesh.binding import bind
from canal_dns.mesh.result import Reason, Result
from canal_dns.settings import BindingSettings, CrossNamespace, MeshSettings, PortGuard
from tests.mesh.builders import (
    BASE,
    HELLO,
    ISTIO,
    SETTINGS,
    VIP,
    Raw,
    delegate,
    destination_rule,
    endpoints,
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
    to,
    virtual_service,
    world,
)

BOUND = "VIP"
MATCH_8080 = {"port": 8080}


@dataclass(frozen=True)
class Row:
    id: str
    what: str
    objects: tuple[Raw, ...]
    want: str = BOUND
    """`VIP`, or the reason for which it is skipped."""
    name: str = HELLO
    claims: tuple[str, ...] = ()
    warns: str = ""
    settings: BindingSettings = SETTINGS
    unready: frozenset[str] = frozenset()
    base: tuple[Raw, ...] = field(default=BASE)


def row(number: str, what: str, *objects: Raw, want: Reason | str = BOUND, **more: Any) -> Row:
    wanted = want.value if isinstance(want, Reason) else want
    kinds = {one["kind"] for one in objects}
    usual = [gateway()] * ("Gateway" not in kinds) + [virtual_service()] * ("VirtualService" not in kinds)
    return Row(number, what, (*usual, *objects), wanted, **more)


def in_default(*routes: Raw, **more: Any) -> Raw:
    return virtual_service(*routes, namespace="default", **more)


PLAIN = full("plain.default")
V1, V2 = full("helloworld-v1.default"), full("helloworld-v2.default")
MESH = replace(SETTINGS, mesh=MeshSettings(scope_gateway_to_namespace=True))
PRIVATE = replace(SETTINGS, mesh=MeshSettings(default_virtual_service_export_to=(".",)))
LOOSE = replace(SETTINGS, port_guard=PortGuard.WARN)
REVISED = replace(SETTINGS, mesh=MeshSettings(revision="stable"))
ORIGINAL_GATEWAY = gateway(server(5000, name="http"), name="canal", selector={"app": "canal-gateway"}, version=f"{ISTIO}alpha3")
ORIGINAL_BASE = (
    gateway_service(ports=(5000,), selector={"app": "canal-gateway"}),
    endpoints(),
    pod(labels={"app": "canal-gateway"}),
)

ROWS = [
    row(
        "1",
        "the original's example as it stands",
        ORIGINAL_GATEWAY,
        service(ports=({"port": 5000, "name": "http"},)),
        virtual_service(http(HELLO, match={"uri": {"exact": "/hello"}}), gateways=["canal"], version=f"{ISTIO}alpha3"),
        base=ORIGINAL_BASE,
    ),
    row("2", "VirtualService in default, gateway by namespace/name", in_default()),
    row("3", "bare gateway name from default", in_default(gateways=["internalgateway"]), want=Reason.GATEWAY_NOT_FOUND),
    row("4", "./name in the gateway's namespace", virtual_service(gateways=["./internalgateway"])),
    row("5", "name.namespace", virtual_service(gateways=["internalgateway.istio-system"])),
    row("5", "name.namespace.svc...", virtual_service(gateways=["internalgateway.istio-system.svc.cluster.local"])),
    row("6", "no gateways", virtual_service(gateways=None), want=Reason.GATEWAY_NOT_FOUND),
    row("6", "mesh only", virtual_service(gateways=["mesh"]), want=Reason.GATEWAY_NOT_FOUND),
    row("7", "mesh and the gateway", virtual_service(gateways=["mesh", "istio-system/internalgateway"])),
    row(
        "8",
        "another gateway only",
        gateway(),
        gateway(name="ingress", selector={"istio": "ingress"}),
        virtual_service(gateways=["istio-system/ingress"]),
        want=Reason.NOT_ATTACHED,
    ),
    row("9", "selector that the pods lack", gateway(selector={"istio": "other"}), want=Reason.NOT_ATTACHED),
    row("10", "two labels, pods carry more", gateway(selector={"istio": "internalgateway", "app": "internalgateway"})),
    row("11", "empty selector", gateway(selector={}), warns="no selector"),
    row(
        "12",
        "the younger of two Gateways",
        gateway(created=1),
        gateway(name="younger", created=2),
        virtual_service(gateways=["istio-system/younger"]),
    ),
    row(
        "12",
        "a conflict goes to the older",
        gateway(tcp_server(80), name="older", created=1),
        gateway(created=2),
        want=Reason.GATEWAY_NOT_PROGRAMMED,
    ),
    row("13", "Gateways scoped to their namespace", *(other := (gateway(namespace="default"), in_default(gateways=["internalgateway"])))),
    row("13", "Gateways scoped, another namespace", *other, want=Reason.NOT_ATTACHED, settings=MESH),
    row("14", "Gateway renamed", gateway(name="renamed"), want=Reason.GATEWAY_NOT_FOUND),
    row("15", "exportTo . in default", in_default(exportTo=["."]), want=Reason.NOT_EXPORTED),
    row("16", "exportTo . in istio-system", virtual_service(exportTo=["."])),
    row("17", "exportTo istio-system", in_default(exportTo=["istio-system"])),
    row("17", "exportTo prod", in_default(exportTo=["prod"]), want=Reason.NOT_EXPORTED),
    row("18", "the mesh's default exportTo is .", in_default(), want=Reason.NOT_EXPORTED, settings=PRIVATE),
    row("19", "server hosts elsewhere", gateway(server(hosts=["*.shop.example"])), want=Reason.HOST_NOT_SERVED),
    row("22", "VirtualService hosts elsewhere", virtual_service(hosts=["shop.example.com"]), want=Reason.HOST_NOT_SERVED),
    row("20", "hosts that do not meet", gateway(server(hosts=["bar.com"])), virtual_service(hosts=["foo.com"]), want=Reason.HOST_NOT_SERVED),
    row("21", "server for another namespace", gateway(server(hosts=["ns1/*"])), in_default(), want=Reason.HOST_NOT_SERVED),
    row("21", "server for its own namespace", gateway(server(hosts=["./*"])), in_default(), want=Reason.HOST_NOT_SERVED),
    row("23", "hosts: the full name", virtual_service(hosts=[HELLO]), claims=("destination", "host"), warns="helloworld.default"),
    row("23", "hosts: short, in default", in_default(hosts=["helloworld"]), claims=("destination", "host"), warns="clients must write"),
    row("23", "hosts: a wildcard above it", virtual_service(hosts=["*.default.svc.cluster.local"]), claims=("destination",), warns="helloworld.default"),
    row("23", "hosts: capitals", virtual_service(hosts=[HELLO.upper()]), claims=("destination", "host")),
    row("23c", "hosts: svc.ns only", virtual_service(hosts=["helloworld.default"]), want=Reason.HOST_NOT_SERVED),
    row("24", "short destination of istio-system", virtual_service(http("helloworld")), want=Reason.NO_ROUTE),
    row("24", "short destination of default", in_default(http("helloworld"))),
    row("25", "destination svc.ns", virtual_service(http("helloworld.default")), want=Reason.TARGET_NOT_FOUND),
    row("25", "destination svc.ns.svc", virtual_service(http("helloworld.default.svc")), want=Reason.TARGET_NOT_FOUND),
    row("26", "destination with a final dot", virtual_service(http(f"{HELLO}.")), want=Reason.TARGET_NOT_FOUND),
    row("26", "destination in capitals", virtual_service(http(HELLO.upper())), want=Reason.TARGET_NOT_FOUND),
    *(row("27", f"destination {host}", virtual_service(http(host)), want=Reason.NO_ROUTE) for host in ("api.example.com", "10.1.2.3", full("x.y") + "x")),
    *(row("28", "80/20", virtual_service(http(to(weight=80), to(PLAIN, weight=20))), service("plain"), name=name) for name in (HELLO, PLAIN)),
    row("29", "weight 0 beside others", virtual_service(http(to(weight=0), to(PLAIN, weight=100))), service("plain"), want=Reason.NO_ACTION),
    *(
        row(
            "29b",
            f"canary {weights}: {name}",
            virtual_service(http(to(V1, weight=weights[0]), to(V2, weight=weights[1])), hosts=[HELLO]),
            service("helloworld-v1"),
            service("helloworld-v2"),
            name=name,
            want=want,
            claims=("host",) if want == BOUND else (),
        )
        for weights in ((90, 10), (100, 0))
        for name, want in ((HELLO, BOUND), (V1, Reason.HOST_NOT_SERVED), (V2, Reason.NO_ACTION if weights[1] == 0 else Reason.HOST_NOT_SERVED))
    ),
    row("29c", "replacement Service, the old name", virtual_service(http(PLAIN), hosts=[HELLO]), service("plain"), claims=("host",)),
    row("29c", "replacement Service, the new name", virtual_service(http(PLAIN), hosts=[HELLO]), service("plain"), name=PLAIN, want=Reason.HOST_NOT_SERVED),
    row("30", "only as mirror", virtual_service(http(PLAIN, mirror={"host": HELLO})), service("plain"), want=Reason.NO_ACTION),
    row("31", "only redirect", virtual_service(http(redirect={"uri": "/x"}), hosts=[HELLO]), want=Reason.NO_ACTION),
    row("31", "only directResponse", virtual_service(http(directResponse={"status": 200}), hosts=[HELLO]), want=Reason.NO_ACTION),
    row("32", "delegate in default", virtual_service(http(delegate={"name": "d", "namespace": "default"})), delegate(http("helloworld"), namespace="default")),
    row("33", "delegate not exported", virtual_service(http(delegate={"name": "d", "namespace": "default"})), delegate(http("helloworld"), namespace="default", exportTo=["."]), want=Reason.DELEGATE),
    row("33", "delegate missing", virtual_service(http(delegate={"name": "d"}), hosts=[HELLO]), want=Reason.DELEGATE),
    row("34", "delegate's match conflicts", virtual_service(http(match={"uri": {"prefix": "/a"}}, delegate={"name": "d"})), delegate(http(HELLO, match={"uri": {"prefix": "/b"}})), want=Reason.DELEGATE),
    row("34", "delegate's match is narrower", virtual_service(http(match={"uri": {"prefix": "/a"}}, delegate={"name": "d"})), delegate(http(HELLO, match={"uri": {"prefix": "/a/b"}}))),
    row("35", "a VirtualService without hosts", virtual_service(hosts=()), want=Reason.DELEGATE),
    *(
        row("36", f"tcp on a TCP server, {what}", gateway(tcp_server(80)), virtual_service(tcp=[l4(HELLO, match=match)]), claims=("destination",))
        for what, match in (("its port", {"port": 80}), ("no match", ()))
    ),
    row("36b", "a second tcp route", gateway(tcp_server(80)), virtual_service(tcp=[l4(PLAIN), l4(HELLO)]), service("plain"), want=Reason.SHADOWED),
    row("36b", "another VirtualService's tcp route", gateway(tcp_server(80)), virtual_service(tcp=[l4(PLAIN)], name="a"), virtual_service(tcp=[l4(HELLO)], name="b"), service("plain"), want=Reason.SHADOWED),
    row("37", "http match.port of no server", virtual_service(http(HELLO, match=MATCH_8080)), want=Reason.MATCH_NOT_APPLICABLE),
    row("37", "tcp match.port of no server", gateway(tcp_server(80)), virtual_service(tcp=[l4(HELLO, match=MATCH_8080)]), want=Reason.MATCH_NOT_APPLICABLE),
    row("37", "tcp block on an HTTP server", virtual_service(tcp=[l4(HELLO)]), want=Reason.PROTOCOL),
    row("37", "http block on a TCP server", gateway(tcp_server(80)), want=Reason.PROTOCOL),
    row("38", "match.gateways mesh", virtual_service(http(HELLO, match={"gateways": ["mesh"]})), want=Reason.MATCH_NOT_APPLICABLE),
    row("39", "the client's sourceNamespace", virtual_service(http(HELLO, match={"sourceNamespace": "shop"})), want=Reason.MATCH_NOT_APPLICABLE),
    row("39", "the client's sourceLabels", virtual_service(http(HELLO, match={"sourceLabels": {"app": "client"}})), want=Reason.MATCH_NOT_APPLICABLE),
    row("39", "in a tcp match they are ignored", gateway(tcp_server(80)), virtual_service(tcp=[l4(HELLO, match={"sourceNamespace": "shop", "sourceLabels": {"a": "b"}})])),
    row("40", "tls on PASSTHROUGH", gateway(tls_server(80)), virtual_service(tls=[sni(HELLO)], hosts=[HELLO]), claims=("destination", "host")),
    row("40", "tls on SIMPLE", gateway(tls_server(80, "SIMPLE")), virtual_service(tls=[sni(HELLO)], hosts=[HELLO]), want=Reason.PROTOCOL),
    row("40", "tls on AUTO_PASSTHROUGH", gateway(tls_server(80, "AUTO_PASSTHROUGH")), virtual_service(tls=[sni(HELLO)], hosts=[HELLO]), want=Reason.GATEWAY_NOT_PROGRAMMED),
    row("40", "tcp on terminating TLS", gateway(tls_server(80, "SIMPLE")), virtual_service(tcp=[l4(HELLO)]), claims=("destination",), warns="TLS"),
    row("41", "behind a catch-all of the same", virtual_service(http(PLAIN), http(HELLO, match={"uri": {"prefix": "/a"}})), service("plain"), want=Reason.SHADOWED),
    row("41", "behind a catch-all of an older", virtual_service(http(PLAIN), created=1, name="a"), virtual_service(created=2), service("plain"), want=Reason.SHADOWED),
    *(
        row("41b", f"two catch-alls on *: {name}", virtual_service(created=1, name="a"), virtual_service(http(PLAIN), created=2, name="b"), service("plain"), name=name, want=want)
        for name, want in ((HELLO, BOUND), (PLAIN, Reason.SHADOWED))
    ),
    *(
        row("41c", f"a host taken away: {name}", virtual_service(name="a"), virtual_service(http(PLAIN), hosts=[HELLO], name="b"), service("plain"), name=name, want=want, claims=claims)
        for name, want, claims in ((HELLO, BOUND, ("host",)), (PLAIN, Reason.HOST_NOT_SERVED, ()))
    ),
    row("42", "server bound to loopback", gateway(server(bind="127.0.0.1")), want=Reason.GATEWAY_NOT_PROGRAMMED),
    row("43", "server port not of the gateway's Service", gateway(server(8080)), want=Reason.GATEWAY_NOT_PROGRAMMED),
    row("44", "a port that the gateway does not serve", service(ports=(80, 81)), want=Reason.PORT_NOT_SERVED),
    row("45", "a UDP port", service(ports=(80, {"port": 80, "protocol": "UDP"})), want=Reason.PORT_NOT_SERVED),
    row("45", "a UDP port, portGuard: warn", service(ports=(80, {"port": 80, "protocol": "UDP"})), settings=LOOSE, warns="80/UDP"),
    row("46", "no such Service", virtual_service(http(full("gone.default"))), name=full("gone.default"), want=Reason.TARGET_NOT_FOUND),
    row("47", "headless", service(clusterIP="None"), want=Reason.HEADLESS),
    row("47", "headless, opted in by setting", service(clusterIP="None"), settings=replace(SETTINGS, headless=True)),
    row("47", "headless, opted in by annotation", service(clusterIP="None", annotations={"canal-dns.io/bind": "true"})),
    *(row("48", f"no name below: {name}", want="", name=name) for name in (f"pod-0.{HELLO}", f"_http._tcp.{HELLO}", f"a.b.{HELLO}")),
    row("49", "an ExternalName Service", service("alias", type="ExternalName", externalName=HELLO), virtual_service(http(full("alias.default"))), name=full("alias.default"), want=Reason.EXTERNAL_NAME),
    row("49", "what it stands for", service("alias", type="ExternalName", externalName=HELLO), virtual_service(http(full("alias.default")))),
    row("50", "NodePort", service(type="NodePort")),
    row("50", "LoadBalancer", service(type="LoadBalancer")),
    row("51", "Service without endpoints", endpoints("helloworld", "default", pods=())),
    row("52", "destination is the gateway itself", virtual_service(http(full("internalgateway.istio-system"))), name=full("internalgateway.istio-system"), want=Reason.PROTECTED),
    *(
        row("53", f"protected: {name}", virtual_service(http(full(name))), service(*name.split(".")), name=full(name), want=Reason.PROTECTED)
        for name in ("kubernetes.default", "kube-dns.kube-system", "istiod.istio-system", "istiod-canary.istio-system", "canal-dns.tools")
    ),
    row("53", "protected by setting", settings=replace(SETTINGS, protected=(("default", "*"),)), want=Reason.PROTECTED),
    row("54", "VirtualService of a third namespace", virtual_service(namespace="shop"), want=Reason.CROSS_NAMESPACE),
    row("54", "... with consent", virtual_service(namespace="shop"), service(annotations={"canal-dns.io/allow-from": "prod, shop"})),
    row("54", "... with consent to all", virtual_service(namespace="shop"), service(annotations={"canal-dns.io/allow-from": "*"})),
    row("54", "... with consent to another", virtual_service(namespace="shop"), service(annotations={"canal-dns.io/allow-from": "prod"}), want=Reason.CROSS_NAMESPACE),
    row("54", "crossNamespace: warn", virtual_service(namespace="shop"), settings=replace(SETTINGS, cross_namespace=CrossNamespace.WARN), warns="other namespaces"),
    row("54", "crossNamespace: allow", virtual_service(namespace="shop"), settings=replace(SETTINGS, cross_namespace=CrossNamespace.ALLOW)),
    row("54", "... a route beside it counts too", virtual_service(), virtual_service(http(HELLO, match={"uri": {"prefix": "/x"}}), namespace="shop"), want=Reason.CROSS_NAMESPACE),
    row("54", "... one that is never reached does not", virtual_service(http(HELLO, match={"uri": {"prefix": "/x"}}), name="a"), virtual_service(http(HELLO, match={"uri": {"prefix": "/x/y"}}), namespace="shop", name="b")),
    row("55", "two VirtualServices route to it", virtual_service(name="a"), virtual_service(name="b")),
    *(row("58", f"CRDs as {version}", gateway(version=f"{ISTIO}{version}"), virtual_service(version=f"{ISTIO}{version}")) for version in ("", "beta1", "alpha3")),
    row("59", "istio.io/rev of another istiod", virtual_service(labels={"istio.io/rev": "canary"}), settings=REVISED, want=Reason.REVISION),
    row("59", "istio.io/rev, not configured", virtual_service(labels={"istio.io/rev": "canary"})),
    row("59", "istio.io/rev of ours", virtual_service(labels={"istio.io/rev": "stable"}), settings=REVISED),
    row("63", "the gateway's Service is missing", base=BASE[1:], want=Reason.GATEWAY_NOT_USABLE),
    row("63", "the gateway's Service is headless", gateway_service(clusterIP="None"), want=Reason.GATEWAY_NOT_USABLE),
    row("63", "the gateway's Service is pending", gateway_service(clusterIP=""), want=Reason.GATEWAY_NOT_USABLE),
    row("64", "no ready endpoint", unready=frozenset({"istio-system/internalgateway"}), want=Reason.GATEWAY_NOT_READY),
    row("74", "subset of no DestinationRule", virtual_service(http(to(subset="v1"))), want=Reason.TARGET_NOT_FOUND),
    row("74", "subset of a DestinationRule", virtual_service(http(to(subset="v1"))), destination_rule("helloworld", "v1")),
    row("75", "no port, Service of one port", virtual_service(http(to()))),
    row("76", "no port, Service of several: the server's", service(ports=(80, 9000)), virtual_service(http(to())), gateway(server(80), tcp_server()), settings=LOOSE),
    row("76", "no port, Service of several: not the server's", service(ports=(8080, 9000)), virtual_service(http(to())), want=Reason.TARGET_NOT_FOUND),
    row("77", "a port that the Service lacks", virtual_service(http(to(port=81))), want=Reason.TARGET_NOT_FOUND),
    row("78", "httpsRedirect", gateway(server(tls={"httpsRedirect": True})), want=Reason.NO_ACTION),
]  # fmt: skip


def ids() -> Iterable[str]:
    return [f"{one.id} {one.what}" for one in ROWS]


@pytest.mark.parametrize("case", ROWS, ids=ids())
def test_row(case: Row) -> None:
    result = bind(world(*case.objects, base=case.base), case.settings, case.unready)
    if case.want != BOUND:
        assert case.name not in result.bound
        skipped = result.skipped.get(case.name)
        assert (skipped.reason.value if skipped else "") == ("" if case.want == "NoRoute" else case.want)
        assert skipped is None or (skipped.message and skipped.object)
        return
    assert case.name in result.bound, result.skipped.get(case.name)
    bound = result.bound[case.name]
    assert bound.v4 == (VIP,)
    assert not case.claims or bound.claims == case.claims
    assert any(case.warns in text for text in bound.warnings) if case.warns else True


def addresses(result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return result.bound[HELLO].v4, result.bound[HELLO].v6


@pytest.mark.parametrize(
    ("row_id", "cluster_ips", "v4", "v6"),
    [
        ("60", ["10.96.9.9", "fd00::9"], ("10.96.9.9",), ("fd00::9",)),
        ("61", ["10.96.9.9"], ("10.96.9.9",), ()),
        ("62", ["fd00::9"], (), ("fd00::9",)),
    ],
)
def test_rows_60_to_62_families(row_id: str, cluster_ips: list[str], v4: tuple[str, ...], v6: tuple[str, ...]) -> None:
    """A family that the gateway lacks is empty, not the Service's own address: nobody gets past the gateway by IPv6."""
    result = outcome(gateway(), virtual_service(), gateway_service(clusterIP=cluster_ips[0], clusterIPs=cluster_ips))
    assert addresses(result) == (v4, v6)
