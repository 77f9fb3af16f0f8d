"""Raw objects for tests, as an API server would give them; every builder's defaults are the world of the edge-case table.

Service under test `default/helloworld` (TCP port 80), gateway `istio-system/internalgateway`, Gateway of the same name with one
HTTP server on 80 for hosts `*`, VirtualService `istio-system/helloworld` on it, hosts `*`, one route to the full name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from canal_dns.mesh.binding import bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.result import Result
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, InternalGateway

Raw = dict[str, Any]

GATEWAY = InternalGateway("istio-system", "internalgateway")
SETTINGS = BindingSettings(gateways=(GATEWAY,))
VIP = "10.96.9.9"
HELLO = "helloworld.default.svc.cluster.local"
ISTIO = "networking.istio.io/v1"


def _meta(namespace: str, name: str, **more: Any) -> Raw:
    meta: Raw = {"namespace": namespace, "name": name} if namespace else {"name": name}
    return {**meta, **{key: value for key, value in more.items() if value is not None}}


def when(seconds: int) -> str:
    """A creationTimestamp that many seconds after some moment."""
    return f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"


def service(
    name: str = "helloworld",
    namespace: str = "default",
    ports: Iterable[int | Raw] = (80,),
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Raw:
    written = [{"port": one, "protocol": "TCP"} if isinstance(one, int) else one for one in ports]
    meta = _meta(namespace, name, annotations=dict(annotations) if annotations else None)
    body = {"clusterIP": "10.96.1.1", "selector": {"app": name}, "ports": written, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": body}


def gateway_service(
    name: str = "internalgateway", namespace: str = "istio-system", ports: Iterable[int | Raw] = (80, 9000, 8443), **spec: Any
) -> Raw:
    return service(name, namespace, ports, **{"clusterIP": VIP, "selector": {"istio": name}, **spec})


def pod(name: str = "gw-0", namespace: str = "istio-system", labels: Mapping[str, str] | None = None, **spec: Any) -> Raw:
    labels = {"istio": "internalgateway", "app": "internalgateway"} if labels is None else labels
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _meta(namespace, name, labels=dict(labels)), "spec": spec}


def endpoints(
    of: str = "internalgateway",
    namespace: str = "istio-system",
    pods: Iterable[str] = ("gw-0",),
    ready: bool | None = True,
    name: str = "",
    ports: Iterable[Raw] = (),
    addresses: Iterable[str] = ("10.244.0.1",),
    **conditions: bool,
) -> Raw:
    said = conditions if ready is None else {"ready": ready, **conditions}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _meta(namespace, name or f"{of}-1", labels={"kubernetes.io/service-name": of}),
        "endpoints": [
            {"addresses": [*addresses], "conditions": said, "targetRef": {"kind": "Pod", "namespace": namespace, "name": one}}
            for one in pods
        ],
        "ports": list(ports),
    }


def namespace(name: str, **annotations: str) -> Raw:
    said = {f"canal-dns.io/{key}": value for key, value in annotations.items()}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": _meta("", name, annotations=said or None)}


def server(number: int = 80, protocol: str = "HTTP", hosts: Iterable[str] = ("*",), name: str = "", **more: Any) -> Raw:
    port = {"number": number, "protocol": protocol, "name": name or f"{protocol.lower()}-{number}"}
    return {"port": port, "hosts": list(hosts), **more}


def tcp_server(number: int = 9000, **more: Any) -> Raw:
    return server(number, "TCP", **more)


def tls_server(number: int = 8443, mode: str = "PASSTHROUGH", protocol: str = "TLS", **more: Any) -> Raw:
    tls = {"mode": mode} if "PASSTHROUGH" in mode else {"mode": mode, "credentialName": "cert"}
    return server(number, protocol, tls=tls, **more)


def gateway(
    *servers: Raw,
    name: str = "internalgateway",
    namespace: str = "istio-system",
    selector: Mapping[str, str] | None = None,
    created: int | None = None,
    labels: Mapping[str, str] | None = None,
    version: str = ISTIO,
) -> Raw:
    spec: Raw = {"servers": list(servers) or [server()]}
    spec["selector"] = {"istio": "internalgateway"} if selector is None else dict(selector)
    stamp = None if created is None else when(created)
    meta = _meta(namespace, name, creationTimestamp=stamp, labels=dict(labels) if labels else None)
    return {"apiVersion": version, "kind": "Gateway", "metadata": meta, "spec": spec}


def to(host: str = HELLO, port: int | None = None, subset: str = "", weight: int | None = None) -> Raw:
    """One destination of a route."""
    destination: Raw = {"host": host}
    if port is not None:
        destination["port"] = {"number": port}
    if subset:
        destination["subset"] = subset
    return {"destination": destination} if weight is None else {"destination": destination, "weight": weight}


def http(*destinations: str | Raw, match: Iterable[Raw] | Raw = (), **more: Any) -> Raw:
    """An entry of `http`."""
    matches = [match] if isinstance(match, dict) else list(match)
    entry: Raw = {"route": [to(one) if isinstance(one, str) else one for one in destinations], **more}
    if not destinations:
        del entry["route"]
    return {"match": matches, **entry} if matches else entry


def l4(*destinations: str | Raw, match: Iterable[Raw] | Raw = ()) -> Raw:
    """An entry of `tcp` or `tls`."""
    return http(*destinations, match=match)


def sni(*names: str, to_host: str = HELLO, **match: Any) -> Raw:
    """An entry of `tls`."""
    return l4(to_host, match={"sniHosts": list(names), **match})


def virtual_service(
    *routes: Raw,
    name: str = "helloworld",
    namespace: str = "istio-system",
    hosts: Iterable[str] = ("*",),
    gateways: Iterable[str] | None = ("istio-system/internalgateway",),
    created: int | None = None,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    version: str = ISTIO,
    **spec: Any,
) -> Raw:
    body: Raw = {**spec}
    if hosts:
        body["hosts"] = list(hosts)
    if gateways is not None:
        body["gateways"] = list(gateways)
    if routes or not ("tcp" in spec or "tls" in spec or "http" in spec):
        body["http"] = list(routes) or [http(HELLO)]
    meta = _meta(
        namespace,
        name,
        creationTimestamp=None if created is None else when(created),
        annotations=dict(annotations) if annotations else None,
        labels=dict(labels) if labels else None,
    )
    return {"apiVersion": version, "kind": "VirtualService", "metadata": meta, "spec": body}


def delegate(*routes: Raw, name: str = "d", namespace: str = "istio-system", **more: Any) -> Raw:
    return virtual_service(*routes, name=name, namespace=namespace, hosts=(), gateways=None, **more)


def destination_rule(host: str, *subsets: str, name: str = "dr", namespace: str = "default", **spec: Any) -> Raw:
    body = {"host": host, "subsets": [{"name": one} for one in subsets], **spec}
    return {"apiVersion": ISTIO, "kind": "DestinationRule", "metadata": _meta(namespace, name), "spec": body}


BASE = (gateway_service(), endpoints(), pod(), namespace("default"), namespace("istio-system"))
"""The gateway's Service, its endpoints and pod."""


def world(*objects: Raw, base: Iterable[Raw] = BASE) -> View:
    """The base, Service helloworld and the given objects; a later object of the same name takes the place of an earlier."""
    records = [parse(one) for one in (*base, service(), *objects)]
    return View(record for record in records if record is not None)


def outcome(*objects: Raw, settings: BindingSettings = SETTINGS, base: Iterable[Raw] = BASE, **more: Any) -> Result:
    return bind(world(*objects, base=base), settings, **more)


def full(name: str) -> str:
    """`svc.ns` in full."""
    return f"{name}.svc.cluster.local"
