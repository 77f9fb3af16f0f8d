"""Replies that are too big: truncated, oversized, and on a path that carries no more than 1,280 octets and no fragments."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.rows import Outcome, row
from tests.faults.upstreams import AAAA, kind_of, outcome
from tests.server.scripted import Ask, record
from tests.server.serving import ask, connected, query

MOST = 1232
OPT = b"\0\0\x29%s\0\0\0\0\0\0"
PAYLOADS = (None, 512, MOST, 4096)
"""EDNS payload sizes that clients announce; None: no EDNS."""
WHOLE = [record(f"192.0.2.{number}") for number in range(40)]
SOME = WHOLE[:3]
TC = 2
FITTING = 42
"""AAAA records that fill 1,232 octets, nearly."""


@row("U12", "TC=1", "never a partial set without TC; never cached")
async def truncated(bench: Bench) -> Outcome:
    """Over UDP three records of forty and TC=1; over TCP all of them, or RST, or nothing."""

    def script(asked: Ask) -> None:
        if not asked.stream:
            asked.reply(*SOME, tc=True)
        elif kind_of(asked) == "whole":
            asked.reply(*WHOLE)
        elif kind_of(asked) == "reset":
            asked.reset()

    upstream = await bench.upstream(script)
    server = await bench.server(upstream, cache={"size": 10_000})
    partial = complete = with_tc = failed = again = 0
    times = 50 if bench.long else 5

    async def one(kind: str, number: int, payload: int | None) -> None:
        nonlocal partial, complete, with_tc, failed, again
        packet = _asking(f"{kind}-{number}.p{payload}.up.test", payload)
        for _ in range(2):
            reply = await ask(server.endpoint, packet, 3.0)
            if reply[2] & TC:
                with_tc += 1
            elif _answers(reply) == len(WHOLE):
                complete += 1
            elif reply[3] & 15 == 0:
                partial += 1
            else:
                failed += 1

    for kind in ("whole", "reset"):
        for number in range(times):
            # One at a time: a connection that is reset takes all with it that wait there.
            for payload in PAYLOADS:
                await one(kind, number, payload)
    await asyncio.gather(*(one("silent", number, payload) for number in range(2) for payload in PAYLOADS))
    again = sum(asked.number == 1 and kind_of(asked) != "whole" for asked in upstream.udp)
    asked_twice = len(PAYLOADS) * (times + 2)
    return await outcome(
        bench,
        server,
        f"{complete} complete, {with_tc} with TC, {partial} partial without TC, {failed} failed; "
        f"{again} of {asked_twice} truncated ones asked for again, none from the cache",
        not partial and not failed and complete > 0 and again == asked_twice,
        streams=[],
        upstreams=[upstream],
    )


@row("U13", "oversized UDP reply without TC", "TC=1, or full over TCP; 0 SERVFAIL")
async def oversized(bench: Bench) -> Outcome:
    """From just above 1,232 octets to what UDP can carry, whatever was announced to the upstream."""
    counts = (75, 80, 120, 250, 1000, 4000)

    def script(asked: Ask) -> None:
        asked.reply(*([record()] * int(kind_of(asked))))

    upstream = await bench.upstream(script)
    server = await bench.server(upstream)
    too_big = partial = failed = with_tc = complete = 0
    for number in range(50 if bench.long else 5):
        for count in counts:
            for payload in PAYLOADS:
                packet = _asking(f"{count}-{number}.up.test", payload)
                reply = await ask(server.endpoint, packet, 3.0)
                too_big += len(reply) > max(min(payload or 512, MOST), 512)
                with_tc += bool(reply[2] & TC)
                partial += not reply[2] & TC and _answers(reply) < count
                failed += reply[3] & 15 != 0
            async with connected(server.endpoint) as client:
                reply = await client.ask(packet)
                complete += _answers(reply) == count
                failed += reply[3] & 15 != 0
    asked_all = len(counts) * (50 if bench.long else 5)
    return await outcome(
        bench,
        server,
        f"{counts[0]} to {counts[-1]:,} records: {with_tc} UDP replies with TC, {partial} partial without, {too_big} too big, "
        f"{failed} failed; complete over TCP {complete} of {asked_all}",
        not too_big and not partial and not failed and complete == asked_all,
        streams=[],
        upstreams=[upstream],
    )


@row(
    "U21",
    "path of 1,280 octets without fragments",
    "never > 1,232 octets over UDP, 1,232 announced upstream; 64-record answers arrive (TCP) in < 1 s",
)
async def narrow_path(bench: Bench) -> Outcome:
    """The namespace's loopback has an MTU of 1,280 and throws fragments away, both towards the client and the upstream."""
    announced: set[int] = set()
    whole = [_aaaa(number) for number in range(64)]

    def script(asked: Ask) -> None:
        if asked.stream:
            asked.reply(*whole)
            return
        announced.add(int.from_bytes(asked.packet[-8:-6]))
        # As a server does that keeps to what was announced.
        if kind_of(asked) == "fits":
            asked.reply(*whole[:FITTING])
        else:
            asked.reply(tc=True)

    upstream = await bench.upstream(script)
    server = await bench.server(upstream)
    sizes, slowest, complete, failed = [0], 0.0, 0, 0
    total = 200 if bench.long else 20
    async with _narrow_loopback():
        if await _fragments_arrive():
            raise AssertionError("fragments arrive")
        for number in range(total):
            payload = PAYLOADS[number % len(PAYLOADS)]
            reply = await ask(server.endpoint, _asking(f"fits-{number}.up.test", payload, AAAA), 3.0)
            sizes.append(len(reply))
            failed += reply[3] & 15 != 0 or (_answers(reply) != FITTING and (payload or 0) >= MOST)
            packet = _asking(f"n-{number}.up.test", payload, AAAA)
            began = time.monotonic()
            reply = await ask(server.endpoint, packet, 3.0)
            sizes.append(len(reply))
            failed += not reply[2] & TC or reply[3] & 15 != 0
            async with connected(server.endpoint) as client:
                complete += _answers(await client.ask(packet)) == len(whole)
            slowest = max(slowest, time.monotonic() - began)
    return await outcome(
        bench,
        server,
        f"largest UDP reply {max(sizes)} octets, announced upstream {sorted(announced)}; {complete} of {total} complete over "
        f"TCP, slowest {slowest * 1e3:.0f} ms, TC=1 first included",
        max(sizes) <= MOST and announced == {MOST} and complete == total and not failed and slowest < 1.0,
        streams=[],
        upstreams=[upstream],
    )


