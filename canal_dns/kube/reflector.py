"""One kind, listed and watched: what the API server has, the view has, whatever happens on the way.

Rules of this file:
- client-go's cycle (tools/cache/reflector.go): list, watch from there, watch again from the last version seen; a new list only
  when the server has forgotten that version, or the watch cannot be made to work;
- lists are paged and always the newest state (resourceVersion ""): one that is older than what is known never comes;
- a list is compared with the view while it comes, and its difference is applied in one step;
- nothing ends `run` but cancellation; after every failure the kind says in words what is wrong, and goes on by itself;
- no stretch of work is longer than `Timing.stretch`: the same loop may be answering DNS.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import NoReturn

from canal_dns.kube import decode, failures
from canal_dns.kube.api import Api, Reply, check
from canal_dns.kube.failures import ApiError
from canal_dns.kube.kinds import Kind
from canal_dns.kube.timing import Backoff, Timing
from canal_dns.mesh.records import Record, Skip
from canal_dns.mesh.view import Key, View
from canal_dns.metrics import Counters

log = logging.getLogger(__name__)

COMPLAINT_INTERVAL = 10.0
"""Seconds between two log lines about events of one kind that cannot be read."""


class Outcome(Enum):
    """What is known of a kind."""

    UNKNOWN = "unknown"
    """It was not read yet."""
    LISTED = "listed"
    """It was read; it stays so, since the last objects count."""
    DENIED = "denied"
    """It may not be read (403)."""
    MISSING = "missing"
    """It is not installed (404)."""


class _BriefError(ApiError):
    """The server ended a watch in good order, but too soon."""


class Reflector:
    """One kind of the cluster, or of one namespace.

    `told(arrived)` is called after the view has changed, `arrived` = time.monotonic() of the octets; `told(None)` when
    `outcome` is another one than before.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        view: View,
        counters: Counters,
        told: Callable[[float | None], None],
        *,
        namespace: str = "",
        selector: str = "",
        timing: Timing,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.outcome = Outcome.UNKNOWN
        self.problem: ApiError | None = None
        """What is wrong now."""
        self.since = 0.0
        """Since when, in seconds since 1970."""
        self.refused = 0.0, 0.0
        """When (monotonic) it was said first, and last, that it may not be read or is not there."""
        self.last_event = 0.0
        """Seconds since 1970: the last list, event or bookmark."""
        self._api = api
        self._view = view
        self._counters = counters
        self._told = told
        self._selector = selector
        self._timing = timing
        self._backoff = Backoff(timing.pauses, random.random)
        self._version = kind.versions[0]
        self._objects = decode.Objects(kind, self._version)
        self._from = ""
        """resourceVersion to watch from; "": a list is needed."""
        self._reason = ""
        """Why the list is needed again."""
        self._page = timing.page
        self._ask_bookmarks = True
        self._expect_bookmarks = True
        self._heard = False
        """Something was heard since the last list."""
        self._spoke = False
        """Something was heard in this watch."""
        self._was_away = False
        self._listed = 0.0
        self._failures = 0
        self._complained = -COMPLAINT_INTERVAL
        self._yielded = 0.0
        self._wake = asyncio.Event()

    @property
    def title(self) -> str:
        """As `kubectl` names it, for messages."""
        return self.kind.title + (f" in {self.namespace}" if self.namespace else "")

    @property
    def selector(self) -> str:
        """labelSelector of what is read."""
        return self._selector

    def retarget(self, selector: str) -> None:
        """Read by another selector from the next list on, which the next `run` begins with."""
        self._selector, self._from, self._reason = selector, "", "selector"

    def refuse(self, problem: ApiError) -> None:
        """Take note of a failure that `list` raised."""
        self._failed(problem, False, 0.0)

    def wake(self) -> None:
        """End a pause: what it waited for may have come. A failure after that is a first one again."""
        self._backoff.reset()
        self._wake.set()

    async def run(self) -> NoReturn:
        """List and watch until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """One list, or one watch to its end, and the pause that has to follow it."""
        self._wake.clear()
        began = time.monotonic()
        watching = bool(self._from)
        try:
            if watching and self._was_away and await self._restored():
                self._from, self._reason, watching = "", "restored", False
            if watching:
                await self._watch()
            else:
                await self.list()
            return
        except ApiError as problem:
            pause = self._failed(problem, watching, time.monotonic() - began)
        except Exception:
            # A mistake of ours must not end the watch: everything is read again.
            log.exception("%s: read again after an error in canal-dns", self.title)
            self._from, self._reason = "", "errors"
            pause = self._backoff.pause(time.monotonic())
        if pause:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    # Lists

    async def list(self) -> None:
        """Make the view hold what the server has. Raises ApiError, leaving the view as it was."""
        others = [version for version in self.kind.versions if version != self._version]
        restarts = 1
        while True:
            try:
                return await self._list_once()
            except ApiError as problem:
                if problem.code == "404" and others:
                    self._version = others.pop(0)
                    self._objects = decode.Objects(self.kind, self._version)
                elif problem.reason == "too_much" or (problem.reason and restarts):
                    # The list was compacted away between two parts of it.
                    restarts -= bool(problem.reason != "too_much")
                else:
                    if problem.code == "404":
                        self._version = self.kind.versions[0]
                        self._objects = decode.Objects(self.kind, self._version)
                    raise

    async def _list_once(self) -> None:
        began = time.monotonic()
        kind = self.kind.name
        seen: set[Key] = set()
        other: dict[Key, Record | Skip] = {}
        coming: asyncio.Task[tuple[decode.Page, float]] | None = asyncio.create_task(self._part(""))
        try:
            while coming is not None:
                page, arrived = await coming
                # The server prepares the next part while this one is read.
                coming = asyncio.create_task(self._part(page.token)) if page.token else None
                self._yielded = time.monotonic()
                for item in page.items:
                    try:
                        _, record = self._objects.read(item)
                    except decode.MalformedError as problem:
                        raise ApiError("decode", str(problem)) from None
                    key = self._usable(record)
                    if record is not None and key is not None:
                        seen.add(key)
                        if self._view.find(kind, key) == record:
                            other.pop(key, None)
                        else:
                            other[key] = record
                    await self._breathe()
                if self.outcome is Outcome.UNKNOWN:
                    # What was read stays: the collector would go through all of it again and again, for 0.1 s at a time.
                    gc.freeze()
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        if not page.version:
            raise ApiError("decode", "a list without a resourceVersion")
        first = self.outcome is not Outcome.LISTED
        if not first:
            self._counters["canal_dns_source_relists_total"][(kind, self._reason or "errors")] += 1
        changed = False
        for record in other.values():
            changed |= self._apply(record)
            if self.outcome is Outcome.UNKNOWN:
                # Nobody reads the view yet.
                await self._breathe()
        for namespace, name in self._view.keys(kind):
            if (namespace, name) not in seen and self.namespace in ("", namespace):
                changed |= self._view.delete(kind, namespace, name)
        self._from = page.version
        self._was_away = False
        self._heard = False
        self._listed = time.monotonic()
        self.outcome = Outcome.LISTED
        self.last_event = time.time()
        self._well()
        log.info("%s: %d objects listed in %.0f ms", self.title, len(seen), (time.monotonic() - began) * 1000)
        if first or changed:
            self._told(None if first else arrived)

    async def _restored(self) -> bool:
        """Is the server's newest version older than the one that we know? Then etcd was restored from a backup: a watch from
        ours would be silent until the server comes to it once more, and never tell what was undone. Raises ApiError."""
        page, _ = await self._part("", 1)
        self._was_away = False
        # Versions may be compared as numbers (KEP-5504); where they are none, silence tells.
        known = page.version.isdecimal() and self._from.isdecimal()
        return known and int(page.version) < int(self._from)

    async def _part(self, token: str, limit: int = 0) -> tuple[decode.Page, float]:
        """One part of the list, and when its end arrived. Raises ApiError."""
        query = {"limit": str(limit or self._page)} | ({"continue": token} if token else {})
        parts: list[bytes] = []
        size = 0
        async with self._get(query, self._timing.list_silence) as reply:
            await check(reply)
            async for chunk in reply.chunks():
                parts.append(chunk)
                size += len(chunk)
                if size > self._timing.page_octets:
                    smaller, self._page = self._page > 1, max(1, self._page // 8)
                    raise ApiError("decode", f"more than {size} octets at once", reason="too_much" if smaller else "")
        arrived = time.monotonic()
        try:
            return decode.page(b"".join(parts)), arrived
        except decode.MalformedError as problem:
            raise ApiError("decode", str(problem)) from None

    # Watches

    async def _watch(self) -> None:
        """Follow one watch to its end. Raises ApiError, also when it ended too soon."""
        timing = self._timing
        longest, silence = timing.watch[1], timing.silence
        if not (self._ask_bookmarks and self._expect_bookmarks):
            silence = timing.silence_without_bookmarks
            longest = min(longest, silence - 15.0)
        seconds = random.uniform(min(timing.watch[0], longest), longest)  # noqa: S311
        query = {"watch": "true", "resourceVersion": self._from, "timeoutSeconds": str(max(1, round(seconds)))}
        if self._ask_bookmarks:
            query["allowWatchBookmarks"] = "true"
        began = time.monotonic()
        self._spoke = False
        async with self._get(query, silence) as reply:
            await check(reply)
            self._well()
            try:
                lines = decode.Lines()
                async for chunk in reply.chunks():
                    await self._take(lines, chunk)
                if lines.rest:
                    # A Status that is not chunked has no line end either.
                    await self._take(lines, b"\n")
            finally:
                self._backoff.went_well(time.monotonic() - began)
        if time.monotonic() - began < timing.brief:
            raise _BriefError("cut", "the watch ended as soon as it began")

    async def _take(self, lines: decode.Lines, chunk: bytes) -> None:
        """Apply what arrived."""
        arrived = self._yielded = time.monotonic()
        changed = False
        try:
            try:
                whole = lines.feed(chunk)
            except decode.MalformedError as problem:
                raise ApiError("decode", str(problem), reason="line_too_long") from None
            for line in whole:
                changed |= self._event(line)
                if time.monotonic() - self._yielded > self._timing.stretch:
                    if changed:
                        changed = False
                        self._told(arrived)
                    await self._breathe()
        finally:
            if changed:
                self._told(arrived)

    def _event(self, line: bytes) -> bool:
        """Apply one event. True if the view changed. Raises ApiError for an ERROR."""
        kind = self.kind.name
        version, changed = "", False
        try:
            event = decode.event(line)
            match event.type:
                case "ADDED" | "MODIFIED":
                    version, record = self._objects.read(event.object)
                    if self._usable(record) is not None and record is not None:
                        changed = self._apply(record)
                case "DELETED":
                    version, namespace, name = self._objects.name(event.object)
                    changed = self._view.delete(kind, namespace, name)
                case "BOOKMARK":
                    version = self._objects.version(event.object)
                    if not version:
                        raise decode.MalformedError("a bookmark without a version")
                    self._expect_bookmarks = True
                case "ERROR":
                    self._count_event("ERROR")
                    raise failures.from_event(event.object)
                case other:
                    self._count_event("other")
                    self._complain(f"an event of type {other[:40]!r}")
                    return False
        except decode.MalformedError as problem:
            self._counters["canal_dns_source_errors_total"][(kind, "decode")] += 1
            self._complain(str(problem))
            return False
        self._count_event(event.type)
        if version:
            self._from = version
        self._heard = self._spoke = True
        self._failures = 0
        self.last_event = time.time()
        return changed

    # Both

    def _get(self, query: Mapping[str, str], silence: float) -> AbstractAsyncContextManager[Reply]:
        selected = {**query, "labelSelector": self._selector} if self._selector else query
        return self._api.get(self.kind.path(self._version, self.namespace), selected, silence=silence)

    def _usable(self, record: Record | Skip | None) -> Key | None:
        """The place of an object in the view; None for what has none: another kind, an object without a name."""
        if record is None:
            self._counters["canal_dns_source_skipped_objects_total"][(self.kind.name, "OtherKind")] += 1
            self._complain("an object of another kind")
            return None
        if not record.name:
            self._counters["canal_dns_source_skipped_objects_total"][(self.kind.name, "Invalid")] += 1
            self._complain("an object without a name")
            return None
        return record.namespace, record.name

    def _apply(self, record: Record | Skip) -> bool:
        changed = self._view.apply(record)
        if changed and isinstance(record, Skip):
            self._counters["canal_dns_source_skipped_objects_total"][(self.kind.name, record.reason)] += 1
            self._complain(record.text)
        return changed

    async def _breathe(self) -> None:
        """Let others have the loop, if it was ours for long."""
        if time.monotonic() - self._yielded > self._timing.stretch:
            await asyncio.sleep(0)
            self._yielded = time.monotonic()

    def _count_event(self, name: str) -> None:
        self._counters["canal_dns_source_events_total"][(self.kind.name, name)] += 1

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAINT_INTERVAL:
            self._complained = now
            log.warning("%s: not used: %s", self.title, _printable(text))

    def _well(self) -> None:
        if self.problem is not None:
            log.info("%s: the API server gives them again", self.title)
            self.problem = None

    def _failed(self, problem: ApiError, watching: bool, lasted: float) -> float:
        """Remember what went wrong; how many seconds to wait."""
        timing = self._timing
        self._counters["canal_dns_source_errors_total"][(self.kind.name, problem.code)] += 1
        # Who is back at once may be another one than before, too.
        self._was_away |= problem.code in ("connect", "cut", "timeout") and not isinstance(problem, _BriefError)
        pause = self._backoff.pause(time.monotonic()) if not self._at_once(problem, watching, lasted) else 0.0
        if problem.reason:
            self._from, self._reason = "", problem.reason
        elif problem.code in ("403", "404") and (problem.code == "403" or self.kind.optional):
            self._from, self._reason = "", "available"
            again = self.problem is not None and self.problem.code == problem.code
            self.refused = (self.refused[0] if again else time.monotonic()), time.monotonic()
            if self.outcome is not Outcome.LISTED:
                outcome = Outcome.DENIED if problem.code == "403" else Outcome.MISSING
                before, self.outcome = self.outcome, outcome
                if before is not outcome:
                    self._told(None)
            pause = timing.retry * random.uniform(1.0, 1.5)  # noqa: S311
        elif problem.retry_after is not None:
            pause = min(problem.retry_after, timing.longest_wish) * random.uniform(1.0, 1.2)  # noqa: S311
        elif watching and problem.code == "timeout" and not self._spoke:
            # Either it sends no bookmarks, or our version is one that it will reach some day only (etcd was restored).
            self._expect_bookmarks = False
            self._from, self._reason = "", "silence"
        elif "RequestWatchProgress" in problem.text:
            # etcd before 3.5.13 under a newer API server cannot serve bookmarks.
            self._ask_bookmarks = False
        if watching and problem.code.isdecimal() and problem.code not in ("401", "429"):
            self._failures += 1
            if self._failures >= timing.failures:
                self._failures, self._from, self._reason = 0, "", "errors"
        if pause:
            if self.problem is None or self.problem.text != problem.text:
                log.warning("%s: %s", self.title, _printable(problem.text))
            if self.problem is None or self.problem.code != problem.code:
                self.since = time.time()
            # Only its words: what was read when it happened need not stay as long as the trouble does.
            problem.__traceback__ = problem.__context__ = None
            self.problem = problem
        return pause

    def _at_once(self, problem: ApiError, watching: bool, lasted: float) -> bool:
        """May the next request follow without a pause? Not if this failure is one of several in a row."""
        if problem.reason:
            # For the same reason a list was read a moment ago, and nothing has been heard since: a list does not help.
            again = problem.reason == self._reason and time.monotonic() - self._listed <= 10 * self._timing.brief
            return watching and (self._heard or not again)
        return watching and problem.code in ("cut", "timeout") and lasted >= self._timing.brief


def _printable(text: str) -> str:
    """Other people's words: in the log they stay on one line."""
    return text.encode("unicode_escape").decode("ascii")
