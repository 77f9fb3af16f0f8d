"""Starts the end-to-end run inside a network namespace, and says loudly what was not run where that cannot be.

Rules of this file:
- `python -m pytest -m e2e tests/e2e` is all: CoreDNS is found or built first (the namespace has no way out), then
  pytest starts itself again inside the namespace;
- serial: all tests share the addresses of one cluster, so no xdist;
- not possible here: every test is skipped with the reason, or fails where CI=true or CANAL_DNS_E2E=require.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import cluster, coredns, namespace
from tests.e2e.layouts import ALL, Layout, Site
from tests.e2e.processes import CoreDns

_INSIDE = "CANAL_DNS_E2E_INSIDE"
_MEASURED = pytest.StashKey[list[str]]()
_NOT_RUN = pytest.StashKey[str]()


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Only called when tests/e2e stands on the command line: an ordinary `pytest` run is not moved into a namespace."""
    if os.environ.get(_INSIDE) or config.option.collectonly or "not e2e" in config.option.markexpr:
        return None
    try:
        binary = coredns.find_or_build(os.environ)
        prefix = namespace.command()
    except (coredns.MissingError, namespace.ForbiddenError) as problem:
        if _required():
            raise pytest.UsageError(f"the end-to-end tests cannot run: {problem}") from None
        config.stash[_NOT_RUN] = str(problem)
        return None
    environ = {**os.environ, _INSIDE: "1", coredns.VARIABLE: str(binary)}
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
    if os.environ.get(_INSIDE):
        if os.environ.get("PYTEST_XDIST_WORKER"):
            raise pytest.UsageError("the end-to-end tests share one set of addresses: run them without -n")
        namespace.make_addresses_local()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reason := config.stash.get(_NOT_RUN, ""):
        terminalreporter.section("END-TO-END TESTS WERE NOT RUN", sep="!", red=True, bold=True)
        terminalreporter.line("Layouts A, B, E and F, the fallback and the loop tests were NOT proved on a real CoreDNS here:")
        terminalreporter.line(f"  {reason}")
        terminalreporter.line("CANAL_DNS_E2E=require makes this a failure, as CI=true does.")
    if config.stash[_MEASURED]:
        terminalreporter.section("measured")
        for line in config.stash[_MEASURED]:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def binary(request: pytest.FixtureRequest) -> Path:
    """CoreDNS; this fixture is what skips, or fails, everything where it cannot be run."""
    if not os.environ.get(_INSIDE):
        reason = request.config.stash.get(_NOT_RUN, "")
        said = f"NOT RUN, no real CoreDNS: {reason or 'run `python -m pytest -m e2e tests/e2e`, which makes the namespace'}"
        if _required():
            pytest.fail(said, pytrace=False)
        pytest.skip(said)
    return coredns.find_or_build(os.environ)


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
    """Each layout in turn, running."""
    layout: Layout = request.param
    running = Site(layout, binary, tmp_path_factory.mktemp(layout.name), resolv_conf)
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to what is printed at the end of the run."""
    return request.config.stash[_MEASURED].append
