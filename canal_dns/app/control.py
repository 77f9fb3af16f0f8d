"""The control process: it joins the rooms, publishes tables, answers the admin endpoints, and ends in order.

Root tasks, each named, each running for ever; the end of any one ends the process:
    source      objects into the view
    publish     view -> rule -> settle -> table delta -> data plane
    snapshot    the answer table onto disk
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

from canal_dns import __version__
from canal_dns.admin import Admin, Endpoints
from canal_dns.app import cpus, loop, privileges, worker
from canal_dns.app.bindings import Bindings
from canal_dns.app.config import Configuration
from canal_dns.app.logs import Logs
from canal_dns.errors import CanalError, ConfigError
from canal_dns.kube.files import Signature
from canal_dns.metrics import Counters, merge
from canal_dns.server import batch, forwarding
from canal_dns.server.service import DataPlane, PacketService, stop_time
from canal_dns.server.workers import WorkerPool
from canal_dns.settings import Endpoint, LogFormat, LogSettings, Settings

log = logging.getLogger("canal_dns.app")

CONFIG_POLL = 0.5
"""Seconds between two looks at the configuration file."""
STOP_MARGIN = 2.0
"""Seconds beyond what the data plane allows itself for its end."""


def data_plane(settings: Settings) -> DataPlane:
    """Worker processes, or everything in this one."""
    workers = settings.listen.workers
    return WorkerPool(settings, workers, worker.argv) if workers else PacketService(settings)


def serve(config: Configuration, say: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT. Gives the exit status. Raises ListenError, ConfigError, PrivilegeError.

    `say`: writes a line for people; with `log.format: json` these lines go to the log instead, which programs read.
    """
    signature = config.signature()
    settings = config.load()
    warning = privileges.leave_root(settings, config.path)
    return loop.run(_serve(config, settings, signature, warning, say))


async def _serve(
    config: Configuration, settings: Settings, signature: Signature | None, warning: str, say: Callable[[str], None]
) -> int:
    logs = Logs()
    logs.start(settings.log)
    if warning:
        log.warning("%s", warning)
    announce = log.info if settings.log.format is LogFormat.JSON else say
    control = Control(
        settings,
        config,
        announce=announce,
        on_log_settings=logs.configure,
        lost_lines=lambda: logs.dropped,
        signature=signature,
    )
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
        if old is not None and old != address and old.overlaps(address):
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
        lost_lines: Callable[[], int] = lambda: 0,
        signature: Signature | None = None,
        daemon: bool = True,
    ) -> None:
        """`signature`: of the file that `settings` came from. `daemon`: SIGHUP reloads; without, it ends the process."""
        self.settings = settings = _resolved(settings)
        self.plane = data_plane(settings)
        self.counters = Counters()
        self.bindings = Bindings(settings, self.plane, self.counters, on_first_table or self._announce_bindings)
        self._config = config
        self._announce = announce
        self._on_log_settings = on_log_settings
        self._lost_lines = lost_lines
        self._admin: Admin | None = None
        self._reload = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopping = False
        self._signature = signature
        self._daemon = daemon
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
            self.bindings.restore()
            # What takes longest begins first: objects are read while the workers start.
            tasks = {asyncio.create_task(self.bindings.follow(), name="source")}
            if not await self._started():
                return 0
            self._admin = await self._start_admin(self.settings.health.admin)
            self._note_load()
            self._announce_listening()
            tasks |= {
                asyncio.create_task(self.bindings.publish(), name="publish"),
                asyncio.create_task(self.bindings.saver.run(), name="snapshot"),
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
        if self.bindings.synced:
            await self.bindings.saver.save()
        if self._admin is not None:
            await self._admin.close()

    def _handle_signals(self) -> None:
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGTERM, self._on_terminate)
        running.add_signal_handler(signal.SIGINT, self.stop)
        running.add_signal_handler(signal.SIGHUP, self._reload.set if self._daemon else self.stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            # They mean nothing here; their default would be the end, and workers inherit this from their first moment on.
            signal.signal(number, signal.SIG_IGN)

    def _on_terminate(self) -> None:
        """The first one begins the lameduck, the second one ends it."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def stop(self) -> None:
        """End without a lameduck: a person at a terminal does not want to wait for conntrack."""
        self._hurry.set()
        self._stop.set()

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
        """Change what differs. Raises ListenError, ConfigError, ClusterError; then nothing has changed."""
        old, admin = self.settings, self._admin
        feed = self.bindings.feed_for(new)
        if new.process != old.process:
            raise ConfigError("user", str(new.process.user or "auto"), "a change of the user needs a restart")
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
        self.bindings.reconfigure(new, feed)

    # -- what others ask --------------------------------------------------------------------------------------------------

    async def _start_admin(self, address: Endpoint | None) -> Admin | None:
        """Raises ListenError."""
        if address is None:
            return None
        admin = Admin(address, Endpoints(ready=self.not_ready, metrics=self.all_counters, bindings=self._bindings_as_json))
        await admin.start()
        return admin

    @property
    def admin_address(self) -> Endpoint | None:
        """Where the admin endpoints listen, with the port that the kernel chose for 0; None: nowhere."""
        return self._admin.address if self._admin else None

    def _bindings_as_json(self) -> bytes:
        return json.dumps(self.bindings.to_plain()).encode()

    def not_ready(self) -> list[str]:
        """Why `/ready` says 503; empty: it says 200."""
        reasons = []
        if self._stopping:
            reasons.append("stopping")
        reasons.extend(f"source: {line}" for line in self.bindings.waiting())
        if not self.plane.healthy():
            reasons.append("listeners: some do not answer")
        return reasons

    async def all_counters(self) -> Counters:
        """The counters of every process, with the gauges of this one brought up to date."""
        own = self.counters
        self.bindings.observe(own)
        own["canal_dns_log_dropped_total"][()] = self._lost_lines()
        own["canal_dns_ready"][()] = int(not self.not_ready())
        versions = (__version__, platform.python_version(), loop.NAME, batch.IMPLEMENTATION, forwarding.IMPLEMENTATION)
        own["canal_dns_build_info"][versions] = 1
        return merge((own, await self.plane.counters()))

    def _announce_listening(self) -> None:
        self._announce(
            f"canal-dns {__version__}, Python {platform.python_version()}, {loop.NAME}, "
            f"batch {batch.IMPLEMENTATION}, forwarding {forwarding.IMPLEMENTATION}, {privileges.present()}"
        )
        for address in self.plane.listeners:
            self._announce(f"listening on {address}, UDP and TCP")
        self._announce(f"forwarding to {', '.join(map(str, self.settings.forward.upstreams))}")
        if self._admin is not None:
            self._announce(f"admin endpoints: http://{self._admin.address}")
        source = self.bindings.feed.source
        if not source.synced:
            self._announce(f"reading {source.place}; until then {self.bindings.meanwhile}")

    def _announce_bindings(self) -> None:
        reasons = self.bindings.feed.reasons()
        text = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        self._announce(
            f"{len(self.bindings.publisher.live)} names bound, {reasons.total()} skipped" + (f" ({text})" if text else "")
        )
        if self._admin is not None:
            self._announce(f"bindings and reasons: http://{self._admin.address}/bindings")
