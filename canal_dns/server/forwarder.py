"""The way to the upstreams and back: sockets and one timer around `dns.upstreams` and `dns.inflight`.

Rules of this file:
- receive, ask, send, count: what a packet means and what happens next is decided in `dns.inflight`;
- no task and no timer per query: one timer for the oldest, which a query that is answered in time never needs;
- `reply_to` of a query is called exactly once, even if its reply brings out a fault of ours; what one client's raises harms
  no other;
- everything is bounded: waiting queries, sockets, packets per query, seconds per query.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.flights import Done, Flight, Ignored, Overdue, Rejection, ReplyTo, Send, Suspect
from canal_dns.dns.inflight import Inflight
from canal_dns.dns.memory import Memory
from canal_dns.dns.table import TableCell
from canal_dns.dns.upstreams import PROBE, Upstream, Upstreams, probe_packet
from canal_dns.dns.wire import AD, CD, MAX_STREAM, RD, Ede, Mismatch, Query, Rcode, servfail, upstream_query
from canal_dns.metrics import Counters
from canal_dns.server.forwarding import QUICK
from canal_dns.server.hits import Miss
from canal_dns.server.sockets import Control, Peer, UdpSocket
from canal_dns.server.upstream_loops import UpstreamLoops
from canal_dns.server.upstream_series import SeriesOf
from canal_dns.server.upstream_tcp import TcpChannel, TcpChannels
from canal_dns.server.upstream_udp import UdpChannel, UdpChannels
from canal_dns.settings import ForwardSettings, Sentinel

if TYPE_CHECKING:
    from canal_dns.server._forward_c import Quick

Answer: TypeAlias = Callable[[Peer, Control, float, bytes | None], None]
"""How a listener is given a reply: whose query it answers, by which way it came and when, and the reply, or None for none."""

PACKETS = 16
"""Datagrams read from one socket at one event, while others wait on it: then the rest of the process has its turn."""
SWEEP = 0.5
"""Seconds between looks for sockets that have served their time."""
_TICK = 0.001
"""Seconds by which the timer comes late: uvloop's clock has milliseconds, and a timer that is early would spin."""

_EDE = {
    Rejection.OUTSTANDING: Ede.OTHER,
    Rejection.CLIENT: Ede.OTHER,
    Rejection.DOWN: Ede.NO_REACHABLE_AUTHORITY,
    Rejection.LOOP: Ede.NO_REACHABLE_AUTHORITY,
    Rejection.CLOSING: Ede.NOT_READY,
}

_LATE = ("late",)
_NOBODY = ""
"""The client of our own queries: one for the limit per client, which so bounds them too."""

_clock = time.monotonic
_log = logging.getLogger(__name__)


def _forget(wire: bytes | None) -> None:
    """The way of a reply that nobody waits for."""


