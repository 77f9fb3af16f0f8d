"""`python -m benchmarks.render`: RESULTS.md, the plots and the README's table, from results/latest.json alone.

Rules of this file:
- pure but for `write` and `main`: the same JSON gives the same text;
- every figure of the text comes from the JSON; what cannot be computed from it is not claimed;
- nobody edits by hand what is written here: a test holds it against the JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot, readme
from benchmarks.errors import BenchError
from benchmarks.figures import GOALS, OURS, Goal, Row, Run, Spread, delta_milliseconds, ratio, rows, spread
from benchmarks.results import CALM, HALF, SATURATED, Results, read
from benchmarks.scenarios import HOT, MIX, SCENARIOS, SIZED, Scenario

HERE = Path(__file__).parent
_IDLE = 0.05
"""A server whose core had more idle time than this was not saturated: the load or the upstream was at its limit."""
_DISTURBED = 0.1
"""A core of which others used more than this share was not quiet."""
_REFERENCES = {
    "hits": (("echo", "echo"), ("knot", "Knot"), ("coredns cache", "CoreDNS `cache`")),
    "mix": (("coredns cache", "CoreDNS"),),
    "forward": (("dnsdist", "dnsdist"), ("coredns", "CoreDNS")),
    "cached": (("unbound", "Unbound"), ("coredns cache", "CoreDNS")),
    "tcp": (("unbound", "Unbound"), ("coredns cache", "CoreDNS")),
}
_SHORT = {HOT.name, *(one.name for one in SIZED)}
"""Scenarios that share one table."""


def report(results: Results) -> str:
    """RESULTS.md."""
    parts = [_head(results), _goals(results)]
    for scenario in SCENARIOS.values():
        if scenario.name in _SHORT:
            parts.append(_sizes(results) if scenario is SIZED[0] else "")
        elif scenario.name == "chain":
            parts.append(_chain(results))
        elif table := rows(results, scenario.name):
            parts.append(_scenario(results, scenario, table))
    parts += [_deltas(results), _comparison(results), _method(results), _limits(results), _left_out(results)]
    parts += [_machine(results), _repeat(results)]
    return "\n".join(part for part in parts if part)


def _foreign(results: Results) -> Spread:
    """The share of the server's core that others used in saturated runs."""
    return spread([sample.foreign for sample in results.samples if sample.kind == SATURATED] or [0.0])


def _head(results: Results) -> str:
    foreign = _foreign(results).middle
    disturbed = (
        f"""
**The machine was not quiet**: others used {foreign:.0%} of the server's core (median of the saturated runs). CPU per
query suffers from that too (caches, shorter batches), though less than queries/s and latencies, and not everybody's alike:
mind the spread.
"""
        if foreign > _DISTURBED
        else ""
    )
    return f"""# canal-dns beside its peers

Rendered by `benchmarks/render.py` from `results/latest.json`; not edited by hand.

One core for each server, in turn, in the same run. **Only the ratios carry over to another machine**: absolute figures differ
by a factor of two from one to the next, and from hour to hour on a shared one. Taken {results.taken} at {results.commit}.
{disturbed}"""


def _goals(results: Results) -> str:
    lines = [(goal.work, f"{goal.asked} {goal.than}", *_verdict(results, goal)) for goal in GOALS]
    table = _table(("work", "goal", "measured (min..max)", ""), lines)
    return f"""## Goals

CPU seconds per query of all processes of the server; "2 times Knot" means: Knot takes twice as much.

{table}
![CPU per query](results/cpu.svg)
"""


def _verdict(results: Results, goal: Goal) -> tuple[str, str]:
    measured = goal.figure(results)
    if measured is None:
        return "-", "not measured"
    by = abs(measured.middle / goal.limit - 1)
    return _spread(measured, goal.digits), f"met, by {by:.0%}" if goal.met(measured) else f"**missed, by {by:.0%}**"


