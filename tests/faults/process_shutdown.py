"""The end of a process while it is used: SIGTERM, a lameduck, and what is on its way."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND_QUESTION
from tests.server.scripted import Ask

SLOW = 1.0
"""Seconds that an upstream takes: within the budget."""


@row(
    "P8",
    "shutdown / rolling update",
    "SIGTERM under 5 kq/s: 0 lost replies, exit <= lameduck + 5 s, in-flight forwards finished or SERVFAILed",
)
async def shutdown(bench: Bench) -> Outcome:
    def late(ask: Ask) -> None:
        if ask.name.startswith("never"):
            return
        ask.later(SLOW, ask.reply)

    lameduck, rate = (15.0, 5000) if bench.long else (2.0, 2000)
    upstream = await bench.upstream(late)
    server = await bench.server(upstream, workers=2, lameduck=f"{lameduck:g}s", watched=False)
    slow = [Question(f"{kind}-{number}.example.com") for number in range(500) for kind in ("late", "never")]
    async with (
        Stream(server.endpoint, slow, 100, patience=4.0) as forwarded,
        Stream(server.endpoint, [BOUND_QUESTION], rate) as bound,
    ):
        await bound.for_(0.5)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        unready = await bench.until(lambda: server.status("/ready") == 503, 2.0, "/ready 503")
        # By then the endpoint has left every Service; what is on its way is answered all the same.
        await bound.for_(lameduck - 0.1 - (time.monotonic() - began))
    status = await asyncio.to_thread(server.wait)
    took = time.monotonic() - began
    return Outcome(
        f"{bound.said()} at {rate} q/s, forwarded: {forwarded.right} answered and {forwarded.failed} SERVFAIL of "
        f"{forwarded.sent}; /ready 503 after {unready * 1e3:.0f} ms, exit {status} after {took:.1f} s with a lameduck of "
        f"{lameduck:g} s",
        met=bound.right == bound.sent
        and forwarded.right + forwarded.failed == forwarded.sent
        and status == 0
        and lameduck <= took <= lameduck + 5,
    )
