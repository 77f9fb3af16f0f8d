"""Upstreams that say nothing: from the start, from some time on, now and then, all of them."""

from __future__ import annotations

import time

from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND_QUESTION, Server
from tests.faults.upstreams import named, numbered, outcome, own_address, ratio, take_away, took
from tests.server.scripted import Scripted, silent, true

BUDGET = 1.5
PEERS = {"peers": ["127.0.0.0/8"]}
"""All clients of the bench have one address, as all of a cluster behind CoreDNS have: no limit per client."""


@row(
    "U1",
    "silent from the start",
    "SERVFAIL with the question within the budget + 0.5 s for 100 %; never silence; bound names unaffected (p99 <= 2x idle)",
)
async def silent_from_the_start(bench: Bench) -> Outcome:
    calm = await bench.server(await bench.upstream())
    upstream = await bench.upstream(silent, probes_answered=False)
    server = await bench.server(upstream)
    seconds = 10.0 if bench.long else 1.0
    others = named(1000, "other", None)

    async def both(asked: Server) -> tuple[Stream, Stream]:
        async with Stream(asked.endpoint, [BOUND_QUESTION], 500) as bound, Stream(asked.endpoint, others, 200) as forwarded:
            await bound.for_(seconds)
        return bound, forwarded

    rounds = [(await both(calm), await both(server)) for _ in range(3)]
    bound = [faulty[0] for _, faulty in rounds]
    forwarded = [faulty[1] for _, faulty in rounds]
    asked, failed = sum(stream.sent for stream in forwarded), sum(stream.failed for stream in forwarded)
    slowest = max(max(stream.seconds) for stream in forwarded)
    await take_away(bench, calm)
    times = ratio((idle[0], faulty[0]) for idle, faulty in rounds)
    right, all_bound = sum(stream.right for stream in bound), sum(stream.sent for stream in bound)
    return await outcome(
        bench,
        server,
        f"{failed} of {asked} SERVFAIL, slowest {slowest:.2f} s; bound names: {right} of {all_bound} right, "
        f"p99 {times:.2f}x idle",
        failed == asked and slowest <= BUDGET + 0.5 and right == all_bound and times <= 2.0,
        streams=[*bound, *forwarded],
        upstreams=[upstream],
    )


@row(
    "U2",
    "dies under load",
    "2 upstreams at 5,000 q/s, one dies: failed <= 0.1 % of a 60 s run; found out <= 2 s; no client waits > 1.2 s more",
)
async def dies_under_load(bench: Bench) -> Outcome:
    rate, before, after = (5000, 20.0, 40.0) if bench.long else (1000, 1.5, 4.0)
    first = await bench.upstream(own_address, keep=False)
    second = await bench.upstream(own_address, keep=False)
    # 1,000 sockets for each upstream in each worker, at most, with 8 KiB each for the IDs that were used there.
    server = await bench.server(first, second, workers=2, access=PEERS, growth=48 << 20)
    async with Stream(server.endpoint, numbered(20_000), rate, sockets=64) as stream:
        await stream.for_(before)
        usual = stream.percentile(0.5)
        first.script, first.probes_answered = silent, False
        died = time.monotonic()
        found = await bench.until(lambda: _is_down(server, first), 10.0, "both workers call it down")
        await stream.for_(after - (time.monotonic() - died))
    more = max(stream.seconds) - usual
    return await outcome(
        bench,
        server,
        f"{rate:,} q/s, 2 workers: {stream.said()}; found out after {found:.2f} s; at most {more:.2f} s more",
        stream.unanswered_share <= 0.001 and found <= 2.0 and more <= 1.2,
        streams=[stream],
        upstreams=[first, second],
    )


@row("U4", "flapping (up 2 s / down 2 s)", "loss <= 1 % with one stable peer; <= 1 state change/s; log rate-limited")
async def flapping(bench: Bench) -> Outcome:
    flaps, stable = await bench.upstream(own_address, keep=False), await bench.upstream(own_address, keep=False)
    server = await bench.server(flaps, stable)
    periods = 15 if bench.long else 2
    said = len(server.errors)
    async with Stream(server.endpoint, numbered(20_000), 300) as stream:
        for _ in range(periods):
            flaps.script, flaps.probes_answered = own_address, True
            await stream.for_(2.0)
            flaps.script, flaps.probes_answered = silent, False
            await stream.for_(2.0)
    flaps.script, flaps.probes_answered = own_address, True
    seconds = 4.0 * periods
    changes = _told(server, flaps, "down") + _told(server, flaps, "up again")
    lines = len(server.errors) - said
    return await outcome(
        bench,
        server,
        f"{stream.said()} in {seconds:.0f} s; {changes} state changes, {lines} lines of log",
        stream.unanswered_share <= 0.01 and changes <= seconds and lines <= seconds,
        streams=[stream],
        upstreams=[flaps, stable],
    )


@row(
    "U5",
    "all down",
    "one probe per upstream each 0.5 s; one query at a time tries whether the probes err, others SERVFAIL in < 50 ms; "
    "recovery seen <= 1 s",
)
async def all_down(bench: Bench) -> Outcome:
    upstreams = [await bench.upstream(silent, probes_answered=False) for _ in range(2)]
    server = await bench.server(*upstreams)
    async with Stream(server.endpoint, named(50, "first", None), 20) as stream:
        await bench.until(lambda: all(_told(server, one, "down") for one in upstreams), 10.0, "both are down")
    seconds = 20.0 if bench.long else 3.0
    probes = [one.probes for one in upstreams]
    async with Stream(server.endpoint, named(1000, "other", None), 200) as others:
        await others.for_(seconds)
        probes = [one.probes - before for one, before in zip(upstreams, probes, strict=True)]
    slow = sum(one >= 0.05 for one in others.seconds)
    for one in upstreams:
        one.script, one.probes_answered = true, True
    began = time.monotonic()
    back = []
    while not back or back[-1].right < back[-1].sent:
        if time.monotonic() - began > 5.0:
            raise TimeoutError("nothing is answered after the recovery")
        back.append(await took(bench, server, named(20, f"back{len(back)}"), 1000))
    recovered = time.monotonic() - began
    return await outcome(
        bench,
        server,
        f"in {seconds:.0f} s {probes[0]} and {probes[1]} probes; {others.failed} of {others.sent} SERVFAIL, "
        f"p99 {others.percentile(0.99) * 1e3:.1f} ms, {slow} that tried; all answered {recovered:.2f} s after the recovery",
        max(probes) <= 2 * seconds + 1
        and others.failed == others.sent
        and slow <= seconds / (0.9 * BUDGET) + 1
        and recovered <= 1.0,
        streams=[stream, others, *back],
        upstreams=upstreams,
    )


def _is_down(server: Server, upstream: Scripted) -> bool:
    """True if no worker calls it up; asked twenty times a second at most."""
    time.sleep(0.05)
    return server.counted("canal_dns_forward_upstream_up", to=str(upstream.endpoint)) == 0


def _told(server: Server, upstream: Scripted, state: str) -> int:
    """How often the log says that it is "down" or "up again"."""
    return sum(f"upstream {upstream.endpoint} is {state}" in line for line in list(server.errors))
