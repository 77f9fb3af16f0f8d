"""Does the cluster of a destination exist? (istio core ClusterBuilder, PushContext.destinationRule, mergeDestinationRule)

Rules of this file:
- the host must be the full name, letter for letter, of a Service that the gateway's namespace may see; no ServiceEntries;
- the port must be one of its TCP ports; a subset must be defined by the DestinationRule that the gateway reads;
- an ExternalName Service stands for its target, one step and no further;
- of DestinationRules only the names of subsets are read. Where they may not be read, every subset counts as existing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from canal_dns.mesh.attach import Workload, has_revision
from canal_dns.mesh.hosts import complete, meant_service, service_of
from canal_dns.mesh.records import DestinationRule, Labels, Service, Skip, frozen
from canal_dns.mesh.routes import Target
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings


@frozen
class Found:
    """What a destination leads to."""

    host: str
    """The Service's full name, after ExternalName; the literal host where there is none."""
    exists: bool
    problem: str = ""
    """One sentence on why not."""
    field: str = ""
    """Of the destination: `host`, `port` or `subset`."""
    warning: str = ""
    skip: Skip | None = None
    """The Service is there, but its object cannot be used."""


def visible(service: Service, namespace: str) -> bool:
    """A workload of `namespace` may see the Service (annotation networking.istio.io/exportTo, initServiceRegistry)."""
    if not service.export_to or "*" in service.export_to:
        return True
    if "~" in service.export_to:
        return False
    return namespace in service.export_to or ("." in service.export_to and namespace == service.namespace)


def find(target: Target, workload: Workload, view: View, rules: SubsetIndex, settings: BindingSettings) -> Found:
    """Look a destination up, as a gateway of this workload would."""
    domain = settings.cluster_domain
    key = service_of(target.host, domain)
    service = view.services.get(key) if key else None
    if service is None or not visible(service, workload.namespace):
        skip = view.skip("Service", key) if key else None
        return Found(target.host, False, skip.text if skip else _missing(target.host, service, view, domain), "host", skip=skip)
    port = target.port
    if port is None:
        port = service.ports[0].port if len(service.ports) == 1 else target.listener_port
    host = target.host
    if service.external_name:
        host = service.external_name
        key = service_of(host, domain)
        service = view.services.get(key) if key else None
        if service is None or service.external_name or not visible(service, workload.namespace):
            skip = view.skip("Service", key) if key else None
            why = skip.text if skip else f"{target.host} is an ExternalName for {host}, which is no Service"
            return Found(host, False, why, "host", skip=skip)
    if not any(one.port == port and one.protocol == "TCP" for one in service.ports):
        return Found(host, False, f"Service {service.namespace}/{service.name} has no TCP port {port}", "port")
    warning = ""
    if target.subset:
        if "DestinationRule" in view.unavailable:
            warning = f"DestinationRules cannot be read: subset {target.subset} is taken to exist"
        elif target.subset not in rules.subsets(service, workload):
            problem = f"no DestinationRule that the gateway reads defines subset {target.subset} of {host}"
            return Found(host, False, problem, "subset")
    return Found(host, True, warning=warning)


def _missing(host: str, service: Service | None, view: View, domain: str) -> str:
    if service is not None:
        return f"Service {service.namespace}/{service.name} is not exported to the gateway's namespace"
    meant = meant_service(host, domain)
    if meant is not None and meant in view.services:
        return f"Istio takes {host!r} literally and knows no such host; {meant[1]}.{meant[0]}.svc.{domain} is meant, it seems"
    return f"no Service is called {host!r}"


class SubsetIndex:
    """The DestinationRules, by namespace and host."""

    def __init__(self, settings: BindingSettings) -> None:
        self._settings = settings
        self._by_namespace: dict[str, dict[str, dict[str, DestinationRule]]] = {}
        """Namespace -> host -> name -> rule."""

    def put(self, old: DestinationRule | None, new: DestinationRule | None) -> None:
        """Tell of a DestinationRule that came, changed or went."""
        if old is not None and has_revision(old, self._settings.mesh):
            host = complete(old.host, old.namespace, self._settings.cluster_domain)
            known = self._by_namespace.get(old.namespace, {})
            rules = known.get(host, {})
            rules.pop(old.name, None)
            if not rules:
                known.pop(host, None)
        if new is not None and has_revision(new, self._settings.mesh):
            host = complete(new.host, new.namespace, self._settings.cluster_domain)
            self._by_namespace.setdefault(new.namespace, {}).setdefault(host, {})[new.name] = new

    def subsets(self, service: Service, workload: Workload) -> frozenset[str]:
        """Subsets of a Service in the eyes of the workload: its own namespace's rules decide (except in the mesh's root
        namespace, where only private ones do), else those exported by the Service's namespace, else by the root's."""
        host = f"{service.name}.{service.namespace}.svc.{self._settings.cluster_domain}"
        root = self._settings.mesh.root_namespace
        here = workload.namespace
        own = self._best(here, host, self._private if here == root else _local)
        if own:
            return _names(own, workload)
        for namespace in dict.fromkeys((service.namespace, root)):
            shared = [
                one
                for one in self._best(namespace, host, lambda rule: not self._private(rule))
                if not one.export or one.export & {"*", here}
            ]
            if shared:
                return _names(shared, workload)
        return frozenset()

    def _best(self, namespace: str, host: str, counts: Callable[[DestinationRule], bool]) -> list[_Merged]:
        """The rules of a namespace with the most specific host that covers this one, merged (MostSpecificHostMatch)."""
        known = self._by_namespace.get(namespace, {})
        # One namespace may have thousands of rules; a host has few wildcards that cover it, the longest first.
        for text in (host, *(f"*{host[at:]}" for at in range(len(host) + 1))) if known else ():
            rules = [rule for rule in known.get(text, {}).values() if counts(rule)]
            if rules:
                return _merge(sorted(rules, key=lambda rule: (rule.workload_selector is None, rule.created, rule.name)))
        return []

    def _private(self, rule: DestinationRule) -> bool:
        export = _export(rule)
        if not export:
            return "." in self._settings.mesh.default_destination_rule_export_to
        return len(export) == 1 and bool(export & {".", rule.namespace})


@dataclass(slots=True)
class _Merged:
    """DestinationRules for one host that became one (mergeDestinationRule)."""

    export: frozenset[str]
    selector: Labels | None
    names: set[str]


def _merge(rules: Iterable[DestinationRule]) -> list[_Merged]:
    merged: list[_Merged] = []
    for rule in rules:
        export = _export(rule)
        alone = True
        for one in merged:
            joins = export == one.export or (one.export and export >= one.export)
            alone = not joins or rule.workload_selector != one.selector
            if not alone:
                one.names.update(rule.subsets)
        if alone:
            merged.append(_Merged(export, rule.workload_selector, set(rule.subsets)))
    return merged


def _export(rule: DestinationRule) -> frozenset[str]:
    return frozenset({"."} if rule.workload_selector is not None else rule.export_to)


def _local(rule: DestinationRule) -> bool:
    export = _export(rule)
    return not export or bool(export & {"*", ".", rule.namespace})


def _names(merged: Iterable[_Merged], workload: Workload) -> frozenset[str]:
    """The first that selects these pods, else the last without a selector (SidecarScope.DestinationRule)."""
    found: set[str] = set()
    for one in merged:
        if one.selector is None:
            found = one.names
        elif all(workload.labels.get(name) == value for name, value in one.selector):
            return frozenset(one.names)
    return frozenset(found)
