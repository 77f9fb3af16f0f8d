"""The border: a raw object of the API or of a manifest becomes a small frozen record, or a Skip that says why not.

Rules of this file:
- `parse` raises for nothing that JSON can express: a broken object is a value;
- refused is only what would make the rule guess (missing fields, wrong types, hosts that are no names, no servers);
  what Istio accepts and then ignores, such as a destination in capitals, is kept and judged by the rule;
- the three versions of networking.istio.io have the same fields here.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from canal_dns.dns.names import is_label
from canal_dns.mesh.fields import FieldError, Fields
from canal_dns.mesh.records import (
    KINDS,
    Destination,
    DestinationRule,
    EndpointSlice,
    Gateway,
    HttpMatch,
    HttpRoute,
    L4Match,
    L4Route,
    Namespace,
    Pod,
    Record,
    Server,
    Service,
    ServicePort,
    Skip,
    StringMatch,
    Uses,
    VirtualService,
)

__all__ = [
    "ANNOTATION_ALLOW_FROM",
    "ANNOTATION_BIND",
    "ANNOTATION_TTL",
    "KINDS",
    "DestinationRule",
    "EndpointSlice",
    "Gateway",
    "Namespace",
    "Pod",
    "Record",
    "Service",
    "Skip",
    "VirtualService",
    "parse",
    "unusable",
]

ANNOTATION_BIND = "canal-dns.io/bind"
ANNOTATION_ALLOW_FROM = "canal-dns.io/allow-from"
ANNOTATION_TTL = "canal-dns.io/ttl"

_ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_VERSIONS: dict[str, tuple[str, ...]] = {
    "Service": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"),
    "Pod": ("v1",),
    "Namespace": ("v1",),
    "Gateway": _ISTIO,
    "VirtualService": _ISTIO,
    "DestinationRule": _ISTIO,
}
_NONE: frozenset[str] = frozenset()
_ORDINARY = re.compile(r"(?:10|100|172|192)(?:\.(?:0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5])){3}", re.ASCII)
"""Where nearly all cluster addresses are, in their only spelling: usable without asking `ipaddress`, which takes 20 us."""
_REDIRECT_CODES = (0, 301, 302, 303, 307, 308)
"""route.ApplyRedirect leaves a route without action for any other, which Envoy refuses."""


def parse(raw: object) -> Record | Skip | None:
    """Read one object: a mapping as JSON or YAML gives it.

    Returns the record; a Skip for an object of a watched kind that cannot be used; None for anything else.
    """
    if not isinstance(raw, Mapping):
        return None
    kind = raw.get("kind")
    if not isinstance(kind, str) or raw.get("apiVersion") not in _VERSIONS.get(kind, ()):
        return None
    namespace = name = ""
    try:
        root = Fields(raw)
        meta = root.child("metadata")
        name = _name(meta, "name", "")
        if kind != "Namespace":
            # Thousands of objects share a namespace, and most Services their ports: each is kept once.
            namespace = sys.intern(_name(meta, "namespace", "default"))
        return _READERS[kind](root, meta, namespace, name)
    except FieldError as error:
        return Skip(kind, namespace, name, "Invalid", error.message, error.field)


def _name(meta: Fields, key: str, default: str) -> str:
    value = meta.text(key, default) or default
    if not value:
        raise FieldError(meta.where(key), "this field is missing")
    if len(value) > 253 or "/" in value or not value.isprintable() or " " in value:
        raise FieldError(meta.where(key), "this is not the name of an object")
    return value


def _created(meta: Fields) -> float:
    value = meta.mapping.get("creationTimestamp")
    if value is None:
        return 0.0
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise FieldError(meta.where("creationTimestamp"), "a time such as 2026-01-31T12:00:00Z is needed") from None


def _annotation(meta: Fields, key: str) -> str:
    # Most objects have none that we read: 20,000 of them come at the start.
    known = meta.mapping.get("annotations")
    return "" if known is None or known == {} else meta.child("annotations").text(key)


def _bind(meta: Fields, remarks: list[tuple[str, str]]) -> bool | None:
    value = _annotation(meta, ANNOTATION_BIND).strip().lower()
    if not value:
        return None
    if value in ("true", "false"):
        return value == "true"
    remarks.append((f"metadata.annotations[{ANNOTATION_BIND}]", f"{value[:40]!r} is neither true nor false: ignored"))
    return None


def _comma_list(text: str) -> frozenset[str]:
    return _NONE if not text else frozenset(part.strip() for part in text.split(",") if part.strip())


def _service(root: Fields, meta: Fields, namespace: str, name: str) -> Service:
    for key, value in (("namespace", namespace), ("name", name)):
        if not is_label(value):
            raise FieldError(meta.where(key), "this is not a DNS label (lower case, digits, hyphens, at most 63 characters)")
    spec = root.child("spec")
    remarks: list[tuple[str, str]] = []
    v4, v6, rejected = _addresses(spec)
    external = spec.text("type") == "ExternalName"
    return Service(
        namespace=namespace,
        name=name,
        v4=v4,
        v6=v6,
        rejected=rejected,
        headless=not external and spec.text("clusterIP") == "None",
        external_name=spec.host("externalName") if external else "",
        ports=_service_ports(spec),
        selector=spec.labels("selector"),
        bind=_bind(meta, remarks),
        allow_from=_comma_list(_annotation(meta, ANNOTATION_ALLOW_FROM)),
        ttl=_ttl(meta, remarks),
        export_to=_comma_list(_annotation(meta, "networking.istio.io/exportTo")),
        remarks=tuple(remarks),
    )


def _ttl(meta: Fields, remarks: list[tuple[str, str]]) -> int | None:
    text = _annotation(meta, ANNOTATION_TTL).strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if text:
        remarks.append((f"metadata.annotations[{ANNOTATION_TTL}]", f"{text[:40]!r} is not a number of seconds: ignored"))
    return None


def _addresses(spec: Fields) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    texts = spec.texts("clusterIPs") or ((spec.text("clusterIP"),) if spec.text("clusterIP") else ())
    v4: list[str] = []
    v6: list[str] = []
    rejected: list[tuple[str, str]] = []
    for text in texts:
        if text == "None":
            continue
        if _ORDINARY.fullmatch(text):
            v4.append(text)
            continue
        why = unusable(text)
        if why:
            rejected.append((text, why))
        else:
            address = ipaddress.ip_address(text)
            (v4 if address.version == 4 else v6).append(str(address))
    return tuple(v4), tuple(v6), tuple(rejected)


def unusable(text: str) -> str:
    """Why an address can be neither a VIP for clients nor a pod's own; "" where it may."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "it is no IP address"
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped is not None or address.scope_id is not None):
        return "it is an IPv4-mapped address, or one with a zone"
    for is_so, name in (
        (address.is_unspecified, "unspecified"),
        (address.is_loopback, "a loopback address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address"),
    ):
        if is_so:
            return f"it is {name}"
    return ""


