"""Upstream connections that end badly: reset, closed at once, closed while idle, stuck in a message."""

from __future__ import annotations

import contextlib

from tests.faults.bench import Bench
from tests.faults.rows import Outcome, row
from tests.faults.upstreams import kind_of, named, numbered, outcome, own_address, take_away, took
from tests.server.scripted import Ask, Script

BUDGET = 1.5
POOL = 8
"""Connections per upstream that canal-dns has at most."""


def over_tcp(script: Script) -> Script:
    """TC=1 over UDP, and this over TCP."""
    return lambda ask: script(ask) if ask.stream else ask.reply(tc=True)


@row(
    "U14",
    "TCP: RST, close after accept, close of an idle connection, stall in a message",
    "an idle close costs no client anything; RST mid-query <= 1 retry; pool bounded; 0 descriptors leaked over 10,000 RSTs",
)
async def broken_connections(bench: Bench) -> Outcome:
    upstream = await bench.upstream()
    server = await bench.server(upstream)
    files = server.descriptors()
    most = 0

    def noted(script: Script) -> Script:
        def act(ask: Ask) -> None:
            nonlocal most
            most = max(most, len(upstream.open))
            script(ask)

        return over_tcp(act)

    # Closed while idle: 30 ms after each answer, while queries come every 20 ms.
    upstream.script = noted(_answer_and_close)
    idle = await took(bench, server, numbered(2000 if bench.long else 100, "idle"), 50)

    await bench.until(lambda: not upstream.open, 15.0, "no connection")
    resets = 0

    def reset_it(ask: Ask) -> None:
        nonlocal resets
        # Those that were sent by one connection end with it.
        resets += ask.transport in upstream.open and not ask.transport.is_closing()
        ask.reset()

    upstream.script = noted(reset_it)
    wanted = 10_000 if bench.long else 500
    reset = []
    while resets < wanted:
        reset.append(await took(bench, server, named(250, f"reset{len(reset)}", None), 200))
    asked_over_tcp = sum(kind_of(ask).startswith("reset") for ask in upstream.tcp)
    asked = sum(stream.sent for stream in reset)
    await bench.until(lambda: not upstream.open, 15.0, "no connection")

    upstream.closes_at_accept = True
    refused = await took(bench, server, named(500 if bench.long else 50, "refused", None), 100)
    upstream.closes_at_accept = False

    upstream.script = noted(lambda ask: ask.part(20))
    stalled = await took(bench, server, named(50, "stalled", None), 100)
    upstream.script = noted(own_address)
    after = await took(bench, server, numbered(50, "after"), 100)

    bad = [*reset, refused, stalled]
    slowest = max(max(stream.seconds) for stream in bad)
    await take_away(bench, server)
    with contextlib.suppress(TimeoutError):
        await bench.until(lambda: server.descriptors() <= files, 3.0)
    leaked = server.descriptors() - files
    return await outcome(
        bench,
        server,
        f"idle close: {idle.said()}; {resets:,} RSTs, {asked:,} queries asked {asked_over_tcp:,} times; TC=1 for "
        f"{sum(stream.truncated for stream in bad)} of {sum(stream.sent for stream in bad)} whose TCP failed, slowest "
        f"{slowest:.2f} s; at most {most} connections; {leaked} descriptors leaked",
        idle.right == idle.sent
        and asked_over_tcp <= 2 * asked
        and all(stream.truncated == stream.sent for stream in bad)
        and slowest <= BUDGET + 0.5
        and after.right == after.sent
        and most <= POOL
        and leaked <= 0,
        streams=[idle, *bad, after],
        upstreams=[],
    )


def _answer_and_close(ask: Ask) -> None:
    own_address(ask)
    ask.later(0.03, ask.hang_up)
