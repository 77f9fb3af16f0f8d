"""Watches that end, lie, forget, or say nothing any more."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator

from tests.faults.bench import Bench
from tests.faults.mesh import FORWARDED, NAMES, Mesh, name_of, pair, route, service
from tests.faults.rows import Outcome, row
from tests.faults.server import VIP, Server
from tests.kube.apiserver import TOO_LARGE, Body, Refuse, status
from tests.kube.garbage import LINES
from tests.kube.world import EVERYTHING
from tests.mesh import builders as make
from tests.server.serving import query

RECOVERED = 2.0
OLD = 1.2
"""Seconds after which the end of a watch is no failure of the watch."""


# -- versions that are gone, or never were ---------------------------------------------------------------------------------


@row(
    "K3",
    "410 Gone: as HTTP status, as ERROR event inside HTTP 200, or not chunked; once more after the list",
    "recovered <= 2 s, no wrong answers, no names lost",
)
async def gone(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1)
    await mesh.serve()

    def by_status() -> None:
        mesh.api.forget()
        for watch in mesh.api.watches():
            watch.end()

    def by_event() -> None:
        for watch in mesh.api.watches():
            watch.error(410)

    def not_chunked() -> None:
        for resource in EVERYTHING:
            mesh.api.next(resource, "watch", Body(status(410)))
        for watch in mesh.api.watches():
            watch.end()

    def twice() -> None:
        for resource in EVERYTHING:
            mesh.api.next(resource, "list", Refuse(410))
        by_event()

    took = {}
    fresh = NAMES
    rounds = 10 if bench.long else 1
    async with mesh.traffic() as traffic:
        for happen in (by_status, by_event, not_chunked, twice) * rounds:
            await mesh.api.watching(*EVERYTHING)
            await traffic.for_(OLD)
            for watch in mesh.api.watches():
                watch.bookmark()
            mesh.miss(mesh.swap, fresh, fresh + 1)
            began = time.monotonic()
            happen()
            seconds = await mesh.swapped(fresh, fresh + 1, began)
            took[happen.__name__] = max(seconds, took.get(happen.__name__, 0.0))
            fresh += 1
    relists = await mesh.counted("canal_dns_source_relists_total", kind="VirtualService", reason="expired")
    said = ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in took.items())
    return Outcome(
        f"what nobody was told of was known after {said}, by {relists:.0f} lists; {traffic.said()}",
        met=max(took.values()) <= RECOVERED and traffic.clean,
    )


@row(
    "K4",
    "stale or too large resourceVersion; time goes backwards after an etcd restore",
    "a full list replaces the store in one pointer swap; no mixture",
)
async def backwards(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    old, new = range(100, 110), range(110, 120)
    mesh.api.put(*(service(number) for number in (*old, *new)), *(route(number) for number in old))
    server = await mesh.serve()
    await mesh.answered(name_of(old[0]), VIP)

    def swap() -> None:
        nonlocal old, new
        for number in old:
            mesh.api.delete("VirtualService", "default", f"s{number}-internalgateway")
        mesh.api.put(*(route(number) for number in new))
        old, new = new, old

    async def in_an_event() -> None:
        mesh.miss(swap)
        for watch in mesh.api.watches():
            watch.error(504, body=TOO_LARGE)

    async def as_status() -> None:
        mesh.miss(swap)
        for resource in EVERYTHING:
            mesh.api.next(resource, "watch", Refuse(504, body=TOO_LARGE))
        for watch in mesh.api.watches():
            watch.end()

    async def restored() -> None:
        await mesh.api.stop()
        mesh.api.rewind(5)
        swap()
        await mesh.api.start()

    took = {}
    tables = []
    looks = Looks(server)
    async with mesh.traffic() as traffic:
        for happen in (in_an_event, as_status, restored) * (10 if bench.long else 1):
            await mesh.api.watching(*EVERYTHING)
            await traffic.for_(OLD)
            for watch in mesh.api.watches():
                watch.bookmark()
            before = await mesh.counted("canal_dns_table_generation")
            async with looks.at(name_of(old[-1]), name_of(new[-1])):
                began = time.monotonic()
                await happen()
                await mesh.answered(name_of(old[0]), VIP, 60.0)
                took[happen.__name__] = max(time.monotonic() - began, took.get(happen.__name__, 0.0))
                await traffic.for_(0.2)
            tables.append(await mesh.counted("canal_dns_table_generation") - before)
    said = ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in took.items())
    return Outcome(
        f"10 names for 10 others: {said}; {max(tables):.0f} table each time, {looks.mixed} mixtures in {looks.count} looks; "
        f"{traffic.said()}",
        met=set(tables) == {1.0} and looks.count > 100 and not looks.mixed and traffic.clean and max(took.values()) <= 5.0,
    )


class Looks:
    """Two names, of which one is bound at any time, asked together again and again in a thread of its own."""

    def __init__(self, server: Server) -> None:
        self.count = self.mixed = 0
        self._address = server.endpoint.host, server.endpoint.port

    @contextlib.asynccontextmanager
    async def at(self, one: str, other: str) -> AsyncIterator[None]:
        over = threading.Event()
        looking = asyncio.create_task(asyncio.to_thread(self._look, (one, other), over))
        try:
            yield
        finally:
            over.set()
            await looking

    def _look(self, names: tuple[str, str], over: threading.Event) -> None:
        # One name is asked twice: where its answers agree, nothing changed in between, and the other's must differ.
        asked = [query(name, ident=ident) for ident, name in enumerate((names[0], names[1], names[0]))]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2.5)
            sock.connect(self._address)
            while not over.is_set():
                for packet in asked:
                    sock.send(packet)
                replies = [sock.recv(4096) for _ in asked]
                bound = [reply.endswith(VIP) for reply in replies]
                self.count += 1
                # A reply that was on its way from the upstream when its name became bound has the gateway's address, too, but
                # it comes after those that were known at once.
                self.mixed += not any(bound) or (all(bound) and replies == sorted(replies))
                over.wait(0.002)


# -- silence -----------------------------------------------------------------------------------------------------------


@row(
    "K5",
    "silently dead watch",
    "timeoutSeconds 300 + jitter, bookmarks, read time-out 90 s (<= 330 s without bookmarks), keepalive 30/10/3: staleness <= "
    "6 min at worst; a gauge of seconds since the last event or bookmark",
)
async def silence(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 2)
    server = await mesh.serve()
    asked = [request.query for request in mesh.api.requests if request.verb == "watch"]
    timeouts = [int(query["timeoutSeconds"]) for query in asked]
    bookmarks = all(query.get("allowWatchBookmarks") == "true" for query in asked)
    kept = await asyncio.to_thread(_keepalives, mesh.api.port, server.popen.pid)
    with_bookmarks = mesh.api.watches("services")[0]
    with_bookmarks.bookmark()
    for watch in mesh.api.watches():
        watch.mute()
    began = time.monotonic()
    said, worst = "its end is waited for in the long form, and in test_reflector.py::test_silence_ends_a_watch", 0.0
    async with mesh.traffic() as traffic:
        if bench.long:
            said, worst = await _staleness(mesh, with_bookmarks, began)
        else:
            await traffic.for_(3.0)
        stale = time.time() - await mesh.counted("canal_dns_source_last_event_timestamp_seconds", kind="Namespace")
        silent = time.monotonic() - began
    shown = bench.long or silent - 1 <= stale <= silent + 3
    return Outcome(
        f"asked for {min(timeouts)} to {max(timeouts)} s{' with bookmarks' if bookmarks else ''}; {len(kept)} connections with "
        f"keepalive, next probe in at most {max(kept, default=0):.0f} s; {said}; the gauge says {stale:.0f} s; "
        f"{traffic.said()}",
        met=300 <= min(timeouts) <= max(timeouts) <= 600
        and bookmarks
        and len(kept) == len(EVERYTHING)
        and max(kept) <= 30
        and worst <= 360
        and shown
        and traffic.clean,
    )


async def _staleness(mesh: Mesh, with_bookmarks: object, began: float) -> tuple[str, float]:
    """How long what has changed stays unknown: one watch had bookmarks, one is cut off from the network, one never had any."""
    mesh.api.watches("virtualservices")[0].vanish()
    mesh.api.delete("Service", "default", f"s{NAMES}")
    mesh.api.delete("VirtualService", "default", f"s{NAMES + 1}-internalgateway")

    async def rules(number: int) -> float:
        mesh.api.put(make.destination_rule(name_of(number), "v1", name=f"s{number}"))
        changed = time.monotonic()
        await mesh.bench.until(
            lambda: mesh.server.counted("canal_dns_source_objects", kind="DestinationRule") == number + 1, 400.0, "a rule"
        )
        return time.monotonic() - changed

    async def without_bookmarks() -> tuple[float, float]:
        first = await rules(0)
        (watch,) = await _watch(mesh, "destinationrules")
        watch.mute()
        return first, await rules(1)

    dead, bookmarked, (first, second) = await asyncio.gather(
        mesh.answered(name_of(NAMES + 1), FORWARDED, 400.0),
        mesh.answered(name_of(NAMES), FORWARDED, 400.0),
        without_bookmarks(),
    )
    return (
        f"what changed was known after {dead:.0f} s where the network was gone, {bookmarked:.0f} s with bookmarks, {first:.0f} "
        f"and then {second:.0f} s without",
        max(dead, bookmarked, first, second),
    )


async def _watch(mesh: Mesh, resource: str) -> list:
    await mesh.api.watching(resource)
    return mesh.api.watches(resource)


def _keepalives(port: int, pid: int) -> list[float]:
    """Seconds to the next probe of each connection of that process to the API server, as the kernel says."""
    told = subprocess.run(
        ["ss", "-Htnpo", "state", "established", "dport", "=", f":{port}"], capture_output=True, text=True, check=True
    ).stdout
    return [_seconds(found[1]) for line in told.splitlines() if f"pid={pid}," in line and (found := _KEEPALIVE.search(line))]


_KEEPALIVE = re.compile(r"timer:\(keepalive,([^,]+),0\)")


def _seconds(text: str) -> float:
    """`29sec`, `1.2sec`, `980ms`, `1min2sec`."""
    units = {"min": 60.0, "sec": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(min|sec|ms)", text))


# -- garbage -----------------------------------------------------------------------------------------------------------


@row(
    "K7",
    "malformed line, object of a wrong kind, unknown type of event",
    "skipped and counted; no task dies",
)
async def garbage(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1)
    server = await mesh.serve()
    watches = mesh.api.watches()
    before = _noted(server)
    sent = fresh = 0
    slowest = 0.0
    async with mesh.traffic() as traffic:
        await traffic.for_(0.5)
        for _ in range(50 if bench.long else 1):
            for watch in watches:
                for line in LINES:
                    watch.send(line)
                    sent += line != b"\n\n\n"
            mesh.swap(NAMES + fresh, NAMES + fresh + 1)
            slowest = max(slowest, await mesh.swapped(NAMES + fresh, NAMES + fresh + 1))
            fresh += 1
        with contextlib.suppress(TimeoutError):
            # Some take long to be refused: 100,000 brackets that open.
            await bench.until(lambda: _noted(server) - before >= sent, 10.0)
    noted = _noted(server) - before
    relists = await mesh.counted("canal_dns_source_relists_total")
    stayed = mesh.api.watches() == watches
    lines = sum("not used" in line for line in server.errors)
    return Outcome(
        f"{sent} such lines on {len(watches)} watches: {noted:.0f} counted, {lines} log lines, {relists:.0f} lists, "
        f"{'no watch' if stayed else 'a watch'} ended; the next true event known after {slowest:.2f} s; {traffic.said()}",
        met=noted == sent and not relists and stayed and lines <= 2 * len(watches) and slowest <= RECOVERED and traffic.clean,
    )


def _noted(server: Server) -> float:
    """Lines of watches that were not used."""
    decoded = server.counted("canal_dns_source_errors_total", code="decode")
    return decoded + sum(
        server.counted(f"canal_dns_source_{what}", **labels)
        for what, labels in (("events_total", {"type": "other"}), ("skipped_objects_total", {}))
    )


# -- deletions ---------------------------------------------------------------------------------------------------------


@row(
    "K11",
    "deletions missed while disconnected",
    "gone <= 2 s after the resync; duplicates and re-creation with a new UID handled",
)
async def deletions(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 40)
    await mesh.serve()
    slowest = 0.0
    async with mesh.traffic() as traffic:
        for number in range(NAMES, NAMES + (40 if bench.long else 4), 2):
            forgetful = bool(number // 2 % 2)
            # In the long form so far from each other as they may be where a control plane is replaced in a hurry.
            await traffic.for_(12.0 if bench.long else OLD)
            slowest = max(slowest, await _missed(mesh, number, forgetful))
    duplicates = await _duplicates(mesh, NAMES)
    return Outcome(
        f"a name whose route was deleted while nobody looked is gone, and one whose Service is another one now is right, "
        f"{slowest:.2f} s after the API server is back; {duplicates}; {traffic.said()}",
        met=slowest <= RECOVERED and not duplicates.startswith("wrong") and traffic.clean,
    )


async def _missed(mesh: Mesh, number: int, forgetful: bool) -> float:
    """Of two names one is deleted, one is another object under the same name, which must not be bound."""
    await mesh.api.stop()
    mesh.api.delete("VirtualService", "default", f"s{number}-internalgateway")
    mesh.api.delete("Service", "default", f"s{number + 1}")
    again = service(number + 1, annotations={"canal-dns.io/bind": "false"})
    again["metadata"]["uid"] = f"another-{number}"
    mesh.api.put(again)
    if forgetful:
        mesh.api.forget()
    began = time.monotonic()
    await mesh.api.start()
    await mesh.answered(name_of(number), FORWARDED)
    await mesh.answered(name_of(number + 1), FORWARDED)
    return time.monotonic() - began


async def _duplicates(mesh: Mesh, number: int) -> str:
    """Events twice, an ADDED of what is there, a DELETED of what is not: what counts is the last word."""
    await mesh.api.watching(*EVERYTHING)
    (services,), (routes,) = mesh.api.watches("services"), mesh.api.watches("virtualservices")
    one, binding = pair(number)
    for _ in range(3):
        services.tell("DELETED", one)
    for kind in ("ADDED", "ADDED", "MODIFIED", "ADDED"):
        services.tell(kind, one)
        routes.tell(kind, binding)
    try:
        await mesh.answered(name_of(number), VIP)
        routes.tell("DELETED", binding)
        routes.tell("DELETED", binding)
        await mesh.answered(name_of(number), FORWARDED)
    except TimeoutError as problem:
        return f"wrong after duplicates: {problem}"
    return "duplicates change nothing"
