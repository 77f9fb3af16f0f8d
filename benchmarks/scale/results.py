"""A measurement at scale as data: raw figures only; what is made of them is made when they are rendered."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.results import build

SCHEMA = 1
QUIET, BUSY = "quiet", "busy"


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB of each process, the control process first."""

    key: str
    moment: str
    rss: list[int]
    pss: list[int]


@dataclass(frozen=True, slots=True)
class Changes:
    """Single changes, one after the other. `seconds`: from the API server's reply to the first answer that follows it."""

    key: str
    load: str
    change: str
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Hits:
    """Paced queries for names that are answered from memory."""

    key: str
    load: str
    round: int
    seconds: list[float]
    lost: int


@dataclass(frozen=True, slots=True)
class Work:
    """CPU seconds of each process, the control process first, over so many seconds."""

    key: str
    load: str
    seconds: float
    cpu: list[float]
    events: float
    """Events of watches that canal-dns counted meanwhile; 0 for CoreDNS, which counts none."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What was written beside a measurement."""

    key: str
    during: str
    written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Many VirtualServices created at once: seconds from the first request to the last reply, and to the last answer."""

    count: int
    created: float
    answered: float


@dataclass(frozen=True, slots=True)
class Results:
    schema: int
    taken: str
    """UTC, ISO 8601."""
    commit: str
    command: str
    machine: dict[str, str | int]
    software: dict[str, str]
    load_average: list[float]
    """Of the last minute, before each part of the measurement: what others had to do."""
    foreign: float
    """The share of the server's core that neither contender used."""
    size: dict[str, int]
    fill_seconds: float
    starts: dict[str, list[float]]
    """Key -> seconds of each start."""
    start_cpu: dict[str, list[float]]
    """Key -> CPU seconds of all its processes until then."""
    memory: list[Memory]
    changes: list[Changes]
    hits: list[Hits]
    work: list[Work]
    noise: list[Noise]
    at_once: list[AtOnce]
    histograms: dict[str, dict[str, float]]
    """canal_dns_event_to_answer_seconds of the single changes: load -> upper bound -> count until then, "sum", "count"."""

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), separators=(",", ":")).replace('},{"key"', '},\n{"key"') + "\n")


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
