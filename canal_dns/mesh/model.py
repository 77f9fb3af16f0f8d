"""One internal gateway as istiod programs it: its address, its listeners, and in them the routes of every VirtualService.

Rules of this file:
- what follows from Gateways, the gateway's Service and its pods (the layout) is made once; they change rarely;
- each VirtualService is put in and taken out by itself, and the answer is the names whose outcome that may change;
- filter chains hang together (a server name counts once, a listener is refused as a whole): they are made anew when all changes
  are in, and what became of them is told once (`settle`);
- TCP: a server has the first live route of its first VirtualService; TLS passthrough: a chain per match, a repeated server name
  drops the whole match (createGatewayTCPFilterChainOpts).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from canal_dns.mesh.attach import has_revision
from canal_dns.mesh.frame import Frame
from canal_dns.mesh.hosts import intersection, is_wildcard, names_for_namespace, overlaps
from canal_dns.mesh.records import L4Route
from canal_dns.mesh.routes import Built, Entry, Target, build, l4_applies, targets
from canal_dns.mesh.rules import Resolved, Tier, tier
from canal_dns.mesh.servers import Chain, Layout, Listener, Placed, layout
from canal_dns.mesh.virtualhosts import Domains, VirtualHost
from canal_dns.settings import BindingSettings

Order = tuple[int, float, str, str]
"""Tier, age, name, namespace: the order of a gateway's VirtualServices."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A tcp or tls route that a VirtualService offers to a server."""

    order: Order
    place: tuple[int, int]
    """Route and match, counted in the VirtualService."""
    virtual_service: str
    route: L4Route
    written: tuple[str, ...]
    """Its sniHosts: istiod compares them as they are."""
    sni_hosts: tuple[str, ...]
    """As Envoy compares them, in lower case."""
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class SniChain:
    """A filter chain of a listener that is chosen by server name; names None: the rest."""

    chain: Chain
    names: frozenset[str] | None
    """In lower case, whatever the objects say: Envoy chooses so."""
    offer: Offer | None
    """The tcp or tls route; None: a route configuration."""
    repeated: str = ""
    """A name that it has twice."""

    @property
    def source(self) -> str:
        """Where its names are written."""
        if self.offer is not None and self.chain.kind == "sni":
            match = f"{self.offer.route.field}.match[{self.offer.place[1]}]"
            return f"VirtualService {self.offer.virtual_service} {match}.sniHosts"
        return f"Gateway {self.chain.placed.gateway} {self.chain.placed.field}"


class Choice:
    """How Envoy chooses among the filter chains of a listener."""

    __slots__ = ("_named", "rest")

    def __init__(self, chains: Iterable[SniChain]) -> None:
        self.rest: SniChain | None = None
        """The chain without names."""
        self._named: dict[str, SniChain] = {}
        for one in chains:
            if one.names is None:
                self.rest = one
            else:
                self._named.update(dict.fromkeys(one.names, one))

    def by_server_name(self, name: str) -> SniChain | None:
        """The exact name (in lower case, as the names of the chains), then `*.suffix` label by label, then the chain without
        names."""
        wanted = name
        while self._named:
            found = self._named.get(wanted)
            if found is not None:
                return found
            _, dot, rest = wanted.removeprefix("*.").partition(".")
            if not dot:
                break
            wanted = f"*.{rest}"
        return self.rest


Chains = tuple[SniChain, ...] | str
"""The filter chains of a listener, or why Envoy refuses it."""


class RouteTable:
    """A route configuration: its virtual hosts, and why Envoy would refuse all of it."""

    def __init__(self, name: str, servers: tuple[Placed, ...], *, tls: bool, ends: Collection[str]) -> None:
        """`ends`: see VirtualHost."""
        self.name = name
        self.servers = servers
        self.tls = tls
        self.ends = ends
        self.hosts: dict[str, VirtualHost] = {}
        self.domains = Domains()
        self.redirects = frozenset() if tls else _redirects(servers)
        """Domains that only redirect to HTTPS, whatever VirtualServices say."""
        for domain in self.redirects:
            self.domains.add(domain)

    def only_redirects(self, domain: str) -> bool:
        found = self.hosts.get(domain)
        return domain in self.redirects or (not self.tls and found is not None and found.redirecting > 0)


def _redirects(servers: Iterable[Placed]) -> frozenset[str]:
    return frozenset(host.lower() for placed in servers if placed.server.https_redirect for host in placed.hosts)


