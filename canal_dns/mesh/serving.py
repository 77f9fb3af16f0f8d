"""What a client gets that asks an internal gateway for a name: served(N, p) for each port p of the gateway's Service.

Rules of this file:
- HTTP: the virtual host that Envoy picks for the name must have a reached route to an existing destination, and the name must
  be claimed there: as destination (a request for it arrives at the Service itself) or as host (it is itself a domain);
- TLS: the chain that the server name picks, likewise; TCP: the one proxy of the port, which sends to the Service or not;
- who governs a name is every VirtualService with a reached route in that virtual host, whether or not it claims the name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from canal_dns.mesh.destinations import Found
from canal_dns.mesh.model import GatewayModel, RouteTable, SniChain
from canal_dns.mesh.records import frozen
from canal_dns.mesh.result import CLAIM_DESTINATION, CLAIM_HOST
from canal_dns.mesh.routes import Target
from canal_dns.mesh.servers import Listener
from canal_dns.mesh.virtualhosts import VirtualHost

Find = Callable[[Target], Found]
Counts = Callable[[str], bool]
"""False for a VirtualService (`namespace/name`) that opted out: its routes stand, but claim nothing."""


@frozen
class Served:
    """How one port of the gateway serves a name."""

    claims: frozenset[str]
    routes: frozenset[str]
    """VirtualServices by which it is claimed, `namespace/name`."""
    gateways: frozenset[str]
    """Gateway objects on whose servers these stand."""
    governors: tuple[Collection[str], ...]
    """VirtualServices whose routes see requests for the name: to be read at once, it is the model's own."""
    namespaces: tuple[Collection[str], ...]
    """Their namespaces."""
    protocol: str
    """`http`, `https`, `tls` (by server name) or `tcp`."""
    warnings: frozenset[str] = frozenset()


class Way(NamedTuple):
    """A place of a listener to which requests for a name come: a virtual host, or a chain with one route."""

    protocol: str
    table: RouteTable | None = None
    host: VirtualHost | None = None
    """None: the route configuration knows no such host (404), or its domain only redirects."""
    domain: str = ""
    chain: SniChain | None = None


def ways(model: GatewayModel, listener: Listener, name: str) -> Iterator[Way]:
    """Where a connection for `name` ends up: once in plain text, once with the name as TLS server name."""
    choice = model.choice(listener)
    plain = choice.rest
    if plain is not None and not plain.chain.tls and not (plain.offer and plain.chain.kind == "sni"):
        yield _way(model, plain, name)
    by_name = choice.by_server_name(name)
    if by_name is not None and (by_name.chain.tls or by_name.chain.kind == "sni"):
        yield _way(model, by_name, name)


def _way(model: GatewayModel, found: SniChain, name: str) -> Way:
    if found.offer is not None:
        tls = found.chain.tls or found.chain.kind == "sni"
        return Way("tls" if tls else "tcp", chain=found)
    table = model.tables[found.chain.route_name]
    domain = table.domains.pick(name)
    host = table.hosts.get(domain) if domain is not None and not table.only_redirects(domain) else None
    return Way("https" if table.tls else "http", table, host, domain or "", found)


def serve(
    model: GatewayModel, name: str, aliases: Collection[str], find: Find, counts: Counts, *, lenient: bool = False
) -> dict[int, Served]:
    """The ports of the gateway's Service that serve the name. `aliases`: the name and the ExternalName Services that
    stand for it. `lenient` (portGuard: warn): see `_forgiving`."""
    served: dict[int, Served] = {}
    for port in model.frame.ports:
        listener = model.listener(port)
        if listener is None:
            continue
        look = _forgiving(model, listener, name, aliases, find) if lenient else find
        parts = [
            part for way in ways(model, listener, name) if (part := _claim(model, way, name, aliases, look, counts)) is not None
        ]
        if parts:
            served[port] = parts[0] if len(parts) == 1 else _joined(parts)
    return served


def _forgiving(model: GatewayModel, listener: Listener, name: str, aliases: Collection[str], find: Find) -> Find:
    """`find` that takes a port or subset which the Service `name` lacks for there, with a warning, on a listener that reaches
    the Service for a request with another name.

    `portGuard: warn` says of such a port what is wrong with it and binds; the conformance data do the same. With `enforce` it
    is not served: all that a client would get is 503.
    """

    def look(target: Target) -> Found:
        found = find(target)
        if found.exists or found.host != name or not _reaches(model, listener, name, aliases, find):
            return found
        return replace(found, exists=True, warning=f"requests for {name} get 503 on routes where {found.problem}")

    return look


