"""The listeners, the forwarder and the answer table of one process, as one thing that is started, fed and stopped.

Rules of this file:
- all addresses can be bound, or none is: a half-open server would pass for a whole one;
- a change touches what differs and nothing else: sockets that stay lose no datagram and no connection;
- what was accepted is answered before the end: by its upstream, or by SERVFAIL once the forward budget is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from typing import Protocol

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.table import AnswerTable, Delta, TableCell
from canal_dns.metrics import Counters, merge
from canal_dns.server.forwarder import Forwarder
from canal_dns.server.intake import Intake
from canal_dns.server.querylog import QueryLog
from canal_dns.server.sockets import open_both, port_of
from canal_dns.server.tally import Tally
from canal_dns.server.tcp import Connections, TcpListener
from canal_dns.server.udp import UdpListener
from canal_dns.settings import Endpoint, Settings

log = logging.getLogger("canal_dns.server")

GRACE = 0.5
"""Seconds beyond the forward budget after which nobody waits for what is in flight any more."""
LINGER = 1.0
"""Seconds that clients have at the end to take the last replies from their connections."""
_PIECE = 200
_TURNS = 5
"""Of the loop, in which a connection that has just been accepted reads for the first time."""


class DataPlane(Protocol):
    """What answers packets: this process (PacketService) or several (workers.WorkerPool)."""

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """The addresses that are bound, with the ports that the kernel chose for 0."""

    async def start(self) -> None:
        """Bind and answer. Raises ListenError; nothing is bound then."""

    async def failed(self) -> None:
        """Wait for ever; raises CanalError once the plane cannot go on."""

    def publish(self, delta: Delta, generation: int, serial: int, *, full: bool, since: float | None = None) -> None:
        """Change the answer table; `full`: replace it. Raises TableError; the table is then what it was.

        `since`: when the cause of it arrived (time.monotonic(), the same in every process), None if that says nothing. Each
        process that answers observes in canal_dns_event_to_answer_seconds how long it took to get there.
        """

    def exempt(self, addresses: frozenset[str]) -> None:
        """From now on these clients, and no others, get every answer as if nothing were bound: gateway pods, which would
        otherwise be led back to themselves."""

    async def reconfigure(self, settings: Settings) -> None:
        """Take over other settings. Raises ListenError; the old ones then stay in force."""

    async def counters(self) -> Counters:
        """The sum over all processes there are and were."""

    def healthy(self) -> bool:
        """True while every listener answers."""

    async def stop(self) -> None:
        """Answer what was accepted, then close everything."""


def stop_time(settings: Settings) -> float:
    """Seconds that `PacketService.stop` takes at most: forwarded queries end, then connections do."""
    return settings.forward.budget + GRACE + LINGER


def _cache_of(settings: Settings) -> AnswerCache | None:
    """An empty one: what little time its answers have is not worth moving them."""
    return AnswerCache(settings.cache.size, settings.cache.serve_stale) if settings.cache.size else None


class _Pair:
    """UDP and TCP on one address."""

    __slots__ = ("endpoint", "tcp", "udp")

    def __init__(self, wanted: Endpoint, intake: Intake, connections: Connections, *, shared: bool) -> None:
        """Raises ListenError."""
        udp, tcp = open_both(wanted, shared=shared)
        self.endpoint = Endpoint(wanted.host, port_of(udp))
        self.udp = UdpListener(udp, intake)
        self.tcp = TcpListener(tcp, connections)

    def start(self) -> None:
        self.udp.start()
        self.tcp.start()

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


class PacketService:
    """The DataPlane of one process; `shared`: others bind the same addresses."""

    def __init__(self, settings: Settings, *, shared: bool = False, tally: Tally | None = None) -> None:
        """`tally`: where the hot path counts, if whoever owns it reads it there; else memory of this process."""
        self._settings = settings
        self._shared = shared
        self._zone = names.from_text(settings.zone.cluster_domain)
        self._cell = TableCell()
        self._gate = Gate(settings.access)
        self._exempt: frozenset[str] = frozenset()
        self._counters = Counters()
        self._tally = tally or Tally()
        self._cache = _cache_of(settings)
        self._evicted = 0
        self._pairs: dict[Endpoint, _Pair] = {}
        self._retired: dict[Endpoint, _Pair] = {}

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        return tuple(pair.endpoint for pair in self._pairs.values())

    @property
    def generation(self) -> int:
        """Of the table that answers; 0: none yet."""
        return 0 if self._cell.current is None else self._cell.current.generation

    async def start(self) -> None:
        settings = self._settings
        self._forwarder = Forwarder(
            settings.forward, self._cell, self._counters, is_peer=self._is_peer, cache=self._cache, domain=self._zone
        )
        self._intake = Intake(self._cell, self._gate, self._forwarder, self._counters, self._tally)
        self._intake.cache = self._cache
        self._intake.query_log = QueryLog() if settings.log.queries else None
        self._connections = Connections(self._intake, settings.listen.tcp, settings.access.peers)
        try:
            self._pairs = self._open(settings.listen.addresses)
        except Exception:
            await self._forwarder.close()
            raise
        for pair in self._pairs.values():
            pair.start()

    async def failed(self) -> None:
        await asyncio.get_running_loop().create_future()

    def publish(self, delta: Delta, generation: int, serial: int, *, full: bool, since: float | None = None) -> None:
        table = self._cell.current
        if full or table is None:
            table = AnswerTable(self._zone)
        table.apply(delta, generation, serial)
        if self._cache is not None:
            if table is self._cell.current:
                self._cache.purge(delta)
            else:
                self._cache.clear()
        self._answer_from(table, since)

    async def replace(self, delta: Delta, generation: int, serial: int, since: float | None = None) -> None:
        """`publish` with `full`, in pieces: 20,000 names take a fifth of a second in which packets want answers, too."""
        table = AnswerTable(self._zone)
        items = iter(delta.items())
        while piece := dict(itertools.islice(items, _PIECE)):
            table.apply(piece, generation, serial)
            await asyncio.sleep(0)
        table.apply({}, generation, serial)
        if self._cache is not None:
            self._cache.clear()
        self._answer_from(table, since)

    def exempt(self, addresses: frozenset[str]) -> None:
        self._exempt = addresses
        self._gate.exempt(addresses)

    async def reconfigure(self, settings: Settings) -> None:
        addresses = dict.fromkeys(settings.listen.addresses)
        added = self._open(tuple(address for address in addresses if address not in self._pairs))
        old, self._settings = self._settings, settings
        for pair in added.values():
            pair.start()
        for address in self._pairs.keys() - addresses.keys():
            self._retire(address)
        self._pairs = {address: added.get(address) or self._pairs[address] for address in addresses}

        # Names below another domain come with the next full table; the present one keeps the zone it was made for.
        self._zone = names.from_text(settings.zone.cluster_domain)
        if settings.forward != old.forward or settings.zone.cluster_domain != old.zone.cluster_domain:
            self._forwarder.reconfigure(settings.forward, self._zone)
        if settings.access != old.access:
            self._gate = self._intake.gate = Gate(settings.access, self._exempt)
        if settings.cache != old.cache or settings.forward.upstreams != old.forward.upstreams:
            # Others are asked from now on: what the former ones said may be why.
            self._count_evictions()
            self._evicted = 0
            self._cache = self._intake.cache = self._forwarder.cache = _cache_of(settings)
        if settings.listen.tcp != old.listen.tcp or settings.access.peers != old.access.peers:
            self._connections.reconfigure(settings.listen.tcp, settings.access.peers)
        if settings.log.queries != old.log.queries:
            self._intake.query_log = QueryLog() if settings.log.queries else None

    async def counters(self) -> Counters:
        return self.own_counters()

    def own_counters(self) -> Counters:
        """The same at once, for a caller that cannot wait."""
        whole = merge((self.counters_beside_tally(),))
        self._tally.add_to(whole)
        return whole

    def counters_beside_tally(self) -> Counters:
        """What whoever reads the tally does not know yet."""
        for pair in self._pairs.values():
            pair.udp.count_kernel_drops()
        self._count_evictions()
        entries = self._counters["canal_dns_cache_entries"]
        denials = 0 if self._cache is None else self._cache.denials
        entries[("success",)] = 0 if self._cache is None else len(self._cache.entries) - denials
        entries[("denial",)] = denials
        return self._counters

    def healthy(self) -> bool:
        return bool(self._pairs)

    async def stop(self) -> None:
        pairs = (*self._pairs.values(), *self._retired.values())
        for pair in pairs:
            pair.tcp.close()
        for pair in pairs:
            await pair.tcp.taken_over()
        # What the clients of the last connections had sent is read, too.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._connections.finish()
        # Datagrams are read all the while: a bound socket that nobody reads would swallow its share of them. Hits are answered
        # as ever, what would have to be forwarded gets its SERVFAIL at once, and so this ends, however many go on asking.
        await self._forwarder.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connections.wait_closed(), LINGER)
        for pair in pairs:
            pair.close()
        self._pairs, self._retired = {}, {}
        self._connections.abort()
        # Transports tell their connections of the end in the next turn of the loop.
        await asyncio.sleep(0)

    def _is_peer(self, client: str) -> bool:
        return self._gate.is_peer(client)

    def _count_evictions(self) -> None:
        if self._cache is not None:
            self._counters["canal_dns_cache_evictions_total"][()] += self._cache.evicted - self._evicted
            self._evicted = self._cache.evicted

    def _answer_from(self, table: AnswerTable, since: float | None) -> None:
        self._cell.current = table
        if since is not None:
            self._counters.histograms["canal_dns_event_to_answer_seconds"][()].observe(time.monotonic() - since)

    def _retire(self, address: Endpoint) -> None:
        """Take no new connections there; datagrams are answered until what came in by this socket has had its time."""
        pair = self._pairs.pop(address)
        pair.tcp.close()
        self._retired[pair.endpoint] = pair
        asyncio.get_running_loop().call_later(self._settings.forward.budget + GRACE, self._close_retired, pair)

    def _close_retired(self, pair: _Pair) -> None:
        pair.close()
        if self._retired.get(pair.endpoint) is pair:
            del self._retired[pair.endpoint]

    def _open(self, addresses: tuple[Endpoint, ...]) -> dict[Endpoint, _Pair]:
        """All of them, or ListenError and none."""
        with contextlib.ExitStack() as undo:
            pairs = {}
            for address in addresses:
                if (retired := self._retired.get(address)) is not None:
                    self._close_retired(retired)
                pairs[address] = _Pair(address, self._intake, self._connections, shared=self._shared)
                undo.callback(pairs[address].close)
            undo.pop_all()
        return pairs
