"""Why a name that some VirtualService means is not bound: the first rule that fails, for the route that came furthest.

Rules of this file:
- first what holds for the name itself, then the policy that refused a gateway that serves it, then route by route;
- a VirtualService that fails before it touches any Service (its gateways, exportTo) fails for every name that it means;
- equal progress: the oldest VirtualService is told of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from canal_dns.mesh.attach import has_revision, why_not_attached
from canal_dns.mesh.hosts import MESH
from canal_dns.mesh.intents import Intent, intents
from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.policy import Refusal, no_route, unusable
from canal_dns.mesh.records import Service, Skip, key_text
from canal_dns.mesh.resources import ANNOTATION_BIND
from canal_dns.mesh.result import Reason, Skipped, joined
from canal_dns.mesh.rules import Resolved, exported_to
from canal_dns.mesh.serving import Find
from canal_dns.mesh.traces import Finding, Stage, Trace, trace
from canal_dns.mesh.view import Key, View
from canal_dns.settings import BindingSettings


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known about a name that is not bound."""

    name: str
    names: frozenset[str]
    """The name, and the ExternalName Services that stand for it."""
    service: Service | None
    skip: Skip | None
    """The Service is there, but its object cannot be used."""
    forbidden: Refusal | None
    """What holds for the name, whoever serves it."""
    refused: Refusal | None
    """What a gateway that serves it is refused for."""
    sources: Sequence[Resolved]
    """The VirtualServices that mean it, oldest first."""
    models: Sequence[tuple[GatewayModel, Find]]
    view: View
    used_delegates: frozenset[Key]
    settings: BindingSettings


def diagnose(case: Case) -> Skipped:
    """The first rule that fails."""
    refusal = _no_service(case) if case.service is None else case.forbidden or case.refused or _furthest(case, case.service)
    service = key_text(case.service.namespace, case.service.name) if case.service else ""
    route = refusal.route or (case.sources[0].key if case.sources else "")
    return Skipped(case.name, service, route, refusal.reason, refusal.message, refusal.object, refusal.field)


def _no_service(case: Case) -> Refusal:
    if case.skip is not None:
        return unusable(case.skip)
    literal = ((source, intent) for source in case.sources for intent in _of(case, source) if intent.literal)
    source, intent = next(literal, (None, None))
    if source is None or intent is None:
        return Refusal(Reason.TARGET_NOT_FOUND, f"there is no Service for {case.name}", "")
    message = f"there is no Service for {case.name}: its queries get the cluster DNS's own answer"
    return Refusal(Reason.TARGET_NOT_FOUND, message, f"VirtualService {intent.owner}", intent.field, source.key)


def _of(case: Case, source: Resolved) -> Iterator[Intent]:
    """Where a VirtualService names the Service; if nowhere, a Gateway's server does, and its hosts only let that be."""
    found = [one for one in intents(source, case.settings.cluster_domain) if one.name in case.names]
    yield from found or [Intent(case.name, case.name, source.key, "spec.hosts", "host")]


def _furthest(case: Case, service: Service) -> Refusal:
    found = [finding for source in case.sources for finding in findings(case, source)]
    return max(found, key=lambda one: one.stage).refusal if found else no_route(service)


def findings(case: Case, source: Resolved) -> Iterator[Finding]:
    """What is in the way of one VirtualService, per gateway and place; once for all where it does not get to any."""
    early = _object(case, source)
    if early is not None:
        yield early
        return
    for model, find in case.models:
        late = _gateway(case, source, model)
        if late is not None:
            yield late
            continue
        yield from (trace(Trace(model, source, intent, find)) for intent in _of(case, source))


def _no(source: Resolved, stage: Stage, reason: Reason, message: str, field: str) -> Finding:
    return Finding(stage, Refusal(reason, message, f"VirtualService {source.key}", field, source.key))


