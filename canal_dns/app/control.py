"""The control process: it joins the rooms, publishes tables, answers the admin endpoints, and ends in order.

Root tasks, each named, each running for ever; the end of any one ends the process:
    source      objects into the view
    publish     view -> rule -> settle -> table delta -> data plane
    config      the file's changes (and SIGHUP) -> settings -> the same objects, reconfigured
    data plane  worker processes, or the one PacketService of `workers: 0`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import platform
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NoReturn

from canal_dns import __version__
from canal_dns.admin import Admin, Endpoints
from canal_dns.app import cpus, loop, worker
from canal_dns.app.config import Configuration
from canal_dns.app.feed import Feed
from canal_dns.app.logs import Logs
from canal_dns.app.publish import Publisher
from canal_dns.errors import CanalError, ConfigError
from canal_dns.kube.files import Signature
from canal_dns.metrics import Counters, merge
from canal_dns.server import batch
from canal_dns.server.service import DataPlane, PacketService, stop_time
from canal_dns.server.workers import WorkerPool
from canal_dns.settings import Endpoint, LogFormat, LogSettings, Settings

log = logging.getLogger("canal_dns.app")

QUIET = 0.05
"""Seconds between two publications at least: a burst of events costs a few table changes, the first one none of them."""
CONFIG_POLL = 0.5
"""Seconds between two looks at the configuration file."""
STOP_MARGIN = 2.0
"""Seconds beyond what the data plane allows itself for its end."""


def data_plane(settings: Settings) -> DataPlane:
    """Worker processes, or everything in this one."""
    workers = settings.listen.workers
    return WorkerPool(settings, workers, worker.argv) if workers else PacketService(settings)


async def serve(config: Configuration, say: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT. Gives the exit status. Raises ListenError, ConfigError.

    `say`: writes a line for people; with `log.format: json` these lines go to the log instead, which programs read.
    """
    signature = config.signature()
    settings = config.load()
    logs = Logs()
    logs.start(settings.log)
    announce = log.info if settings.log.format is LogFormat.JSON else say
    control = Control(settings, config, announce=announce, on_log_settings=logs.configure, signature=signature)
    try:
        return await control.run()
    finally:
        logs.stop()


def _resolved(settings: Settings) -> Settings:
    """`workers: auto` as the number that it is on this machine."""
    if settings.listen.workers is not None:
        return settings
    return replace(settings, listen=replace(settings.listen, workers=cpus.usable()))


def _refuse_overlap(key: str, address: Endpoint, present: Iterable[Endpoint | None]) -> None:
    """Raise ConfigError where a new address cannot be bound beside one that is still in use."""
    for old in present:
        if (
            old is not None
            and old.port == address.port
            and old.is_ipv6 == address.is_ipv6
            and (old.is_wildcard or address.is_wildcard)
        ):
            raise ConfigError(key, str(address), f"it overlaps {old}, which is in use: this change needs a restart")


