"""Worker processes as one DataPlane: started, fed, watched, and started again when they die.

Rules of this file:
- a worker is a fresh interpreter at the other end of a socketpair, never a fork: no shared state, no shared randomness;
- it gets everything it knows by its link: settings, exempt clients, one full table, then deltas; one that is slow gets it all
  later, at once;
- one that dies or goes silent is replaced at once; CRASHES in CRASH_WINDOW seconds end the pool;
- what it counts by the packet lies in memory of ours and outlives it; the rest it reports;
- an address is probed without SO_REUSEPORT first, since with it a second server would silently take half the queries.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from canal_dns.dns import names
from canal_dns.dns.table import Addresses, Delta, check
from canal_dns.errors import CanalError, ListenError, WorkerError
from canal_dns.metrics import Counters, merge
from canal_dns.server.child import HEARTBEAT, run_worker
from canal_dns.server.link import (
    Ask,
    Configure,
    Exempt,
    Link,
    Listening,
    Message,
    Publish,
    Refused,
    Report,
    Stop,
    WorkerSettings,
    pack,
)
from canal_dns.server.service import stop_time
from canal_dns.server.sockets import probe
from canal_dns.server.tally import Tally, memory
from canal_dns.settings import Endpoint, Settings

__all__ = ["WorkerPool", "run_worker"]

SILENT = 3 * HEARTBEAT
"""Seconds without a word after which a worker is killed: the kernel goes on giving it packets while it hangs."""
STARTING = 10.0
"""Seconds a worker may take to its first answer: an interpreter starts slowly on a crowded node."""
CRASHES = 10
CRASH_WINDOW = 60.0
"""That many deaths in so many seconds are no accident any more: the process exits, and whoever runs it knows."""
HEALTHY_LIFE = 5.0
"""Seconds after which a death is not the continuation of the one before: the next start is immediate."""
MAX_DELAY = 2.0
"""Seconds between two starts at most, while one dies after the other."""
ANSWER = 0.5
"""Seconds that a worker has to send its counters; then its last report is taken."""
EXIT = 1.0
"""Seconds between the end of a worker's link and the end of its process; then it is killed."""

_CHECK = 0.5

log = logging.getLogger("canal_dns.server")


