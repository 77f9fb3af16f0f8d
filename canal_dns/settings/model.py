"""The settings as frozen records, one per concern.

Rules of this file:
- under each field stands what it means, its unit, what None means, and why the default is what it is;
- times are seconds as float; in YAML they are written `500ms`, `15s`, `2m`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PRIVATE = tuple(
    ipaddress.ip_network(text) for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    @property
    def is_wildcard(self) -> bool:
        return ipaddress.ip_address(self.host).is_unspecified

    def overlaps(self, other: Endpoint) -> bool:
        """They cannot be bound side by side: the same, or a wildcard that has the other. Port 0 is any free one."""
        return (
            self.port == other.port != 0
            and self.is_ipv6 == other.is_ipv6
            and (self.host == other.host or self.is_wildcard or other.is_wildcard)
        )


class Sentinel(Enum):
    """What marks our own upstream queries, so that CoreDNS does not send them back (Layout B)."""

    DO = "do"
    NONE = "none"


class PortGuard(Enum):
    """How many ports of a Service the gateway must serve before its name is bound."""

    ENFORCE = "enforce"
    WARN = "warn"


class CrossNamespace(Enum):
    """What becomes of a name that a VirtualService of another namespace governs without consent."""

    DENY = "deny"
    WARN = "warn"
    ALLOW = "allow"


class GatewayUnready(Enum):
    """What the names of a gateway without ready endpoints get: the real answer, or still the VIP."""

    FORWARD = "forward"
    KEEP = "keep"


class LogFormat(Enum):
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """Limits on client TCP (RFC 7766; figures: those of dnsdist, Unbound and CoreDNS)."""

    connections: int = 1000
    """Open connections in one worker; at 90 % the idle time-out shrinks, above 100 % new ones are closed."""
    connections_per_client: int = 20
    """Open connections of one client address; `access.peers` are exempt, since CoreDNS opens one per waiting query."""
    queries_per_connection: int = 128
    """Queries on one connection before it is closed after the last answer (CVE-2025-30193); `access.peers` are exempt, since
    CoreDNS with `force_tcp` and NodeLocal DNSCache ask for all their clients on connections that they keep."""
    in_flight: int = 10
    """Forwarded queries of one connection that may wait for an upstream; above it the connection is not read."""
    first_byte: float = 5.0
    """Seconds for the first octet of the first message."""
    message: float = 10.0
    """Seconds for one whole message, counted from its first octet: it ends a slow-loris."""
    write: float = 10.0
    """Seconds in which a client must take some of what waits for it."""
    idle: float = 15.0
    """Seconds without a message and without a pending answer; above CoreDNS's `expire` of 10 s, so that it closes first."""


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where queries come in."""

    addresses: tuple[Endpoint, ...] = (Endpoint("0.0.0.0", 1053),)
    """UDP and TCP on each. 1053 needs no privilege; a Service maps 53 to it."""
    workers: int | None = None
    """Worker processes; 0: everything in one process; None: one per CPU that the container may use."""
    lameduck: float = 15.0
    """Seconds of answering after SIGTERM while not ready: conntrack keeps UDP clients pinned to a pod that goes away."""
    tcp: TcpSettings = TcpSettings()


@dataclass(frozen=True, slots=True)
class ZoneSettings:
    """What our own answers carry."""

    cluster_domain: str = "cluster.local"
    """The cluster's DNS domain, lower case, without the final dot."""
    ttl: int = 5
    """Seconds; CoreDNS's default for Services, so that a client forgets a binding as fast as a ClusterIP."""


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How everything else reaches CoreDNS."""

    upstreams: tuple[Endpoint, ...] = ()
    """CoreDNS addresses in order of preference; never taken from resolv.conf, which would loop."""
    sentinel: Sentinel = Sentinel.DO
    """DO=1 on every upstream query lets a stock CoreDNS block with `view … expr !do()` tell them apart."""
    budget: float = 1.5
    """Seconds in all for one client query: below CoreDNS's read time-out of 2 s, else it marks us down for its own fault."""
    max_outstanding: int = 10_000
    """Clients' queries that may wait for an upstream in one worker; one more is answered SERVFAIL at once and counted."""
    max_outstanding_per_client: int = 1000
    """Of these, of one client address (DNSBomb, CVE-2024-33655)."""
    discard_age: float = 1.9
    """Seconds after which an answer is no longer sent to a UDP client (it has asked again, or is being used: DNSBomb).

    Not below the budget, at whose end a failure is told.
    """


