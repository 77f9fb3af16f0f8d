"""Writes the reasons into docs/binding.md: `python -m tests.meta.render_binding`; a test holds the document against it.

Rules of this file:
- a reason's meaning is `Reason.text`, what `explain` says comes from the rule itself; only what to do is written here;
- every reason stands here, with at least one world that leads to it.
"""

# ruff: noqa: E501 - advice is prose, one row a line

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from canal_dns.mesh.binding import bind
from canal_dns.mesh.explain import explain
from canal_dns.mesh.result import Reason
from canal_dns.settings import BindingSettings, InternalGateway, MeshSettings
from tests.mesh.builders import (
    BASE,
    HELLO,
    SETTINGS,
    Raw,
    delegate,
    endpoints,
    full,
    gateway,
    gateway_service,
    http,
    l4,
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
from tests.meta.tree import ROOT

FILE = ROOT / "docs" / "binding.md"
START, END = "<!-- reasons: generated -->\n", "<!-- reasons: end -->\n"


@dataclass(frozen=True)
class Shape:
    """Objects under which the reason is told; without Gateway or VirtualService the usual one is there."""

    objects: tuple[Raw, ...]
    name: str = HELLO
    settings: BindingSettings = SETTINGS
    unready: frozenset[str] = frozenset()
    base: tuple[Raw, ...] = BASE


@dataclass(frozen=True)
class Entry:
    reason: Reason
    advice: str
    shapes: tuple[Shape, ...]


def shape(*objects: Raw, **more: object) -> Shape:
    kinds = {one["kind"] for one in objects}
    usual = [gateway()] * ("Gateway" not in kinds) + [virtual_service()] * ("VirtualService" not in kinds)
    return Shape((*usual, *objects), **more)  # type: ignore[arg-type]


def in_default(*routes: Raw, **more: object) -> Raw:
    return virtual_service(*routes, namespace="default", **more)  # type: ignore[arg-type]


OTHER = full("other.default")
TEAM_B = InternalGateway("team-b", "internalgateway")
NO_SERVERS = {**gateway(), "spec": {"selector": {"istio": "internalgateway"}, "servers": []}}
UDP = {"port": 53, "protocol": "UDP"}

ENTRIES = (
    Entry(
        Reason.ACCEPTED,
        "Nothing. The warnings behind `note:` tell what could surprise you: short forms of the name that get 404, ports that the "
        "gateway does not serve (`portGuard: warn`), a Gateway without a selector.",
        (shape(),),
    ),
    Entry(
        Reason.INVALID,
        "Mend the field. An object that cannot be used counts as if it were not there, and `table` lists it as a problem; "
        "what Envoy would refuse is told in the same way, because Envoy then keeps the old state of the whole port.",
        (shape(NO_SERVERS),),
    ),
    Entry(
        Reason.NO_ROUTE,
        "Nothing, if the Service is not meant to go through the gateway: most are not. Else write a VirtualService that names it, "
        "with this gateway in `gateways`. A short destination (`helloworld`) is a Service of the VirtualService's namespace.",
        (shape(virtual_service(http("helloworld"))),),
    ),
    Entry(
        Reason.NO_ACTION,
        "Give the Service a route with a weight above 0. A mirror, a redirect or a directResponse sends no client to it.",
        (
            shape(virtual_service(http(to(weight=0), to(OTHER, weight=100))), service("other")),
            shape(virtual_service(http(OTHER, mirror={"host": HELLO})), service("other")),
        ),
    ),
    Entry(
        Reason.GATEWAY_NOT_FOUND,
        "Write `NAMESPACE/NAME` in `gateways`, unless the Gateway is in the VirtualService's own namespace.",
        (shape(in_default(gateways=["internalgateway"])), shape(virtual_service(gateways=None))),
    ),
    Entry(
        Reason.NOT_ATTACHED,
        "Make the Gateway's `selector` fit the labels of the gateway's pods (`kubectl -n istio-system get pods --show-labels`), or "
        "name another Gateway. With `mesh.scopeGatewayToNamespace` the Gateway must stand in the pods' namespace.",
        (
            shape(gateway(selector={"istio": "ingressgateway"})),
            shape(
                gateway(namespace="default"),
                in_default(gateways=["internalgateway"]),
                settings=replace(SETTINGS, mesh=MeshSettings(scope_gateway_to_namespace=True)),
            ),
        ),
    ),
    Entry(
        Reason.NOT_EXPORTED,
        "Add the namespace of the gateway's pods to `exportTo`, or take `exportTo` away.",
        (shape(in_default(exportTo=["."])),),
    ),
    Entry(
        Reason.REVISION,
        "Relabel the object, or set `mesh.revision` to the revision of the istiod that programs the gateway.",
        (
            shape(
                virtual_service(labels={"istio.io/rev": "canary"}),
                settings=replace(SETTINGS, mesh=MeshSettings(revision="stable")),
            ),
        ),
    ),
    Entry(
        Reason.PROTOCOL,
        "Give the Gateway a server of the kind that the route needs, or write the route under `http`, `tcp` or `tls` as the server "
        "wants it.",
        (shape(gateway(tcp_server(80))), shape(gateway(tls_server(80, "SIMPLE")), virtual_service(tls=[sni(HELLO)]))),
    ),
    Entry(
        Reason.DELEGATE,
        "Write a root VirtualService with `hosts` and a `delegate`, export the delegate to the root's namespace, and keep its "
        "matches inside the root route's match.",
        (
            shape(virtual_service(hosts=())),
            shape(
                virtual_service(http(match={"uri": {"prefix": "/a"}}, delegate={"name": "d"})),
                delegate(http(HELLO, match={"uri": {"prefix": "/b"}})),
            ),
        ),
    ),
    Entry(
        Reason.GATEWAY_NOT_PROGRAMMED,
        "Open the server's port on the gateway's Service, or mend the server: one protocol per port (the oldest Gateway decides), "
        "no loopback `bind`, no TLS host twice. Where Envoy refuses something, istiod's log and `istioctl proxy-status` say it too.",
        (
            shape(gateway(server(8080))),
            shape(gateway(tcp_server(80), name="older", created=1), gateway(created=2)),
            shape(gateway(server(bind="127.0.0.1"))),
        ),
    ),
    Entry(
        Reason.HOST_NOT_SERVED,
        "Add the Service's full name to `hosts` of the VirtualService, and see that the server's `hosts` allow it. A host with a dot "
        "is literal. For a Service that stands behind another name only (a canary's versions), this is as it should be.",
        (
            shape(virtual_service(hosts=["shop.example.com"])),
            shape(gateway(server(hosts=["team-a/*"])), in_default()),
            shape(virtual_service(http(OTHER), hosts=["helloworld.default"]), service("other")),
        ),
    ),
    Entry(
        Reason.MATCH_NOT_APPLICABLE,
        "Take what never holds out of the match. Clients are not known to the gateway by labels or namespace: `sourceLabels` and "
        "`sourceNamespace` compare with the gateway's own pods.",
        (
            shape(virtual_service(http(HELLO, match={"sourceNamespace": "shop"}))),
            shape(virtual_service(http(HELLO, match={"port": 8080}))),
            shape(virtual_service(http(HELLO, match={"authority": {"exact": "shop.example.com"}}))),
        ),
    ),
    Entry(
        Reason.SHADOWED,
        "Put the narrower route before the wider one, or give the two VirtualServices hosts of their own instead of `*`. On a TCP "
        "server only one route is programmed: one server, and so one port, per Service.",
        (
            shape(virtual_service(http(OTHER), created=1, name="a"), virtual_service(created=2), service("other")),
            shape(gateway(tcp_server(80)), virtual_service(tcp=[l4(OTHER), l4(HELLO)]), service("other")),
        ),
    ),
    Entry(
        Reason.TARGET_NOT_FOUND,
        "Create the Service, name the port that it has, define the subset in a DestinationRule, or write the destination in full. A "
        "deleted Service's VirtualService can go.",
        (
            shape(virtual_service(http(full("gone.default"))), name=full("gone.default")),
            shape(virtual_service(http(to(port=81)))),
            shape(virtual_service(http(to(subset="v2")))),
            shape(virtual_service(http("helloworld.default"))),
        ),
    ),
    Entry(
        Reason.PORT_NOT_SERVED,
        "Open the port on the gateway's Service and on a Gateway, with a route for the name; or take the port (metrics, UDP) to a "
        "Service of its own. `binding.portGuard: warn` binds the name all the same, and its clients lose that port.",
        (
            shape(service(ports=(80, 9090)), virtual_service(http(to(port=80)))),
            shape(service(ports=(80, 9000)), virtual_service(http(to(port=80)))),
            shape(service(ports=(80, UDP))),
        ),
    ),
    Entry(
        Reason.CROSS_NAMESPACE,
        "Let the Service's owner consent: `kubectl -n NAMESPACE annotate service NAME canal-dns.io/allow-from=team-a`. Or move the "
        "VirtualService into the Service's namespace or the gateway's.",
        (shape(virtual_service(namespace="team-a")),),
    ),
    Entry(
        Reason.PROTECTED,
        "Nothing: what the cluster itself stands on is not moved. A name under `binding.protected` is your own choice.",
        (
            shape(
                virtual_service(http(full("metrics.kube-system"))),
                service("metrics", "kube-system"),
                name=full("metrics.kube-system"),
            ),
        ),
    ),
    Entry(
        Reason.HEADLESS,
        "Nothing, as a rule: clients of a headless Service choose their pod themselves. To bind its bare name annotate it "
        '`canal-dns.io/bind: "true"`; names of single pods are never bound.',
        (shape(service(clusterIP="None")),),
    ),
    Entry(
        Reason.EXTERNAL_NAME,
        "Nothing: if its CNAME ends at a bound name, clients get the VIP there.",
        (
            shape(
                service("alias", type="ExternalName", externalName=HELLO),
                virtual_service(http(full("alias.default"))),
                name=full("alias.default"),
            ),
        ),
    ),
    Entry(
        Reason.OPTED_OUT,
        "Remove the annotation when the name shall be bound: `kubectl annotate service NAME canal-dns.io/bind-`.",
        (
            shape(service(annotations={"canal-dns.io/bind": "false"})),
            shape(virtual_service(annotations={"canal-dns.io/bind": "false"})),
        ),
    ),
    Entry(
        Reason.CONFLICTED,
        "It is no reason to skip a name but a problem of the younger VirtualService, which `table` lists: the older one's gateway is "
        "answered. Take one of the two off its gateway.",
        (
            shape(
                gateway_service("internalgateway", "team-b", clusterIP="10.96.9.10", selector={"istio": "team-b"}),
                endpoints("internalgateway", "team-b", pods=("gw-b",)),
                pod("gw-b", "team-b", {"istio": "team-b"}),
                gateway(namespace="team-b", selector={"istio": "team-b"}),
                virtual_service(created=1),
                virtual_service(name="helloworld", namespace="team-b", gateways=["team-b/internalgateway"], created=2),
                gateway(),
                service(annotations={"canal-dns.io/allow-from": "team-b"}),
                settings=replace(SETTINGS, gateways=(*SETTINGS.gateways, TEAM_B)),
            ),
        ),
    ),
    Entry(
        Reason.GATEWAY_NOT_USABLE,
        "Create the gateway's Service with a ClusterIP, or mend `gateways[].service` in canal-dns's configuration.",
        (shape(base=BASE[1:]), shape(gateway_service(clusterIP="None"))),
    ),
    Entry(
        Reason.GATEWAY_NOT_READY,
        "Bring a pod of the gateway back; see its events. Until then requests go to the Services directly. "
        "`binding.gatewayUnready: keep` would keep the VIP.",
        (shape(unready=frozenset({"istio-system/internalgateway"})),),
    ),
    Entry(
        Reason.LIMIT_EXCEEDED,
        "Raise `binding.maxBindings`, and the memory limit with it (see [operate.md](operate.md#capacity)).",
        (
            shape(
                service("other"),
                virtual_service(http(to(weight=50), to(OTHER, weight=50))),
                name=OTHER,
                settings=replace(SETTINGS, max_bindings=1),
            ),
        ),
    ),
)


def told(entry: Entry, one: Shape) -> str:
    """What `explain` (or, for problems, `table`) says about it. Raises ValueError when it says another reason."""
    view = world(*one.objects, base=one.base)
    result = bind(view, one.settings, one.unready)
    if entry.reason is Reason.CONFLICTED:
        [problem] = result.problems
        if problem.reason is not entry.reason:
            raise ValueError(f"{entry.reason.value}: {problem}")
        return f"problem: {problem.object} {problem.field}: {problem.message} ({problem.reason.value})"
    verdict = explain(result, view, one.settings, one.name, one.unready).verdict
    said = "bound: " if entry.reason is Reason.ACCEPTED else f"not bound: {entry.reason.value}: "
    if not verdict.startswith(said):
        raise ValueError(f"{entry.reason.value} is expected, explain says {verdict!r}")
    return verdict


def render() -> str:
    """The generated part of the document, without its marks."""
    return "".join(_lines())


def _lines() -> Iterator[str]:
    entries = {entry.reason: entry for entry in ENTRIES}
    yield "\n| reason | it means |\n|---|---|\n"
    for reason in Reason:
        yield f"| [`{reason.value}`](#{reason.value.lower()}) | {reason.text} |\n"
    for reason in Reason:
        entry = entries[reason]
        yield f"\n### {reason.value}\n\n"
        yield "```text verdict\n" + "".join(f"{told(entry, one)}\n" for one in entry.shapes) + "```\n\n"
        yield f"**To do.** {entry.advice}\n"
    yield "\n"


def main() -> None:
    text = FILE.read_text()
    before, _, rest = text.partition(START)
    FILE.write_text(before + START + render() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