class Forwarder:
    """Has queries answered by the upstreams. One per process, made in its running loop."""

    def __init__(
        self,
        settings: ForwardSettings,
        cell: TableCell,
        counters: Counters,
        is_peer: Callable[[str], bool] = lambda client: False,
        cache: AnswerCache | None = None,
        domain: bytes | None = None,
    ) -> None:
        """`is_peer(client)`: no limit for this client address alone (`access.peers`); `cache`: is given what comes in, and
        asked when no upstream is left; may be replaced. `domain`: the cluster domain, lower-cased, in wire form, under which
        upstreams are probed for whether they lead back to us; None: they are not."""
        self.cache = cache
        self._loop = asyncio.get_running_loop()
        self._cell = cell
        self._upstreams = Upstreams(settings.upstreams)
        self._memory = Memory()
        self._inflight = Inflight(self._upstreams, os.urandom, is_peer, self._memory.match)
        self.loops = UpstreamLoops(self._upstreams, counters)
        self._series = SeriesOf(counters)
        self.counters = counters
        self._quick: Quick | None = None
        self._udp = UdpChannels(self._on_readable, self._series)
        if QUICK is not None:
            self._quick = QUICK(self, self._inflight, self._udp, self._upstreams, cell)
            self._udp.readable = self._quick.receive
        self._tcp = TcpChannels(self._on_message, self._on_lost, self._series)
        self._timer: asyncio.TimerHandle | None = None
        self._wake = inf
        self._sweep_at = inf
        self._emptied: asyncio.Future[None] | None = None

        self._requests = counters["canal_dns_forward_requests_total"]
        self._responses = counters["canal_dns_forward_responses_total"]
        self._failures = counters["canal_dns_forward_failures_total"]
        self._ignored = counters["canal_dns_forward_ignored_replies_total"]
        self._rejected = counters["canal_dns_forward_rejected_total"]
        self._coalesced = counters["canal_dns_forward_coalesced_total"]
        self._rewritten = counters["canal_dns_forward_rewritten_total"]
        self._in_flight = counters["canal_dns_forward_in_flight"]
        self._up = counters["canal_dns_forward_upstream_up"]
        self._dropped = counters["canal_dns_dropped_total"]
        self._prefetches = counters["canal_dns_cache_prefetch_total"]
        self._served_stale = counters["canal_dns_cache_served_stale_total"]
        self._told: dict[Upstream, bool] = {}
        self._changed_at = -inf
        """When the upstreams became others: what was asked before is not for the cache, which began anew."""
        self.reconfigure(settings, domain)

    @property
    def marks(self) -> frozenset[bytes]:
        """Of our own probes: what carries one is answered at once, whoever sent it (dns/loops)."""
        return self.loops.marks

    def submit(self, query: Query, client: str, reply_to: ReplyTo, exempt: bool = False) -> None:
        """Have a query answered for a client (its address, as text); `exempt`: as if nothing were bound.

        `reply_to` is called exactly once, now or within the budget: with the complete reply for this client, which is
        SERVFAIL with an extended error if there is none, or with None if the reply would come too late to be of use.
        """
        now = _clock()
        flight = self._inflight.submit(query, client, reply_to, now, exempt)
        if type(flight) is Flight:
            self._send(flight, flight.upstream, now)
            if now + self._inflight.first_try < self._wake:
                self._arm(now)
        elif flight is None:
            self._coalesced[()] += 1
            if self.loops.is_sign(query, client):
                self.suspect(query.name, now, client)
        else:
            assert isinstance(flight, Rejection)  # noqa: S101 - for the type checker
            self._rejected[(flight.value,)] += 1
            reply_to(self._stale(query, exempt, now) or servfail(query, _EDE[flight]))
        if self._inflight.orders:
            self._obey(now)

    def take(
        self, misses: list[Miss], sock: UdpSocket, answer: Answer, gate: Gate, words: memoryview, now: float
    ) -> list[Miss]:
        """Have those answered that need no decision; give back the rest, for `decide` and `submit`.

        `words`: where requests, and replies to them, are counted (server/tally); `answer`: for what Python has to end.
        """
        return misses if self._quick is None else self._quick.take(misses, sock, answer, gate, words, now)

    def refresh(self, query: Query) -> None:
        """Ask again what a client has just been told from the cache: the reply is for the cache alone."""
        self._prefetches[()] += 1
        self.submit(query._replace(flags=RD | query.flags & (AD | CD), limit=MAX_STREAM), _NOBODY, _forget)

    def is_own(self, query: Query, host: str, port: int) -> bool:
        """True, and counted as a loop, if a query that came by UDP from this address and port is one that we sent ourselves.

        It is if it has the ID and the question of one that waits for its reply on the socket with that address and port; the
        address and port alone may be a client's too, behind a masquerade.
        For listeners, before `submit`: such a query is answered SERVFAIL, so that a loop ends where it closes.
        """
        channel = self._udp.own.get((host, port))
        if channel is None:
            return False
        flight = channel.flights.get(query.id)
        if flight is None or flight.query.question != query.question:
            return False
        self.loops.count_own()
        self.suspect(query.name, _clock(), channel.upstream.endpoint.host)
        return True

    def suspect(self, name: bytes, now: float, client: str) -> None:
        """A question for this name seems to have come back from this client's address: a probe is to find out."""
        if self.loops.suspect_from(client, name, now):
            self._arm(now)

    def reconfigure(self, settings: ForwardSettings, domain: bytes | None = None) -> None:
        """Other upstreams, another order, other limits, another cluster domain. Nothing that is on its way is lost."""
        self._discard_age = settings.discard_age
        always_do = settings.sentinel is Sentinel.DO
        self._inflight.configure(
            budget=settings.budget,
            always_do=always_do,
            max_waiting=settings.max_outstanding,
            max_per_client=settings.max_outstanding_per_client,
        )
        before = tuple(self._upstreams)
        gone = self._upstreams.replace(settings.upstreams)
        if tuple(self._upstreams) != before:
            self._changed_at = _clock()
        for upstream in gone:
            self._udp.drop(upstream)
            self._tcp.drop(upstream)
            self._up.pop((upstream.text,), None)
            self.loops.forget(upstream)
            self._told.pop(upstream, None)
            self._series.pop(upstream, None)
        self.loops.reconfigure(domain, always_do, _clock())
        self._tell()
        self._arm(_clock())

    async def close(self) -> None:
        """Reject what comes from now on, let what is on its way end (within its budget), close all sockets."""
        self._inflight.close()
        self.loops.close()
        if len(self._inflight):
            self._emptied = self._loop.create_future()
            await self._emptied
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._udp.close()
        await self._tcp.close()
        self._in_flight[()] = 0

    # -- towards the upstreams ---------------------------------------------------------------------------------------

    def _send(self, flight: Flight, upstream: Upstream, now: float) -> None:
        of_health = flight.probe and flight.query is PROBE
        try:
            if of_health:
                channel = self._udp.single(upstream, now)
            else:
                channel = self._udp.take(upstream, now, flight.started if flight.late else -inf)
        except OSError:
            self._failures[(upstream.text, "socket")] += 1
            self._inflight.unsent(flight, upstream, now)
            return
        ident = self._inflight.assign(flight, channel)
        packet = probe_packet(ident) if of_health else upstream_query(flight.query, ident, do=flight.do)
        flight.sent = now
        if flight.probe and not of_health:
            self.loops.count_probe(upstream)
        else:
            self._requests[channel.series.udp] += 1
        try:
            channel.send(packet)
        except OSError:
            self._send_again(channel, packet, now)

    def _send_again(self, channel: UdpChannel, packet: bytes, now: float) -> None:
        """The first error may be an ICMP report about an earlier packet: then nothing was sent, and the error is gone now."""
        self._refused(channel, now)
        try:
            channel.send(packet)
        except OSError:
            self._failures[(channel.upstream.text, "send")] += 1

    def _send_stream(self, flight: Flight, upstream: Upstream, now: float) -> None:
        channel = self._tcp.take(upstream, now)
        ident = self._inflight.assign(flight, channel)
        flight.sent = now
        self._requests[channel.series.tcp] += 1
        channel.send(upstream_query(flight.query, ident, do=flight.do), now)

    def _obey(self, now: float) -> None:
        """Do what `inflight` ordered. Rare: a reply that is simply good orders nothing."""
        orders = self._inflight.orders
        while orders:
            order = orders.pop(0)
            if type(order) is Send:
                if order.flight.done:
                    continue
                if order.stream:
                    self._send_stream(order.flight, order.upstream, now)
                else:
                    self._send(order.flight, order.upstream, now)
            elif type(order) is Overdue:
                self._failures[(order.upstream.text, "timeout")] += 1
            elif type(order) is Suspect:
                self.loops.suspect(order.upstream, order.name, now)
            elif type(order) is Done:
                if order.rejection is not None:
                    self._rejected[(order.rejection.value,)] += len(order.flight.waiters)
                (self._probed if order.flight.probe else self._deliver)(order.flight, now)
        self._arm(now)

    # -- and back ----------------------------------------------------------------------------------------------------

    def _on_readable(self, channel: UdpChannel) -> None:
        now = _clock()
        for _ in range(PACKETS):
            try:
                packet = channel.recv(MAX_STREAM)
            except BlockingIOError:
                break
            except OSError:
                self._refused(channel, now)
                break
            self._receive(channel, packet, now)
            if not channel.waiting:
                break
        if self._inflight.orders:
            self._obey(now)

    def _on_message(self, channel: TcpChannel, message: bytes) -> None:
        now = channel.used = _clock()
        self._receive(channel, message, now)
        if self._inflight.orders:
            self._obey(now)

    def _on_lost(self, channel: TcpChannel) -> None:
        if channel.waiting:
            self._failures[(channel.upstream.text, "tcp")] += 1
        now = _clock()
        self._inflight.lost(channel, now)
        self._obey(now)

    def _receive(self, channel: UdpChannel | TcpChannel, packet: bytes, now: float) -> None:
        flight = self._inflight.received(channel, packet)
        if isinstance(flight, (Mismatch, Ignored)):
            self._ignored[(flight.value,)] += 1
        elif flight.probe and flight.query is not PROBE:
            self._probed(flight, now)
        else:
            series = channel.series
            self._responses[series.rcodes[packet[3] & 15]] += 1
            series.duration.observe(now - flight.sent)
            if packet[3] & 15 == Rcode.SERVFAIL and self.loops.suspect_failure(channel.upstream, flight.key[0], now):
                self._arm(now)
            if flight.done and not flight.probe:
                self._deliver(flight, now)

    def _refused(self, channel: UdpChannel, now: float) -> None:
        self._failures[(channel.upstream.text, "refused")] += 1
        self._udp.listen_again(channel)
        self._inflight.refused(channel, now)

    def _deliver(self, flight: Flight, now: float) -> None:
        for query, _, reply_to, since, exempt in flight.waiters:
            try:
                wire = self._outcome(flight, query, since, now, exempt)
            except Exception:
                # A fault of ours that one reply brings out: the client is to know, and not to wait.
                _log.exception("a reply could not be relayed")
                wire = servfail(query, Ede.OTHER)
            try:
                reply_to(wire)
            except Exception:
                _log.exception("a reply could not be handed over")
        self._delivered(flight, now)

    def _probed(self, flight: Flight, now: float) -> None:
        """A probe of whether an upstream leads back has ended."""
        upstream = flight.upstream
        if self.loops.answered(upstream, flight.query, flight.reply, now):
            self.loops.count_own()
            self._inflight.leave(upstream)
        self.loops.tell(upstream)
        self._arm(now)

    def _delivered(self, flight: Flight, now: float) -> None:
        """All who waited have been told."""
        if self.cache is not None and flight.reply is not None and flight.started >= self._changed_at:
            self._remember(self.cache, flight, flight.reply, now)
        if self._emptied is not None and not len(self._inflight) and not self._emptied.done():
            self._emptied.set_result(None)

    def _outcome(self, flight: Flight, query: Query, since: float, now: float, exempt: bool) -> bytes | None:
        reply = flight.reply
        stream = query.limit == MAX_STREAM
        if now - since > self._discard_age and not stream:
            self._dropped[_LATE] += 1
            return None
        if reply is None or (stream and reply is flight.truncated):
            return self._stale(query, exempt, now) or servfail(query, flight.ede)
        wire, rewritten = self._memory.relay(query, reply, None if exempt else self._cell.current)
        if rewritten:
            self._rewritten[()] += 1
        return wire

    def _remember(self, cache: AnswerCache, flight: Flight, reply: bytes, now: float) -> None:
        """Once for each kind of client that waited; what an exempt one is told is for nobody else."""
        kinds = {query.do: query for query, _, _, _, exempt in flight.waiters if not exempt}
        for query in kinds.values():
            try:
                cache.put(query, reply, self._cell.current, now)
            except Exception:
                _log.exception("a reply could not be kept")

    def _stale(self, query: Query, exempt: bool, now: float) -> bytes | None:
        """What was known last, if nobody is left to ask."""
        if self.cache is None or exempt or self._upstreams.first is not None:
            return None
        stale = self.cache.look_stale(query, now)
        if stale is not None:
            self._served_stale[()] += 1
        return stale

    # -- time --------------------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """Set the timer to the next thing to do."""
        if self._sweep_at == inf and (len(self._udp) or len(self._tcp)):
            self._sweep_at = now + SWEEP
        wake = min(self._inflight.next_deadline(), self.loops.next_probe(), self._sweep_at)
        if wake == self._wake:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wake = wake
        self._timer = None if wake == inf else self._loop.call_later(max(wake - now, 0.0) + _TICK, self._on_timer)

    def _on_timer(self) -> None:
        now = _clock()
        self._wake = inf
        self._timer = None
        try:
            self._inflight.step(now)
            for upstream, query in self.loops.due(now):
                self._inflight.probe(query, upstream, now)
            if now >= self._sweep_at:
                self._sweep_at = inf
                self._udp.sweep(now)
                self._tcp.sweep(now)
            self._in_flight[()] = len(self._inflight)
            self._obey(now)
            self._tell()
        finally:
            # Without a timer nobody would ever be told anything again, whatever went wrong.
            self._arm(now)

    def _tell(self) -> None:
        """Which upstreams are up: to the gauge always, to the log when it changed."""
        for upstream in self._upstreams:
            self._up[(upstream.text,)] = int(upstream.up)
            if self._told.get(upstream, True) != upstream.up:
                _log.warning("upstream %s is %s", upstream.text, "up again" if upstream.up else "down: it answers nothing")
            self._told[upstream] = upstream.up
            self.loops.tell(upstream)
