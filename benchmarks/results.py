"""A measurement as data: what was measured, where, by what, and the raw figure of every run.

Rules of this file:
- the JSON holds raw figures only; medians, ratios and verdicts are made from it when it is rendered;
- reading is strict: an unknown or missing key, or a figure of the wrong type, is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

SCHEMA = 2

SATURATED = "saturated"
"""A full window all the time."""
HALF = "half"
"""Half of what this contender answered saturated, sent evenly."""
CALM = "calm"
"""1,000 queries a second for everybody, by a generator that sleeps in between."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who was measured."""

    key: str
    scenario: str
    version: str
    note: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Who was not, and why; `install`: how to have it next time, empty where that is not the reason."""

    key: str
    scenario: str
    why: str
    install: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a load generator against one contender."""

    key: str
    scenario: str
    kind: str
    """saturated | half | calm"""
    round: int
    rate: int
    """Queries a second that were sent evenly; 0: as fast as the server answers."""
    generator: str
    sent: int
    answered: int
    lost: int
    seconds: float
    qps: float
    cpu_seconds: float
    """Of all processes of the server, over the whole run, the generator's drain included."""
    foreign_seconds: float
    """In which the server's core worked for somebody else (resolution 10 ms)."""
    cpu_by_part: dict[str, float]
    """The same, by what the processes are: a server behind another, the control process and its workers."""
    rss_by_part: dict[str, int]
    """KiB, after the run; pages that processes share count in each."""
    p50_us: float | None
    p99_us: float | None
    p999_us: float | None
    rcodes: dict[str, int]
    problems: dict[str, int]

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per answer."""
        return self.cpu_seconds / self.answered * 1e6

    @property
    def rss_kib(self) -> int:
        return sum(self.rss_by_part.values())

    @property
    def busy(self) -> float:
        """The share of the core that the server used."""
        return self.cpu_seconds / self.seconds

    @property
    def foreign(self) -> float:
        """The share of the core that others used."""
        return self.foreign_seconds / self.seconds

    @property
    def idle(self) -> float:
        """The share of the core that nobody used: in a saturated run, something else was the bottleneck."""
        return max(0.0, 1 - self.busy - self.foreign)


@dataclass(frozen=True, slots=True)
class Deltas:
    """Changes of one name each, published one after the other to a running data plane; seconds: CPU time, for all of them."""

    round: int
    names: int
    workers: int
    changes: int
    control_seconds: float
    workers_seconds: float

    @property
    def milliseconds(self) -> float:
        """CPU of all processes for one change."""
        return (self.control_seconds + self.workers_seconds) / self.changes * 1e3


@dataclass(frozen=True, slots=True)
class Method:
    """How it was measured."""

    rounds: int
    paced_rounds: int
    seconds: float
    calm_seconds: float
    blocks: list[str]
    generator: str
    upstream: str
    minutes: float


@dataclass(frozen=True, slots=True)
class Results:
    schema: int
    taken: str
    """UTC, ISO 8601."""
    commit: str
    command: str
    machine: dict[str, str | int]
    software: dict[str, str]
    method: Method
    contestants: list[Contestant]
    left_out: list[LeftOut]
    samples: list[Sample]
    deltas: list[Deltas]
    comparison: list[Sample]
    """Saturated runs of one contender by every generator there is, taken one after the other."""

    def of(self, scenario: str, kind: str, key: str | None = None) -> list[Sample]:
        """The samples of a scenario and kind, of one contender or of all, in the order of the rounds."""
        return [
            sample
            for sample in self.samples
            if sample.scenario == scenario and sample.kind == kind and key in (None, sample.key)
        ]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(path: Path) -> Results:
    """Raises BenchError for a file that is no such measurement."""
    try:
        plain = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise BenchError(f"{path}: {problem}") from None
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise BenchError(f"{path}: not a measurement of schema {SCHEMA}")
    result: Results = build(Results, plain, path.name)
    return result


def build(kind: Any, value: Any, where: str) -> Any:
    """A dataclass from plain JSON, strictly. Raises BenchError with the place of what does not fit."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BenchError(f"{where}: an object is needed")
        hints = typing.get_type_hints(kind)
        if value.keys() != hints.keys():
            raise BenchError(f"{where}: keys missing or unknown: {', '.join(sorted(value.keys() ^ hints.keys()))}")
        return kind(**{key: build(hint, value[key], f"{where}.{key}") for key, hint in hints.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [build(arguments[0], item, f"{where}[{at}]") for at, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(key): build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    allowed = arguments if origin is types.UnionType else (kind,)
    if type(value) in allowed or (float in allowed and type(value) is int):
        return value
    raise BenchError(f"{where}: {value!r} is not {' or '.join(getattr(one, '__name__', str(one)) for one in allowed)}")