def _service_ports(spec: Fields) -> tuple[ServicePort, ...]:
    """The ports, read once for all Services that have the same."""
    ports = spec.mapping.get("ports")
    if type(ports) is list:
        try:
            return _same_ports(*[port.get(key) for port in ports for key in _PORT])
        except (AttributeError, FieldError, TypeError):
            # What is wrong is said below, with its place.
            pass
    return tuple(_service_port(port) for port in spec.children("ports"))


_PORT = ("name", "protocol", "port", "targetPort", "appProtocol")


@functools.lru_cache(1024, typed=True)
def _same_ports(*values: Any) -> tuple[ServicePort, ...]:
    """`values`: those of `_PORT`, port by port. By type too: true is no port, though it equals 1."""
    ports = zip(*[iter(values)] * len(_PORT), strict=True)
    return tuple(_service_port(Fields(dict(zip(_PORT, port, strict=True)))) for port in ports)


def _service_port(port: Fields) -> ServicePort:
    target = port.mapping.get("targetPort")
    if target is not None and not isinstance(target, str):
        target = port.integer("targetPort", 0, 65535)
    return ServicePort(
        name=port.text("name"),
        protocol=port.text("protocol", "TCP") or "TCP",
        port=port.integer("port", 1, 65535),
        target=target or None,
        app_protocol=port.text("appProtocol"),
    )


