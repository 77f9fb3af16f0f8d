"""A way with weather: a relay between canal-dns and an upstream that loses, delays, reorders and doubles datagrams.

    async with Lossy(upstream.endpoint, Weather(loss=0.05)) as way:
        server = await bench.server(way.endpoint)

Rules of this file:
- the weather is the same in both directions, and drawn from a seed; to TCP what is lost comes late, as by the kernel;
- whoever sends from another address or port has a flow of its own, which leaves by a socket of its own;
- every datagram is counted: what came in went on, was lost, or was swallowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from canal_dns.settings import Endpoint
from tests.server.scripted import LOOP_PROBE

IDLE = 15.0
"""Seconds after which a flow is forgotten: a socket of canal-dns lives 10 s, and its last query is over 2 s later."""
SYN_AGAIN, SEGMENT_AGAIN = 1.0, 0.2
"""Seconds after which Linux sends a SYN anew, and a segment on a short way."""
_BUFFER = 4 << 20
_BATCH = 64

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Weather:
    """Shares are of the datagrams, each way; times are seconds."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    """Up to so much more, each datagram for itself: which reorders."""
    reorder: float = 0.0
    """Held back for 20 ms, so that those behind come first."""
    duplicate: float = 0.0


@dataclass(slots=True)
class Passed:
    """Datagrams in one direction."""

    came: int = 0
    went: int = 0
    lost: int = 0
    swallowed: int = 0
    doubled: int = 0

    @property
    def missing(self) -> int:
        """Not accounted for, once nothing is on its way."""
        return self.came + self.doubled - self.went - self.lost - self.swallowed


class Lossy:
    """The relay, UDP and TCP on one port of 127.0.0.1."""

    def __init__(self, behind: Endpoint, weather: Weather = Weather(), *, seed: int = 22) -> None:
        self.behind = behind
        self.weather = weather
        self.there, self.back = Passed(), Passed()
        self.loop_probes = 0
        """Of what came from there: canal-dns counts them apart."""
        self.log: list[tuple[int, float]] | None = None
        """If a list: the source port of each datagram from there, and when it came, by time.monotonic()."""
        self._random = random.Random(seed)
        self._flows: dict[Address, _Flow] = {}
        self._dead: set[Address] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self._sock.getsockname()[1])

    async def __aenter__(self) -> Lossy:
        self._loop = asyncio.get_running_loop()
        for _ in range(20):
            self._sock = _udp()
            self._sock.bind(("127.0.0.1", 0))
            try:
                self._tcp = await asyncio.start_server(self._connected, "127.0.0.1", self._sock.getsockname()[1])
            except OSError:
                self._sock.close()
                continue
            self._loop.add_reader(self._sock, self._readable)
            self._sweeping = self._loop.call_later(IDLE, self._sweep)
            return self
        raise AssertionError("no port is free for both transports")

    async def __aexit__(self, *exc: object) -> None:
        self._sweeping.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._tcp.close()
        for flow in self._flows.values():
            flow.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def black_hole(self) -> None:
        """Swallow all flows of until now for ever, both ways: they lead to a pod that is gone. New ones pass."""
        self._dead |= self._flows.keys()

    def pass_on(self, counts: Passed, flow: _Flow, send: Callable[[bytes], object], packet: bytes) -> None:
        """Do to a datagram what the weather does to it."""
        counts.came += 1
        if flow.client in self._dead:
            counts.swallowed += 1
            return
        weather, chance = self.weather, self._random.random
        if self._lost():
            counts.lost += 1
            return
        copies = 1
        if weather.duplicate and chance() < weather.duplicate:
            counts.doubled += 1
            copies = 2
        for _ in range(copies):
            seconds = weather.delay + weather.jitter * chance()
            if weather.reorder and chance() < weather.reorder:
                seconds += 0.02
            if seconds:
                self._loop.call_later(seconds, self._go, counts, flow, send, packet)
            else:
                self._go(counts, flow, send, packet)

    def send_back(self, client: Address, packet: bytes) -> None:
        self._sock.sendto(packet, client)

    def _go(self, counts: Passed, flow: _Flow, send: Callable[[bytes], object], packet: bytes) -> None:
        counts.went += 1
        if not flow.closed:
            # Nobody may be there any more: that is told to nobody.
            with contextlib.suppress(OSError):
                send(packet)

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                packet, client = self._sock.recvfrom(65_535)
            except BlockingIOError:
                return
            except OSError:
                continue
            flow = self._flows.get(client)
            if flow is None:
                flow = self._flows[client] = _Flow(self, client, self._loop)
            flow.used = time.monotonic()
            if self.log is not None:
                self.log.append((client[1], flow.used))
            self.loop_probes += packet[12:].startswith(LOOP_PROBE)
            self.pass_on(self.there, flow, flow.sock.send, packet)

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(IDLE, self._sweep)
        for client, flow in list(self._flows.items()):
            if time.monotonic() - flow.used > IDLE and client not in self._dead:
                flow.close()
                del self._flows[client]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            if self._lost() or self._lost():
                await asyncio.sleep(SYN_AGAIN)
            reader_behind, writer_behind = await asyncio.open_connection(self.behind.host, self.behind.port)
            with contextlib.closing(writer_behind):
                await asyncio.gather(self._pump(reader, writer_behind), self._pump(reader_behind, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            late = 0.0
            while self._lost():
                late = 2 * late + SEGMENT_AGAIN
            await asyncio.sleep(late)
            writer.write(data)
            await writer.drain()
        writer.close()

    def _lost(self) -> bool:
        return self._random.random() < self.weather.loss


class _Flow:
    """One client, and the socket by which its datagrams leave."""

    def __init__(self, home: Lossy, client: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.used = time.monotonic()
        self.closed = False
        self.sock = _udp()
        self.sock.connect((home.behind.host, home.behind.port))
        self._home = home
        self._loop = loop
        loop.add_reader(self.sock, self._readable)

    def close(self) -> None:
        self.closed = True
        self._loop.remove_reader(self.sock)
        self.sock.close()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                packet = self.sock.recv(65_535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            self._home.pass_on(self._home.back, self, self._to_client, packet)

    def _to_client(self, packet: bytes) -> None:
        self._home.send_back(self.client, packet)


def _udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    return sock
