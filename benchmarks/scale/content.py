"""What stands in the cluster: numbered objects in the shape of real ones. Pure: a number gives the same object every time.

Rules of this file:
- every Service has its EndpointSlice, as every cluster makes one: CoreDNS reads them all;
- every VirtualService binds the Service of its number: even ones by their own host, odd ones as the original controller's users
  write them, host `*` and a path of their own;
- one Service in fifty is headless, one a LoadBalancer with its status;
- half of the objects carry what `kubectl apply` leaves behind; managedFields are the API server's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e import mesh, objects
from tests.e2e.cluster import fqdn

Object = dict[str, Any]

GATEWAY = "scale"
VIP = mesh.VIP
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_TEAMS = ("payments", "search", "checkout", "identity", "platform", "reporting", "fulfilment")


@dataclass(frozen=True, slots=True)
class Size:
    """How many of each."""

    services: int = 20_000
    virtual_services: int = 5_000
    namespaces: int = 2_000

    @property
    def objects(self) -> int:
        """With an EndpointSlice per Service."""
        return 2 * self.services + self.virtual_services + self.namespaces

    def namespace_of(self, number: int) -> str:
        return f"team-{number % self.namespaces:04}"

    def host_of(self, number: int) -> str:
        """The full name of a Service."""
        return fqdn(f"{service_name(number)}.{self.namespace_of(number)}")


SMALL = Size(500, 150, 50)


def route_namespace(size: Size, number: int) -> str:
    """Where the VirtualService of a Service stands: one for all hosts must be the gateway's own namespace's."""
    return mesh.NAMESPACE if number % 2 else size.namespace_of(number)


def service_name(number: int) -> str:
    return f"{_TEAMS[number % len(_TEAMS)]}-api-{number}"


def gateway() -> list[Object]:
    """The internal gateway: Service, EndpointSlice, Pod, Gateway."""
    return [*mesh.gateway_objects(), objects.gateway(GATEWAY, ports=((80, "http"),))]


def namespaces(size: Size) -> Iterator[Object]:
    for number in range(size.namespaces):
        team = _TEAMS[number % len(_TEAMS)]
        yield objects.namespace(size.namespace_of(number), team=team, **{"pod-security.kubernetes.io/enforce": "baseline"})


def rest(size: Size) -> Iterator[Object]:
    """Everything inside of the namespaces."""
    for number in range(size.services):
        yield service(size, number)
        yield endpoint_slice(size, number)
        if number < size.virtual_services:
            yield virtual_service(size, number)


def service(size: Size, number: int) -> Object:
    """Further ports where no VirtualService has to fit."""
    name = service_name(number)
    ports = [(80, "http")]
    if number >= size.virtual_services and number % 3 == 0:
        ports += [(9090, "http-metrics"), (50051, "grpc")]
    made = objects.service(name, size.namespace_of(number), ports=ports, selector=_labels(name))
    made["metadata"]["labels"] = {**_labels(name), "app.kubernetes.io/version": f"1.{number % 40}.{number % 7}"}
    made["metadata"]["annotations"] = {"meta.helm.sh/release-name": name, "example.test/owner": "team@example.test"}
    if number % 50 == 7 and number >= size.virtual_services:
        made["spec"]["clusterIP"] = "None"
    if number % 50 == 9 and number >= size.virtual_services:
        made["spec"] |= {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False}
        made["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}
    return _applied(made, number)


def endpoint_slice(size: Size, number: int) -> Object:
    name, namespace = service_name(number), size.namespace_of(number)
    addresses = [f"10.244.{(number * 2 + i) // 250 % 250}.{(number * 2 + i) % 250 + 1}" for i in range(2)]
    pods = [f"{name}-7d9c8b6f4-{letter}{number:05}" for letter in "ab"]
    made = objects.endpoint_slice(name, namespace, addresses, pods=pods, suffix="x7k2p")
    for endpoint in made["endpoints"]:
        endpoint["nodeName"] = f"node-{number % 200}"
        endpoint["conditions"] |= {"serving": True, "terminating": False}
    made["metadata"]["labels"] |= {**_labels(name), "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
    return made


def virtual_service(size: Size, number: int) -> Object:
    name, namespace, host = service_name(number), route_namespace(size, number), size.host_of(number)
    route: Object = {"route": [objects.destination(host, port=80)], "timeout": "10s"}
    if number % 2:
        hosts = ["*"]
        route["match"] = [{"uri": {"exact": f"/{name}"}}]
    else:
        hosts = [host]
        route["retries"] = {"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx"}
    made = objects.virtual_service(name, namespace, http=[route], hosts=hosts, gateways=[f"{mesh.NAMESPACE}/{GATEWAY}"])
    made["metadata"]["labels"] = _labels(name)
    return _applied(made, number)


def _labels(name: str) -> dict[str, str]:
    return {"app": name, "app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"}


def _applied(made: Object, number: int) -> Object:
    if number % 4 < 2:
        made["metadata"].setdefault("annotations", {})[_LAST_APPLIED] = json.dumps(made)
    return made