def _scenario(results: Results, scenario: Scenario, table: list[Row]) -> str:
    name, references = scenario.name, _REFERENCES.get(scenario.name, ())
    present = [(key, label) for key, label in references if results.of(name, SATURATED, key)]
    heads = ["contender", "CPU us/query (min..max)", *(f"CPU / {label}" for _, label in present), "queries/s"]
    halves, calms = HALF in scenario.kinds, CALM in scenario.kinds
    heads += ["at half: q/s", "p50 us", "p99 us", "p99.9 us"] if halves else []
    heads += ["calm: CPU us/query", "p50 us"] if calms else []
    heads += ["RSS MB", "lost"]
    lines = []
    for row in table:
        line = [_name(row.key), _spread(row.cpu_us, 2)]
        for key, _ in present:
            relative = ratio(results, Run(name, row.key), Run(name, key))
            line.append(f"{relative.middle:.2f}" if relative else "-")
        line.append(f"{row.qps.middle:,.0f}{' †' if row.idle > _IDLE else ''}")
        if halves:
            figures = (row.p50_us, row.p99_us, row.p999_us)
            line += [f"{row.half_rate:,}", *(_number(figure, 0) for figure in figures)]
        if calms:
            line += [_number(row.calm_cpu_us, 1), _number(row.calm_p50_us, 0)]
        line += [_parts(row.rss_by_part, 0), f"{row.lost:.3%}" if row.lost else "0"]
        lines.append(tuple(line))
    text = f"## {scenario.title} (`{name}`)\n\n{_asked(scenario)}{_table(tuple(heads), lines)}\n"
    if halves:
        text += '"At half": half of the queries/s that this contender answered saturated, sent evenly. '
    if calms:
        text += '"Calm": 1,000 queries/s for everybody, by a generator that sleeps in between. '
    return text.rstrip() + "\n" + _unsaturated(scenario, table) + _notes(results, name, table)


def _asked(scenario: Scenario) -> str:
    if scenario.name != "mix":
        return ""
    return (
        f"Made by `canal-dns queries` with `--mix {MIX}`: each name for A and AAAA, misses of the search list (ndots:5) before "
        f"it; {scenario.missing:.0%} of all queries are NXDOMAIN, {scenario.empty:.0%} have no such record.\n\n"
    )


def _unsaturated(scenario: Scenario, table: list[Row]) -> str:
    idle = [row for row in table if row.idle > _IDLE]
    if not idle:
        return ""
    bottleneck = "the load or the upstream" if scenario.block in ("forward", "mix", "cached") else "the load"
    shares = ", ".join(f"{row.key} {row.idle:.0%}" for row in idle)
    return (
        f"\n† not saturated: {bottleneck} was the bottleneck, and the server's core idle for a part of the time ({shares}): "
        "it can do more queries/s than shown, with longer batches and so less CPU for each.\n"
    )


def _notes(results: Results, scenario: str, table: Sequence[Row]) -> str:
    notes = {one.key: f"{one.key} {one.version}: {one.note}" for one in results.contestants if one.scenario == scenario}
    return "\n" + "".join(f"- {notes[row.key]}\n" for row in table)


def _sizes(results: Results) -> str:
    tables = {scenario: rows(results, scenario.name) for scenario in (*SIZED, HOT)}
    keys = list(dict.fromkeys(row.key for table in tables.values() for row in table))
    if not keys:
        return ""
    by_key = {key: {scenario: row for scenario, table in tables.items() for row in table if row.key == key} for key in keys}
    shown = [scenario for scenario, table in tables.items() if table]
    heads = ["CPU us/query (min..max)", *(_size(scenario) for scenario in shown)]
    lines = [
        (_name(key), *(_spread(row.cpu_us, 2) if (row := found.get(scenario)) else "-" for scenario in shown))
        for key, found in by_key.items()
    ]
    memory = [
        (_name(key), *(_parts(row.rss_by_part, 0) if (row := found.get(scenario)) else "-" for scenario in shown))
        for key, found in by_key.items()
    ]
    idle = "".join(_unsaturated(scenario, table) for scenario, table in tables.items())
    return f"""## The size of the table (`names`)

Every name of the table is asked, in random order; in the last column only 1,000 of them.

{_table(tuple(heads), lines)}{idle}
![CPU per query by size of the table](results/sizes.svg)

Memory (RSS, MB; pages that the processes of a server share count in each):

{_table(("RSS MB", *heads[1:]), memory)}"""


def _size(scenario: Scenario) -> str:
    return "1,000 of 100,000" if scenario is HOT else f"{len(scenario.addresses):,} names"


