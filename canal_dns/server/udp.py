"""UDP listeners: readiness, one batch, and what the table did not answer through the decision.

Rules of this file:
- four steps: receive, ask, send, count; no decision about DNS;
- one event handles one budget of datagrams, then timers and connections have their turn;
- a reply that the kernel does not take is lost and counted; it is waited for as long as `sockets.patience` has it.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from canal_dns.dns.responder import Forward, Reply
from canal_dns.server.batch import BUDGET, Miss, drain
from canal_dns.server.intake import Intake
from canal_dns.server.sockets import Control, Peer, UdpSocket, count_send_error, patience, readable

LAST_LOOKS = 256
"""Batches read at most from a socket that is about to be closed: more than its buffer holds."""

_clock = time.monotonic


class UdpListener:
    """One datagram socket."""

    def __init__(self, sock: UdpSocket, intake: Intake) -> None:
        self._sock = sock
        self._intake = intake
        self._loop = asyncio.get_running_loop()
        self._dropped = 0
        self._reading = False

    def start(self) -> None:
        self._reading = True
        self._loop.add_reader(self._sock.fileno(), self.on_readable)

    def close(self) -> None:
        """Answer what the kernel has for us, and close the socket; replies that come later are ignored."""
        if self._sock.fileno() < 0:
            return
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())
            for _ in range(LAST_LOOKS):
                if not readable(self._sock):
                    break
                self.on_readable()
        self._sock.close()

    def on_readable(self) -> None:
        """One batch."""
        now = _clock()
        intake = self._intake
        words, counters = intake.tally.words, intake.counters
        misses = drain(self._sock, intake.quick, intake.cache, intake.gate, BUDGET, words, counters, now)
        for miss in intake.forwarded(misses, self._sock, self._answer, now) if misses else ():
            try:
                self._handle(miss, now)
            except Exception:
                # A fault of ours that one packet brings out is not to cost the others of its batch.
                intake.failed(now)

    def count_kernel_drops(self) -> None:
        """Bring the count of datagrams that found the socket's buffer full up to date."""
        if self._sock.fileno() >= 0:
            dropped = self._sock.dropped()
            self._intake.counters["canal_dns_udp_receive_dropped_total"][()] += dropped - self._dropped
            self._dropped = dropped

    def _handle(self, miss: Miss, now: float) -> None:
        packet, peer, control = miss
        verdict = self._intake.decide(packet, peer[0], peer[1], False, now)
        if type(verdict) is Forward:
            self._intake.forward(verdict, peer[0], partial(self._answer, peer, control, now), udp_port=peer[1])
        elif type(verdict) is Reply and self._send(verdict.wire, peer, control):
            self._intake.replied(verdict, now)

    def _answer(self, peer: Peer, control: Control, since: float, wire: bytes | None) -> None:
        if wire is not None and self._sock.fileno() >= 0 and self._send(wire, peer, control):
            self._intake.relayed(wire, since)

    def _send(self, wire: bytes, peer: Peer, control: Control) -> bool:
        while True:
            try:
                if control:
                    self._sock.sendmsg((wire,), control, 0, peer)
                else:
                    self._sock.sendto(wire, peer)
            except OSError as error:
                if patience.again(error.errno or 0):
                    continue
                count_send_error(error, self._intake.counters)
                return False
            return True
