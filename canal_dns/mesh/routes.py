"""The routes that one VirtualService gives to one server port (istio route.BuildHTTPRoutesForVirtualService, TranslateRoute).

Rules of this file:
- a match counts on this gateway if it names it, or names none and the workload has the source labels and namespace;
- `match.port` is the server's number, not the listener's; the list of a VirtualService ends at its first catch-all;
- a route is an `Entry`: its place in the order of its virtual host, what it takes, and where it sends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from canal_dns.mesh.attach import Workload
from canal_dns.mesh.matches import EVERYTHING, RouteMatch, translate
from canal_dns.mesh.records import Destination, HttpMatch, L4Match, Uses, frozen
from canal_dns.mesh.rules import Resolved, Rule, is_live

Place = tuple[int, int, int, float, str, str, int, int]
"""Sorts as Envoy's list does: catch-alls last; then server, tier, age, name and namespace of the VirtualService, occurrence,
route."""


@frozen
class Target:
    """A destination on a port of the gateway: the cluster `outbound|PORT|SUBSET|HOST`, before it is known to exist."""

    host: str
    port: int | None
    subset: str
    listener_port: int
    """The server's number: the port where neither the destination nor the Service decides (GetDestinationCluster)."""
    index: int = 0
    """Its place among the route's destinations as written."""


@frozen
class Built:
    """A route of a VirtualService, not yet in a virtual host."""

    rule: Rule
    match: RouteMatch
    targets: tuple[Target, ...]


class Entry:
    """A route in a virtual host."""

    __slots__ = ("built", "catch_all", "dead", "gateway", "path", "place", "reached", "redirects", "virtual_service")

    def __init__(
        self, place: Place, built: Built, virtual_service: str, gateway: str, *, redirects: bool = False, dead: bool = False
    ) -> None:
        self.place = place
        self.built = built
        self.catch_all = built.match.is_catch_all
        self.path = EVERYTHING.path if self.catch_all else built.match.path
        """The path test; the two ways to write a catch-all are one."""
        self.virtual_service = virtual_service
        """`namespace/name` of the root."""
        self.gateway = gateway
        """The Gateway object by whose server it came."""
        self.redirects = redirects
        """The server redirects to HTTPS, and with it the whole virtual host."""
        self.dead = dead
        """It asks for a scheme that does not come to this listener."""
        self.reached = False
        """Some request comes to it; tests of the authority aside."""


def targets(written: tuple[Destination, ...], listener_port: int) -> tuple[Target, ...]:
    """The destinations of a route that become clusters."""
    return tuple(
        Target(one.host, one.port, one.subset, listener_port, index)
        for index, one in enumerate(written)
        if is_live(one, written)
    )


def why_not_applicable(match: HttpMatch, port: int, gateway: str, workload: Workload) -> str:
    """The field of a match that never holds on this gateway, with a sentence; "" if it may hold (sourceMatchHTTP)."""
    if match.port not in (0, port):
        return f"port: it asks for port {match.port}, the server has {port}"
    if match.gateways:
        return "" if gateway in match.gateways else f"gateways: it names {', '.join(match.gateways)}, not {gateway}"
    for name, value in match.source_labels:
        if workload.labels.get(name) != value:
            return f"sourceLabels: the gateway's pods do not have {name}={value}"
    if match.source_namespace not in ("", workload.namespace):
        return f"sourceNamespace: it asks for {match.source_namespace}, the gateway is in {workload.namespace}"
    return ""


MAX_EXPRESSIONS = 64
"""Different regular expressions for paths that are looked into in one VirtualService. Each is held against the paths of all
others of its virtual host: without an end the work would grow with the square of what a tenant writes."""


def build(resolved: Resolved, port: int, gateway: str, workload: Workload) -> list[Built]:
    """The routes for a server with this number on this Gateway; empty: the VirtualService makes no virtual host there."""
    routes: list[Built] = []
    expressions: set[str] = set()
    for rule in resolved.http:
        for found in _matches(rule, port, gateway, workload):
            match = _bounded(found, expressions)
            routes.append(Built(rule, match, targets(rule.written if rule.action == "route" else (), port)))
            if match.is_catch_all:
                return routes
    return routes


def _matches(rule: Rule, port: int, gateway: str, workload: Workload) -> Iterator[RouteMatch]:
    if not rule.matches:
        yield translate(None)
    for match in rule.matches:
        if not why_not_applicable(match, port, gateway, workload):
            yield translate(match)


def _bounded(match: RouteMatch, expressions: set[str]) -> RouteMatch:
    """The match; its path is not looked into if it is one expression too many. `expressions`: those before it."""
    test = match.path.test
    if test.uses is Uses.REGEX and not match.is_catch_all and test.value not in expressions:
        if len(expressions) >= MAX_EXPRESSIONS:
            return replace(match, path=replace(match.path, opaque=True))
        expressions.add(test.value)
    return match


def l4_applies(match: L4Match, port: int, gateway: str) -> bool:
    """l4SingleMatch: port and gateways alone; source fields and subnets are ignored on gateways."""
    return match.port in (0, port) and (not match.gateways or gateway in match.gateways)