def _endpoint_slice(root: Fields, meta: Fields, namespace: str, name: str) -> EndpointSlice:
    ready = False
    pods = set()
    addresses: set[str] = set()
    for endpoint in root.children("endpoints"):
        conditions = endpoint.child("conditions")
        ready |= conditions.mapping.get("ready") is not False and not conditions.boolean("terminating")
        target = endpoint.child("targetRef")
        if target.text("kind") == "Pod" and target.text("name"):
            pods.add((target.text("namespace") or namespace, target.text("name")))
        addresses.update(str(ipaddress.ip_address(text)) for text in endpoint.texts("addresses") if not unusable(text))
    ports = tuple((port.text("name"), port.integer("port", 1, 65535)) for port in root.children("ports") if port.has("port"))
    service = meta.child("labels").text("kubernetes.io/service-name")
    return EndpointSlice(namespace, name, service, ready, tuple(sorted(pods)), ports, tuple(sorted(addresses)))


def _pod(root: Fields, meta: Fields, namespace: str, name: str) -> Pod:
    ports = [
        (port.text("name"), port.integer("containerPort", 1, 65535))
        for container in root.child("spec").children("containers")
        for port in container.children("ports")
        if port.text("name")
    ]
    return Pod(namespace, name, meta.labels("labels"), tuple(ports), root.child("spec").boolean("hostNetwork"))


def _namespace(_root: Fields, meta: Fields, _namespace: str, name: str) -> Namespace:
    remarks: list[tuple[str, str]] = []
    return Namespace(name=name, bind=_bind(meta, remarks), remarks=tuple(remarks))


def _revision(meta: Fields) -> str:
    return meta.child("labels").text("istio.io/rev")


def _gateway(root: Fields, meta: Fields, namespace: str, name: str) -> Gateway:
    spec = root.child("spec")
    servers = tuple(_server(server) for server in spec.children("servers"))
    if not servers:
        raise FieldError("spec.servers", "a Gateway without servers serves nothing")
    return Gateway(namespace, name, _created(meta), _revision(meta), spec.labels("selector"), servers)


def _server(server: Fields) -> Server:
    port = server.child("port")
    tls = server.child("tls")
    hosts = server.hosts("hosts")
    if not hosts:
        raise FieldError(server.where("hosts"), "a server without hosts serves nothing")
    return Server(
        number=port.integer("number", 1, 65535),
        protocol=port.required("protocol"),
        port_name=port.text("name"),
        hosts=hosts,
        bind=server.text("bind"),
        tls=server.has("tls"),
        mode=tls.text("mode", "PASSTHROUGH") or "PASSTHROUGH" if server.has("tls") else "",
        https_redirect=tls.boolean("httpsRedirect"),
    )


def _virtual_service(root: Fields, meta: Fields, namespace: str, name: str) -> VirtualService:
    spec = root.child("spec")
    remarks: list[tuple[str, str]] = []
    return VirtualService(
        namespace=namespace,
        name=name,
        created=_created(meta),
        revision=_revision(meta),
        hosts=spec.hosts("hosts"),
        gateways=spec.texts("gateways"),
        export_to=spec.texts("exportTo"),
        http=tuple(_http_route(route) for route in spec.children("http")),
        tcp=tuple(_l4_route(route) for route in spec.children("tcp")),
        tls=tuple(_l4_route(route) for route in spec.children("tls")),
        bind=_bind(meta, remarks),
        remarks=tuple(remarks),
    )


