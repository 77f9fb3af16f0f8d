"""`python -m tests.faults [ROW ...] [--long] [--shared] [--write]`: every fault, a line for each.

Rules of this file:
- all of it runs in a network namespace of its own: whatever is sent, floods and forgeries among it, stays on its loopback;
- exit status: 0 all demands were met, 1 one was missed or could not be measured, 2 bad use;
- `--shared`, for CI: a row that is missed is measured again, up to `TIMES`; one of rows.TIMED is told then, and fails nothing;
- `--write` keeps the figures (results.json), from which docs/reliability.md is rendered; only a run of all rows may.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from pathlib import Path

from tests.e2e.namespace import again_inside
from tests.faults.bench import run
from tests.faults.rows import IDS, TIMED, NotRunError, Row, chosen
from tests.figures import MET, MISSED, NOT_RUN, Figure, conclude, write

RESULTS = Path(__file__).with_name("results.json")
LIMIT, LONG_LIMIT = 120.0, 1200.0
"""Seconds that one row may take."""
TIMES = 3
"""Measurements of a row on a shared machine, at most."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="canal-dns under every fault of the bench")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="U1 ... U22, K1 ... K15, P1 ... P21, A1 ... A6; default: all")
    parser.add_argument("--long", action="store_true", help="the figures at full length: about an hour")
    parser.add_argument("--shared", action="store_true", help="others use this machine: what their load spoils fails nothing")
    parser.add_argument("--write", action="store_true", help="keep the figures for docs/reliability.md")
    wanted = parser.parse_args(arguments)
    if unknown := [ident for ident in wanted.rows if ident not in IDS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are U1 to U22, K1 to K15, P1 to P21 and A1 to A6")
    if wanted.write and wanted.rows:
        parser.error("--write is for a run of all rows")
    status = again_inside("tests.faults", arguments, cannot="the fault bench cannot run")
    if status is not None:
        return status
    figures = [repeated(row, long=wanted.long, times=TIMES if wanted.shared else 1) for row in chosen(wanted.rows)]
    status = conclude(figures, TIMED if wanted.shared else ())
    if wanted.write:
        form = "long form" if wanted.long else "short form"
        write(RESULTS, figures, form=f"{form}, what was missed measured up to {TIMES} times" if wanted.shared else form)
    return status


def repeated(row: Row, *, long: bool, times: int) -> Figure:
    """The first figure that is not missed, of so many measurements at most; else the last one."""
    figure = one(row, long=long)
    while figure.result == MISSED and (times := times - 1) > 0:
        figure = one(row, long=long)
    return figure


def one(row: Row, *, long: bool) -> Figure:
    """Measure a row, print its lines, and give its figure."""
    began = time.monotonic()
    try:
        outcome = asyncio.run(run(row, long=long, limit=LONG_LIMIT if long else LIMIT))
        result, measured = (MET if outcome.met else MISSED), outcome.measured
    except NotRunError as problem:
        result, measured = NOT_RUN, str(problem)
    except Exception as problem:
        traceback.print_exc()
        result, measured = MISSED, f"could not be measured: {type(problem).__name__}: {problem}"
    figure = Figure(row.id, row.fault, row.demand, measured, result, round(time.monotonic() - began, 1))
    print(figure, flush=True)
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
