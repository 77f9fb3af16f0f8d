"""Every object, as last seen: apply, delete, reset; what changed since the rule last looked.

Rules of this file:
- level-triggered: the same three calls serve an event, a relist and a file; the answer is "did anything change?";
- an update that leaves the record equal (status, annotations that nobody reads) is no change;
- an object that became unusable takes the place of its former self: what is not understood is not served from memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, cast

from canal_dns.mesh.records import (
    KINDS,
    DestinationRule,
    EndpointSlice,
    Gateway,
    Namespace,
    Pod,
    Record,
    Service,
    Skip,
    VirtualService,
)

Key = tuple[str, str]
"""(namespace, name); the namespace of a Namespace is ""."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after; None where it was not there or not usable: both, if only why it is not is another."""

    kind: str
    key: Key
    old: Record | None
    new: Record | None


class View:
    """The objects of one cluster, or of a folder of manifests."""

    def __init__(self, records: Iterable[Record | Skip] = ()) -> None:
        self._records: dict[str, dict[Key, Record]] = {kind: {} for kind in KINDS}
        self._skips: dict[str, dict[Key, Skip]] = {kind: {} for kind in KINDS}
        self._slices: dict[Key, dict[str, EndpointSlice]] = {}
        self._pods: dict[str, dict[str, Pod]] = {}
        self._before: dict[tuple[str, Key], Record | Skip | None] = {}
        self._unavailable: frozenset[str] = frozenset()
        self.services = cast(Mapping[Key, Service], MappingProxyType(self._records["Service"]))
        self.namespaces = cast(Mapping[Key, Namespace], MappingProxyType(self._records["Namespace"]))
        self.gateways = cast(Mapping[Key, Gateway], MappingProxyType(self._records["Gateway"]))
        self.virtual_services = cast(Mapping[Key, VirtualService], MappingProxyType(self._records["VirtualService"]))
        self.destination_rules = cast(Mapping[Key, DestinationRule], MappingProxyType(self._records["DestinationRule"]))
        for record in records:
            self.apply(record)

    def apply(self, record: Record | Skip) -> bool:
        """Take an object as it is now. True if that changes anything that the rule reads."""
        return self._put(record.kind, (record.namespace, record.name), record)

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Forget an object. True if it was known."""
        return self._put(kind, (namespace, name), None)

    def reset(self, kind: str, records: Iterable[Record | Skip]) -> bool:
        """Replace all objects of a kind by these (a relist). True if anything changed."""
        changed = False
        kept = set()
        for record in records:
            kept.add((record.namespace, record.name))
            changed |= self.apply(record)
        for key in self.keys(kind):
            if key not in kept:
                changed |= self.delete(kind, *key)
        return changed

    def set_unavailable(self, kinds: Iterable[str]) -> bool:
        """Name the kinds that may not be read (RBAC). True if that is news.

        The rule can do without DestinationRules (a subset counts as existing), EndpointSlices (gateways count as ready), Pods
        (a Service's selector stands for their labels) and Namespaces (none has opted out); the others it has to have.
        """
        before, self._unavailable = self._unavailable, frozenset(kinds)
        return before != self._unavailable

    @property
    def unavailable(self) -> frozenset[str]:
        return self._unavailable

    def drain(self) -> list[Change]:
        """What changed since the last call, one entry per object; objects that are back as they were are left out."""
        before, self._before = self._before, {}
        changes = []
        for (kind, key), old in before.items():
            new = self._state(kind, key)
            if new != old:
                changes.append(Change(kind, key, _usable(old), _usable(new)))
        return changes

    def slices(self, namespace: str, service: str) -> tuple[EndpointSlice, ...]:
        """The EndpointSlices of a Service, by name."""
        known = self._slices.get((namespace, service), {})
        return tuple(known[name] for name in sorted(known))

    def pods(self, namespace: str) -> Mapping[str, Pod]:
        """The Pods of a namespace, by name."""
        return MappingProxyType(self._pods.get(namespace, {}))

    def skips(self) -> list[Skip]:
        """Objects that cannot be used, by kind, namespace and name."""
        return [self._skips[kind][key] for kind in KINDS for key in sorted(self._skips[kind])]

    def skip(self, kind: str, key: Key) -> Skip | None:
        """Why an object that is there cannot be used."""
        return self._skips[kind].get(key)

    def find(self, kind: str, key: Key) -> Record | Skip | None:
        """An object as last seen, usable or not."""
        return self._state(kind, key)

    def keys(self, kind: str) -> list[Key]:
        """Every object of a kind, usable or not."""
        return [*self._records[kind], *self._skips[kind]]

    def count(self, kind: str) -> int:
        """Usable objects of a kind."""
        return len(self._records[kind])

    def _state(self, kind: str, key: Key) -> Record | Skip | None:
        return self._records[kind].get(key) or self._skips[kind].get(key)

    def _put(self, kind: str, key: Key, new: Record | Skip | None) -> bool:
        old = self._state(kind, key)
        if old == new:
            return False
        self._before.setdefault((kind, key), old)
        self._records[kind].pop(key, None)
        self._skips[kind].pop(key, None)
        if isinstance(new, Skip):
            self._skips[kind][key] = new
        elif new is not None:
            self._records[kind][key] = new
        self._index(old, new)
        return True

    def _index(self, old: Record | Skip | None, new: Record | Skip | None) -> None:
        if isinstance(old, EndpointSlice):
            _drop(self._slices, (old.namespace, old.service), old.name)
        elif isinstance(old, Pod):
            _drop(self._pods, old.namespace, old.name)
        if isinstance(new, EndpointSlice):
            self._slices.setdefault((new.namespace, new.service), {})[new.name] = new
        elif isinstance(new, Pod):
            self._pods.setdefault(new.namespace, {})[new.name] = new


def _usable(state: Record | Skip | None) -> Record | None:
    return None if isinstance(state, Skip) else state


I = TypeVar("I")  # noqa: E741


def _drop(index: dict[I, dict[str, R]], key: I, name: str) -> None:
    del index[key][name]
    if not index[key]:
        del index[key]