def _http_route(route: Fields) -> HttpRoute:
    delegate = route.child("delegate")
    mirrors = [route.child("mirror").text("host")] if route.has("mirror") else []
    mirrors += [mirror.child("destination").text("host") for mirror in route.children("mirrors")]
    code = route.child("redirect").integer("redirectCode", 0, 2**32 - 1, 0)
    return HttpRoute(
        field=route.path,
        matches=tuple(_http_match(match) for match in route.children("match")),
        destinations=tuple(_destination(entry) for entry in route.children("route")),
        redirect=route.has("redirect"),
        refused=code not in _REDIRECT_CODES,
        direct_response=route.has("directResponse"),
        mirrors=tuple(mirrors),
        delegate=(delegate.text("namespace"), delegate.required("name")) if route.has("delegate") else None,
    )


def _http_match(match: Fields) -> HttpMatch:
    return HttpMatch(
        uri=_string_match(match, "uri"),
        scheme=_string_match(match, "scheme"),
        method=_string_match(match, "method"),
        authority=_string_match(match, "authority"),
        headers=_string_matches(match, "headers"),
        without_headers=_string_matches(match, "withoutHeaders"),
        query_params=_string_matches(match, "queryParams"),
        port=match.integer("port", 0, 65535, 0),
        source_labels=match.labels("sourceLabels"),
        source_namespace=match.text("sourceNamespace"),
        gateways=match.texts("gateways"),
        ignore_uri_case=match.boolean("ignoreUriCase"),
    )


def _string_matches(match: Fields, key: str) -> tuple[tuple[str, StringMatch], ...]:
    child = match.child(key)
    for name in child.mapping:
        if not isinstance(name, str):
            raise FieldError(child.path, "a text is needed as the name of a header")
    return tuple((name, _string_match(child, name) or StringMatch(Uses.PRESENT)) for name in sorted(child.mapping))


def _string_match(match: Fields, key: str) -> StringMatch | None:
    if not match.has(key):
        return None
    child = match.child(key)
    for uses in (Uses.EXACT, Uses.PREFIX, Uses.REGEX):
        if child.has(uses.value):
            value = child.text(uses.value)
            return StringMatch(Uses.PRESENT) if uses is Uses.REGEX and value == "*" else StringMatch(uses, value)
    return StringMatch(Uses.PRESENT)


def _l4_route(route: Fields) -> L4Route:
    matches = [
        L4Match(match.integer("port", 0, 65535, 0), match.texts("gateways"), match.hosts("sniHosts"))
        for match in route.children("match")
    ]
    return L4Route(route.path, tuple(matches), tuple(_destination(entry) for entry in route.children("route")))


def _destination(entry: Fields) -> Destination:
    destination = entry.child("destination")
    port = destination.child("port")
    return Destination(
        host=destination.host("host"),
        port=port.integer("number", 0, 65535) if destination.has("port") else None,
        subset=destination.text("subset"),
        weight=entry.integer("weight", -(2**31), 2**31 - 1, 0),
    )


def _destination_rule(root: Fields, meta: Fields, namespace: str, name: str) -> DestinationRule:
    spec = root.child("spec")
    return DestinationRule(
        namespace=namespace,
        name=name,
        created=_created(meta),
        revision=_revision(meta),
        host=spec.host("host"),
        subsets=tuple(subset.required("name") for subset in spec.children("subsets")),
        export_to=spec.texts("exportTo"),
        workload_selector=spec.child("workloadSelector").labels("matchLabels") if spec.has("workloadSelector") else None,
    )


_READERS: dict[str, Callable[[Fields, Fields, str, str], Record]] = {
    "Service": _service,
    "EndpointSlice": _endpoint_slice,
    "Pod": _pod,
    "Namespace": _namespace,
    "Gateway": _gateway,
    "VirtualService": _virtual_service,
    "DestinationRule": _destination_rule,
}
