"""`python -m benchmarks.scale.render`: SCALE.md and the README's table from results/scale.json alone. Nobody edits it by hand.

Rules of this file:
- pure but for `write` and `main`: the same JSON gives the same text;
- every figure of the text comes from the JSON, but those of the original controller, which are marked as measured elsewhere.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import readme
from benchmarks.errors import BenchError
from benchmarks.scale.probe import percentile
from benchmarks.scale.results import BUSY, QUIET, Memory, Results, Work, read

HERE = Path(__file__).parents[1]
OURS, THEIRS = "canal-dns", "CoreDNS"
START, ANSWER_P50, ANSWER_P99, AT_ONCE, DELAY = 3.0, 0.001, 0.005, 0.5, 2.0
"""Goals: seconds, seconds, seconds, seconds, times."""
_DISTURBED = 0.1


def report(results: Results) -> str:
    """SCALE.md."""
    parts = [_head(results), _goals(results), _starts(results), _changes(results), _at_once(results), _hits(results)]
    parts += [_work(results), _original(), _method(results)]
    return "\n".join(parts)


def _head(results: Results) -> str:
    size = results.size
    disturbed = (
        f"""
**The machine was not quiet**: programs that have nothing to do with this used {results.foreign:.0%} of the server's core;
the load average before the parts of the measurement was {min(results.load_average)} to {max(results.load_average)} on
{results.machine["cores"]} cores. Times suffer from that, the tails above all; CPU seconds and memory hardly do.
"""
        if results.foreign > _DISTURBED
        else ""
    )
    return f"""# The size of a large cluster

Rendered by `benchmarks/scale/render.py` from `results/scale.json`; not edited by hand.

{size["services"]:,} Services with their EndpointSlices, {size["virtual_services"]:,} VirtualServices and {size["namespaces"]:,}
namespaces on a real API server; canal-dns and CoreDNS with its `kubernetes` plugin before it in the same run, one after the
other, each alone on one core. Taken {results.taken} at {results.commit}.
{disturbed}"""


def _goal_rows(results: Results) -> list[tuple[str, str, str, str]]:
    starts = results.starts[OURS]
    ours, theirs = _memory(results, OURS), _memory(results, THEIRS)
    late = [one.answered - one.created for one in results.at_once]
    delay, many = _delay(results, OURS), results.at_once[0].count
    quiet = _quiet(results)
    lines = [
        ("start to ready, s (median)", f"<= {START:g}", statistics.median(starts), START, 2),
        ("memory of control process and worker / CoreDNS's (RSS)", "<= 1", sum(ours.rss) / sum(theirs.rss), 1.0, 2),
        ("event to answer, p50, ms", "<= 1", percentile(quiet, 0.5) * 1e3, ANSWER_P50 * 1e3, 2),
        ("event to answer, p99, ms", "<= 5", percentile(quiet, 0.99) * 1e3, ANSWER_P99 * 1e3, 2),
        (
            f"last of {many} VirtualServices at once, s after the last reply",
            "<= 0.5",
            max(late),
            AT_ONCE,
            3,
        ),
        ("p99 of hits among other events / quiet", "<= 2", delay, DELAY, 2),
    ]
    return [
        (what, goal, f"{value:.{digits}f}", "met" if value <= limit else f"**missed, {value / limit:.1f} times**")
        for what, goal, value, limit, digits in lines
    ]


def _quiet(results: Results) -> list[float]:
    """What every quiet change of ours took, in seconds."""
    return [seconds for one in results.changes if (one.key, one.load) == (OURS, QUIET) for seconds in one.seconds]


def _goals(results: Results) -> str:
    quiet = len(_quiet(results))
    return f"""## Goals

{_table(("", "goal", "measured", ""), _goal_rows(results))}
Event to answer: the {quiet:,} quiet changes of canal-dns taken together, bound and unbound, of both shapes, from the API
server's reply to the answer. What they take while other objects change is no goal; the figures are below.
"""


def summary(results: Results) -> str:
    """The README's table, with the command that measures it again."""
    size = results.size
    rows = [(what, f"**{value}**", goal, "`make scale`") for what, goal, value, _ in _goal_rows(results)]
    heads = (
        f"{size['services']:,} Services, {size['virtual_services']:,} VirtualServices",
        "canal-dns",
        "goal",
        "to measure it again",
    )
    return f"\n{_table(heads, rows)}\n"


