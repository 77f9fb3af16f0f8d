"""`python -m tests.fuzz [TARGET ...] [--seconds N] [--long] [--write]`: canal-dns on hostile input, a figure per target.

Rules of this file:
- all of it runs in a network namespace of its own: packets, forged ones among them, stay on its loopback;
- exit status: 0 nothing was found, 1 something was, or could not be looked for; 2 bad use;
- `--write` keeps the figures (results.json), from which docs/reliability.md is rendered; only a run of all targets may;
- an input that is found is printed, and left in the folder that is named: it goes into the corpus with the fix.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.e2e.namespace import again_inside
from tests.faults.bench import run
from tests.faults.rows import NotRunError, Outcome, Row
from tests.figures import MET, MISSED, NOT_RUN, Figure, conclude, write
from tests.fuzz import native, work
from tests.fuzz.live import live
from tests.fuzz.spoof import spoof
from tests.fuzz.targets import Finding, Target, load

RESULTS = Path(__file__).with_name("results.json")
SECONDS, LONG_SECONDS = 60, 600
"""Of looking guided by coverage, for all targets together on this machine's cores."""
LIMIT, LONG_LIMIT = 180.0, 3600.0
"""Seconds that a run against a server may take."""

_NO_FINDING = "no exception, no difference between the twins, every reply valid; work at most linear in the input's size"
_NATIVE = "native", "the C of the extensions under the address and undefined behaviour sanitizers", "no error; work linear"
_LIVE = Row(
    "live",
    "mutated packets against a running server whose upstream says mutated things, too",
    "1,000,000 packets: answering all the time, alive, memory and descriptors as before, every reply valid",
    live,
)
_SPOOF = Row(
    "spoof",
    "forged replies from the upstream's own address, with the right question: to the right port, and to others",
    "0 of 1,000,000 accepted, at once or from the cache",
    spoof,
)


def main(arguments: list[str]) -> int:
    names = [*load(), _NATIVE[0], _LIVE.id, _SPOOF.id]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="canal-dns on hostile input")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--seconds", type=int, help=f"of looking, for all together ({SECONDS}; --long: {LONG_SECONDS})")
    parser.add_argument(
        "--long", action="store_true", help="1,000,000 packets and 1,000,000 forged replies: about half an hour"
    )
    parser.add_argument("--write", action="store_true", help="keep the figures for docs/reliability.md")
    wanted = parser.parse_args(arguments)
    if unknown := [name for name in wanted.targets if name not in names]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(names)}")
    if wanted.write and wanted.targets:
        parser.error("--write is for a run of all targets")
    status = again_inside("tests.fuzz", arguments, cannot="nothing can be fuzzed")
    if status is not None:
        return status
    chosen = [name for name in names if name in wanted.targets or not wanted.targets]
    seconds = wanted.seconds or (LONG_SECONDS if wanted.long else SECONDS)
    figures = run_all(chosen, seconds, long=wanted.long)
    status = conclude(figures)
    if wanted.write:
        write(RESULTS, figures, form=f"{seconds} s{', long' if wanted.long else ''}")
    return status


def run_all(names: list[str], seconds: int, *, long: bool) -> list[Figure]:
    """The figures of these targets, in their order; what takes its time is looked for on all cores at once."""
    folder = Path(tempfile.mkdtemp(prefix="canal-dns-fuzz-"))
    looking = [name for name in names if name not in (_LIVE.id, _SPOOF.id)]
    cores = len(os.sched_getaffinity(0))
    share = max(2, seconds * min(cores, max(1, len(looking))) // max(1, len(looking)))
    if find_spec("atheris") is None:
        print(
            "atheris is not installed: mutations of the corpus only, not guided by coverage (pip install atheris)", flush=True
        )
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        coming = [pool.submit(one, name, partial(_look, name, folder / name, share)) for name in looking]
        figures = [each.result() for each in coming]
    for row in (_LIVE, _SPOOF):
        if row.id in names:
            figures.append(one(row.id, partial(_against_a_server, row, long=long)))
    return figures


def one(name: str, measure: Callable[[], Outcome]) -> Figure:
    """Measure a target, print its lines, and give its figure."""
    rows = {row.id: (row.fault, row.demand) for row in (_LIVE, _SPOOF)} | {_NATIVE[0]: _NATIVE[1:]}
    what, demand = rows[name] if name in rows else (load()[name].what, _NO_FINDING)
    began = time.monotonic()
    try:
        outcome = measure()
        result, measured = (MET if outcome.met else MISSED), outcome.measured
    except NotRunError as problem:
        result, measured = NOT_RUN, str(problem)
    except Exception as problem:
        traceback.print_exc()
        result, measured = MISSED, f"{type(problem).__name__}: {problem}"
    figure = Figure("", f"{name}: {what}", demand, measured, result, round(time.monotonic() - began, 1))
    print(figure, flush=True)
    return figure


def _look(name: str, folder: Path, seconds: int) -> Outcome:
    return native.measure(folder, seconds) if name == _NATIVE[0] else look(load()[name], folder, seconds)


def look(target: Target, folder: Path, seconds: int) -> Outcome:
    """Look for inputs in a process of its own, then count the work for what it came to."""
    argv = [sys.executable, "-m", "tests.fuzz.guided", target.name, str(folder), "--seconds", str(seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 300, check=False)
    found = sorted((folder / "found").glob("*"))
    if done.returncode != 0 or found:
        print(done.stderr[-3000:], file=sys.stderr)
        inputs = ", ".join(f"{path}: {path.read_bytes()[:200].hex()}" for path in found)
        return Outcome(f"found (exit status {done.returncode}): {inputs or done.stderr.strip()[-300:]}", met=False)
    problems = work.growth(target)
    most = 0
    for path in sorted((folder / "grown").glob("*")):
        data = path.read_bytes()
        try:
            most = max(most, work.bounded(target, data))
        except Finding as problem:
            problems.append(f"{path}: {problem}")
    text = _reached(done.stdout, done.stderr)
    told = f"; {'; '.join(problems)}" if problems else f"; at most {most} lines of Python for one of them"
    return Outcome(text + told, met=not problems)


def _reached(stdout: str, stderr: str) -> str:
    """What a run says of itself."""
    runs, reached = re.search(r"Done (\d+) runs", stderr), re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", stderr)
    if runs and reached:
        places, _, kept = reached[-1]
        return f"{runs[1]} inputs guided by coverage: {places} places in the code, {kept} kept"
    return f"{json.loads(stdout.splitlines()[-1])['runs']} mutations of the corpus, not guided"


def _against_a_server(row: Row, *, long: bool) -> Outcome:
    return asyncio.run(run(row, long=long, limit=LONG_LIMIT if long else LIMIT))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
