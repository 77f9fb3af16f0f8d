"""Floods that are meant: names without end that nobody answers, one client above its limit, strangers, packets that are none.

Rules of this file:
- whoever does no harm is asked about: those who flood lose what the demand says, the others nothing;
- rates are far below what one worker bears, so that what is lost is lost to a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.floods import flood
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND, BOUND_QUESTION, Server
from tests.faults.upstreams import kind_of, named, numbered, own_address, ratio, take_away
from tests.server.scripted import Ask
from tests.server.serving import connected, is_vip, query

HARMLESS, FLOODER = "127.0.0.3", "127.0.0.2"
RATE = 200
"""access.rateLimit.perSecond: its default."""
ERRORS = 100
"""access.errorRepliesPerSecond: its default."""
LOSS = 0.001
FLOOD, LONG_FLOOD = 1000, 3000
"""Names a second: more than the cap lets wait, and an eighth and a third of what one worker bears with a core of its own."""

MANY, LONG_MANY = 4000, 8000
"""Packets a second of those that are decided one by one: a worker bears five times the latter."""


@row(
    "A1",
    "random-subdomain flood, whose names nobody answers",
    "bound names: loss 0, p99 <= 2x idle; outstanding <= cap; fast names >= 99 %",
)
async def random_subdomains(bench: Bench) -> Outcome:
    """The way they come in Layout B: by CoreDNS, for whom no limit per client counts."""
    cap = 1000

    def script(ask: Ask) -> None:
        if kind_of(ask) == "fast":
            own_address(ask)

    upstream = await bench.upstream(script, keep=False)
    server = await bench.server(upstream, access={"peers": ["127.0.0.0/8"]}, limits={"maxOutstanding": cap})
    seconds, rounds = 20.0 if bench.long else 2.0, 3
    rate = LONG_FLOOD if bench.long else FLOOD
    pairs, fast, held = [], [], 0.0
    for _ in range(rounds):
        streams = []
        # The generator itself costs the machine as much as the flood: in quiet times it asks for bound names.
        for names in ([BOUND], [f"{secrets.token_hex(6)}.dead.test" for _ in range(round(rate * seconds))]):
            async with (
                Stream(server.endpoint, [BOUND_QUESTION], 300, host=HARMLESS) as bound,
                Stream(server.endpoint, numbered(10_000, "fast"), 100, host=HARMLESS) as quick,
            ):
                flooding = asyncio.ensure_future(
                    flood(bench.folder, server.endpoint, seconds, rate=rate, names=names, source=FLOODER, patience=0.5)
                )
                await bound.for_(seconds / 2)
                held = max(held, await asyncio.to_thread(server.counted, "canal_dns_forward_in_flight"))
                await flooding
            streams.append(bound)
        pairs.append((streams[0], streams[1]))
        fast.append(quick)
    displaced = await asyncio.to_thread(server.counted, "canal_dns_forward_rejected_total", reason="displaced")
    asked = sum(bound.sent for _, bound in pairs)
    lost = asked - sum(bound.right for _, bound in pairs)
    share = sum(one.right for one in fast) / sum(one.sent for one in fast)
    await bench.until(lambda: server.counted("canal_dns_forward_in_flight") == 0, 5.0, "an end of what is on its way")
    await take_away(bench, server)
    _, flooded = min(pairs, key=lambda pair: ratio([pair]))
    return Outcome(
        f"{rounds} times {rate * seconds:.0f} names at {rate}/s: bound names: {lost} of "
        f"{asked} lost, p99 {flooded.percentile(0.99) * 1e3:.2f} ms = {ratio(pairs):.2f}x idle; "
        f"at most {held:.0f} outstanding (cap {cap}), {displaced:.0f} made room for newer ones; fast names {share:.2%}",
        met=not lost and ratio(pairs) <= 2.0 and held <= cap and share >= 0.99 and displaced > 0,
    )


@row(
    "A2",
    "one prefix asks far above its limit",
    "whole answers to it <= 200/s, the rest TC=1, all by TCP; others: loss < 0.1 %",
)
async def one_prefix(bench: Bench) -> Outcome:
    server = await bench.server(access={"rateLimit": {"exempt": ["127.0.0.1/32"]}})
    seconds = 20.0 if bench.long else 3.0
    async with Stream(server.endpoint, [BOUND_QUESTION], RATE / 2, host=HARMLESS) as others:
        before = await asyncio.to_thread(_counts, server)
        flooded = await flood(bench.folder, server.endpoint, seconds, rate=LONG_MANY if bench.long else MANY, source=FLOODER)
        after = await asyncio.to_thread(_counts, server)
        asked_meanwhile = others.sent
    whole = after["table"] - before["table"] - asked_meanwhile
    cut = after["rate"] - before["rate"]
    async with connected(server.endpoint, FLOODER) as client:
        by_tcp = [is_vip(await client.ask(query(BOUND)), BOUND_QUESTION.expect or b"") for _ in range(100)]
    loss = 1 - others.right / others.sent
    return Outcome(
        f"{flooded.sent} queries at {flooded.rate:.0f}/s: {whole / (flooded.seconds + 1):.0f} whole answers a second, "
        f"{cut:.0f} TC=1, {flooded.lost} without a reply; {sum(by_tcp)} of 100 by TCP; others: {others.said()}",
        met=whole <= RATE * (flooded.seconds + 1) + 10
        and whole + cut >= 0.99 * flooded.sent
        and all(by_tcp)
        and loss < LOSS
        and flooded.rate > 5 * RATE,
    )


@row(
    "A3",
    "strangers take it for an open resolver",
    "REFUSED, at most 100/s from a worker, else silence; nothing forwarded, cached or answered; others: loss < 0.1 %",
)
async def strangers(bench: Bench) -> Outcome:
    upstream = await bench.upstream(keep=False)
    server = await bench.server(upstream, access={"allow": ["127.0.0.1/32", f"{HARMLESS}/32"]}, cache={"size": 1000})
    seconds = 20.0 if bench.long else 3.0
    names = [BOUND, *(question.name for question in named(999, "public"))]
    async with Stream(server.endpoint, [BOUND_QUESTION], 500, host=HARMLESS) as others:
        before = await asyncio.to_thread(_counts, server)
        flooded = await flood(
            bench.folder, server.endpoint, seconds, rate=LONG_MANY if bench.long else MANY, names=names, source=FLOODER
        )
        after = await asyncio.to_thread(_counts, server)
        asked_meanwhile = others.sent
    refused = after["local"] - before["local"]
    answered = after["table"] - before["table"] - asked_meanwhile + after["cache"]
    forwarded = await asyncio.to_thread(server.counted, "canal_dns_forward_requests_total")
    async with connected(server.endpoint, FLOODER) as client:
        closed = await client.closed()
    loss = 1 - others.right / others.sent
    return Outcome(
        f"{flooded.sent} queries at {flooded.rate:.0f}/s: {refused:.0f} REFUSED in {flooded.seconds:.1f} s, "
        f"{max(answered, 0):.0f} answers, {forwarded:.0f} forwarded, TCP {'closed' if closed else 'open'}; "
        f"others: {others.said()}",
        met=0 < refused <= ERRORS * (flooded.seconds + 1) and answered <= 0 and not forwarded and closed and loss < LOSS,
    )


@row("A6", "a flood of packets that provoke error replies", "error replies <= 100/s from a worker; valid queries: loss < 0.1 %")
async def errors(bench: Bench) -> Outcome:
    server = await bench.server()
    seconds = 20.0 if bench.long else 3.0
    good = query(BOUND)
    kinds = {
        "FORMERR": good + b"\0",
        "NOTIMP": good[:2] + b"\x28" + good[3:],
        "REFUSED": good[:-1] + b"\3",
        "meta type": good[:-4] + b"\0\xfc\0\1",
    }
    async with Stream(server.endpoint, [BOUND_QUESTION], 500, host=HARMLESS) as others, _sender(server.endpoint) as sender:
        sent, replies = await sender(list(kinds.values()), LONG_MANY if bench.long else MANY, seconds)
    kernel = await asyncio.to_thread(server.counted, "canal_dns_udp_receive_dropped_total")
    loss = 1 - others.right / others.sent
    return Outcome(
        f"{sent} packets ({', '.join(kinds)}) at {sent / seconds:.0f}/s: {replies / seconds:.0f} error replies a second; "
        f"others: {others.said()}; {kernel:.0f} found the socket full",
        met=0 < replies <= ERRORS * (seconds + 1) and loss < LOSS and sent > 10 * ERRORS * seconds,
    )


def _counts(server: Server) -> dict[str, float]:
    """Answers by where they came from, and those cut for the rate."""
    found = {source: server.counted("canal_dns_answers_total", source=source) for source in ("table", "cache", "local")}
    return found | {"rate": server.counted("canal_dns_truncated_total", reason="rate")}


@contextlib.asynccontextmanager
async def _sender(endpoint: Endpoint) -> AsyncIterator[object]:
    """Sends packets in turn at a rate and counts what comes back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((FLOODER, 0))
        sock.connect((endpoint.host, endpoint.port))

        def read() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while sock.recv(4096):
                    count += 1
            return count

        async def send(packets: list[bytes], rate: float, seconds: float) -> tuple[int, int]:
            loop = asyncio.get_running_loop()
            began, sent, replies = loop.time(), 0, 0
            while (passed := loop.time() - began) < seconds:
                while sent < passed * rate:
                    with contextlib.suppress(BlockingIOError):
                        sock.send(packets[sent % len(packets)])
                    sent += 1
                replies += read()
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.1)
            return sent, replies + read()

        yield send
