"""A VirtualService as istiod reads it: names completed by its owner, delegates merged in, who may see it
(pilot model.ResolveVirtualServiceShortnames, mergeVirtualServices, MergeHTTPRoutes, initVirtualServices).

Rules of this file:
- a short name belongs to the namespace of the object in which it is written: a delegate is its own owner;
- delegates go one level deep; a sub-route whose match is not narrower than the root's is dropped (hasConflict);
- nothing here knows a gateway: the outcome is made once per VirtualService and used for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from canal_dns.mesh.hosts import complete, gateway_name
from canal_dns.mesh.records import Destination, HttpMatch, HttpRoute, L4Route, StringMatch, Uses, VirtualService, frozen

Lookup = Callable[[str, str], VirtualService | None]
"""(namespace, name) -> the VirtualService, if there is one."""


@frozen
class Rule:
    """One HTTP route as it reaches Envoy."""

    owner: str
    """`namespace/name` of the VirtualService in which it is written: the root, or a delegate."""
    field: str
    matches: tuple[HttpMatch, ...]
    written: tuple[Destination, ...]
    """All destinations, completed; weight 0 included."""
    action: str
    """`route`, `redirect` or `answer` (directResponse)."""
    mirrors: tuple[str, ...]
    refused: str = ""
    """Why Envoy refuses it, with everything beside it; "" if it does not."""

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Where requests go: weight 0 beside others does not exist in Envoy, alone it does."""
        return () if self.action != "route" else live(self.written)


@dataclass(frozen=True, slots=True)
class Unused:
    """A route entry of the root that brings no route, or a sub-route that was dropped."""

    field: str
    owner: str
    message: str
    destinations: tuple[Destination, ...] = ()


@frozen
class Resolved:
    """A VirtualService with every name in full."""

    record: VirtualService
    key: str
    """`namespace/name`."""
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]
    """`namespace/name` each, or `mesh`; without repetition."""
    http: tuple[Rule, ...]
    tcp: tuple[L4Route, ...]
    tls: tuple[L4Route, ...]
    unused: tuple[Unused, ...] = ()

    @property
    def age(self) -> tuple[float, str, str]:
        return self.record.created, self.record.name, self.record.namespace


class Tier(IntEnum):
    """Order among the VirtualServices of a gateway: its own namespace's private ones first (VirtualServicesForGateway)."""

    PRIVATE = 0
    EXPORTED = 1
    PUBLIC = 2


def is_live(one: Destination, written: tuple[Destination, ...]) -> bool:
    """A destination becomes a cluster of its route (applyHTTPRouteDestination, buildOutboundNetworkFilters)."""
    return len(written) == 1 or one.weight > 0


def live(written: tuple[Destination, ...]) -> tuple[Destination, ...]:
    """Destinations that become clusters of their route."""
    return tuple(one for one in written if is_live(one, written))


def tier(record: VirtualService, namespace: str, default: Iterable[str]) -> Tier | None:
    """How a gateway in `namespace` sees the VirtualService; None: not at all."""
    visible = exported_to(record, default)
    if "*" in visible:
        return Tier.PUBLIC
    if "~" in visible or namespace not in visible:
        return None
    return Tier.PRIVATE if record.namespace == namespace else Tier.EXPORTED


def exported_to(record: VirtualService, default: Iterable[str]) -> frozenset[str]:
    """`exportTo`, or the mesh's default, with `.` as the own namespace."""
    return frozenset(record.namespace if one == "." else one for one in (record.export_to or default))


def delegates_of(record: VirtualService) -> frozenset[tuple[str, str]]:
    """(namespace, name) of the delegates that a root names."""
    if not record.hosts:
        return frozenset()
    return frozenset((one.delegate[0] or record.namespace, one.delegate[1]) for one in record.http if one.delegate)


def resolve(record: VirtualService, lookup: Lookup, domain: str, default_export: Iterable[str]) -> Resolved:
    """Complete the names and merge the delegates in. `domain`: the cluster's."""
    rules: list[Rule] = []
    unused: list[Unused] = []
    for route in record.http:
        if route.delegate is None or not record.hosts:
            rules.append(_rule(route, record, domain))
        else:
            _delegate(record, route, lookup, domain, tuple(default_export), rules, unused)
    return Resolved(
        record=record,
        key=f"{record.namespace}/{record.name}",
        hosts=tuple(complete(one, record.namespace, domain) for one in record.hosts),
        gateways=tuple(dict.fromkeys(gateway_name(one, record.namespace) for one in record.gateways)),
        http=tuple(rules),
        tcp=tuple(_l4(route, record.namespace, domain) for route in record.tcp),
        tls=tuple(_l4(route, record.namespace, domain) for route in record.tls),
        unused=tuple(unused),
    )


def _rule(route: HttpRoute, owner: VirtualService, domain: str, matches: tuple[HttpMatch, ...] | None = None) -> Rule:
    action = "redirect" if route.redirect else "answer" if route.direct_response else "route"
    written = _completed(route.destinations, owner.namespace, domain)
    refused = ""
    if route.refused:
        refused = "its redirectCode is none that Envoy knows"
    elif action == "route" and not live(written):
        refused = "all its weights are 0" if written else "it has no action"
    return Rule(
        owner=f"{owner.namespace}/{owner.name}",
        field=route.field,
        matches=_owned(route.matches, owner.namespace) if matches is None else matches,
        written=written,
        action=action,
        mirrors=tuple(complete(one, owner.namespace, domain) for one in route.mirrors),
        refused=refused,
    )


