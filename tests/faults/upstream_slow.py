"""Upstreams that are slow: answers after seconds, and answers that nobody waits for any more."""

from __future__ import annotations

import asyncio
import random

from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND_QUESTION
from tests.faults.upstreams import kind_of, number_of, numbered, outcome, own_address, ratio
from tests.server.scripted import Ask

SLOW_CLIENT, FAST_CLIENT = "127.0.0.2", "127.0.0.3"


@row(
    "U3",
    "slow (0.5 to 3 s) and ten times as many clients",
    "outstanding <= cap, memory flat, bound names' p99 <= 2x idle, fast names >= 99 %",
)
async def slow(bench: Bench) -> Outcome:
    chance = random.Random(3)
    open_ = most = 0

    def script(ask: Ask) -> None:
        def answer() -> None:
            nonlocal open_
            open_ -= 1
            own_address(ask)

        nonlocal open_, most
        if kind_of(ask) == "slow":
            open_ += 1
            most = max(most, open_)
            ask.later(chance.uniform(0.5, 3.0), answer)
        else:
            own_address(ask)

    upstream = await bench.upstream(script, keep=False)
    # The default, and what a short run fills in a second.
    cap = 1000 if bench.long else 300
    server = await bench.server(upstream, limits={"maxOutstandingPerClient": cap})
    seconds = 20.0 if bench.long else 1.5
    slow_names, fast_names = numbered(30_000, "slow"), numbered(10_000, "fast")
    pairs, fast, held, all_streams = [], [], 0.0, []
    for _ in range(3):
        async with (
            Stream(server.endpoint, [BOUND_QUESTION], 300) as idle,
            Stream(server.endpoint, fast_names, cap, host=SLOW_CLIENT) as load,
            Stream(server.endpoint, fast_names[::-1], 200, host=FAST_CLIENT) as usual,
        ):
            await idle.for_(seconds / 2)
        async with (
            Stream(server.endpoint, [BOUND_QUESTION], 300) as bound,
            Stream(server.endpoint, slow_names, cap, host=SLOW_CLIENT, patience=3.0) as slow,
            Stream(server.endpoint, fast_names, 200, host=FAST_CLIENT) as quick,
        ):
            await bound.for_(seconds)
            held = max(held, await asyncio.to_thread(server.counted, "canal_dns_forward_in_flight"))
        pairs.append((idle, bound))
        fast.append(quick)
        all_streams += [idle, load, usual, bound, slow, quick]
    share = sum(one.right for one in fast) / sum(one.sent for one in fast)
    lost = sum(bound.sent - bound.right for _, bound in pairs)
    times = ratio(pairs)
    return await outcome(
        bench,
        server,
        f"at most {held:.0f} outstanding (cap {cap} per client), {most} at the upstream; fast names {share:.2%}; "
        f"bound names: {lost} lost, p99 {times:.2f}x idle",
        held <= 1.1 * cap and share >= 0.99 and not lost and times <= 2.0,
        streams=all_streams,
        upstreams=[upstream],
    )


@row("U11", "late reply after its slot is used again", "0 cross-deliveries in 1,000,000 queries with 5 % late replies")
async def late(bench: Bench) -> Outcome:
    """Half of the late ones come when the second try has been answered, half when the client has been told SERVFAIL."""
    total, rate = (1_000_000, 5000) if bench.long else (8000, 2000)
    chance = random.Random(11)
    delayed = 0

    def script(ask: Ask) -> None:
        nonlocal delayed
        number = number_of(ask)
        if number % 20 or (number % 40 and ask.number):
            own_address(ask)
            return
        delayed += 1
        ask.later(chance.uniform(0.7, 1.2) if number % 40 else chance.uniform(1.5, 3.0), own_address, ask)

    upstream = await bench.upstream(script, keep=False)
    server = await bench.server(upstream, workers=2, growth=32 << 20, access={"peers": ["127.0.0.0/8"]})
    # A name comes again after ten seconds at least, when nothing of it is on its way any more.
    names = numbered(50_000)
    async with Stream(server.endpoint, names, rate, sockets=64, total=total) as stream:
        await stream.finished()
        await stream.for_(2.0)
    ignored = await asyncio.to_thread(server.counted, "canal_dns_forward_ignored_replies_total")
    return await outcome(
        bench,
        server,
        f"2 workers, {delayed} late replies: {stream.said()}; {ignored:.0f} packets nobody waited for",
        not stream.wrong and not stream.lost and stream.failed <= 0.026 * total,
        streams=[stream],
        upstreams=[upstream],
    )
