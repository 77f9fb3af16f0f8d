"""A PacketService with the bound names of tests/conformance and a scripted upstream, and clients that ask it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal_dns.dns import names
from canal_dns.dns.table import Addresses
from canal_dns.server.service import PacketService
from canal_dns.settings import (
    AccessSettings,
    CacheSettings,
    Endpoint,
    ForwardSettings,
    ListenSettings,
    LogSettings,
    Settings,
    SourceSettings,
    TcpSettings,
)
from tests.server.scripted import Script, Scripted, true

VIP = bytes([10, 96, 0, 200])
WEB = "web.shop.svc.cluster.local"
BOUND = {names.from_text(WEB): Addresses((VIP,), (), 5)}
LOOPBACK = Endpoint("127.0.0.1", 0)


def query(name: str = WEB, qtype: int = 1, *, ident: int = 0x1A2B, flags: int = 0x0100, qclass: int = 1) -> bytes:
    return struct.pack(">HHHHHH", ident, flags, 1, 0, 0, 0) + names.from_text(name) + struct.pack(">HH", qtype, qclass)


def rcode(reply: bytes) -> int:
    return reply[3] & 15


def is_vip(reply: bytes, vip: bytes = VIP) -> bool:
    return reply[6:8] == b"\0\1" and reply.endswith(vip)


def settings(
    *upstreams: Endpoint,
    listen: tuple[Endpoint, ...] = (LOOPBACK,),
    tcp: TcpSettings | None = None,
    access: AccessSettings | None = None,
    log: LogSettings | None = None,
    cache: CacheSettings | None = None,
    **forward: Any,
) -> Settings:
    """Without a cache, if none is wanted: then every query for another's name reaches the upstream."""
    return Settings(
        source=SourceSettings("nowhere"),
        listen=ListenSettings(addresses=listen, tcp=tcp or TcpSettings()),
        forward=ForwardSettings(upstreams=upstreams, **forward),
        access=access or AccessSettings(),
        log=log or LogSettings(),
        cache=cache or CacheSettings(size=0),
    )


@dataclass
class Running:
    service: PacketService
    upstream: Scripted
    settings: Settings

    @property
    def endpoint(self) -> Endpoint:
        return self.service.listeners[0]

    def counted(self, metric: str, *labels: str) -> float:
        return self.service.own_counters()[metric][labels]

    async def reconfigure(self, **listen: Any) -> None:
        """Change ListenSettings."""
        self.settings = dataclasses.replace(self.settings, listen=dataclasses.replace(self.settings.listen, **listen))
        await self.service.reconfigure(self.settings)


@contextlib.asynccontextmanager
async def serving(script: Script = true, *, bound: bool = True, **different: Any) -> AsyncIterator[Running]:
    async with Scripted(script) as upstream:
        config = settings(upstream.endpoint, **different)
        service = PacketService(config)
        await service.start()
        try:
            if bound:
                service.publish(BOUND, 1, 1, full=True)
            yield Running(service, upstream, config)
        finally:
            await service.stop()


def udp_client(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((host, port))
    return sock


async def receive(sock: socket.socket, seconds: float = 2.0) -> tuple[bytes, Any]:
    """One datagram and where it came from; TimeoutError if there is none."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await asyncio.wait_for(readable.wait(), seconds)
        return sock.recvfrom(65_535)
    finally:
        loop.remove_reader(sock.fileno())


async def ask(endpoint: Endpoint, packet: bytes, seconds: float = 2.0) -> bytes:
    """One query over UDP from a new port, and its reply."""
    with udp_client("::1" if endpoint.is_ipv6 else "127.0.0.1") as sock:
        sock.sendto(packet, (endpoint.host, endpoint.port))
        return (await receive(sock, seconds))[0]


async def ask_again(endpoint: Endpoint, packet: bytes, seconds: float = 5.0) -> bytes:
    """As a stub resolver does it: a query that is lost is sent once more."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(TimeoutError):
                return await ask(endpoint, packet, 0.2)


class TcpClient:
    """A client connection that talks in DNS messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *messages: bytes) -> None:
        self.writer.write(b"".join(len(one).to_bytes(2, "big") + one for one in messages))

    async def read(self, seconds: float = 2.0) -> bytes:
        async with asyncio.timeout(seconds):
            size = int.from_bytes(await self.reader.readexactly(2), "big")
            return await self.reader.readexactly(size)

    async def ask(self, packet: bytes) -> bytes:
        self.write(packet)
        return await self.read()

    async def closed(self, seconds: float = 2.0) -> bool:
        """True once the server closed, with FIN or RST, and had nothing more to say."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def reset(self) -> None:
        """End it with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint, host: str = "") -> AsyncIterator[TcpClient]:
    local = (host, 0) if host else None
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, local_addr=local)
    try:
        yield TcpClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def descriptors() -> int:
    """Open files of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
