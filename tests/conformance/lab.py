"""One server, one upstream, and the steps that every case is made of: send, fence, look upstream, is everything well?

Rules of this file:
- a *fence* is HDR-01 on the same socket right behind the packet: what has not come before its answer was not sent;
- after every case HDR-01 must be answered within 1 s, and the way to the upstream must be open again;
- error replies are limited by the server on purpose: the lab never asks for more than half of them.
"""

import collections
import contextlib
import json
import time
from pathlib import Path

from tests.conformance import message as dns
from tests.conformance.checks import SHARED, SLACK, Exchange, faults
from tests.conformance.fixture import CLOSED, Tcp, Udp, answer

FILE = Path(__file__).with_name("cases.json")
WEB = "web.shop.svc.cluster.local"
SILENCE = 0.1
"""Seconds in which a late reply, or a late packet upstream, is still noticed after the fence."""
FENCE_ID = 0x4C4C
ERRORS_PER_SECOND = 45


CHECKS = {}
"""{case: (function, lane)} of the checks that are named after their case."""


def dedicated(lane="main"):
    """Register a check: the function `tcp_03` is that of TCP-03.

    main    (lab, case), in turn with the generic cases
    last    (lab, case), on the same server when nothing else runs: floods
    beside  (lab, case), on a server of its own in a thread: it mostly waits
    alone   (workers, case), starts what it needs itself
    cached  the same, beside the others: it has a cache, and mostly waits
    """

    def register(function):
        CHECKS[function.__name__.replace("_", "-").upper()] = (function, lane)
        return function

    return register


class Fault(Exception):  # noqa: N818
    """A case is not as demanded; the text says what was seen."""


def need(condition, text):
    """Raise Fault with the text unless the condition holds."""
    if not condition:
        raise Fault(text)


class Case:
    """A case of cases.json."""

    def __init__(self, raw):
        self.id, self.level, self.query, self.expected = raw["id"], raw["level"], raw["query"], raw["expected"]
        self.check = raw.get("check", {})
        self.transport = raw["transport"]
        given = raw.get("hex", [])
        self.packets = [bytes.fromhex(text) for text in (given if isinstance(given, list) else [given])]

    @property
    def transports(self):
        """Which of udp and tcp the generic run uses."""
        return [kind for kind in ("udp", "tcp") if kind in self.transport]


def load():
    """All cases, by id, in the order of the file."""
    return {raw["id"]: Case(raw) for raw in json.loads(FILE.read_text())["cases"]}


