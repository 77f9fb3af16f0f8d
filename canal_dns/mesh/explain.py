"""The chain from a Service to the gateway's address, link by link, for a person who looks for the fault.

Rules of this file:
- the links stand in the order of the questions that people ask: the Service, the gateway and its pods, then for each
  VirtualService its Gateway, selector, export, server port, hosts, route, destination; at last the ports of the Service;
- a chain ends at its first broken link; the verdict is the one sentence of the result;
- it reads what the rule found and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from canal_dns.dns.names import service_name
from canal_dns.mesh.binding import NO_GATEWAYS, Binder
from canal_dns.mesh.diagnosis import Case, findings
from canal_dns.mesh.hosts import MESH, meant_service, service_of
from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.policy import refusal_on_gateway, unusable
from canal_dns.mesh.records import Service, Skip
from canal_dns.mesh.result import Bound, Reason, Result, joined
from canal_dns.mesh.rules import Resolved
from canal_dns.mesh.traces import Finding, Stage
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, GatewayUnready


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain."""

    object: str
    field: str
    text: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    name: str
    """The full name that was understood; the text as given where no Service is meant."""
    bound: bool
    steps: tuple[Step, ...]
    verdict: str


def explain(
    source: Binder | Result, view: View, settings: BindingSettings, name: str, unready: frozenset[str] = NO_GATEWAYS
) -> Explanation:
    """Tell why a name is bound or not.

    `source`: the Binder that runs, or a Result (then the rule is run again on the view). `name`: in full, or as people write
    it: any case, with or without the final dot, `svc.ns`, `svc` where only one namespace has it.
    """
    if isinstance(source, Binder):
        binder = source
    else:
        binder = Binder(view, settings)
        binder.start(unready)
    full, hint = _full_name(name, binder)
    if not full:
        return Explanation(name, False, (), hint)
    bound = binder.result.bound.get(full)
    if bound is not None:
        return Explanation(full, True, tuple(_bound_steps(binder, bound)), _bound_verdict(bound))
    return _not_bound(binder, full)


def _full_name(name: str, binder: Binder) -> tuple[str, str]:
    """The full name that is meant, or "" and why it is none."""
    domain = binder.settings.cluster_domain
    text = name.strip().lower().removesuffix(".")
    if "." in text:
        key = service_of(text, domain) or meant_service(text, domain)
        if key is None:
            return "", f"{name!r} is not the name of a Service of {domain}: its queries are forwarded"
        return service_name(key[1], key[0], domain), ""
    places = sorted(namespace for namespace, bare in binder.view.services if bare == text) or _said(text, binder)
    if len(places) == 1:
        return service_name(text, places[0], domain), ""
    if not places:
        return "", f"there is no Service called {text!r} in any namespace"
    return "", f"Service {text!r} is in the namespaces {joined(places)}: say which, e.g. {text}.{places[0]}"


def _said(bare: str, binder: Binder) -> list[str]:
    """The namespaces in which there is no such Service that could be used, but something means one or is one."""
    domain = binder.settings.cluster_domain
    keys = {service_of(one, domain) for one in binder.skipped_names() if one.startswith(f"{bare}.")}
    keys.update((skip.namespace, skip.name) for skip in binder.view.skips() if skip.kind == "Service" and skip.name == bare)
    return sorted(key[0] for key in keys if key is not None)


def _not_bound(binder: Binder, full: str) -> Explanation:
    skipped = binder.skipped(full)
    service = binder.service(full)
    steps = [_service_step(full, service, binder.cluster.unusable(full))]
    if service is not None:
        forbidden = binder.forbidden(service)
        if forbidden is not None:
            steps.append(Step(forbidden.object, forbidden.field, forbidden.message, False))
        else:
            case = binder.cluster.case(full, service, None, None)
            for model in binder.cluster.models:
                steps.extend(_gateway_steps(model, binder, tells=not case.sources))
            for source in case.sources:
                steps.extend(_source_steps(binder, case, source))
            steps.extend(_port_steps(binder, full, service))
    if all(step.ok for step in steps):
        steps.append(Step(skipped.object, skipped.field, skipped.message, False))
    place = f" ({skipped.object} {skipped.field})".replace(" )", ")") if skipped.object else ""
    return Explanation(full, False, tuple(steps), f"not bound: {skipped.reason.value}: {skipped.message}{place}")


def _bound_verdict(bound: Bound) -> str:
    return f"bound: {bound.name} is {joined((*bound.v4, *bound.v6))}, the address of {bound.gateway}"


def _bound_steps(binder: Binder, bound: Bound) -> Iterator[Step]:
    namespace, _, name = bound.service.partition("/")
    service = binder.view.services[namespace, name]
    yield _service_step(bound.name, service, None)
    for model in binder.cluster.models:
        if model.frame.name == bound.gateway:
            yield from _gateway_steps(model, binder)
    for route in bound.routes:
        resolved = binder.cluster.resolved[route]
        yield from _links(resolved, [name for name in resolved.gateways if name in bound.gateways], Stage.POLICY, None)
    yield from _port_steps(binder, bound.name, service, only=bound.gateway)
    for text in bound.warnings:
        yield Step(f"Service {bound.service}", "", f"note: {text}", True)


