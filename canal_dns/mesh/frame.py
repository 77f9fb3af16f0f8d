"""What an internal gateway is before any route: address, pods, ports, readiness, attached Gateways.

Rules of this file:
- a frame is a value: two frames that are equal where `layout_of` looks need no new listeners and no new routes;
- VIPs come from the gateway's Service and from nowhere else;
- a Service without selector is not translated: what listens behind it is not known from its targetPorts (resolvePorts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from canal_dns.mesh.attach import Workload, attached, workload
from canal_dns.mesh.records import Gateway, Service, Skip
from canal_dns.mesh.view import View
from canal_dns.settings import InternalGateway, MeshSettings


@dataclass(frozen=True, slots=True)
class Frame:
    """One internal gateway as its objects show it now."""

    name: str
    """`namespace/name` of its Service."""
    v4: tuple[str, ...]
    v6: tuple[str, ...]
    unusable: str
    """Why it has no address, in a sentence; "" if it has one."""
    ready: bool
    """One endpoint is, or it cannot be known."""
    endpoints: tuple[str, ...]
    """Addresses of its pods, ready or not: they are clients as well."""
    translated: bool
    """Server numbers are ports of the Service; else they are ports of the pods."""
    ports: Mapping[int, int]
    """TCP port of the Service -> port of the pods."""
    workload: Workload
    attached: tuple[Gateway, ...]

    @property
    def listens(self) -> object:
        """All on which listeners and routes depend."""
        return self.translated, self.ports, self.workload.namespace, self.workload.labels, self.attached


def frame(gateway: InternalGateway, view: View, mesh: MeshSettings) -> Frame:
    """Read the gateway off the view."""
    service = view.services.get((gateway.namespace, gateway.name))
    unusable = _why_unusable(str(gateway), service, view.skip("Service", (gateway.namespace, gateway.name)))
    stand_in = service or Service(gateway.namespace, gateway.name)
    pods = workload(gateway, stand_in, view)
    slices = view.slices(gateway.namespace, gateway.name)
    return Frame(
        name=str(gateway),
        v4=stand_in.v4,
        v6=stand_in.v6,
        unusable=unusable,
        ready="EndpointSlice" in view.unavailable or any(piece.ready for piece in slices),
        endpoints=tuple(sorted({address for piece in slices for address in piece.addresses})),
        translated=bool(stand_in.selector),
        ports=_pod_ports(stand_in, pods, view),
        workload=pods,
        attached=tuple(attached(view.gateways.values(), pods, mesh)),
    )


def _why_unusable(name: str, service: Service | None, skip: Skip | None) -> str:
    if service is None:
        return f"the gateway's {skip.text}" if skip else f"the gateway's Service {name} does not exist"
    if service.headless:
        return f"the gateway's Service {name} is headless: it has no address that could be answered"
    if service.external_name:
        return f"the gateway's Service {name} is an ExternalName: it has no address that could be answered"
    if not service.v4 and not service.v6:
        rejected = "; ".join(f"{address}: {why}" for address, why in service.rejected)
        return f"the gateway's Service {name} has no usable address" + (f" ({rejected})" if rejected else " yet")
    return ""


def _pod_ports(service: Service, pods: Workload, view: View) -> dict[int, int]:
    """Where each TCP port of the Service leads. A named targetPort, or any port of a Service without selector, is in the
    EndpointSlices; else the pods name it."""
    behind = {name: port for piece in view.slices(service.namespace, service.name) for name, port in piece.ports}
    named = {name: port for pod in pods.pods for name, port in pod.ports}
    ports: dict[int, int] = {}
    for one in service.ports:
        if one.protocol != "TCP" or one.port in ports:
            continue
        if isinstance(one.target, str):
            ports[one.port] = behind.get(one.name) or named.get(one.target) or one.port
        elif service.selector:
            ports[one.port] = one.target or one.port
        else:
            ports[one.port] = behind.get(one.name) or one.target or one.port
    return ports