def _asking(name: str, payload: int | None, qtype: int = 1) -> bytes:
    packet = query(name, qtype)
    return packet if payload is None else packet[:10] + b"\0\1" + packet[12:] + OPT % payload.to_bytes(2)


def _answers(reply: bytes) -> int:
    return int.from_bytes(reply[6:8])


def _aaaa(number: int) -> bytes:
    return b"\xc0\x0c" + struct.pack(">HHIH", AAAA, 1, 300, 16) + bytes.fromhex("20010db8") + number.to_bytes(12)


@contextlib.asynccontextmanager
async def _narrow_loopback() -> AsyncIterator[None]:
    memory = [Path(f"/proc/sys/net/ipv4/ipfrag_{which}_thresh") for which in ("low", "high")]
    before = [path.read_text() for path in memory]
    await _mtu(1280)
    try:
        for path in memory:
            path.write_text("0")
        yield
    finally:
        for path, value in zip(reversed(memory), reversed(before), strict=True):
            path.write_text(value)
        await _mtu(65_536)


async def _mtu(octets: int) -> None:
    await asyncio.to_thread(subprocess.run, ["ip", "link", "set", "lo", "mtu", str(octets)], check=True)


async def _fragments_arrive() -> bool:
    """True if this path is not what it is meant to be."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[bytes] = loop.create_future()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            came.set_result(data)

    receiver, _ = await loop.create_datagram_endpoint(Receiver, ("127.0.0.1", 0))
    sender, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    endpoint = Endpoint(*receiver.get_extra_info("sockname"))
    try:
        sender.sendto(bytes(1400), (endpoint.host, endpoint.port))
        await asyncio.wait_for(came, 0.3)
    except TimeoutError:
        return False
    finally:
        receiver.close()
        sender.close()
    return True
