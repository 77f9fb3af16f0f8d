"""The whole cluster of the end-to-end tests: control plane, mesh, workloads, and the pod that asks.

Rules of this file:
- one cluster for a whole run; tests use fresh names (`fresh`) and take away what they made (`Workload.remove`);
- a workload is Service + EndpointSlice + backends on its pod addresses, and on its ClusterIP, as kube-proxy would do it:
  a reply from the ClusterIP is a request that did not take the way through the gateway;
- `curl` is the pod's: through libc, /etc/resolv.conf and whatever DNS stands at 10.96.0.10.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import mesh, objects
from tests.e2e.backends import Backends
from tests.e2e.cluster import fqdn
from tests.e2e.controlplane import ControlPlane
from tests.e2e.kube import Kube
from tests.e2e.mesh import Mesh

PORT = 5000
"""What the workloads of the flows open."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What `curl` got. `status` 0: no HTTP answer; `problem` says why, in curl's words."""

    status: int
    address: str
    """Where curl connected to: the VIP, or the Service's own address."""
    headers: Mapping[str, str]
    body: str
    seconds: float
    problem: str = ""

    @property
    def said(self) -> dict[str, Any]:
        """The backend's own words; empty when no backend answered."""
        try:
            return dict(json.loads(self.body))
        except ValueError:
            return {}

    @property
    def service(self) -> str:
        """Which workload answered; empty when none did."""
        return str(self.said.get("service", ""))

    @property
    def version(self) -> str:
        return str(self.said.get("version", ""))

    @property
    def through_gateway(self) -> bool:
        return bool(self.said.get("gateway", False))

    def __str__(self) -> str:
        way = "through the gateway" if self.through_gateway else "past the gateway"
        what = f"{self.service} {self.version} {way}" if self.said else self.body.strip() or self.problem
        return f"{self.status or 'no reply'} from {self.address or '-'}: {what}"


@dataclass(frozen=True, slots=True)
class Workload:
    """A Service with its pods."""

    name: str
    namespace: str
    cluster_ip: str
    port: int
    made: tuple[objects.Object, ...]
    world: World

    @property
    def host(self) -> str:
        """helloworld.default.svc.cluster.local"""
        return fqdn(f"{self.name}.{self.namespace}")

    @property
    def short(self) -> str:
        """helloworld.default"""
        return f"{self.name}.{self.namespace}"

    @property
    def backend(self) -> str:
        """Its name among the backends."""
        return self.short

    def url(self, path: str = "/hello", *, host: str = "") -> str:
        return f"http://{host or self.short}:{self.port}{path}"

    def requests(self) -> int:
        """How many requests its backends have got, whatever way they came."""
        return sum(self.world.backends.requests(self.backend).values())

    def remove(self) -> None:
        self.world.kube.remove(*self.made)
        self.world.backends.close(self.backend)


class World:
    """Started once per run; DNS is put in front of it by `sites`."""

    def __init__(self, binaries: Mapping[str, Path], folder: Path, *, apiserver_flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self.control = ControlPlane(binaries, folder, apiserver_flags)
        self.mesh = Mesh(binaries, folder, self.control)
        self.backends = Backends(folder)
        self._numbers = itertools.count(1)
        self._pods = itertools.count(1)

    @property
    def kube(self) -> Kube:
        return self.control.kube

    def start(self) -> None:
        self.control.start()
        self.backends.start()
        self.mesh.start()

    def end(self) -> None:
        self.mesh.end()
        self.backends.end()
        self.control.end()

    def fresh(self, stem: str) -> str:
        """A name that no test of this run has used: "helloworld-7"."""
        return f"{stem}-{next(self._numbers)}"

    def pod_ip(self) -> str:
        """An address of the pod network that nobody has."""
        number = next(self._pods)
        return f"10.244.{100 + number // 250}.{1 + number % 250}"

    def workload(
        self, name: str, namespace: str = "default", *, versions: Sequence[str] = ("v1",), port: int = PORT,
        on_cluster_ip: bool = True, pods: bool = False, annotations: Mapping[str, str] | None = None,
        selector: Mapping[str, str] | None = None,
    ) -> Workload:  # fmt: skip
        """Service, EndpointSlice and a backend per version, listening.

        `pods`: Pod objects too, labelled `app` and `version`: subsets of a DestinationRule need them.
        `on_cluster_ip`: the first version answers at the ClusterIP, as one of the pods would behind kube-proxy.
        """
        ports = ((port, "http"),)
        thing = objects.service(name, namespace, ports=ports, selector=selector)
        if annotations:
            thing["metadata"]["annotations"] = dict(annotations)
        cluster_ip = str(self.kube.create(thing)["spec"]["clusterIP"])
        addresses = [self.pod_ip() for _ in versions]
        names = [f"{name}-{version}" for version in versions] if pods else []
        made = [thing]
        for pod_name, version, address in zip(names, versions, addresses, strict=False):
            labels = {**(selector or {"app": name}), "version": version}
            made.append(objects.pod(pod_name, namespace, address, labels))
            self.kube.create(made[-1])
            self.kube.status(made[-1])
        for version, address in zip(versions, addresses, strict=True):
            self.backends.serve(f"{name}.{namespace}", (address, port), version=version)
        if on_cluster_ip:
            self.backends.serve(f"{name}.{namespace}", (cluster_ip, port), version=versions[0])
        made.append(objects.endpoint_slice(name, namespace, addresses, ports=ports, pods=names))
        self.kube.create(made[-1])
        return Workload(name, namespace, cluster_ip, port, tuple(made), self)


_MARK = "\n\x1e"  # between body and what curl says of it
_WRITE_OUT = (
    _MARK + '{"status": "%{http_code}", "address": "%{remote_ip}", "seconds": %{time_total}, "headers": %{header_json}}'
)


def curl(url: str, *arguments: str, timeout: float = 10) -> Reply:
    """As the pod: `curl ARGUMENTS URL`, a process and a connection of its own."""
    command = ["curl", "--silent", "--show-error", "--max-time", str(timeout), "--write-out", _WRITE_OUT, *arguments, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout + 10, check=False)
    body, _, written = done.stdout.rpartition(_MARK)
    told = json.loads(written)
    headers = {key: values[0] for key, values in told.pop("headers").items()}
    status = int(told.pop("status"))  # "000" without an answer
    return Reply(status, headers=headers, body=body, problem=done.stderr.strip(), **told)


VIP = mesh.VIP