def _reaches(model: GatewayModel, listener: Listener, name: str, aliases: Collection[str], find: Find) -> bool:
    """Some request on this listener, whatever name it asks for, arrives at the Service."""
    chains = model.chains(listener)
    for one in () if isinstance(chains, str) else chains:
        if one.offer is not None:
            routes = [one.offer.targets]
        elif model.refusing:
            continue
        else:
            table = model.tables[one.chain.route_name]
            hosts = [host for domain, host in table.hosts.items() if not table.only_redirects(domain)]
            entries = [host.entries[place] for host in hosts for alias in aliases for place in host.by_host.get(alias, ())]
            routes = [entry.built.targets for entry in entries if entry.reached]
        if any(found.exists and found.host == name for targets in routes for found in map(find, targets)):
            return True
    return False


def _claim(model: GatewayModel, way: Way, name: str, aliases: Collection[str], find: Find, counts: Counts) -> Served | None:
    if way.chain is not None and way.chain.offer is not None:
        return _claim_chain(way, name, find, counts)
    return _claim_host(model, way, name, aliases, find, counts)


def _claim_chain(way: Way, name: str, find: Find, counts: Counts) -> Served | None:
    """A tcp_proxy: its weighted destinations are all it has."""
    chain = way.chain
    if chain is None or chain.offer is None or not counts(chain.offer.virtual_service):
        return None
    found = [find(target) for target in chain.offer.targets]
    claims = set()
    if any(one.exists and one.host == name for one in found):
        claims.add(CLAIM_DESTINATION)
    if way.protocol == "tls" and chain.names is not None and name in chain.names and any(map(_is_sound, found)):
        claims.add(CLAIM_HOST)
    if not claims:
        return None
    source = frozenset({chain.offer.virtual_service})
    warnings = {one.warning for one in found if one.warning and one.host == name}
    if chain.chain.tls:
        warnings.add("it is reached over TLS only, which the gateway terminates: clients must speak TLS")
    return Served(
        claims=frozenset(claims),
        routes=source,
        gateways=frozenset({chain.chain.placed.gateway}),
        governors=(source,),
        namespaces=(frozenset({chain.offer.virtual_service.partition("/")[0]}),),
        protocol=way.protocol,
        warnings=frozenset(warnings),
    )


def _claim_host(
    model: GatewayModel, way: Way, name: str, aliases: Collection[str], find: Find, counts: Counts
) -> Served | None:
    """A virtual host: any reached route to the Service, or to anything that exists if the name is the domain itself."""
    host = way.host
    if host is None or model.refusing:
        return None
    exact = host.domain == name
    claims: set[str] = set()
    routes: set[str] = set()
    gateways: set[str] = set()
    warnings: set[str] = set()
    places = host.entries if exact else {place for alias in aliases for place in host.by_host.get(alias, ())}
    extra = host.passing(name) if host.special else []
    for place in places:
        entry = host.entries[place]
        if not counts(entry.virtual_service) or not host.reached(entry, name, extra):
            continue
        found = [one for one in map(find, entry.built.targets) if one.exists and (exact or one.host == name)]
        if not found:
            continue
        if exact and any(map(_is_sound, found)):
            claims.add(CLAIM_HOST)
        if any(one.host == name for one in found):
            claims.add(CLAIM_DESTINATION)
        routes.add(entry.virtual_service)
        gateways.add(entry.gateway)
        warnings.update(one.warning for one in found if one.warning)
    if not claims:
        return None
    return Served(
        claims=frozenset(claims),
        routes=frozenset(routes),
        gateways=frozenset(gateways),
        governors=(host.governors(name),),
        namespaces=(host.governing_namespaces(name),),
        protocol=way.protocol,
        warnings=frozenset(warnings),
    )


def _is_sound(found: Found) -> bool:
    """It exists, and not only by leave of `_forgiving`."""
    return found.exists and not found.problem


def _joined(parts: list[Served]) -> Served:
    return Served(
        claims=frozenset().union(*(one.claims for one in parts)),
        routes=frozenset().union(*(one.routes for one in parts)),
        gateways=frozenset().union(*(one.gateways for one in parts)),
        governors=tuple(some for one in parts for some in one.governors),
        namespaces=tuple(some for one in parts for some in one.namespaces),
        protocol=parts[0].protocol,
        warnings=frozenset().union(*(one.warnings for one in parts)),
    )
