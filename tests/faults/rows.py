"""The rows of the fault bench: the fault, what is demanded of canal-dns under it, and the scenario that measures it.

    @row("U1", "upstream silent from the start", "SERVFAIL with the question within the budget + 0.5 s for all; ...")
    async def silent(bench: Bench) -> Outcome: ...

Rules of this file:
- a scenario is one function per row, in a module named after its subject (`SUBJECTS`); the order of rows is that of `IDS`;
- a row ends as met, missed, or not run with the reason; none is left out in silence;
- a scenario says what it measured in figures with units; `met` compares exactly these with the demand.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.bench import Bench

IDS = tuple(f"{kind}{number}" for kind, most in (("U", 22), ("K", 15), ("P", 21), ("A", 6)) for number in range(1, most + 1))
"""Every row there must be: faults of the upstreams, of the Kubernetes API, of process, kernel and network, and abuse."""

SUBJECTS = {"U": "upstream", "K": "apiserver", "P": "process", "A": "abuse"}
"""What the names of a kind's modules begin with, and nothing else in this package."""


TIMED = frozenset({"U1", "U2", "U3", "U19", "U22", "K10", "P1", "P2", "P3", "P13", "P14", "P15", "P20", "A1", "A2"})
"""Whose demand is a ratio of two latencies, or a share of a CPU or of the machine's peak: who else runs there decides, too."""


class NotRunError(Exception):
    """This machine cannot have the fault; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario measured, and whether the demand is met."""

    measured: str
    met: bool


Scenario = Callable[["Bench"], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    fault: str
    demand: str
    scenario: Scenario


ROWS: dict[str, Row] = {}


def row(ident: str, fault: str, demand: str) -> Callable[[Scenario], Scenario]:
    """Registers the scenario of a row. Raises ValueError for an unknown row, or one that has a scenario already."""

    def register(scenario: Scenario) -> Scenario:
        if ident not in IDS or ident in ROWS:
            raise ValueError(f"{ident}: {'unknown' if ident not in IDS else 'it has a scenario already'}")
        ROWS[ident] = Row(ident, fault, demand, scenario)
        return scenario

    return register


def chosen(wanted: Iterable[str]) -> list[Row]:
    """These rows, or all if none is named, in order. Raises KeyError for a row without a scenario."""
    idents = list(wanted) or IDS
    for subject in {SUBJECTS[ident[0]] for ident in idents}:
        for module in sorted(Path(__file__).parent.glob(f"{subject}_*.py")):
            importlib.import_module(f"tests.faults.{module.stem}")
    return [ROWS[ident] for ident in sorted(idents, key=IDS.index)]