@dataclass(frozen=True, slots=True)
class RateLimitSettings:
    """Limits on what is answered over UDP to clients whose address may be forged: per prefix (/32 and /64) so many answers a
    second, and none longer than three times its query."""

    per_second: int = 200
    """Answers per second and prefix from one worker, as many saved up at most; 0: no limit for anybody. 200: NSD's figure; a
    host asks less, and with `slip: 1` who asks more goes on over TCP."""
    slip: int = 1
    """Of the queries above the rate every n-th gets an empty TC=1 reply, the others nothing; 0: nothing at all. 1, as Knot: it
    is no longer than the query, and whoever was not forged knows what to do."""
    exempt: tuple[Network, ...] = _PRIVATE
    """Networks without a limit. Default: what `allow` allows by default: pods, Services, nodes and loopback, where whoever
    forges an address is caught by the network. So the limit begins with the first public network that is allowed."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may ask, and how much."""

    allow: tuple[Network, ...] = _PRIVATE
    """Clients that are answered; others get REFUSED. Default: loopback and the private ranges that clusters use."""
    peers: tuple[Network, ...] = ()
    """CoreDNS's addresses: allowed, and exempt from the limits per client, because all clients stand behind them."""
    error_replies_per_second: int = 100
    """FORMERR, NOTIMP, REFUSED and the like over UDP, in one worker (NSD and Unbound limit theirs to as many)."""
    rate_limit: RateLimitSettings = RateLimitSettings()


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What upstreams answered, for those who ask the same before it has expired."""

    size: int = 10_000
    """Replies in one worker, of 2 KiB on the average at most; 0 turns the cache off. 10,000: the names that the pods of a
    cluster ask for, with both families and the denials of a search list, take a few thousand; CoreDNS has room for 19,968."""
    serve_stale: float = 0.0
    """Seconds after its end for which a reply is still given, with a TTL of 30, while every upstream is down (RFC 8767);
    0: never, since an address that a Service had an hour ago may be another's now."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which API server is watched, and as whom."""

    kubeconfig: str = ""
    """A kubeconfig file; "": the service account of the pod that this process runs in."""
    context: str = ""
    """A context of the kubeconfig; "": its current one."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Where Kubernetes objects come from: exactly one of the two."""

    manifests: str = ""
    """A file, or a folder that is read recursively (`*.yaml`, `*.yml`, `*.json`), watched."""
    cluster: ClusterSettings | None = None
    """An API server, watched."""


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """The last answer table on disk, for a restart while the API server is away."""

    path: str = ""
    """The file; its folder must be there and writable. "": none is kept."""
    max_age: float = 86400.0
    """Seconds; an older one is not used: the longer ago, the more likely a VIP belongs to somebody else."""
    ready_after: float = 10.0
    """Seconds after the start when the saved table makes us ready: an API server that is there is read in less, and knows
    better."""


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """The admin endpoints `/health`, `/ready`, `/metrics`, `/bindings`."""

    admin: Endpoint | None = Endpoint("0.0.0.0", 8080)
    """None (`admin: off`): no HTTP at all."""


@dataclass(frozen=True, slots=True)
class InternalGateway:
    """An internal gateway: the Service whose addresses are the VIP."""

    namespace: str
    name: str
    pod_labels: tuple[tuple[str, str], ...] | None = None
    """Labels of the gateway's pods, sorted; None: read from the Pods behind the Service."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What istiod was told, where it changes what a gateway serves."""

    root_namespace: str = "istio-system"
    """MeshConfig `rootNamespace`: where mesh-wide DestinationRules live."""
    scope_gateway_to_namespace: bool = False
    """istiod's PILOT_SCOPE_GATEWAY_TO_NAMESPACE: only Gateways of the gateway pods' own namespace attach."""
    default_virtual_service_export_to: tuple[str, ...] = ("*",)
    """MeshConfig `defaultVirtualServiceExportTo`: for VirtualServices without `exportTo`."""
    default_destination_rule_export_to: tuple[str, ...] = ("*",)
    """MeshConfig `defaultDestinationRuleExportTo`: for DestinationRules without `exportTo`."""
    revision: str | None = None
    """istiod's revision: objects whose label `istio.io/rev` names another one are left out; None: the label is ignored."""


@dataclass(frozen=True, slots=True)
class BindingSettings:
    """The policies of the binding rule."""

    gateways: tuple[InternalGateway, ...] = ()
    port_guard: PortGuard = PortGuard.ENFORCE
    """DNS moves all ports of a name: with `enforce` the gateway must serve each of them, with `warn` one is enough."""
    cross_namespace: CrossNamespace = CrossNamespace.DENY
    """`deny`: else any tenant could take the traffic of another namespace (istio#8615)."""
    headless: bool = False
    """Bind the bare name of headless Services too."""
    gateway_unready: GatewayUnready = GatewayUnready.FORWARD
    """Fail open: a gateway that serves nobody is not given to clients."""
    gateway_unready_after: float = 3.0
    """Seconds a gateway must be without ready endpoints before its names are forwarded (and ready before they return)."""
    settle: float = 2.0
    """Seconds a newly bound name waits for istiod to program the gateway (requests sent earlier get 404)."""
    protected: tuple[tuple[str, str], ...] = ()
    """Further (namespace, name) never to be bound; `*` stands for any. kube-system and the like are protected anyway."""
    max_bindings: int = 20_000
    """Bound names in all; further ones (in order of name) are skipped with a reason."""
    cluster_domain: str = "cluster.local"
    """The same as ZoneSettings.cluster_domain: names are made of it."""
    ttl: int = 5
    """The same as ZoneSettings.ttl: for Services without an annotation."""
    mesh: MeshSettings = MeshSettings()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log, on standard error."""

    level: str = "info"
    """debug | info | warning | error"""
    format: LogFormat = LogFormat.TEXT
    queries: bool = False
    """One line per query, at most 100 a second, names escaped. Off: names are the clients' business."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a process runs as: numbers, since a container has no names."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What the process may do on its machine."""

    user: User | None = None
    """Whom `serve` becomes when root starts it; None: the image's 65532:65532, where all that is needed can be read then."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it; parts are handed down, never the whole."""

    source: SourceSettings
    listen: ListenSettings = ListenSettings()
    zone: ZoneSettings = ZoneSettings()
    forward: ForwardSettings = ForwardSettings()
    access: AccessSettings = AccessSettings()
    cache: CacheSettings = CacheSettings()
    health: HealthSettings = HealthSettings()
    binding: BindingSettings = BindingSettings()
    log: LogSettings = LogSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    process: ProcessSettings = ProcessSettings()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What is allowed but hardly meant; `serve` logs it, `check` prints it."""
