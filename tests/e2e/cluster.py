"""The cluster that the end-to-end tests ask about: one list of Services, from which zone files and manifests are made.

Rules of this file:
- the zone files are what CoreDNS's `kubernetes` plugin would answer; the manifests are what canal-dns watches;
- addresses are real cluster addresses: the tests run in a network namespace where all of them are local;
- `BOUND` is written down by hand: what the tests expect is not computed from what they feed in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.reversename

DOMAIN = "cluster.local"

KUBE_DNS = ("10.96.0.10", "fd00:10:96::10")
CANAL_DNS = ("10.96.0.53", "fd00:10:96::53")
PLAIN_COREDNS = ("10.96.0.54", "fd00:10:96::54")
PARENT = "192.0.2.53"  # the resolver that a node's /etc/resolv.conf names
CLIENT = ("10.244.0.2", "fd00:10:244::2")  # the pod that asks

VIP = {"A": "10.96.9.9", "AAAA": "fd00:10:96::9:9"}
VIP_V4_ONLY = {"A": "10.96.9.4"}


def fqdn(name: str) -> str:
    """`helloworld.default` -> the Service's full name, without the final dot."""
    return f"{name}.svc.{DOMAIN}"


BOUND = {
    fqdn("helloworld.default"): VIP,
    fqdn("cart.shop"): VIP,
    fqdn("legacy.default"): VIP_V4_ONLY,
}
"""What canal-dns must answer itself: name -> VIP by type."""


@dataclass(frozen=True, slots=True)
class Service:
    """A Service with one port, http 80. `v6` may be missing."""

    name: str
    namespace: str
    v4: str
    v6: str = ""

    @property
    def addresses(self) -> dict[str, str]:
        return {kind: address for kind, address in (("A", self.v4), ("AAAA", self.v6)) if address}


SERVICES = (
    Service("helloworld", "default", "10.96.1.1", "fd00:10:96::1:1"),
    Service("plain", "default", "10.96.1.2", "fd00:10:96::1:2"),
    Service("single", "default", "10.96.1.3"),
    Service("legacy", "default", "10.96.1.4", "fd00:10:96::1:4"),
    Service("cart", "shop", "10.96.2.1", "fd00:10:96::2:1"),
    Service("stock", "shop", "10.96.2.2", "fd00:10:96::2:2"),
)
BY_NAME = {fqdn(f"{service.name}.{service.namespace}"): service for service in SERVICES}

EXTERNAL_NAMES = {
    fqdn("alias.default"): fqdn("helloworld.default"),
    fqdn("alias-plain.default"): fqdn("plain.default"),
    fqdn("alias.shop"): fqdn("cart.shop"),
    fqdn("far.shop"): fqdn("helloworld.default"),
    fqdn("outside.default"): "www.example.org",
}
"""Services of type ExternalName: CNAMEs."""

HEADLESS = fqdn("db.default"), ("10.244.3.1", "10.244.3.2")


def zone_lines(folder: Path) -> str:
    """Writes the zone files; gives the Corefile lines that stand for the `kubernetes` plugin."""
    zones = {DOMAIN: _forward_zone(), "96.10.in-addr.arpa": _reverse_zone("A"), _V6_REVERSE: _reverse_zone("AAAA")}
    lines = []
    for zone, records in zones.items():
        path = folder / f"{zone}.zone"
        soa = f"{zone}. SOA ns.dns.{DOMAIN}. hostmaster.{DOMAIN}. 1 7200 1800 86400 5"
        path.write_text("\n".join(("$TTL 30", soa, f"{zone}. NS ns.dns.{DOMAIN}.", *records, "")))
        lines.append(f"    file {path} {zone}\n")
    return "".join(lines)


_V6_REVERSE = "6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa"


def _forward_zone() -> list[str]:
    records = [f"ns.dns.{DOMAIN}. A {KUBE_DNS[0]}"]
    for name, service in BY_NAME.items():
        records += [f"{name}. {kind} {address}" for kind, address in service.addresses.items()]
        records.append(f"_http._tcp.{name}. SRV 0 100 80 {name}.")
    records += [f"{alias}. CNAME {target}." for alias, target in EXTERNAL_NAMES.items()]
    headless, pods = HEADLESS
    records += [f"{headless}. A {pod}" for pod in pods]
    records += [f"pod-{number}.{headless}. A {pod}" for number, pod in enumerate(pods)]
    records += [f"_http._tcp.{headless}. SRV 0 50 80 pod-{number}.{headless}." for number in range(len(pods))]
    bound = fqdn("helloworld.default")
    records.append(f'{bound}. TXT "no address" "of any kind"')
    # more than fits into one UDP reply, so that truncation and the second question over TCP are seen too
    records += [f'big.default.svc.{DOMAIN}. TXT "{number:02} {"x" * 200}"' for number in range(12)]
    return records


