"""`python -m benchmarks.render`: RESULTS.md and the plot, from results/latest.json alone. Nobody edits them by hand.

Rules of this file:
- pure but for `write` and `main`: the same JSON gives the same text;
- every figure of the text comes from the JSON; what cannot be computed from it is not claimed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot
from benchmarks.errors import BenchError
from benchmarks.figures import OURS, TARGETS, Row, Spread, Target, ratio, rows, spread
from benchmarks.results import SATURATED, STEADY, Results, read
from benchmarks.scenarios import SCENARIOS

HERE = Path(__file__).parent
_IDLE = 0.05
"""A server whose core had more idle time than this was not saturated: the load or the upstream was at its limit."""
_DISTURBED = 0.1
"""A core of which others used more than this share was not quiet."""
_REFERENCES = {"hits": (("knot", "Knot"), ("coredns cache", "CoreDNS `cache`")), "forward": (("coredns", "CoreDNS"),)}


def report(results: Results) -> str:
    """RESULTS.md."""
    parts = [_head(results), _targets(results), "![CPU per query](results/cpu.svg)\n"]
    for scenario in SCENARIOS.values():
        if table := rows(results, scenario.name):
            parts.append(_scenario(results, scenario.name, scenario.title, table))
    parts += [_comparison(results), _method(results), _limits(results), _left_out(results), _machine(results), _repeat(results)]
    return "\n".join(part for part in parts if part)


def _foreign(results: Results) -> Spread:
    """The share of the server's core that others used in saturated runs."""
    return spread([sample.foreign for sample in results.samples if sample.kind == SATURATED])


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


def _targets(results: Results) -> str:
    lines = [_verdict(results, target) for target in TARGETS]
    table = _table(
        ("canal-dns (pure Python) uses … times less CPU per query", "target", "measured (min..max)", "verdict"), lines
    )
    return f"## Targets\n\n{table}"


def _verdict(results: Results, target: Target) -> tuple[str, ...]:
    what = f"than CoreDNS, {target.peer.partition(' ')[2] or 'forward'} ({target.scenario})"
    measured = ratio(results, target.scenario, target.peer, OURS)
    if measured is None:
        return what, f"{target.times:g}", "-", "not measured"
    by = abs(measured.middle / target.times - 1)
    verdict = f"met, by {by:.0%}" if measured.middle >= target.times else f"**missed, by {by:.0%}**"
    return what, f"{target.times:g}", _spread(measured, 2), verdict


def _scenario(results: Results, name: str, title: str, table: list[Row]) -> str:
    references = _REFERENCES[name]
    heads = ["contender", "CPU us/query (min..max)", *(f"CPU / {label}" for _, label in references)]
    heads += ["queries/s", "p50 us", "p99 us", "CPU us/query, calm", "RSS MiB", "lost"]
    lines = []
    for row in table:
        line = [f"**{row.key}**" if row.key == OURS else row.key, _spread(row.cpu_us, 1)]
        for key, _ in references:
            relative = ratio(results, name, row.key, key)
            line.append(f"{relative.middle:.2f}" if relative else "-")
        mark = " †" if row.idle > _IDLE else ""
        line += [f"{row.qps.middle:,.0f}{mark}", _number(row.p50_us, 0), _number(row.p99_us, 0)]
        line += [_number(row.steady_cpu_us, 1), f"{row.rss_mib:.0f}", f"{row.lost:.3%}" if row.lost else "0"]
        lines.append(tuple(line))
    idle = [row for row in table if row.idle > _IDLE]
    rate = f"{results.method.rates[name]:,}"
    text = f"## {title} (`{name}`)\n\n{_table(tuple(heads), lines)}\n"
    text += f'p50, p99 and "calm" at {rate} queries/s for everybody: half of what the slowest of them can do.\n'
    if idle:
        bottleneck = "the load or the upstream" if name == "forward" else "the load"
        shares = ", ".join(f"{row.key} {row.idle:.0%}" for row in idle)
        text += (
            f"† not saturated: {bottleneck} was the bottleneck, and the server's core idle for a part of the time ({shares}): "
            "it can do more queries/s than shown.\n"
        )
    notes = {one.key: f"{one.key} {one.version}: {one.note}" for one in results.contestants if one.scenario == name}
    return text + "\n" + "".join(f"- {notes[row.key]}\n" for row in table)


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
        f"Each against {first.key} ({first.scenario}), which needs least CPU of all, one after the other: "
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
  generator ({method.generator}) and, for forwarding, the upstream ({method.upstream}: authoritative, much
  faster than any forwarder) share core {machine["load_core"]}. All over 127.0.0.1, UDP.
- {method.names:,} names, type A, RD=1, without EDNS, one after the other; {method.window} queries open over {method.sockets}
  sockets. An answer counts when it repeats ID and question; a query without an answer within 0.5 s is lost.
- Saturated: {_rounds(method.rounds)} of {method.seconds:g} s, interleaved (A B C, A B C, ...), after a warm-up.
  At a fixed rate, for the latency: {_rounds(method.steady_rounds)}. Medians, with min..max; ratios are taken within a round.
- CPU per query: user and system time of all processes of the server (the kernel's process CPU clocks: the nanoseconds behind
  utime and stime of `/proc/PID/stat`), divided by the answers received. The kernel's work on packets is part of it, as far
  as it happens in the server's own system calls.
- canal-dns runs as in a pod with one CPU: `workers: 1`, a control process and a worker, CPU and RSS of both added (pages
  that they share count twice), `admin: off`, no native extension.
- A server is measured once it gave the right address for three names; the upstream knows the bound names by other addresses,
  so that a name which is forwarded instead of answered is found out.
"""


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds"


def _limits(results: Results) -> str:
    foreign = _foreign(results)
    steady = [sample for sample in results.samples if sample.kind == STEADY]
    late = sum(sample.problems.get("late", 0) for sample in steady) / max(1, sum(sample.sent for sample in steady))
    return f"""## What it does not show

- One client address, small and well-formed queries, names that are all in use: no floods, NXDOMAIN, TCP, EDNS or IPv6.
- One core. How it scales over workers is not measured here.
- Loopback has no network card: interrupts, and receiving up to a socket's queue, are not in the server's figures.
- The generator never sleeps, so that no server pays for waking it up; real clients do.
- CoreDNS runs without `errors`, `log`, `prometheus` and `kubernetes`: a cluster's own costs more per query than is shown.
- The machine is shared. In saturated runs others used {foreign.middle:.0%} of the server's core (median; at
  worst {foreign.high:.0%}). CPU per query counts only the server's own time, yet caches and clock rates are shared;
  queries/s, and p99 above all, also suffer from who else runs. At the fixed rate, {late:.1%} of the queries left later
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
    return f"## To repeat it\n\n```\n{results.command}\n```\n"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" if not at else "---:" for at in range(len(heads)))
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"| {' | '.join(heads)} |\n|{rule}|\n{body}"


def _spread(value: Spread, digits: int) -> str:
    return f"{value.middle:.{digits}f} ({value.low:.{digits}f}..{value.high:.{digits}f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def write(results: Results, folder: Path) -> None:
    """RESULTS.md and results/cpu.svg in `folder`."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(report(results))
    (folder / "results" / "cpu.svg").write_text(plot.svg(results))


def main() -> int:
    try:
        write(read(HERE / "results" / "latest.json"), HERE)
    except BenchError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
