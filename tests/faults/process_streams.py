"""Connections that cost more than they ask: slow clients, and descriptors that run out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import socket
import time
from collections.abc import AsyncIterator

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND, BOUND_QUESTION, VIP, Server, open_files
from tests.server.serving import connected, query

SLOW_HOSTS = [f"127.0.0.{number}" for number in range(10, 20)]
FRESH = 0.5
"""Seconds that a TCP query on a new connection may take."""


@row(
    "P3",
    "TCP slowloris, partial frames",
    "1 000 slow connections from 10 addresses: UDP p99 unchanged, a fresh TCP query < 500 ms",
)
async def slow_connections(bench: Bench) -> Outcome:
    # So that all of them are let in: the limit per client is half of what is defended here, and has its own tests.
    server = await bench.server(workers=1, limits={"tcpConnectionsPerClient": 200, "tcpConnections": 1200})
    seconds, rounds = (60.0, 1) if bench.long else (1.0, 3)
    idle, faulty, fresh, slow = [], [], [], 0
    for _ in range(rounds):
        async with Stream(server.endpoint, [BOUND_QUESTION], 500) as alone:
            await alone.for_(min(seconds, 10.0))
        async with slowly(server.endpoint, 1000), Stream(server.endpoint, [BOUND_QUESTION], 500) as stream:
            slow = max(slow, round(server.counted("canal_dns_tcp_connections")))
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                fresh.append(await fresh_query(server.endpoint))
                await stream.for_(0.1)
        idle.append(alone.percentile(0.99))
        faulty.append((stream.percentile(0.99), stream.sent - stream.right))
    p99, lost = min(one for one, _ in faulty), sum(one for _, one in faulty)
    return Outcome(
        f"{slow} slow connections: UDP p99 {p99 * 1e3:.2f} ms, idle {min(idle) * 1e3:.2f} ms, {lost} lost; slowest of "
        f"{len(fresh)} fresh TCP queries {max(fresh) * 1e3:.0f} ms",
        met=slow >= 950 and p99 <= max(2 * min(idle), 0.002) and not lost and max(fresh) < FRESH,
    )


@contextlib.asynccontextmanager
async def slowly(endpoint: Endpoint, count: int, piece: bytes = b"\0") -> AsyncIterator[None]:
    """So many connections from SLOW_HOSTS, each of which sends a piece of a message once in a while, in turn; who was closed
    comes again. Sockets and no more: they are to cost the server, not the bench."""
    loop = asyncio.get_running_loop()

    async def dial(host: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind((host, 0))
        await loop.sock_connect(sock, (endpoint.host, endpoint.port))
        return sock

    hosts = itertools.cycle(SLOW_HOSTS)
    socks = [await dial(next(hosts)) for _ in range(count)]

    async def drip() -> None:
        for place in itertools.cycle(range(count)):
            try:
                socks[place].send(piece)
            except OSError:
                socks[place].close()
                socks[place] = await dial(next(hosts))
            await asyncio.sleep(0.005)

    dripping = asyncio.create_task(drip())
    try:
        yield
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        for sock in socks:
            sock.close()


async def fresh_query(endpoint: Endpoint, patience: float = 2.0) -> float:
    """Seconds that a bound name takes on a connection of its own; infinite if it is not answered within `patience`."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience), connected(endpoint) as client:
            reply = await client.ask(query(BOUND))
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return float("inf")
    return time.monotonic() - began if VIP in reply else float("inf")


@row(
    "P4",
    "descriptors exhausted (EMFILE)",
    "UDP 100 %, CPU < 20 %, recovery <= 2 s; descriptors reserved for upstream and API",
)
async def descriptors_exhausted(bench: Bench) -> Outcome:
    upstream = await bench.upstream()
    server = await bench.server(upstream, workers=1, limits={"tcpConnectionsPerClient": 1000})
    (worker,) = server.workers
    names = [Question(f"other-{number}.example.com") for number in range(1000)]
    was = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    seconds = 30.0 if bench.long else 3.0

    # Connections take all that they get, and then the first query is forwarded: what they have left must do.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (600, was[1]))
    async with opened(server.endpoint, 900):
        await bench.until(lambda: open_files(worker) > 250 and _calm(server), 5, "connections that took all")
        async with _streams(server, names) as (bound, forwarded):
            await bound.for_(seconds)
        ready, taken = server.status("/ready"), server.counted("canal_dns_tcp_connections")
    # None at all: accept fails while somebody waits to be accepted.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (8, was[1]))
    refused = server.counted("canal_dns_tcp_accept_errors_total")
    async with opened(server.endpoint, 50), Stream(server.endpoint, [BOUND_QUESTION], 500) as without:
        before, began = server.cpu_seconds(), time.monotonic()
        await without.for_(seconds)
        cpu = (server.cpu_seconds() - before) / (time.monotonic() - began)
    refused = server.counted("canal_dns_tcp_accept_errors_total") - refused
    resource.prlimit(worker, resource.RLIMIT_NOFILE, was)
    began = time.monotonic()
    while await fresh_query(server.endpoint, 0.5) > 0.5 and time.monotonic() - began < 10:
        pass
    recovery = time.monotonic() - began
    unanswered = sum(one.sent - one.right for one in (bound, forwarded, without))
    return Outcome(
        f"UDP: {bound.said()} bound, {forwarded.said()} forwarded with {taken:.0f} of 900 connections and 600 "
        f"descriptors, {without.said()} with none left; {refused:.0f} accepts failed, CPU {cpu:.0%}, /ready {ready}, TCP again "
        f"after {recovery:.2f} s",
        met=not unanswered and refused > 0 and cpu < 0.2 and ready == 200 and recovery <= 2.0,
    )


def _calm(server: Server) -> bool:
    """True once all who wanted a connection have been accepted or refused."""
    return server.counted("canal_dns_tcp_connections") + server.counted("canal_dns_tcp_closed_total") >= 900


@contextlib.asynccontextmanager
async def _streams(server: Server, names: list[Question]) -> AsyncIterator[tuple[Stream, Stream]]:
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as bound, Stream(server.endpoint, names, 300) as forwarded:
        yield bound, forwarded


@contextlib.asynccontextmanager
async def opened(endpoint: Endpoint, count: int) -> AsyncIterator[None]:
    """So many connections that say nothing, whether they are taken or not."""
    socks = []
    try:
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex((endpoint.host, endpoint.port))
            socks.append(sock)
            await asyncio.sleep(0)
        yield
    finally:
        for sock in socks:
            sock.close()
