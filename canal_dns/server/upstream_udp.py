"""UDP sockets towards the upstreams: connected, of short life, and many, so that a forger has to guess the port as well.

Rules of this file:
- the kernel chooses every source port, anew for every socket (RFC 5452 section 9.2), out of one range for all workers;
- each query leaves by a socket drawn from a pool of POOL per upstream, which grows by one per query until it is full;
  up to BURST queries that come within a moment share their draw, so that their replies are read at one event;
- a socket that is too old, used up or retired leaves the pool, and is closed when nobody waits on it any more;
- the address and port of every open socket are known: a query that comes from one of them may be our own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from math import inf

from canal_dns.dns.flights import CHANNEL_LIFE, CHANNEL_QUERIES, Channel
from canal_dns.dns.upstreams import Upstream
from canal_dns.server.upstream_series import Series, SeriesOf
from canal_dns.settings import Endpoint

POOL = 256
"""Sockets per upstream, at least 64 by RFC 5452 section 10; one octet of randomness draws one of them."""
BURST = 8
"""Queries that may share a draw: a sixth less work under load, and still 256 ports over 10,000 queries."""
BURST_TIME = 0.001
"""Seconds in which they must come: too few for anybody to find the port and use it."""
MAX_LEAVING = 768
"""Sockets per upstream that may be left over from the pool; above it the oldest is closed, whoever waits on it."""

Address = tuple[str, int]


class UdpChannel(Channel):
    """A connected socket."""

    __slots__ = ("local", "recv", "send", "series", "sock")

    def __init__(self, upstream: Upstream, series: Series, now: float) -> None:
        """Raises OSError if there is no socket or no route."""
        super().__init__(upstream, now, stream=False)
        self.series = series
        self.sock = connect(upstream.endpoint)
        self.local: Address = self.sock.getsockname()[:2]
        self.send = self.sock.send
        self.recv = self.sock.recv


def connect(endpoint: Endpoint) -> socket.socket:
    """A non-blocking socket that takes datagrams from this address and port only. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect((endpoint.host, endpoint.port))
    except OSError:
        sock.close()
        raise
    return sock


class UdpChannels:
    """All UDP sockets of one process towards its upstreams."""

    def __init__(self, readable: Callable[[UdpChannel], None], series: SeriesOf) -> None:
        """`readable(channel)` is called when a socket has something."""
        self._loop = asyncio.get_running_loop()
        self.readable = readable
        self._series = series
        self.own: dict[Address, UdpChannel] = {}
        """The open sockets by their local addresses: the kernel gives each a port that no other has."""
        self._pools: dict[Upstream, list[UdpChannel]] = {}
        self._leaving: dict[Upstream, list[UdpChannel]] = {}
        self._draws = b""
        self._drawn = 0
        self._burst: UdpChannel | None = None
        self._burst_left = 0
        self._burst_until = 0.0

    def __len__(self) -> int:
        """Open sockets."""
        return sum(len(channels) for pools in (self._pools, self._leaving) for channels in pools.values())

    def take(self, upstream: Upstream, now: float, since: float = -inf) -> UdpChannel:
        """A channel for one query. Raises OSError if there is none and none can be opened.

        `since`: when a query was first sent that nobody answered: no channel is older, for all of those may lead nowhere.
        """
        born = since + CHANNEL_LIFE
        if self._burst_left:
            burst = self._burst
            if (
                burst is not None
                and now < self._burst_until
                and burst.upstream is upstream
                and burst.usable(now)
                and burst.expires >= born
            ):
                self._burst_left -= 1
                return burst
            self._burst_left = 0
        pool = self._pools.get(upstream)
        if pool is None:
            pool = self._pools[upstream] = []
        if len(pool) < POOL:
            return self._grow(pool, upstream, now)
        if self._drawn == len(self._draws):
            self._draws = os.urandom(4096)
            self._drawn = 0
        at = self._draws[self._drawn]
        self._drawn += 1
        channel = pool[at]
        if not channel.usable(now) or channel.expires < born:
            self._leave(channel)
            pool[at] = pool[-1]
            pool.pop()
            return self._grow(pool, upstream, now)
        # Not for a new socket: its first packet makes the connection tracking entry, which others would race for.
        self._burst = channel
        self._burst_left = BURST - 1
        self._burst_until = now + BURST_TIME
        return channel

    def take_some(self, upstream: Upstream, now: float, most: int) -> tuple[UdpChannel, int]:
        """As `take`, for up to `most` queries that leave now: a channel, and for how many. Raises OSError."""
        channel = self.take(upstream, now)
        more = 0
        if channel is self._burst:
            more = min(self._burst_left, most - 1, CHANNEL_QUERIES - 1 - channel.left)
            self._burst_left -= more
        return channel, 1 + more

    def single(self, upstream: Upstream, now: float) -> UdpChannel:
        """A channel for one query only: a probe must not share the fate of an old socket. Raises OSError."""
        channel = self._open(upstream, now)
        self._leave(channel)
        return channel

    def listen_again(self, channel: UdpChannel) -> None:
        """After an error: libuv polls a socket that had one no more, and an ICMP packet of anybody's would make it deaf."""
        if self.own.get(channel.local) is channel:
            self._loop.remove_reader(channel.sock.fileno())
            self._loop.add_reader(channel.sock.fileno(), self.readable, channel)

    def drop(self, upstream: Upstream) -> None:
        """The upstream gets no queries any more."""
        for channel in self._pools.pop(upstream, ()):
            self._leave(channel)

    def sweep(self, now: float) -> None:
        """Close what has served its time."""
        for pool in self._pools.values():
            old = [channel for channel in pool if not channel.usable(now)]
            if old:
                pool[:] = [channel for channel in pool if channel.usable(now)]
                for channel in old:
                    self._leave(channel)
        for upstream, leaving in list(self._leaving.items()):
            self._leaving[upstream] = [channel for channel in leaving if not self._close_idle(channel)]
            if not self._leaving[upstream]:
                del self._leaving[upstream]

    def close(self) -> None:
        """Close every socket, whoever waits."""
        for channels in (*self._pools.values(), *self._leaving.values()):
            for channel in channels:
                self._close(channel)
        self._pools.clear()
        self._leaving.clear()

    def _grow(self, pool: list[UdpChannel], upstream: Upstream, now: float) -> UdpChannel:
        try:
            channel = self._open(upstream, now)
        except OSError:
            # Better a port that was used before than no query at all: the process may be out of descriptors.
            for channel in pool:
                if channel.usable(now):
                    return channel
            raise
        pool.append(channel)
        return channel

    def _open(self, upstream: Upstream, now: float) -> UdpChannel:
        channel = UdpChannel(upstream, self._series[upstream], now)
        self.own[channel.local] = channel
        self._loop.add_reader(channel.sock.fileno(), self.readable, channel)
        return channel

    def _leave(self, channel: UdpChannel) -> None:
        channel.retired = True
        leaving = self._leaving.setdefault(channel.upstream, [])
        leaving.append(channel)
        if len(leaving) > MAX_LEAVING:
            leaving[:] = [channel for channel in leaving if not self._close_idle(channel)]
            if len(leaving) > MAX_LEAVING:
                self._close(leaving.pop(0))

    def _close_idle(self, channel: UdpChannel) -> bool:
        if channel.waiting:
            return False
        self._close(channel)
        return True

    def _close(self, channel: UdpChannel) -> None:
        if self.own.get(channel.local) is channel:
            del self.own[channel.local]
        self._loop.remove_reader(channel.sock.fileno())
        channel.sock.close()