class Lab:
    """A running server and its upstream."""

    def __init__(self, server, upstream, workers):
        self.server, self.upstream, self.workers = server, upstream, workers
        self.baseline = dns.query(WEB, ident=FENCE_ID)
        self._errors = collections.deque()

    # -- steps

    def udp(self, **where):
        return Udp(self.server, **where)

    def tcp(self, **where):
        return Tcp(self.server, **where)

    def ask(self, name, qtype=dns.A, *, transport="udp", seconds=5.0, **parts):
        """One question, its reply read; a Fault when there is none."""
        with self.udp() if transport == "udp" else self.tcp() as client:
            message = answer(client, name, qtype, seconds, **parts)
        need(message is not None, f"no answer to {name!r} type {qtype} over {transport}")
        return message

    def exchange(self, wire, transport="udp", *, result="reply", seconds=5.0, host="127.0.0.1"):
        """Send one packet and collect everything that it leads to."""
        self._pace()
        mark = self.upstream.mark()
        begin = time.monotonic()
        done = (self._exchange_udp if transport == "udp" else self._exchange_tcp)(wire, result, seconds, host, begin)
        for reply in done.replies:
            if len(reply) > 3 and reply[3] & 15 in (1, 4, 5):
                self._errors.append(time.monotonic())
        if not done.upstream:
            done.upstream = self.upstream.seen(since=mark)
        return done

    def _exchange_udp(self, wire, result, seconds, host, begin):
        with self.udp(host=host) as client:
            client.send(wire)
            replies = []
            if "drop" not in result:
                reply = client.receive(seconds)
                replies += [reply] if reply is not None else []
            took = time.monotonic() - begin
            client.send(self.baseline)
            fenced = False
            deadline = time.monotonic() + 1.0
            while (reply := client.receive(max(0.0, deadline - time.monotonic()))) is not None:
                if reply[:2] == self.baseline[:2] and not fenced:
                    fenced, deadline = True, time.monotonic() + (SILENCE if "drop" in result else 0.01)
                else:
                    replies.append(reply)
            need(fenced, "HDR-01 right behind the packet was not answered within 1 s")
            return Exchange(wire, "udp", replies, seconds=took)

    def _exchange_tcp(self, wire, result, seconds, host, begin):
        with self.tcp(host=host) as client:
            client.send(wire)
            wait = seconds if result in ("reply", "close") else 1.0
            reply = client.receive(wait)
            took = time.monotonic() - begin
            replies = [reply] if reply not in (None, CLOSED) else []
            return Exchange(wire, "tcp", replies, closed=reply is CLOSED, seconds=took)

    def generic(self, case, *, transports=None, hosts=("127.0.0.1",), packets=None):
        """Every packet over every transport, judged by `check`. Raises Fault with all that is wrong."""
        result = case.check.get("result", "reply")
        seconds = case.check["within_s"] + SLACK if "within_s" in case.check else 6.0
        found, exchanges = [], []
        for transport in transports or case.transports:
            for host in hosts:
                for number, wire in enumerate(packets or case.packets):
                    done = self.exchange(wire, transport, result=result, seconds=seconds, host=host)
                    exchanges.append(done)
                    where = transport + (f" packet {number + 1}" if len(packets or case.packets) > 1 else "")
                    found += [f"{where}: {problem}" for problem in faults(case.check, done)]
                    if "max_ms" in case.check:
                        found += self._fast_enough(case, wire, transport, done, where)
        need(not found, "; ".join(found))
        return exchanges

    def _fast_enough(self, case, wire, transport, done, where):
        result = case.check.get("result", "reply")
        best = min([done.seconds, *(self.exchange(wire, transport, result=result).seconds for _ in range(4))])
        limit = case.check["max_ms"] / 1000 * SHARED
        return [] if best <= limit else [f"{where}: {best * 1000:.1f} ms at best, {limit * 1000:g} were allowed"]

    # -- is everything well?

    def well(self):
        """After a case. Raises Fault."""
        need(self.server.alive, f"the server process has ended:\n{self.server.tail()}")
        with self.udp() as client:
            deadline = time.monotonic() + 1.0
            reply = client.ask(self.baseline, 1.0)
        need(reply is not None, "afterwards HDR-01 was not answered within 1 s")
        message = dns.read(reply)
        ok = message.rcode == "NOERROR" and message.addresses() == ["10.96.0.200"] and message.bit("aa")
        need(ok and time.monotonic() <= deadline + SLACK, f"afterwards HDR-01 got {message.rcode} {message.addresses()}")

    def recovered(self, seconds=10.0):
        """Wait until the way to the upstream is open; the next case begins from there. Raises Fault."""
        deadline = time.monotonic() + seconds
        while True:
            with self.udp() as client:
                reply = answer(client, "probe.up.test", seconds=2.0)
            if reply is not None and reply.rcode == "NOERROR":
                return
            need(time.monotonic() < deadline, f"after {seconds:g} s forwarding had not recovered")
            time.sleep(0.05)

    def _pace(self):
        now = time.monotonic()
        while self._errors and now - self._errors[0] > 1.0:
            self._errors.popleft()
        if len(self._errors) >= ERRORS_PER_SECOND:
            time.sleep(max(0.0, 1.0 - (now - self._errors[0])))

    def errors_again(self):
        """After a flood: wait until the server, each of its workers, gives error replies again."""
        wire = bytes.fromhex("1a2b01000001000000000000c00c00010001")
        deadline = time.monotonic() + 10
        while True:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(self.udp()) for _ in range(12 if self.workers else 4)]
                for client in clients:
                    client.send(wire)
                if all([client.receive(0.2) is not None for client in clients]):  # noqa: C419
                    break
            need(time.monotonic() < deadline, "10 s after a flood error replies were still suppressed")
            time.sleep(0.1)
