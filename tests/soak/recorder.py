"""What the server says of itself during a soak, and what the kernel says of it: once a second, and looked through at the end.

Rules of this file:
- open files are counted while nothing is asked: under load, sockets towards upstreams come and go by the hundred;
- any other figure is flat when it is no higher in the last quarter than in the second one, the first being warm-up; compared is
  what nine of ten samples stay below, since a worker is missing in some of them;
- a counter may never go back, whoever died meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

from tests.faults.server import Server

_SERIES = re.compile(r"^(canal_dns_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


PATIENCE = 20.0
"""Seconds for a scrape: how long it took is told."""


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    memory: int
    """Octets, of all processes."""
    control: int
    """Octets, of the control process, which lives through it all."""
    descriptors: int


class Recorder:
    def __init__(self, server: Server) -> None:
        self.samples: list[Sample] = []
        self.idle = self.idle_again = server.descriptors()
        """Open files before the load, and when it was over."""
        self.scrapes = 0
        self.backwards: list[str] = []
        """Counters that went back."""
        self.slowest = 0.0
        """Seconds of a scrape."""
        self._server = server
        self._one_at_a_time = asyncio.Lock()
        self._last: dict[tuple[str, str], float] = {}

    async def scrape(self) -> Recorder:
        """Ask for the counters, and compare them with the last ones. Raises OSError, AssertionError."""
        async with self._one_at_a_time:
            began = time.monotonic()
            status, text = await asyncio.to_thread(self._server.get, "/metrics", PATIENCE)
        assert status == 200, text
        self.scrapes += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        fresh = {(name, labels): float(value) for name, labels, value in _SERIES.findall(text)}
        for key, before in self._last.items():
            if key[0].endswith(("_total", "_count", "_bucket")) and fresh.get(key, 0.0) < before:
                self.backwards.append(f"{key[0]}{{{key[1]}}} {before:g} -> {fresh.get(key, 0.0):g}")
        self._last = fresh
        return self

    def sample(self) -> None:
        """Look at what the kernel says; nothing while a worker is just going."""
        server = self._server
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            control = server.memory([server.popen.pid])
            self.samples.append(Sample(time.monotonic(), server.memory(), control, server.descriptors()))

    def is_idle(self, more: int) -> bool:
        """Whether there are no more open files than before the load, but for a few."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.idle_again = self._server.descriptors()
        return self.idle_again <= self.idle + more

    def totals(self, metric: str, label: str = "") -> dict[str, float]:
        """Of the last scrape: the sums of a metric by one of its labels; without one all in one, under ""."""
        found: dict[str, float] = defaultdict(float)
        for (name, labels), value in self._last.items():
            if name == metric:
                found[dict(_LABEL.findall(labels)).get(label, "")] += value
        return found

    def total(self, metric: str) -> float:
        return sum(self.totals(metric).values())

    def growth(self, figure: str) -> tuple[float, float]:
        """What a figure of the samples is at most, but for one in ten: in the second quarter, and in the last one."""
        first, last = self.samples[0].at, self.samples[-1].at
        quarter = (last - first) / 4
        early = [getattr(one, figure) for one in self.samples if quarter <= one.at - first < 2 * quarter]
        late = [getattr(one, figure) for one in self.samples if one.at - first >= 3 * quarter]
        return statistics.quantiles(early, n=10)[-1], statistics.quantiles(late, n=10)[-1]
