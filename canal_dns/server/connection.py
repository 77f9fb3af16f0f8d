"""One client TCP connection: frames in, replies out, pipelined and out of order (RFC 7766 sections 6.2.1 and 7).

Rules of this file:
- knows nothing of a message but its frame: `batch` answers what it can of what was read, the intake is asked about the rest;
- what is not read cannot flood: reading stops while too many queries wait upstream or the client does not take its replies;
- every state has a deadline or something else that ends it within the forward budget; the wheel asks for it;
- it ends with FIN, and what still comes is read until the client has seen that: a close on unread octets sends RST, which
  takes from the client the answers that it has not read yet;
- after `connection_lost` a late answer is ignored: the forwarder keeps the only reference, and drops it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, cast

from canal_dns.dns.access import DROPPED_PORTS
from canal_dns.dns.responder import Forward, Reply
from canal_dns.dns.wire import frame
from canal_dns.server.batch import answer_stream

if TYPE_CHECKING:
    from canal_dns.server.tcp import Connections

WRITE_HIGH = 64 << 10
"""Octets of replies that may wait for a client before its queries are no longer read: one message of the largest size.

More comes of the queries that wait upstream already, each with as much again at worst.
"""
UNSENT = 2 * WRITE_HIGH
"""Octets of replies that may wait in all, beside what the kernel holds: who lets more gather is not reading."""
LINGER = 1.0
"""Seconds that a client has, after the last reply, to close its side."""
_FLUSH = 16 << 10
"""Octets of replies that are gathered before they are written, so that `pause_writing` comes in time."""
_TAKEN = 128
"""Messages taken up at once: their replies from memory are about as much."""

_clock = time.monotonic


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection. It is `open` from accept until the transport is gone."""

    __slots__ = (
        "_active", "_blocked", "_ending", "_gathered", "_heard", "_home", "_host", "_in_flight", "_lingering", "_looked",
        "_octets", "_out", "_paused", "_port", "_progress", "_queries", "_queue", "_read_out", "_started", "_taken",
        "_transport", "_turning", "_working", "_written", "group", "held", "slot",
    )  # fmt: skip

    def __init__(self, home: Connections, host: str, port: int, group: str | bytes = b"") -> None:
        """`group`: whom its client counts as."""
        self.group = group
        self.held = 0
        """Octets in memory, as `Connections` knows them."""
        self._home = home
        self._host = host
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._octets: bytes | memoryview = b""
        """What was read and is not taken up: a part of a message, or what the limits keep waiting."""
        self._queue: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._gathered = 0
        """Octets in `_out`."""
        self._queries = 0
        self._in_flight = 0
        self._working = False
        self._turning = False
        self._paused = False
        self._blocked = False
        self._ending = False
        self._read_out = False
        self._lingering = False
        self._heard = False
        self._active = self._started = self._progress = self._looked = _clock()
        self._written = 0
        self._taken = 0
        self.slot = -1

    @property
    def host(self) -> str:
        return self._host

    # -- what the transport tells ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in everything but their class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        if self._ending:
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        """One buffer serves all connections: what is left in it is copied before anything else is read."""
        return self._home.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        now = _clock()
        self._heard = True
        chunk = self._home.buffer[:nbytes]
        if self._octets:
            self._octets = b"".join((self._octets, chunk))
        else:
            self._octets = chunk
            self._started = now
        self._work(now)

    def eof_received(self) -> bool:
        """The client is done asking; what it asked is still answered (RFC 7766 section 6.2.4)."""
        self._ending = self._paused = self._read_out = True
        if self._lingering and self._transport is not None:
            self._transport.close()
        else:
            self._settle()
        return True

    def pause_writing(self) -> None:
        self._blocked = True
        self._progress = _clock()

    def resume_writing(self) -> None:
        self._blocked = False
        self._work(_clock())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._drop_rest()
        self._out.clear()
        self._home.closed(self)

    # -- questions and answers ----------------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        """Take up what was read, as far as the limits allow, and write what came of it at once."""
        self._working = True
        try:
            while self._transport is not None and not self._blocked:
                if self._queue:
                    self._ask(now)
                if self._queue or not self._octets or not self._take(now):
                    break
        finally:
            self._working = False
            # The buffer is another connection's next.
            self._octets = bytes(self._octets)
        self._settle()

    def _take(self, now: float) -> bool:
        """Answer what can be answered at once, queue the other messages; False where there is no whole one."""
        home, intake = self._home, self._home.intake
        quick = self._host in intake.gate.free and self._port not in DROPPED_PORTS
        table = intake.quick if quick else None
        cache = None if table is None else intake.cache
        room = home.settings.queries_per_connection - self._queries
        most = min(room, _TAKEN) if room > 0 else _TAKEN
        wire, misses, used, taken = answer_stream(self._octets, table, cache, now, intake.tally.words, most)
        if not taken:
            return False
        self._octets = self._octets[used:]
        self._started = now
        self._queries += taken
        self._queue.extend(misses)
        if taken >= room and not intake.gate.is_peer(self._host):
            self._octets = b""
            self.finish("queries")
        if wire:
            self._put(wire)
        return True

    def _ask(self, now: float) -> None:
        """Have the intake judge what waits, as far as the limits allow."""
        home, queue = self._home, self._queue
        limit = home.settings.in_flight
        while queue and self._in_flight < limit and not self._blocked and self._transport is not None:
            packet = queue.popleft()
            try:
                verdict = home.intake.decide(packet, self._host, self._port, True, now) if packet else None
            except Exception:
                # As over UDP: a fault of ours that one message brings out is not to cost the others.
                home.intake.failed(now)
                continue
            if type(verdict) is Forward:
                self._in_flight += 1
                home.intake.forward(verdict, self._host, partial(self._answer, now))
            elif type(verdict) is Reply:
                self._put(frame(verdict.wire))
                home.intake.replied(verdict, now)
            else:
                # Who sends what is no query does not speak DNS: nothing after it can be trusted to be a frame.
                self.finish("garbage")
                self._drop_rest()

    def _answer(self, since: float, wire: bytes | None) -> None:
        """The forwarder's reply; None: there is none, it would come too late."""
        self._in_flight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        self._active = _clock()
        if wire is not None:
            if self._transport.get_write_buffer_size() + self._gathered + len(wire) > UNSENT:
                self._home.count_closed("write")
                self.abort()
                return
            self._put(frame(wire))
            self._home.intake.relayed(wire, since)
        if not self._working and not self._turning:
            # What comes by one event of the loop leaves in one write.
            self._turning = True
            self._home.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._work(_clock())

    def _put(self, wire: bytes) -> None:
        """Framed replies, to leave with what else comes now."""
        self._out.append(wire)
        self._gathered += len(wire)
        if self._gathered >= _FLUSH:
            self._flush()

    def _drop_rest(self) -> None:
        self._octets = b""
        self._queue.clear()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._gathered = 0
            self._written += len(data)
            self._active = _clock()
            self._transport.write(data)

    def _settle(self) -> None:
        """Read on, pause, or close: whatever the present state asks for."""
        transport = self._transport
        if transport is None or self._lingering or transport.is_closing():
            return
        self._flush()
        if not self._fits(transport):
            return
        if self._ending and not self._queue and not self._in_flight and not (self._blocked and self._octets):
            self._hang_up(transport)
        elif self._ending or self._queue or self._blocked or self._in_flight >= self._home.settings.in_flight:
            if not self._paused:
                self._paused = True
                transport.pause_reading()
        elif self._paused:
            self._paused = False
            # A message that was cut in two by our own pause is not the client's delay.
            self._started = self._active = _clock()
            transport.resume_reading()

    def _fits(self, transport: asyncio.Transport) -> bool:
        """True where what it holds is not too much; else it has ended."""
        octets = len(self._octets) + transport.get_write_buffer_size()
        if self._queue:
            octets += sum(map(len, self._queue))
        if (octets or self.held) and not self._home.hold(self, octets):
            self._home.count_closed("memory")
            self.abort()
            return False
        return True

    # -- how it ends ----------------------------------------------------------------------------------------------------

    def finish(self, reason: str) -> None:
        """Take no more; close once everything that was taken is answered."""
        if not self._ending:
            self._ending = True
            self._home.count_closed(reason)
        if not self._working:
            self._settle()

    def rest(self) -> None:
        """The server stops: `finish`. Who is in the middle of nothing has nothing on its way that a close could destroy."""
        self._read_out = not (self._paused or self._queue or self._in_flight or self._octets)
        self.finish("shutdown")

    def _hang_up(self, transport: asyncio.Transport) -> None:
        self._progress = _clock()
        if self._read_out:
            transport.close()
            return
        self._lingering = True
        try:
            transport.write_eof()
        except OSError:
            # The client has reset it, and the loop does not know yet.
            transport.abort()
        if self._paused:
            self._paused = False
            transport.resume_reading()

    def abort(self) -> None:
        """Close at once, whatever waits."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    def due(self, now: float) -> float:
        """Close what is over time, else say when it will be."""
        transport, limits = self._transport, self._home.settings
        if transport is None:
            return math.inf
        if self._blocked or self._lingering or transport.is_closing():
            waiting = transport.get_write_buffer_size()
            taken = self._written - waiting
            if taken > self._taken:
                # It took something since the last look, perhaps just after it.
                self._taken, self._progress = taken, max(self._progress, self._looked)
            self._looked = now
            if self._lingering and not waiting:
                # It was counted when its end began.
                if self._progress + LINGER <= now:
                    transport.abort()
                return self._progress + LINGER
            deadline, reason = self._progress + limits.write, "write"
        elif self._octets and not self._paused:
            deadline, reason = self._started + limits.message, "message"
        elif self._in_flight or self._queue:
            return math.inf
        elif not self._heard:
            deadline, reason = self._active + limits.first_byte, "first-byte"
        else:
            deadline, reason = self._active + self._home.idle(), "idle"
        if deadline > now:
            return deadline
        self._home.count_closed(reason)
        self._ending = True
        if reason == "write":
            transport.abort()
        else:
            self._progress = now
            transport.close()
        return now + limits.write