def _starts(results: Results) -> str:
    rows = []
    for key, seconds in results.starts.items():
        cpu = results.start_cpu[key]
        memory = _memory(results, key)
        end = [one for one in results.memory if one.key == key][-1]
        split = " + ".join(_mib(one) for one in memory.rss)
        rows.append(
            (
                f"**{key}**" if key == OURS else key,
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f}..{max(seconds):.2f})",
                f"{statistics.median(cpu):.2f}",
                _mib(sum(memory.rss)) + (f" ({split})" if len(memory.rss) > 1 else ""),
                _mib(sum(memory.pss)),
                _mib(sum(end.rss)),
            )
        )
    heads = ("", "start to ready, s (min..max)", "CPU s until then", "RSS, MiB", "PSS, MiB", "RSS at the end, MiB")
    return f"""## Start and memory

{_table(heads, rows)}
canal-dns: control process + one worker; /ready says 200. CoreDNS: the first right answer. Medians of {results.size["starts"]}
starts; memory three seconds after the last one, and after everything that follows here.
"""


def _changes(results: Results) -> str:
    rows = []
    for one in results.changes:
        figures = [percentile(one.seconds, share) * 1e3 for share in (0.5, 0.9, 0.99, 1.0)]
        who = f"**{one.key}**" if one.key == OURS else one.key
        rows.append((who, one.change, one.load, str(len(one.seconds)), *(f"{figure:.2f}" for figure in figures)))
    heads = ("", "change", "other events", "n", "p50 ms", "p90 ms", "p99 ms", "max ms")
    rates = ", ".join(f"{one.written / one.seconds:,.0f} ({one.key})" for one in results.noise if one.during == "changes")
    own = [(load, _shares(results.histograms[load])) for load in (QUIET, BUSY)]
    told = _table(
        ("other events", *(f"<= {bound * 1e3:g} ms" for bound, _ in own[0][1])),
        [(load, *(f"{share:.0%}" for _, share in shares)) for load, shares in own],
    )
    return f"""## One change until it is answered

From the first octet of the API server's reply to our change until a UDP query gives the new answer (asked in a tight loop, so
that one round trip is the least that can be seen). `{BUSY}`: while other objects change; events a second: {rates}.

{_table(heads, rows)}
What canal-dns says of its own part (`canal_dns_event_to_answer_seconds`): from the event's first octet in its hands until every
process answers by it. That can be more than the times above: they begin with the reply, and the event can be there before it.

{told}"""


def _shares(histogram: dict[str, float]) -> list[tuple[float, float]]:
    """Upper bound in seconds -> the share of events that took no longer."""
    bounds = [(float(key), value) for key, value in histogram.items() if key not in ("sum", "count", "+Inf")]
    return [(bound, value / max(1.0, histogram["count"])) for bound, value in sorted(bounds) if 0.0001 < bound < 0.3]


def _at_once(results: Results) -> str:
    rows = [
        (str(one.count), f"{one.created:.3f}", f"{one.answered:.3f}", f"{one.answered - one.created:.3f}")
        for one in results.at_once
    ]
    heads = ("created at once", "last reply, s", "last answer, s", "between them, s")
    return "## Many VirtualServices at once\n\nSeconds since the first request; eight clients.\n\n" + _table(heads, rows)


def _hits(results: Results) -> str:
    rows = []
    for key in (OURS, THEIRS):
        for load in (QUIET, BUSY):
            runs = [one for one in results.hits if (one.key, one.load) == (key, load)]
            p50, p99, p999 = (
                statistics.median(percentile(one.seconds, share) * 1e6 for one in runs) for share in (0.5, 0.99, 0.999)
            )
            lost = sum(one.lost for one in runs)
            asked = lost + sum(len(one.seconds) for one in runs)
            rows.append(
                (f"**{key}**" if key == OURS else key, load, f"{asked:,}", f"{p50:.0f}", f"{p99:.0f}", f"{p999:.0f}", str(lost))
            )
    rates = ", ".join(f"{one.written / one.seconds:,.0f} ({one.key})" for one in results.noise if one.during == "queries")
    return f"""## Answers while other objects change

{results.size["rate"]} queries a second at random moments, from another core; medians over the rounds. Events a second: {rates}.

{_table(("", "other events", "queries", "p50 us", "p99 us", "p99.9 us", "lost"), rows)}
p99 among events / quiet, per round, median: canal-dns {_delay(results, OURS):.2f}, CoreDNS {_delay(results, THEIRS):.2f}.
"""


