"""`python -m benchmarks.run`: measures everybody who is installed, and writes data, report, plots and the README's table.

Exit codes: 0 measured, 1 canal-dns or everybody cannot be measured, 2 bad use.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import render
from benchmarks.contenders import CONTENDERS, UPSTREAMS
from benchmarks.errors import BenchError
from benchmarks.figures import OURS
from benchmarks.machine import describe
from benchmarks.measurement import Measurement, Plan, minutes_since
from benchmarks.progress import Progress
from benchmarks.results import SCHEMA, Method, Results
from benchmarks.scenarios import BLOCKS

HERE = Path(__file__).parent


def measure(plan: Plan, progress: Progress, command: str) -> Results:
    """Raises BenchError when nothing can be measured."""
    taken, began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="canal-dns-bench-") as folder:
        work = Measurement(plan, progress, Path(folder), CONTENDERS, UPSTREAMS)
        work.run()
        generator = work.generator
        return Results(
            schema=SCHEMA,
            taken=taken,
            commit=commit(),
            command=command,
            machine=describe(work.server_core, work.load_core),
            software=software(),
            method=Method(
                rounds=plan.rounds,
                paced_rounds=plan.paced_rounds,
                seconds=plan.seconds,
                calm_seconds=plan.calm_seconds,
                blocks=list(plan.blocks),
                generator=f"{generator.name} ({generator.version})",
                upstream=work.upstream,
                minutes=minutes_since(began),
            ),
            contestants=work.contestants,
            left_out=work.left_out,
            samples=work.samples,
            deltas=work.deltas,
            comparison=work.comparison,
        )


def commit() -> str:
    try:
        argv = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+changes", "--abbrev=10"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def software() -> dict[str, str]:
    versions = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in ("uvloop", "Cython"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, help="saturated rounds (default 5, at least 1)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one run (default 1.5)")
    parser.add_argument("--quick", action="store_true", help="one short round: a look, not a measurement")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SCENARIO[,..]", help=f"only these of {', '.join(BLOCKS)} (repeatable)"
    )
    parser.add_argument("--contender", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    parser.add_argument("--list", action="store_true", help="who would be measured here, and who is missing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where RESULTS.md and results/ go (default: this package for a whole run, nowhere for a quick or partial one)",
    )
    options = parser.parse_args(arguments)
    options.only = [one for given in options.only for one in given.split(",")]
    _refuse_unknown(parser, "--only", options.only, BLOCKS)
    _refuse_unknown(parser, "--contender", options.contender, sorted({contender.key for contender in CONTENDERS}))
    if options.rounds < 1 or not 0.1 <= options.seconds <= 60:
        parser.error("--rounds is at least 1, --seconds 0.1 to 60")
    return options


def _refuse_unknown(parser: argparse.ArgumentParser, flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := set(given) - set(known):
        parser.error(f"{flag} {', '.join(sorted(unknown))}: known are {', '.join(known)}")


def _list() -> None:
    for contender in CONTENDERS:
        binary = contender.program.find()
        what = f"{binary} {contender.program.version(binary)}" if binary else f"not installed: {contender.program.install}"
        print(f"{contender.scenario:12} {contender.key:20} {what}")


def plan_of(options: argparse.Namespace) -> Plan:
    """What the flags ask for, in the order of the report."""
    quick = options.quick
    seconds = min(0.5, options.seconds) if quick else options.seconds
    return Plan(
        rounds=1 if quick else options.rounds,
        paced_rounds=1 if quick else min(3, options.rounds),
        seconds=seconds,
        calm_seconds=seconds if quick else max(2.0, options.seconds) if options.seconds >= 1 else options.seconds,
        keys=frozenset(options.contender),
        blocks=tuple(block for block in BLOCKS if not options.only or block in options.only),
        changes=100 if quick else 500,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    progress = Progress()
    try:
        results = measure(plan_of(options), progress, shlex.join(["python", "-m", "benchmarks.run", *arguments]))
    except BenchError as problem:
        progress.note(f"nothing measured: {problem}")
        return 1
    progress.end()
    partial = options.quick or options.only or options.contender
    output: Path | None = options.output or (None if partial else HERE)
    if output is None:
        print(render.report(results))
    else:
        results.write(output / "results" / "latest.json")
        render.write(results, output)
        progress.note(f"written: {output / 'RESULTS.md'}")
    return 1 if any(one.key == OURS for one in results.left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
