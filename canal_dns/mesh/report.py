"""The result as plain data, for JSON and for people: `canal-dns table`, `/bindings`.

Rules of this file:
- every Service is either bound or skipped with a reason; those that no VirtualService means get theirs here, when asked for;
- the same result gives the same text: everything is in order of name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from canal_dns.dns.names import service_name
from canal_dns.mesh.records import key_text
from canal_dns.mesh.result import Bound, GatewayState, Problem, Reason, Result, Skipped
from canal_dns.mesh.view import View


def to_plain(result: Result, view: View, cluster_domain: str = "cluster.local") -> dict[str, Any]:
    """`bound`, `skipped`, `problems`, `gateways`: lists of mappings with texts, numbers and lists only."""
    skipped = {name: _skipped(result.skipped[name]) for name in result.skipped}
    for namespace, name in view.services:
        full = service_name(name, namespace, cluster_domain)
        if full not in result.bound and full not in skipped:
            skipped[full] = _skipped(unmentioned(full, key_text(namespace, name)))
    return {
        "bound": [_bound(result.bound[name]) for name in sorted(result.bound)],
        "skipped": [skipped[name] for name in sorted(skipped)],
        "problems": [_problem(problem) for problem in result.problems],
        "gateways": [_gateway(state) for state in result.gateways],
    }


def unmentioned(name: str, service: str) -> Skipped:
    """A Service that no VirtualService names."""
    message = "no VirtualService names the Service, as destination or as host"
    return Skipped(name, service, "", Reason.NO_ROUTE, message, f"Service {service}", "")


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
        "attached": list(state.attached),
        "ports": list(state.ports),
        "warnings": list(state.warnings),
    }
