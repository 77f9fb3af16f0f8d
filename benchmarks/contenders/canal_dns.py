"""canal-dns as a pod with one CPU runs it: a control process and a worker (`workers: 1`), both counted, both on the one core.

Three contenders, by the filling of the packet loop (`canal_dns_build_info{batch}`, which is asked before anything is measured):
`canal-dns` the compiled one, `canal-dns mmsg` what runs where nothing was compiled (recvmmsg and sendmmsg through the standard
library's ctypes), `canal-dns pure` the plainest Python.

Rules of this file:
- the table comes the way it comes in a cluster: objects, read by the control process; 100,000 names come as a restart without
  an API server has them: from the file that the server itself saves (reading so many manifests takes minutes);
- nothing else is put into the server; it is the one that is installed;
- the same configuration everywhere, but for `cache`, which a scenario has or not.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import canal_dns
from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.contenders.coredns import COREDNS, stub_corefile
from benchmarks.errors import BenchError
from benchmarks.scenarios import HITS, NAMES, VIP, Scenario, bound, own_address, service
from canal_dns.app import snapshot

NATIVE, MMSG, PURE = "native", "mmsg", "pure"
UNCOMPILED = Path(__file__).with_name("uncompiled")
"""In PYTHONPATH, it keeps canal-dns from finding its extensions."""
_ENVIRONMENT = {NATIVE: {}, MMSG: {"PYTHONPATH": str(UNCOMPILED)}, PURE: {"CANAL_DNS_NO_EXTENSIONS": "1"}}
FROM_FILE = 50_000
"""Tables of more names come from the saved table."""
_NOTES = {
    NATIVE: "the compiled packet loop",
    MMSG: "nothing compiled: recvmmsg and sendmmsg by ctypes",
    PURE: "nothing but Python: `CANAL_DNS_NO_EXTENSIONS=1`",
}


class _Itself(Program):
    """Always there: the package beside this one, run by the Python that runs the benchmark."""

    def find(self) -> Path | None:
        return Path(sys.executable)

    def version(self, binary: Path) -> str:
        return canal_dns.__version__


CANAL_DNS = _Itself("canal-dns", "", "")


def manifests(count: int = NAMES) -> list[dict[str, Any]]:
    """One internal gateway with one Gateway, and so many Services, each with a VirtualService of its exact name."""
    labels = {"istio": "internalgateway"}
    ports = [{"name": "http", "port": 80}]
    objects: list[dict[str, Any]] = [
        _object(
            "v1", "Service", "internalgateway", "istio-system", spec={"clusterIP": VIP, "selector": labels, "ports": ports}
        ),
        _object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "internalgateway-x7k2p",
            "istio-system",
            labels={"kubernetes.io/service-name": "internalgateway"},
            addressType="IPv4",
            endpoints=[
                {
                    "addresses": ["10.244.9.9"],
                    "conditions": {"ready": True},
                    "targetRef": {"kind": "Pod", "namespace": "istio-system", "name": "internalgateway-0"},
                }
            ],
            ports=ports,
        ),
        _object("v1", "Pod", "internalgateway-0", "istio-system", labels=labels, status={"podIP": "10.244.9.9"}),
        _object(
            "networking.istio.io/v1",
            "Gateway",
            "internalgateway",
            "istio-system",
            spec={
                "selector": labels,
                "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
            },
        ),
    ]
    for number in range(count):
        name, namespace = service(number, "bound")
        host = f"{name}.{namespace}.svc.cluster.local"
        spec = {"clusterIP": own_address(number, "bound"), "ports": ports}
        objects.append(_object("v1", "Service", name, namespace, spec=spec))
        route = {"route": [{"destination": {"host": host}}]}
        spec = {"hosts": [host], "gateways": ["istio-system/internalgateway"], "http": [route]}
        objects.append(_object("networking.istio.io/v1", "VirtualService", name, namespace, spec=spec))
    return objects


def save(path: Path, origin: str, count: int) -> None:
    """The table of so many bound names, as a server that reads `origin` has saved it."""
    entry = snapshot.Entry((VIP,), (), 5, "istio-system/internalgateway")
    names = dict.fromkeys(bound(count), entry)
    version = canal_dns.__version__
    snapshot.write(path, snapshot.Snapshot(time.time(), version, origin, "cluster.local", names, ("10.244.9.9",)))


def _object(
    api: str, kind: str, name: str, namespace: str, labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-05T08:00:00Z"}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


class CanalDns(Contender):
    """One filling of the packet loop. `count`: bound names. `cache`: answers of the upstream are kept."""

    program: Program = CANAL_DNS
    children = "workers"

    def __init__(self, scenario: str, filling: str, count: int = NAMES, *, cache: bool = False) -> None:
        super().__init__(scenario)
        self.key = "canal-dns" if filling == NATIVE else f"canal-dns {filling}"
        self.environment = _ENVIRONMENT[filling]
        source = "from the saved table" if count > FROM_FILE else "from manifests"
        names = f"{count:,} bound names {source}"
        self.note = f"{_NOTES[filling]}; {names}, `cache` {'on' if cache else 'off'}; a control process and a worker"
        self._filling = filling
        self._count = count
        self._cache = cache

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        """With a bound name as the last: before its table is there it forwards, and loading that is not to be measured."""
        return {**scenario.addresses, next(iter(HITS.addresses)): VIP}

    def write(self, site: Site) -> list[str]:
        return self.command(site, Path(sys.executable), site.port, site.upstream_port)

    def commands(self, site: Site) -> dict[str, list[str]]:
        return {"control": self.write(site)}

    def command(self, site: Site, python: Path, port: int, upstream_port: int) -> list[str]:
        folder = site.folder / "manifests"
        saved = site.folder / "table" if self._count > FROM_FILE else None
        if saved:
            save(saved, f"manifests {folder}", self._count)
        else:
            folder.mkdir()
            everything = {"kind": "List", "apiVersion": "v1", "items": manifests(self._count)}
            (folder / "cluster.json").write_text(json.dumps(everything))
        cache = "" if self._cache else "cache: {size: 0}\n"
        config = site.write(
            "canal-dns.yaml",
            f"""\