@dataclass(slots=True)
class Contribution:
    """What one VirtualService put into the model."""

    entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    """(route configuration, domain) -> routes."""
    tcp: list[tuple[Placed, Offer]] = field(default_factory=list)
    sni: list[tuple[Placed, Offer]] = field(default_factory=list)
    refused: str = ""
    """Envoy refuses a route of it, and then every route of the gateway."""


class GatewayModel:
    """The listeners and routes of one internal gateway."""

    def __init__(self, state: Frame, settings: BindingSettings) -> None:
        self.frame = state
        self.settings = settings
        self.layout: Layout = layout(state.attached, state.ports if state.translated else {})
        self._listeners = {port: self._listener_on(pods) for port, pods in state.ports.items()}
        self.attached = frozenset(f"{one.namespace}/{one.name}" for one in state.attached)
        self.tables: dict[str, RouteTable] = {
            name: RouteTable(name, servers, tls=servers[0].terminates_https, ends=self._authority_ends(name))
            for name, servers in self.layout.route_configs.items()
        }
        self.tcp: dict[Placed, list[Offer]] = {}
        self.sni: dict[Placed, list[Offer]] = {}
        for chain in (chain for listener in self.layout.listeners for chain in listener.chains):
            if chain.kind == "tcp":
                self.tcp[chain.placed] = []
            elif chain.kind == "sni":
                self.sni[chain.placed] = []
        self.contributions: dict[str, Contribution] = {}
        self.refusing: dict[str, str] = {}
        """VirtualService -> why Envoy refuses every route configuration while it is there."""
        self._chains: dict[int, dict[str, Chains]] = {}
        """Port -> bind -> filter chains."""
        self._settled: dict[int, dict[str, Chains]] = {}
        """Port whose offers have changed -> bind -> filter chains at the last `settle`."""
        self._choices: dict[int, dict[str, Choice]] = {}

    def _authority_ends(self, route_name: str) -> tuple[str, ...]:
        """What clients write behind a name to reach a route configuration: the port, unless it is the scheme's own
        (RFC 9110 section 4.2)."""
        ends = set()
        for service_port in self.frame.ports:
            listener = self.listener(service_port)
            for chain in listener.chains if listener is not None else ():
                if chain.kind == "http" and chain.route_name == route_name:
                    ends.add("" if service_port == (443 if chain.tls else 80) else f":{service_port}")
        return tuple(sorted(ends)) or ("",)

    def tier(self, resolved: Resolved) -> Tier | None:
        """How this gateway sees the VirtualService; None: not at all."""
        return tier(resolved.record, self.frame.workload.namespace, self.settings.mesh.default_virtual_service_export_to)

    def put(self, key: str, resolved: Resolved | None) -> set[str]:
        """Put a VirtualService in, replacing its former self; None: take it out. Returns the hosts touched: those of its
        destinations and domains, and those whose routes it reveals or hides; a wildcard stands for every name below it. What
        becomes of filter chains is told by `settle`."""
        old = self.contributions.pop(key, None)
        new = self._contribution(resolved) if resolved is not None else None
        touched: set[str] = set()
        if new is not None:
            self.contributions[key] = new
        before = bool(self.refusing)
        self.refusing.pop(key, None)
        if new is not None and new.refused:
            self.refusing[key] = new.refused
        if before != bool(self.refusing):
            touched.add("*")
        touched |= self._put_routes(old, new)
        self._put_offers(self.tcp, old.tcp if old else (), new.tcp if new else ())
        self._put_offers(self.sni, old.sni if old else (), new.sni if new else ())
        return touched

    def settle(self) -> set[str]:
        """The hosts that changes of filter chains have touched since the last call."""
        touched: set[str] = set()
        for port, before in self._settled.items():
            after = self._port_chains(port)
            for bind, chains in before.items():
                touched |= _difference(chains, after[bind])
        self._settled.clear()
        return touched

    def _contribution(self, resolved: Resolved) -> Contribution | None:
        seen = self.tier(resolved)
        mine = [name for name in resolved.gateways if name in self.attached]
        if seen is None or not mine or not resolved.hosts or not has_revision(resolved.record, self.settings.mesh):
            return None
        order = (int(seen), *resolved.age)
        made = Contribution()
        for table in self.tables.values():
            self._add_routes(made, table, resolved, mine, order)
        for kept, routes, store in ((self.tcp, resolved.tcp, made.tcp), (self.sni, resolved.tls, made.sni)):
            for placed in kept:
                if placed.gateway in mine and _may_use(placed, resolved):
                    offers = (
                        _tcp_offer(placed, resolved, routes, order)
                        if kept is self.tcp
                        else _sni_offers(placed, resolved, routes, order)
                    )
                    store.extend((placed, offer) for offer in offers)
        return made

    def _add_routes(self, made: Contribution, table: RouteTable, resolved: Resolved, mine: list[str], order: Order) -> None:
        """buildGatewayHTTPRouteConfig: a Gateway's routes are built for its first server that meets the hosts, and reused."""
        built: dict[str, list[Built]] = {}
        for number, placed in enumerate(table.servers):
            if placed.gateway not in mine:
                continue
            meeting = intersection(names_for_namespace(placed.hosts, resolved.record.namespace), resolved.hosts)
            if not meeting:
                continue
            routes = built.get(placed.gateway)
            if not routes:
                routes = build(resolved, placed.server.number, placed.gateway, self.frame.workload)
                built[placed.gateway] = routes
            for occurrence, domain in enumerate(host.lower() for host in meeting):
                entries = made.entries.setdefault((table.name, domain), []) if routes else []
                for index, route in enumerate(routes):
                    made.refused = made.refused or (f"{route.rule.field}: {route.rule.refused}" if route.rule.refused else "")
                    place = (int(route.match.is_catch_all), number, *order, occurrence, index)
                    entries.append(
                        Entry(
                            place,
                            route,
                            resolved.key,
                            placed.gateway,
                            redirects=placed.server.https_redirect,
                            dead=not all(one.passes("https" if table.tls else "http") for one in route.match.scheme),
                        )
                    )

    def _put_routes(self, old: Contribution | None, new: Contribution | None) -> set[str]:
        touched: set[str] = set()
        before = old.entries if old else {}
        after = new.entries if new else {}
        for name, domain in dict.fromkeys((*before, *after)):
            table = self.tables[name]
            host = table.hosts.get(domain)
            opened = host is None
            if host is None:
                host = table.hosts[domain] = VirtualHost(domain, table.ends)
                table.domains.add(domain)
            redirected = host.redirecting > 0
            changed, governed = host.change(before.get((name, domain), ()), after.get((name, domain), ()))
            closed = not host.entries
            if closed:
                del table.hosts[domain]
                if domain not in table.redirects:
                    table.domains.remove(domain)
            touched.update(target.host for entry in changed for target in entry.built.targets)
            judges = any(entry.built.match.authority for entry in changed)
            if not is_wildcard(domain) or opened or closed or judges or governed or redirected != (host.redirecting > 0):
                touched.add(domain)
        return touched

    def _put_offers(
        self, kept: dict[Placed, list[Offer]], old: Iterable[tuple[Placed, Offer]], new: Iterable[tuple[Placed, Offer]]
    ) -> None:
        for port in {placed.port for placed, _ in (*old, *new)}:
            if port not in self._settled:
                self._settled[port] = self._port_chains(port)
            self._chains.pop(port, None)
            self._choices.pop(port, None)
        for placed, offer in old:
            offers = kept[placed]
            del offers[bisect_left(offers, _sorting(offer), key=_sorting)]
        for placed, offer in new:
            insort(kept[placed], offer, key=_sorting)

    def chains(self, listener: Listener) -> Chains:
        """The filter chains of a listener; a sentence if Envoy refuses it because two are chosen by the same."""
        return self._port_chains(listener.port)[listener.bind]

    def _port_chains(self, port: int) -> dict[str, Chains]:
        known = self._chains.get(port)
        if known is None:
            listeners = [one for one in self.layout.listeners if one.port == port]
            used: dict[str, str] = {}
            made: dict[str, list[SniChain]] = {one.bind: [] for one in listeners}
            for chain, bind in sorted(
                ((chain, one.bind) for one in listeners for chain in one.chains), key=lambda pair: pair[0].sequence
            ):
                made[bind].extend(self._chain(chain, used))
            known = self._chains[port] = {bind: _checked(port, tuple(chains)) for bind, chains in made.items()}
        return known

    def _chain(self, chain: Chain, used: dict[str, str]) -> Iterator[SniChain]:
        """What a server becomes. `used`: server names of earlier passthrough routes on the port, with their bind."""
        if chain.kind == "http":
            yield _named(chain, chain.names, None)
        elif chain.kind == "tcp":
            for offer in self.tcp[chain.placed][:1]:
                yield _named(chain, chain.names, offer)
        elif chain.placed.server.mode == "PASSTHROUGH":
            for offer in self.sni[chain.placed]:
                if not any(used.get(name) == chain.placed.server.bind for name in offer.written):
                    used.update(dict.fromkeys(offer.written, chain.placed.server.bind))
                    names = offer.sni_hosts
                    yield _named(chain, None if not names or "*" in names else names, offer)

    def choice(self, listener: Listener) -> Choice:
        """Among its chains; none can be chosen where Envoy refuses it."""
        known = self._choices.get(listener.port)
        if known is None:
            chains = self._port_chains(listener.port)
            known = {bind: Choice(() if isinstance(some, str) else some) for bind, some in chains.items()}
            self._choices[listener.port] = known
        return known[listener.bind]

    def listener(self, service_port: int) -> Listener | None:
        """What answers on a port of the gateway's Service, from outside the pods."""
        return self._listeners.get(service_port)

    def _listener_on(self, port: int) -> Listener | None:
        return next((one for one in self.layout.listeners if one.port == port and one.reachable), None)


