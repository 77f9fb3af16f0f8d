"""What happens to packets of one socket only: reports by ICMP, a conntrack entry that leads nowhere, a lost race for one."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from pathlib import Path

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.lossy import Lossy
from tests.faults.rows import Outcome, row
from tests.faults.server import Server
from tests.faults.upstreams import AAAA, DOMAIN, RIGHT, number_of, numbered, outcome, own_address, take_away, took
from tests.server.scripted import Ask, Scripted, record

BUDGET = 1.5
LAST_TRY = 0.95
"""Share of the budget after which the client is told, as canal-dns does it."""
SOCKET_LIFE = 10.0
PERIOD = 0.25
"""Seconds between looks at the sockets."""


@row(
    "U15",
    "ICMP unreachable",
    "a hint only: the other upstream is asked, the wait goes on; no SERVFAIL before the budget ends; not down by ICMP alone",
)
async def unreachable(bench: Bench) -> Outcome:
    """Forged reports before each true reply; one of two upstreams is gone; the only one is, for a moment, and for good."""
    times = 10 if bench.long else 1
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:

        def script(ask: Ask) -> None:
            raw.sendto(_port_unreachable(ask.port, ask.upstream.endpoint), ("127.0.0.1", 0))
            ask.later(0.05, own_address, ask)

        upstream = await bench.upstream(script)
        server = await bench.server(upstream)
        forged = await took(bench, server, numbered(300 * times, "forged"), 200)
    reports = server.counted("canal_dns_forward_failures_total", reason="refused")
    up = server.counted("canal_dns_forward_upstream_up", to=str(upstream.endpoint))

    gone, other = await bench.upstream(), await bench.upstream(own_address)
    await gone.stop()
    pair = await bench.server(gone, other)
    quick = await took(bench, pair, numbered(300 * times, "gone"), 300)

    alone = await bench.upstream(own_address)
    single = await bench.server(alone)
    await alone.stop()
    back = await _moment(single, alone)
    await alone.stop()
    async with Stream(single.endpoint, [Question(f"early-1.{DOMAIN}")], 1000, total=1) as early:
        await early.finished()
    for one in (pair, single):
        await take_away(bench, one)
    return await outcome(
        bench,
        server,
        f"{reports:.0f} forged reports: {forged.said()}, upstream up {up:.0f}; one of two gone: {quick.said()}, p99 "
        f"{quick.percentile(0.99) * 1e3:.0f} ms; the only one gone for 0.3 s: {back.said()}; for good: SERVFAIL after "
        f"{early.seconds[0]:.2f} s",
        forged.right == forged.sent
        and reports >= 0.5 * forged.sent
        and up == 1
        and quick.right == quick.sent
        and quick.percentile(0.99) < 0.1
        and early.seconds[0] >= LAST_TRY * BUDGET - 0.01
        and back.right == back.sent,
        streams=[forged, quick, early, back],
        upstreams=[upstream],
    )


async def _moment(server: Server, upstream: Scripted) -> Stream:
    """Queries while the only upstream is away for 0.3 s: all of them can wait for it."""
    async with Stream(server.endpoint, numbered(50, "moment"), 200, total=50) as stream:
        await stream.for_(0.3)
        await upstream.start()
        await stream.finished()
    return stream


@row(
    "U16",
    "conntrack black hole: old source ports lead to a pod that is gone",
    "every upstream UDP socket replaced at <= 10 s of age or its first time-out; "
    "all CoreDNS pods deleted: <= 3 s per query stream",
)
async def black_hole(bench: Bench) -> Outcome:
    """One upstream, as a ClusterIP is one; a stream that uses each socket many times, and one that never does so twice."""
    pods = await bench.upstream(own_address, keep=False)
    way = await bench.enter(Lossy(pods.endpoint))
    way.log = []
    sockets = _Sockets(way.endpoint)
    looking = asyncio.create_task(sockets.look())
    server = await bench.server(way.endpoint)
    costs, slowest, all_streams = [], 0.0, []
    for _ in range(5 if bench.long else 1):
        async with (
            Stream(server.endpoint, numbered(30_000), 400) as busy,
            Stream(server.endpoint, numbered(1000, "quiet"), 5) as quiet,
        ):
            await busy.for_(2.0)
            gone, before = time.monotonic(), (len(busy.seconds), len(quiet.seconds))
            way.black_hole()
            await busy.for_(9.5)
        for stream, count in zip((busy, quiet), before, strict=True):
            costs.append(max(0.0, stream.last_bad - gone))
            slowest = max(slowest, *stream.seconds[count:])
            all_streams.append(stream)
    looking.cancel()
    oldest = sockets.oldest(way.log)
    failed, sent = sum(stream.failed for stream in all_streams), sum(stream.sent for stream in all_streams)
    return await outcome(
        bench,
        server,
        f"oldest of {len(sockets.seen)} sockets in use {oldest:.1f} s; {failed} of {sent} queries failed, the last "
        f"{max(costs):.2f} s after the pods; slowest answer {slowest:.2f} s",
        0 < oldest <= SOCKET_LIFE + PERIOD and max(costs) <= 3.0,
        streams=all_streams,
        upstreams=[way],
    )


@row(
    "U17",
    "conntrack insert race (A and AAAA from one socket)",
    "retry from another socket: a lost packet costs <= 1.1 s, not 5 s",
)
async def insert_race(bench: Bench) -> Outcome:
    """Of every tenth question the first packet is lost."""

    def script(ask: Ask) -> None:
        if ask.number or number_of(ask) % 10:
            ask.reply(*([record()] if ask.question[-3] == 1 else []))

    upstream = await bench.upstream(script)
    server = await bench.server(upstream)
    count = 2000 if bench.long else 200
    pairs = [
        question
        for number in range(count)
        for question in (Question(f"n-{number}.{DOMAIN}", RIGHT), Question(f"n-{number}.{DOMAIN}", None, AAAA))
    ]
    async with Stream(server.endpoint, pairs, 400, sockets=1, total=len(pairs)) as stream:
        await stream.finished()
    ports: dict[bytes, list[int]] = {}
    for ask in upstream.asks:
        ports.setdefault(ask.question.lower(), []).append(ask.port)
    again = [tried for tried in ports.values() if len(tried) > 1]
    same = sum(len(set(tried)) < len(tried) for tried in again)
    return await outcome(
        bench,
        server,
        f"{stream.said()}; {len(again)} asked again, {same} of them from the same socket; slowest {max(stream.seconds):.2f} s",
        stream.right == stream.sent and not same and max(stream.seconds) <= 1.1 and len(again) >= count / 5,
        streams=[stream],
        upstreams=[upstream],
    )


class _Sockets:
    """The UDP sockets in this namespace that are connected to an endpoint: by inode, since ports come again."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._remote = f"{int.from_bytes(socket.inet_aton(endpoint.host), 'little'):08X}:{endpoint.port:04X}"
        self.seen: dict[str, tuple[int, float, float]] = {}
        """Inode -> port, when it was seen first and last."""

    async def look(self) -> None:
        while True:
            self._note(time.monotonic())
            await asyncio.sleep(PERIOD)

    def _note(self, now: float) -> None:
        for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[2] == self._remote:
                port, first, _ = self.seen.get(fields[9], (int(fields[1].partition(":")[2], 16), now, now))
                self.seen[fields[9]] = (port, first, now)

    def oldest(self, log: list[tuple[int, float]]) -> float:
        """The greatest age at which one of them sent something."""
        sent: dict[int, list[float]] = {}
        for port, at in log:
            sent.setdefault(port, []).append(at)
        ages = [at - first for port, first, last in self.seen.values() for at in sent.get(port, ()) if first <= at <= last]
        return max(ages, default=0.0)


def _port_unreachable(port: int, upstream: Endpoint) -> bytes:
    """What a router says (RFC 792) about a packet from this port of canal-dns to the upstream; anybody can say it."""
    addresses = socket.inet_aton("127.0.0.1") + socket.inet_aton(upstream.host)
    about = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    about += struct.pack(">HHHH", port, upstream.port, 8, 0)
    octets = b"\3\3\0\0\0\0\0\0" + about
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return octets[:2] + (~total & 0xFFFF).to_bytes(2) + octets[4:]
