"""Mutated packets against a running server with two workers, whose upstream says mutated things, too.

Batches of packets, each with a query for a bound name behind it: when that is answered, the server has read all before it.
Every reply is judged as it comes: it belongs to a packet that was sent, nobody got it before, and it is valid.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence

from tests.conformance.lab import load
from tests.faults.bench import Bench
from tests.faults.rows import Outcome
from tests.faults.server import BOUND, VIP, Server
from tests.fuzz import targets
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Finding
from tests.fuzz.valid import question_of, readable, sound, udp_limit
from tests.server.scripted import Ask, message, record
from tests.server.serving import query

SHORT, LONG = 50_000, 1_000_000
BATCH = 24
SOCKETS = 8
STREAM_EVERY = 40
"""Batches until one goes over TCP."""
LARGEST = 700
PATIENCE = 2.0
"""Seconds for the query behind a batch; it is asked twice more before the server counts as silent."""
_SENTINEL = query(BOUND, ident=0)[2:]


class _Upstream:
    """What the upstream says: mostly the truth, else what chance makes of it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.damaged: set[bytes] = set()
        """Questions, lower-cased, to which something was said that dnspython cannot read."""

    def __call__(self, ask: Ask) -> None:
        chance = self._chance
        kind = chance.randrange(10)
        if kind < 6:
            ask.reply()
        elif kind < 9:
            mutator = Mutator([message(ask.packet, record())], (b"\xc0\x0c", record()), chance.randrange(1 << 30), 1200)
            reply = ask.packet[:2] + mutator.one()[2:]
            if not readable(reply):
                self.damaged.add(ask.question.lower())
            ask.write(reply)


class _Client:
    """One socket, and what it sent."""

    def __init__(self, server: Server, host: str, upstream: _Upstream) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind((host, 0))
        self.sock.connect((server.endpoint.host, server.endpoint.port))
        self.upstream = upstream
        self.open: dict[int, bytes] = {}
        self.ident = 0
        self.sentinel: int | None = None
        self.passed = asyncio.Event()
        self.replies = 0
        self.faults: list[str] = []
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self.read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()

    def send(self, packet: bytes) -> None:
        """Under an ID of its own, if it is long enough for one."""
        self.ident = (self.ident + 1) & 0xFFFF
        packet = self.ident.to_bytes(2) + packet[2:] if len(packet) >= 2 else packet
        self.open[self.ident] = packet
        self._write(packet)

    async def fence(self) -> bool:
        """True where the server answers, which it does when it has read all before."""
        self.ident = (self.ident + 1) & 0xFFFF
        self.open.pop(self.ident, None)
        self.sentinel = self.ident
        for _ in range(3):
            self.passed.clear()
            self._write(self.ident.to_bytes(2) + _SENTINEL)
            try:
                await asyncio.wait_for(self.passed.wait(), PATIENCE)
            except TimeoutError:
                continue
            return True
        return False

    def _write(self, packet: bytes) -> None:
        try:
            self.sock.send(packet)
        except OSError as problem:
            self.faults.append(f"send: {problem}")

    def read(self) -> None:
        while True:
            try:
                reply = self.sock.recv(65_535)
            except BlockingIOError:
                return
            except OSError as problem:
                self.faults.append(f"receive: {problem}")
                return
            ident = int.from_bytes(reply[:2])
            if ident == self.sentinel:
                if VIP not in reply:
                    self.faults.append(f"the bound name: {reply.hex()}")
                self.passed.set()
                continue
            self.replies += 1
            sent = self.open.pop(ident, None)
            fault = (
                f"a reply to nothing: {reply.hex()}" if sent is None else judged(sent, reply, udp_limit(sent), self.upstream)
            )
            if fault:
                self.faults.append(fault)


def judged(sent: bytes, reply: bytes, limit: int, upstream: _Upstream) -> str:
    """What is wrong with a reply; "" if nothing is."""
    question = question_of(sent)
    damaged = question is not None and question.lower() in upstream.damaged
    try:
        sound(sent, reply, limit, source=b"" if damaged else None)
    except Finding as problem:
        return f"{problem}, to {sent.hex()}"
    return ""


async def live(bench: Bench) -> Outcome:
    """A run: the server answers all the time, every reply is valid."""
    wanted = LONG if bench.long else SHORT
    chance = random.Random(20_260_101 if not bench.long else None)
    upstream = _Upstream(chance)
    scripted = await bench.upstream(upstream, keep=False)
    server = await bench.server(
        scripted,
        workers=2,
        # All error replies are to be seen.
        access={"errorRepliesPerSecond": 1_000_000},
    )
    seeds = [data[1:] for data in targets.load()["queries"].corpus().values()]
    seeds += [wire for case in load().values() for wire in case.packets]
    mutator = Mutator(seeds, targets.load()["queries"].words, chance.randrange(1 << 30), LARGEST)
    clients = [_Client(server, f"127.0.0.{at + 1}", upstream) for at in range(SOCKETS)]
    sent = batches = streamed = silent = 0
    faults: list[str] = []
    warm = False
    try:
        while sent < wanted and len(faults) < 5 and not silent:
            client = clients[batches % SOCKETS]
            batches += 1
            packets = [mutator.one() for _ in range(BATCH)]
            if batches % STREAM_EVERY == 0:
                replies, problem = await _stream(server, packets[:8], upstream)
                streamed += replies
                faults += problem
            for packet in packets:
                client.send(packet)
            sent += len(packets)
            silent += not await client.fence()
            faults += client.faults
            client.faults.clear()
            if not warm and sent > wanted // 10:
                warm = True
                await asyncio.sleep(0)
                bench.baseline(server)
        # What still waits for the upstream is answered within the budget.
        await asyncio.sleep(2.5)
        faults += [fault for client in clients for fault in client.faults]
    finally:
        for client in clients:
            client.close()
    replies = sum(client.replies for client in clients)
    told = f"; {faults[0]}" if faults else ""
    return Outcome(
        f"{sent} packets in {batches} batches, each answered to its end{' but the last' if silent else ''}; "
        f"{replies} replies over UDP and {streamed} over TCP, {len(faults)} of them not valid{told}",
        met=not faults and not silent and sent >= wanted,
    )


async def _stream(server: Server, packets: Sequence[bytes], upstream: _Upstream) -> tuple[int, list[str]]:
    """The same over a connection of their own. Gives the number of replies, and what is wrong with them."""
    reader, writer = await asyncio.open_connection(server.endpoint.host, server.endpoint.port)
    sent = {}
    try:
        for at, packet in enumerate(packets):
            one = at.to_bytes(2) + packet[2:] if len(packet) >= 2 else packet
            sent[at] = one
            writer.write(len(one).to_bytes(2) + one)
        writer.write_eof()
        whole = await asyncio.wait_for(reader.read(1 << 20), 10.0)
        while more := await asyncio.wait_for(reader.read(1 << 20), 10.0):
            whole += more
    except TimeoutError:
        return 0, ["a connection is not closed within 10 s"]
    except ConnectionError:
        # What is read after a message that is no query is thrown away, perhaps before our last octets came.
        return 0, []
    finally:
        writer.close()
    replies, faults = 0, []
    while len(whole) >= 2:
        reply, whole = whole[2 : 2 + int.from_bytes(whole[:2])], whole[2 + int.from_bytes(whole[:2]) :]
        replies += 1
        asked = sent.pop(int.from_bytes(reply[:2]), None)
        fault = f"a reply to nothing: {reply.hex()}" if asked is None else judged(asked, reply, 65_535, upstream)
        faults += [fault] if fault else []
    return replies, faults
