"""Puts the content into the cluster: through the API server by processes beside each other, or, where that would take an hour,
as a backup is restored: into etcd, in the form that the API server gave to the first object of each shape.

Rules of this file:
- what is there already stays: a cluster that was kept is completed, not made again;
- a status is written after its object, as a controller would.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.scale import content
from benchmarks.scale.content import Object, Size
from benchmarks.scale.noise import Etcd
from benchmarks.scale.probe import administrator
from tests.e2e.controlplane import HOST, PORT
from tests.e2e.kube import VERSIONS, Kube
from tests.e2e.processes import until

PROCESSES = 8
BY_API = 2000
"""Up to so many Services everything goes through the API server. It counts all allocated addresses with each allocation, twice:
with 10,000 of them one Service costs it 60 ms of CPU."""
_KINDS = ("Namespace", "Service", "EndpointSlice", "VirtualService")
_ROOT = Path(__file__).parents[2]


def client(folder: Path) -> Kube:
    """The administrator's, in whatever process."""
    return Kube(HOST, PORT, administrator(folder))


def fill(folder: Path, size: Size) -> None:
    """Make what is missing. `folder`: the control plane's. Raises ApiError, BenchError."""
    kube = client(folder)
    create(kube, content.gateway(), anew=True)
    wanted = zip(_KINDS, (size.namespaces, size.services, size.services, size.virtual_services), strict=True)
    if all(_count(kube, kind) >= count for kind, count in wanted):
        mend(kube, size)
        kube.close()
        return
    if size.services > BY_API:
        restore(kube, size)
        kube.close()
        return
    kube.close()
    for what in ("namespaces", "rest"):
        command = [sys.executable, "-m", "benchmarks.scale.fill", what, str(folder), *map(str, dataclasses.astuple(size))]
        running = [subprocess.Popen([*command, str(part)], cwd=_ROOT) for part in range(PROCESSES)]
        codes = [one.wait() for one in running]
        if any(codes):
            raise BenchError("the cluster could not be filled")


def mend(kube: Kube, size: Size) -> None:
    """Undo what a measurement that was cut off has left."""
    kube.remove(*(one for one in _known(kube, "Gateway") if one["metadata"]["name"] != content.GATEWAY))
    right = {kube.path(one): one for one in content.rest(size) if one["kind"] == "VirtualService"}
    for found in _known(kube, "VirtualService"):
        wanted = right.get(kube.path(found))
        if wanted is None:
            kube.remove(found)
        elif found["spec"]["gateways"] != wanted["spec"]["gateways"]:
            kube.apply(wanted)


def restore(kube: Kube, size: Size) -> None:
    """Like a backup: what the API server makes of the first object of each shape is written into etcd for all the others."""
    there = {kube.path(one) for kind in _KINDS for one in _known(kube, kind)}
    shapes: dict[object, Object] = {}
    puts: list[Object] = []
    with Etcd() as etcd:
        for number, thing in enumerate([*content.namespaces(size), *content.rest(size)]):
            if kube.path(thing) in there:
                continue
            shape = _shape(thing)
            if shape not in shapes:
                shapes[shape] = _made(kube, thing)
                continue
            whole = _like(shapes[shape], thing)
            whole["metadata"]["uid"] = str(uuid.uuid5(uuid.NAMESPACE_DNS, kube.path(thing)))
            puts.append(etcd.put(_key(thing), whole))
            if thing["kind"] == "Service" and thing["spec"].get("clusterIP") != "None":
                address = f"10.96.{16 + number // 250}.{1 + number % 250}"
                whole["spec"] |= {"clusterIP": address, "clusterIPs": [address]}
                puts[-1] = etcd.put(_key(thing), whole)
                puts.append(etcd.put(f"/registry/ipaddresses/{address}", _address(address, whole)))
            if len(puts) >= 100:
                etcd.write(puts)
                puts = []
        if puts:
            etcd.write(puts)
    until(lambda: len(kube.list("VirtualService")) >= size.virtual_services, 120, "the API server has seen all of it", 1.0)


def _count(kube: Kube, kind: str) -> int:
    """How many objects of a kind there are."""
    path = kube.path({"apiVersion": VERSIONS[kind], "kind": kind, "metadata": {"name": ""}}, collection=True)
    found = kube.request("GET", f"{path}?limit=1")
    return len(found["items"]) + int(found["metadata"].get("remainingItemCount", 0))


def _known(kube: Kube, kind: str) -> list[Object]:
    return [{**one, "kind": kind, "apiVersion": VERSIONS[kind]} for one in kube.list(kind)]


def _made(kube: Kube, thing: Object) -> Object:
    """What the API server makes of it, as it stands in etcd."""
    made = kube.create(thing)
    if "status" in thing:
        made = kube.status(thing)
    del made["metadata"]["resourceVersion"]
    return made


def _shape(thing: Object) -> object:
    spec = thing.get("spec", {})
    if thing["kind"] == "Service":
        return "Service", len(spec["ports"]), spec.get("clusterIP"), spec.get("type")
    return thing["kind"], "*" in spec.get("hosts", ())


def _like(made: Any, thing: Any) -> Any:
    """`thing` with everything that `made` has beside."""
    if isinstance(made, dict) and isinstance(thing, dict):
        both = {key: _like(made[key], value) if key in made else value for key, value in thing.items()}
        # Labels, annotations and selectors are the object's own.
        return both if all(isinstance(one, str) for one in made.values()) else {**made, **both}
    if isinstance(made, list) and isinstance(thing, list) and len(made) == len(thing):
        return [_like(one, other) for one, other in zip(made, thing, strict=True)]
    return thing


def _key(thing: Object) -> str:
    """Where the API server keeps it."""
    name, place = thing["metadata"]["name"], thing["metadata"].get("namespace")
    folder = {
        "Namespace": "namespaces",
        "Service": "services/specs",
        "EndpointSlice": "endpointslices",
        "VirtualService": "networking.istio.io/virtualservices",
    }[thing["kind"]]
    return "/".join(part for part in ("/registry", folder, place, name) if part)


def _address(address: str, service: Object) -> Object:
    """What the API server knows an allocated address by."""
    meta = service["metadata"]
    labels = {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }
    parent = {"resource": "services", "namespace": meta["namespace"], "name": meta["name"]}
    times = {"creationTimestamp": meta["creationTimestamp"], "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, address))}
    made = {"name": address, "labels": labels, **times}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": made, "spec": {"parentRef": parent}}


def create(kube: Kube, things: Iterable[Object], *, anew: bool = False) -> None:
    """What is there already stays as it is, or (`anew`) becomes as it was. Raises ApiError."""
    there: dict[str, set[str]] = {}
    for thing in things:
        kind = thing["kind"]
        if kind not in there:
            there[kind] = {kube.path(one) for one in _known(kube, kind)}
        if anew:
            kube.apply(thing)
        elif kube.path(thing) not in there[kind]:
            kube.create(thing)
        else:
            continue
        if "status" in thing:
            kube.status(thing)


def main(what: str, folder: Path, size: Size, part: int) -> None:
    things = content.namespaces(size) if what == "namespaces" else content.rest(size)
    create(client(folder), itertools.islice(things, part, None, PROCESSES))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Size(*map(int, sys.argv[3:6])), int(sys.argv[6]))
