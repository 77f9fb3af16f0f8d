"""What the listeners of one process share: the decision for a packet, and the counting of what becomes of it.

Rules of this file:
- decides nothing itself: `dns.responder` is asked, the outcome is counted and, if wanted, logged;
- UDP and TCP come through here alike, except for hits on UDP, which `batch` answers and counts by the batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache, Remembered
from canal_dns.dns.responder import Drop, Forward, Reply, Source, decide
from canal_dns.dns.table import AnswerTable, TableCell
from canal_dns.dns.wire import Ede, Failure, Query, rcode_text, servfail
from canal_dns.metrics import Counters
from canal_dns.server import tally
from canal_dns.server.forwarder import Answer
from canal_dns.server.hits import Miss
from canal_dns.server.querylog import QueryLog
from canal_dns.server.sockets import UdpSocket
from canal_dns.server.tally import Tally

_PLACES = {source: tally.SOURCES.index(source.value) for source in Source}
_TC = 2
"""In the third octet of a message."""
_SIZE, _RATE = ("size",), ("rate",)
_ORIGINS: dict[type, int] = {Failure: tally.LOCAL, Remembered: tally.CACHE}

log = logging.getLogger("canal_dns.server")


class Upstream(Protocol):
    """The part of the forwarder that listeners use."""

    @property
    def marks(self) -> frozenset[bytes]:
        """Of its probes: `decide` answers those that come back."""

    def is_own(self, query: Query, host: str, port: int) -> bool:
        """True, and counted, for a query of our own to an upstream, which came by UDP from this address and port."""

    def submit(self, query: Query, client: str, reply_to: Callable[[bytes | None], None], exempt: bool) -> None:
        """Have a query answered: `reply_to` is called exactly once, now or later, with the reply or None for none.

        `exempt`: as if nothing were bound.
        """

    def take(
        self, misses: list[Miss], sock: UdpSocket, answer: Answer, gate: Gate, words: memoryview, now: float
    ) -> list[Miss]:
        """Take what needs no decision; give back the rest."""

    def refresh(self, query: Query) -> None:
        """Have a query asked for the cache alone."""


class Intake:
    """One per process. `gate` and `cache` are replaced when settings change; `cache` and `query_log` are None while there is
    none."""

    __slots__ = (
        "_dropped", "_exempt", "_forwarder", "_told", "_truncated", "cache", "cell", "counters", "gate", "query_log", "tally",
    )  # fmt: skip

    def __init__(self, cell: TableCell, gate: Gate, forwarder: Upstream, counters: Counters, tally: Tally) -> None:
        self.cell = cell
        self.gate = gate
        self.counters = counters
        self.tally = tally
        self.cache: AnswerCache | None = None
        self.query_log: QueryLog | None = None
        self._forwarder = forwarder
        self._told = -math.inf
        self._exempt = counters["canal_dns_exempt_requests_total"]
        self._dropped = counters["canal_dns_dropped_total"]
        self._truncated = counters["canal_dns_truncated_total"]

    @property
    def quick(self) -> AnswerTable | None:
        """The table for `batch`; None while every query has to pass `decide`: before the first sync, or to be logged."""
        return self.cell.current if self.query_log is None else None

    def decide(self, packet: bytes, host: str, port: int, stream: bool, now: float) -> Reply | Forward | Drop:
        """Judge one packet and count it as received, or as dropped."""
        verdict = decide(packet, host, port, stream, self.cell.current, self.gate, now, self.cache, self._forwarder.marks)
        if isinstance(verdict, Drop):
            self._dropped[(verdict.reason,)] += 1
        else:
            if isinstance(verdict, Forward):
                qtype = verdict.query.qtype
                if verdict.exempt:
                    self._exempt[()] += 1
            else:
                qtype = verdict.qtype
                if verdict.wire[2] & _TC:
                    self._truncated[_RATE if verdict.source is Source.LOCAL else _SIZE] += 1
                if verdict.refresh is not None:
                    self._forwarder.refresh(verdict.refresh)
            self.tally.request(qtype, stream=stream)
        if self.query_log is not None:
            self.query_log.record(packet, "tcp" if stream else "udp", host, port, _outcome(verdict), now)
        return verdict

    def forwarded(self, misses: list[Miss], sock: UdpSocket, answer: Answer, now: float) -> list[Miss]:
        """Datagrams that the table did not answer, without those that the forwarder took as they are: count nothing of them."""
        if self.query_log is not None:
            return misses
        return self._forwarder.take(misses, sock, answer, self.gate, self.tally.words, now)

    def failed(self, now: float) -> None:
        """Count a packet on which we failed, and log the present exception at most once a second."""
        self._dropped[("internal",)] += 1
        if now - self._told >= 1.0:
            self._told = now
            log.exception("a packet could not be handled")

    def replied(self, reply: Reply, since: float) -> None:
        """Count a reply of our own; `since` as given to `decide`."""
        self.tally.reply(_PLACES[reply.source], reply.rcode, since)

    def forward(
        self, verdict: Forward, host: str, reply_to: Callable[[bytes | None], None], *, udp_port: int | None = None
    ) -> None:
        """Hand the query of a client to the forwarder.

        `udp_port`: the client's, over UDP. A query of our own that went round in a circle comes back that way first, and here
        is where it ends (AMP-06); the port of a TCP client says nothing, since both transports have the same numbers.
        """
        if udp_port is not None and self._forwarder.is_own(verdict.query, host, udp_port):
            reply_to(servfail(verdict.query, Ede.OTHER))
        else:
            self._forwarder.submit(verdict.query, host, reply_to, verdict.exempt)

    def relayed(self, wire: bytes, since: float) -> None:
        """Count a reply that the forwarder gave: an upstream's, a failure of our own, or what is left in the cache."""
        if wire[2] & _TC:
            self._truncated[_SIZE] += 1
        self.tally.reply(_ORIGINS.get(type(wire), tally.UPSTREAM), wire[3] & 15, since)


def _outcome(verdict: Reply | Forward | Drop) -> str:
    if isinstance(verdict, Reply):
        return f"{rcode_text(verdict.rcode)} from {verdict.source.value}"
    if isinstance(verdict, Drop):
        return f"dropped, {verdict.reason}"
    return "forwarded, exempt" if verdict.exempt else "forwarded"