def _may_use(placed: Placed, resolved: Resolved) -> bool:
    """pickMatchingGatewayHosts: hosts overlap in either direction."""
    allowed = names_for_namespace(placed.hosts, resolved.record.namespace)
    return any(overlaps(one, other) for one in allowed for other in resolved.hosts)


def _tcp_offer(placed: Placed, resolved: Resolved, routes: Iterable[L4Route], order: Order) -> Iterator[Offer]:
    for index, route in enumerate(routes):
        applies = not route.matches or any(l4_applies(one, placed.server.number, placed.gateway) for one in route.matches)
        if applies and route.destinations:
            aims = targets(route.destinations, placed.server.number)
            yield Offer(order, (index, 0), resolved.key, route, (), (), aims)
            return


def _sni_offers(placed: Placed, resolved: Resolved, routes: Iterable[L4Route], order: Order) -> Iterator[Offer]:
    for index, route in enumerate(routes):
        aims = targets(route.destinations, placed.server.number)
        for number, match in enumerate(route.matches):
            if route.destinations and l4_applies(match, placed.server.number, placed.gateway):
                names = tuple(host.lower() for host in match.sni_hosts)
                yield Offer(order, (index, number), resolved.key, route, match.sni_hosts, names, aims)


def _sorting(offer: Offer) -> tuple[Order, tuple[int, int]]:
    return offer.order, offer.place


