"""The objects that the rule reads, cut to the fields that matter.

Rules of this file:
- frozen, hashable, small: 20,000 Services and their VirtualServices are held at once;
- a field that the rule does not read is not here, so that an update of anything else (status above all) is no change;
- what an object says is kept as it says it (case, dots, order): the rule decides, not the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """A frozen dataclass of which there are tens of thousands. That nobody changes it, the type checker sees to: where Python
    does, each field is set by a call, and a Service costs three times as much."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


Labels = tuple[tuple[str, str], ...]
"""Labels as sorted pairs."""


class Uses(Enum):
    """How a string match compares."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"
    """An empty match, and the regex `*`: the header is there, whatever it says (istiod: canBeConvertedToPresentMatch)."""


@frozen
class StringMatch:
    """Istio's StringMatch. `value` is empty for PRESENT."""

    uses: Uses
    value: str = ""


@frozen
class ServicePort:
    name: str
    protocol: str
    """TCP, UDP or SCTP."""
    port: int
    target: int | str | None
    """targetPort: a number, the name of a container port, or None for the same number."""
    app_protocol: str = ""


@frozen
class Service:
    """core/v1 Service."""

    kind: ClassVar[str] = "Service"
    namespace: str
    name: str
    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()
    """Usable cluster addresses."""
    rejected: tuple[tuple[str, str], ...] = ()
    """Cluster addresses that must not become an answer, each with why."""
    headless: bool = False
    external_name: str = ""
    """The target of an ExternalName Service."""
    ports: tuple[ServicePort, ...] = ()
    selector: Labels = ()
    bind: bool | None = None
    """Annotation canal-dns.io/bind; None: absent."""
    allow_from: frozenset[str] = frozenset()
    """Annotation canal-dns.io/allow-from: namespaces, or `*`."""
    ttl: int | None = None
    """Annotation canal-dns.io/ttl, seconds, as it stands."""
    export_to: frozenset[str] = frozenset()
    """Annotation networking.istio.io/exportTo; empty: everywhere."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Annotations that could not be used: (field, what is wrong). The Service itself counts."""


@frozen
class EndpointSlice:
    """discovery.k8s.io/v1 EndpointSlice."""

    kind: ClassVar[str] = "EndpointSlice"
    namespace: str
    name: str
    service: str
    """Label kubernetes.io/service-name."""
    ready: bool = False
    """One endpoint at least is ready (absent counts as ready) and not terminating."""
    pods: tuple[tuple[str, str], ...] = ()
    """(namespace, name) of the Pods behind endpoints, sorted."""
    ports: tuple[tuple[str, int], ...] = ()
    """(name of the Service's port, number that the pods listen on)."""
    addresses: tuple[str, ...] = ()
    """Of all endpoints, ready or not, sorted."""


@frozen
class Pod:
    """core/v1 Pod."""

    kind: ClassVar[str] = "Pod"
    namespace: str
    name: str
    labels: Labels = ()
    ports: tuple[tuple[str, int], ...] = ()
    """Named container ports."""
    host_network: bool = False
    """Its address is its node's."""


@frozen
class Namespace:
    """core/v1 Namespace."""

    kind: ClassVar[str] = "Namespace"
    name: str
    bind: bool | None = None
    namespace: str = ""
    remarks: tuple[tuple[str, str], ...] = ()


@frozen
class Server:
    """One server of a Gateway."""

    number: int
    protocol: str
    """As written; compared without case."""
    port_name: str
    hosts: tuple[str, ...]
    bind: str = ""
    tls: bool = False
    """A `tls` block is there, even an empty one."""
    mode: str = ""
    """PASSTHROUGH (Istio's default inside `tls`), SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ..."""
    https_redirect: bool = False


@frozen
class Gateway:
    """networking.istio.io Gateway."""

    kind: ClassVar[str] = "Gateway"
    namespace: str
    name: str
    created: float = 0.0
    """Seconds since 1970; 0 where a manifest has none, so that those are the oldest and equal."""
    revision: str = ""
    """Label istio.io/rev."""
    selector: Labels = ()
    servers: tuple[Server, ...] = ()


@frozen
class Destination:
    host: str
    port: int | None = None
    subset: str = ""
    weight: int = 0


@frozen
class HttpMatch:
    """One HTTPMatchRequest. Header names are as written; mappings are sorted pairs."""

    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: tuple[tuple[str, StringMatch], ...] = ()
    without_headers: tuple[tuple[str, StringMatch], ...] = ()
    query_params: tuple[tuple[str, StringMatch], ...] = ()
    port: int = 0
    source_labels: Labels = ()
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()
    ignore_uri_case: bool = False


@frozen
class HttpRoute:
    """One entry of `http`, with its place in the object for messages."""

    field: str
    matches: tuple[HttpMatch, ...] = ()
    destinations: tuple[Destination, ...] = ()
    redirect: bool = False
    refused: bool = False
    """Its action is one that Envoy refuses: a redirect with an unusual code."""
    direct_response: bool = False
    mirrors: tuple[str, ...] = ()
    delegate: tuple[str, str] | None = None
    """(namespace or "", name)."""


@frozen
class L4Match:
    """L4MatchAttributes and TLSMatchAttributes, without the source fields and subnets, which gateways ignore."""

    port: int = 0
    gateways: tuple[str, ...] = ()
    sni_hosts: tuple[str, ...] = ()


@frozen
class L4Route:
    """One entry of `tcp` or `tls`."""

    field: str
    matches: tuple[L4Match, ...] = ()
    destinations: tuple[Destination, ...] = ()


@frozen
class VirtualService:
    """networking.istio.io VirtualService."""

    kind: ClassVar[str] = "VirtualService"
    namespace: str
    name: str
    created: float = 0.0
    revision: str = ""
    hosts: tuple[str, ...] = ()
    """Empty: a delegate."""
    gateways: tuple[str, ...] = ()
    export_to: tuple[str, ...] = ()
    http: tuple[HttpRoute, ...] = ()
    tcp: tuple[L4Route, ...] = ()
    tls: tuple[L4Route, ...] = ()
    bind: bool | None = None
    remarks: tuple[tuple[str, str], ...] = ()


@frozen
class DestinationRule:
    """networking.istio.io DestinationRule: what is needed to know which subsets exist."""

    kind: ClassVar[str] = "DestinationRule"
    namespace: str
    name: str
    created: float = 0.0
    revision: str = ""
    host: str = ""
    subsets: tuple[str, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: Labels | None = None


@frozen
class Skip:
    """An object that cannot be used. It takes the place of what was known under its name."""

    kind: str
    namespace: str
    name: str
    reason: str
    """CamelCase, as in `result.Reason`."""
    message: str
    field: str

    @property
    def text(self) -> str:
        """One sentence without its end: the object is there, and why that is of no use."""
        return f"{self.kind} {key_text(self.namespace, self.name)} is there but not usable ({self.field}: {self.message})"


Record = Service | EndpointSlice | Pod | Namespace | Gateway | VirtualService | DestinationRule

KINDS = ("Service", "EndpointSlice", "Pod", "Namespace", "Gateway", "VirtualService", "DestinationRule")


def key_text(namespace: str, name: str) -> str:
    """`namespace/name`, or the name alone for an object of the cluster."""
    return f"{namespace}/{name}" if namespace else name
