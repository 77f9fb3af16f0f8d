"""A DNS server around one function, and one question to a DNS server: what the demo needs on both ends.

Not for production: no limits, one datagram or one TCP message at a time, loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from canal_dns.dns.wire import frame
from canal_dns.settings import Endpoint

Answer = Callable[[bytes], bytes | None]
"""A query's bytes -> the reply's, or None for no reply."""


class StandIn:
    """Answers UDP and TCP on one loopback address by a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self) -> Endpoint:
        """Listen on a free port of 127.0.0.1, the same for UDP and TCP."""
        running = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await running.create_datagram_endpoint(lambda: _Datagrams(self._answer), ("127.0.0.1", port))
        return Endpoint("127.0.0.1", port)

    async def stop(self) -> None:
        """Close both."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                reply = self._answer(await reader.readexactly(length))
                if reply is not None:
                    writer.write(frame(reply))
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._answer(data)
        if reply is not None:
            self._transport.sendto(reply, addr)


async def ask(server: Endpoint, query: bytes, seconds: float = 5.0) -> bytes:
    """Send one query over UDP and give the reply. Raises TimeoutError."""
    running = asyncio.get_running_loop()
    reply: asyncio.Future[bytes] = running.create_future()
    transport, _ = await running.create_datagram_endpoint(lambda: _Reply(reply), remote_addr=(server.host, server.port))
    try:
        transport.sendto(query)
        return await asyncio.wait_for(reply, seconds)
    finally:
        transport.close()


class _Reply(asyncio.DatagramProtocol):
    def __init__(self, reply: asyncio.Future[bytes]) -> None:
        self._reply = reply

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._reply.done():
            self._reply.set_result(data)
