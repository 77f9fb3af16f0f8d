"""What the raw figures say: medians, spreads, ratios within a round, and whether the goals are met.

Rules of this file:
- pure: `Results` in, numbers out; nothing is rounded here;
- a ratio is taken between two runs of the same round, then the median over the rounds: the machine drifts, a round does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.results import CALM, HALF, SATURATED, Results, Sample

OURS = "canal-dns"
MMSG = "canal-dns mmsg"
PURE = "canal-dns pure"
MEGABYTE = 1_000_000

Figure = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its extremes."""

    middle: float
    low: float
    high: float


def cpu_us(sample: Sample) -> float:
    return sample.cpu_us


def p99_us(sample: Sample) -> float | None:
    return sample.p99_us


@dataclass(frozen=True, slots=True)
class Run:
    """One side of a ratio: a contender under the queries of a scenario."""

    scenario: str
    key: str
    kind: str = SATURATED


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of canal-dns, and where it is seen."""

    work: str
    than: str
    """Beside whom, or in which unit."""
    limit: float
    at_least: bool
    """True: more is better."""
    figure: Callable[[Results], Spread | None]
    command: str
    """The block to be run for this figure alone."""
    digits: int = 2

    def met(self, measured: Spread) -> bool:
        return measured.middle >= self.limit if self.at_least else measured.middle <= self.limit

    @property
    def asked(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def _times(scenario: str, peer: str, ours: str = OURS, kind: str = SATURATED) -> Callable[[Results], Spread | None]:
    """How many times the CPU per query of ours the peer takes."""
    return lambda results: ratio(results, Run(scenario, peer, kind), Run(scenario, ours, kind))


def _share(over: Run, under: Run, figure: Figure = cpu_us) -> Callable[[Results], Spread | None]:
    return lambda results: ratio(results, over, under, figure)


def worker_megabytes(scenario: str) -> Callable[[Results], Spread | None]:
    """RSS of the worker alone, in millions of octets."""

    def of(results: Results) -> Spread | None:
        samples = results.of(scenario, SATURATED, OURS)
        return spread([sample.rss_by_part["workers"] * 1024 / MEGABYTE for sample in samples]) if samples else None

    return of


def delta_milliseconds(workers: int) -> Callable[[Results], Spread | None]:
    def of(results: Results) -> Spread | None:
        values = [one.milliseconds for one in results.deltas if one.workers == workers]
        return spread(values) if values else None

    return of


GOALS = (
    Goal("hits, extension", "times Knot", 1.2, True, _times("hits", "knot"), "hits"),
    Goal("hits, extension", "times CoreDNS `cache`", 4, True, _times("hits", "coredns cache"), "hits"),
    Goal("hits, extension", "times CoreDNS zone data", 12, True, _times("hits", "coredns file"), "hits"),
    Goal("hits, extension", "of the C echo's cost", 1.15, False, _share(Run("hits", OURS), Run("hits", "echo")), "hits"),
    Goal("hits, nothing compiled", "times Knot", 0.65, True, _times("hits", "knot", MMSG), "hits"),
    Goal("hits, `CANAL_DNS_NO_EXTENSIONS=1`", "times Knot", 0.65, True, _times("hits", "knot", PURE), "hits"),
    Goal(
        "100,000 names, all asked", "of the cost with 100", 1.15, False,
        _share(Run("names-100000", OURS), Run("names-100", OURS)), "names",
    ),
    Goal(
        "100,000 names, 1,000 asked", "of the cost with 100", 1.15, False,
        _share(Run("hot-100000", OURS), Run("names-100", OURS)), "names",
    ),
    Goal(
        "10,000 bound names", "of the cost with 10 (flat)", 1.1, False,
        _share(Run("names-10000", OURS), Run("names-10", OURS)), "names",
    ),
    Goal("Kubernetes mix, cache on", "times CoreDNS `cache`", 3, True, _times("mix", "coredns cache"), "mix"),
    Goal("forward, extension", "times dnsdist", 1.25, True, _times("forward", "dnsdist"), "forward"),
    Goal("forward, extension", "times CoreDNS `forward`", 4, True, _times("forward", "coredns"), "forward"),
    Goal("forward, nothing compiled", "times dnsdist", 0.65, True, _times("forward", "dnsdist", MMSG), "forward"),
    Goal("forward, `CANAL_DNS_NO_EXTENSIONS=1`", "times dnsdist", 0.65, True, _times("forward", "dnsdist", PURE), "forward"),
    Goal("cached forward", "times Unbound", 1, True, _times("cached", "unbound"), "cached"),
    Goal("TCP, 16 connections, 32 in flight each", "times CoreDNS", 3, True, _times("tcp", "coredns cache"), "tcp"),
    Goal("TCP, 16 connections, 32 in flight each", "times Unbound", 1, True, _times("tcp", "unbound"), "tcp"),
    Goal(
        "p99 at half of the peak rate", "of Knot's", 1.2, False,
        _share(Run("hits", OURS, HALF), Run("hits", "knot", HALF), p99_us), "hits",
    ),
    Goal("RSS of a worker, 10,000 names", "MB", 45, False, worker_megabytes("names-10000"), "names", 1),
    Goal(
        "CPU per query at a calm 1,000 q/s", "of CoreDNS's", 0.5, False,
        _share(Run("hits", OURS, CALM), Run("hits", "coredns cache", CALM)), "hits",
    ),
    Goal(
        "CPU per query at a calm 1,000 q/s", "of Knot's", 1.1, False,
        _share(Run("hits", OURS, CALM), Run("hits", "knot", CALM)), "hits",
    ),
    Goal("change of one name, one worker", "ms of CPU", 0.2, False, delta_milliseconds(1), "delta", 3),
    Goal("change of one name, two workers", "ms of CPU", 0.2, False, delta_milliseconds(2), "delta", 3),
)  # fmt: skip


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
    half_rate: int
    p50_us: float | None
    p99_us: float | None
    p999_us: float | None
    calm_cpu_us: float | None
    calm_p50_us: float | None
    calm_by_part: dict[str, float]
    """CPU microseconds per query of each part at the calm rate."""
    by_part: dict[str, float]
    """The same, saturated."""
    rss_by_part: dict[str, float]
    """Millions of octets, the most of all runs."""
    lost: float
    """The share of all queries that got no answer."""

    @property
    def rss(self) -> float:
        return sum(self.rss_by_part.values())


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(results: Results, over: Run, under: Run, figure: Figure = cpu_us) -> Spread | None:
    """A figure of `over` divided by that of `under`, round by round; None where one of them was not measured."""
    upper, lower = (
        {sample.round: value for sample in results.of(run.scenario, run.kind, run.key) if (value := figure(sample)) is not None}
        for run in (over, under)
    )
    common = upper.keys() & lower.keys()
    return spread([upper[number] / lower[number] for number in sorted(common)]) if common else None


def rows(results: Results, scenario: str) -> list[Row]:
    """Every contender of a scenario, the least CPU per query first."""
    keys = [one.key for one in results.contestants if one.scenario == scenario]
    found = [_row(results, scenario, key) for key in keys if results.of(scenario, SATURATED, key)]
    return sorted(found, key=lambda row: row.cpu_us.middle)


def _row(results: Results, scenario: str, key: str) -> Row:
    saturated, half, calm = (results.of(scenario, kind, key) for kind in (SATURATED, HALF, CALM))
    everything = saturated + half + calm
    return Row(
        key=key,
        cpu_us=spread([sample.cpu_us for sample in saturated]),
        qps=spread([sample.qps for sample in saturated]),
        idle=statistics.median(sample.idle for sample in saturated),
        foreign=statistics.median(sample.foreign for sample in saturated),
        half_rate=half[0].rate if half else 0,
        p50_us=_median(half, lambda sample: sample.p50_us),
        p99_us=_median(half, lambda sample: sample.p99_us),
        p999_us=_median(half, lambda sample: sample.p999_us),
        calm_cpu_us=_median(calm, cpu_us),
        calm_p50_us=_median(calm, lambda sample: sample.p50_us),
        calm_by_part=_by_part(calm),
        by_part=_by_part(saturated),
        rss_by_part={
            part: max(sample.rss_by_part[part] for sample in everything) * 1024 / MEGABYTE for part in saturated[0].rss_by_part
        },
        lost=sum(sample.lost for sample in everything) / sum(sample.sent for sample in everything),
    )


def _by_part(samples: Sequence[Sample]) -> dict[str, float]:
    if not samples:
        return {}
    return {
        part: statistics.median(sample.cpu_by_part[part] / sample.answered * 1e6 for sample in samples)
        for part in samples[0].cpu_by_part
    }


def _median(samples: Sequence[Sample], figure: Figure) -> float | None:
    values = [value for sample in samples if (value := figure(sample)) is not None]
    return statistics.median(values) if values else None
