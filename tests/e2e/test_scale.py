"""What `make scale` measures, on a small cluster: every step runs, every answer is right, and no time is judged.

A change that is not answered, a start that does not come, a refused request end it as BenchError.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.errors import BenchError
from benchmarks.machine import two_cores
from benchmarks.progress import Progress
from benchmarks.scale import content
from benchmarks.scale.content import SMALL
from benchmarks.scale.fill import fill
from benchmarks.scale.measure import Measurement, Plan
from benchmarks.scale.results import BUSY, QUIET
from tests.e2e.conftest import Say
from tests.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PLAN = Plan(SMALL, starts=1, changes=8, rest=1.0, rounds=1, hits=1.0, rate=200, noise=100, at_once=20, at_once_times=1)
MEMORY = 160 * 1024
"""KiB of control process and worker together: what 10,000 Services cost CoreDNS."""


@pytest.fixture
def filled(world: World) -> Iterator[World]:
    """The cluster with hundreds of Services, of which nothing is left but the namespaces."""
    try:
        fill(world.control.folder, SMALL)
        yield world
    finally:
        mine = [thing for thing in content.gateway() if thing["kind"] == "Gateway"]
        world.kube.remove(*mine, *content.rest(SMALL))


def test_hundreds_of_services(filled: World, binary: Path, measured: Say) -> None:
    try:
        cores = two_cores()
    except BenchError as problem:
        pytest.skip(str(problem))
    work = Measurement(PLAN, Progress(), filled.control.folder, binary, cores)
    work.run()

    both = {"canal-dns", "CoreDNS"}
    assert {one.key for one in work.memory} == both
    assert {(one.key, one.load) for one in work.changes} == {(key, load) for key in both for load in (QUIET, BUSY)}
    assert sum(one.lost for one in work.hits) == 0
    assert all(one.written > 0 for one in work.noise)
    assert all(sum(one.rss) < MEMORY for one in work.memory if one.key == "canal-dns")
    # What was timed by canal-dns itself are the quiet changes, each once: there and back, by two shapes.
    assert work.histograms[QUIET]["count"] == 2 * PLAN.changes
    measured(f"small cluster: ready after {work.starts['canal-dns'][0]:.2f} s, {len(work.changes)} kinds of changes answered")
