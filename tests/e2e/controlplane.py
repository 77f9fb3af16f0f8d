"""etcd and a real kube-apiserver, in this network namespace: started, killed, restarted, compacted.

Rules of this file:
- authorisation is RBAC's: only the test administrator is in `system:masters`;
- there is no controller-manager, kubelet or kube-proxy: EndpointSlices, Pods with their status, and ServiceAccounts are
  made by hand, a deleted namespace stays Terminating, and ClusterIPs are served by whoever listens on them;
- ports are fixed: every run has a network namespace of its own. All files stand in `folder`;
- the API server answers at 127.0.0.1:6443 and, as pods know it, at 10.96.0.1:6443.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.certificates import Authority
from tests.e2e.kube import ApiError, Kube, Object
from tests.e2e.processes import Process, until

HOST, PORT = "127.0.0.1", 6443
IN_CLUSTER = "10.96.0.1", PORT
SERVICE_RANGE = "10.96.0.0/16,fd00:10:96::/108"
_ETCD = 2379


class ControlPlane:
    """`binaries`: program name -> path; `extra`: further flags of kube-apiserver, after ours."""

    def __init__(self, binaries: Mapping[str, Path], folder: Path, extra: Sequence[str] = ()) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        """The administrator's."""
        self.crds = _crds(binaries)
        authority = Authority(folder)
        authority.sign("apiserver", "apiserver", hosts=("localhost", "kubernetes.default.svc", HOST, IN_CLUSTER[0]))
        authority.sign("admin", "admin", organisation="system:masters")
        authority.sign("sa", "sa")
        self.authority = authority
        self.etcd = Process(_etcd(binaries["etcd"], folder), folder / "etcd.log")
        self.apiserver = Process([*_apiserver(binaries["kube-apiserver"], folder), *extra], folder / "kube-apiserver.log")
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        self.kube = Kube(HOST, PORT, context)
        user = {"client-certificate-data": _base64(folder / "admin.crt"), "client-key-data": _base64(folder / "admin.key")}
        self.write_kubeconfig(self.kubeconfig, user)

    def start(self) -> None:
        """Until it is ready and Istio's CRDs are served: some six seconds."""
        self.etcd.launch()
        self.start_apiserver()
        self.install_crds()
        # what kube-controller-manager would have made
        self.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})

    def start_apiserver(self) -> None:
        self.apiserver.launch()
        until(lambda: self.apiserver.alive() and self.ready(), 60, self.apiserver.said)

    def kill_apiserver(self) -> None:
        """At once, in the middle of whatever it does; watches are cut."""
        self.apiserver.kill()

    def restart_apiserver(self) -> None:
        self.kill_apiserver()
        self.start_apiserver()

    def end(self) -> None:
        self.kube.close()
        self.apiserver.kill()
        self.etcd.kill()

    def ready(self) -> bool:
        try:
            return self.kube.raw("GET", "/readyz") == (200, b"ok")
        except OSError:
            return False

    def compact(self) -> int:
        """Throws away etcd's whole history; the revision. After a restart of the API server old watches get 410."""
        revision = int(self._etcd("/v3/kv/range", {"key": _base64_text("\0")})["header"]["revision"])
        self._etcd("/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    def _etcd(self, path: str, body: Object) -> Object:
        """etcd's gRPC gateway: JSON, octets in base64. Raises AssertionError with its words."""
        connection = http.client.HTTPConnection("127.0.0.1", _ETCD, timeout=30)
        try:
            connection.request("POST", path, json.dumps(body))
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        assert reply.status == 200, data
        return dict(json.loads(data))

    # --- CRDs ------------------------------------------------------------------------------------------------------

    def install_crds(self, *plurals: str) -> None:
        """Istio's CRDs, or those with these plurals ("gateways"), until they are served."""
        chosen = [crd for crd in self.crds if not plurals or crd["spec"]["names"]["plural"] in plurals]
        for crd in chosen:
            self.kube.apply(crd)
        for crd in chosen:
            until(partial(self._is, crd, 200), 60, f"{crd['metadata']['name']} is served")

    def remove_crds(self, *plurals: str) -> None:
        """With all objects of theirs, as Kubernetes does it; until they are gone."""
        for crd in self.crds:
            if crd["spec"]["names"]["plural"] in plurals:
                self.kube.remove(crd)
                until(partial(self._is, crd, 404), 60, f"{crd['metadata']['name']} is gone")

    def _is(self, crd: Object, status: int) -> bool:
        """Are lists of all its versions answered with that? Discovery would be late in both directions."""
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        versions = [version["name"] for version in crd["spec"]["versions"] if version["served"]]
        return {status} == {self.kube.raw("GET", f"/apis/{group}/{version}/{plural}?limit=1")[0] for version in versions}

    # --- accounts --------------------------------------------------------------------------------------------------

    def account(self, namespace: str, name: str, seconds: int = 3600) -> str:
        """A token of a ServiceAccount, which is made if it is not there (there is no controller that would)."""
        thing = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        try:
            self.kube.create(thing)
        except ApiError as problem:
            if problem.status != 409:
                raise
        return self.kube.token(namespace, name, seconds)

    def write_kubeconfig(self, path: Path, user: Object, context: str = "test") -> None:
        """A kubeconfig for this server. `user`: {"token": ...}, {"tokenFile": ...}, or client certificate and key."""
        server = {"server": f"https://{HOST}:{PORT}", "certificate-authority-data": _base64(self.folder / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": context, "context": {"cluster": "test", "user": "user"}}],
            "current-context": context,
        }
        path.write_text(json.dumps(config))


def _crds(binaries: Mapping[str, Path]) -> list[Object]:
    [path] = (path for name, path in binaries.items() if name.startswith("istio-crds"))
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte takes the slow one eight seconds
    return [one for one in yaml.load_all(path.read_text(), loader) if one]


def _etcd(binary: Path, folder: Path) -> list[str]:
    client, peer = f"http://127.0.0.1:{_ETCD}", f"http://127.0.0.1:{_ETCD + 1}"
    return [
        str(binary), "--data-dir", str(folder / "etcd"), "--log-level", "warn",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        "--unsafe-no-fsync=true", "--quota-backend-bytes", str(4 << 30),
    ]  # fmt: skip


def _apiserver(binary: Path, folder: Path) -> list[str]:
    return [
        str(binary), f"--etcd-servers=http://127.0.0.1:{_ETCD}", "--bind-address=0.0.0.0", f"--secure-port={PORT}",
        "--advertise-address=10.244.0.1",  # must be said where there is no default route
        f"--cert-dir={folder}", f"--tls-cert-file={folder}/apiserver.crt", f"--tls-private-key-file={folder}/apiserver.key",
        f"--client-ca-file={folder}/ca.crt", "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true", f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--service-account-issuer=https://{HOST}:{PORT}/", f"--service-account-key-file={folder}/sa.crt",
        f"--service-account-signing-key-file={folder}/sa.key", "--endpoint-reconciler-type=none",
        "--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=0",
    ]  # fmt: skip


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _base64_text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
