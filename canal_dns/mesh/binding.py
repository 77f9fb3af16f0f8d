"""The binding rule: which Services an internal gateway really serves, and to which address their names therefore lead.

Rules of this file:
- pure: the same objects give the same result, on every replica and in whatever order they came;
- `bind` computes all of it; `Binder` keeps the parts and looks again only at the names that a change touches: same outcome;
- a name has one gateway: of several that would serve it, the one whose claiming VirtualService is the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from canal_dns.mesh.cluster import Cluster
from canal_dns.mesh.diagnosis import diagnose
from canal_dns.mesh.hosts import service_of
from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.policy import (
    Refusal,
    objection,
    refusal_of_name,
    refusal_on_gateway,
    short_form_warnings,
    time_to_live,
    warnings,
)
from canal_dns.mesh.records import Service, key_text
from canal_dns.mesh.result import Bound, GatewayState, Problem, Reason, Result, Skipped, difference
from canal_dns.mesh.serving import Served, serve
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, PortGuard

NO_GATEWAYS: frozenset[str] = frozenset()


def bind(view: View, settings: BindingSettings, unready: frozenset[str] = NO_GATEWAYS) -> Result:
    """Everything, from nothing.

    `unready`: gateways (`namespace/name` of their Services) that the caller holds to be without ready endpoints. The view is
    only read: what it remembers for a Binder stays.
    """
    binder = Binder(view, settings)
    binder.start(unready)
    result = binder.result
    return Result(dict(result.bound), dict(result.skipped), result.problems, result.gateways)


class Binder:
    """The rule, kept up to date. One Binder per View: it takes what the view remembers as changed."""

    def __init__(self, view: View, settings: BindingSettings) -> None:
        self.view = view
        self.settings = settings
        self.cluster = Cluster(view, settings)
        self._started = False
        self.unready = NO_GATEWAYS
        """Gateways that count as without ready endpoints."""
        self._eligible: dict[str, Bound] = {}
        """Every name that may be bound; more than `max_bindings`, perhaps."""
        self._bound: dict[str, Bound] = {}
        self._conflicts: dict[str, tuple[Problem, ...]] = {}

    def refresh(self, unready: frozenset[str] = NO_GATEWAYS) -> Mapping[str, Bound | None]:
        """Follow the view. Returns what changed since the last call: the new record per name, None where it is unbound."""
        changes = self.view.drain()
        if not self._started:
            return self.start(unready)
        touched = self.cluster.follow(changes)
        if unready != self.unready:
            self.unready = unready
            touched = self._known()
        return self._publish(self._known() if touched is None else touched)

    def start(self, unready: frozenset[str] = NO_GATEWAYS) -> Mapping[str, Bound | None]:
        """Read the whole view."""
        self._started = True
        self.unready = unready
        self.cluster.load()
        return self._publish(self._known())

    @property
    def result(self) -> Result:
        """The outcome as it stands. It reads this Binder: what it says holds until the next `refresh`, and the reasons of
        skipped names are found when they are asked for."""
        return Result(MappingProxyType(self._bound), _Skips(self), tuple(self._problems()), tuple(self._gateways()))

    def skipped_names(self) -> Iterator[str]:
        """Names that some VirtualService means and that are not bound. One that Istio would have to guess is left out unless
        there is such a Service."""
        for name in self.cluster.known():
            if name not in self._bound:
                literal = any(self.cluster.intents.sources(name).values())
                if literal or self.service(name) is not None or self.cluster.unusable(name) is not None:
                    yield name

    def skipped(self, name: str) -> Skipped:
        """Why a name is not bound."""
        if name in self._eligible:
            bound = self._eligible[name]
            message = f"{len(self._eligible)} names could be bound, binding.maxBindings is {self.settings.max_bindings}"
            return Skipped(name, bound.service, bound.routes[0], Reason.LIMIT_EXCEEDED, message, f"Service {bound.service}", "")
        service = self.service(name)
        forbidden = self.forbidden(service) if service else None
        refused = None
        if service is not None and forbidden is None:
            offers = self.offers(name, service)
            refused = next((refusal_on_gateway(no, service, model, served) for model, served, no in offers if no), None)
        return diagnose(self.cluster.case(name, service, forbidden, refused))

    def _known(self) -> set[str]:
        return self.cluster.known() | set(self._eligible)

    def service(self, name: str) -> Service | None:
        """The Service of a full name."""
        key = service_of(name, self.settings.cluster_domain)
        return self.view.services.get(key) if key else None

    def forbidden(self, service: Service) -> Refusal | None:
        """What forbids the Service's name, whoever serves it."""
        return refusal_of_name(service, self.view.namespaces.get(("", service.namespace)), self.settings)

    def _publish(self, names: Iterable[str]) -> Mapping[str, Bound | None]:
        changed: dict[str, Bound | None] = {}
        for name in names:
            new = self._evaluate(name)
            if new != self._eligible.get(name):
                changed[name] = new
                if new is None:
                    del self._eligible[name]
                else:
                    self._eligible[name] = new
        limit = self.settings.max_bindings
        if changed and (max(len(self._eligible), len(self._bound)) > limit or len(self._bound) >= limit):
            kept = sorted(self._eligible)[:limit]
            changed = difference(self._bound, {name: self._eligible[name] for name in kept})
        for name, bound in changed.items():
            if bound is None:
                del self._bound[name]
            else:
                self._bound[name] = bound
        return changed

    def _evaluate(self, name: str) -> Bound | None:
        """Bind one name, or not."""
        self._conflicts.pop(name, None)
        service = self.service(name)
        if service is None or self.forbidden(service) is not None:
            return None
        accepted = [(model, served) for model, served, no in self.offers(name, service) if no is None]
        if not accepted:
            return None
        accepted.sort(key=lambda offer: self._age(offer[1]))
        model, served = accepted[0]
        bound = self._bound_by(name, service, model, served)
        if len(accepted) > 1:
            self._conflicts[name] = tuple(self._conflict(bound, other, theirs) for other, theirs in accepted[1:])
        return bound

    def offers(self, name: str, service: Service) -> Iterator[tuple[GatewayModel, Mapping[int, Served], Reason | None]]:
        """The gateways that serve the name, each with what a policy has against it."""
        lenient = self.settings.port_guard is PortGuard.WARN
        for model in self.cluster.models:
            aliases, find = self.cluster.aliases(name), self.cluster.finder(model)
            served = serve(model, name, aliases, find, self.cluster.counts, lenient=lenient)
            if served:
                yield model, served, objection(service, model, served, self.settings, self.unready)

    def _age(self, served: Mapping[int, Served]) -> tuple[float, str, str]:
        return min(self.cluster.resolved[route].age for part in served.values() for route in part.routes)

    def _bound_by(self, name: str, service: Service, model: GatewayModel, served: Mapping[int, Served]) -> Bound:
        parts = list(served.values())
        told = warnings(service, model, served, self.settings) + short_form_warnings(
            service, model, served, self.settings.cluster_domain
        )
        return Bound(
            name=name,
            service=key_text(service.namespace, service.name),
            v4=model.frame.v4,
            v6=model.frame.v6,
            ttl=time_to_live(service, self.settings),
            gateway=model.frame.name,
            gateways=tuple(sorted({one for part in parts for one in part.gateways})),
            routes=tuple(sorted({one for part in parts for one in part.routes})),
            ports=tuple(sorted(served)),
            claims=tuple(sorted({one for part in parts for one in part.claims})),
            warnings=tuple(told),
        )

    def _conflict(self, bound: Bound, other: GatewayModel, served: Mapping[int, Served]) -> Problem:
        route = min({route for part in served.values() for route in part.routes})
        message = (
            f"the gateway {other.frame.name} serves {bound.name} too, by VirtualService {route}, which is younger than that of "
            f"{bound.gateway}, whose address is answered"
        )
        return Problem(f"VirtualService {route}", "spec.gateways", Reason.CONFLICTED, message)

    def _problems(self) -> Iterator[Problem]:
        yield from self.cluster.problems()
        for name in sorted(self._conflicts):
            yield from self._conflicts[name]

    def _gateways(self) -> Iterator[GatewayState]:
        for model in self.cluster.models:
            state = model.frame
            yield GatewayState(
                gateway=state.name,
                v4=state.v4,
                v6=state.v6,
                ready=state.ready,
                attached=tuple(f"{one.namespace}/{one.name}" for one in state.attached),
                ports=tuple(sorted(port for port in state.ports if model.listener(port) is not None)),
                endpoints=state.endpoints,
                warnings=tuple(self.cluster.gateway_warnings(model)),
            )


class _Skips(Mapping[str, Skipped]):
    """Skipped names, their reasons found when asked for."""

    def __init__(self, binder: Binder) -> None:
        self._binder = binder
        self._names: dict[str, Skipped | None] | None = None

    def __getitem__(self, name: str) -> Skipped:
        names = self._all()
        known = names[name]
        if known is None:
            known = names[name] = self._binder.skipped(name)
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, Skipped | None]:
        if self._names is None:
            self._names = dict.fromkeys(sorted(self._binder.skipped_names()))
        return self._names


__all__ = ["Binder", "Bound", "Result", "Skipped", "bind"]
