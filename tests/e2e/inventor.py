"""What becomes of invented objects, step by step.

Rules of this file:
- one seed again: the same refusals of the API server give the same steps;
- an object changes by one field of a freshly invented one, or by one entry of its list, so that most of it stays;
- each operation is made when the one before is kept: what the cluster refused is not built upon.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e import objects
from tests.e2e.cluster import fqdn
from tests.e2e.invention import PORT_NAMES, SYSTEM, Invention, Object, key_of, ports


@dataclass(frozen=True, slots=True)
class Operation:
    """What is done to the cluster: create | change | delete."""

    verb: str
    thing: Object

    def __str__(self) -> str:
        kind, namespace, name = key_of(self.thing)
        return f"{self.verb} {kind} {namespace}/{name}"


class Inventor(Invention):
    """All the objects, as the cluster has them."""

    def services(self) -> Iterator[Operation]:
        """The Services at the beginning, none of which is bound."""
        for name, namespace in self.shapes:
            yield Operation("create", self.service(name, namespace))
        spec = {"type": "ExternalName", "externalName": self.pick(self.full)}
        yield Operation("create", objects.made("v1", "Service", "alias", "default", spec=spec))
        name, namespace = self.peers.split(".")
        yield Operation("create", objects.service(name, namespace, clusterIP="None"))

    def chapter(self) -> Iterator[Operation]:
        """All of Istio's objects make room for new ones, about other Services."""
        for key in [key for key in self.objects if key[0] != "Service"]:
            yield Operation("delete", self.objects[key])
        self.focus = self.chance.sample(self.full, self.pick((2, 3, 3, 4)))
        for make, numbers in (
            (self.gateway, ((1, 55), (2, 32), (3, 13))),
            (self.virtual_service, ((2, 25), (3, 35), (4, 25), (5, 15))),
            (self.rule, ((0, 30), (1, 30), (2, 25), (3, 15))),
        ):
            for _ in range(self.weighed(numbers)):
                yield self._put(make())
        for namespace, name in sorted(self._delegates()):
            if self.odds(0.85):
                yield self._put(self.delegate(namespace, name))

    def step(self) -> Iterator[Operation]:
        """A few changes, each made when the one before is kept."""
        for _ in range(self.weighed(((1, 40), (2, 30), (3, 20), (4, 10)))):
            act = self.weighed(((self._change, 46), (self._add, 25), (self._drop, 15), (self._change_service, 14)))
            operation = act()
            if operation is not None:
                yield operation

    def keep(self, operation: Operation) -> None:
        """The cluster has taken it."""
        if operation.verb == "delete":
            del self.objects[key_of(operation.thing)]
        else:
            self.objects[key_of(operation.thing)] = operation.thing

    def there(self) -> dict[str, bool]:
        """Of every name, whether the cluster has such a Service."""
        services = {fqdn(f"{name}.{namespace}") for kind, namespace, name in self.objects if kind == "Service"}
        return {name: name in services for name in self.names}

    def _put(self, thing: Object) -> Operation:
        return Operation("change" if key_of(thing) in self.objects else "create", thing)

    def _change(self) -> Operation | None:
        some = self.of("Gateway", "VirtualService", "VirtualService", "DestinationRule")
        if not some:
            return None
        thing = copy.deepcopy(self.pick(some))
        kind, namespace, name = key_of(thing)
        spec = thing["spec"]
        if kind == "VirtualService" and "hosts" not in spec:
            fresh = self.delegate(namespace, name)["spec"]
        else:
            make = {"Gateway": self.gateway, "VirtualService": self.virtual_service, "DestinationRule": self.rule}[kind]
            fresh = make(namespace)["spec"]
        field = self.pick(sorted({*spec, *fresh} - ({"hosts"} if "hosts" not in spec else set())))
        if field in fresh and isinstance(spec.get(field), list) and isinstance(fresh[field], list) and self.odds(0.6):
            self._change_entry(spec[field], fresh[field])
        elif field in fresh:
            spec[field] = fresh[field]
        elif field not in ("hosts", "servers", "host") and len(set(spec) & {"http", "tcp", "tls"} - {field}) >= (
            kind == "VirtualService"
        ):
            del spec[field]
        return Operation("change", thing)

    def _change_entry(self, old: list[Any], fresh: list[Any]) -> None:
        how = self.pick(("replace", "insert", "take", "swap"))
        place = self.chance.randrange(len(old)) if old else 0
        if how == "swap" and len(old) > 1:
            old[0], old[-1] = old[-1], old[0]
        elif how == "take" and len(old) > 1:
            del old[place]
        elif how == "replace" and old:
            old[place] = self.pick(fresh)
        else:
            old.insert(place, self.pick(fresh))
        if all(isinstance(one, str) for one in old):
            old[:] = ["*/*"] if "*/*" in old else list(dict.fromkeys(old))

    def _add(self) -> Operation | None:
        make = self.weighed(((self.virtual_service, 55), (self.rule, 25), (self.gateway, 20)))
        kind = {self.virtual_service: "VirtualService", self.rule: "DestinationRule", self.gateway: "Gateway"}[make]
        if len(self.of(kind)) >= {"VirtualService": 7, "DestinationRule": 4, "Gateway": 4}[kind]:
            return self._drop()
        missing = sorted(self._delegates() - {key[1:] for key in self.objects if key[0] == "VirtualService"})
        if missing and self.odds(0.5):
            return self._put(self.delegate(*self.pick(missing)))
        return self._put(make())

    def _drop(self) -> Operation | None:
        some = self.of("Gateway", "VirtualService", "DestinationRule")
        return Operation("delete", self.pick(some)) if len(some) > 2 else None

    def _change_service(self) -> Operation | None:
        missing = [shape for shape in self.shapes if ("Service", shape[1], shape[0]) not in self.objects]
        asked_for = [shape for shape in self.shapes if fqdn(f"{shape[0]}.{shape[1]}") in self.focus]
        name, namespace = self.pick(missing if missing and self.odds(0.5) else asked_for if self.odds(0.7) else [*self.shapes])
        old = self.objects.get(("Service", namespace, name))
        if old is None:
            return Operation("create", self.service(name, namespace))
        if self.odds(0.3):
            return Operation("delete", old)
        thing = self.service(name, namespace)
        opened = set(self.shapes[name, namespace])
        if self.odds(0.5):
            opened ^= {self.pick(list(PORT_NAMES))}
        thing["spec"]["ports"] = ports(sorted(opened or {80}), udp=self.odds(0.1))
        annotation = self.weighed(
            (
                ({}, 62),
                ({"networking.istio.io/exportTo": self.pick((".", SYSTEM, "*", "~"))}, 30),
                ({"canal-dns.io/bind": "false"}, 8),
            )
        )
        thing["metadata"]["annotations"] = annotation
        return Operation("change", thing)

    def _delegates(self) -> set[tuple[str, str]]:
        """(namespace, name) that some VirtualService delegates to."""
        return {
            (route["delegate"].get("namespace", key[1]), route["delegate"]["name"])
            for key, thing in self.objects.items()
            if key[0] == "VirtualService" and "hosts" in thing["spec"]
            for route in thing["spec"].get("http", [])
            if "delegate" in route
        }