def _reverse_zone(kind: str) -> list[str]:
    pairs = [(service.addresses[kind], name) for name, service in BY_NAME.items() if kind in service.addresses]
    return [f"{dns.reversename.from_address(address)} PTR {name}." for address, name in pairs]


def parent_corefile(folder: Path) -> str:
    """The Corefile of the resolver outside the cluster: it knows example.org, and nothing of the cluster."""
    path = folder / "example.org.zone"
    records = ("www A 198.51.100.7", "www AAAA 2001:db8::7", 'text TXT "outside"')
    soa = "@ SOA ns.example.org. hostmaster.example.org. 1 7200 1800 86400 60"
    path.write_text("\n".join(("$ORIGIN example.org.", "$TTL 300", soa, "@ NS ns", "ns A 198.51.100.53", *records, "")))
    known = f"example.org:53 {{\n    bind {PARENT}\n    file {path}\n    errors\n}}\n"
    return known + f".:53 {{\n    bind {PARENT}\n    template ANY ANY {{\n        rcode NXDOMAIN\n    }}\n    errors\n}}\n"


# --- manifests ---------------------------------------------------------------------------------------------------------


def settings(manifests: Path) -> dict[str, Any]:
    """canal-dns's settings for these objects."""
    gateways = [{"service": "istio-system/internalgateway"}, {"service": "istio-system/internalgateway-v4"}]
    return {"source": {"manifests": str(manifests)}, "gateways": gateways}


def write_manifests(folder: Path) -> None:
    """One file per subject, so that a test can take away or change one of them."""
    write(folder / "services.yaml", *[_service(service) for service in SERVICES], *_external_names())
    write(folder / "gateways.yaml", *_gateway("internalgateway", VIP), *_gateway("internalgateway-v4", VIP_V4_ONLY))
    for name, gateway in (("helloworld.default", "internalgateway"), ("cart.shop", "internalgateway")):
        write(folder / f"route-{name}.yaml", virtual_service(name, gateway))
    write(folder / "route-legacy.default.yaml", virtual_service("legacy.default", "internalgateway-v4"))


def write(path: Path, *objects: dict[str, Any]) -> None:
    """Manifests as a tool writes them: complete beside the file, then in its place at one blow."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text("---\n".join(json.dumps(one) + "\n" for one in objects))
    draft.replace(path)


def virtual_service(service: str, gateway: str) -> dict[str, Any]:
    name, namespace = service.split(".")
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-05T09:00:00Z"},
        "spec": {
            "hosts": [fqdn(service)],
            "gateways": [f"istio-system/{gateway}"],
            "http": [{"route": [{"destination": {"host": fqdn(service)}}]}],
        },
    }


def _service(service: Service) -> dict[str, Any]:
    return _object(
        "Service", service.name, service.namespace, _cluster_ips(service.addresses) | {"selector": {"app": service.name}}
    )


def _external_names() -> list[dict[str, Any]]:
    made = []
    for alias, target in EXTERNAL_NAMES.items():
        name, namespace, *_ = alias.split(".")
        made.append(_object("Service", name, namespace, {"type": "ExternalName", "externalName": target}))
    return made


def _gateway(name: str, vip: dict[str, str]) -> list[dict[str, Any]]:
    labels = {"istio": name}
    slice_labels = {"kubernetes.io/service-name": name}
    endpoint = {"addresses": ["10.244.9.9"], "conditions": {"ready": True}}
    server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    return [
        _object("Service", name, "istio-system", _cluster_ips(vip) | {"selector": labels}),
        {
            **_object("EndpointSlice", f"{name}-1", "istio-system", None, slice_labels, "discovery.k8s.io/v1"),
            "addressType": "IPv4",
            "endpoints": [endpoint | {"targetRef": {"kind": "Pod", "name": f"{name}-0", "namespace": "istio-system"}}],
            "ports": [{"name": "http", "port": 80}],
        },
        _object("Pod", f"{name}-0", "istio-system", None, labels) | {"status": {"podIP": "10.244.9.9"}},
        _object("Gateway", name, "istio-system", {"selector": labels, "servers": [server]}, None, "networking.istio.io/v1"),
    ]


def _cluster_ips(addresses: dict[str, str]) -> dict[str, Any]:
    families = [{"A": "IPv4", "AAAA": "IPv6"}[kind] for kind in addresses]
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    first = next(iter(addresses.values()))
    return {
        "type": "ClusterIP",
        "clusterIP": first,
        "clusterIPs": [*addresses.values()],
        "ipFamilies": families,
        "ports": ports,
    }


def _object(
    kind: str, name: str, namespace: str, spec: dict[str, Any] | None, labels: dict[str, str] | None = None, api: str = "v1"
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-05T08:00:00Z", "labels": labels or {}}
    return {"apiVersion": api, "kind": kind, "metadata": metadata} | ({"spec": spec} if spec is not None else {})
