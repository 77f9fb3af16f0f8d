"""The search for CoreDNS: what counts, in which order, and what is said where there is none. No e2e mark: needs no CoreDNS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import coredns


def program(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def stand_in(path: Path, version: str = coredns.VERSION) -> Path:
    return program(path, f"echo CoreDNS-{version}", "echo linux/amd64")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    return {"PATH": f"{tools}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}


def test_the_named_one_comes_first_then_path_then_the_cache(tmp_path: Path, environ: dict[str, str]) -> None:
    in_cache = stand_in(coredns.cached(environ))
    assert coredns.find(environ) == in_cache
    on_path = stand_in(tmp_path / "tools" / "coredns")
    assert coredns.find(environ) == on_path
    named = stand_in(tmp_path / "mine")
    assert coredns.find({**environ, coredns.VARIABLE: str(named)}) == named


def test_another_version_does_not_count(tmp_path: Path, environ: dict[str, str]) -> None:
    stand_in(tmp_path / "tools" / "coredns", "1.12.0")
    stand_in(coredns.cached(environ), "1.14.6")
    assert coredns.find(environ) is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [(["echo CoreDNS-1.11.4"], "is CoreDNS 1.11.4; 1.14.7 is needed"), (["exit 1"], "no CoreDNS that runs")],
    ids=["another version", "does not run"],
)
def test_a_named_one_that_is_wrong_is_an_error(tmp_path: Path, environ: dict[str, str], lines: list[str], says: str) -> None:
    wrong = program(tmp_path / "wrong", *lines)
    with pytest.raises(coredns.MissingError, match=says):
        coredns.find_or_build({**environ, coredns.VARIABLE: str(wrong)})


def test_without_go_it_says_what_helps(environ: dict[str, str]) -> None:
    with pytest.raises(coredns.MissingError, match="install Go, or name a binary: CANAL_DNS_COREDNS="):
        coredns.find_or_build({**environ, "PATH": str(Path(environ["XDG_CACHE_HOME"]) / "empty")})


def test_go_builds_it_into_the_cache(tmp_path: Path, environ: dict[str, str]) -> None:
    program(
        tmp_path / "tools" / "go",
        f'[ "$*" = "install -v {coredns.MODULE}" ] && [ "$CGO_ENABLED" = 0 ] || exit 9',
        f'printf "#!/bin/sh\\necho CoreDNS-{coredns.VERSION}\\n" > "$GOBIN/coredns"',
        'chmod 755 "$GOBIN/coredns"',
    )
    assert coredns.find_or_build(environ) == coredns.cached(environ)
    assert coredns.version_of(coredns.cached(environ)) == coredns.VERSION
    assert [path.name for path in coredns.cached(environ).parent.iterdir() if path.is_dir()] == []


def test_a_failed_build_shows_what_go_said_and_leaves_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "tools" / "go", "echo go: no route to host", "exit 1")
    with pytest.raises(coredns.MissingError, match="no route to host"):
        coredns.find_or_build(environ)
    assert not coredns.cached(environ).exists()


def test_two_at_once_build_once(tmp_path: Path, environ: dict[str, str]) -> None:
    program(
        tmp_path / "tools" / "go",
        f"echo built >> {tmp_path}/builds",
        "sleep 0.5",
        f'printf "#!/bin/sh\\necho CoreDNS-{coredns.VERSION}\\n" > "$GOBIN/coredns"',
        'chmod 755 "$GOBIN/coredns"',
    )
    command = [sys.executable, "-m", "tests.e2e.coredns"]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=30)[0].strip() for one in both]
    assert said == [str(coredns.cached(environ))] * 2
    assert (tmp_path / "builds").read_text().split() == ["built"]