def _chain(results: Results) -> str:
    table = rows(results, "chain")
    if not table:
        return ""
    lines = [
        (
            row.key,
            _spread(row.cpu_us, 1),
            _parts(row.by_part, 1),
            f"{row.qps.middle:,.0f}",
            _number(row.calm_cpu_us, 1),
            _parts(row.calm_by_part, 1),
            _number(row.calm_p50_us, 0),
        )
        for row in table
    ]
    heads = ("chain", "CPU us/query (min..max)", "of it", "queries/s", "calm: CPU us/query", "of it", "p50 us")
    return (
        f"## {SCENARIOS['chain'].title} (`chain`)\n\nThree of five queries are for bound names. Without canal-dns CoreDNS "
        f"answers all of them with the Services' own addresses.\n\n{_table(heads, lines)}{_notes(results, 'chain', table)}"
    )


def _deltas(results: Results) -> str:
    lines = []
    for workers in dict.fromkeys(one.workers for one in results.deltas):
        runs = [one for one in results.deltas if one.workers == workers]
        whole = delta_milliseconds(workers)(results)
        assert whole is not None
        control, others = (
            spread([seconds / one.changes * 1e3 for one, seconds in pairs])
            for pairs in ([(one, one.control_seconds) for one in runs], [(one, one.workers_seconds) for one in runs])
        )
        lines.append((str(workers), *(_spread(value, 3) for value in (whole, control, others))))
    if not lines:
        return ""
    first = results.deltas[0]
    heads = ("workers", "CPU ms per change (min..max)", "control process", "all workers")
    return f"""## A change of one name (`delta`)

A table of {first.names:,} names, {first.changes} changes of one name each, a few milliseconds apart: the publisher, the links
and the workers' tables, with every wake-up; not the reading of the object ([SCALE.md](SCALE.md)).

{_table(heads, lines)}"""


def _comparison(results: Results) -> str:
    if len(results.comparison) < 2:
        text = f"Only {results.method.generator} could send here; nothing to compare it with.\n"
        return f"## The load generators\n\n{text}"
    lines = [
        (
            sample.generator,
            f"{sample.qps:,.0f}",
            f"{sample.cpu_us:.2f}",
            f"{sample.busy:.0%}",
            f"{sample.idle:.0%}",
            str(sample.lost),
        )
        for sample in results.comparison
    ]
    first = results.comparison[0]
    table = _table(
        ("generator", "queries/s", "CPU us/query of the server", "server's share of its core", "idle", "lost"), lines
    )
    best = max(results.comparison, key=lambda sample: sample.qps)
    slack = min(results.comparison, key=lambda sample: sample.qps)
    text = (
        f"Each against {first.key} ({first.scenario}), which needs least CPU of all there, one after the other: "
        f"{best.generator} gets {best.qps / slack.qps:.2f} times as many queries/s out of it as {slack.generator}. "
    )
    foreign = max(sample.foreign for sample in results.comparison)
    if foreign > _DISTURBED:
        text += f"But others used up to {foreign:.0%} of the server's core meanwhile: that says little about the generators.\n"
    elif best.idle > _IDLE:
        text += "The server still had idle time: even the faster generator is its bottleneck.\n"
    else:
        text += "Under the faster one the server is the bottleneck.\n"
    return f"## The load generators\n\n{table}\n{text}"


def _method(results: Results) -> str:
    method, machine = results.method, results.machine
    return f"""## How it is measured

- Every server is pinned to core {machine["server_core"]} with one worker or thread (`GOMAXPROCS=1` for CoreDNS). The load
  generator ({method.generator}) and, for whoever forwards, the upstream ({method.upstream}: authoritative, much
  faster than any forwarder) share core {machine["load_core"]}. All over 127.0.0.1.
- UDP: RD=1, without EDNS; 192 queries open over 8 sockets. An answer counts when it repeats ID and question; a query without
  an answer within 0.5 s is lost.
- Saturated: {_rounds(method.rounds)} of {method.seconds:g} s, interleaved (A B C, A B C, ...), after a warm-up, each after a
  moment of load that does not count. At half and calm: {_rounds(method.paced_rounds)} ({method.calm_seconds:g} s where calm).
  Medians, with min..max; ratios are taken within a round.
- CPU per query: user and system time of all processes of the server (the kernel's process CPU clocks: the nanoseconds behind
  utime and stime of `/proc/PID/stat`), divided by the answers received. The kernel's work on packets is part of it, as far
  as it happens in the server's own system calls.
- canal-dns runs as in a pod with one CPU: `workers: 1`, a control process and a worker, CPU and RSS of both counted. It reads
  its names from manifests, as many Services and VirtualServices; 100,000 names from the table that it saves for a restart.
  Which packet loop it runs is asked of `/metrics` first: `canal-dns` the compiled one, `canal-dns mmsg` what runs where
  nothing was compiled, `canal-dns pure` plain Python.
- A server is measured once it gave the right address for three names; the upstream knows the bound names by other addresses,
  so that a name which is forwarded instead of answered is found out. Response codes and empty answers are counted in every run.
"""


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds"


