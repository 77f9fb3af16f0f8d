"""The parts of the rule that are kept: VirtualServices resolved, gateways modelled, who means which name; and what is touched.

Rules of this file:
- an index here is there because a change must find what it touches without looking at everything;
- touching too much costs time, touching too little is a wrong answer: where it is not clear, a name is touched;
- None as "touched" means every known name: a gateway's address, Gateways, or what istiod was told changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from canal_dns.dns.names import service_name
from canal_dns.mesh.attach import age, has_revision
from canal_dns.mesh.destinations import Found, SubsetIndex, find
from canal_dns.mesh.diagnosis import Case
from canal_dns.mesh.frame import Frame, frame
from canal_dns.mesh.hosts import complete, is_wildcard, overlaps, service_of
from canal_dns.mesh.intents import Intents, intents
from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.policy import Refusal
from canal_dns.mesh.records import DestinationRule, EndpointSlice, Namespace, Pod, Service, Skip, VirtualService, key_text
from canal_dns.mesh.result import Problem, Reason
from canal_dns.mesh.routes import Target
from canal_dns.mesh.rules import Resolved, delegates_of, resolve
from canal_dns.mesh.serving import Find
from canal_dns.mesh.view import Change, Key, View
from canal_dns.settings import BindingSettings, InternalGateway


class Cluster:
    """Everything that `Binder` needs to decide on a name."""

    def __init__(self, view: View, settings: BindingSettings) -> None:
        self.view = view
        self.settings = settings
        self.models: list[GatewayModel] = []
        self.resolved: dict[str, Resolved] = {}
        self.intents = Intents()
        self._subsets = SubsetIndex(settings)
        self._subset_hosts: dict[str, int] = {}
        """Destination hosts that are named with a subset -> how often."""
        self._aliases: dict[str, set[str]] = {}
        """Full name of a Service -> full names of the ExternalName Services for it."""
        self._roots: dict[Key, set[Key]] = {}
        """Delegate -> the VirtualServices that delegate to it."""
        self._remarks: dict[str, tuple[Problem, ...]] = {}
        self._unavailable = view.unavailable

    def load(self) -> None:
        """Read the whole view."""
        for service in self.view.services.values():
            self._note_service(None, service)
            if service.remarks:
                self._remark(f"Service {service.namespace}/{service.name}", service.remarks)
        for rule in self.view.destination_rules.values():
            self._subsets.put(None, rule)
        for namespace in self.view.namespaces.values():
            if namespace.remarks:
                self._remark(f"Namespace {namespace.name}", namespace.remarks)
        self._unavailable = self.view.unavailable
        self.models = [GatewayModel(self._frame(gateway), self.settings) for gateway in self.settings.gateways]
        for record in self.view.virtual_services.values():
            self._note_delegates(None, record)
        for record in sorted(self.view.virtual_services.values(), key=age):
            self._resolve((record.namespace, record.name), record)
        for model in self.models:
            model.settle()

    def follow(self, changes: Iterable[Change]) -> set[str] | None:
        """Take changes in. Returns the names whose outcome may be another now; None: all."""
        hosts: set[str] = set()
        names: set[str] = set()
        virtual_services: dict[Key, None] = {}
        frames: set[str] = set()
        for change in changes:
            old, new = change.old, change.new
            if change.kind == "Service":
                hosts |= self._service_hosts(change)
                frames |= self._frames_of(*change.key)
            elif change.kind == "VirtualService":
                self._note_delegates(_virtual_service(old), _virtual_service(new))
                virtual_services.update(dict.fromkeys((change.key, *sorted(self._roots.get(change.key, ())))))
            elif change.kind == "DestinationRule":
                hosts |= self._rule_hosts(change)
            elif change.kind == "Namespace":
                self._remark(f"Namespace {change.key[1]}", getattr(new, "remarks", ()))
                if _opts_out(old) != _opts_out(new):
                    names |= self._names_in(change.key[1])
            elif change.kind == "Gateway":
                frames |= {str(gateway) for gateway in self.settings.gateways}
            else:
                for record in (old, new):
                    if isinstance(record, EndpointSlice):
                        frames |= self._frames_of(record.namespace, record.service)
                    elif isinstance(record, Pod):
                        frames |= {str(one) for one in self.settings.gateways if one.namespace == record.namespace}
        rights = self._unavailable ^ self.view.unavailable
        self._unavailable = self.view.unavailable
        if "DestinationRule" in rights:
            for host in self._subset_hosts:
                hosts |= {host, *self._users(host)}
        if "EndpointSlice" in rights:
            frames |= {str(gateway) for gateway in self.settings.gateways}
        everything = self._reframe(frames)
        for key in virtual_services:
            record = self.view.virtual_services.get(key)
            hosts |= self._resolve(key, record)
        for model in self.models:
            hosts |= model.settle()
        return None if everything or "*" in hosts else names | self._names(hosts)

    def finder(self, model: GatewayModel) -> Find:
        """How this gateway looks destinations up."""

        def look(target: Target) -> Found:
            return find(target, model.frame.workload, self.view, self._subsets, self.settings)

        return look

    def counts(self, virtual_service: str) -> bool:
        """The VirtualService may claim names: it has not opted out."""
        return self.resolved[virtual_service].record.bind is not False

    def aliases(self, name: str) -> Collection[str]:
        """The name and the ExternalName Services that stand for it."""
        return (name, *self._aliases.get(name, ()))

    def unusable(self, name: str) -> Skip | None:
        """Why the Service of a full name, which is there, cannot be used."""
        key = service_of(name, self.settings.cluster_domain)
        return self.view.skip("Service", key) if key else None

    def known(self) -> set[str]:
        """Every name that may be bound: those that are meant, those that are a domain or server name as Envoy compares it, in
        lower case, and the Services behind ExternalNames that are meant."""
        names = set(self.intents.names())
        names.update(target for target, own in self._aliases.items() if any(self.intents.sources(one) for one in own))
        for model in self.models:
            for table in model.tables.values():
                names.update(domain for domain in table.hosts if not is_wildcard(domain))
            for listener in model.layout.listeners:
                names.update(name for chain in listener.chains for name in chain.names or () if not is_wildcard(name))
            for offer in (offer for offers in model.sni.values() for offer in offers):
                names.update(name for name in offer.sni_hosts if not is_wildcard(name))
        return names

    def case(self, name: str, service: Service | None, forbidden: Refusal | None, refused: Refusal | None) -> Case:
        """All that `diagnose` looks at."""
        meant = [source for one in self.aliases(name) for source in self.intents.sources(one)]
        hosts = [table.hosts[name] for model in self.models for table in model.tables.values() if name in table.hosts]
        meant += [entry.virtual_service for host in hosts for entry in host.entries.values()]
        if not meant:
            offers = (offer for model in self.models for some in model.sni.values() for offer in some)
            meant = [offer.virtual_service for offer in offers if name in offer.sni_hosts]
        sources = [self.resolved[key] for key in dict.fromkeys(meant)]
        return Case(
            name=name,
            names=frozenset(self.aliases(name)),
            service=service,
            skip=self.unusable(name),
            forbidden=forbidden,
            refused=refused,
            sources=sorted(sources, key=lambda one: one.age),
            models=[(model, self.finder(model)) for model in self.models],
            view=self.view,
            used_delegates=frozenset(self._roots),
            settings=self.settings,
        )

    def problems(self) -> Iterator[Problem]:
        """Objects, or parts of them, that count for nothing."""
        for skip in self.view.skips():
            place = key_text(skip.namespace, skip.name)
            yield Problem(f"{skip.kind} {place}", skip.field, Reason.INVALID, skip.message)
        for thing in sorted(self._remarks):
            yield from self._remarks[thing]
        for model in self.models:
            for one in model.layout.dropped:
                yield Problem(
                    f"Gateway {one.gateway}", f"spec.servers[{one.index}]", Reason.GATEWAY_NOT_PROGRAMMED, one.message
                )
            for source, why in sorted(model.refusing.items()):
                field, _, message = why.partition(": ")
                text = f"Envoy refuses it, and with it every route of {model.frame.name}: {message}"
                yield Problem(f"VirtualService {source}", field, Reason.INVALID, text)
            for listener in model.layout.listeners:
                chains = model.chains(listener)
                if isinstance(chains, str):
                    gateway = listener.chains[-1].placed
                    yield Problem(f"Gateway {gateway.gateway}", gateway.field, Reason.INVALID, chains)

    def gateway_warnings(self, model: GatewayModel) -> Iterator[str]:
        """What is worth saying about an internal gateway."""
        if model.frame.unusable:
            yield model.frame.unusable
        yield from model.frame.workload.warnings
        if "EndpointSlice" in self._unavailable:
            yield "EndpointSlices cannot be read: it counts as ready, and its pods' own queries are answered like all others"
        if "Namespace" in self._unavailable:
            yield "Namespaces cannot be read: it serves the names of those that opted out, too"
        if not model.frame.attached:
            yield f"no Gateway is attached to {model.frame.name}"
        service = self.view.services.get((model.frame.workload.namespace, model.frame.name.partition("/")[2]))
        for address, why in service.rejected if service else ():
            yield f"address {address} is not answered: {why}"
        for one in model.frame.attached:
            if not one.selector:
                yield f"Gateway {one.namespace}/{one.name} has no selector: it attaches to every gateway of the mesh"

    def _frame(self, gateway: InternalGateway) -> Frame:
        return frame(gateway, self.view, self.settings.mesh)

    def _frames_of(self, namespace: str, service: str) -> set[str]:
        return {str(one) for one in self.settings.gateways if (one.namespace, one.name) == (namespace, service)}

    def _reframe(self, names: set[str]) -> bool:
        """Look at gateways again. True if every name must be looked at."""
        everything = False
        for index, gateway in enumerate(self.settings.gateways):
            if str(gateway) not in names:
                continue
            model = self.models[index]
            state = self._frame(gateway)
            same = model.frame
            if state.listens != same.listens:
                model = self.models[index] = GatewayModel(state, self.settings)
                for key, resolved in self.resolved.items():
                    model.put(key, resolved)
                everything = True
            elif (state.v4, state.v6, state.unusable) != (same.v4, same.v6, same.unusable):
                everything = True
            model.frame = state
        return everything

    def _note_delegates(self, old: VirtualService | None, new: VirtualService | None) -> None:
        if old is not None:
            for delegate in delegates_of(old):
                self._roots[delegate].discard((old.namespace, old.name))
                if not self._roots[delegate]:
                    del self._roots[delegate]
        if new is not None:
            for delegate in delegates_of(new):
                self._roots.setdefault(delegate, set()).add((new.namespace, new.name))

    def _delegate(self, namespace: str, name: str) -> VirtualService | None:
        record = self.view.virtual_services.get((namespace, name))
        return record if record is not None and has_revision(record, self.settings.mesh) else None

    def _resolve(self, key: Key, record: VirtualService | None) -> set[str]:
        """Put a VirtualService in, or take it out. Returns the hosts touched."""
        name = key_text(*key)
        domain = self.settings.cluster_domain
        default = self.settings.mesh.default_virtual_service_export_to
        old = self.resolved.pop(name, None)
        new = resolve(record, self._delegate, domain, default) if record is not None else None
        if new is not None:
            self.resolved[name] = new
        self._note_subsets(old, new)
        self._remark(f"VirtualService {name}", record.remarks if record else ())
        touched = self.intents.put(name, intents(new, domain) if new is not None else ())
        for model in self.models:
            touched |= model.put(name, new)
        return touched

    def _note_subsets(self, old: Resolved | None, new: Resolved | None) -> None:
        for host in _subset_hosts(new):
            self._subset_hosts[host] = self._subset_hosts.get(host, 0) + 1
        for host in _subset_hosts(old):
            self._subset_hosts[host] -= 1
            if not self._subset_hosts[host]:
                del self._subset_hosts[host]

    def _note_service(self, old: Service | None, new: Service | None) -> None:
        if old is not None and old.external_name:
            known = self._aliases[old.external_name]
            known.discard(self._own_name(old))
            if not known:
                del self._aliases[old.external_name]
        if new is not None and new.external_name:
            self._aliases.setdefault(new.external_name, set()).add(self._own_name(new))

    def _own_name(self, service: Service) -> str:
        return service_name(service.name, service.namespace, self.settings.cluster_domain)

    def _service_hosts(self, change: Change) -> set[str]:
        """The Service's own name, what it stands for, and the domains whose requests may go there."""
        old = change.old if isinstance(change.old, Service) else None
        new = change.new if isinstance(change.new, Service) else None
        self._note_service(old, new)
        self._remark(f"Service {key_text(*change.key)}", new.remarks if new else ())
        own = service_name(change.key[1], change.key[0], self.settings.cluster_domain)
        hosts = {own, *(record.external_name for record in (old, new) if record is not None and record.external_name)}
        for host in self.aliases(own):
            hosts |= self._users(host)
        return hosts

    def _users(self, host: str) -> set[str]:
        """The exact domains and server names of VirtualServices that name this destination."""
        found: set[str] = set()
        for source in self.intents.sources(host):
            for model in self.models:
                made = model.contributions.get(source)
                if made is not None:
                    found.update(domain for _, domain in made.entries if not is_wildcard(domain))
                    for _, offer in made.sni:
                        found.update(offer.sni_hosts)
        return found

    def _rule_hosts(self, change: Change) -> set[str]:
        """The destinations with a subset that a DestinationRule may define, and the domains whose requests go there."""
        old = change.old if isinstance(change.old, DestinationRule) else None
        new = change.new if isinstance(change.new, DestinationRule) else None
        self._subsets.put(old, new)
        hosts: set[str] = set()
        for rule in (old, new):
            if rule is not None:
                covered = complete(rule.host, rule.namespace, self.settings.cluster_domain)
                for host in self._subset_hosts if is_wildcard(covered) else self.aliases(covered):
                    if host in self._subset_hosts and (overlaps(covered, host) or self._external(host)):
                        hosts |= {host, *self._users(host)}
        return hosts

    def _external(self, host: str) -> str:
        """The target of an ExternalName Service, "" for any other host."""
        key = service_of(host, self.settings.cluster_domain)
        service = self.view.services.get(key) if key else None
        return service.external_name if service else ""

    def _names_in(self, namespace: str) -> set[str]:
        suffix = f".{namespace}.svc.{self.settings.cluster_domain}"
        return {name for name in self.known() if name.endswith(suffix)}

    def _names(self, hosts: Iterable[str]) -> set[str]:
        """The names that touched hosts stand for."""
        names: set[str] = set()
        for host in hosts:
            if is_wildcard(host):
                names.update(name for name in self.known() if overlaps(host, name))
            else:
                names.update(one for one in (host, self._external(host)) if service_of(one, self.settings.cluster_domain))
        return names

    def _remark(self, thing: str, remarks: Iterable[tuple[str, str]]) -> None:
        found = tuple(Problem(thing, field, Reason.INVALID, message) for field, message in remarks)
        if found:
            self._remarks[thing] = found
        else:
            self._remarks.pop(thing, None)


def _subset_hosts(resolved: Resolved | None) -> Iterator[str]:
    if resolved is not None:
        for rule in resolved.http:
            yield from (one.host for one in rule.written if one.subset)
        for route in (*resolved.tcp, *resolved.tls):
            yield from (one.host for one in route.destinations if one.subset)


def _opts_out(namespace: object) -> bool:
    return isinstance(namespace, Namespace) and namespace.bind is False


def _virtual_service(record: object) -> VirtualService | None:
    return record if isinstance(record, VirtualService) else None
