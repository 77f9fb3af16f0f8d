"""What a scenario is given: servers that are looked over when it ends, upstreams, clients, and whether it may take its time.

Rules of this file:
- every server that is still there at the end must answer a bound name within 1 s, and be as it was before the fault:
  descriptors of its processes, and memory within `MEMORY`; else the row is missed, whatever it measured;
- everything that was started is ended, by its id, also after a failure;
- nothing here blocks the loop, on which the scripted upstreams live.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from canal_dns.settings import Endpoint
from tests.faults.rows import Outcome, Row
from tests.faults.server import Server
from tests.server.scripted import Script, Scripted, true

T = TypeVar("T")

MEMORY = 16 << 20
"""Octets of growth that a scenario leaves behind at most: what a process takes once, at its first load, is well below."""
DESCRIPTORS = 8
"""More open files than before, at most: sockets of replaced workers and of upstream pools come and go."""
HELD_UP = 0.2
"""Seconds by which the bench's own loop may be late, upstreams and clients with it; what misses a demand then proves little."""
SETTLE = 15.0
"""Seconds in which all must be as before: an upstream socket lives 10 s at most."""


@dataclass(slots=True)
class _Baseline:
    server: Server
    descriptors: int
    memory: int
    growth: int


class Bench:
    """One scenario's. `long`: the long form, which takes minutes where the short one takes seconds."""

    def __init__(self, folder: Path, undo: contextlib.AsyncExitStack, *, long: bool) -> None:
        self.folder = folder
        self.long = long
        self._undo = undo
        self._baselines: list[_Baseline] = []

    async def upstream(self, script: Script = true, **different: Any) -> Scripted:
        """A scripted upstream, started; `different` as for Scripted."""
        return await self._undo.enter_async_context(Scripted(script, **different))

    async def enter(self, context: contextlib.AbstractAsyncContextManager[T]) -> T:
        """Enter a context that is left when the scenario is over."""
        return await self._undo.enter_async_context(context)

    async def server(
        self, *upstreams: Endpoint | Scripted, ready: bool = True, watched: bool = True, growth: int = MEMORY, **different: Any
    ) -> Server:
        """A canal-dns that answers; `different`: keys of its configuration; `ready` False: its sockets are there, no more;
        `watched` False: it need not be there at the end; `growth`: octets that its memory may grow by (0: not looked at)."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        endpoints = [one if isinstance(one, Endpoint) else one.endpoint for one in upstreams] or [Endpoint("127.0.0.1", 9)]
        server = Server(folder, endpoints, **different)
        self._undo.callback(server.__exit__)
        await asyncio.to_thread(server.ready if ready else server.listening)
        if watched:
            await asyncio.to_thread(_warm, server, ready)
            self._baselines.append(_Baseline(server, server.descriptors(), server.memory(), growth))
        return server

    def baseline(self, server: Server) -> None:
        """Take the present as what it must be like at the end: after a warm-up of the scenario's own."""
        for one in self._baselines:
            if one.server is server:
                one.descriptors, one.memory = server.descriptors(), server.memory()

    async def until(self, condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> float:
        """Seconds until the condition held, asked in a thread, so that it may block. Raises TimeoutError."""
        began = time.monotonic()
        while not await asyncio.to_thread(condition):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not within {seconds:g} s")
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def complaints(self) -> list[str]:
        """What is not as it was."""
        found = []
        for one in self._baselines:
            if not one.server.alive():
                found.append(f"canal-dns ended ({one.server.popen.returncode}): {' / '.join(one.server.errors[-3:])}")
            elif not await asyncio.to_thread(one.server.answers):
                found.append("a bound name was not answered within 1 s afterwards")
            else:
                found += await self._grown(one)
        return found

    async def _grown(self, one: _Baseline) -> list[str]:
        end = time.monotonic() + SETTLE
        while True:
            files = one.server.descriptors() - one.descriptors
            memory = one.server.memory() - one.memory
            found = [f"{files} more open files"] if files > DESCRIPTORS else []
            if one.growth and memory > one.growth:
                found.append(f"{memory / 2**20:.0f} MiB more memory")
            if not found or time.monotonic() > end:
                return found
            await asyncio.sleep(0.1)


def _warm(server: Server, ready: bool) -> None:
    if ready and not server.answers(seconds=5.0):
        raise AssertionError("a bound name is not answered before the fault")


@contextlib.asynccontextmanager
async def bench(*, long: bool) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="canal-dns-faults-") as folder:
        async with contextlib.AsyncExitStack() as undo:
            yield Bench(Path(folder), undo, long=long)


async def run(row: Row, *, long: bool, limit: float) -> Outcome:
    """The scenario, and the look afterwards. Raises what the scenario raises, and TimeoutError after `limit` seconds."""
    async with asyncio.timeout(limit), bench(long=long) as given:
        pauses: list[float] = []
        watching = asyncio.create_task(_pauses(pauses))
        outcome = await row.scenario(given)
        watching.cancel()
        complaints = await given.complaints()
    if complaints:
        outcome = Outcome(f"{outcome.measured}; afterwards: {', '.join(complaints)}", met=False)
    if not outcome.met and max(pauses, default=0.0) > HELD_UP:
        held = f"{len(pauses)} times, for {max(pauses):.1f} s"
        outcome = Outcome(
            f"{outcome.measured}; the bench itself was held up {held}: the machine had other things to do", met=False
        )
    return outcome


async def _pauses(pauses: list[float]) -> None:
    """Notes by how much this loop comes late, where that is more than scenarios can bear."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.05)
        late = time.monotonic() - before - 0.05
        if late > HELD_UP:
            pauses.append(late)
