"""The saved answer table of a running server: read once at the start, written off the event loop: after each change, and from
time to time while it is known to be still true, since its age counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from canal_dns.app import snapshot
from canal_dns.dns.table import Addresses
from canal_dns.errors import SnapshotError
from canal_dns.metrics import Counters
from canal_dns.settings import SnapshotSettings

log = logging.getLogger("canal_dns.app")

INTERVAL = 1.0
"""Seconds between two writes at least."""
RETRY = 30.0
"""Seconds after a write that failed."""
REFRESH = 1 / 24
"""A table that does not change is written again after this share of the age at which it would not be used any more."""


class Saver:
    """Writes what `take` gives to the file of the settings; without a file it does nothing."""

    def __init__(
        self,
        settings: SnapshotSettings,
        take: Callable[[], snapshot.Snapshot | None],
        counters: Counters,
        is_current: Callable[[], bool],
    ) -> None:
        """`take` gives None while there is nothing that a restart should answer with; `is_current()`: what was saved after the
        last change is true now."""
        self._path = settings.path
        self._refresh = settings.max_age * REFRESH
        self._is_current = is_current
        self._take = take
        self._counters = counters
        self._due = asyncio.Event()
        self._complaint = ""

    def reconfigure(self, settings: SnapshotSettings) -> None:
        """Write somewhere else from now on; the file there must hold what holds now."""
        self._refresh = settings.max_age * REFRESH
        if settings.path != self._path:
            self._path, self._complaint = settings.path, ""
            self._due.set()

    def changed(self) -> None:
        """The table is another one than the last that was saved."""
        self._due.set()

    def restore(self, wanted: snapshot.Wanted) -> tuple[dict[str, Addresses], frozenset[str]] | None:
        """The answers that were saved last, and whom they are not for; None, and the reason in the log, where there are none
        to be used. Blocks."""
        if not self._path:
            return None
        path, now = Path(self._path), time.time()
        try:
            saved = snapshot.read(path)
            if saved is None:
                log.info("no saved answer table at %s yet", path)
                return None
            answers = snapshot.usable(saved, path, wanted, now)
        except SnapshotError as problem:
            log.warning("the saved answer table is not used: %s", problem)
            return None
        log.info(
            "answering %d names from %s, %s, until the objects are read", len(answers), path, snapshot.age_text(saved, now)
        )
        return answers, frozenset(saved.exempt)

    async def run(self) -> NoReturn:
        """Save after each change, and what has not changed for long, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._refresh):
                    await self._due.wait()
            except TimeoutError:
                if not self._is_current():
                    continue
                self._due.set()
            await asyncio.sleep(INTERVAL if await self.save() else RETRY)

    async def save(self) -> bool:
        """Write now if something has changed. False: it failed, and what has changed is still to be saved."""
        if not self._due.is_set() or not self._path:
            self._due.clear()
            return True
        self._due.clear()
        path, taken = self._path, self._take()
        if taken is None:
            return True
        writing = asyncio.ensure_future(asyncio.to_thread(snapshot.write, Path(path), taken))
        try:
            # A thread cannot be stopped: the next writer waits for it, or two would share a draft.
            await asyncio.shield(writing)
        except SnapshotError as problem:
            self._counters["canal_dns_snapshot_writes_total"][("error",)] += 1
            if str(problem) != self._complaint:
                log.error("the answer table was not saved: %s", problem)
            self._complaint = str(problem)
            self._due.set()
            return False
        except asyncio.CancelledError:
            with contextlib.suppress(SnapshotError):
                await writing
            raise
        self._complaint = ""
        self._counters["canal_dns_snapshot_writes_total"][("ok",)] += 1
        self._counters["canal_dns_snapshot_last_write_timestamp_seconds"][()] = time.time()
        return True
