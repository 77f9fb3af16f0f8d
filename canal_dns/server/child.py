"""The life of a worker process: told what to do over its link, a PacketService otherwise.

Rules of this file:
- imports stay small (no YAML, no HTTP, no metrics library, nothing of `mesh` or `kube`): a worker starts in a moment;
- signals of a terminal or of a whole process group do not end a worker, the control process does;
- without its control process a worker answers through the lameduck, since clients still come, and then exits 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from canal_dns.errors import ListenError, TableError
from canal_dns.metrics import Counters
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
)
from canal_dns.server.service import PacketService
from canal_dns.server.tally import Tally
from canal_dns.settings import LogSettings

HEARTBEAT = 1.0
"""Seconds between two reports; they carry what is not in the tally, of which a worker's death loses a second at most."""

INBOX = 100
"""Messages that may wait while one is handled: ten seconds of changes. Above it the link is not read, and whoever sends has one
full table stand for all that follows."""

log = logging.getLogger("canal_dns.server")


def run_worker(
    fd: int,
    tally: int,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    on_log_settings: Callable[[LogSettings], None] = lambda _: None,
    lost_lines: Callable[[], int] = lambda: 0,
) -> None:
    """Serve until the control process at the other end of the socket `fd` says stop, or is gone.

    `tally`: the descriptor of the memory that the control process reads; `lost_lines`: of this process's log.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    _raise_descriptor_limit()
    counted = Tally(tally)
    os.close(tally)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_Worker(counted, on_log_settings, lost_lines).run(socket.socket(fileno=fd)))


class _Worker:
    def __init__(self, tally: Tally, on_log_settings: Callable[[LogSettings], None], lost_lines: Callable[[], int]) -> None:
        self._tally = tally
        self._on_log_settings = on_log_settings
        self._lost_lines = lost_lines
        self._link = Link(self._on_message, self._on_lost)
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._service: PacketService | None = None
        self._unstarted: tuple[Configure, PacketService] | None = None
        self._unhandled = 0
        """Messages in the inbox, and the one that is being handled."""
        self._reported: list[list[Any]] = []
        self._lameduck = 0.0
        self._orphaned = False
        self._hurry = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)
        await loop.create_unix_connection(lambda: self._link, sock=sock)
        heartbeat = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            while (message := await self._inbox.get()) is not None:
                if isinstance(message, Stop):
                    break
                await self._handle(message)
                self._unhandled -= 1
                self._link.hold(self._unhandled >= INBOX)
            else:
                log.warning("the control process is gone; answering for another %g s", self._lameduck)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._lameduck)
        finally:
            heartbeat.cancel()
            if self._service is not None:
                await self._service.stop()
            self._report(0)
            self._link.close()
            # The last report leaves in the next turns of the loop.
            await asyncio.sleep(0)

    async def _handle(self, message: Message) -> None:
        if isinstance(message, Configure):
            await self._configure(message)
        elif isinstance(message, Publish):
            await self._publish(message)
        elif isinstance(message, Exempt) and (service := self._present()) is not None:
            service.exempt(message.addresses)

    async def _configure(self, message: Configure) -> None:
        settings = message.settings.settings()
        self._lameduck = settings.listen.lameduck
        self._on_log_settings(settings.log)
        if self._service is not None:
            await self._answer(message, self._service.reconfigure(settings))
        elif message.table:
            self._unstarted = message, PacketService(settings, shared=True, tally=self._tally)
        else:
            await self._start(message, PacketService(settings, shared=True, tally=self._tally))

    async def _publish(self, message: Publish) -> None:
        service = self._present()
        if service is None:
            return
        if not message.full:
            self._change(service, message)
        else:
            try:
                await service.replace(message.names, message.generation, message.serial, message.since)
                _freeze()
            except TableError as problem:
                log.error("the answer table was not replaced: %s", problem)
        if self._unstarted is not None:
            waiting, self._unstarted = self._unstarted, None
            await self._start(*waiting)
        if message.full:
            # The control process is not ready before its workers are.
            self._report(0)

    def _change(self, service: PacketService, message: Publish) -> None:
        try:
            service.publish(message.names, message.generation, message.serial, full=False, since=message.since)
        except TableError as problem:
            log.error("the answer table was not changed: %s", problem)

    def _present(self) -> PacketService | None:
        """The service, whether it has listeners or is still waiting for its first table."""
        return self._service if self._unstarted is None else self._unstarted[1]

    async def _start(self, message: Configure, service: PacketService) -> None:
        if await self._answer(message, service.start()):
            self._service = service
            _freeze()

    async def _answer(self, message: Configure, change: Awaitable[None]) -> bool:
        """Tell the control process what came of a change."""
        try:
            await change
        except ListenError as error:
            self._link.send(Refused(message.token, error.address, error.transport, error.problem))
            return False
        self._link.send(Listening(message.token))
        return True

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Ask):
            self._report(message.token)
        elif isinstance(message, Publish) and not message.full and not self._unhandled and self._service is not None:
            # Nothing is before it: a change of a name need not wait for a task to wake up.
            self._change(self._service, message)
        else:
            self._unhandled += 1
            self._inbox.put_nowait(message)
            self._link.hold(self._unhandled >= INBOX)

    def _on_lost(self) -> None:
        self._orphaned = True
        self._inbox.put_nowait(None)

    def _on_terminate(self) -> None:
        """The control process gets this signal, too, and decides; without one it ends the waiting."""
        if self._orphaned:
            self._hurry.set()

    async def _beat(self) -> None:
        while True:
            self._report(0)
            await asyncio.sleep(HEARTBEAT)

    def _report(self, token: int) -> None:
        if not self._link.blocked:
            service = self._service
            rows = [] if service is None else self._counted(service).to_plain()
            changed, self._reported = rows != self._reported, rows
            self._link.send(Report(token, 0 if service is None else service.generation, rows if changed else None))

    def _counted(self, service: PacketService) -> Counters:
        counters = service.counters_beside_tally()
        counters["canal_dns_log_dropped_total"][()] = self._lost_lines()
        return counters


def _freeze() -> None:
    """What is there now stays: the garbage collector need not look at it in the middle of a flood."""
    gc.collect()
    gc.freeze()


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have: connections are limited by settings, not by a shell's default of 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
