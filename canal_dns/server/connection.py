"""One client TCP connection: frames in, replies out, pipelined and out of order (RFC 7766 sections 6.2.1 and 7).

Rules of this file:
- knows nothing of a message but its frame: what to do with one is asked of the intake;
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

from canal_dns.dns.responder import Forward, Reply
from canal_dns.dns.wire import Framer, frame

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
_FLUSH = 64
"""Replies that are gathered before they are written: a few kilobytes, so that `pause_writing` comes in time."""

_clock = time.monotonic


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection. It is `open` from accept until the transport is gone."""

    __slots__ = (
        "_active", "_blocked", "_ending", "_framer", "_heard", "_home", "_host", "_in_flight", "_lingering", "_looked", "_out",
        "_paused", "_port", "_progress", "_queries", "_queue", "_read_out", "_started", "_taken", "_transport", "_working",
        "_written", "slot",
    )  # fmt: skip

    def __init__(self, home: Connections, host: str, port: int) -> None:
        self._home = home
        self._host = host
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._framer = Framer()
        self._queue: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._queries = 0
        self._in_flight = 0
        self._working = False
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
        """One buffer serves all connections: what was read is copied out of it before anything else is read."""
        return self._home.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        now = _clock()
        framer = self._framer
        if not framer.pending:
            self._started = now
        self._heard = True
        messages = framer.feed(bytes(self._home.buffer[:nbytes]))
        if messages:
            self._started = now
            room = self._home.settings.queries_per_connection - self._queries
            self._queries += len(messages)
            self._queue.extend(messages[:room])
            if len(messages) >= room:
                self.finish("queries")
        if framer.empty_frame:
            self.finish("garbage")
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
        self._queue.clear()
        self._out.clear()
        self._home.closed(self)

    # -- questions and answers ----------------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        """Take up what was read, as far as the limits allow, and write what came of it at once."""
        home, queue = self._home, self._queue
        limit = home.settings.in_flight
        self._working = True
        while queue and self._in_flight < limit and not self._blocked and self._transport is not None:
            packet = queue.popleft()
            verdict = home.intake.decide(packet, self._host, self._port, True, now)
            if type(verdict) is Forward:
                self._in_flight += 1
                home.intake.forward(verdict, self._host, partial(self._answer, now))
            elif type(verdict) is Reply:
                self._out.append(frame(verdict.wire))
                home.intake.replied(verdict, now)
            else:
                # Who sends what is no query does not speak DNS: nothing after it can be trusted to be a frame.
                self.finish("garbage")
                queue.clear()
            if len(self._out) >= _FLUSH:
                self._flush()
        self._working = False
        self._settle()

    def _answer(self, since: float, wire: bytes | None) -> None:
        """The forwarder's reply; None: there is none, it would come too late."""
        self._in_flight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        now = self._active = _clock()
        if wire is not None:
            if self._transport.get_write_buffer_size() + len(wire) > UNSENT:
                self._home.count_closed("write")
                self.abort()
                return
            self._out.append(frame(wire))
            self._home.intake.relayed(wire, since)
        if not self._working:
            self._flush()
            self._work(now)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._written += len(data)
            self._active = _clock()
            self._transport.write(data)

    def _settle(self) -> None:
        """Read on, pause, or close: whatever the present state asks for."""
        transport = self._transport
        if transport is None or self._lingering or transport.is_closing():
            return
        self._flush()
        if self._ending and not self._queue and not self._in_flight:
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
        self._read_out = not (self._paused or self._queue or self._in_flight or self._framer.pending)
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
        elif self._framer.pending and not self._paused:
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
