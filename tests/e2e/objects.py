"""Kubernetes objects as tests write them: the shapes that every cluster has, short to say.

Rules of this file:
- plain dicts, complete as in YAML; nothing is sent anywhere;
- API versions are given where it matters which (`version="v1alpha3"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]
Port = tuple[int, str]
"""Number and name; the name says the protocol, as Istio reads it: "http", "http-admin", "tcp"."""

HTTP: tuple[Port, ...] = ((80, "http"),)


def made(
    api: str, kind: str, name: str, namespace: str | None, *,
    labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None, **rest: Any,
) -> Object:  # fmt: skip
    metadata: Object = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    for key, value in (("labels", labels), ("annotations", annotations)):
        if value:
            metadata[key] = dict(value)
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def namespace(name: str, **labels: str) -> Object:
    return made("v1", "Namespace", name, None, labels=labels)


def service(
    name: str, namespace: str = "default", *, ports: Sequence[Port] = HTTP, selector: Mapping[str, str] | None = None,
    **rest: Any,
) -> Object:  # fmt: skip
    """`rest`: further fields of the spec; the selector is `app: NAME` unless another one is given."""
    spec = {
        "ports": [{"name": label, "port": number, "targetPort": number, "protocol": "TCP"} for number, label in ports],
        "selector": {"app": name} if selector is None else dict(selector),
    }
    return made("v1", "Service", name, namespace, labels={"app": name}, spec=spec | rest)


def endpoint_slice(
    service: str, namespace: str, addresses: Sequence[str], *, ports: Sequence[Port] = HTTP, ready: bool = True,
    pods: Sequence[str] = (), suffix: str = "1",
) -> Object:  # fmt: skip
    """`pods`: their names, as many as addresses, or none."""
    endpoints: list[Object] = [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses]
    for endpoint, pod_name in zip(endpoints, pods, strict=False):
        endpoint["targetRef"] = {"kind": "Pod", "name": pod_name, "namespace": namespace}
    return made(
        "discovery.k8s.io/v1", "EndpointSlice", f"{service}-{suffix}", namespace,
        labels={"kubernetes.io/service-name": service}, addressType="IPv6" if ":" in "".join(addresses) else "IPv4",
        endpoints=endpoints, ports=[{"name": label, "port": number, "protocol": "TCP"} for number, label in ports],
    )  # fmt: skip


def pod(name: str, namespace: str, address: str, labels: Mapping[str, str], *, ready: bool = True) -> Object:
    """With the status that a kubelet would write: `Kube.create`, then `Kube.status`."""
    spec = {"containers": [{"name": "main", "image": "example.test/none"}], "nodeName": "node"}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
    return made("v1", "Pod", name, namespace, labels=labels, spec=spec, status=status)


def gateway(
    name: str = "canal", namespace: str = "istio-system", *, selector: Mapping[str, str] | None = None,
    ports: Sequence[Port] = ((5000, "http"),), hosts: Sequence[str] = ("*",), version: str = "v1",
) -> Object:  # fmt: skip
    servers = [
        {"port": {"number": number, "name": label, "protocol": label.split("-", maxsplit=1)[0].upper()}, "hosts": [*hosts]}
        for number, label in ports
    ]
    spec = {"selector": dict(selector or {"app": "canal-gateway"}), "servers": servers}
    return made(f"networking.istio.io/{version}", "Gateway", name, namespace, spec=spec)


def virtual_service(
    name: str, namespace: str = "istio-system", *, http: Sequence[Object], hosts: Sequence[str] = ("*",),
    gateways: Sequence[str] = ("canal",), version: str = "v1", **rest: Any,
) -> Object:  # fmt: skip
    spec = {"hosts": [*hosts], "gateways": [*gateways], "http": [*http]}
    return made(f"networking.istio.io/{version}", "VirtualService", name, namespace, spec=spec | rest)


def destination(host: str, *, subset: str = "", port: int = 0, weight: int | None = None) -> Object:
    """One element of `route`."""
    aim: Object = {"host": host}
    if subset:
        aim["subset"] = subset
    if port:
        aim["port"] = {"number": port}
    return {"destination": aim} | ({} if weight is None else {"weight": weight})


def destination_rule(name: str, namespace: str, host: str, subsets: Mapping[str, Mapping[str, str]]) -> Object:
    """`subsets`: name -> labels."""
    spec = {"host": host, "subsets": [{"name": subset, "labels": dict(labels)} for subset, labels in subsets.items()]}
    return made("networking.istio.io/v1", "DestinationRule", name, namespace, spec=spec)
