"""More events than anybody needs, and all objects at once."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import time
from collections.abc import Iterator, Sequence

from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.mesh import NAMES, Mesh, name_of, route, service
from tests.faults.rows import Outcome, row
from tests.faults.server import VIP
from tests.kube.apiserver import Body, Raw, Watch

RATE = 10_000
"""Events per second."""
CHUNK = 100
"""Events that arrive together."""
FLOODED = range(1000, 1200)
"""Names to which the events happen."""
MANY = range(2000, 7000)
"""Services that are listed again and again."""
TABLES = 10.0
AT_ONCE = 20
"""Changes in a row that may each have a table, before they are joined."""
GROWTH = 0.10
"""Share of its memory that may stay taken."""


@row(
    "K10",
    "flood: 10,000 events/s, or 5,000 objects listed again",
    "p99 of DNS <= 2x idle; <= 10 tables/s (after the first 20); converged <= 2 s after the flood; memory back to +10 %",
)
async def flood(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1)
    mesh.api.put(*map(service, FLOODED), *map(route, FLOODED), *map(service, MANY))
    server = await mesh.serve(workers=1, log={"level": "warning"})
    await mesh.answered(name_of(FLOODED[-1]), VIP)
    chunks, pages = _chunks(), _pages(mesh)
    idle, flooded, relisted = (12.0, 20.0, 10.0) if bench.long else (1.0, 2.0, 1.5)
    calm, by_events, by_lists = [], [], []
    tables = 0.0
    sent = 0
    async with mesh.traffic(rate=1000) as traffic:
        memory = server.memory()
        before = await mesh.counted("canal_dns_source_events_total")
        for _ in range(3):
            calm.append(await _p99(traffic.bound, traffic.for_(idle)))
            sending = asyncio.create_task(_send(mesh, chunks, flooded))
            rate = asyncio.create_task(_tables(mesh, sending))
            by_events.append(await _p99(traffic.bound, sending))
            sent += await sending
            tables = max(tables, await rate)
            by_lists.append(await _p99(traffic.bound, _relist(mesh, pages, relisted)))
        sending = asyncio.create_task(_send(mesh, chunks, flooded))
        sent += await sending
        mesh.api.put(*map(route, FLOODED), *map(service, FLOODED))
        mesh.swap(NAMES, NAMES + 1)
        converged = await mesh.swapped(NAMES, NAMES + 1)
        events = await mesh.counted("canal_dns_source_events_total") - before
        right = [await mesh.answered(name_of(number), VIP, 2.0) for number in FLOODED]
        grown = await _grown(mesh, memory)
    events_ratio, lists_ratio = min(by_events) / min(calm), min(by_lists) / min(calm)
    return Outcome(
        f"{sent} events at {sent / (4 * flooded):.0f}/s, {events:.0f} taken: p99 {events_ratio:.2f}x idle "
        f"({min(calm) * 1e3:.1f} ms), {tables:.1f} tables/s; {len(MANY)} objects listed again: p99 {lists_ratio:.2f}x; right "
        f"again {converged:.2f} s after the flood, all {len(right)} names; memory {grown:+.1%}; {traffic.said()} (best of 3 "
        f"rounds, 1 worker)",
        met=sent >= 0.95 * RATE * 4 * flooded
        and events_ratio <= 2
        and lists_ratio <= 2
        and tables <= TABLES + 0.5
        and converged <= 2
        and grown <= GROWTH
        and traffic.clean,
    )


async def _p99(stream: Stream, work: asyncio.Task[int] | object) -> float:
    """Of the queries that were answered while the work was done."""
    since = len(stream.seconds)
    await work  # type: ignore[misc]
    times = sorted(stream.seconds[since:])
    return times[int(0.99 * len(times))]


async def _tables(mesh: Mesh, until: asyncio.Task[int]) -> float:
    """Tables per second until this has ended, after those that come at once."""
    began, before = time.monotonic(), await mesh.counted("canal_dns_table_generation")
    await asyncio.wait([until])
    after = await mesh.counted("canal_dns_table_generation")
    return max(0.0, after - before - AT_ONCE) / (time.monotonic() - began)


async def _grown(mesh: Mesh, before: int) -> float:
    """The share by which memory is larger than it was, once it shrinks no more."""
    with contextlib.suppress(TimeoutError):
        await mesh.bench.until(lambda: mesh.server.memory() <= (1 + GROWTH) * before, 10.0)
    return mesh.server.memory() / before - 1


# -- events ------------------------------------------------------------------------------------------------------------------


def _chunks() -> Iterator[tuple[str, bytes]]:
    """Which watch gets which lines: routes that come and go, TTLs that change, and changes that no answer knows of."""

    def elsewhere(number: int) -> Raw:
        return route(number, hosts=[f"elsewhere-{number}.example"])

    def neutral(number: int) -> Raw:
        item = service(number)
        item["metadata"]["labels"] = {"seen": str(number)}
        return item

    def lasting(number: int) -> Raw:
        return service(number, annotations={"canal-dns.io/ttl": "7"})

    made = []
    for resource, make in (
        ("virtualservices", elsewhere),
        ("services", neutral),
        ("virtualservices", route),
        ("services", lasting),
    ):
        for begin in range(0, len(FLOODED), CHUNK):
            numbers = FLOODED[begin : begin + CHUNK]
            lines = (json.dumps({"type": "MODIFIED", "object": make(number)}).encode() + b"\n" for number in numbers)
            made.append((resource, b"".join(lines)))
    return itertools.cycle(made)


async def _send(mesh: Mesh, chunks: Iterator[tuple[str, bytes]], seconds: float) -> int:
    """Events at RATE for so long; how many they were, once all are on their way."""
    watches: dict[str, Watch] = {name: mesh.api.watches(name)[0] for name in ("services", "virtualservices")}
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * RATE:
            resource, lines = next(chunks)
            watches[resource].send(lines)
            sent += CHUNK
        await asyncio.sleep(CHUNK / RATE / 2)
    await mesh.api.until(lambda: all(watch.queue.empty() for watch in watches.values()), 30.0)
    return sent


# -- lists -------------------------------------------------------------------------------------------------------------------


def _pages(mesh: Mesh) -> tuple[list[Body], list[Body]]:
    """All Services, as two lists that differ in every tenth."""
    items = [item for _, item in sorted(mesh.api.objects("services").items())]
    others = copy.deepcopy(items)
    for item in others[::10]:
        item["metadata"]["annotations"] = {"canal-dns.io/ttl": "7"}
    return _in_parts(items, mesh.api.version), _in_parts(others, mesh.api.version)


def _in_parts(items: Sequence[Raw], version: int, size: int = 500) -> list[Body]:
    parts = []
    for begin in range(0, len(items), size):
        more = {"continue": str(begin)} if begin + size < len(items) else {}
        meta = {"resourceVersion": str(version), **more}
        told = {"kind": "ServiceList", "apiVersion": "v1", "metadata": meta, "items": items[begin : begin + size]}
        parts.append(Body(json.dumps(told).encode()))
    return parts


async def _relist(mesh: Mesh, pages: tuple[list[Body], list[Body]], seconds: float) -> None:
    """Make it list all Services anew, again and again."""
    end = time.monotonic() + seconds
    for parts in itertools.cycle(pages):
        (watch,) = mesh.api.watches("services")
        mesh.api.next("services", "list", *parts)
        watch.bookmark()
        watch.error(410)
        # The client hangs up, lists, and watches anew.
        await mesh.api.until(lambda old=watch: mesh.api.watches("services") not in ([], [old]), 60.0)
        if time.monotonic() > end and parts is pages[0]:
            return
