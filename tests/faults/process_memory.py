"""Memory when every limit is reached at once, against what the chart gives a pod."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from canal_dns.settings import CacheSettings, Endpoint, ForwardSettings, TcpSettings
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.floods import flood
from tests.faults.rows import Outcome, row
from tests.faults.server import Server
from tests.server.scripted import Ask, record

_ROOT = Path(__file__).parents[2]
CHART = _ROOT / "manifests/helm/canal-dns/values.yaml"
SCALE = _ROOT / "benchmarks/results/scale.json"
LARGE = 70
"""A records of a large answer, about 1,150 octets: ten thousand of these are all that the cache has room for."""
PART = 60_000
"""Octets of a message that never ends."""
_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


@row(
    "P12",
    "memory pressure / leak",
    "hard caps on cache, in-flight table, TCP buffers; worst-case sum documented and < pod limit (the soak has the slope)",
)
async def everything_full(bench: Bench) -> Outcome:
    def answer(ask: Ask) -> None:
        if ask.name.startswith("kept"):
            ask.reply(*[record(ttl=3600)] * LARGE)

    upstream = await bench.upstream(answer)
    connections, cached = TcpSettings().connections, CacheSettings().size
    server = await bench.server(
        upstream,
        workers=1,
        cache={"size": cached},
        access={"peers": ["127.0.0.0/8"]},
        # The longest that there may be: so many queries wait, whatever this machine forwards in a second.
        limits={"forwardBudget": "5s", "discardAge": "5s"},
        growth=0,
    )
    before = server.memory()
    names = [Question(f"kept-{number}.example.com") for number in range(2 * cached)]
    async with Stream(server.endpoint, names, 2000):
        await bench.until(lambda: server.counted("canal_dns_cache_evictions_total") > 100, 60, "a full cache")
    bench.baseline(server)
    cache = server.memory() - before
    entries = server.counted("canal_dns_cache_entries")
    peak = 0
    async with _unfinished(server.endpoint, connections), _watched(server) as peaks:
        silent = [f"never-{number}.example.com" for number in range(50_000)]
        outstanding = ForwardSettings().max_outstanding
        for _ in range(10 if bench.long else 1):
            await flood(bench.folder, server.endpoint, 4.5, rate=0.6 * outstanding, names=silent, patience=0.05, burst=8)
        peak = max(peaks)
    held = server.counted("canal_dns_tcp_closed_total", reason="memory")
    rejected = server.counted("canal_dns_forward_rejected_total")
    growth = (peak - before) / 2**20
    limit, workers = _chart()
    control, worker = _large_cluster()
    worst = control + workers * (worker + growth)
    return Outcome(
        f"one worker with everything full grows by {growth:.0f} MiB: cache {cache / 2**20:.0f} ({entries:.0f} answers), the "
        f"rest {connections} connections with {PART} octets each ({held:.0f} closed for want of room) and {outstanding} "
        f"queries that wait ({rejected:.0f} rejected); control process {control:.0f} and {workers} workers of {worker:.0f} MiB "
        f"in a cluster of 20 000 Services: {worst:.0f} MiB in all, the chart gives {limit:.0f}",
        met=worst < limit and cache <= 32 << 20 and entries <= cached and rejected > 0 and held > 0,
    )


def _chart() -> tuple[float, int]:
    """MiB that a pod may use, and its worker processes."""
    values = yaml.safe_load(CHART.read_text())
    text = values["resources"]["limits"]["memory"]
    found = re.fullmatch(r"(\d+)([MG]i)", text)
    assert found, text
    return int(found[1]) * _UNITS[found[2]] / 2**20, int(values["config"]["workers"])


def _large_cluster() -> tuple[float, float]:
    """MiB of the control process and of one worker, as `benchmarks.scale` measured them last."""
    kept = json.loads(SCALE.read_text())["memory"]
    rss = next(one["rss"] for one in kept if one["key"] == "canal-dns" and one["moment"] == "at the end")
    return rss[0] / 1024, rss[1] / 1024


@contextlib.asynccontextmanager
async def _unfinished(endpoint: Endpoint, count: int) -> AsyncIterator[None]:
    """So many connections, each with the better part of the longest message there is."""
    loop = asyncio.get_running_loop()
    socks = []
    part = (65_535).to_bytes(2) + bytes(PART)
    try:
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            socks.append(sock)
            with contextlib.suppress(OSError):
                await loop.sock_connect(sock, (endpoint.host, endpoint.port))
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sock, part)
        yield
    finally:
        for sock in socks:
            sock.close()


@contextlib.asynccontextmanager
async def _watched(server: Server) -> AsyncIterator[list[int]]:
    """What the server's memory was, again and again."""
    seen: list[int] = [server.memory()]

    async def watch() -> None:
        while True:
            seen.append(await asyncio.to_thread(server.memory))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
