"""Starts the end-to-end run inside namespaces of its own, and says loudly what was not run where that cannot be.

Rules of this file:
- `python -m pytest -m e2e tests/e2e` is all: the programs are found or made first (the namespace has no way out), then
  pytest starts itself again inside the namespace;
- serial: all tests share the addresses of one cluster, so no xdist;
- not possible here: every test is skipped with the reason, or fails where CI=true or CANAL_DNS_E2E=require. Where there is
  CoreDNS but not all that a real cluster needs, only the tests on the real cluster are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import binaries, cluster, namespace
from tests.e2e.layouts import ALL, Layout, Site
from tests.e2e.processes import CoreDns
from tests.e2e.programs import ALL as PROGRAMS
from tests.e2e.programs import COREDNS
from tests.e2e.scene import Scene
from tests.e2e.sites import ClusterSite
from tests.e2e.workshop import MissingError
from tests.e2e.world import World

_INSIDE = "CANAL_DNS_E2E_INSIDE"
_NO_CLUSTER = "CANAL_DNS_E2E_NO_CLUSTER"
_MEASURED = pytest.StashKey[list[str]]()
_SCENARIOS = pytest.StashKey[list[tuple[str, str, str]]]()
_NOT_RUN = pytest.StashKey[str]()

Say = Callable[[str], None]
Tell = Callable[[str, str], None]


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Only called when tests/e2e stands on the command line: an ordinary `pytest` run is not moved into a namespace."""
    if os.environ.get(_INSIDE) or config.option.collectonly or "not e2e" in config.option.markexpr:
        return None
    environ = {**os.environ, _INSIDE: "1"}
    try:
        prefix = namespace.command()
        environ[COREDNS.variable] = str(binaries.find_or_make(COREDNS, os.environ))
    except (MissingError, namespace.ForbiddenError) as problem:
        if _required():
            raise pytest.UsageError(f"the end-to-end tests cannot run: {problem}") from None
        config.stash[_NOT_RUN] = str(problem)
        return None
    try:
        for program in PROGRAMS:
            environ[program.variable] = str(binaries.find_or_make(program, environ))
    except MissingError as problem:
        if _required():
            raise pytest.UsageError(f"the tests on the real cluster cannot run: {problem}") from None
        environ[_NO_CLUSTER] = str(problem)
    again = [*prefix, sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)]
    with subprocess.Popen(again, cwd=config.invocation_params.dir, env=environ) as inner:
        try:
            return inner.wait()
        except KeyboardInterrupt:
            inner.send_signal(signal.SIGINT)
            return inner.wait()


def _required() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("CANAL_DNS_E2E") == "require"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []
    config.stash[_SCENARIOS] = []
    if os.environ.get(_INSIDE):
        if os.environ.get("PYTEST_XDIST_WORKER"):
            raise pytest.UsageError("the end-to-end tests share one set of addresses: run them without -n")
        namespace.make_addresses_local()
        namespace.make_files_a_pods()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reason := config.stash.get(_NOT_RUN, ""):
        terminalreporter.section("END-TO-END TESTS WERE NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line("Layouts A, B, E and F, the fallback and the loop tests were NOT proved on a real CoreDNS here:")
        terminalreporter.line(f"  {reason}")
        terminalreporter.line("CANAL_DNS_E2E=require makes this a failure, as CI=true does.")
    if reason := os.environ.get(_NO_CLUSTER, ""):
        terminalreporter.section("NO REAL CLUSTER", sep="!", red=True, bold=True)
        terminalreporter.line("The flows, the gateway and the API server's failures were NOT proved on a real cluster here:")
        terminalreporter.line(f"  {reason}")
    if config.stash[_SCENARIOS]:
        terminalreporter.section("scenarios: what was asked, and what was answered")
        for name, asked, answered in config.stash[_SCENARIOS]:
            terminalreporter.line(f"{name}: {asked} -> {answered}")
    if config.stash[_MEASURED]:
        terminalreporter.section("measured")
        for line in config.stash[_MEASURED]:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def binary(request: pytest.FixtureRequest) -> Path:
    """CoreDNS; this fixture is what skips, or fails, everything where it cannot be run."""
    if not os.environ.get(_INSIDE):
        reason = request.config.stash.get(_NOT_RUN, "")
        _not_run(f"no real CoreDNS: {reason or 'run `python -m pytest -m e2e tests/e2e`, which makes the namespace'}")
    return binaries.find_or_make(COREDNS, os.environ)


@pytest.fixture(scope="session")
def programs(binary: Path) -> dict[str, Path]:
    """All programs of the real cluster, by name ("kubectl", "helm", ...); skips or fails where they cannot be had."""
    if reason := os.environ.get(_NO_CLUSTER, ""):
        _not_run(f"no real cluster: {reason}")
    return {program.name: binaries.find_or_make(program, os.environ) for program in PROGRAMS}


def _not_run(why: str) -> None:
    if _required():
        pytest.fail(f"NOT RUN, {why}", pytrace=False)
    pytest.skip(f"NOT RUN, {why.splitlines()[0]}")


@pytest.fixture(scope="session")
def resolv_conf(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a node's /etc/resolv.conf is to CoreDNS; the resolver that it names is running."""
    folder = tmp_path_factory.mktemp("parent")
    path = folder / "resolv.conf"
    path.write_text(f"nameserver {cluster.PARENT}\n")
    parent = CoreDns(binary, folder, cluster.parent_corefile(folder), (cluster.PARENT,))
    try:
        parent.start()
        yield path
    finally:
        parent.kill()


@pytest.fixture(scope="module", params=ALL, ids=lambda layout: layout.name)
def site(
    request: pytest.FixtureRequest, binary: Path, resolv_conf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Each layout in turn, running, with zone files and manifests in place of a cluster."""
    layout: Layout = request.param
    running = Site(layout, binary, tmp_path_factory.mktemp(layout.name), resolv_conf)
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture(scope="session")
def world(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The real cluster: etcd, kube-apiserver, istiod, Envoy as internal gateway, backends. No DNS: see `cluster_site`."""
    running = World(programs, tmp_path_factory.mktemp("world"))
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def make_cluster_site(
    binary: Path, resolv_conf: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ClusterSite]]:
    """Makes (and does not start) sites with settings of the test's own: `make_cluster_site(B, settings={...})`.

    They share kube-dns's address, so one at a time: `end()` one before the next. What still runs is ended with the module.
    """
    made: list[ClusterSite] = []

    def make(layout: Layout, **rest: object) -> ClusterSite:
        folder = tmp_path_factory.mktemp(f"cluster-{layout.name}")
        made.append(ClusterSite(layout, binary, folder, resolv_conf, world, **rest))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.end()


@pytest.fixture
def scene(world: World) -> Iterator[Scene]:
    """What one test makes in the cluster; all of it is taken away afterwards."""
    made = Scene(world)
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Say:
    """Adds a line to what is printed at the end of the run."""
    return request.config.stash[_MEASURED].append


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Adds a scenario to the report: `tell("dig helloworld before", "10.96.1.1")`."""
    name = request.node.name
    return lambda asked, answered: request.config.stash[_SCENARIOS].append((name, asked, answered))
