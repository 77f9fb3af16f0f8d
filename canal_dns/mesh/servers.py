"""What listeners istiod makes of the attached Gateways' servers (pilot model.mergeGateways, core.buildGatewayListeners).

Rules of this file:
- one protocol per port, the oldest server decides; HTTP merges with HTTP, TLS with TLS (by server name), TCP with nothing;
- a TLS server (an `httpsRedirect` one too) that repeats a host already used on its port is dropped before anything else;
- ports are those that the pods listen on: a server's number is looked up in the gateway's Service first (resolvePorts);
- a dropped server is a value with its sentence, so that a name that it would have served can say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from canal_dns.mesh.hosts import sanitized
from canal_dns.mesh.records import Gateway, Server

HTTP = frozenset({"http", "http2", "http_proxy", "grpc", "grpc-web"})
"""Protocols whose requests are routed by host and path (protocol.Instance.IsHTTP)."""

_WILDCARDS = ("0.0.0.0", "::")
_PASSTHROUGH = ("PASSTHROUGH", "AUTO_PASSTHROUGH")


@dataclass(frozen=True, slots=True)
class Placed:
    """A server where it stands, with its hosts as istiod rewrites them."""

    gateway: str
    """`namespace/name`."""
    index: int
    server: Server
    hosts: tuple[str, ...]
    port: int
    """That the pods listen on."""

    @property
    def field(self) -> str:
        return f"spec.servers[{self.index}]"

    @property
    def protocol(self) -> str:
        return self.server.protocol.lower()

    @property
    def is_http(self) -> bool:
        """Plain HTTP, `httpsRedirect` included."""
        return self.protocol in HTTP

    @property
    def is_passthrough(self) -> bool:
        return self.server.tls and self.server.mode in _PASSTHROUGH

    @property
    def terminates_https(self) -> bool:
        return self.server.tls and self.protocol == "https" and not self.is_passthrough

    @property
    def routes_http(self) -> bool:
        """gateway.IsHTTPServer: an HTTPS server counts even where its `tls` is missing."""
        return self.is_http or (self.protocol == "https" and not self.is_passthrough)

    @property
    def is_tls(self) -> bool:
        """gateway.IsTLSServer: TLS settings on anything but HTTP."""
        return self.server.tls and not self.is_http

    @property
    def route_name(self) -> str:
        """The name of the route configuration of a server that routes HTTP (gatewayRDSRouteName)."""
        bind = f".{self.server.bind}" if self.server.bind else ""
        if self.is_http:
            return f"http.{self.port}{bind}"
        namespace, _, name = self.gateway.partition("/")
        return f"https.{self.server.number}.{self.server.port_name}.{name}.{namespace}{bind}"

    @property
    def server_names(self) -> tuple[str, ...] | None:
        """SNI that its filter chain takes; None: any connection (GetSNIHostsForServer, isMatchAll).

        istiod leaves out repetitions as they are written, Envoy lower-cases: two spellings are the same name twice."""
        names = dict.fromkeys(host.partition("/")[2] if "/" in host else host for host in self.hosts)
        return None if "*" in names or not self.server.tls else tuple(name.lower() for name in names)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A server that istiod does not program."""

    gateway: str
    index: int
    server: Server
    port: int
    message: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One filter chain, or the place of those that depend on VirtualServices.

    kind: `http` (a route configuration), `tcp` (the first tcp route of a VirtualService), `sni` (a chain per tls route).
    """

    kind: str
    placed: Placed
    route_name: str
    names: tuple[str, ...] | None
    """As Envoy compares them, in lower case."""
    tls: bool
    sequence: int
    """Its place among all chains of the port, whatever address they are bound to."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What is behind one address and port."""

    port: int
    bind: str
    reachable: bool
    """Bound to every address; a loopback or other single address is not where the VIP leads."""
    chains: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All that follows from the Gateways alone."""

    listeners: tuple[Listener, ...] = ()
    route_configs: Mapping[str, tuple[Placed, ...]] = field(default_factory=dict)
    """Servers of each route configuration, in the order in which their virtual hosts are filled."""
    dropped: tuple[Dropped, ...] = ()


def layout(gateways: Sequence[Gateway], resolve: Mapping[int, int]) -> Layout:
    """Merge the servers of the attached Gateways, oldest first. `resolve`: port of the Service -> port of the pods."""
    merge = _Merge()
    for gateway in gateways:
        name = f"{gateway.namespace}/{gateway.name}"
        for index, server in enumerate(gateway.servers):
            port = resolve.get(server.number, server.number)
            hosts = sanitized(server.hosts, gateway.namespace)
            if hosts is None:
                merge.dropped.append(Dropped(name, index, server, port, "istiod cannot read a host after `*/*` in one server"))
                continue
            message = merge.add(Placed(name, index, server, hosts, port))
            if message:
                merge.dropped.append(Dropped(name, index, server, port, message))
    return Layout(
        tuple(_listeners(merge)), {name: tuple(servers) for name, servers in merge.by_route.items()}, tuple(merge.dropped)
    )


_Slot = tuple[int, str, str]
"""model.ServerPort: port, protocol as written, bind."""


class _Merge:
    """The state of mergeGateways."""

    def __init__(self) -> None:
        self.ports: set[int] = set()
        self.plain: dict[int, _Slot] = {}
        self.tls_binds: dict[int, set[str]] = {}
        self.tls_hosts: dict[int, dict[str, str]] = {}
        self.slots: dict[_Slot, list[Placed]] = {}
        self.twice: set[_Slot] = set()
        """Slots that istiod lists twice, and so builds all filter chains of twice."""
        self.by_route: dict[str, list[Placed]] = {}
        self.dropped: list[Dropped] = []

    def add(self, placed: Placed) -> str:
        """Take a server in; the sentence on why not, or ""."""
        if placed.server.tls:
            repeated = self._repeated(placed)
            if repeated:
                return f"its host {repeated!r} is already used by another TLS server on port {placed.port}"
        slot = (placed.port, placed.server.protocol, placed.server.bind)
        if placed.port not in self.ports:
            self.ports.add(placed.port)
            self._open(placed, slot)
            return ""
        current = self.plain.get(placed.port)
        if current is not None:
            return self._join_plain(placed, slot, current)
        if not placed.is_tls:
            self._open(placed, slot)
            return ""
        return self._join_tls(placed, slot)

    def _repeated(self, placed: Placed) -> str:
        """CheckDuplicates: the hosts become known only if none of them was."""
        known = self.tls_hosts.setdefault(placed.port, {})
        for host in placed.hosts:
            if known.get(host) == placed.server.bind:
                return host
        known.update(dict.fromkeys(placed.hosts, placed.server.bind))
        return ""

    def _open(self, placed: Placed, slot: _Slot) -> None:
        """addPlainTextServer, which takes TLS servers too. A slot that is there already loses its servers."""
        if slot in self.slots:
            self.twice.add(slot)
            message = (
                f"{placed.gateway} {placed.field}, of the same protocol without TLS, takes its place on port {placed.port}"
            )
            self.dropped.extend(Dropped(one.gateway, one.index, one.server, one.port, message) for one in self.slots[slot])
        if not placed.is_tls:
            self.plain[placed.port] = slot
        if placed.routes_http:
            self.by_route[placed.route_name] = [placed]
        self.slots[slot] = [placed]

    def _join_plain(self, placed: Placed, slot: _Slot, current: _Slot) -> str:
        same_bind = current[2] == slot[2]
        before = current[1].lower()
        mergeable = placed.is_http and before in HTTP
        if same_bind and not mergeable:
            first = self.slots[current][0]
            return f"port {placed.port} is taken by {first.gateway} {first.field}, an older server of protocol {current[1]}"
        if same_bind:
            self.slots[current].append(placed)
            self.by_route.setdefault(placed.route_name, []).append(placed)
        elif slot not in self.slots:
            self._open(placed, slot)
        else:
            self.slots[slot].append(placed)
            self.by_route.setdefault(placed.route_name, []).append(placed)
        return ""

    def _join_tls(self, placed: Placed, slot: _Slot) -> str:
        if placed.routes_http:
            if placed.route_name in self.by_route:
                return f"its port name {placed.server.port_name!r} is used twice for HTTPS in one Gateway"
            self.by_route[placed.route_name] = [placed]
        self.slots.setdefault(slot, []).append(placed)
        return ""


def _listeners(merge: _Merge) -> Iterable[Listener]:
    chains: dict[tuple[str, int], list[Chain]] = {}
    for (port, protocol, bind), servers in merge.slots.items():
        address = bind or _WILDCARDS[0]
        known = chains.setdefault((address, port), [])
        start = sum(len(some) for some in chains.values())
        if protocol.lower() in HTTP:
            known.append(Chain("http", servers[0], servers[0].route_name, None, tls=False, sequence=start))
            continue
        times = 2 if (port, protocol, bind) in merge.twice else 1
        for sequence, placed in enumerate(servers * times, start):
            if placed.terminates_https:
                known.append(Chain("http", placed, placed.route_name, placed.server_names, tls=True, sequence=sequence))
            elif placed.is_passthrough:
                known.append(Chain("sni", placed, "", None, tls=False, sequence=sequence))
            else:
                known.append(Chain("tcp", placed, "", placed.server_names, tls=placed.server.tls, sequence=sequence))
    for (address, port), found in chains.items():
        yield Listener(port, address, address in _WILDCARDS, tuple(found))
