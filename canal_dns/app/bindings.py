"""The answer table follows the objects: feed -> settle -> table delta -> data plane, and the saved table on disk.

Rules of this file:
- nothing is published before the source is synced, except the saved table, from which is answered until then;
- the first changes after a pause cost no time; a flood of events costs a few tables a second, and changes that no answer
  depends on cost none;
- a source that replaces another one comes into force when it is read, and not before;
- what the rule cannot cope with ends nothing: the answers stay what they were, until the objects change.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from canal_dns import __version__
from canal_dns.app import snapshot
from canal_dns.app.feed import Feed
from canal_dns.app.publish import Pace, Publisher
from canal_dns.app.saving import Saver
from canal_dns.metrics import Counters
from canal_dns.server.service import DataPlane
from canal_dns.settings import Settings, SourceSettings

log = logging.getLogger("canal_dns.app")

TABLES_PER_SECOND, TABLES_AT_ONCE = 10.0, 20
"""How often the table changes under a flood of events, and how many changes in a row come without any delay."""

SOURCE_GAUGES = (
    "canal_dns_source_synced",
    "canal_dns_source_available",
    "canal_dns_source_objects",
    "canal_dns_source_last_event_timestamp_seconds",
    "canal_dns_source_broken_files",
)
RETRY = 1.0
"""Seconds at least from a table that could not be made to the next."""
LEFT_BEHIND = 1.0
"""Seconds after which a source that was replaced has ended, and nothing is made of the rules before."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A table that was published."""

    took: float
    since_arrival: float
    """Seconds since the event behind it came, or since its evaluation began."""
    whole: bool
    first: bool


