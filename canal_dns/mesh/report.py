"""The result as plain data, for JSON and for people: `canal-dns table`, `/bindings`.

Rules of this file:
- every Service is either bound or skipped with a reason; those that no VirtualService means get theirs here, when asked for;
- the same result gives the same text: everything is in order of name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from canal_dns.dns.names import service_name
from canal_dns.mesh.policy import Refusal, no_route, refusal_of_name
from canal_dns.mesh.records import Service, key_text
from canal_dns.mesh.result import Bound, GatewayState, Problem, Reason, Result, Skipped
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings


def to_plain(result: Result, view: View, settings: BindingSettings) -> dict[str, Any]:
    """`bound`, `skipped`, `problems`, `gateways`: lists of mappings with texts, numbers and lists only. `settings`: those by
    which the result was made."""
    skipped = {name: _skipped(one) for name, one in result.skipped.items()}
    for name, service, forbidden in _unmentioned(result, view, settings):
        no = forbidden or no_route(service)
        place = key_text(service.namespace, service.name)
        skipped[name] = _skipped(Skipped(name, place, "", no.reason, no.message, no.object, no.field))
    return {
        "bound": [_bound(result.bound[name]) for name in sorted(result.bound)],
        "skipped": [skipped[name] for name in sorted(skipped)],
        "problems": [_problem(problem) for problem in result.problems],
        "gateways": [_gateway(state) for state in result.gateways],
    }


def reasons(result: Result, view: View, settings: BindingSettings) -> Counter[str]:
    """How many names are skipped, by reason: the same names and reasons as `skipped` of `to_plain`."""
    counts = Counter(one.reason.value for one in result.skipped.values())
    unmentioned = (forbidden for _, _, forbidden in _unmentioned(result, view, settings))
    counts.update((Reason.NO_ROUTE if one is None else one.reason).value for one in unmentioned)
    return counts


def _unmentioned(result: Result, view: View, settings: BindingSettings) -> Iterator[tuple[str, Service, Refusal | None]]:
    """The Services that no VirtualService names, and what forbids their names anyway."""
    namespaces = view.namespaces
    known = {*result.bound, *result.skipped}
    for (namespace, bare), service in view.services.items():
        name = service_name(bare, namespace, settings.cluster_domain)
        if name not in known:
            yield name, service, refusal_of_name(service, namespaces.get(("", namespace)), settings)


def _bound(bound: Bound) -> Mapping[str, Any]:
    return {
        "name": bound.name,
        "vips": [*bound.v4, *bound.v6],
        "gateway": bound.gateway,
        "routes": list(bound.routes),
        "warnings": list(bound.warnings),
        "service": bound.service,
        "gateways": list(bound.gateways),
        "ports": list(bound.ports),
        "claims": list(bound.claims),
        "ttl": bound.ttl,
    }


def _skipped(skipped: Skipped) -> Mapping[str, Any]:
    return {
        "name": skipped.name,
        "service": skipped.service,
        "route": skipped.route,
        "reason": skipped.reason.value,
        "message": skipped.message,
        "object": skipped.object,
        "field": skipped.field,
    }


def _problem(problem: Problem) -> Mapping[str, Any]:
    return {
        "object": problem.object,
        "field": problem.field,
        "reason": problem.reason.value,
        "message": problem.message,
    }


def _gateway(state: GatewayState) -> Mapping[str, Any]:
    return {
        "gateway": state.gateway,
        "vips": [*state.v4, *state.v6],
        "ready": state.ready,
        "endpoints": list(state.endpoints),
        "attached": list(state.attached),
        "ports": list(state.ports),
        "warnings": list(state.warnings),
    }
