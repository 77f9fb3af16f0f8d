"""The kinds that are watched: where the API has them, and what the rule does without them.

Rules of this file:
- a value per kind and no code that acts: `reflector` lists and watches, `watcher` joins them;
- names are the API's own, as RBAC rules and `kubectl` spell them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object."""

    name: str
    resource: str
    """Plural, as in the path."""
    group: str = ""
    versions: tuple[str, ...] = ("v1",)
    """API versions, the best first: the first one that the server has is read."""
    required: bool = False
    """Nothing can be said before it was read; what is not required may be denied by RBAC."""
    optional: bool = False
    """It comes with a CRD: where that is not installed there are no objects."""

    @property
    def title(self) -> str:
        """As `kubectl` names it: `virtualservices.networking.istio.io`."""
        return f"{self.resource}.{self.group}" if self.group else self.resource

    def path(self, version: str, namespace: str = "") -> str:
        root = f"/apis/{self.group}" if self.group else "/api"
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}/{version}{scope}/{self.resource}"

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version


_ISTIO = "networking.istio.io"
_ISTIO_VERSIONS = ("v1", "v1beta1", "v1alpha3")

SERVICE = Kind("Service", "services", required=True)
NAMESPACE = Kind("Namespace", "namespaces")
GATEWAY = Kind("Gateway", "gateways", _ISTIO, _ISTIO_VERSIONS, required=True, optional=True)
VIRTUAL_SERVICE = Kind("VirtualService", "virtualservices", _ISTIO, _ISTIO_VERSIONS, required=True, optional=True)
DESTINATION_RULE = Kind("DestinationRule", "destinationrules", _ISTIO, _ISTIO_VERSIONS, optional=True)
ENDPOINT_SLICE = Kind("EndpointSlice", "endpointslices", "discovery.k8s.io")
POD = Kind("Pod", "pods")

EVERYWHERE = (SERVICE, VIRTUAL_SERVICE, NAMESPACE, DESTINATION_RULE, GATEWAY)
"""Read in the whole cluster; the largest first, for a quick start."""
BY_NAMESPACE = (ENDPOINT_SLICE, POD)
"""Read in the gateways' namespaces only."""
