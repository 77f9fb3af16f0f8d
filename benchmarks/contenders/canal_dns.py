"""canal-dns as a pod with one CPU runs it: a control process and a worker (`workers: 1`), both counted, both on the one core.

As it is installed: nothing compiled; the packet loop calls recvmmsg and sendmmsg through the standard library's ctypes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import canal_dns
from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import HITS, NAMES, VIP, Scenario, own_address, service


class _Itself(Program):
    """Always there: the package beside this one, run by the Python that runs the benchmark."""

    def find(self) -> Path | None:
        return Path(sys.executable)

    def version(self, binary: Path) -> str:
        return canal_dns.__version__


CANAL_DNS = _Itself("canal-dns", "", "")


def manifests() -> list[dict[str, Any]]:
    """One internal gateway with one Gateway, and 1,000 Services, each with a VirtualService of its exact name."""
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
    for number in range(NAMES):
        name, namespace = service(number, "bound")
        host = f"{name}.{namespace}.svc.cluster.local"
        spec = {"clusterIP": own_address(number, "bound"), "ports": ports}
        objects.append(_object("v1", "Service", name, namespace, spec=spec))
        route = {"route": [{"destination": {"host": host}}]}
        spec = {"hosts": [host], "gateways": ["istio-system/internalgateway"], "http": [route]}
        objects.append(_object("networking.istio.io/v1", "VirtualService", name, namespace, spec=spec))
    return objects


def _object(
    api: str, kind: str, name: str, namespace: str, labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-05T08:00:00Z"}
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


class _CanalDns(Contender):
    key = "canal-dns"
    program = CANAL_DNS

    def write(self, site: Site) -> list[str]:
        folder = site.folder / "manifests"
        folder.mkdir()
        (folder / "cluster.json").write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": manifests()}))
        config = site.write(
            "canal-dns.yaml",
            f"""\
listen: ["127.0.0.1:{site.port}"]
upstreams: ["127.0.0.1:{site.upstream_port}"]
gateways: [{{service: istio-system/internalgateway}}]
source: {{manifests: {folder}}}
workers: 1
lameduck: 0s
admin: "off"
binding: {{settle: 0s}}
log: {{level: warning}}
""",
        )
        return [str(site.binary), "-m", "canal_dns", "serve", "-c", str(config)]


class CanalDnsHits(_CanalDns):
    scenario = HITS.name
    note = "pure Python (sendmmsg by ctypes); 1,000 bound names; `workers: 1`: control process and worker, both counted"


class CanalDnsForward(_CanalDns):
    scenario = "forward"
    note = "pure Python; the same configuration (1,000 names bound), asked for others; `upstreamSentinel: do`, the default"

    def addresses(self, scenario: Scenario) -> dict[str, str]:
        """With a bound name as the last: it forwards before its table is there, and loading that is not to be measured."""
        return {**scenario.addresses, next(iter(HITS.addresses)): VIP}