class _Slot:
    """One worker: the process of the moment, and what is known of it."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.answers: dict[int, asyncio.Future[ListenError | None]] = {}
        self.reported: asyncio.Future[None] | None = None
        self.lost = asyncio.Event()
        self.ready = False
        self.generation = 0
        """Of the table that it answers from, as it said last."""
        self.unwanted = asyncio.Event()
        self.stale = False
        """Something was not sent while the link was blocked; `since`: of the oldest delta among it."""
        self.since: float | None = None
        self.silent = 0.0
        self.rows: list[list[Any]] = []
        """Of its last report."""
        self.tally: Tally | None = None
        self.supervisor: asyncio.Task[None] | None = None

    def counters(self) -> Counters:
        """All that the process of the moment counted, as of now and as of its last report."""
        whole = Counters.from_plain(self.rows)
        if self.tally is not None:
            self.tally.add_to(whole)
        return whole

    def send(self, packed: bytes) -> None:
        if self.link is not None:
            self.link.send_packed(packed)

    def is_blocked(self) -> bool:
        return self.link is not None and self.link.blocked


class WorkerPool:
    """The DataPlane of `count` processes; `argv` gives the command of one that calls `run_worker` with these descriptors."""

    def __init__(self, settings: Settings, count: int, argv: Callable[[int, int], Sequence[str]]) -> None:
        self._settings = settings
        self._zone = names.from_text(settings.zone.cluster_domain)
        self._count = count
        self._argv = argv
        self._slots: list[_Slot] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._addresses: dict[Endpoint, Endpoint] = {}
        self._names: dict[bytes, Addresses] = {}
        self._exempt: frozenset[str] = frozenset()
        self._generation = 0
        self._serial = 0
        self._full: bytes | None = None
        self._token = 0
        self._own = Counters()
        self._past = Counters()
        self._deaths: deque[float] = deque()
        self._failure: WorkerError | None = None
        self._failed = asyncio.Event()

    # -- DataPlane ----------------------------------------------------------------------------------------------------

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        return tuple(self._addresses.values())

    async def start(self) -> None:
        self._addresses = {address: probe(address) for address in self._settings.listen.addresses}
        try:
            await self._resize(self._count)
        except Exception:
            await self.stop()
            raise

    async def failed(self) -> None:
        await self._failed.wait()
        if self._failure is not None:
            raise self._failure

    def publish(self, delta: Delta, generation: int, serial: int, *, full: bool, since: float | None = None) -> None:
        # Looked at here first: what no table takes must not reach one that respawns.
        check(delta, self._zone, serial)
        if full:
            self._names = {}
        for name, addresses in delta.items():
            if addresses is None:
                self._names.pop(name, None)
            else:
                self._names[name] = addresses
        self._generation, self._serial, self._full = generation, serial, None
        packed = pack(Publish(dict(delta), generation, serial, full, since))
        for slot in self._slots:
            if slot.is_blocked():
                slot.stale = True
                slot.since = min((one for one in (slot.since, since) if one is not None), default=None)
            else:
                slot.send(packed)

    def exempt(self, addresses: frozenset[str]) -> None:
        self._exempt = addresses
        packed = pack(Exempt(addresses))
        for slot in self._slots:
            if slot.is_blocked():
                slot.stale = True
            else:
                slot.send(packed)

    async def reconfigure(self, settings: Settings) -> None:
        old_settings, old_addresses = self._settings, self._addresses
        wanted = dict.fromkeys(settings.listen.addresses)
        added = {address: probe(address) for address in wanted if address not in old_addresses}
        self._settings = settings
        self._addresses = {address: added.get(address) or old_addresses[address] for address in wanted}
        try:
            for refusal in await asyncio.gather(*map(self._configure, self._slots)):
                if refusal is not None:
                    raise refusal
            await self._resize(settings.listen.workers or self._count)
            self._zone = names.from_text(settings.zone.cluster_domain)
        except CanalError:
            self._settings, self._addresses = old_settings, old_addresses
            await asyncio.gather(*map(self._configure, self._slots))
            raise

    async def counters(self) -> Counters:
        self._token += 1
        ask = pack(Ask(self._token))
        waiting = []
        for slot in self._slots:
            if slot.ready and slot.link is not None and not slot.link.blocked:
                if slot.reported is None:
                    slot.reported = asyncio.get_running_loop().create_future()
                waiting.append(slot.reported)
                slot.send(ask)
        if waiting:
            await asyncio.wait(waiting, timeout=ANSWER)
        self._own["canal_dns_workers"][()] = sum(slot.ready for slot in self._slots)
        return merge((self._own, self._past, *(slot.counters() for slot in self._slots)))

    def healthy(self) -> bool:
        # A worker that has been sent the first table forwards bound names until it has taken it in.
        ready = [slot for slot in self._slots if slot.ready]
        return bool(ready) and (not self._generation or all(slot.generation for slot in ready))

    async def stop(self) -> None:
        slots, self._slots = self._slots, []
        await asyncio.gather(*map(self._retire, slots), *self._retiring)

    # -- one worker -----------------------------------------------------------------------------------------------------

    async def _resize(self, count: int) -> None:
        """Start what is missing and wait for it, let the surplus go. Raises ListenError, WorkerError."""
        for slot in self._slots[count:]:
            self._let_go(slot)
        added = [_Slot() for _ in range(count - len(self._slots))]
        self._slots += added
        for slot in added:
            slot.answers[0] = asyncio.get_running_loop().create_future()
            slot.supervisor = asyncio.create_task(self._supervise(slot), name="worker")
            slot.supervisor.add_done_callback(self._on_supervisor_end)
        try:
            async with asyncio.timeout(STARTING):
                for refusal in await asyncio.gather(*(slot.answers[0] for slot in added)):
                    if refusal is not None:
                        raise refusal
        except (ListenError, TimeoutError) as problem:
            for slot in added:
                self._let_go(slot)
            if isinstance(problem, ListenError):
                raise
            raise self._failure or WorkerError(f"a worker process did not start within {STARTING:g} s") from None
        self._count = count

    def _let_go(self, slot: _Slot) -> None:
        """Retire a worker that is one too many, while the others go on."""
        if slot not in self._slots:
            # The whole pool is being stopped.
            return
        self._slots.remove(slot)
        task = asyncio.create_task(self._retire(slot))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _supervise(self, slot: _Slot) -> None:
        """Keep one worker running."""
        clock = asyncio.get_running_loop().time
        short_lives = 0
        while self._is_wanted(slot):
            born = clock()
            cause = await self._live(slot)
            self._past = merge((self._past, slot.counters().without_gauges()))
            slot.rows, slot.tally = [], None
            if not self._is_wanted(slot):
                return
            self._count_death(cause, clock())
            short_lives = short_lives + 1 if clock() - born < HEALTHY_LIFE else 0
            if short_lives > 1:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(slot.unwanted.wait(), min(0.1 * 2 ** (short_lives - 2), MAX_DELAY))

    def _on_supervisor_end(self, task: asyncio.Task[None]) -> None:
        """A supervisor that fails is a fault of ours; a server with fewer workers than it was given must not hide it."""
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("a worker process is no longer supervised", exc_info=problem)
            self._fail(WorkerError(f"a worker process is no longer supervised: {problem!r}"))

    def _is_wanted(self, slot: _Slot) -> bool:
        return not slot.unwanted.is_set() and self._failure is None

    async def _live(self, slot: _Slot) -> str:
        """One process from its start to its end; gives the cause of the end."""
        ours, theirs = socket.socketpair()
        slot.lost.clear()
        slot.silent = 0.0
        slot.generation = 0
        slot.stale, slot.since = False, None
        cause = ""
        try:
            with theirs, memory() as tally:
                slot.tally = Tally(tally)
                given = theirs.fileno(), tally
                slot.process = process = await asyncio.create_subprocess_exec(
                    *self._argv(*given), pass_fds=given, stdin=subprocess.DEVNULL
                )
        except OSError as error:
            ours.close()
            log.error("no worker process could be started: %s", error)
            return "start"
        link = Link(lambda message: self._on_message(slot, message), slot.lost.set, on_writable=lambda: self._refresh(slot))
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        slot.link = link
        # The table first, the listeners then: a new worker does not send bound names upstream, nor a gateway pod to itself.
        link.send(Configure(0, self._worker_settings(), table=self._generation > 0))
        link.send(Exempt(self._exempt))
        if self._generation:
            link.send_packed(self._full_table())
        if not self._is_wanted(slot):
            link.close()
        while not slot.lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.lost.wait(), _CHECK)
            # Counted in checks, not on a clock: when this process itself stood still, no worker was silent for it.
            slot.silent += _CHECK
            if not slot.lost.is_set() and slot.silent > (SILENT if slot.ready else STARTING):
                cause = "silent"
                process.kill()
                await slot.lost.wait()
        slot.ready = False
        slot.link = None
        if slot.reported is not None:
            # Whoever waits for its counters has its last report.
            slot.reported.set_result(None)
            slot.reported = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), EXIT)
        if process.returncode is None:
            process.kill()
        status = await process.wait()
        slot.process = None
        return cause or ("signal" if status < 0 else "exit")

    async def _retire(self, slot: _Slot) -> None:
        """Let a worker finish and wait for its end."""
        slot.unwanted.set()
        slot.send(pack(Stop()))
        if slot.supervisor is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(slot.supervisor), self._linger())
            return
        if slot.process is not None:
            log.warning("worker %d did not stop and is killed", slot.process.pid)
            slot.process.kill()
        await slot.supervisor

    async def _configure(self, slot: _Slot) -> ListenError | None:
        """Hand a worker the present settings; one that is not there yet starts with them."""
        if slot.link is None:
            return None
        self._token += 1
        token = self._token
        answer = slot.answers[token] = asyncio.get_running_loop().create_future()
        slot.link.send(Configure(token, self._worker_settings()))
        lost = asyncio.ensure_future(slot.lost.wait())
        await asyncio.wait({answer, lost}, timeout=STARTING, return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        slot.answers.pop(token, None)
        return answer.result() if answer.done() else None

    def _on_message(self, slot: _Slot, message: Message) -> None:
        slot.silent = 0.0
        if isinstance(message, Report):
            slot.generation = message.generation
            if message.rows is not None:
                slot.rows = message.rows
            if message.token and slot.reported is not None:
                slot.reported.set_result(None)
                slot.reported = None
        elif isinstance(message, Listening):
            slot.ready = True
            self._answer(slot, message.token, None)
        elif isinstance(message, Refused):
            refusal = ListenError(message.address, message.transport, message.problem)
            if not slot.ready:
                log.error("a worker process has no listeners: %s", refusal)
                slot.send(pack(Stop()))
            self._answer(slot, message.token, refusal)

    def _answer(self, slot: _Slot, token: int, refusal: ListenError | None) -> None:
        answer = slot.answers.pop(token, None)
        if answer is not None and not answer.done():
            answer.set_result(refusal)

    def _refresh(self, slot: _Slot) -> None:
        """A slow worker reads again: one full table stands for all deltas that it missed, and counts since the oldest."""
        if slot.stale:
            since, slot.stale, slot.since = slot.since, False, None
            slot.send(pack(Exempt(self._exempt)))
            if self._generation:
                slot.send(self._full_table(since))

    # -- what they are told -----------------------------------------------------------------------------------------------

    def _worker_settings(self) -> WorkerSettings:
        listen = dataclasses.replace(self._settings.listen, addresses=tuple(self._addresses.values()))
        return WorkerSettings.of(dataclasses.replace(self._settings, listen=listen))

    def _full_table(self, since: float | None = None) -> bytes:
        if since is not None:
            return pack(Publish(dict(self._names), self._generation, self._serial, True, since))
        if self._full is None:
            self._full = pack(Publish(dict(self._names), self._generation, self._serial, True))
        return self._full

    def _linger(self) -> float:
        """Seconds that a worker may need to finish what waits in it and to end: more than all that it waits for itself."""
        return stop_time(self._settings) + EXIT

    def _count_death(self, cause: str, now: float) -> None:
        self._own["canal_dns_worker_restarts_total"][(cause,)] += 1
        log.error("a worker process ended (%s) and is started again", cause)
        self._deaths.append(now)
        while self._deaths[0] < now - CRASH_WINDOW:
            self._deaths.popleft()
        if len(self._deaths) >= CRASHES:
            self._fail(WorkerError(f"worker processes ended {CRASHES} times within {CRASH_WINDOW:g} s"))

    def _fail(self, failure: WorkerError) -> None:
        self._failure = self._failure or failure
        self._failed.set()
