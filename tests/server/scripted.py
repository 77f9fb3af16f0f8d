"""An upstream on real sockets, UDP and TCP on one port of 127.0.0.1, that does to every question what a script says.

    async with Scripted(script) as upstream:
        settings = ForwardSettings(upstreams=(upstream.endpoint,))

A script is called with each `Ask`, which has what came in and ways to answer it; a script that does nothing is silence.
`upstream.asks` is the log of all that came in, probes apart (`upstream.probes`, `upstream.loop_probes`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from canal_dns.dns import names
from canal_dns.settings import Endpoint

TRUE = "192.0.2.1"
FORGED = "6.6.6.6"
_BUFFER = 4 << 20
"""Octets of queries that may wait for the script."""
LOOP_PROBE = b"\x30canal-dns-loop-"
_BADVERS_OPT = bytes.fromhex("00 0029 04d0 01 00 0000 0000")


def record(address: str = TRUE, ttl: int = 300, owner: bytes = b"\xc0\x0c") -> bytes:
    """An A record, by default of the name in the question."""
    return owner + struct.pack(">HHIH", 1, 1, ttl, 4) + socket.inet_aton(address)


def message(
    query: bytes,
    *records: bytes,
    rcode: int = 0,
    tc: bool = False,
    qr: bool = True,
    ident: int | None = None,
    question: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A reply to `query` with these answer records; what is named differs from what it should be."""
    flags = (0x8000 if qr else 0) | 0x0180 | (0x0200 if tc else 0) | rcode
    own_id = struct.unpack_from(">H", query)[0] if ident is None else ident
    asked = question_of(query) if question is None else question
    return struct.pack(">HHHHHH", own_id, flags, 1, len(records), 0, 0) + asked + b"".join(records) + tail


def question_of(query: bytes) -> bytes:
    """Name, type and class, as they stand there."""
    at = 12
    while query[at]:
        at += 1 + query[at]
    return query[12 : at + 5]


