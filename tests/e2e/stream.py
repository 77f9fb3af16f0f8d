"""Questions that go on while something happens to the cluster: every answer is held against what it may be at that time.

Rules of this file:
- one thread per server, each asks all names in turn, over UDP (or TCP) and without retries: a lost answer is a finding;
- an answer is a text: addresses ("10.96.9.9"), "NODATA", a response code ("NXDOMAIN"), or "no answer";
- what is not allowed at the moment of asking is remembered, and fails the block: SERVFAIL and REFUSED are never allowed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from tests.e2e import cluster
from tests.e2e.ask import ask
from tests.e2e.processes import until

PAUSE = 0.005
"""Between a thread's questions: the machine has other things to do."""
MISSING = cluster.fqdn("no-such-service.default")


class Stream:
    """`servers`: name for people -> address; `tcp`: those of them that are asked over TCP."""

    def __init__(self, servers: Mapping[str, str], tcp: Collection[str] = ()) -> None:
        self.servers = dict(servers)
        self._tcp = frozenset(tcp)
        self.answers: Counter[tuple[str, str]] = Counter()
        """How often (name, answer) came."""
        self.wrong: list[str] = []
        self._allowed: dict[str, frozenset[str]] = {MISSING: frozenset({"NXDOMAIN"})}
        self._last: dict[tuple[str, str], tuple[float, str]] = {}
        self._silenced: set[str] = set()
        self._stop = threading.Event()
        self._began = time.monotonic()

    @contextmanager
    def flowing(self) -> Iterator[Stream]:
        """Ask until the end of the block. Raises AssertionError where an answer was wrong."""
        threads = [threading.Thread(target=self._ask_all, args=(server,), daemon=True) for server in self.servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(15)
        assert not self.wrong, f"{len(self.wrong)} of {self.total} answers:\n" + "\n".join(self.wrong[:20])

    def allow(self, name: str, *answers: str) -> None:
        """From now on `name` (in full) is asked for, and each of these is right."""
        self._allowed[name] = frozenset(answers)

    def may_become(self, answer: str, *names: str) -> None:
        """From now on this answer is right too: said before the change is made, where several names change at once."""
        for name in names:
            self.allow(name, *self._allowed.get(name, ()), answer)

    def becomes(self, name: str, answer: str, seconds: float = 20) -> float:
        """Both the present answers and this one are right until every server gives it; then nothing else is. The seconds."""
        self.may_become(answer, name)
        servers = [server for server in self.servers if server not in self._silenced]
        asked = time.monotonic()

        def all_say_it() -> bool:
            last = [self._last.get((server, name), (0.0, "")) for server in servers]
            return all(when >= asked and said == answer for when, said in last)

        until(all_say_it, seconds, lambda: f"{name} becomes {answer}: {self.said(name)}; wrong: {self.wrong[:5]}", pause=0.005)
        self.allow(name, answer)
        return time.monotonic() - asked

    def stays(self, rounds: int = 20) -> None:
        """Until every server was asked for everything so many times more; all of it is held against what is allowed."""
        target = self.total + rounds * len(self._allowed) * max(1, len(self.servers) - len(self._silenced))
        until(lambda: self.total >= target or self.wrong, 60, "the questions go on")
        assert not self.wrong, "\n".join(self.wrong[:20])

    @contextmanager
    def without(self, server: str) -> Iterator[None]:
        """This server is not there, and not asked, in this block."""
        self._silenced.add(server)
        try:
            yield
        finally:
            self._silenced.discard(server)

    def said(self, name: str) -> dict[str, str]:
        """What each server said last."""
        return {server: self._last.get((server, name), (0.0, "nothing yet"))[1] for server in self.servers}

    @property
    def total(self) -> int:
        return self.answers.total()

    def __str__(self) -> str:
        return f"{self.total} answers to {len({name for name, _ in self.answers})} names, {len(self.wrong)} wrong"

    def _ask_all(self, server: str) -> None:
        while not self._stop.is_set():
            for name, before in list(self._allowed.items()):
                if self._stop.wait(PAUSE) or server in self._silenced:
                    continue
                asked = time.monotonic()
                said = _answer(self.servers[server], name, tcp=server in self._tcp)
                allowed = before | self._allowed.get(name, before)
                if said not in allowed and server not in self._silenced:
                    self.wrong.append(f"{asked - self._began:.2f} s: {server} said {said} for {name}, not {sorted(allowed)}")
                self.answers[name, said] += 1
                self._last[server, name] = asked, said


def _answer(server: str, name: str, *, tcp: bool = False) -> str:
    try:
        answer = ask(server, name, "A", tcp=tcp, timeout=5)
    except (TimeoutError, ConnectionError) as problem:
        return f"no answer ({problem!r})"
    if answer.rcode != "NOERROR":
        return answer.rcode
    return ",".join(sorted(answer.addresses())) or "NODATA"