class Control:
    """One running canal-dns."""

    def __init__(
        self,
        settings: Settings,
        config: Configuration,
        *,
        announce: Callable[[str], None],
        on_first_table: Callable[[], None] | None = None,
        on_log_settings: Callable[[LogSettings], None] = lambda _: None,
        signature: Signature | None = None,
        daemon: bool = True,
    ) -> None:
        """`signature`: of the file that `settings` came from. `daemon`: SIGHUP reloads; without, it ends the process."""
        self.settings = settings = _resolved(settings)
        self.plane = data_plane(settings)
        self.feed = Feed(settings.source, settings.binding)
        self.publisher = Publisher(self.plane, settings.binding.settle, lambda: int(time.time()))
        self.counters = Counters()
        self._config = config
        self._announce = announce
        self._on_first_table = on_first_table or self._announce_bindings
        self._on_log_settings = on_log_settings
        self._admin: Admin | None = None
        self._changed = asyncio.Event()
        self._changed_at: float | None = None
        self._reload = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopping = False
        self._whole = True
        self._signature = signature
        self._daemon = daemon
        self._incoming: Feed | None = None
        self._feeds_changed = asyncio.Event()
        for result in ("ok", "error"):
            self.counters["canal_dns_config_reloads_total"][(result,)] = 0

    # -- the life of the process ------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start everything, run until told to stop or until a root task ends, stop in order. Gives the exit status."""
        for warning in self.settings.warnings:
            log.warning("%s", warning)
        self._handle_signals()
        tasks: set[asyncio.Task[None]] = set()
        failed = False
        try:
            if not await self._started():
                return 0
            self._admin = await self._start_admin(self.settings.health.admin)
            self._note_load()
            self._announce_listening()
            tasks = {
                asyncio.create_task(self._follow_source(), name="source"),
                asyncio.create_task(self._publish(), name="publish"),
                asyncio.create_task(self._follow_config(), name="config"),
                asyncio.create_task(self.plane.failed(), name="data plane"),
            }
            failed = await self._until_told(tasks)
            if not failed:
                await self._lameduck()
        finally:
            self._stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close()
        log.info("stopped")
        return 1 if failed else 0

    async def _started(self) -> bool:
        """Start the data plane; False when told to stop meanwhile. Raises ListenError."""
        starting = asyncio.create_task(self.plane.start())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        await starting
        return True

    async def _until_told(self, tasks: set[asyncio.Task[None]]) -> bool:
        """Wait for a signal (False) or for the end of a root task (True), which is a failure by definition."""
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        done, _ = await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in done - {stop}:
            problem = task.exception()
            expected = problem is None or isinstance(problem, CanalError)
            log.error("%s: %s", task.get_name(), problem or "ended", exc_info=None if expected else problem)
        return bool(done - {stop})

    async def _lameduck(self) -> None:
        """Not ready any more, but still answering: conntrack keeps UDP clients pinned to a pod that goes away."""
        self._stopping = True
        seconds = self.settings.listen.lameduck
        if seconds and not self._hurry.is_set():
            log.info("stopping: not ready any more, answering for another %g s", seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), seconds)

    async def _close(self) -> None:
        try:
            await asyncio.wait_for(self.plane.stop(), stop_time(self.settings) + STOP_MARGIN)
        except TimeoutError:
            log.warning("the listeners did not end in time: some queries may be unanswered")
        if self._admin is not None:
            await self._admin.close()

    def _handle_signals(self) -> None:
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGTERM, self._on_terminate)
        running.add_signal_handler(signal.SIGINT, self.stop)
        running.add_signal_handler(signal.SIGHUP, self._reload.set if self._daemon else self.stop)

    def _on_terminate(self) -> None:
        """The first one begins the lameduck, the second one ends it."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def stop(self) -> None:
        """End without a lameduck: a person at a terminal does not want to wait for conntrack."""
        self._hurry.set()
        self._stop.set()

    # -- objects -> table ---------------------------------------------------------------------------------------------

    async def _follow_source(self) -> None:
        """Run the source of the feed that is in force, and of one that will replace it as soon as it is read."""
        running: dict[asyncio.Task[NoReturn], Feed] = {}
        try:
            while True:
                wanted = [feed for feed in (self.feed, self._incoming) if feed is not None]
                for task in [task for task, feed in running.items() if feed not in wanted]:
                    del running[task]
                    task.cancel()
                for feed in wanted:
                    if feed not in running.values():
                        running[asyncio.create_task(feed.source.run(partial(self._on_change, feed)))] = feed
                woken = asyncio.create_task(self._feeds_changed.wait())
                done, _ = await asyncio.wait({*running, woken}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self._feeds_changed.clear()
                for task in running.keys() & done:
                    await task
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _on_change(self, feed: Feed) -> None:
        if feed is self._incoming and feed.source.synced:
            self.feed, self._incoming = feed, None
            self._whole = True
            self._feeds_changed.set()
        if feed is not self.feed:
            return
        if self._changed_at is None:
            self._changed_at = asyncio.get_running_loop().time()
        self._changed.set()

    async def _publish(self) -> None:
        """One step per change, and one whenever something that waits becomes due."""
        clock = asyncio.get_running_loop().time
        while True:
            due = [at for at in (self.publisher.next_due(), self.feed.next_due()) if at is not None]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, min(due) - clock()) if due else None)
            self._changed.clear()
            self.step(clock())
            await asyncio.sleep(QUIET)

    def step(self, now: float) -> None:
        """Evaluate what has changed and publish what need not wait."""
        if not self.feed.source.synced:
            return
        since, self._changed_at = self._changed_at, None
        began = time.perf_counter()
        changes = self.feed.refresh(now)
        first = self.publisher.generation == 0
        if self._whole:
            self._whole = False
            self.publisher.replace(self.feed.result.bound)
            published = True
        else:
            published = self.publisher.update(changes, now)
        if not (self.publisher.settled(now) or published):
            return
        took = time.perf_counter() - began
        self.counters.histograms["canal_dns_table_publish_duration_seconds"][()].observe(
            took if since is None else max(took, now - since + took)
        )
        self.counters["canal_dns_table_last_change_timestamp_seconds"][()] = time.time()
        log.info(
            "published generation %d: %d bound, %d settling, %d meant by a VirtualService and skipped, %.1f ms",
            self.publisher.generation,
            self.publisher.live,
            len(self.publisher.settling(now)),
            len(self.feed.result.skipped),
            took * 1000,
        )
        if first:
            self._on_first_table()

    # -- configuration --------------------------------------------------------------------------------------------------

    async def _follow_config(self) -> None:
        """Reload on SIGHUP and when the file changes; a bad file is refused and what runs stays as it is."""
        while True:
            try:
                await asyncio.wait_for(self._reload.wait(), CONFIG_POLL)
            except TimeoutError:
                if self._config.signature() in (self._signature, None):
                    continue
            self._reload.clear()
            # Taken before the file is read: a change that comes meanwhile is seen as one.
            self._signature = self._config.signature()
            await self.reload()

    async def reload(self) -> None:
        """Load the configuration and take it over, or say why not."""
        try:
            settings = _resolved(await asyncio.to_thread(self._config.load))
            changed = [
                part.name for part in fields(Settings) if getattr(settings, part.name) != getattr(self.settings, part.name)
            ]
            await self._apply(settings)
        except CanalError as problem:
            self.counters["canal_dns_config_reloads_total"][("error",)] += 1
            log.error("the configuration was not taken over, the old one stays: %s", problem)
            return
        self._note_load()
        self.counters["canal_dns_config_reloads_total"][("ok",)] += 1
        log.info("the configuration was loaded again; changed: %s", ", ".join(changed) or "nothing")
        for warning in settings.warnings:
            log.warning("%s", warning)

    def _note_load(self) -> None:
        self.counters["canal_dns_config_last_reload_success_timestamp_seconds"][()] = time.time()

    async def _apply(self, new: Settings) -> None:
        """Change what differs. Raises ListenError, ConfigError; then nothing has changed."""
        old, admin = self.settings, self._admin
        if (old.listen.workers == 0) != (new.listen.workers == 0):
            raise ConfigError("workers", new.listen.workers, "a change between 0 and worker processes needs a restart")
        if new.source != old.source and new.zone.cluster_domain != old.zone.cluster_domain:
            raise ConfigError(
                "clusterDomain", new.zone.cluster_domain, "it cannot change together with `source`: one, then the other"
            )
        for address in new.listen.addresses:
            if address not in old.listen.addresses:
                _refuse_overlap("listen", address, old.listen.addresses)
        if new.health.admin is not None and new.health != old.health:
            _refuse_overlap("admin", new.health.admin, (old.health.admin,))
        if new.health != old.health:
            admin = await self._start_admin(new.health.admin)
        try:
            await self.plane.reconfigure(new)
        except CanalError:
            if admin is not None and admin is not self._admin:
                await admin.close()
            raise
        if self._admin is not None and self._admin is not admin:
            await self._admin.close()
        self._admin = admin
        self.settings = new
        self._on_log_settings(new.log)
        self.publisher.settle = new.binding.settle
        if new.source != old.source:
            # The old feed stays in force until the new source is read.
            self._incoming = Feed(new.source, new.binding)
            self._feeds_changed.set()
        elif new.binding != old.binding:
            if self._incoming is not None:
                self._incoming.rebind(new.binding)
            self.feed.rebind(new.binding)
            self._whole = True
        self._on_change(self.feed)

    # -- what others ask --------------------------------------------------------------------------------------------------

    async def _start_admin(self, address: Endpoint | None) -> Admin | None:
        """Raises ListenError."""
        if address is None:
            return None
        admin = Admin(
            address,
            Endpoints(ready=self.not_ready, metrics=self.all_counters, bindings=lambda: json.dumps(self.bindings()).encode()),
        )
        await admin.start()
        return admin

    @property
    def admin_address(self) -> Endpoint | None:
        """Where the admin endpoints listen, with the port that the kernel chose for 0; None: nowhere."""
        return self._admin.address if self._admin else None

    def not_ready(self) -> list[str]:
        """Why `/ready` says 503; empty: it says 200."""
        reasons = []
        if self._stopping:
            reasons.append("stopping")
        if self.publisher.generation == 0:
            reasons.append(f"source: {self.settings.source.manifests} was not read yet; every query is forwarded")
        if not self.plane.healthy():
            reasons.append("listeners: some do not answer")
        return reasons

    def bindings(self) -> dict[str, Any]:
        """What `/bindings` shows: the shape of `table -o json`, and what only a running server knows."""
        now = asyncio.get_running_loop().time()
        source = self.feed.source
        return {
            **self.feed.to_plain(),
            "clusterDomain": self.settings.zone.cluster_domain,
            "generation": self.publisher.generation,
            "settling": {name: round(left, 3) for name, left in sorted(self.publisher.settling(now).items())},
            "source": {
                "manifests": self.settings.source.manifests,
                "synced": source.synced,
                "broken": [str(problem) for problem in source.broken],
                "skips": [str(skip) for skip in source.skips],
            },
        }

    async def all_counters(self) -> Counters:
        """The counters of every process, with the gauges of this one brought up to date."""
        own, source = self.counters, self.feed.source
        own["canal_dns_table_generation"][()] = self.publisher.generation
        own["canal_dns_bound_names"][()] = self.publisher.live
        skipped = own["canal_dns_skipped_names"]
        skipped.clear()
        for reason, count in self.feed.reasons().items():
            skipped[(reason,)] = count
        own["canal_dns_source_synced"][()] = int(source.synced)
        own["canal_dns_source_broken_files"][()] = len(source.broken)
        objects = own["canal_dns_source_objects"]
        objects.clear()
        for kind, count in source.counts.items():
            objects[(kind,)] = count
        for labels, count in source.skipped_total.items():
            own["canal_dns_source_skipped_objects_total"][labels] = count
        own["canal_dns_ready"][()] = int(not self.not_ready())
        versions = (__version__, platform.python_version(), loop.NAME, batch.IMPLEMENTATION)
        own["canal_dns_build_info"][versions] = 1
        return merge((own, await self.plane.counters()))

    def _announce_listening(self) -> None:
        self._announce(
            f"canal-dns {__version__}, Python {platform.python_version()}, {loop.NAME}, batch {batch.IMPLEMENTATION}"
        )
        for address in self.plane.listeners:
            self._announce(f"listening on {address}, UDP and TCP")
        self._announce(f"forwarding to {', '.join(map(str, self.settings.forward.upstreams))}")
        if self._admin is not None:
            self._announce(f"admin endpoints: http://{self._admin.address}")
        if not self.feed.source.synced:
            self._announce(f"reading {self.settings.source.manifests}; until then every query is forwarded")

    def _announce_bindings(self) -> None:
        reasons = self.feed.reasons()
        text = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        self._announce(f"{self.publisher.live} names bound, {reasons.total()} skipped" + (f" ({text})" if text else ""))
        if self._admin is not None:
            self._announce(f"bindings and reasons: http://{self._admin.address}/bindings")
