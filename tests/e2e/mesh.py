"""istiod and one internal gateway: a vanilla Envoy that istiod programs, with its Service, EndpointSlice and Pod.

Rules of this file:
- Envoy gets everything over plaintext xDS; with a ServiceAccount's token, so that it may ask for the certificates of
  Gateways (`credentialName`) too;
- a listener binds the gateway Service's target port on every address of the namespace; without kube-proxy the VIP is one
  of them, so target port and port are the same;
- what the gateway really routes is read from its `/config_dump`, never assumed: `routes`, `has_route`;
- Envoy and istiod stand at fixed ports of 127.0.0.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e import objects
from tests.e2e.controlplane import ControlPlane
from tests.e2e.processes import Process, http, until

ADMIN = "127.0.0.1:15000"
XDS_PORT = 15010
_READY = "http://127.0.0.1:15080/ready"

NAMESPACE = "istio-system"
NAME = "internalgateway"
VIP = "10.96.9.9"
POD_IP = "10.244.9.9"
LABELS = {"istio": NAME, "app": "canal-gateway"}
PORTS: tuple[objects.Port, ...] = ((80, "http"), (443, "https"), (5000, "http-canal"), (8443, "tls"), (9000, "tcp"))
"""What the gateway Service opens; Envoy listens on those that Gateways name."""

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_SWITCHES = {
    "PILOT_ENABLE_ALPN_FILTER": "false",  # these three: filters of Istio's own Envoy, which another one rejects
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_DISABLE_MX_ALPN": "true",
    "PILOT_ENABLE_TELEMETRY_LABEL": "false",
    "ENABLE_CA_SERVER": "false",
    "PILOT_CERT_PROVIDER": "none",
    "POD_NAMESPACE": NAMESPACE,
    "POD_NAME": "istiod",
    "XDS_AUTH_PLAINTEXT": "true",
}


class Mesh:
    """`control` must run before `start`. `access_log`: id header | route | cluster | status | flags, one line per request."""

    def __init__(self, binaries: Mapping[str, Path], folder: Path, control: ControlPlane) -> None:
        self.folder = folder
        self.control = control
        self.access_log = folder / "access.log"
        # without automatic mutual TLS: Envoy would wait for certificates that nobody here gives out
        form = "%REQ(X-ID)%|%ROUTE_NAME%|%UPSTREAM_CLUSTER%|%RESPONSE_CODE%|%RESPONSE_FLAGS%\n"
        settings = {"enableAutoMtls": False, "accessLogFile": str(self.access_log), "accessLogFormat": form}
        (folder / "mesh").write_text(json.dumps(settings | {"accessLogEncoding": "TEXT"}))
        self.istiod = Process(
            [str(binaries["pilot-discovery"]), "discovery", "--kubeconfig", str(control.kubeconfig),
             "--httpAddr", "127.0.0.1:15080", "--grpcAddr", f"127.0.0.1:{XDS_PORT}", "--secureGRPCAddr", "",
             "--httpsAddr", "", "--monitoringAddr", "127.0.0.1:15014", "--meshConfig", str(folder / "mesh")],
            folder / "istiod.log", _SWITCHES,
        )  # fmt: skip
        [envoy] = (path for name, path in binaries.items() if name.startswith("envoy"))
        self.envoy = Process(
            [str(envoy), "-c", str(folder / "envoy.json"), "--log-level", "warn", "--concurrency", "1",
             "--disable-hot-restart",  # its shared memory belongs to the machine, not to this namespace
             "--drain-time-s", "5", "--drain-strategy", "immediate", "--file-flush-interval-msec", "20"],
            folder / "envoy.log",
        )  # fmt: skip

    def start(self) -> None:
        """Until istiod is ready and Envoy has what it knows: some three seconds."""
        for thing in gateway_objects():
            self.control.kube.apply(thing)
            if "status" in thing:
                self.control.kube.status(thing)
        account = "internalgateway"
        self.control.account(NAMESPACE, account)
        self.control.kube.apply(_token_reader(account))
        token = self.control.kube.token(NAMESPACE, account, 36000, audience="istio-ca")
        (self.folder / "envoy.json").write_text(json.dumps(_bootstrap(token, account)))
        self.istiod.launch()
        until(lambda: self.istiod.alive() and http(_READY)[0] == 200, 60, self.istiod.said)
        self.start_envoy()

    def start_envoy(self) -> None:
        self.envoy.launch()
        until(lambda: self.envoy.alive() and http(f"http://{ADMIN}/ready")[0] == 200, 60, self.envoy.said)

    def end(self) -> None:
        self.envoy.kill()
        self.istiod.kill()

    # --- what the gateway routes -------------------------------------------------------------------------------------

    def dump(self, resource: str = "") -> dict[str, Any]:
        """`/config_dump`: the whole, or one resource ("dynamic_route_configs"); empty where there is none of it."""
        status, text = http(f"http://{ADMIN}/config_dump{f'?resource={resource}' if resource else ''}")
        if status == 404 and "not found in config dump" in text:
            return {}
        assert status == 200, text
        return dict(json.loads(text))

    def routes(self) -> list[dict[str, Any]]:
        """All virtual hosts of all ports, each with `port` (a text such as "http.5000") beside `domains` and `routes`."""
        return [
            {"port": one["route_config"]["name"], **host}
            for one in self.dump("dynamic_route_configs").get("configs", [])
            for host in one["route_config"].get("virtual_hosts", [])
        ]

    def has_route(self, host: str) -> bool:
        """Whether any route leads to a cluster of this Service's host."""
        return re.search(rf'"outbound\|\d+\|[^|]*\|{re.escape(host)}"', json.dumps(self.routes())) is not None

    def wait_for_route(self, host: str, *, there: bool = True, seconds: float = 20) -> None:
        until(lambda: self.has_route(host) is there, seconds, f"the gateway routes to {host}: {there}")

    def rejected(self) -> dict[str, int]:
        """What Envoy refused from istiod: counter -> times; empty when all is well."""
        said = http(f"http://{ADMIN}/stats?filter=update_rejected")[1]
        counters = (line.split(": ") for line in said.splitlines() if ": " in line)
        return {name: int(times) for name, times in counters if int(times)}


