"""A small client for the API server: what tests create, change and look at. Nothing of canal-dns is used in it.

Rules of this file:
- objects are plain dicts as in YAML; paths come from the server's own discovery, so every installed kind works;
- one connection per thread, kept alive; it is made anew once when the server has closed it;
- a refusal raises `ApiError` with the server's words; there are no retries beside that.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

VERSIONS = {
    "Service": "v1",
    "Pod": "v1",
    "Namespace": "v1",
    "Secret": "v1",
    "ConfigMap": "v1",
    "ServiceAccount": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Gateway": "networking.istio.io/v1",
    "VirtualService": "networking.istio.io/v1",
    "DestinationRule": "networking.istio.io/v1",
    "ServiceEntry": "networking.istio.io/v1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Deployment": "apps/v1",
}
"""The API version of a kind where only the kind is given."""

_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """The server said no. `status` is HTTP's, `reason` Kubernetes' ("NotFound", "Forbidden", ...)."""

    def __init__(self, status: int, reason: str, message: str, request: str) -> None:
        super().__init__(f"{request}: {status} {reason}: {message}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Resource:
    plural: str
    namespaced: bool


class Kube:
    """The API server at `host`:`port` as one user: by a TLS context with a client certificate, or by a bearer token."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, token: str = "", timeout: float = 30) -> None:
        self.address = (host, port)
        self._context = context
        self._token = token
        self._timeout = timeout
        self._local = threading.local()
        self._resources: dict[tuple[str, str], _Resource] = {}

    # --- verbs -----------------------------------------------------------------------------------------------------

    def create(self, thing: Object) -> Object:
        """As the server has stored it; its `status`, if any, needs `status()`. Raises ApiError."""
        return self.request("POST", self.path(thing, collection=True), thing)

    def apply(self, thing: Object) -> Object:
        """Server-side apply, created if it is not there, conflicts are ours. Raises ApiError."""
        query = "?fieldManager=canal-test&force=true"
        return self.request("PATCH", self.path(thing) + query, thing, _PATCHES["apply"])

    def patch(self, kind: str, name: str, namespace: str | None, change: Any, how: str = "merge") -> Object:
        """`how`: merge | json | strategic."""
        return self.request("PATCH", self._path_of(kind, name, namespace), change, _PATCHES[how])

    def annotate(self, kind: str, name: str, namespace: str | None, **annotations: str | None) -> Object:
        """Sets annotations below `canal-dns.io/`; None takes one away: `annotate(..., bind="false")`."""
        values = {f"canal-dns.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
        return self.patch(kind, name, namespace, {"metadata": {"annotations": values}})

    def status(self, thing: Object) -> Object:
        """Writes the `status` of an object that exists: what a kubelet or a controller would do."""
        body = {key: thing[key] for key in ("apiVersion", "kind", "status")} | {"metadata": _identity(thing)}
        return self.request("PATCH", self.path(thing) + "/status", body, _PATCHES["merge"])

    def delete(self, kind: str, name: str, namespace: str | None = None, *, missing_ok: bool = False) -> None:
        try:
            self.request("DELETE", self._path_of(kind, name, namespace))
        except ApiError as problem:
            if problem.status != 404 or not missing_ok:
                raise

    def remove(self, *things: Object) -> None:
        """Deletes objects as they were created; what is gone already is no error."""
        for thing in things:
            try:
                self.request("DELETE", self.path(thing))
            except ApiError as problem:
                if problem.status != 404:
                    raise

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        return self.request("GET", self._path_of(kind, name, namespace))

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        """All of a kind, in one namespace or (None) in all."""
        query = {key: text for key, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}
        path = self._path_of(kind, "", namespace) + (f"?{urllib.parse.urlencode(query)}" if query else "")
        return list(self.request("GET", path)["items"])

    def token(self, namespace: str, account: str, seconds: int = 3600, audience: str = "") -> str:
        """A token of a ServiceAccount, by TokenRequest. Raises ApiError."""
        spec: Object = {"expirationSeconds": seconds, "audiences": [audience] if audience else []}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.request("POST", path, body)["status"]["token"])

    def as_token(self, token: str) -> Kube:
        """The same server, asked by somebody else."""
        context = ssl.create_default_context(cadata="\n".join(map(ssl.DER_cert_to_PEM_cert, self._authorities())))
        return Kube(*self.address, context, token, self._timeout)

    # --- paths -----------------------------------------------------------------------------------------------------

    def path(self, thing: Mapping[str, Any], *, collection: bool = False) -> str:
        metadata = thing["metadata"]
        name = "" if collection else metadata["name"]
        return self._path(thing["apiVersion"], thing["kind"], name, metadata.get("namespace"))

    def _path_of(self, kind: str, name: str, namespace: str | None) -> str:
        """`kind`: "VirtualService", or with its version: "networking.istio.io/v1alpha3/VirtualService"."""
        version, _, kind = kind.rpartition("/")
        return self._path(version or VERSIONS[kind], kind, name, namespace)

    def _path(self, version: str, kind: str, name: str, namespace: str | None) -> str:
        resource = self._resource(version, kind)
        place = f"/namespaces/{namespace or 'default'}" if resource.namespaced and (namespace or name) else ""
        return f"{_root(version)}{place}/{resource.plural}{f'/{name}' if name else ''}"

    def _resource(self, version: str, kind: str) -> _Resource:
        if (version, kind) not in self._resources:
            for one in self.request("GET", _root(version))["resources"]:
                if "/" not in one["name"]:
                    self._resources[version, one["kind"]] = _Resource(one["name"], one["namespaced"])
        if (version, kind) not in self._resources:
            raise ApiError(404, "NotFound", f"the server has no kind {kind}", f"GET {_root(version)}")
        return self._resources[version, kind]

    # --- HTTP ------------------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Object:
        """The parsed answer. Raises ApiError, OSError when nobody answers."""
        status, data = self.raw(method, path, None if body is None else json.dumps(body).encode(), content_type)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {"message": data.decode(errors="replace")}
        if status >= 300:
            said = answer.get("reason", ""), answer.get("message", str(answer))
            raise ApiError(status, *said, f"{method} {path}")
        return dict(answer)

    def raw(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and octets of any path. Raises OSError when nobody answers."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        for last in (False, True):
            connection = getattr(self._local, "connection", None)
            fresh = connection is None
            if connection is None:
                connection = http.client.HTTPSConnection(*self.address, context=self._context, timeout=self._timeout)
                self._local.connection = connection
            try:
                connection.request(method, path, body, headers)
                reply = connection.getresponse()
                return reply.status, reply.read()
            except (http.client.HTTPException, OSError) as problem:
                connection.close()
                self._local.connection = None
                if last or fresh:  # a kept connection may have been closed by a server that is well
                    raise problem if isinstance(problem, OSError) else ConnectionError(repr(problem)) from problem
        raise AssertionError

    def close(self) -> None:
        """This thread's connection."""
        if (connection := getattr(self._local, "connection", None)) is not None:
            connection.close()
            self._local.connection = None

    def _authorities(self) -> Sequence[bytes]:
        return self._context.get_ca_certs(binary_form=True)


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _identity(thing: Mapping[str, Any]) -> Object:
    return {key: thing["metadata"][key] for key in ("name", "namespace") if key in thing["metadata"]}