@dataclass
class Ask:
    """One question that came in."""

    upstream: Scripted
    packet: bytes
    port: int
    """The asker's."""
    stream: bool
    number: int
    """How often this question came before, over this transport."""
    write: Callable[[bytes], None] = field(repr=False)
    transport: asyncio.Transport | None = field(default=None, repr=False)

    @property
    def id(self) -> int:
        return int.from_bytes(self.packet[:2], "big")

    @property
    def question(self) -> bytes:
        return question_of(self.packet)

    @property
    def name(self) -> str:
        return names.to_text(self.question[:-4])

    @property
    def do(self) -> bool:
        return self.packet[-4:-2] == b"\x80\0"

    def reply(self, *records: bytes, **different: Any) -> None:
        """The true reply (one A record), or one with these records and differences."""
        self.write(message(self.packet, *(records or (record(),)), **different))

    def fail(self, rcode: int) -> None:
        self.write(message(self.packet, rcode=rcode))

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def from_elsewhere(self, packet: bytes, host: str = "127.0.0.1") -> None:
        """Send from another port (and another address) than the one that was asked."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            sock.sendto(packet, ("127.0.0.1", self.port))

    def reset(self) -> None:
        """RST instead of an answer (TCP)."""
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def part(self, octets: int) -> None:
        """The beginning of the true reply (TCP), and no more."""
        assert self.transport is not None
        reply = message(self.packet, record())
        self.transport.write((len(reply).to_bytes(2, "big") + reply)[:octets])

    def hang_up(self) -> None:
        assert self.transport is not None
        self.transport.close()

    def to_port(self, packet: bytes, port: int) -> None:
        """Send from the address and port that were asked, to another port of the asker (UDP)."""
        self.upstream.send(packet, ("127.0.0.1", port))


Script = Callable[[Ask], None]


def true(ask: Ask) -> None:
    """Answer every question with one A record."""
    ask.reply()


def silent(ask: Ask) -> None:
    """Answer nothing."""


def by_name(scripts: Mapping[str, Script], otherwise: Script = true) -> Script:
    """Another script for each name (lower case, final dot)."""

    def script(ask: Ask) -> None:
        scripts.get(ask.name.lower(), otherwise)(ask)

    return script


class Scripted:
    """The upstream. `tcp=False`: connections are refused; `probes_answered=False`: health probes are not.

    `keep=False`: what came in is counted, and not kept: for loads.
    """

    def __init__(
        self, script: Script = true, *, tcp: bool = True, probes_answered: bool = True, port: int = 0, keep: bool = True
    ) -> None:
        self.script = script
        self.probes_answered = probes_answered
        self.asks: list[Ask] = []
        self.probes = 0
        self.loop_probes = 0
        """Questions that find out whether an upstream leads back: no script is asked."""
        self.received = 0
        """All that came in, health probes too; those for loops not."""
        self.connections = 0
        self.closes_at_accept = False
        """A connection is closed before anything was said."""
        self.open: set[asyncio.Transport] = set()
        self._with_tcp = tcp
        self._port = port
        self._keep = keep
        self._counts: dict[tuple[bytes, bool], int] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self._port)

    @property
    def udp(self) -> list[Ask]:
        return [ask for ask in self.asks if not ask.stream]

    @property
    def tcp(self) -> list[Ask]:
        return [ask for ask in self.asks if ask.stream]

    async def __aenter__(self) -> Scripted:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        loop = asyncio.get_running_loop()
        for _ in range(20):
            self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", self._port))
            self._udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            port = self._udp.get_extra_info("sockname")[1]
            if self._with_tcp:
                try:
                    self._tcp = await loop.create_server(lambda: _Stream(self), "127.0.0.1", port)
                except OSError:
                    self._udp.close()
                    continue
            self._port = port
            return
        raise AssertionError("no port is free for both transports")

    async def stop(self) -> None:
        """Close all sockets: who asks gets ICMP port unreachable, or RST."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for transport in list(self.open):
            transport.abort()
        # Transports are closed in the next round of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def send(self, packet: bytes, address: tuple[str, int]) -> None:
        """A datagram to anybody."""
        assert self._udp is not None
        self._udp.sendto(packet, address)

    def asked(self, packet: bytes, port: int, write: Callable[[bytes], None], transport: asyncio.Transport | None) -> None:
        self.received += 1
        if packet[12:17] == b"\0\0\2\0\1" and packet[-5:-4] == b"\1":
            self.probes += 1
            if self.probes_answered:
                write(message(packet, tail=b"")[:10] + b"\0\1" + question_of(packet) + _BADVERS_OPT)
            return
        if packet[12:].startswith(LOOP_PROBE):
            self.received -= 1
            self.loop_probes += 1
            if self.probes_answered:
                write(message(packet, rcode=3))
            return
        stream = transport is not None
        key = (question_of(packet).lower(), stream)
        number = self._counts.get(key, 0)
        self._counts[key] = number + 1
        ask = Ask(self, packet, port, stream, number, write, transport)
        if self._keep:
            self.asks.append(ask)
        self.script(ask)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, upstream: Scripted) -> None:
        self._upstream = upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        def write(packet: bytes) -> None:
            if self._transport.is_closing():
                return
            if packet:
                self._transport.sendto(packet, addr)
            else:
                # asyncio sends no empty datagrams.
                own = self._transport.get_extra_info("socket").fileno()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, fileno=os.dup(own)) as sock:
                    sock.sendto(b"", addr)

        self._upstream.asked(data, addr[1], write, None)


class _Stream(asyncio.Protocol):
    def __init__(self, upstream: Scripted) -> None:
        self._upstream = upstream
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._upstream.connections += 1
        self._upstream.open.add(self._transport)
        if self._upstream.closes_at_accept:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 2 and len(self._buffer) >= 2 + int.from_bytes(self._buffer[:2], "big"):
            end = 2 + int.from_bytes(self._buffer[:2], "big")
            packet, self._buffer = self._buffer[2:end], self._buffer[end:]
            port = self._transport.get_extra_info("peername")[1]
            self._upstream.asked(packet, port, self._write, self._transport)

    def _write(self, packet: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(len(packet).to_bytes(2, "big") + packet)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.open.discard(self._transport)


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until the condition holds; TimeoutError if it never does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, of anybody
            await asyncio.sleep(0.005)
