"""`python -m benchmarks.scale`: a real API server, filled in parallel; canal-dns and CoreDNS measured before it; SCALE.md.

Rules of this file:
- it starts itself again in a network namespace (`tests.e2e.namespace`), where all addresses are its own;
- a whole run writes results/scale.json and SCALE.md; a smaller or shorter one prints its report and writes nothing, unless it
  is told where;
- `--keep FOLDER`: the cluster's data stays there and is found again by the next run; the first fill is what takes long.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.machine import describe, pin_family, two_cores
from benchmarks.progress import Progress
from benchmarks.run import commit, software
from benchmarks.scale import content, render
from benchmarks.scale.fill import fill
from benchmarks.scale.measure import Measurement, Plan
from benchmarks.scale.results import SCHEMA, Results
from tests.e2e import binaries, namespace
from tests.e2e.controlplane import ControlPlane
from tests.e2e.kube import ApiError
from tests.e2e.programs import ALL, COREDNS, Program
from tests.e2e.workshop import MissingError

HERE = Path(__file__).parents[1]
_INSIDE = "CANAL_DNS_E2E_INSIDE"


def needed() -> list[Program]:
    return [one for one in ALL if one is COREDNS or one.name in ("etcd", "kube-apiserver") or one.name.startswith("istio-crds")]


def measure(plan: Plan, progress: Progress, folder: Path, command: str, *, only_fill: bool = False) -> Results | None:
    """Inside of the namespace. Raises BenchError."""
    taken = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    cores = two_cores()
    programs = {program.name: binaries.find_or_make(program, os.environ) for program in needed()}
    control = ControlPlane(programs, folder)
    try:
        control.start()
        size = plan.size
        progress.note(f"filling the cluster: {size.services:,} Services, {size.virtual_services:,} VirtualServices")
        began = time.monotonic()
        fill(folder, size)
        filled = time.monotonic() - began
        progress.note(f"filled in {filled:.0f} s")
        if only_fill:
            return None
        for process in (control.etcd, control.apiserver):
            if process.running is not None:
                pin_family(process.running.pid, cores[1])
        os.sched_setaffinity(0, {cores[1]})
        work = Measurement(plan, progress, folder, programs[COREDNS.name], cores)
        work.run()
    finally:
        control.end()
    return Results(
        schema=SCHEMA,
        taken=taken,
        commit=commit(),
        command=command,
        machine=describe(*cores),
        software={**software(), **{program.title: program.version for program in needed()}},
        load_average=work.load_average,
        foreign=round(work.foreign, 3),
        size={
            "services": size.services,
            "virtual_services": size.virtual_services,
            "namespaces": size.namespaces,
            "starts": plan.starts,
            "rate": plan.rate,
            "noise": plan.noise,
        },
        fill_seconds=round(filled, 1),
        starts=work.starts,
        start_cpu=work.start_cpu,
        memory=work.memory,
        changes=work.changes,
        hits=work.hits,
        work=work.work,
        noise=work.noise,
        at_once=work.at_once,
        histograms=work.histograms,
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__, allow_abbrev=False)
    parser.add_argument("--services", type=int, default=20_000)
    parser.add_argument("--virtual-services", type=int, default=5_000)
    parser.add_argument("--namespaces", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true", help="short measurements: a look")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the cluster's data stays")
    parser.add_argument("--fill", action="store_true", help="fill the cluster of --keep, and measure nothing")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where SCALE.md and results/scale.json go")
    options = parser.parse_args(arguments)
    if not options.services >= 2 * options.virtual_services >= 20 or options.namespaces < 1:
        parser.error("at least 10 VirtualServices, and twice as many Services")
    return options


def repetition(options: argparse.Namespace) -> str:
    """The command that measures the same again, anywhere: what it said of this machine's folders is left out."""
    default = content.Size()
    sizes = (
        ("--services", options.services, default.services),
        ("--virtual-services", options.virtual_services, default.virtual_services),
        ("--namespaces", options.namespaces, default.namespaces),
    )
    told = [word for name, size, usual in sizes if size != usual for word in (name, str(size))]
    return " ".join(["python -m benchmarks.scale", *told, *(["--quick"] if options.quick else [])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 not, 2 bad use."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    size = content.Size(options.services, options.virtual_services, options.namespaces)
    plan = Plan(size)
    if options.quick:
        plan = Plan(size, starts=2, changes=40, rest=10.0, rounds=1, hits=5.0, at_once_times=2)
    progress = Progress()
    try:
        for program in needed():
            binaries.find_or_make(program, os.environ)
        if not os.environ.get(_INSIDE):
            again = [*namespace.command(), sys.executable, "-m", "benchmarks.scale", *arguments]
            return subprocess.run(again, env={**os.environ, _INSIDE: "1"}, check=False).returncode
        namespace.make_addresses_local()
        namespace.make_files_a_pods()
        with tempfile.TemporaryDirectory(prefix="canal-dns-scale-") as made:
            folder = options.keep or Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            results = measure(plan, progress, folder.absolute(), repetition(options), only_fill=options.fill)
    except (BenchError, ApiError, MissingError, namespace.ForbiddenError, AssertionError) as problem:
        progress.note(f"nothing measured: {problem}")
        return 1
    progress.end()
    if results is None:
        return 0
    output: Path | None = options.output or (None if options.quick or size != content.Size() else HERE)
    if output is None:
        print(render.report(results))
    else:
        results.write(output / "results" / "scale.json")
        render.write(results, output)
        progress.note(f"written: {output / 'SCALE.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
