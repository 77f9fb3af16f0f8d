"""From the mapping that a YAML file holds to Settings, or to a ConfigError that says where, what, and what is allowed.

Rules of this file:
- nothing here reads a file, the environment or a clock;
- an unknown key is an error that names the nearest known one; a bad value is an error that says what is allowed;
- a default stands in `model`, never here.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

from canal_dns.errors import ConfigError
from canal_dns.settings.model import (
    AccessSettings,
    BindingSettings,
    CacheSettings,
    ClusterSettings,
    CrossNamespace,
    Endpoint,
    ForwardSettings,
    GatewayUnready,
    HealthSettings,
    InternalGateway,
    ListenSettings,
    LogFormat,
    LogSettings,
    MeshSettings,
    Network,
    PortGuard,
    ProcessSettings,
    RateLimitSettings,
    Sentinel,
    Settings,
    SnapshotSettings,
    SourceSettings,
    TcpSettings,
    User,
    ZoneSettings,
)

T = TypeVar("T")
Choice = TypeVar("Choice", bound=Enum)


def parse(mapping: Mapping[str, Any], *, offline: bool = False) -> Settings:
    """Turn the mapping of a configuration file (DESIGN: section Configuration) into Settings.

    `offline`: for `table` and `explain`, which forward nothing: `upstreams` may be missing.
    Raises ConfigError for the first unknown key, bad value or impossible combination.
    """
    top = _Section("", mapping)
    listen = ListenSettings(
        addresses=top.take("listen", _list_of(_listener), ListenSettings().addresses),
        workers=top.take("workers", _workers, ListenSettings().workers),
        lameduck=top.take("lameduck", _duration(0, 600), ListenSettings().lameduck),
    )
    zone = ZoneSettings(
        cluster_domain=top.take("clusterDomain", _domain, ZoneSettings().cluster_domain),
        ttl=top.take("ttl", _integer(1, 3600), ZoneSettings().ttl),
    )
    upstreams = top.take("upstreams", _list_of(_upstream), ForwardSettings().upstreams)
    sentinel = top.take("upstreamSentinel", _choice(Sentinel), ForwardSettings().sentinel)
    gateways = top.take("gateways", _list_of(_gateway), BindingSettings().gateways)
    source = _source(top.section("source"))
    health = HealthSettings(admin=top.take("admin", _admin, HealthSettings().admin))
    binding = _binding(top.section("binding"), top.section("mesh"), gateways, zone)
    cache = _cache(top.section("cache"))
    access_section = top.section("access")
    access = _access(access_section)
    log = _log(top.section("log"))
    snapshot = _snapshot(top.section("snapshot"))
    process = ProcessSettings(top.take("user", _user, ProcessSettings().user))
    tcp, forward = _limits(top.section("limits"), upstreams, sentinel)
    top.done()

    if not source.manifests and source.cluster is None:
        raise ConfigError(
            "source", None, "say where the objects come from: `source: {cluster: {}}` or `source: {manifests: FILE-OR-FOLDER}`"
        )
    if not gateways:
        raise ConfigError("gateways", None, "name at least one internal gateway: `gateways: [{service: NAMESPACE/NAME}]`")
    if not upstreams and not offline:
        raise ConfigError("upstreams", None, 'name at least one CoreDNS: `upstreams: ["10.96.0.10:53"]`')
    _refuse_overlaps(listen.addresses, health.admin)
    if len({str(gateway) for gateway in gateways}) < len(gateways):
        raise ConfigError("gateways", [str(gateway) for gateway in gateways], "each Service may stand there once")
    return Settings(
        source=source,
        listen=ListenSettings(listen.addresses, listen.workers, listen.lameduck, tcp),
        zone=zone,
        forward=forward,
        access=access,
        cache=cache,
        health=health,
        binding=binding,
        log=log,
        snapshot=snapshot,
        process=process,
        warnings=(
            *_warnings(listen, forward, access),
            *(() if "rateLimit" in access_section.mapping else _unconsidered(access)),
        ),
    )


def _refuse_overlaps(listen: tuple[Endpoint, ...], admin: Endpoint | None) -> None:
    """Raise ConfigError where two addresses cannot be bound side by side: the same, or a wildcard that has the other."""
    if not listen:
        raise ConfigError("listen", None, 'name at least one address: `listen: ["0.0.0.0:1053"]`')
    taken: list[tuple[str, Endpoint]] = []
    for key, address in [*((f"listen[{index}]", one) for index, one in enumerate(listen)), ("admin", admin)]:
        if address is None:
            continue
        for other_key, other in taken:
            if address.overlaps(other):
                raise ConfigError(key, str(address), f"{other_key} ({other}) has that address already")
        taken.append((key, address))


def _source(section: _Section) -> SourceSettings:
    cluster = None
    if "cluster" in section.mapping:
        given = section.section("cluster")
        cluster = ClusterSettings(
            kubeconfig=given.take("kubeconfig", _text, ClusterSettings().kubeconfig),
            context=given.take("context", _text, ClusterSettings().context),
        )
        given.done()
        if cluster.context and not cluster.kubeconfig:
            raise ConfigError("source.cluster.context", cluster.context, "a context is one of a file: name `kubeconfig` too")
    source = SourceSettings(section.take("manifests", _text, SourceSettings().manifests), cluster)
    section.done()
    if source.manifests and source.cluster is not None:
        raise ConfigError("source", ["cluster", "manifests"], "objects come from one of the two")
    return source


def _snapshot(section: _Section) -> SnapshotSettings:
    default = SnapshotSettings()
    snapshot = SnapshotSettings(
        path=section.take("path", _text_or_nothing, default.path),
        max_age=section.take("maxAge", _duration(60, 30 * 86400), default.max_age),
        ready_after=section.take("readyAfter", _duration(0, 3600), default.ready_after),
    )
    section.done()
    return snapshot


def _binding(section: _Section, mesh: _Section, gateways: tuple[InternalGateway, ...], zone: ZoneSettings) -> BindingSettings:
    default = BindingSettings()
    istio = MeshSettings()
    mesh_settings = MeshSettings(
        root_namespace=mesh.take("rootNamespace", _text, istio.root_namespace),
        scope_gateway_to_namespace=mesh.take("scopeGatewayToNamespace", _boolean, istio.scope_gateway_to_namespace),
        default_virtual_service_export_to=mesh.take(
            "defaultVirtualServiceExportTo", _list_of(_text), istio.default_virtual_service_export_to
        ),
        default_destination_rule_export_to=mesh.take(
            "defaultDestinationRuleExportTo", _list_of(_text), istio.default_destination_rule_export_to
        ),
        revision=mesh.take("revision", _text, istio.revision),
    )
    mesh.done()
    settings = BindingSettings(
        gateways=gateways,
        port_guard=section.take("portGuard", _choice(PortGuard), default.port_guard),
        cross_namespace=section.take("crossNamespace", _choice(CrossNamespace), default.cross_namespace),
        headless=section.take("headless", _boolean, default.headless),
        gateway_unready=section.take("gatewayUnready", _choice(GatewayUnready), default.gateway_unready),
        gateway_unready_after=section.take("gatewayUnreadyAfter", _duration(0, 600), default.gateway_unready_after),
        settle=section.take("settle", _duration(0, 600), default.settle),
        protected=section.take("protected", _list_of(_namespaced), default.protected),
        max_bindings=section.take("maxBindings", _integer(1, 1_000_000), default.max_bindings),
        cluster_domain=zone.cluster_domain,
        ttl=zone.ttl,
        mesh=mesh_settings,
    )
    section.done()
    return settings


def _cache(section: _Section) -> CacheSettings:
    cache = CacheSettings(
        size=section.take("size", _integer(0, 10_000_000), CacheSettings().size),
        serve_stale=section.take("serveStale", _duration_or_off(1, 7 * 86400), CacheSettings().serve_stale),
    )
    section.done()
    return cache


def _access(section: _Section) -> AccessSettings:
    default = AccessSettings()
    limit = section.section("rateLimit")
    rate_limit = RateLimitSettings(
        per_second=limit.take("perSecond", _integer(0, 1_000_000), default.rate_limit.per_second),
        slip=limit.take("slip", _integer(0, 10), default.rate_limit.slip),
        exempt=limit.take("exempt", _list_of(_network), default.rate_limit.exempt),
    )
    limit.done()
    access = AccessSettings(
        allow=section.take("allow", _list_of(_network), default.allow),
        peers=section.take("peers", _list_of(_network), default.peers),
        error_replies_per_second=section.take(
            "errorRepliesPerSecond", _integer(0, 1_000_000), default.error_replies_per_second
        ),
        rate_limit=rate_limit,
    )
    section.done()
    return access


def _log(section: _Section) -> LogSettings:
    log = LogSettings(
        level=section.take("level", _one_of("debug", "info", "warning", "error"), LogSettings().level),
        format=section.take("format", _choice(LogFormat), LogSettings().format),
        queries=section.take("queries", _boolean, LogSettings().queries),
    )
    section.done()
    return log


def _limits(section: _Section, upstreams: tuple[Endpoint, ...], sentinel: Sentinel) -> tuple[TcpSettings, ForwardSettings]:
    tcp = TcpSettings()
    forward = ForwardSettings()
    budget = section.take("forwardBudget", _duration(0.1, 5), forward.budget)
    discard_age = section.take("discardAge", _duration(0.1, 10), max(forward.discard_age, budget))
    if discard_age < budget:
        raise ConfigError(
            section.where("discardAge"),
            section.mapping["discardAge"],
            f"at least limits.forwardBudget ({budget:g}s) is needed, or nobody would be told of a failure",
        )
    limits = (
        TcpSettings(
            connections=section.take("tcpConnections", _integer(1, 1_000_000), tcp.connections),
            connections_per_client=section.take("tcpConnectionsPerClient", _integer(1, 1_000_000), tcp.connections_per_client),
            queries_per_connection=section.take("tcpQueriesPerConnection", _integer(1, 1_000_000), tcp.queries_per_connection),
            in_flight=section.take("tcpInFlight", _integer(1, 10_000), tcp.in_flight),
            first_byte=section.take("tcpFirstByte", _duration(0.1, 600), tcp.first_byte),
            message=section.take("tcpMessage", _duration(0.1, 600), tcp.message),
            write=section.take("tcpWrite", _duration(0.1, 600), tcp.write),
            idle=section.take("tcpIdle", _duration(0.1, 600), tcp.idle),
        ),
        ForwardSettings(
            upstreams=upstreams,
            sentinel=sentinel,
            budget=budget,
            max_outstanding=section.take("maxOutstanding", _integer(1, 60_000), forward.max_outstanding),
            max_outstanding_per_client=section.take(
                "maxOutstandingPerClient", _integer(1, 60_000), forward.max_outstanding_per_client
            ),
            discard_age=discard_age,
        ),
    )
    section.done()
    return limits


def _warnings(listen: ListenSettings, forward: ForwardSettings, access: AccessSettings) -> Iterable[str]:
    own = {(address.host, address.port) for address in listen.addresses}
    wildcard_ports = {address.port for address in listen.addresses if address.is_wildcard}
    for upstream in forward.upstreams:
        loopback = ipaddress.ip_address(upstream.host).is_loopback
        if (upstream.host, upstream.port) in own or (loopback and upstream.port in wildcard_ports):
            yield f"upstreams: {upstream} is an address on which canal-dns itself listens: every forwarded query would loop"
    if forward.sentinel is Sentinel.DO and not access.peers:
        yield (
            "access.peers: empty, so that all clients behind CoreDNS share the limits of one; name the network of CoreDNS's "
            "pods, or their questions over TCP may get CoreDNS's own answer under load"
        )
    if forward.sentinel is Sentinel.DO and forward.budget >= 2.0:
        yield f"limits.forwardBudget: {forward.budget:g}s; CoreDNS gives up after 2 s and marks canal-dns down"


def _unconsidered(access: AccessSettings) -> Iterable[str]:
    """Who widens `allow` is to know what comes with it, where nothing was said about it."""
    limit = access.rate_limit
    unlimited = (*limit.exempt, *access.peers)
    limited = [str(one) for one in access.allow if not any(_covers(other, one) for other in unlimited)]
    if limited:
        yield (
            f"access.allow: {', '.join(limited)}: over UDP {limit.per_second} answers a second and prefix (/32, /64), and what "
            "is longer than three times its query over TCP; name in access.rateLimit.exempt what are pods and nodes of yours"
        )


def _covers(network: Network, other: Network) -> bool:
    return network.version == other.version and other.subnet_of(network)  # type: ignore[arg-type]


class _Section:
    """One mapping of the file: hands out its keys, then tells which were not asked for."""

    def __init__(self, path: str, mapping: object) -> None:
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ConfigError(path or "configuration", mapping, "a mapping of keys is needed here")
        self.path = path
        self.mapping: Mapping[str, Any] = mapping if mapping is not None else {}
        self._known: set[str] = set()

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def section(self, key: str) -> _Section:
        self._known.add(key)
        return _Section(self.where(key), self.mapping.get(key))

    def take(self, key: str, parser: Callable[[str, Any], T], default: T) -> T:
        """The parsed value, or the default where the key is absent or empty."""
        self._known.add(key)
        value = self.mapping.get(key)
        return default if value is None else parser(self.where(key), value)

    def done(self) -> None:
        for key in self.mapping:
            if key not in self._known:
                near = difflib.get_close_matches(str(key), self._known, 1, 0.5)
                known = ", ".join(sorted(self._known))
                hint = f"did you mean {near[0]!r}?" if near else f"known are {known}"
                raise ConfigError(self.where(str(key)), self.mapping[key], f"unknown key; {hint}")


def _endpoint(where: str, value: object, *, default_port: int | None = None, lowest_port: int = 1) -> Endpoint:
    """`ADDRESS:PORT` or `[IPV6]:PORT`. Host names are refused: they would be resolved through ourselves."""
    text = str(value)
    allowed = "an IP address and a port is needed, such as 10.96.0.10:53 or [fd00::10]:53"
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?", text)
    port = int(match[3]) if match and match[3] else default_port
    if match is None or port is None or not lowest_port <= port < 65536:
        raise ConfigError(where, value, allowed)
    try:
        address = ipaddress.ip_address(match[1] or match[2])
    except ValueError:
        raise ConfigError(where, value, allowed) from None
    if (address.version == 6) != (match[1] is not None):
        raise ConfigError(where, value, allowed)
    return Endpoint(str(address), port)


def _listener(where: str, value: object) -> Endpoint:
    """Port 0 is any free port, for tests and demonstrations."""
    return _endpoint(where, value, lowest_port=0)


def _upstream(where: str, value: object) -> Endpoint:
    upstream = _endpoint(where, value, default_port=53)
    address = ipaddress.ip_address(upstream.host)
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(where, value, "it must be the address of a CoreDNS")
    return upstream


def _admin(where: str, value: object) -> Endpoint | None:
    return None if value is False or value == "off" else _listener(where, value)


def _duration(low: float, high: float) -> Callable[[str, Any], float]:
    """A parser for `500ms`, `15s`, `2m` (a bare 0 too) that gives seconds."""

    def parser(where: str, value: object) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", str(value))
        seconds = 0.0 if value == 0 and value is not False else None
        if match:
            seconds = float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
        if seconds is None or not low <= seconds <= high:
            raise ConfigError(where, value, f"a time such as 500ms, 15s or 2m is needed, from {low:g}s to {high:g}s")
        return seconds

    return parser


def _duration_or_off(low: float, high: float) -> Callable[[str, Any], float]:
    """The same; `off` gives 0."""
    duration = _duration(low, high)

    def parser(where: str, value: object) -> float:
        return 0.0 if value is False or value == "off" else duration(where, value)

    return parser


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def parser(where: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(where, value, f"a whole number from {low} to {high} is needed")
        return value

    return parser


def _workers(where: str, value: object) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
        raise ConfigError(where, value, "`auto`, 0 (one process for everything) or a number of processes up to 1024")
    return value


def _user(where: str, value: object) -> User | None:
    """Text only: YAML takes 1000:50 without quotes for sixty times 1000 and 50."""
    match = re.fullmatch(r"auto|([0-9]{1,10})(?::([0-9]{1,10}))?", value) if isinstance(value, str) else None
    user = User(int(match[1]), int(match[2] or match[1])) if match and match[1] else None
    if match is None or (user and ((user.uid == 0) != (user.gid == 0) or max(user.uid, user.gid) >= 2**32 - 1)):
        raise ConfigError(where, value, '`auto` or numbers in quotes are needed: "UID" or "UID:GID"; "0" stays root')
    return user


def _boolean(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(where, value, "true or false is needed")
    return value


def _text_or_nothing(where: str, value: object) -> str:
    return "" if value == "" else _text(where, value)


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(where, value, "a text is needed")
    return value


def _choice(kind: type[Choice]) -> Callable[[str, Any], Choice]:
    def parser(where: str, value: object) -> Choice:
        for member in kind:
            if member.value == value:
                return member
        raise ConfigError(where, value, "one of " + ", ".join(str(member.value) for member in kind) + " is needed")

    return parser


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def parser(where: str, value: object) -> str:
        if value not in allowed:
            raise ConfigError(where, value, f"one of {', '.join(allowed)} is needed")
        return str(value)

    return parser


def _list_of(parser: Callable[[str, Any], T]) -> Callable[[str, Any], tuple[T, ...]]:
    def parse_all(where: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ConfigError(where, value, "a list is needed")
        return tuple(parser(f"{where}[{index}]", item) for index, item in enumerate(value))

    return parse_all


def _network(where: str, value: object) -> Network:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as problem:
        raise ConfigError(where, value, f"a network such as 10.244.0.0/16 is needed ({problem})") from None


def _domain(where: str, value: object) -> str:
    text = str(value).lower().removesuffix(".")
    label = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
    if len(text) > 120 or not all(label.fullmatch(part) for part in text.split(".")):
        raise ConfigError(where, value, "a DNS domain such as cluster.local is needed")
    return text


def _service(where: str, value: object) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z0-9.-]+)/([a-z0-9.-]+)", str(value))
    if match is None:
        raise ConfigError(where, value, "the gateway's Service is needed, as NAMESPACE/NAME")
    return match[1], match[2]


def _namespaced(where: str, value: object) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z0-9.-]+|\*)/([a-z0-9.-]+|\*)", str(value))
    if match is None:
        raise ConfigError(where, value, "NAMESPACE/NAME is needed, `*` stands for any")
    return match[1], match[2]


def _gateway(where: str, value: object) -> InternalGateway:
    section = _Section(where, value)
    service = section.take("service", _service, None)
    labels = section.take("podLabels", _labels, None)
    section.done()
    if service is None:
        raise ConfigError(section.where("service"), None, "the gateway's Service is needed, as NAMESPACE/NAME")
    return InternalGateway(service[0], service[1], labels)


def _labels(where: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise ConfigError(where, value, "a mapping of label names to texts is needed")
    return tuple(sorted(value.items()))