def _limits(results: Results) -> str:
    foreign = _foreign(results)
    half = [sample for sample in results.samples if sample.kind == HALF]
    late = sum(sample.problems.get("late", 0) for sample in half) / max(1, sum(sample.sent for sample in half))
    return f"""## What it does not show

- One client address, small and well-formed queries: no floods, no EDNS, no IPv6.
- One core. How it scales over workers is not measured here.
- Loopback has no network card: interrupts, and receiving up to a socket's queue, are not in the server's figures.
- But for the calm runs the generator never sleeps, so that no server pays for waking it up; real clients do.
- CoreDNS runs without `errors`, `log`, `prometheus` and `kubernetes`: a cluster's own costs more per query than is shown.
- The machine is shared. In saturated runs others used {foreign.middle:.0%} of the server's core (median; at
  worst {foreign.high:.0%}). CPU per query counts only the server's own time, yet caches and clock rates are shared;
  queries/s, and p99 above all, also suffer from who else runs. At half of the peak rate, {late:.1%} of the queries left later
  than the next one was due.
"""


def _left_out(results: Results) -> str:
    if not results.left_out:
        return "## Left out\n\nNobody.\n"
    lines = [
        f"- {one.key} ({one.scenario}): {one.why}" + (f"; to have it: {one.install}" if one.install else "")
        for one in results.left_out
    ]
    return "## Left out\n\n" + "\n".join(lines) + "\n"


def _machine(results: Results) -> str:
    machine = results.machine
    software = ", ".join(f"{name} {version}" for name, version in results.software.items())
    return (
        "## Machine\n\n"
        f"{machine['cpu']}, {machine['cores']} cores (the server's core shares its hardware with: {machine['siblings']}), "
        f"{machine['memory_mib']:,} MiB, Linux {machine['kernel']}, {machine['system']}; {software}.\n"
    )


def _repeat(results: Results) -> str:
    return f"## To repeat it\n\nIt took {results.method.minutes:g} minutes.\n\n```\n{results.command}\n```\n"


def speed(results: Results) -> str:
    """The README's table: each row with the command that measures it again."""
    lines = [
        (goal.work, f"**{measured.middle:.{goal.digits}f}** {goal.than}", goal.asked, f"`make bench ONLY={goal.command}`")
        for goal in GOALS
        if (measured := goal.figure(results)) is not None
    ]
    table = _table(("work", "canal-dns", "goal", "to measure it again"), lines)
    return (
        f"\n{table}\nCPU per query, one core each, in one run ({results.taken[:10]}, {results.machine['cpu']}, "
        f'Linux {results.machine["kernel"]}): "2 times Knot" means that Knot takes twice as much.\n\n'
    )


def _name(key: str) -> str:
    return f"**{key}**" if key.startswith(OURS) else key


def _parts(parts: dict[str, float], digits: int) -> str:
    """`146 (control 110 + workers 36)`; one figure where there is one part."""
    whole = f"{sum(parts.values()):,.{digits}f}"
    if len(parts) < 2:
        return whole
    return f"{whole} ({' + '.join(f'{part} {value:,.{digits}f}' for part, value in parts.items())})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" if not at else "---:" for at in range(len(heads)))
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"| {' | '.join(heads)} |\n|{rule}|\n{body}"


def _spread(value: Spread, digits: int) -> str:
    return f"{value.middle:.{digits}f} ({value.low:.{digits}f}..{value.high:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def write(results: Results, folder: Path) -> None:
    """RESULTS.md and the plots in `folder`; for this package's own, the README's table too."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(report(results))
    (folder / "results" / "cpu.svg").write_text(plot.bars(results))
    (folder / "results" / "sizes.svg").write_text(plot.sizes(results))
    if folder == HERE:
        readme.fill("speed", speed(results))


def main() -> int:
    try:
        write(read(HERE / "results" / "latest.json"), HERE)
    except BenchError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
