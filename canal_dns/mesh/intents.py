"""Which names a VirtualService means to bind: its destinations and its hosts, whatever becomes of them.

Rules of this file:
- a name is kept in full, as the Service's; what Istio takes literally (`helloworld.default`) counts as meant, so that the
  person who wrote it is told;
- wildcards mean nobody in particular; mirrors and weight 0 count: that they bind nothing must be said too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from canal_dns.dns.names import service_name
from canal_dns.mesh.hosts import is_wildcard, meant_service, service_of
from canal_dns.mesh.records import frozen
from canal_dns.mesh.rules import Resolved


@frozen
class Intent:
    """One place where a VirtualService names a Service."""

    name: str
    """The Service's full name."""
    host: str
    """As Istio reads it."""
    owner: str
    """`namespace/name` of the VirtualService in which it is written (a delegate, perhaps)."""
    field: str
    kind: str
    """`destination`, `mirror`, `host` or `sni`."""

    @property
    def literal(self) -> bool:
        """The host is the Service's full name, letter for letter."""
        return self.host == self.name


def intents(resolved: Resolved, cluster_domain: str) -> Iterator[Intent]:
    """All places where it names a Service, in the order of the object."""
    for host, owner, field, kind in _places(resolved):
        if is_wildcard(host):
            continue
        key = service_of(host, cluster_domain) or meant_service(host, cluster_domain)
        if key is not None:
            yield Intent(service_name(key[1], key[0], cluster_domain), host, owner, field, kind)


def _places(resolved: Resolved) -> Iterator[tuple[str, str, str, str]]:
    for index, host in enumerate(resolved.hosts):
        yield host, resolved.key, f"spec.hosts[{index}]", "host"
    for rule in resolved.http:
        for index, one in enumerate(rule.written):
            yield one.host, rule.owner, f"{rule.field}.route[{index}].destination.host", "destination"
        for host in rule.mirrors:
            yield host, rule.owner, f"{rule.field}.mirror", "mirror"
    for unused in resolved.unused:
        for one in unused.destinations:
            yield one.host, unused.owner, unused.field, "destination"
    for route in (*resolved.tcp, *resolved.tls):
        for index, one in enumerate(route.destinations):
            yield one.host, resolved.key, f"{route.field}.route[{index}].destination.host", "destination"
        for number, match in enumerate(route.matches):
            for index, host in enumerate(match.sni_hosts):
                yield host, resolved.key, f"{route.field}.match[{number}].sniHosts[{index}]", "sni"


class Intents:
    """Name -> VirtualServices that mean it, for all of them."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[str, bool]] = {}
        self._by_source: dict[str, dict[str, bool]] = {}

    def put(self, key: str, found: Iterable[Intent]) -> set[str]:
        """Replace what a VirtualService means. Returns the names it meant or means."""
        old = self._by_source.pop(key, {})
        new: dict[str, bool] = {}
        for one in found:
            new[one.name] = new.get(one.name, False) or one.literal
        for name in old:
            del self._by_name[name][key]
            if not self._by_name[name]:
                del self._by_name[name]
        for name, literal in new.items():
            self._by_name.setdefault(name, {})[key] = literal
        if new:
            self._by_source[key] = new
        return {*old, *new}

    def sources(self, name: str) -> Mapping[str, bool]:
        """VirtualServices that mean the name -> whether one of its hosts is it, letter for letter."""
        return MappingProxyType(self._by_name.get(name, {}))

    def names(self) -> Iterable[str]:
        return self._by_name.keys()
