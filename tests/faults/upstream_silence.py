"""Upstreams that say nothing: silent from the start."""

from __future__ import annotations

from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND_QUESTION
from tests.server.scripted import silent

BUDGET = 1.5


@row(
    "U1",
    "silent from the start",
    "SERVFAIL with the question within the budget + 0.5 s for 100 %; never silence; bound names unaffected (p99 <= 2x idle)",
)
async def silent_from_the_start(bench: Bench) -> Outcome:
    upstream = await bench.upstream(silent, probes_answered=False)
    server = await bench.server(upstream)
    seconds = 30 if bench.long else 4
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as idle:
        await idle.for_(seconds)
    others = [Question(f"other-{number}.default.svc.cluster.local") for number in range(1000)]
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as bound, Stream(server.endpoint, others, 200) as forwarded:
        await bound.for_(seconds)
    slowest = max(forwarded.seconds)
    ratio = bound.percentile(0.99) / idle.percentile(0.99)
    return Outcome(
        f"{forwarded.failed} of {forwarded.sent} SERVFAIL, slowest {slowest:.2f} s; bound names: {bound.said()}, p99 "
        f"{bound.percentile(0.99) * 1e3:.2f} ms = {ratio:.2f}x idle",
        met=forwarded.failed == forwarded.sent and slowest <= BUDGET + 0.5 and bound.right == bound.sent and ratio <= 2.0,
    )
