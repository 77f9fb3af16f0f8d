"""The ServiceAccount that canal-dns ships with: its rights as in manifests/, and its token as a pod has it.

Rules of this file:
- the rights are those of manifests/10-rbac.yaml, read from there and never repeated here;
- `without` is the same set of objects under another name, with one resource less;
- the mount of a pod is a folder of links as a kubelet makes it: files change all at once, by one rename.
"""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.e2e import objects
from tests.e2e.controlplane import HOST, IN_CLUSTER, PORT, ControlPlane
from tests.e2e.kube import ApiError, Kube
from tests.e2e.processes import until

RBAC = Path(__file__).parents[2] / "manifests" / "10-rbac.yaml"
NAMESPACE = NAME = "canal-dns"
MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Right = tuple[str, str, str]
"""Namespace ("" is the whole cluster), API group, resource."""


def shipped() -> list[objects.Object]:
    """The objects of the file."""
    return [one for one in yaml.safe_load_all(RBAC.read_text()) if one]


def rights(things: list[objects.Object]) -> dict[Right, set[str]]:
    """What these objects give: right -> verbs."""
    found: dict[Right, set[str]] = {}
    for thing in things:
        for rule in thing.get("rules", ()):
            assert rule.keys() == {"apiGroups", "resources", "verbs"}, rule
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    right = thing["metadata"].get("namespace", ""), group, resource
                    found.setdefault(right, set()).update(rule["verbs"])
    return found


def path(right: Right) -> str:
    namespace, group, resource = right
    root = f"/apis/{group}" if group else "/api"
    return f"{root}/v1{f'/namespaces/{namespace}' if namespace else ''}/{resource}"


def project(folder: Path, files: Mapping[str, str]) -> None:
    """A projected volume, as a kubelet writes it: all files are others at once, by one link."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"..{time.time_ns()}"
    fresh.mkdir()
    for name, text in files.items():
        (fresh / name).write_text(text)
    link = folder / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


@dataclass(frozen=True, slots=True)
class Account:
    """One ServiceAccount in the cluster, with the shipped rights or fewer."""

    control: ControlPlane
    name: str = NAME

    def create(self, without: Right | None = None) -> Account:
        """The account, its rights and bindings, until the API server acts by them. `without`: one right is left out."""
        kube = self.control.kube
        kube.apply(objects.namespace(NAMESPACE))
        for thing in self._things():
            kube.apply(self._less(thing, without))
        self._wait(without)
        return self

    def take(self, right: Right) -> None:
        """Take one right away from those that it holds now; until the API server acts by it."""
        for thing in self._things():
            if thing["kind"] in ("ClusterRole", "Role"):
                held = self.control.kube.get(thing["kind"], self.name, thing["metadata"].get("namespace"))
                thing["rules"] = held["rules"]
                self.control.kube.apply(self._less(thing, right))
        until(lambda: self._asks(right) == 403, 20, f"{right} is denied to {self.name}")

    def restore(self) -> None:
        """All shipped rights."""
        self.create()

    def remove(self) -> None:
        self.control.kube.remove(*reversed(self._things()))

    def token(self, seconds: int = 3600) -> str:
        return self.control.kube.token(NAMESPACE, self.name, seconds)

    def short_token(self, seconds: float) -> str:
        """A token that is good for less than TokenRequest's ten minutes: signed with the API server's own key.

        The API server grants every token a minute more.
        """
        now = int(time.time() + seconds) - 60
        uid = self.control.kube.get("ServiceAccount", self.name, NAMESPACE)["metadata"]["uid"]
        issuer = f"https://{HOST}:{PORT}/"
        claims = {
            "iss": issuer, "aud": [issuer], "sub": f"system:serviceaccount:{NAMESPACE}:{self.name}",
            "iat": now - 60, "nbf": now - 60, "exp": now,
            "kubernetes.io": {"namespace": NAMESPACE, "serviceaccount": {"name": self.name, "uid": uid}},
        }  # fmt: skip
        key = serialization.load_pem_private_key((self.control.folder / "sa.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signed = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT"}, claims))
        r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()

    def kube(self) -> Kube:
        """The API server, asked by this account."""
        return self.control.kube.as_token(self.token())

    def mount(self, token: str) -> dict[str, str]:
        """What a pod of this account finds; also in the place of a former mount. The variables of its environment."""
        files = {"token": token, "ca.crt": (self.control.folder / "ca.crt").read_text(), "namespace": NAMESPACE}
        project(MOUNT, files)
        return {"KUBERNETES_SERVICE_HOST": IN_CLUSTER[0], "KUBERNETES_SERVICE_PORT": str(IN_CLUSTER[1])}

    def kubeconfig(self, folder: Path) -> Path:
        written = folder / f"kubeconfig-{self.name}"
        self.control.write_kubeconfig(written, {"token": self.token()})
        return written

    def _things(self) -> list[objects.Object]:
        """The shipped objects, under this name."""
        things = copy.deepcopy(shipped())
        for thing in things:
            assert thing["metadata"]["name"] == NAME
            thing["metadata"]["name"] = self.name
            for place in (thing.get("roleRef"), *thing.get("subjects", ())):
                if place is not None:
                    place["name"] = self.name
        return things

    def _less(self, thing: objects.Object, right: Right | None) -> objects.Object:
        if right is None or "rules" not in thing or thing["metadata"].get("namespace", "") != right[0]:
            return thing
        rules: list[Any] = []
        for rule in thing["rules"]:
            kept = [one for one in rule["resources"] if not (one == right[2] and right[1] in rule["apiGroups"])]
            if kept:
                rules.append({**rule, "resources": kept})
        return {**thing, "rules": rules}

    def _wait(self, without: Right | None) -> None:
        for right in rights(shipped()):
            wanted = 403 if right == without else 200
            until(lambda right=right, wanted=wanted: self._asks(right) == wanted, 20, f"{right} gives {wanted} to {self.name}")

    def _asks(self, right: Right) -> int:
        """The status that a list by this account would have, by SubjectAccessReview: no token is needed, and none is cached."""
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{NAMESPACE}:{self.name}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"],
                "resourceAttributes": {"namespace": right[0], "group": right[1], "resource": right[2], "verb": "list"},
            },
        }  # fmt: skip
        try:
            answer = self.control.kube.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        except ApiError as problem:
            return problem.status
        return 200 if answer["status"]["allowed"] else 403


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
