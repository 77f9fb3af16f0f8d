"""What the rule gives: bound names, skipped names, objects that cannot be used, and the state of each internal gateway.

Rules of this file:
- plain frozen records: nothing here decides;
- every "no" carries the object and the field that cause it, and one sentence that a person understands;
- reasons are one enum, named like the conditions of the Gateway API; their docstrings become the documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from canal_dns.mesh.records import frozen


class Reason(Enum):
    """Why a name is bound or skipped, or an object not usable. `text` is its line in the documentation."""

    text: str

    def __new__(cls, value: str, text: str) -> Reason:
        member = object.__new__(cls)
        member._value_ = value
        member.text = text
        return member

    ACCEPTED = "Accepted", "The gateway serves the name: it is bound."
    INVALID = "Invalid", "An object has a field that cannot be used, or that Envoy refuses."
    NO_ROUTE = "NoRoute", "No VirtualService on an internal gateway names the Service, as destination or as host."
    NO_ACTION = (
        "NoAction",
        "Routes only mirror, redirect, answer directly, or give the Service weight 0: no request reaches it.",
    )
    GATEWAY_NOT_FOUND = "GatewayNotFound", "The VirtualService names no Gateway that exists, or only `mesh`."
    NOT_ATTACHED = (
        "NotAttached",
        "The Gateway's selector does not match the pods of an internal gateway, or its namespace is out of scope.",
    )
    NOT_EXPORTED = "NotExported", "The VirtualService is not exported to the namespace of the gateway's pods."
    REVISION = "RevisionMismatch", "The label istio.io/rev gives the object to another istiod."
    PROTOCOL = (
        "ProtocolMismatch",
        "The Gateway has no server of the route's kind: http routes need HTTP or HTTPS, tcp TCP, tls PASSTHROUGH.",
    )
    DELEGATE = "DelegateNotUsed", "A VirtualService without hosts counts only where a root VirtualService delegates to it."
    GATEWAY_NOT_PROGRAMMED = "GatewayNotProgrammed", "The server of the Gateway is dropped, refused, or cannot be reached."
    HOST_NOT_SERVED = (
        "HostNotServed",
        "Requests for the Service's own name do not come to the route: hosts do not meet, or do not cover it.",
    )
    MATCH_NOT_APPLICABLE = "MatchNotApplicable", "The match of the route never applies on this gateway."
    SHADOWED = "Shadowed", "An earlier route takes every request that would reach this one."
    TARGET_NOT_FOUND = "TargetNotFound", "The destination does not exist: Service, port or subset."
    PORT_NOT_SERVED = "PortNotServed", "The Service has a port that the gateway does not serve for it; DNS would move it too."
    CROSS_NAMESPACE = "CrossNamespace", "A VirtualService of another namespace governs the name, without the Service's consent."
    PROTECTED = "Protected", "The name belongs to the cluster itself and is never bound."
    HEADLESS = "Headless", "A headless Service: its clients want the addresses of its pods."
    EXTERNAL_NAME = "ExternalName", "An ExternalName Service: its answer is a CNAME, whose end may be bound."
    OPTED_OUT = "OptedOut", "The annotation canal-dns.io/bind forbids it."
    CONFLICTED = "Conflicted", "Another internal gateway serves the name by an older VirtualService."
    GATEWAY_NOT_USABLE = "GatewayNotUsable", "The gateway's Service is missing, headless, or has no usable address."
    GATEWAY_NOT_READY = "GatewayNotReady", "The gateway has no ready endpoint."
    LIMIT_EXCEEDED = "LimitExceeded", "More names than binding.maxBindings allows."


CLAIM_DESTINATION = "destination"
CLAIM_HOST = "host"


@frozen
class Bound:
    """A name that answers with a gateway's address."""

    name: str
    """Fully qualified, lower case, without the final dot."""
    service: str
    """The Service, `namespace/name`."""
    v4: tuple[str, ...]
    v6: tuple[str, ...]
    """The VIPs, as text, in the order of the gateway Service. One of the two may be empty, never both."""
    ttl: int
    """Seconds."""
    gateway: str
    """The internal gateway's Service, `namespace/name`."""
    gateways: tuple[str, ...]
    """The Gateway objects on which the serving routes stand, `namespace/name`, sorted."""
    routes: tuple[str, ...]
    """The VirtualServices with a route that serves the name, `namespace/name`, sorted."""
    ports: tuple[int, ...]
    """Ports of the gateway that serve the name, ascending."""
    claims: tuple[str, ...]
    """Why it is bound: `destination` (a request for the name reaches the Service), `host` (the name is a domain), or both."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A name that is not bound, with the first rule that fails."""

    name: str
    service: str
    """`namespace/name`, or "" where the name is none of a Service."""
    route: str
    """The VirtualService that means to bind it, `namespace/name`, or ""."""
    reason: Reason
    message: str
    object: str
    """The object at fault: `VirtualService default/helloworld`."""
    field: str
    """Its field at fault: `spec.http[0].route[0].destination.host`, or ""."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An object, or part of one, that counts for nothing."""

    object: str
    field: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class GatewayState:
    """An internal gateway as the objects show it."""

    gateway: str
    """`namespace/name` of its Service."""
    v4: tuple[str, ...]
    v6: tuple[str, ...]
    ready: bool
    """At least one ready endpoint now, or nobody can know; what counts for binding is what the caller passes as `unready`."""
    attached: tuple[str, ...]
    """Gateway objects that select its pods, oldest first."""
    ports: tuple[int, ...]
    """Ports of its Service on which something is served, ascending."""
    endpoints: tuple[str, ...] = ()
    """Addresses of its pods, ready or not, sorted. Names must not lead these clients to the gateway, that is to themselves."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The whole outcome. The mappings are to be read only."""

    bound: Mapping[str, Bound] = field(default_factory=dict)
    skipped: Mapping[str, Skipped] = field(default_factory=dict)
    """Names that some VirtualService means to bind; Services that none mentions are added by `report`."""
    problems: tuple[Problem, ...] = ()
    gateways: tuple[GatewayState, ...] = ()


def difference(old: Mapping[str, Bound], new: Mapping[str, Bound]) -> dict[str, Bound | None]:
    """What changes from `old` to `new`: the new record per name, None for a name that is no longer bound."""
    changed: dict[str, Bound | None] = {name: bound for name, bound in new.items() if old.get(name) != bound}
    changed.update((name, None) for name in old if name not in new)
    return changed


def joined(values: Iterable[object]) -> str:
    """A list for a sentence: `a, b, c`, or `nothing`."""
    return ", ".join(str(value) for value in values) or "nothing"