def _object(case: Case, source: Resolved) -> Finding | None:
    """What is wrong with the VirtualService before any gateway looks at it."""
    record = source.record
    if not has_revision(record, case.settings.mesh):
        message = f"its label istio.io/rev is {record.revision!r}, istiod's revision is {case.settings.mesh.revision!r}"
        return _no(source, Stage.OBJECT, Reason.REVISION, message, "metadata.labels[istio.io/rev]")
    if not source.hosts:
        if (record.namespace, record.name) in case.used_delegates:
            message = "it is a delegate: the root VirtualService that names it decides, and does not bring its route here"
        else:
            message = "a VirtualService without hosts is a delegate, and no root VirtualService names it"
        return _no(source, Stage.OBJECT, Reason.DELEGATE, message, "spec.hosts")
    named = [name for name in source.gateways if name != MESH]
    if not named:
        what = "names only `mesh`, the sidecars" if source.gateways else "names no gateways, which means `mesh`, the sidecars"
        return _no(source, Stage.OBJECT, Reason.GATEWAY_NOT_FOUND, f"it {what}: no gateway serves it", "spec.gateways")
    if not any(_key(name) in case.view.gateways for name in named):
        broken = _broken_gateway(case, source)
        if broken is not None:
            return broken
        return _no(source, Stage.GATEWAY, Reason.GATEWAY_NOT_FOUND, _unknown(case, record.gateways, named), "spec.gateways")
    if record.bind is False:
        message = f"the VirtualService's annotation {ANNOTATION_BIND} says no: its routes stand, but bind nothing"
        return _no(source, Stage.TARGET, Reason.OPTED_OUT, message, f"metadata.annotations[{ANNOTATION_BIND}]")
    return None


def _broken_gateway(case: Case, source: Resolved) -> Finding | None:
    """A Gateway that it names is there, but its object cannot be used."""
    skips = (case.view.skip("Gateway", _key(name)) for name in source.gateways)
    skip = next((one for one in skips if one is not None), None)
    return Finding(Stage.GATEWAY, unusable(skip, source.key)) if skip is not None else None


def _key(name: str) -> Key:
    namespace, _, bare = name.partition("/")
    return namespace, bare


def _unknown(case: Case, written: Iterable[str], named: Sequence[str]) -> str:
    """`internalgateway` in namespace default means default/internalgateway: say so, and which one exists."""
    bare = {_key(name)[1] for name in named}
    near = sorted(f"{namespace}/{name}" for namespace, name in case.view.gateways if name in bare)
    hint = f"; there is {joined(near)}" if near else ""
    said = joined(one for one in written if one != MESH)
    return f"gateways: [{said}] means {joined(named)}, which does not exist{hint}"


def _gateway(case: Case, source: Resolved, model: GatewayModel) -> Finding | None:
    """What keeps the whole VirtualService from this gateway."""
    named = [name for name in source.gateways if _key(name) in case.view.gateways]
    attached = [name for name in named if name in model.attached]
    if model.frame.unusable:
        refusal = Refusal(
            Reason.GATEWAY_NOT_USABLE, model.frame.unusable, f"Service {model.frame.name}", "spec.clusterIPs", source.key
        )
        return Finding(Stage.ATTACHED, refusal)
    if not attached:
        broken = _broken_gateway(case, source)
        if broken is not None:
            return broken
        gateway = case.view.gateways[_key(named[0])]
        why = why_not_attached(gateway, model.frame.workload, case.settings.mesh)
        message = f"Gateway {named[0]} is not attached to {model.frame.name}: {why}"
        refusal = Refusal(Reason.NOT_ATTACHED, message, f"Gateway {named[0]}", "spec.selector", source.key)
        return Finding(Stage.GATEWAY, refusal)
    if model.tier(source) is None:
        seen = joined(sorted(exported_to(source.record, case.settings.mesh.default_virtual_service_export_to)))
        message = f"it is exported to {seen}, and the gateway's pods are in namespace {model.frame.workload.namespace}"
        return _no(source, Stage.EXPORTED, Reason.NOT_EXPORTED, message, "spec.exportTo")
    return None
