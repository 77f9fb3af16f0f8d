"""What is on its way: a flight (one question, and all who wait for it), the channels it left by, and what is to be done next.

Rules of this file:
- state only: what changes it, and when, is the business of `inflight`;
- a channel uses an ID once in its life, and an order is carried out by the shell or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TypeAlias

from canal_dns.dns.upstreams import Upstream
from canal_dns.dns.wire import Ede, Query

CHANNEL_LIFE = 10.0
"""Seconds a channel takes new queries; CoreDNS's `expire`. A long-lived source port to a ClusterIP can become a black hole."""
CHANNEL_QUERIES = 1000
"""Queries a channel takes in its life: an off-path attacker has to find a new port after them."""
IDS = 1 << 16
"""Query IDs that there are."""

Key: TypeAlias = tuple[bytes, int, int, int, bool]
"""Lower-cased name, type, class, RD and CD, DO as sent upstream. Nothing else of a client splits a flight (CVE-2025-5994)."""
ReplyTo: TypeAlias = Callable[[bytes | None], None]
Waiter: TypeAlias = tuple[Query, str, ReplyTo, float, bool]
"""The query as this client asked it, the client's address, where its reply goes, when it came, whether the client is exempt."""


class Rejection(Enum):
    """Why a query is answered SERVFAIL at once, or, DISPLACED, before its time is over. Values: labels of metrics."""

    OUTSTANDING = "outstanding"
    CLIENT = "client"
    DOWN = "down"
    LOOP = "loop"
    CLOSING = "closing"
    DISPLACED = "displaced"


class Ignored(Enum):
    """A packet that matches no query any more: late or duplicate. Value: a label of metrics, beside those of `Mismatch`."""

    UNEXPECTED = "unexpected"


class Channel:
    """One upstream socket, as the book-keeping sees it. The shell adds the socket."""

    __slots__ = ("connected", "expires", "flights", "left", "mismatches", "retired", "spent", "stream", "upstream", "waiting")

    def __init__(self, upstream: Upstream, now: float, *, stream: bool) -> None:
        self.upstream = upstream
        self.stream = stream
        """A TCP connection; else a UDP socket."""
        self.connected = not stream
        """A stream: it was, at some time, and with a server that speaks DNS."""
        self.expires = inf if stream else now + CHANNEL_LIFE
        self.flights: dict[int, Flight] = {}
        """Those that wait here, by ID."""
        self.left = 0
        """Queries that left here, ever."""
        self.spent = bytearray(IDS // 8)
        """A bit for each ID that one of them had: it is not used again here."""
        self.waiting = 0
        """Flights that still wait here; a retired channel without them is to be closed."""
        self.mismatches = 0
        """Packets with an ID that was never used here."""
        self.retired = False

    def usable(self, now: float) -> bool:
        """True if a new query may leave here."""
        return not self.retired and self.left < CHANNEL_QUERIES and now < self.expires

    def waiters(self) -> list[Flight]:
        """The flights that wait here."""
        return list(self.flights.values())


class Flight:
    """One question on its way to the upstreams, and all who wait for it."""

    __slots__ = (
        "asked", "do", "done", "extra", "key", "late", "mismatches", "probe", "query", "redialled", "refused", "reply", "sent",
        "slots", "started", "streamed", "streaming", "successor", "truncated", "upstream", "waiters",
    )  # fmt: skip

    def __init__(self, key: Key, query: Query, do: bool, upstream: Upstream, now: float) -> None:
        self.key = key
        self.query = query
        """As the first client asked it: its case goes upstream."""
        self.do = do
        self.upstream = upstream
        """Asked last."""
        self.asked: tuple[Upstream, ...] = (upstream,)
        self.waiters: list[Waiter] = []
        self.started = self.sent = now
        """`sent`: when the question left last; the shell keeps it."""
        self.slots: list[tuple[Channel, int]] = []
        """Where a reply may still come in."""
        self.reply: bytes | None = None
        """The reply; before `done` the failure that is passed on if nobody knows better."""
        self.truncated: bytes | None = None
        """A reply with TC=1, for the case that TCP is impossible."""
        self.streamed: tuple[Upstream, ...] = ()
        """Asked over TCP: each once, but for one connection that broke."""
        self.streaming = 0
        """Streams that are ordered or waited on."""
        self.mismatches = 0
        self.extra = self.redialled = self.refused = self.done = self.probe = self.successor = self.late = False

    @property
    def ede(self) -> Ede:
        """Why there is no reply (RFC 8914)."""
        return Ede.NETWORK_ERROR if self.refused else Ede.NO_REACHABLE_AUTHORITY


@dataclass(frozen=True, slots=True)
class Send:
    """Send the flight's question to this upstream, on a channel that it has not left by."""

    flight: Flight
    upstream: Upstream
    stream: bool


@dataclass(frozen=True, slots=True)
class Overdue:
    """A try was not answered in time: to be counted."""

    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Suspect:
    """A question was not answered in time, and somebody else asked the same: that may have been our own, come back."""

    upstream: Upstream
    name: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """Give the flight's outcome to its waiters; `rejection`: why it ends before its time."""

    flight: Flight
    rejection: Rejection | None = None


Order: TypeAlias = Send | Overdue | Suspect | Done