def _named(chain: Chain, names: tuple[str, ...] | None, offer: Offer | None) -> SniChain:
    if names is None:
        return SniChain(chain, None, offer)
    distinct = frozenset(names)
    repeated = "" if len(distinct) == len(names) else next(name for name in names if names.count(name) > 1)
    return SniChain(chain, distinct, offer, repeated)


def _checked(port: int, chains: tuple[SniChain, ...]) -> Chains:
    """Envoy refuses a listener where two chains are chosen by the same server name, or two by none, or one twice."""
    taken: dict[str | None, SniChain] = {}
    for one in chains:
        if one.repeated:
            return f"Envoy refuses port {port}: server name {one.repeated} is there twice in {one.source}"
        for name in (None,) if one.names is None else sorted(one.names):
            other = taken.get(name)
            if other is not None and other.source == one.source:
                return f"Envoy refuses port {port}: istiod builds the filter chain of {one.source} twice"
            if other is not None:
                what = "any connection" if name is None else f"server name {name}"
                return f"Envoy refuses port {port}: {what} is taken by {other.source} and again by {one.source}"
            taken[name] = one
    return chains


def _difference(before: Chains, after: Chains) -> set[str]:
    """The hosts that a change of chains touches."""
    if isinstance(before, str) or isinstance(after, str):
        return set() if before == after else {"*"}
    old, new = _by_origin(before), _by_origin(after)
    touched: set[str] = set()
    for one in {old[key] for key in old.keys() - new.keys()} ^ {new[key] for key in new.keys() - old.keys()}:
        touched.update(one.names or ())
        touched.update(target.host for target in (one.offer.targets if one.offer else ()))
    return touched


def _by_origin(chains: Iterable[SniChain]) -> dict[tuple[int, int], SniChain]:
    """Chains by the server and the offer that they were made of, which is cheaper than to compare what they say."""
    return {(one.chain.sequence, id(one.offer)): one for one in chains}