def _owned(matches: tuple[HttpMatch, ...], namespace: str) -> tuple[HttpMatch, ...]:
    return tuple(
        replace(one, gateways=tuple(gateway_name(name, namespace) for name in one.gateways)) if one.gateways else one
        for one in matches
    )


def _l4(route: L4Route, namespace: str, domain: str) -> L4Route:
    return replace(
        route,
        matches=tuple(
            replace(one, gateways=tuple(gateway_name(name, namespace) for name in one.gateways)) for one in route.matches
        ),
        destinations=_completed(route.destinations, namespace, domain),
    )


def _completed(written: tuple[Destination, ...], namespace: str, domain: str) -> tuple[Destination, ...]:
    full = [complete(one.host, namespace, domain) for one in written]
    if all(host == one.host for host, one in zip(full, written, strict=True)):
        return written
    return tuple(replace(one, host=host) for host, one in zip(full, written, strict=True))


def _delegate(
    root: VirtualService,
    route: HttpRoute,
    lookup: Lookup,
    domain: str,
    default_export: tuple[str, ...],
    rules: list[Rule],
    unused: list[Unused],
) -> None:
    """Put the delegate's routes in the place of the root's entry, or say why there are none."""
    name = route.delegate or ("", "")
    place = (name[0] or root.namespace, name[1])
    origin = f"{root.namespace}/{root.name}"
    delegate = lookup(*place)
    if delegate is None or delegate.hosts:
        what = "does not exist" if delegate is None else "has hosts, so it is no delegate"
        unused.append(Unused(f"{route.field}.delegate", origin, f"the delegate {place[0]}/{place[1]} {what}"))
        return
    visible = exported_to(delegate, default_export)
    if not visible & {"*", root.namespace}:
        message = f"the delegate {place[0]}/{place[1]} is not exported to namespace {root.namespace}"
        written = tuple(_rule(sub, delegate, domain).written for sub in delegate.http)
        unused.append(Unused(f"{route.field}.delegate", origin, message, tuple(one for some in written for one in some)))
        return
    above = _owned(route.matches, root.namespace)
    mirrors = tuple(complete(one, root.namespace, domain) for one in route.mirrors)
    for sub in delegate.http:
        merged = merged_matches(above, _owned(sub.matches, delegate.namespace))
        inherited = replace(sub, direct_response=sub.direct_response or route.direct_response, mirrors=sub.mirrors or mirrors)
        rule = _rule(inherited, delegate, domain, merged)
        if merged is None:
            message = f"its match is not part of the match of the root route {origin} {route.field}"
            unused.append(Unused(sub.field, rule.owner, message, rule.written))
        else:
            rules.append(rule)


def merged_matches(root: tuple[HttpMatch, ...], sub: tuple[HttpMatch, ...]) -> tuple[HttpMatch, ...] | None:
    """Each match of the delegate with each of the root's that it agrees with; None: one agrees with none
    (mergeHTTPMatchRequests)."""
    if not root or not sub:
        return root or sub
    merged: list[HttpMatch] = []
    for one in sub:
        agreeing = [above for above in root if not conflicts(above, one)]
        if not agreeing:
            return None
        merged += [_merged(above, one) for above in agreeing]
    return tuple(merged)


def _merged(root: HttpMatch, sub: HttpMatch) -> HttpMatch:
    return HttpMatch(
        uri=sub.uri or root.uri,
        scheme=sub.scheme or root.scheme,
        method=sub.method or root.method,
        authority=sub.authority or root.authority,
        headers=_over(root.headers, sub.headers),
        without_headers=_over(root.without_headers, sub.without_headers),
        query_params=_over(root.query_params, sub.query_params),
        port=sub.port or root.port,
        source_labels=tuple(sorted({**dict(root.source_labels), **dict(sub.source_labels)}.items())),
        source_namespace=sub.source_namespace or root.source_namespace,
        gateways=sub.gateways or root.gateways,
        ignore_uri_case=sub.ignore_uri_case,
    )


_Tests = tuple[tuple[str, StringMatch], ...]


def _over(root: _Tests, sub: _Tests) -> _Tests:
    return tuple(sorted({**dict(root), **dict(sub)}.items(), key=lambda pair: pair[0]))


def conflicts(root: HttpMatch, sub: HttpMatch) -> bool:
    """The delegate's match is not narrower than the root's (hasConflict)."""
    pairs = [(root.uri, sub.uri), (root.scheme, sub.scheme), (root.method, sub.method), (root.authority, sub.authority)]
    for above, below in (
        (root.headers, sub.headers),
        (root.without_headers, sub.without_headers),
        (root.query_params, sub.query_params),
    ):
        pairs += [(dict(above).get(name), test) for name, test in below]
    labels = dict(root.source_labels)
    return (
        any(_differ(above, below) for above, below in pairs)
        or root.ignore_uri_case != sub.ignore_uri_case
        or (0 not in (root.port, sub.port) and root.port != sub.port)
        or root.source_namespace not in ("", sub.source_namespace)
        or any(labels.get(name, value) != value for name, value in sub.source_labels)
        or (
            bool(root.gateways and sub.gateways)
            and (len(root.gateways) < len(sub.gateways) or not set(sub.gateways) <= set(root.gateways))
        )
    )


def _differ(root: StringMatch | None, sub: StringMatch | None) -> bool:
    """stringMatchConflict: two regular expressions never agree, an empty value agrees with nothing."""
    if root is None or sub is None:
        return False
    if not root.value or not sub.value or Uses.REGEX in (root.uses, sub.uses):
        return True
    if root.uses is Uses.EXACT:
        return sub.uses is Uses.PREFIX or sub.value != root.value
    return not sub.value.startswith(root.value)
