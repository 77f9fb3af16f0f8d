"""What happens to the server while it is asked, each on its own, for ever: see `Disturbances`.

Rules of this file:
- whatever changes an answer is noted in the history before it is done;
- one upstream is up at any time; an API server that went away is waited for until it is watched as before;
- a disturbance that cannot be made raises: a soak without it would be none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.faults.server import Server
from tests.kube.apiserver import FakeApiServer
from tests.server.scripted import Scripted, silent
from tests.soak import content
from tests.soak.history import History
from tests.soak.judge import Kill
from tests.soak.recorder import Recorder

FLAP = 2.0
"""Seconds that one upstream is down, and that both are up until the other one is."""
CHANGE, MOVE = 0.1, 3.0
"""Seconds between two changes of objects, and of a gateway's address."""
KILL, RELOAD, API, SCRAPE = 10.0, 6.0, 15.0, 1.0
AWAY = 1.5
"""Seconds without an API server."""
RECOVERED = 60.0

GOOD: tuple[dict[str, Any], ...] = ({"cache": {"size": 9000}}, {"ttl": 6}, {"limits": {"discardAge": "1.8s"}}, {})
BAD: tuple[dict[str, Any] | str, ...] = ("listen: [", {"workers": "many"}, {"upstream": "a key that there is not"})


class Disturbances:
    """One soak's. What it did is counted: `kills`, `flaps`, `restarts`, `good`, `bad`."""

    def __init__(
        self, server: Server, api: FakeApiServer, upstreams: tuple[Scripted, Scripted], history: History, recorder: Recorder
    ) -> None:
        self.kills: list[Kill] = []
        self.flaps = self.restarts = self.good = self.bad = 0
        self.stall = 0.0
        """Seconds for which this process, upstreams included, did nothing, at most: others had the machine."""
        self._server = server
        self._api = api
        self._upstreams = upstreams
        self._history = history
        self._recorder = recorder

    async def run(self) -> None:
        """All of it, until it is cancelled. Raises what the first one raises that fails."""
        async with asyncio.TaskGroup() as together:
            for one in (self._change, self._move, self._flap, self._kill, self._restart_api, self._reload, self._scrape):
                together.create_task(one())
            together.create_task(self._attend())

    def noticed(self) -> bool:
        """Whether the server says that all of this happened, as of the last scrape, and is whole."""
        reloads = self._recorder.totals("canal_dns_config_reloads_total", "result")
        return (
            self._recorder.totals("canal_dns_worker_restarts_total", "cause") == {"signal": len(self.kills)}
            and (reloads["ok"], reloads["error"]) == (self.good, self.bad)
            and self._recorder.total("canal_dns_workers") == self._server.settings["workers"]
        )

    async def _change(self) -> None:
        """VirtualServices and Services come and go."""
        seeded = random.Random(2)
        bound = set(content.ROUTED + content.CREATED)
        while True:
            name = seeded.choice(content.ROUTED + content.CREATED)
            is_route = name in content.ROUTED
            answer = content.plain(name) if name in bound else content.VIPS[0]
            self._history.change([name], [answer], time.monotonic())
            if name in bound:
                self._api.delete("VirtualService" if is_route else "Service", "default", name.partition(".")[0])
            else:
                self._api.put(content.route(name) if is_route else content.service(name))
            bound ^= {name}
            await asyncio.sleep(CHANGE)

    async def _move(self) -> None:
        """A gateway's Service gets another address."""
        for vip in itertools.cycle(reversed(content.MOVING_VIPS)):
            await asyncio.sleep(MOVE)
            self._history.change(content.MOVED, [vip] * len(content.MOVED), time.monotonic())
            self._api.put(content.moving_gateway(vip))

    async def _flap(self) -> None:
        """The upstreams are away in turn: closed, or silent."""
        for closes, upstream in itertools.cycle(itertools.product((True, False), self._upstreams)):
            await asyncio.sleep(FLAP)
            self.flaps += 1
            if closes:
                await upstream.stop()
            else:
                upstream.script, upstream.probes_answered = silent, False
            try:
                await asyncio.sleep(FLAP)
            finally:
                upstream.script, upstream.probes_answered = content.upstream, True
                if closes:
                    await upstream.start()

    async def _kill(self) -> None:
        workers = self._server.settings["workers"]
        await asyncio.sleep(KILL / 2)
        while True:
            # The one that has lived longest.
            victim = min(self._server.workers)
            sent = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            while _runs(victim):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            kill = Kill(sent, time.monotonic())
            self.kills.append(kill)
            await self._told("canal_dns_worker_restarts_total", "cause", {"signal": len(self.kills)})
            await self._told("canal_dns_workers", "", {"": workers})
            kill.whole = time.monotonic()
            await asyncio.sleep(KILL - (time.monotonic() - sent))

    async def _told(self, metric: str, label: str, values: dict[str, float]) -> None:
        """Until the server says so. What comes before it has noticed what was before, it takes for one."""
        while (await self._recorder.scrape()).totals(metric, label) != values:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def _restart_api(self) -> None:
        """The API server goes and comes back, in turn with its history and without."""
        for forgets in itertools.cycle((False, True)):
            await asyncio.sleep(API / 2)
            watches = len(self._api.watches())
            self._history.away(time.monotonic())
            await self._api.stop()
            await asyncio.sleep(AWAY)
            if forgets:
                self._api.forget()
            await self._api.start()
            await self._api.until(lambda watches=watches: len(self._api.watches()) >= watches, RECOVERED)
            self._history.back(time.monotonic())
            self.restarts += 1
            await asyncio.sleep(API / 2)

    async def _reload(self) -> None:
        """Good and bad configurations in turn, and SIGHUP without any change."""
        settings = dict(self._server.settings)
        metric, label = "canal_dns_config_reloads_total", "result"
        for good, bad in zip(itertools.cycle(GOOD), itertools.cycle(BAD), strict=False):
            await asyncio.sleep(RELOAD / 2)
            settings["upstreams"] = settings["upstreams"][::-1]
            self._server.write({**settings, **good})
            self.good += 1
            await self._told(metric, label, {"ok": self.good, "error": self.bad})
            self._server.signal(signal.SIGHUP)
            self.good += 1
            await self._told(metric, label, {"ok": self.good, "error": self.bad})
            await asyncio.sleep(RELOAD / 2)
            self._server.write(bad if isinstance(bad, str) else {**settings, **bad})
            self.bad += 1
            await self._told(metric, label, {"ok": self.good, "error": self.bad})

    async def _attend(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            self.stall = max(self.stall, time.monotonic() - began - 0.01)

    async def _scrape(self) -> None:
        while True:
            (await self._recorder.scrape()).sample()
            await asyncio.sleep(SCRAPE)


def _runs(pid: int) -> bool:
    """Whether any thread is there that may still hold its sockets: one that is dead, and not yet asked for, holds none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
                    return True
    return False