listen: ["127.0.0.1:{port}"]
upstreams: ["127.0.0.1:{upstream_port}"]
gateways: [{{service: istio-system/internalgateway}}]
source: {{manifests: {folder}}}
workers: 1
lameduck: 0s
admin: "127.0.0.1:{site.second_port}"
binding: {{settle: 0s}}
access: {{peers: [127.0.0.1/32]}}
limits: {{tcpQueriesPerConnection: 1000000}}
log: {{level: warning}}
snapshot: {{path: "{saved or ""}"}}
{cache}""",
        )
        return [str(python), "-m", "canal_dns", "serve", "-c", str(config)]

    def verify(self, site: Site) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{site.second_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        forwarding = self._filling if self._filling == NATIVE else "pure"
        for part, wanted in (("batch", self._filling), ("forwarding", forwarding)):
            found = re.search(rf'^canal_dns_build_info\{{[^}}]*{part}="(\w+)"', text, re.MULTILINE)
            runs = found.group(1) if found else "?"
            if runs != wanted:
                raise BenchError(f"its {part} is {runs!r}, not {wanted!r}")


class Chain(CanalDns):
    """CoreDNS with the stub block in front, canal-dns behind it, and CoreDNS again for what is not bound."""

    program = COREDNS
    children = "canal-dns"

    def __init__(self, scenario: str, *, cache: bool) -> None:
        super().__init__(scenario, NATIVE, cache=cache)
        self.key = "+ canal-dns" if cache else "+ canal-dns uncached"
        self.environment = {**self.environment, "GOMAXPROCS": "1"}
        again = "is asked of CoreDNS again, once for all until the cache forgets" if cache else "passes CoreDNS twice"
        self.note = f"CoreDNS with the stub block of Layout B, canal-dns behind it; what is not bound {again}"

    def commands(self, site: Site) -> dict[str, list[str]]:
        port = site.third_port
        corefile = stub_corefile(site, port)
        return {
            "coredns": [str(site.binary), "-conf", str(corefile), "-quiet"],
            "canal-dns": self.command(site, Path(sys.executable), port, site.port),
        }
