"""Queries on their way: who waits for which, what was sent where, what a packet from an upstream means, and what is next.

Rules of this file:
- one outstanding query per question (`Key`); whoever asks the same waits for the same reply (CVE-2020-25684 to -25686),
  unless its time is nearly over: then one successor, which is not succeeded itself, so that loops stay bounded;
- a reply counts only on the channel and under the ID that its query left by; an ID is used once in a channel's life;
- what is not the reply never ends the wait (TuDoor); after MISMATCHES such packets the question goes over a stream too, and
  if they guess at IDs nothing that comes on their socket counts any more: who knows the port has no more guesses than these;
- every waiter gets one outcome, inside the budget: a `Done` order, whose flight has the reply, or no reply and `ede`;
- when too many wait, the oldest make room: what is still unanswered then is what a flood asks for, as a rule;
- nothing is sent here: `orders` says what to do next, `now` comes in with every call, randomness with the constructor.

A flight is *fresh* until its first try is overdue, then *late*: both are dictionaries in order of their start, so the
oldest entry has the next deadline, and a query that is answered in time costs no timer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, takewhile
from typing import Any

from canal_dns.dns.codes import FAILURES
from canal_dns.dns.flights import (
    Channel,
    Done,
    Flight,
    Ignored,
    Key,
    Order,
    Overdue,
    Rejection,
    ReplyTo,
    Send,
    Suspect,
)
from canal_dns.dns.upstreams import PROBE, PROBE_INTERVAL, Upstream, Upstreams
from canal_dns.dns.wire import HEADER, Mismatch, Query, match_reply

FIRST_TRY = 0.45
"""Share of the budget after which the second try starts, on another socket: 0.675 s of 1.5 s."""
JOINABLE = 0.6
"""Share of the budget after which who asks the same gets a successor, instead of a failure a moment later."""
EFFORT = 0.7
"""Share of the budget after which a question that is one of few gets all that it may have: whoever is up is asked again, and
over TCP too. Two packets in a row are lost once in a hundred times where one in twenty is (faults, U22)."""
TRIES = 4
"""Packets by UDP for one question at most, and two at most to one upstream."""
FEW = 64
"""Late questions: with more it is the upstream that is slow or silent, not the network that loses, and more packets harm."""
LAST_TRY = 0.95
"""Share of the budget after which the client is told: the rest is for the way of the SERVFAIL."""
JOSTLE = 0.2
"""Seconds for which a question is left in peace, however many come after it (Unbound's jostle-timeout): without them a flood
fast enough would leave nobody the time for a reply."""
MISMATCHES = 3
"""Packets that are not the reply, on one query, until the question goes over TCP too (BIND 9.21.23: one); on one socket, until
it is not listened to any more, if the last of them had an ID that was never used there."""
_RD_CD = 0x0110
_TC = 2
_IDS = 4096

_PROBE_KEY = (b"", 0, 0, 0, True)


class Inflight:
    """All flights of one process."""

    def __init__(
        self,
        upstreams: Upstreams,
        randomness: Callable[[int], bytes],
        is_peer: Callable[[str], bool] = lambda client: False,
        match: Callable[[Query, int, bytes], Mismatch | None] = match_reply,
    ) -> None:
        """`randomness(n)`: n octets that nobody can foresee; `is_peer(client)`: no limit per client for this address.

        `match(query, id, packet)`: match_reply(), or what does the same in less time.
        """
        self._match = match
        self._upstreams = upstreams
        self._randomness = randomness
        self._is_peer = is_peer
        self._ids: list[int] = []
        self._fresh: dict[Key, Flight] = {}
        self._late: dict[Key, Flight] = {}
        self._efforts: deque[Flight] = deque()
        """Of the late ones, in the same order, those that may be asked again; some are done meanwhile."""
        self._probes: dict[Upstream, Flight] = {}
        self._own: dict[Upstream, Flight] = {}
        self._clients: dict[str, int] = {}
        self._trial: Flight | None = None
        self._closing = False
        self.waiting = 0
        """Client queries without an outcome."""
        self.orders: list[Order] = []
        """What the shell has to do next, in order; it empties the list after each call."""
        self.configure(budget=1.5, always_do=True, max_waiting=10_000, max_per_client=1000)

    def __len__(self) -> int:
        """Questions on their way, probes not counted."""
        return len(self._fresh) + len(self._late)

    def configure(self, *, budget: float, always_do: bool, max_waiting: int, max_per_client: int) -> None:
        """Seconds in all for one query; DO=1 on every upstream query; client queries that may wait, in all and per client."""
        self.first_try = budget * FIRST_TRY
        """Seconds after which a new flight needs the timer."""
        self._joinable = budget * JOINABLE
        self._effort = budget * EFFORT
        self._last_try = budget * LAST_TRY
        self._always_do = always_do
        self._max_waiting = 0 if self._closing else max_waiting
        self._max_per_client = max_per_client

    def close(self) -> None:
        """Reject every query from now on; those on their way end as ever."""
        self._closing = True
        self._max_waiting = 0

    def submit(
        self, query: Query, client: str, reply_to: ReplyTo, now: float, exempt: bool = False
    ) -> Flight | Rejection | None:
        """A client's query: a new flight, for the shell to send to `flight.upstream`; None: it waits for one on its way.

        While all upstreams are down one flight at a time tries whether the probes are wrong, and all others are rejected.
        """
        if self._closing:
            return Rejection.CLOSING
        held = self._clients.get(client, 0)
        if held >= self._max_per_client and not self._is_peer(client):
            return Rejection.CLIENT
        if self.waiting >= self._max_waiting:
            if not self.make_room(1, now):
                return Rejection.OUTSTANDING
            held = self._clients.get(client, 0)
        do = self._always_do or query.do
        key = (query.name, query.qtype, query.qclass, query.flags & _RD_CD, do)
        flight = self._fresh.get(key)
        ending = None
        if flight is None and self._late:
            flight = self._late.get(key)
            if flight is not None and now - flight.started >= self._joinable and not flight.successor:
                ending, flight = flight, None
        upstream = self._upstreams.first
        if upstream is None:
            upstream = None if flight or self._trial else self._upstreams.trial(query.name)
            if upstream is None:
                return Rejection.DOWN
        elif upstream.leads_back is not None and flight is None:
            upstream = self._upstreams.alternative((), query.name)
            if upstream is None:
                return Rejection.LOOP
        self._clients[client] = held + 1
        self.waiting += 1
        if flight is not None:
            flight.waiters.append((query, client, reply_to, now, exempt))
            return None
        flight = self._fresh[key] = Flight(key, query, do, upstream, now)
        flight.waiters.append((query, client, reply_to, now, exempt))
        if ending is not None:
            flight.successor = True
        if not upstream.up:
            self._trial = flight
        return flight

    def probe(self, query: Query, upstream: Upstream, now: float) -> None:
        """Ask this upstream, and no other, once; the flight is a probe's, and `done` with or without a reply, in an order if
        without. Nothing follows from its silence. One at a time for each upstream: it takes the place of the one before."""
        former = self._own.get(upstream)
        if former is not None:
            self._finish(former)
        flight = self._own[upstream] = Flight(_PROBE_KEY, query, self._always_do, upstream, now)
        flight.probe = flight.extra = True
        flight.streamed = (upstream,)
        self.orders.append(Send(flight, upstream, stream=False))

    def leave(self, upstream: Upstream) -> None:
        """This upstream was found to lead back: who waits for it asks another one at once, or is told that there is none."""
        back = upstream.leads_back
        if back is None:
            return
        for flight in [*self._late.values(), *self._fresh.values()]:
            if flight.upstream is upstream and back(flight.key[0]) and not self._ask_another(flight):
                self._give_up(flight)

    def make_room(self, places: int, now: float) -> bool:
        """End the oldest questions, so that so many clients' queries more may wait. False: not all of these may.

        Whether their upstream is alive is for a probe to find out: they may end too soon to be overdue.
        """
        if self._closing:
            # Nobody is let in: who waits is not to pay for it.
            return False
        free = self._max_waiting - self.waiting
        displaced = []
        for flight in chain(self._late.values(), self._fresh.values()):
            if free >= places or flight.started + JOSTLE > now:
                break
            displaced.append(flight)
            free += len(flight.waiters)
        for flight in displaced:
            self._upstreams.hinted(flight.upstream, now)
            self._give_up(flight, Rejection.DISPLACED)
        return free >= places

    def assign(self, flight: Flight, channel: Channel) -> int:
        """Let the flight wait on this channel too, and draw the ID under which its question leaves there."""
        spent = channel.spent
        while True:
            if not self._ids:
                self._ids = list(memoryview(self._randomness(_IDS)).cast("H"))
            ident = self._ids.pop()
            bit = 1 << (ident & 7)
            if not spent[ident >> 3] & bit:
                break
        spent[ident >> 3] |= bit
        channel.flights[ident] = flight
        channel.left += 1
        channel.waiting += 1
        flight.slots.append((channel, ident))
        return ident

    def received(self, channel: Channel, packet: bytes) -> Flight | Mismatch | Ignored:
        """A packet came in on a channel: the flight that it replies to, or why it replies to none.

        The flight is for its waiters if it is `done`; if not, the reply was not good enough, and `orders` says what is next.
        """
        if len(packet) < HEADER:
            self._mismatched(channel)
            return Mismatch.SHORT
        ident = packet[0] << 8 | packet[1]
        flight = channel.flights.get(ident)
        if flight is None:
            if channel.spent[ident >> 3] & 1 << (ident & 7):
                return Ignored.UNEXPECTED
            self._mismatched(channel)
            if channel.mismatches >= MISMATCHES and not channel.stream:
                self._stop_listening(channel)
            return Mismatch.ID
        mismatch = self._match(flight.query, ident, packet)
        if mismatch is not None:
            channel.retired = True
            self._suspect(flight, channel.upstream)
            return mismatch
        if channel.upstream.failing:
            self._upstreams.answered(channel.upstream)
        if (packet[2] & _TC or packet[3] & 15 in FAILURES) and self._improvable(flight, channel, packet):
            return flight
        flight.reply = packet
        self._finish(flight)
        if flight.successor:
            self._share(flight.key, packet)
        return flight

    def refused(self, channel: Channel, now: float) -> None:
        """ICMP says that nobody listens at the other end: ask somebody else at once, and go on listening (TuDoor)."""
        for flight in channel.waiters():
            self.unsent(flight, channel.upstream, now)

    def unsent(self, flight: Flight, upstream: Upstream, now: float) -> None:
        """The question cannot have reached the upstream: there is no route, no socket, or nobody at home."""
        flight.refused = True
        self._upstreams.hinted(upstream, now)
        self._ask_another(flight)

    def lost(self, channel: Channel, now: float) -> None:
        """A stream broke. If it had been connected it may only have been idle for too long: try a new one once.

        If not, that is a hint that nobody listens; a reply that is truncated already is asked for elsewhere, over TCP.
        """
        channel.retired = True
        if not channel.connected:
            self._upstreams.hinted(channel.upstream, now)
        for flight in channel.waiters():
            self._leave(flight, channel)
            flight.refused = True
            if channel.connected and not flight.redialled:
                flight.redialled = True
                self._stream(flight, channel.upstream)
            elif flight.truncated is not None and not self._completable(flight):
                self._give_up(flight)

    def step(self, now: float) -> None:
        """Time has passed: tries that are overdue, flights that end, probes that are due."""
        for flight in _started_before(self._probes, now, PROBE_INTERVAL):
            self._finish(flight)
        for flight in _started_before(self._own, now, self._last_try):
            self._finish(flight)
            self.orders.append(Done(flight))
        for upstream in self._upstreams.due(now):
            self._probes[upstream] = probe = Flight(_PROBE_KEY, PROBE, True, upstream, now)
            probe.probe = probe.extra = True
            probe.streamed = (upstream,)
            self.orders.append(Send(probe, upstream, stream=False))
        for flight in _started_before(self._fresh, now, self.first_try):
            ending = self._late.get(flight.key)
            if ending is not None:
                # After a pause, or with a longer budget than it was: its successor has the place of its key now.
                self._overdue(ending, now)
                self._give_up(ending)
            self._late[flight.key] = self._fresh.pop(flight.key)
            flight.late = True
            self._second_try(flight, now)
        for flight in _started_before(self._late, now, self._last_try):
            self._overdue(flight, now)
            self._give_up(flight)
        while self._efforts and self._efforts[0].started + self._effort <= now:
            self._last_effort(self._efforts.popleft(), now)

    def next_deadline(self) -> float:
        """When `step` has something to do; infinity while nothing is on its way."""
        deadline = self._upstreams.next_probe()
        for flight in self._fresh.values():
            deadline = min(deadline, flight.started + self.first_try)
            break
        for flight in self._late.values():
            deadline = min(deadline, flight.started + self._last_try)
            break
        for flight in self._own.values():
            deadline = min(deadline, flight.started + self._last_try)
            break
        while self._efforts and self._efforts[0].done:
            self._efforts.popleft()
        return min(deadline, self._efforts[0].started + self._effort) if self._efforts else deadline

    def _improvable(self, flight: Flight, channel: Channel, packet: bytes) -> bool:
        """True if this reply is put aside: the other upstream may know better, or TCP may carry the whole."""
        failure = packet[3] & 15 in FAILURES
        if not failure and (channel.stream or flight.probe):
            return False
        self._leave(flight, channel)
        if failure and flight.truncated is None:
            improvable = self._ask_another(flight)
        elif failure:
            improvable = self._completable(flight)
        else:
            flight.truncated = packet
            improvable = self._completable(flight, channel.upstream)
        if improvable and failure:
            flight.reply = packet
        return improvable

    def _share(self, key: Key, packet: bytes) -> None:
        """What answers a successor answers the flight before it as well."""
        ending = self._late.get(key)
        if ending is not None and not packet[2] & _TC and packet[3] & 15 not in FAILURES:
            ending.truncated = None
            ending.reply = packet
            self._give_up(ending)

    def _mismatched(self, channel: Channel) -> None:
        """A packet that nobody waits for on this channel: it may have been meant to hit any of those who wait."""
        channel.retired = True
        channel.mismatches += 1
        if channel.mismatches <= MISMATCHES:
            for flight in channel.waiters():
                self._suspect(flight, channel.upstream)

    def _stop_listening(self, channel: Channel) -> None:
        """Somebody guesses at IDs, and knows the port: TCP answers, and where it cannot, the next try from another port.

        A probe listens on, since it tells only that somebody is there.
        """
        for flight in channel.waiters():
            if not flight.probe:
                self._leave(flight, channel)

    def _suspect(self, flight: Flight, upstream: Upstream) -> None:
        flight.mismatches += 1
        if flight.mismatches >= MISMATCHES and not flight.streamed:
            self._stream(flight, upstream)

    def _second_try(self, flight: Flight, now: float) -> None:
        if len(flight.waiters) > 1:
            self.orders.append(Suspect(flight.upstream, flight.key[0]))
        if flight.truncated is not None:
            # Whoever truncated it is alive: only if somebody else can be asked TCP has taken too long already.
            if self._upstreams.alternative(flight.streamed, flight.key[0]) is not None:
                self._overdue(flight, now)
                self._stream_another(flight)
            return
        self._overdue(flight, now)
        if flight.reply is not None:
            self._give_up(flight)
        elif flight.mismatches and not flight.streamed:
            self._stream(flight, flight.upstream)
            self._ask_another(flight)
        else:
            self._ask(flight, self._upstreams.retry(flight.upstream, flight.key[0]))
            self._efforts.append(flight)

    def _last_effort(self, flight: Flight, now: float) -> None:
        """Ask whoever is up again, and over TCP, which carries what the network does not let through by UDP.

        Not where others asked the same meanwhile: that may be our own question, come back.
        """
        if flight.done or flight.truncated is not None or flight.streamed or len(flight.waiters) > 1 or len(self._late) > FEW:
            return
        self._overdue(flight, now)
        name = flight.key[0]
        for _ in range(2):
            twice = [upstream for upstream in flight.asked if flight.asked.count(upstream) > 1]
            upstream = self._upstreams.alternative(flight.asked, name) or self._upstreams.alternative(twice, name)
            if upstream is not None and len(flight.asked) < TRIES:
                self._ask(flight, upstream)
        first = self._upstreams.alternative((), name)
        if first is not None:
            self._stream(flight, first)

    def _overdue(self, flight: Flight, now: float) -> None:
        for channel, _ in flight.slots:
            channel.retired = True
        if any(channel.upstream is flight.upstream and not channel.connected for channel, _ in flight.slots):
            self._upstreams.hinted(flight.upstream, now)
        else:
            self._upstreams.failed(flight.upstream, now)
        self.orders.append(Overdue(flight.upstream))

    def _ask(self, flight: Flight, upstream: Upstream) -> None:
        flight.upstream = upstream
        flight.asked += (upstream,)
        self.orders.append(Send(flight, upstream, stream=False))

    def _ask_another(self, flight: Flight) -> bool:
        """One extra query for one flight, and only to an upstream that was not asked before (CVE-2026-5950)."""
        if flight.extra:
            return False
        upstream = self._upstreams.alternative(flight.asked, flight.key[0])
        if upstream is None:
            return False
        flight.extra = True
        self._ask(flight, upstream)
        return True

    def _stream(self, flight: Flight, upstream: Upstream) -> None:
        flight.streaming += 1
        if upstream not in flight.streamed:
            flight.streamed += (upstream,)
        self.orders.append(Send(flight, upstream, stream=True))

    def _stream_another(self, flight: Flight) -> bool:
        """The extra query of a flight whose reply is too big for UDP: over TCP, to an upstream not asked that way before."""
        upstream = self._upstreams.alternative(flight.streamed, flight.key[0])
        if upstream is None:
            return False
        flight.extra = True
        flight.upstream = upstream
        self._stream(flight, upstream)
        return True

    def _completable(self, flight: Flight, first: Upstream | None = None) -> bool:
        """True if TCP may yet carry the whole of a truncated reply: it is waited for or asked for, of `first` before others."""
        if flight.streaming:
            return True
        if first is None or first in flight.streamed:
            return self._stream_another(flight)
        self._stream(flight, first)
        return True

    def _leave(self, flight: Flight, channel: Channel) -> None:
        """Wait no longer on this channel."""
        slot = next(slot for slot in flight.slots if slot[0] is channel)
        flight.slots.remove(slot)
        del channel.flights[slot[1]]
        channel.waiting -= 1
        flight.streaming -= channel.stream

    def _give_up(self, flight: Flight, rejection: Rejection | None = None) -> None:
        """End with the best there is: a reply that TCP could not complete, a failure, or nothing."""
        flight.reply = flight.truncated or flight.reply
        self._finish(flight)
        self.orders.append(Done(flight, rejection))

    def _finish(self, flight: Flight) -> None:
        flight.done = True
        for channel, ident in flight.slots:
            del channel.flights[ident]
            channel.waiting -= 1
        if flight.probe:
            (self._probes if flight.query is PROBE else self._own).pop(flight.upstream, None)
            return
        del (self._late if flight.late else self._fresh)[flight.key]
        clients = self._clients
        for _, client, _, _, _ in flight.waiters:
            held = clients[client] - 1
            if held:
                clients[client] = held
            else:
                del clients[client]
        self.waiting -= len(flight.waiters)
        if flight is self._trial:
            self._trial = None


def _started_before(flights: dict[Any, Flight], now: float, age: float) -> list[Flight]:
    """The flights that are at least so old, from a dictionary in order of their start."""
    return list(takewhile(lambda flight: flight.started + age <= now, flights.values()))