class Bindings:
    """Keeps the table of a data plane equal to the bindings of the source in force."""

    def __init__(self, settings: Settings, plane: DataPlane, counters: Counters, on_first_table: Callable[[], None]) -> None:
        self.feed = Feed(settings.source, settings.binding, counters)
        """The feed in force."""
        self.synced = False
        """A table made of objects was published."""
        self.publisher = Publisher(plane, settings.binding.settle, lambda: int(time.time()))
        self.saver = Saver(settings.snapshot, self._taken, counters, self._is_current)
        self._settings = settings
        self._plane = plane
        self._counters = counters
        self._on_first_table = on_first_table
        self._pace = Pace(TABLES_PER_SECOND, TABLES_AT_ONCE)
        self._incoming: Feed | None = None
        self._feeds_changed = asyncio.Event()
        self._changed = asyncio.Event()
        self._changed_at: float | None = None
        self._whole = True
        self._restored_at: float | None = None
        self._exempt: frozenset[str] = frozenset()

    # -- the saved table ------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Answer from the saved table, if there is one that can be used, until the objects are read."""
        wanted = snapshot.Wanted(
            origin=_origin(self._settings.source),
            cluster_domain=self._settings.zone.cluster_domain,
            gateways=frozenset(map(str, self._settings.binding.gateways)),
            max_age=self._settings.snapshot.max_age,
        )
        restored = self.saver.restore(wanted)
        if restored is not None:
            answers, self._exempt = restored
            self._plane.exempt(self._exempt)
            self.publisher.restore(answers)
            self._restored_at = time.monotonic()

    def _taken(self) -> snapshot.Snapshot | None:
        """What is answered now, to be saved; None before objects were read, or while a whole table is to come: what was saved
        last is worth more."""
        if not self.synced or self._whole:
            return None
        gateways = {name: bound.gateway for name, bound in self.feed.result.bound.items()}
        return snapshot.Snapshot(
            written=time.time(),
            version=__version__,
            # Of the feed in force: another source may be configured, and not read yet.
            origin=_origin(self.feed.source_settings),
            cluster_domain=self._settings.zone.cluster_domain,
            names=snapshot.mapping_of(self.publisher.live, gateways),
            exempt=tuple(sorted(self._exempt)),
        )

    def _is_current(self) -> bool:
        return self.feed.source.is_current()

    # -- objects ----------------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Run the source of the feed that is in force, and of one that will replace it as soon as it is read."""
        running: dict[asyncio.Task[NoReturn], Feed] = {}
        try:
            while True:
                wanted = [feed for feed in (self.feed, self._incoming) if feed is not None]
                for feed in wanted:
                    if feed not in running.values():
                        running[asyncio.create_task(feed.source.run(partial(self._on_change, feed)))] = feed
                for task in [task for task, feed in running.items() if feed not in wanted]:
                    del running[task]
                    task.cancel()
                    asyncio.get_running_loop().call_later(LEFT_BEHIND, _forget)
                    del task
                woken = asyncio.create_task(self._feeds_changed.wait())
                await asyncio.wait({*running, woken}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self._feeds_changed.clear()
                for ended in [task for task in running if task.done()]:
                    await ended
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _on_change(self, feed: Feed, arrived: float | None = None) -> None:
        if feed is self._incoming and feed.source.synced:
            self.feed, self._incoming = feed, None
            self._whole = True
            self._feeds_changed.set()
        if feed is not self.feed:
            return
        if self._changed_at is None:
            self._changed_at = time.monotonic() if arrived is None else arrived
        self._changed.set()

    def feed_for(self, new: Settings) -> Feed | None:
        """What `reconfigure` has to be given: another feed, where these settings need one. Raises ClusterError."""
        old = self._settings
        # Of a cluster only the objects of its own gateways are read.
        other_gateways = new.source.cluster is not None and new.binding.gateways != old.binding.gateways
        return Feed(new.source, new.binding, self._counters) if new.source != old.source or other_gateways else None

    def reconfigure(self, new: Settings, feed: Feed | None) -> None:
        """Take over what has changed in the settings; the old source stays in force until that of `feed` is read."""
        old, self._settings = self._settings, new
        self.publisher.settle = new.binding.settle
        self.saver.reconfigure(new.snapshot)
        if feed is not None:
            self._incoming = feed
            self._feeds_changed.set()
        elif new.binding != old.binding:
            for one in filter(None, (self.feed, self._incoming)):
                # Of other gateways a cluster's feed has read nothing: it goes on under its own rules until it is replaced.
                if one.source_settings.cluster is None or one.settings.gateways == new.binding.gateways:
                    one.rebind(new.binding)
            self._whole = True
            asyncio.get_running_loop().call_later(LEFT_BEHIND, _forget)
        self._on_change(self.feed)

    # -- tables -----------------------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """One step per change, and one whenever something that waits becomes due."""
        while True:
            due = [at for at in (self.publisher.next_due(), self.feed.next_due()) if at is not None]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, min(due) - time.monotonic()) if due else None)
            self._changed.clear()
            began = time.monotonic()
            try:
                step = self._step(began)
            except Exception:
                # A mistake of ours that one object brings out, which anybody may have written: to end, and to fail at it again
                # after the start, would take the names of all others with it.
                log.exception("the rule failed, answers stay what they are until objects change")
                self._counters["canal_dns_rule_failures_total"][()] += 1
                self.feed.rebind(self.feed.settings)
                self._whole = True
                await asyncio.sleep(RETRY)
                continue
            # What was sent leaves with the end of this turn of the loop; whatever else there is to do comes after it.
            await asyncio.sleep(0)
            if step is not None:
                self._account(step)
                await asyncio.sleep(self._pace.pause(time.monotonic()))
            else:
                # Changes that no answer depends on may take half of the time at most.
                await asyncio.sleep(time.monotonic() - began)

    def _step(self, now: float) -> _Step | None:
        """Evaluate what has changed and publish what need not wait."""
        if not self.feed.source.synced:
            return None
        since, self._changed_at = self._changed_at, None
        began = time.perf_counter()
        changes = self.feed.refresh(now)
        first, self.synced = not self.synced, True
        self._publish_exempt()
        whole, self._whole = self._whole, False
        if whole:
            self.publisher.replace(self.feed.result.bound)
        elif not self.publisher.update(changes, now, since) | self.publisher.settled(now):
            return None
        self.saver.changed()
        took = time.perf_counter() - began
        return _Step(took, took if since is None else max(took, time.monotonic() - since), whole, first)

    def _account(self, step: _Step) -> None:
        """Tell of a table that was published."""
        self._counters.histograms["canal_dns_table_publish_duration_seconds"][()].observe(step.since_arrival)
        self._counters["canal_dns_table_last_change_timestamp_seconds"][()] = time.time()
        settling = len(self.publisher.settling(time.monotonic()))
        # To count them takes as long as to bind many a name: done for whole tables only.
        skipped = f", {len(self.feed.result.skipped)} meant by a VirtualService and skipped" if step.whole else ""
        log.info(
            "published generation %d: %d bound, %d settling%s, %.1f ms",
            self.publisher.generation,
            len(self.publisher.live),
            settling,
            skipped,
            step.took * 1000,
        )
        if step.first:
            self._on_first_table()
            # What was read stays for long: the garbage collector need not look at it again and again.
            gc.freeze()

    def _publish_exempt(self) -> None:
        """Tell the data plane who asks for the gateways themselves: a VIP would lead their requests back to them."""
        exempt = frozenset(address for gateway in self.feed.result.gateways for address in gateway.endpoints)
        if exempt != self._exempt:
            self._exempt = exempt
            self._plane.exempt(exempt)
            self.saver.changed()

    # -- what others ask --------------------------------------------------------------------------------------------------

    @property
    def from_saved_table(self) -> bool:
        """Answers come from the saved table: nothing was read yet."""
        return self._restored_at is not None and not self.synced

    def waiting(self) -> list[str]:
        """Why there are no answers to be relied on yet, one line each; empty once there are."""
        if self.synced:
            return []
        ready_after = self._settings.snapshot.ready_after
        if self._restored_at is not None and time.monotonic() - self._restored_at >= ready_after:
            # The objects could not be read in time, and the saved table stands for them.
            return []
        source = self.feed.source
        return [f"{source.place} was not read yet; {self.meanwhile}", *source.waiting()]

    @property
    def meanwhile(self) -> str:
        """What clients get before the objects are read."""
        return "the saved table answers" if self.from_saved_table else "every query is forwarded"

    def to_plain(self) -> dict[str, Any]:
        """What `/bindings` shows: the shape of `table -o json`, and what only a running server knows."""
        source = self.feed.source
        settling = self.publisher.settling(time.monotonic())
        return {
            **self.feed.to_plain(),
            "clusterDomain": self._settings.zone.cluster_domain,
            "generation": self.publisher.generation,
            "settling": {name: round(left, 3) for name, left in sorted(settling.items())},
            "source": {
                "place": source.place,
                "synced": source.synced,
                "waiting": source.waiting(),
                "problems": source.problems(),
                "skips": [str(skip) for skip in source.skips],
                **source.to_plain(),
            },
            "snapshot": {"inUse": self.from_saved_table, "names": len(self.publisher.live)},
        }

    def observe(self, counters: Counters) -> None:
        """Bring the gauges of bindings and source up to date."""
        counters["canal_dns_table_generation"][()] = self.publisher.generation
        counters["canal_dns_bound_names"][()] = len(self.publisher.live)
        counters["canal_dns_snapshot_in_use"][()] = int(self.from_saved_table)
        skipped = counters["canal_dns_skipped_names"]
        skipped.clear()
        for reason, count in self.feed.reasons().items():
            skipped[(reason,)] = count
        problems = counters["canal_dns_problems"]
        problems.clear()
        for problem in self.feed.result.problems:
            problems[(problem.reason.value,)] += 1
        for gauge in SOURCE_GAUGES:
            # Another source may have been here before, with other kinds.
            counters[gauge].clear()
        self.feed.source.observe(counters)


def _forget() -> None:
    """Give back what was frozen and is needed no longer: two tenths of a second for 20,000 Services, once per reload."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _origin(source: SourceSettings) -> str:
    """What the saved table of a source goes by: known before anybody was asked, and the same after a restart."""
    if source.cluster is None:
        return f"manifests {source.manifests}"
    if not source.cluster.kubeconfig:
        return "the cluster of the pod"
    return f"kubeconfig {source.cluster.kubeconfig} {source.cluster.context}".rstrip()
