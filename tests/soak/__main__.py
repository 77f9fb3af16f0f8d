"""`python -m tests.soak [--seconds 600] [--shared] [--write]`: 70 % of the peak while all goes wrong.

Rules of this file:
- all of it runs in a network namespace of its own;
- exit status: 0 all demands were met, 1 one was missed or could not be measured, 2 bad use;
- `--shared`, for CI: what is missed of `TIMED` is told, and fails nothing;
- `--write` keeps the figures (results.json), from which docs/reliability.md is rendered.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks.errors import BenchError
from tests.e2e.namespace import again_inside
from tests.figures import conclude, write
from tests.soak.load import LoadError
from tests.soak.soak import soak

RESULTS = Path(__file__).with_name("results.json")
SHORTEST = 30.0
"""Seconds: in less not everything has happened twice."""
TIMED = frozenset({"S1", "S3", "S4", "S5"})
"""The load, what was lost, SERVFAIL and memory (queues are memory): nobody keeps up with a peak that others then take away."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="canal-dns under load, disturbed all the time")
    parser.add_argument("--seconds", type=float, default=600.0, help=f"of load, {SHORTEST:g} at least; default: %(default)g")
    parser.add_argument("--shared", action="store_true", help="others use this machine: what their load spoils fails nothing")
    parser.add_argument("--write", action="store_true", help="keep the figures for docs/reliability.md")
    wanted = parser.parse_args(arguments)
    if wanted.seconds < SHORTEST:
        parser.error(f"--seconds is {SHORTEST:g} at least")
    status = again_inside("tests.soak", arguments, cannot="the soak cannot run")
    if status is not None:
        return status
    try:
        figures = asyncio.run(soak(wanted.seconds))
    except (LoadError, BenchError) as problem:
        print(f"the soak cannot run: {problem}", file=sys.stderr)
        return 1
    for figure in figures:
        print(figure)
    status = conclude(figures, TIMED if wanted.shared else ())
    if wanted.write:
        write(RESULTS, figures, form=f"{wanted.seconds:g} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
