"""Why a route that names a Service does not serve it, on one gateway: the first thing that is in its way.

Rules of this file:
- asked only about names that are not bound, and after the VirtualService is known to be attached and visible;
- the steps stand in the order in which a request would meet them; each gives a Finding with how far the route came, so that of
  several routes the one that came furthest is told;
- nothing here decides: the model and `serving` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from canal_dns.mesh.hosts import intersection, names_for_namespace, overlaps
from canal_dns.mesh.intents import Intent
from canal_dns.mesh.model import GatewayModel, RouteTable
from canal_dns.mesh.policy import Refusal, unusable
from canal_dns.mesh.records import L4Route
from canal_dns.mesh.result import Reason, joined
from canal_dns.mesh.routes import MAX_EXPRESSIONS, Entry, Target, l4_applies, why_not_applicable
from canal_dns.mesh.rules import Resolved, Rule, live
from canal_dns.mesh.servers import Placed
from canal_dns.mesh.serving import Find
from canal_dns.mesh.virtualhosts import VirtualHost


class Stage(IntEnum):
    """How far a route came."""

    OBJECT = 0
    GATEWAY = 1
    ATTACHED = 2
    EXPORTED = 3
    SERVER = 4
    HOSTS = 5
    MATCH = 6
    ACTION = 7
    NAME = 8
    ORDER = 9
    TARGET = 10
    POLICY = 11


@dataclass(frozen=True, slots=True)
class Finding:
    stage: Stage
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Trace:
    """One place where a VirtualService names the Service, on one gateway."""

    model: GatewayModel
    resolved: Resolved
    intent: Intent
    find: Find

    @property
    def mine(self) -> list[str]:
        """The attached Gateways that the VirtualService names."""
        return [name for name in self.resolved.gateways if name in self.model.attached]

    def no(self, stage: Stage, reason: Reason, message: str, field: str = "", owner: str = "") -> Finding:
        """A finding about the VirtualService (or the delegate `owner`)."""
        thing = f"VirtualService {owner or self.intent.owner}"
        return Finding(stage, Refusal(reason, message, thing, field or self.intent.field, self.resolved.key))


def trace(case: Trace) -> Finding:
    """The first thing in the way."""
    field = case.intent.field
    if case.intent.kind == "host":
        steps = [_http] * bool(case.resolved.http) + [_tcp] * bool(case.resolved.tcp) + [_tls] * bool(case.resolved.tls)
        found = [step(case) for step in steps]
        return max(found, key=lambda one: one.stage) if found else _no_routes(case)
    return (_tcp if field.startswith("spec.tcp") else _tls if field.startswith("spec.tls") else _http)(case)


def _no_routes(case: Trace) -> Finding:
    if case.resolved.unused:
        unused = case.resolved.unused[0]
        return case.no(Stage.MATCH, Reason.DELEGATE, unused.message, unused.field, unused.owner)
    return case.no(Stage.ACTION, Reason.NO_ACTION, "it has no routes", "spec")


def _http(case: Trace) -> Finding:
    tables = [
        (table, placed) for table in case.model.tables.values() for placed in table.servers if placed.gateway in case.mine
    ]
    lost = _servers(
        case, [placed for _, placed in tables], "HTTP or HTTPS", lambda one: one.server.protocol.lower() not in ("tcp", "tls")
    )
    if lost is not None:
        return lost
    if case.model.refusing:
        source, why = next(iter(sorted(case.model.refusing.items())))
        message = f"Envoy refuses every route of the gateway because of VirtualService {source}, {why}"
        return Finding(
            Stage.SERVER,
            Refusal(Reason.GATEWAY_NOT_PROGRAMMED, message, f"VirtualService {source}", why.partition(":")[0], source),
        )
    tables = [(table, placed) for table, placed in tables if _reachable(case.model, placed)]
    rule = None if case.intent.kind == "host" else _rule(case)
    if isinstance(rule, Finding):
        return rule
    if not any(_meets(placed, case.resolved) for _, placed in tables):
        return _no_common_hosts(case, [placed for _, placed in tables])
    if rule is not None:
        found = _action(case, rule) or _applicable(case, rule, [placed for _, placed in tables])
        if found is not None:
            return found
    return _in_tables(case, rule, list(dict.fromkeys(table for table, _ in tables)))


def _rule(case: Trace) -> Rule | Finding:
    for rule in case.resolved.http:
        if rule.owner == case.intent.owner and case.intent.field.startswith(f"{rule.field}."):
            return rule
    unused = next(one for one in case.resolved.unused if case.intent.owner == one.owner)
    return case.no(Stage.MATCH, Reason.DELEGATE, unused.message, unused.field)


def _action(case: Trace, rule: Rule) -> Finding | None:
    intent = case.intent
    if intent.kind == "mirror":
        return case.no(Stage.ACTION, Reason.NO_ACTION, "it only gets copies of requests (mirror), which nobody waits for")
    if rule.action != "route":
        what = "redirects" if rule.action == "redirect" else "is answered by the gateway (directResponse)"
        return case.no(Stage.ACTION, Reason.NO_ACTION, f"the route {what}: no request reaches the Service", rule.field)
    if intent.host not in {one.host for one in rule.destinations}:
        return case.no(Stage.ACTION, Reason.NO_ACTION, "a destination with weight 0 beside others does not exist in Envoy")
    return None


def _applicable(case: Trace, rule: Rule, placed: Iterable[Placed]) -> Finding | None:
    """Some match of the rule applies on some server of the Gateways."""
    if not rule.matches:
        return None
    why = ""
    for one in placed:
        for number, match in enumerate(rule.matches):
            reason = why_not_applicable(match, one.server.number, one.gateway, case.model.frame.workload)
            if not reason:
                return None
            why = why or f"{rule.field}.match[{number}].{reason}"
    field, _, text = why.partition(": ")
    return case.no(Stage.MATCH, Reason.MATCH_NOT_APPLICABLE, f"its match never holds on this gateway: {text}", field)


def _in_tables(case: Trace, rule: Rule | None, tables: list[RouteTable]) -> Finding:
    """From the virtual host to the destination."""
    name = case.intent.name
    contribution = case.model.contributions.get(case.resolved.key)
    entries = contribution.entries if contribution else {}
    findings: list[Finding] = []
    for table in tables:
        domain = table.domains.pick(name)
        own = entries.get((table.name, domain or ""), [])
        mine = [one for one in own if rule is None or one.built.rule is rule]
        if domain is None or not own:
            findings.append(_other_host(case, table, domain))
        elif case.intent.kind == "host" and domain != name:
            message = f"Istio takes {case.intent.host!r} literally: it is another domain than {name}"
            findings.append(case.no(Stage.NAME, Reason.HOST_NOT_SERVED, message))
        elif table.only_redirects(domain):
            message = f"the server redirects {domain} to HTTPS (httpsRedirect): no request reaches the Service"
            findings.append(case.no(Stage.NAME, Reason.NO_ACTION, message))
        elif not mine:
            message = f"an earlier route of the same VirtualService takes every request ({_ending(case)})"
            findings.append(case.no(Stage.ORDER, Reason.SHADOWED, message, rule.field if rule else ""))
        else:
            findings.extend(_entry(case, table.hosts[domain], entry) for entry in mine)
    return max(findings, key=lambda one: one.stage)


def _ending(case: Trace) -> str:
    """The rule at which the list of the VirtualService ends."""
    contribution = case.model.contributions[case.resolved.key]
    fields = [some[-1].built.rule.field for some in contribution.entries.values() if some]
    return fields[0]


def _other_host(case: Trace, table: RouteTable, domain: str | None) -> Finding:
    name = case.intent.name
    if domain is None:
        known = joined(sorted(table.hosts)[:5])
        message = f"the gateway answers 404 for {name}: its virtual hosts are {known}"
        literal = "" if case.intent.kind != "host" or case.intent.literal else f"; Istio takes {case.intent.host!r} literally"
        return case.no(Stage.NAME, Reason.HOST_NOT_SERVED, message + literal, "spec.hosts")
    host = table.hosts.get(domain)
    sources = sorted({entry.virtual_service for entry in host.entries.values()})[:3] if host else []
    message = (
        f"requests for {name} go to the virtual host {domain} of {joined(sources)}, where this VirtualService has no route"
    )
    return case.no(Stage.NAME, Reason.HOST_NOT_SERVED, message, "spec.hosts")


def _entry(case: Trace, host: VirtualHost, entry: Entry) -> Finding:
    name = case.intent.name
    rule = entry.built.rule
    if entry.dead or not host.meets(entry, name):
        what = "a scheme" if entry.dead else "an authority"
        message = f"its match asks for {what} that requests for {name} do not have"
        return case.no(Stage.MATCH, Reason.MATCH_NOT_APPLICABLE, message, f"{rule.field}.match", rule.owner)
    if not host.reached(entry, name):
        blockers = host.in_the_way(entry, name)
        if not blockers:
            message = (
                "its match asks for what no request surely has: a path or method that never arrives, an unknown expression, "
                f"or one beyond the {MAX_EXPRESSIONS} of a VirtualService that are looked into"
            )
            return case.no(Stage.MATCH, Reason.MATCH_NOT_APPLICABLE, message, f"{rule.field}.match", rule.owner)
        others = joined(dict.fromkeys(f"{one.virtual_service} {one.built.rule.field}" for one in blockers[:3]))
        older = "earlier routes take" if len(blockers) > 1 else "an earlier route takes"
        message = f"{older} every request that would come to this one: VirtualService {others}"
        return case.no(Stage.ORDER, Reason.SHADOWED, message, rule.field, rule.owner)
    if not entry.built.targets:
        message = "no route of it sends requests anywhere: they redirect or answer"
        return case.no(Stage.ACTION, Reason.NO_ACTION, message, rule.field, rule.owner)
    return _targets(case, entry.built.targets, rule.field, rule.owner)


def _targets(case: Trace, targets: Iterable[Target], field: str, owner: str) -> Finding:
    """The destination that is missing: of a host intent any, else the one that was named."""
    named = case.intent.kind == "destination"
    for target in targets:
        found = case.find(target)
        if not found.exists and (target.host == case.intent.host or not named):
            if found.skip is not None:
                return Finding(Stage.TARGET, unusable(found.skip, case.resolved.key))
            place = f"{field}.route[{target.index}].destination.{found.field}"
            return case.no(Stage.TARGET, Reason.TARGET_NOT_FOUND, f"{found.problem}: the gateway answers 503", place, owner)
    message = "the route stands, but it brings requests for this name nowhere"
    return case.no(Stage.TARGET, Reason.TARGET_NOT_FOUND, message, field, owner)


def _tcp(case: Trace) -> Finding:
    placed = [one for one in case.model.tcp if one.gateway in case.mine]
    lost = _servers(case, placed, "TCP", lambda one: one.server.protocol.lower() == "tcp")
    if lost is not None:
        return lost
    findings = [_tcp_server(case, one) for one in placed if _reachable(case.model, one)]
    return max(findings, key=lambda one: one.stage)


def _tcp_server(case: Trace, placed: Placed) -> Finding:
    if not _overlaps(placed, case.resolved):
        return _no_common_hosts(case, [placed])
    offers = case.model.tcp[placed]
    own = next((one for one in offers if one.virtual_service == case.resolved.key), None)
    routes = [one for one in case.resolved.tcp if case.intent.kind == "host" or case.intent.field.startswith(f"{one.field}.")]
    applying = [one for one in routes if _l4_applies(one, placed)]
    if own is None or not applying:
        message = f"its match never holds on the server of Gateway {placed.gateway} with port {placed.server.number}"
        return case.no(Stage.MATCH, Reason.MATCH_NOT_APPLICABLE, message, f"{routes[0].field}.match")
    if own.route not in applying:
        message = f"only the first tcp route of a server is programmed, which is {own.route.field} here"
        return case.no(Stage.ORDER, Reason.SHADOWED, message, applying[0].field)
    if offers[0] is not own:
        other = offers[0]
        first = f"VirtualService {other.virtual_service} {other.route.field}"
        message = f"only one tcp route of a server is programmed, and {first} comes first"
        return case.no(Stage.ORDER, Reason.SHADOWED, message, own.route.field)
    return _l4_end(case, placed, own.route, own.targets, frozenset())


def _tls(case: Trace) -> Finding:
    placed = [one for one in case.model.sni if one.gateway in case.mine]
    lost = _servers(case, placed, "PASSTHROUGH", lambda one: one.server.mode == "PASSTHROUGH")
    if lost is not None:
        return lost
    findings = [_tls_server(case, one) for one in placed if _reachable(case.model, one)]
    return max(findings, key=lambda one: one.stage)


def _tls_server(case: Trace, placed: Placed) -> Finding:
    if placed.server.mode == "AUTO_PASSTHROUGH":
        message = f"Gateway {placed.gateway} {placed.field} is AUTO_PASSTHROUGH: it can be asked for by outbound_.… names only"
        return case.no(Stage.SERVER, Reason.GATEWAY_NOT_PROGRAMMED, message)
    if not _overlaps(placed, case.resolved):
        return _no_common_hosts(case, [placed])
    routes = [one for one in case.resolved.tls if case.intent.kind == "host" or case.intent.field.startswith(f"{one.field}.")]
    offers = [one for one in case.model.sni[placed] if one.virtual_service == case.resolved.key and one.route in routes]
    if not offers:
        message = f"its match never holds on the server of Gateway {placed.gateway} with port {placed.server.number}"
        return case.no(Stage.MATCH, Reason.MATCH_NOT_APPLICABLE, message, f"{routes[0].field}.match")
    name = case.intent.name
    fitting = [one for one in offers if not one.sni_hosts or any(overlaps(host, name) for host in one.sni_hosts)]
    if not fitting:
        message = f"its sniHosts are {joined(offers[0].sni_hosts)}: a client that asks for {name} is not sent there"
        return case.no(
            Stage.NAME, Reason.HOST_NOT_SERVED, message, f"{offers[0].route.field}.match[{offers[0].place[1]}].sniHosts"
        )
    listener = next(one for one in case.model.layout.listeners if one.port == placed.port and one.reachable)
    chains = case.model.chains(listener)
    used = [one for one in fitting if not isinstance(chains, str) and any(chain.offer is one for chain in chains)]
    if not used and not isinstance(chains, str):
        one = fitting[0]
        message = "one of its sniHosts is already used by an earlier tls route: the whole match is dropped"
        return case.no(Stage.ORDER, Reason.SHADOWED, message, f"{one.route.field}.match[{one.place[1]}].sniHosts")
    chosen = used[0] if used else fitting[0]
    picked = case.model.choice(listener).by_server_name(name)
    if picked is not None and picked.offer not in fitting:
        other = picked.offer.virtual_service if picked.offer else picked.chain.placed.gateway
        message = f"the server name {name} is taken by a more specific one, of {other}"
        return case.no(Stage.NAME, Reason.HOST_NOT_SERVED, message, f"{chosen.route.field}.match[{chosen.place[1]}].sniHosts")
    return _l4_end(case, placed, chosen.route, chosen.targets, frozenset(chosen.sni_hosts))


def _l4_end(case: Trace, placed: Placed, route: L4Route, targets: tuple[Target, ...], names: frozenset[str]) -> Finding:
    listener = next(one for one in case.model.layout.listeners if one.port == placed.port and one.reachable)
    chains = case.model.chains(listener)
    if isinstance(chains, str):
        return case.no(Stage.SERVER, Reason.GATEWAY_NOT_PROGRAMMED, chains, route.field)
    intent = case.intent
    if intent.kind == "host" or (intent.kind == "sni" and intent.name not in names):
        kind, key = ("tls", "server name") if names else ("tcp", "port")
        message = f"a {kind} route is found by {key}, not by hosts: name the Service as destination"
        return case.no(Stage.NAME, Reason.HOST_NOT_SERVED, message)
    if intent.kind == "destination" and intent.host not in {one.host for one in live(route.destinations)}:
        return case.no(Stage.ACTION, Reason.NO_ACTION, "a destination with weight 0 beside others does not exist in Envoy")
    return _targets(case, targets, route.field, case.resolved.key)


def _l4_applies(route: L4Route, placed: Placed) -> bool:
    return not route.matches or any(l4_applies(one, placed.server.number, placed.gateway) for one in route.matches)


def _servers(case: Trace, placed: list[Placed], kind: str, suits: object) -> Finding | None:
    """The Gateways have a server of the right kind that is programmed and can be reached."""
    model = case.model
    if any(_reachable(model, one) for one in placed):
        return None
    if placed:
        return _server(case, placed[0].gateway, placed[0].field, _unreachable(model, placed[0]))
    dropped = [one for one in model.layout.dropped if one.gateway in case.mine and callable(suits) and suits(one)]
    if dropped:
        return _server(
            case, dropped[0].gateway, f"spec.servers[{dropped[0].index}]", f"istiod drops the server: {dropped[0].message}"
        )
    others = sorted(
        {
            f"{one.server.protocol}:{one.server.number} {one.server.mode}".strip()
            for one in _all_servers(model)
            if one.gateway in case.mine
        }
    )
    message = f"the route needs a server of kind {kind}, Gateway {case.mine[0]} has {joined(others)}"
    return case.no(Stage.SERVER, Reason.PROTOCOL, message)


def _all_servers(model: GatewayModel) -> Iterator[Placed]:
    for listener in model.layout.listeners:
        for chain in listener.chains:
            yield chain.placed
    for table in model.tables.values():
        yield from table.servers


def _server(case: Trace, gateway: str, field: str, message: str) -> Finding:
    refusal = Refusal(Reason.GATEWAY_NOT_PROGRAMMED, message, f"Gateway {gateway}", field, case.resolved.key)
    return Finding(Stage.SERVER, refusal)


def _reachable(model: GatewayModel, placed: Placed) -> bool:
    return not _unreachable(model, placed)


def _unreachable(model: GatewayModel, placed: Placed) -> str:
    if placed.server.bind not in ("", "0.0.0.0", "::"):
        return f"the server is bound to {placed.server.bind}: it cannot be reached at the gateway's address"
    if placed.port not in model.frame.ports.values():
        ports = joined(sorted(model.frame.ports))
        name = model.frame.name
        return f"the server's port {placed.server.number} is no port of the gateway's Service {name}, which has {ports}"
    return ""


def _meets(placed: Placed, resolved: Resolved) -> bool:
    return bool(intersection(names_for_namespace(placed.hosts, resolved.record.namespace), resolved.hosts))


def _overlaps(placed: Placed, resolved: Resolved) -> bool:
    allowed = names_for_namespace(placed.hosts, resolved.record.namespace)
    return any(overlaps(one, other) for one in allowed for other in resolved.hosts)


def _no_common_hosts(case: Trace, placed: Iterable[Placed]) -> Finding:
    servers = joined(dict.fromkeys(host for one in placed for host in one.server.hosts))
    message = (
        f"its hosts {joined(case.resolved.hosts)} and the hosts {servers} of the Gateway's servers have nothing in common "
        f"for namespace {case.resolved.record.namespace} (capitals count)"
    )
    return case.no(Stage.HOSTS, Reason.HOST_NOT_SERVED, message, "spec.hosts", case.resolved.key)