def gateway_objects(vip: str = VIP, *, ready: bool = True) -> list[objects.Object]:
    """Service, EndpointSlice and Pod of the internal gateway."""
    pod_name = f"{NAME}-0"
    return [
        objects.service(NAME, NAMESPACE, ports=PORTS, selector=LABELS, clusterIP=vip),
        objects.endpoint_slice(NAME, NAMESPACE, [POD_IP], ports=PORTS, ready=ready, pods=[pod_name]),
        objects.pod(pod_name, NAMESPACE, POD_IP, LABELS, ready=ready),
    ]


def _token_reader(account: str) -> objects.Object:
    """istiod reads the gateway's Secrets only for an account that may read them itself."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    api = "rbac.authorization.k8s.io/v1"
    return objects.made(api, "ClusterRoleBinding", f"test-{account}", None, roleRef=role, subjects=[subject])


def _bootstrap(token: str, account: str) -> dict[str, Any]:
    """Ours, not Istio's template, which needs extensions of Istio's own Envoy. The id has exactly four parts."""
    http2 = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "node": {
            "id": f"router~{POD_IP}~{NAME}-0.{NAMESPACE}~{NAMESPACE}.svc.cluster.local",
            "cluster": f"{NAME}.{NAMESPACE}",
            "metadata": {
                "NAMESPACE": NAMESPACE, "LABELS": LABELS, "INSTANCE_IPS": POD_IP, "CLUSTER_ID": "Kubernetes",
                "ISTIO_VERSION": "1.31.0", "SERVICE_ACCOUNT": account,
            },
        },
        "admin": {"address": _address("127.0.0.1", int(ADMIN.rpartition(":")[2]))},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {"cluster_name": "xds"},
                        "initial_metadata": [{"key": "authorization", "value": f"Bearer {token}"}],
                    }
                ],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "typed_extension_protocol_options": {_HTTP_OPTIONS: http2},
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", XDS_PORT)}}]}],
                    },
                }
            ]
        },
    }  # fmt: skip


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
