"""Which workload an internal gateway is, and which Gateways istiod gives to it (pilot PushContext.mergeGateways).

Rules of this file:
- the workload is the gateway's pods: their namespace and the labels that all of them have;
- a Gateway attaches if its selector is part of these labels; an empty selector is part of any;
- attached Gateways are merged oldest first, equal ages by name, then namespace (configCompareByCreationTime).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from canal_dns.mesh.records import DestinationRule, Gateway, Pod, Service, VirtualService
from canal_dns.mesh.view import View
from canal_dns.settings import InternalGateway, MeshSettings

ADDED_LABELS = {"topology.istio.io/cluster": "Kubernetes"}
"""What istiod adds to the labels of every workload (label.AugmentLabels), with its default name of the cluster. Labels that
depend on the node (region, zone, host) or on a network are not known here: `podLabels` may name them."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The gateway's pods as one."""

    namespace: str
    labels: Mapping[str, str]
    pods: tuple[Pod, ...]
    warnings: tuple[str, ...]


def workload(gateway: InternalGateway, service: Service, view: View) -> Workload:
    """Find the pods: configured labels, else the Pods behind the Service's endpoints, else those that its selector takes,
    else (no Pod may be read) the selector itself."""
    known = view.pods(service.namespace)
    behind = {name for piece in view.slices(service.namespace, service.name) for _, name in piece.pods}
    pods = tuple(known[name] for name in sorted(behind) if name in known)
    if not pods and service.selector:
        wanted = set(service.selector)
        pods = tuple(known[name] for name in sorted(known) if wanted <= set(known[name].labels))
    warnings = []
    if gateway.pod_labels is not None:
        labels = dict(gateway.pod_labels)
    elif pods:
        labels = dict(set.intersection(*(set(pod.labels) for pod in pods)))
    else:
        labels = dict(service.selector)
        warnings.append(
            f"no Pod of {gateway} is known: the selector of its Service stands for the pods' labels, which may be more"
        )
    if any(pod.host_network for pod in pods):
        warnings.append(
            f"pods of {gateway} share their node's network: whoever asks from such a node's address gets the real answers, "
            "as the gateway itself must"
        )
    return Workload(service.namespace, {**ADDED_LABELS, **labels}, pods, tuple(warnings))


def age(record: Gateway | VirtualService) -> tuple[float, str, str]:
    """Sorts oldest first; equal ages by name, then namespace."""
    return record.created, record.name, record.namespace


def why_not_attached(gateway: Gateway, target: Workload, mesh: MeshSettings) -> str:
    """One sentence on why a Gateway does not attach; "" if it does."""
    if not has_revision(gateway, mesh):
        return f"its label istio.io/rev is {gateway.revision!r}, istiod's revision is {mesh.revision!r}"
    if mesh.scope_gateway_to_namespace and gateway.namespace != target.namespace:
        return (
            f"istiod scopes Gateways to their namespace: it is in {gateway.namespace}, the gateway's pods in {target.namespace}"
        )
    for name, value in gateway.selector:
        there = target.labels.get(name)
        if there != value:
            seen = f"have {name}={there}" if there is not None else f"have no label {name}"
            return f"its selector asks for {name}={value}, the gateway's pods {seen}"
    return ""


def has_revision(record: Gateway | VirtualService | DestinationRule, mesh: MeshSettings) -> bool:
    """istiod reads the object: no revision configured, none on the object, or the same."""
    return mesh.revision is None or record.revision in ("", mesh.revision)


def attached(gateways: Iterable[Gateway], target: Workload, mesh: MeshSettings) -> list[Gateway]:
    """The Gateways that the workload serves, oldest first."""
    return sorted((gateway for gateway in gateways if not why_not_attached(gateway, target, mesh)), key=age)
