"""The search for programs: what counts, in which order, and what is said where there is none. No e2e mark: needs none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import binaries
from tests.e2e.programs import ALL, COREDNS, ENVOY, ETCD, HELM, ISTIO_CRDS, KUBE_APISERVER, KUBECTL, PILOT_DISCOVERY, Program
from tests.e2e.workshop import MissingError

SAYS = {
    COREDNS.name: "CoreDNS-{}",
    ETCD.name: "etcd Version: {}",
    KUBE_APISERVER.name: "Kubernetes v{}",
    KUBECTL.name: '{{"clientVersion": {{"gitVersion": "v{}", "platform": "linux/amd64"}}}}',
    HELM.name: "v{}+g43e8b7f",
    ENVOY.name: "envoy  version: 9e55809337/{}/Clean/RELEASE/BoringSSL",
}
"""What each program prints when it is asked for its version."""

runs = pytest.mark.parametrize("one", [program for program in ALL if program.name in SAYS], ids=lambda one: one.name)


def program(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def stand_in(path: Path, one: Program = COREDNS, version: str = "") -> Path:
    return program(path, f"echo '{SAYS[one.name].format(version or one.version)}'")


def go_that_builds(tools: Path, *before: str, makes: str = f"CoreDNS-{COREDNS.version}") -> None:
    program(
        tools / "go", *before, f'printf "#!/bin/sh\\necho {makes}\\n" > "$GOBIN/coredns"', 'chmod 755 "$GOBIN/coredns"'
    )  # fmt: skip


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(tmp_path: Path, tools: Path) -> dict[str, str]:
    return {"PATH": f"{tools}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}


@runs
def test_the_named_one_comes_first_then_path_then_the_cache(tmp_path: Path, environ: dict[str, str], one: Program) -> None:
    in_cache = stand_in(binaries.cached(one, environ), one)
    assert binaries.find(one, environ) == in_cache
    on_path = stand_in(tmp_path / "tools" / one.name, one)
    assert binaries.find(one, environ) == on_path
    named = stand_in(tmp_path / "mine", one)
    assert binaries.find(one, {**environ, one.variable: str(named)}) == named


@runs
def test_another_version_does_not_count(tmp_path: Path, environ: dict[str, str], one: Program) -> None:
    stand_in(tmp_path / "tools" / one.name, one, "1.12.0")
    stand_in(binaries.cached(one, environ), one, "1.14.6")
    assert binaries.find(one, environ) is None


def test_istiod_is_known_by_what_go_wrote_into_it(tmp_path: Path, environ: dict[str, str]) -> None:
    """It says `unknown` of itself, so the build information counts; and it must run."""
    lines = ["echo 'client version: version.BuildInfo{}'", f"exit 0\n\tistio.io/istio\tv{PILOT_DISCOVERY.version}\th1:"]
    path = program(binaries.cached(PILOT_DISCOVERY, environ), *lines)
    assert binaries.find(PILOT_DISCOVERY, environ) == path
    program(path, lines[0], lines[1].replace("v0", "v1"))
    assert binaries.find(PILOT_DISCOVERY, environ) is None
    program(path, "exit 1", lines[1])
    assert binaries.find(PILOT_DISCOVERY, environ) is None


def test_half_a_file_of_crds_does_not_count(environ: dict[str, str]) -> None:
    path = binaries.cached(ISTIO_CRDS, environ)
    path.parent.mkdir(parents=True)
    path.write_text("metadata:\n  name: destinationrules.networking.istio.io\n")
    assert binaries.find(ISTIO_CRDS, environ) is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [(["echo CoreDNS-1.11.4"], "is CoreDNS 1.11.4; 1.14.7 is needed"), (["exit 1"], "no CoreDNS that runs")],
    ids=["another version", "does not run"],
)
def test_a_named_one_that_is_wrong_is_an_error(tmp_path: Path, environ: dict[str, str], lines: list[str], says: str) -> None:
    wrong = program(tmp_path / "wrong", *lines)
    with pytest.raises(MissingError, match=says):
        binaries.find_or_make(COREDNS, {**environ, COREDNS.variable: str(wrong)})


@pytest.mark.parametrize("one", [COREDNS, ETCD, KUBE_APISERVER, PILOT_DISCOVERY, ISTIO_CRDS], ids=lambda one: one.name)
def test_without_go_it_says_what_helps(environ: dict[str, str], one: Program) -> None:
    with pytest.raises(MissingError, match=f"(?s)not on PATH.*install Go, or name one: {one.variable}="):
        binaries.find_or_make(one, {**environ, "PATH": str(Path(environ["XDG_CACHE_HOME"]) / "empty")})


def test_go_builds_it_into_the_cache(tools: Path, environ: dict[str, str]) -> None:
    wanted = f"install -v github.com/coredns/coredns@v{COREDNS.version}"
    go_that_builds(tools, f'[ "$*" = "{wanted}" ] && [ "$CGO_ENABLED" = 0 ] || exit 9')
    assert binaries.find_or_make(COREDNS, environ) == binaries.cached(COREDNS, environ)
    assert COREDNS.says(binaries.cached(COREDNS, environ)) == COREDNS.version
    assert [path.name for path in binaries.cached(COREDNS, environ).parent.iterdir() if path.is_dir()] == []


def test_what_was_built_must_say_its_version(tools: Path, environ: dict[str, str]) -> None:
    go_that_builds(tools, makes="CoreDNS-1.0.0")
    with pytest.raises(MissingError, match=r"says version 1\.0\.0; 1\.14\.7 is needed"):
        binaries.find_or_make(COREDNS, environ)
    assert not binaries.cached(COREDNS, environ).exists()


def test_every_staging_module_of_kubernetes_is_replaced(tmp_path: Path, tools: Path, environ: dict[str, str]) -> None:
    """The list is read from the published go.mod; a module with a version of its own is left alone."""
    published = tmp_path / "go.mod"
    published.write_text("require (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.140.0\n\tk8s.io/kms v0.0.0 // indirect\n)\n")
    program(
        tools / "go",
        f'echo "$@" >> {tmp_path}/told',
        f"[ \"$2\" = download ] && echo '{json.dumps({'GoMod': str(published)})}'",
        f'[ "$1" = build ] && printf "#!/bin/sh\\necho Kubernetes v{KUBE_APISERVER.version}\\n" > kube-apiserver',
        'if [ "$1" = build ]; then chmod 755 kube-apiserver; fi',
    )
    binaries.find_or_make(KUBE_APISERVER, environ)
    [edit] = (line for line in (tmp_path / "told").read_text().splitlines() if line.startswith("mod edit"))
    matching = KUBE_APISERVER.version.replace("1.", "v0.", 1)
    replaced = [word for word in edit.split() if word.startswith("-replace")]
    assert replaced == [f"-replace={module}={module}@{matching}" for module in ("k8s.io/api", "k8s.io/kms")]


def test_a_failed_build_shows_what_go_said_and_leaves_nothing(tools: Path, environ: dict[str, str]) -> None:
    program(tools / "go", "echo go: no route to host >&2", "exit 1")
    with pytest.raises(MissingError, match="no route to host"):
        binaries.find_or_make(COREDNS, environ)
    assert not binaries.cached(COREDNS, environ).exists()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(MissingError, match=r"none can be kept: .*Not a directory"):
        binaries.find_or_make(COREDNS, environ)


def test_two_at_once_build_once(tmp_path: Path, tools: Path, environ: dict[str, str]) -> None:
    go_that_builds(tools, f"echo built >> {tmp_path}/builds", "sleep 0.5")
    command = [sys.executable, "-m", "tests.e2e.binaries", "coredns"]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=30)[0].strip() for one in both]
    assert said == [str(binaries.cached(COREDNS, environ))] * 2
    assert (tmp_path / "builds").read_text().split() == ["built"]


def test_a_name_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert binaries.main(["minikube"]) == 2
    assert "not known: minikube; there are coredns, etcd, kube-apiserver" in capsys.readouterr().err
