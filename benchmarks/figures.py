"""What the raw figures say: medians, spreads, ratios within a round, and whether the targets are met.

Rules of this file:
- pure: `Results` in, numbers out; nothing is rounded here;
- a ratio is taken between two runs of the same round, then the median over the rounds: the machine drifts, a round does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.results import SATURATED, STEADY, Results, Sample

OURS = "canal-dns"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its extremes."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Target:
    """How many times less CPU than a peer canal-dns is to use."""

    scenario: str
    peer: str
    times: float


TARGETS = (
    Target("hits", "coredns cache", 2.0),
    Target("hits", "coredns file", 6.0),
    Target("forward", "coredns", 2.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One contender of one scenario, summed up."""

    key: str
    cpu_us: Spread
    qps: Spread
    idle: float
    """The share of the server's core that nobody used in saturated runs (median)."""
    foreign: float
    """The share that others used (median)."""
    steady_cpu_us: float | None
    p50_us: float | None
    p99_us: float | None
    rss_mib: float
    lost: float
    """The share of all queries that got no answer, saturated and steady."""


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(results: Results, scenario: str, over: str, under: str) -> Spread | None:
    """CPU per query of `over` divided by that of `under`, round by round; None where one of them was not measured."""
    upper = {sample.round: sample.cpu_us for sample in results.of(scenario, SATURATED, over)}
    lower = {sample.round: sample.cpu_us for sample in results.of(scenario, SATURATED, under)}
    common = upper.keys() & lower.keys()
    return spread([upper[number] / lower[number] for number in sorted(common)]) if common else None


def rows(results: Results, scenario: str) -> list[Row]:
    """Every contender of a scenario, the least CPU per query first."""
    keys = [one.key for one in results.contestants if one.scenario == scenario]
    return sorted((_row(results, scenario, key) for key in keys), key=lambda row: row.cpu_us.middle)


def _row(results: Results, scenario: str, key: str) -> Row:
    saturated, steady = results.of(scenario, SATURATED, key), results.of(scenario, STEADY, key)
    everything = saturated + steady
    return Row(
        key=key,
        cpu_us=spread([sample.cpu_us for sample in saturated]),
        qps=spread([sample.qps for sample in saturated]),
        idle=statistics.median(sample.idle for sample in saturated),
        foreign=statistics.median(sample.foreign for sample in saturated),
        steady_cpu_us=_median(steady, lambda sample: sample.cpu_us),
        p50_us=_median(steady, lambda sample: sample.p50_us),
        p99_us=_median(steady, lambda sample: sample.p99_us),
        rss_mib=max(sample.rss_kib for sample in everything) / 1024,
        lost=sum(sample.lost for sample in everything) / sum(sample.sent for sample in everything),
    )


def _median(samples: Sequence[Sample], figure: Callable[[Sample], float | None]) -> float | None:
    values = [value for sample in samples if (value := figure(sample)) is not None]
    return statistics.median(values) if values else None
