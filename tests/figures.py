"""Figures of the long runs (faults, soak, fuzzing), kept as JSON beside them: docs/reliability.md is rendered from them.

Rules of this file:
- one form for all: rows of what was done, what is demanded, what was measured, and whether that is met.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from canal_dns import __version__

MET, MISSED, NOT_RUN = "met", "missed", "not run"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `id` may be empty; `result`: MET, MISSED or NOT_RUN; `seconds`: how long it took."""

    id: str
    what: str
    demand: str
    measured: str
    result: str
    seconds: float

    def __str__(self) -> str:
        head = f"{self.id:4}{self.result:8}{self.what}"
        return f"{head}\n    demanded: {self.demand}\n    measured: {self.measured}  [{self.seconds:.0f} s]"


def failing(figures: Sequence[Figure], timed: Collection[str] = ()) -> list[Figure]:
    """Those for which a run ends with 1: all that are not met, but those of `timed` that were merely missed.

    `timed`: ids of what others on the same machine can spoil: a share of its peak, a ratio of two latencies.
    """
    return [figure for figure in figures if figure.result != MET and not (figure.result == MISSED and figure.id in timed)]


def conclude(figures: Sequence[Figure], timed: Collection[str] = ()) -> int:
    """Say how many are met, and give the exit status of a run; `timed` as for `failing`."""
    missed, wrong = sum(figure.result != MET for figure in figures), failing(figures, timed)
    print(f"{len(figures) - missed} met, {missed} not" + (f", of which count: {len(wrong)}" if len(wrong) != missed else ""))
    return 1 if wrong else 0


def write(path: Path, figures: Sequence[Figure], *, form: str) -> None:
    """Keep them; `form`: how the run was started ("long", "600 s")."""
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}
    told = {
        "date": date.today().isoformat(),
        "version": __version__,
        "form": form,
        "machine": machine,
        "figures": [dataclasses.asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def read(path: Path) -> tuple[dict[str, object], list[Figure]]:
    """What `write` kept: everything beside the figures, and the figures. Raises FileNotFoundError."""
    told = json.loads(path.read_text())
    figures = [Figure(**row) for row in told.pop("figures")]
    return told, figures
