"""Clients of a fault scenario: a steady stream of queries, each of which is accounted for.

    async with Stream(server.endpoint, [Question(BOUND, expect=VIP)], rate=5000) as stream:
        ...                                  # the fault happens
    stream.sent == stream.answered + stream.lost

Rules of this file:
- open loop: queries leave at their time, whether replies come or not;
- a query is answered right, answered wrong, failed (SERVFAIL, REFUSED and the like), or lost; never two of them;
- a reply that belongs to no open query is a stray, and counted: a server that answers twice is a fault, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from canal_dns.settings import Endpoint
from tests.server.scripted import eventually
from tests.server.serving import query

NOERROR, NXDOMAIN = 0, 3


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the address that the answer must end with; None: any NOERROR or NXDOMAIN will do."""

    name: str
    expect: bytes | None = None
    qtype: int = 1
    wire: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wire", query(self.name, self.qtype, ident=0)[2:])


@dataclass(slots=True)
class _Open:
    question: Question
    sent: float


class Stream:
    """A steady stream from `sockets` sockets, until the context ends; then it waits `patience` seconds for what is open."""

    def __init__(
        self,
        endpoint: Endpoint,
        questions: Sequence[Question],
        rate: float,
        *,
        sockets: int = 16,
        patience: float = 2.5,
        host: str = "",
        total: int = 0,
    ) -> None:
        """`rate`: queries per second; `host`: the clients' own address; `total`: so many and no more (0: without end)."""
        self._endpoint = endpoint
        self._questions = itertools.cycle(questions)
        self._rate = rate
        self._sockets = sockets
        self._patience = patience
        self._host = host
        self._total = total
        self.sent = self.right = self.wrong = self.failed = self.lost = self.strays = 0
        self.truncated = 0
        """Replies with TC=1, whatever else they are."""
        self.seconds: list[float] = []
        """Of every reply, in the order in which they came."""
        self.last_bad = 0.0
        """When the last query left that was not answered right; by time.monotonic()."""
        self.rcodes: dict[int, int] = {}
        self.worst: list[str] = []
        """The first wrong replies, for whoever has to find out."""

    @property
    def answered(self) -> int:
        return self.right + self.wrong + self.failed

    @property
    def unanswered_share(self) -> float:
        """Lost, failed and wrong ones among all that were sent."""
        return 1 - self.right / self.sent if self.sent else 0.0

    def percentile(self, share: float, since: int = 0) -> float:
        """Seconds; `share` 0.99 is p99; `since`: of the replies after so many."""
        times = sorted(self.seconds[since:])
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("inf")

    def said(self) -> str:
        """One line."""
        text = f"{self.sent} sent, {self.lost} lost, {self.failed} failed, {self.wrong} wrong"
        return text + (f", {self.strays} strays" if self.strays else "")

    async def __aenter__(self) -> Stream:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if self._endpoint.is_ipv6 else socket.AF_INET
        self._ends: list[tuple[socket.socket, dict[int, _Open]]] = []
        for _ in range(self._sockets):
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            if self._host:
                sock.bind((self._host, 0))
            sock.connect((self._endpoint.host, self._endpoint.port))
            flights: dict[int, _Open] = {}
            self._ends.append((sock, flights))
            loop.add_reader(sock.fileno(), self._readable, sock, flights)
        self._ids = itertools.cycle(random.sample(range(65536), 65536))
        self._sending = loop.create_task(self._send())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not any(flights for _, flights in self._ends), self._patience)
        loop = asyncio.get_running_loop()
        for sock, flights in self._ends:
            self.lost += len(flights)
            self.last_bad = max([self.last_bad, *(one.sent for one in flights.values())])
            loop.remove_reader(sock.fileno())
            sock.close()

    async def for_(self, seconds: float) -> None:
        """Let it run for a while. Raises what the sending raised."""
        done, _ = await asyncio.wait([self._sending], timeout=seconds)
        for task in done:
            task.result()

    async def finished(self) -> None:
        """Wait until all of `total` are sent and nothing is open any more, or their patience is over."""
        await self._sending
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not any(flights for _, flights in self._ends), self._patience)

    async def _send(self) -> None:
        ends = itertools.cycle(self._ends)
        began = time.monotonic()
        due = 0
        while not self._total or due < self._total:
            now = time.monotonic()
            while due < (now - began) * self._rate and due != (self._total or -1):
                due += 1
                sock, flights = next(ends)
                ident = next(self._ids)
                if ident in flights:
                    # An ID comes again after 65,536 queries: whoever has not answered until then has lost it.
                    self.lost += 1
                question = next(self._questions)
                flights[ident] = _Open(question, time.monotonic())
                self.sent += 1
                try:
                    sock.send(ident.to_bytes(2) + question.wire)
                except OSError:
                    # ICMP about an earlier query; this one did not leave.
                    del flights[ident]
                    self.lost += 1
            await asyncio.sleep(min(0.001, 1 / self._rate))

    def _readable(self, sock: socket.socket, flights: dict[int, _Open]) -> None:
        while True:
            try:
                reply = sock.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                continue
            now = time.monotonic()
            open_ = flights.pop(int.from_bytes(reply[:2]), None)
            if open_ is None or reply[12 : len(open_.question.wire) + 2] != open_.question.wire[10:]:
                self.strays += 1
                if open_ is not None:
                    flights[int.from_bytes(reply[:2])] = open_
                continue
            self.seconds.append(now - open_.sent)
            right = self.right
            self._judge(open_.question, reply)
            if self.right == right:
                self.last_bad = max(self.last_bad, open_.sent)

    def _judge(self, question: Question, reply: bytes) -> None:
        rcode = reply[3] & 15
        self.truncated += reply[2] >> 1 & 1
        self.rcodes[rcode] = self.rcodes.get(rcode, 0) + 1
        if rcode not in (NOERROR, NXDOMAIN):
            self.failed += 1
        elif question.expect is not None and not (
            rcode == NOERROR and question.expect in reply[12 + len(question.wire) - 10 :]
        ):
            self.wrong += 1
            if len(self.worst) < 10:
                self.worst.append(f"{question.name}: {reply.hex()}")
        else:
            self.right += 1
