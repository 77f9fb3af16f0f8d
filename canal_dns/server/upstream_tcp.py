"""TCP connections towards the upstreams: pipelined, opened when a reply is truncated or doubtful; one per upstream is in use,
and at most MAX_CONNECTIONS are open.

Rules of this file:
- connecting, a broken connection and a stall never cost more than the flights' budget: their deadlines run elsewhere;
- a connection that fails tells its flights through `inflight.lost`; what becomes of them is decided there;
- an idle connection is closed after IDLE; whoever loses the race against the upstream's own close is sent once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from canal_dns.dns.flights import Channel
from canal_dns.dns.upstreams import Upstream
from canal_dns.dns.wire import Framer, frame
from canal_dns.server.upstream_series import Series, SeriesOf

IDLE = 10.0
"""Seconds without a query after which a connection is closed: CoreDNS keeps its side open for longer."""


MAX_CONNECTIONS = 8
"""Per upstream: those that took their last query, or on which nonsense came in, end only with the queries that wait there."""


class TcpChannel(Channel, asyncio.Protocol):
    """One connection, from the first intention to connect on."""

    __slots__ = ("_framer", "_home", "_transport", "_unsent", "dialling", "series", "used")

    def __init__(self, home: TcpChannels, upstream: Upstream, series: Series, now: float) -> None:
        super().__init__(upstream, now, stream=True)
        self.series = series
        self._home = home
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self.dialling: asyncio.Task[None] | None = None
        self.used = now

    def send(self, message: bytes, now: float) -> None:
        """Send now, or as soon as the connection stands."""
        self.used = now
        if self._transport is None:
            self._unsent.append(frame(message))
        else:
            self._transport.write(frame(message))

    def shut(self) -> None:
        """Close without waiting for anything, and without telling anybody."""
        if self.dialling is not None:
            self.dialling.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected = True
        self._transport.writelines(self._unsent)
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        for message in self._framer.feed(data):
            self._home.arrived(self, message)
        if self._framer.empty_frame and self._transport is not None:
            # It does not speak DNS, and would not on a new connection either.
            self.connected = False
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._home.lost(self)


class TcpChannels:
    """All connections of one process towards its upstreams."""

    def __init__(
        self, arrived: Callable[[TcpChannel, bytes], None], lost: Callable[[TcpChannel], None], series: SeriesOf
    ) -> None:
        """`arrived(channel, message)` and `lost(channel)`, when it broke or never stood, are called."""
        self._loop = asyncio.get_running_loop()
        self.arrived = arrived
        self._lost = lost
        self._series = series
        self._current: dict[Upstream, TcpChannel] = {}
        self._all: set[TcpChannel] = set()

    def __len__(self) -> int:
        """Connections, those on their way to be included."""
        return len(self._all)

    def take(self, upstream: Upstream, now: float) -> TcpChannel:
        """A connection for one query."""
        channel = self._current.get(upstream)
        if channel is None or not channel.usable(now):
            open_ = [channel for channel in self._all if channel.upstream is upstream]
            if len(open_) >= MAX_CONNECTIONS:
                return max(open_, key=lambda channel: channel.used)
            channel = self._current[upstream] = TcpChannel(self, upstream, self._series[upstream], now)
            self._all.add(channel)
            channel.dialling = self._loop.create_task(self._dial(channel), name=f"dial {upstream.text}")
        return channel

    def drop(self, upstream: Upstream) -> None:
        """The upstream gets no queries any more."""
        channel = self._current.pop(upstream, None)
        if channel is not None:
            channel.retired = True

    def sweep(self, now: float) -> None:
        """Close what is idle, and what is retired and done."""
        for channel in [channel for channel in self._all if not channel.waiting]:
            if channel.retired or now - channel.used >= IDLE:
                self._forget(channel)
                channel.shut()

    async def close(self) -> None:
        """Close every connection, whoever waits."""
        dialling = [channel.dialling for channel in self._all if channel.dialling is not None]
        for channel in list(self._all):
            self._forget(channel)
            channel.shut()
        await asyncio.gather(*dialling, return_exceptions=True)

    def lost(self, channel: TcpChannel) -> None:
        """A connection broke, unless it was closed here."""
        if channel in self._all:
            self._forget(channel)
            self._lost(channel)

    def _forget(self, channel: TcpChannel) -> None:
        channel.retired = True
        self._all.discard(channel)
        if self._current.get(channel.upstream) is channel:
            del self._current[channel.upstream]

    async def _dial(self, channel: TcpChannel) -> None:
        endpoint = channel.upstream.endpoint
        try:
            await self._loop.create_connection(lambda: channel, endpoint.host, endpoint.port)
        except OSError:
            self.lost(channel)
        finally:
            channel.dialling = None