def _service_step(full: str, service: Service | None, skip: Skip | None) -> Step:
    if skip is not None:
        refusal = unusable(skip)
        return Step(refusal.object, refusal.field, refusal.message, False)
    if service is None:
        return Step(f"Service {full}", "metadata.name", "there is no such Service", False)
    ports = joined(f"{port.port}/{port.protocol}" for port in service.ports)
    return Step(f"Service {service.namespace}/{service.name}", "spec.ports", f"it exists, with the ports {ports}", True)


def _gateway_steps(model: GatewayModel, binder: Binder, *, tells: bool = False) -> Iterator[Step]:
    """The gateway itself. `tells`: no VirtualService's chain will tell that no Gateway is attached."""
    state = model.frame
    this = f"Service {state.name}"
    if state.unusable:
        yield Step(this, "spec.clusterIPs", state.unusable, False)
        return
    yield Step(this, "spec.clusterIPs", f"the gateway's address is {joined((*state.v4, *state.v6))}", True)
    keeps = binder.settings.gateway_unready is GatewayUnready.KEEP
    counts = state.name not in binder.unready or keeps
    if state.ready == counts:
        text = "it has ready pods" if state.ready else "it has no ready pod"
    else:
        text = "it has ready pods, not long enough yet" if state.ready else "it has no ready pod, which does not count (yet)"
    yield Step(this, "endpoints", text, counts)
    gateways = joined(f"{one.namespace}/{one.name}" for one in state.attached)
    yield Step(this, "", f"attached Gateways, by their selectors: {gateways}", bool(state.attached) or not tells)


def _source_steps(binder: Binder, case: Case, source: Resolved) -> Iterator[Step]:
    """A VirtualService's chain, up to what breaks it: on the gateway and at the place where it comes furthest."""
    found = list(findings(case, source))
    served = [
        model
        for model, served, _ in (binder.offers(case.name, case.service) if case.service else ())
        if any(source.key in part.routes for part in served.values())
    ]
    worst = None if served else max(found, key=lambda one: one.stage)
    known = {f"{namespace}/{name}" for namespace, name in case.view.gateways}
    named = [name for name in source.gateways if name != MESH]
    attached = [name for name in named if any(name in model.attached for model in binder.cluster.models)]
    here = attached or [name for name in named if name in known] or named
    yield from _links(source, here, worst.stage if worst else Stage.POLICY, worst)


_LINKS = (
    (Stage.OBJECT, "metadata", "is read by istiod"),
    (Stage.GATEWAY, "spec.gateways", "names Gateway {gateways}, which exists"),
    (Stage.ATTACHED, "spec.selector", "is attached to the gateway's pods"),
    (Stage.EXPORTED, "spec.exportTo", "is visible to the gateway"),
    (Stage.SERVER, "spec.servers", "has a server for these routes on a port of the gateway's Service"),
    (Stage.HOSTS, "spec.hosts", "has hosts in common with the server"),
    (Stage.MATCH, "spec", "has a match that applies on this gateway"),
    (Stage.ACTION, "spec", "sends requests on"),
    (Stage.NAME, "spec.hosts", "is asked for this name"),
    (Stage.ORDER, "spec", "is not hidden behind another route"),
    (Stage.TARGET, "spec", "sends to a destination that exists, with its port and subset"),
)


def _links(source: Resolved, gateways: Iterable[str], reached: Stage, broken: Finding | None) -> Iterator[Step]:
    """The links that hold, then the one that does not."""
    names = joined(gateways)
    for stage, field, text in _LINKS:
        if stage >= reached:
            break
        of_gateway = stage in (Stage.ATTACHED, Stage.SERVER)
        thing = f"Gateway {names}" if of_gateway else f"VirtualService {source.key}"
        yield Step(thing, field, text.format(gateways=names), True)
    if broken is not None:
        yield Step(broken.refusal.object, broken.refusal.field, broken.refusal.message, False)


def _port_steps(binder: Binder, full: str, service: Service, only: str = "") -> Iterator[Step]:
    """Each port of the Service: is it open on the gateway's Service, on a Gateway, and does it serve the name?"""
    this = f"Service {service.namespace}/{service.name}"
    for model, served, reason in binder.offers(full, service):
        if only and model.frame.name != only:
            continue
        for index, port in enumerate(service.ports):
            field = f"spec.ports[{index}]"
            part = served.get(port.port) if port.protocol == "TCP" else None
            if part is not None:
                text = f"port {port.port} is served as {part.protocol} by {joined(sorted(part.gateways))} on {model.frame.name}"
                yield Step(this, field, text, True)
            elif reason is not Reason.PORT_NOT_SERVED:
                yield Step(this, field, f"port {port.port}/{port.protocol} is not served on {model.frame.name}", True)
        if reason is not None and not only:
            refusal = refusal_on_gateway(reason, service, model, served)
            yield Step(refusal.object, refusal.field, refusal.message, False)