def _work(results: Results) -> str:
    rows = []
    for key in (OURS, THEIRS):
        [rest] = _runs(results, key, "rest")
        quiet, busy = _runs(results, key, QUIET), _runs(results, key, BUSY)
        events = sum(one.events for one in busy)
        written = [one.written / one.seconds for one in results.noise if (one.key, one.during) == (key, "queries")]
        # CoreDNS counts no events: what was written is what it got.
        events = events or statistics.mean(written) * sum(one.seconds for one in busy)
        extra = sum(one.cpu[0] for one in busy) - sum(one.cpu[0] for one in quiet) * _total(busy) / _total(quiet)
        split = " + ".join(f"{one * 60 / rest.seconds:.3f}" for one in rest.cpu)
        rows.append((f"**{key}**" if key == OURS else key, split, f"{extra / events * 1e6:.0f}"))
    heads = ("", "CPU seconds per minute at rest", "CPU us per event")
    return f"""## Work

{_table(heads, rows)}
canal-dns: control process + worker; events cost the control process only, as long as no answer depends on them.
"""


def _original() -> str:
    return """## The original controller

**Not measured in this run**: the unmodified controller of the original project, on the same kind of cluster (a real API
server, an instant ConfigMap sync in place of a kubelet's), but a much smaller one.

| | figure |
|---|---|
| VirtualService created until both CoreDNS replicas answer | 24.0 s on average; up to 35.5 s on one replica |
| a kubelet's ConfigMap sync on top (computed) | +38 s on average |
| the two replicas disagree | for 14.4 s on average |
| 100 VirtualServices at once | 38 s until all are written |
"""


def _method(results: Results) -> str:
    machine, size = results.machine, results.size
    software = ", ".join(f"{name} {version}" for name, version in results.software.items())
    return f"""## How it is measured

- Core {machine["server_core"]}: the server. Core {machine["load_core"]}: API server, etcd, whoever changes and whoever asks.
  canal-dns runs with `workers: 1` and `settle: 0s`; behind it stands an upstream that answers at once. CoreDNS runs with
  kubeadm's `kubernetes` block and nothing else, GOMAXPROCS=1.
- The objects are shaped like real ones (labels, annotations, what `kubectl apply` leaves, managedFields). Half of the
  VirtualServices name their Service's own host; the others stand in the gateway's namespace with host `*` and a path each.
- Beyond 2,000 Services the cluster is filled as a backup is restored: the API server makes the first object of each shape,
  the others are written into etcd in the same form. (It counts all allocated addresses twice for every new Service: 60 ms
  of CPU each at 10,000.) To fill this one, or to find it filled, took {results.fill_seconds:.0f} s.
- A change: a VirtualService leaves its Gateway, or comes back (PATCH); for CoreDNS a Service is created and deleted. Paced at
  random, five to ten a second.
- Other events: {size["noise"]:,} a second wanted, nine of ten Services, the tenth a VirtualService with another status,
  written into etcd in small transactions, since two cores do not take as many requests; the API server
  sends them as any other. Where it falls behind, they wait for it: the tables say how many there were.
- Queries at a fixed pace come from a thread with real-time priority, so that the load's core, which it shares, is not measured.
- Not shown: TLS over a real network, a remote API server, several workers, clients that retry.

{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_mib"]:,} MiB, Linux {machine["kernel"]}, {machine["system"]};
{software}.

```
{results.command}
```
"""


def _memory(results: Results, key: str) -> Memory:
    return next(one for one in results.memory if one.key == key)


def _runs(results: Results, key: str, load: str) -> list[Work]:
    return [one for one in results.work if (one.key, one.load) == (key, load)]


def _total(runs: Sequence[Work]) -> float:
    return sum(one.seconds for one in runs)


def _delay(results: Results, key: str) -> float:
    """p99 of hits among events / quiet: the median over the rounds."""
    found: dict[tuple[str, int], float] = {
        (one.load, one.round): percentile(one.seconds, 0.99) for one in results.hits if one.key == key
    }
    return statistics.median(found[BUSY, number] / found[QUIET, number] for load, number in found if load == QUIET)


def _mib(kib: int) -> str:
    return f"{kib / 1024:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" if not at else "---:" for at in range(len(heads)))
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"| {' | '.join(heads)} |\n|{rule}|\n{body}"


def write(results: Results, folder: Path) -> None:
    """SCALE.md in `folder`; for this package's own, the README's table too."""
    (folder / "SCALE.md").write_text(report(results))
    if folder == HERE:
        readme.fill("scale", summary(results))


def main() -> int:
    try:
        write(read(HERE / "results" / "scale.json"), HERE)
    except BenchError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
