"""An API server that is not there, or has no time: at the start, later, and for long."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.mesh import FORWARDED, NAMES, Mesh
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND, VIP
from tests.kube.apiserver import PLURALS, FakeApiServer, Refuse

LISTENING, SYNCED = 2.0, 2.0
AWAY, LONG_AWAY = 4.0, 600.0
"""Seconds without an API server, in the short form and in the long one."""
SHARE = 0.25
"""Requests per second, of all kinds together."""
FIRST_PAUSE, LONGEST_PAUSE = 0.8, 30.0
SLACK = 0.3
"""Seconds by which a pause may seem shorter or longer than it was, on a busy machine."""


@row(
    "K1",
    "API server down at the start",
    "listening <= 2 s; all names forwarded at once, never SERVFAIL or NXDOMAIN of our own; /ready 503; alive for 1 h; synced "
    "<= 2 s after the API is back",
)
async def down_at_the_start(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    await mesh.api.stop()
    began = time.monotonic()
    server = await mesh.serve(ready=False)
    await mesh.answered(BOUND, FORWARDED)
    listening = time.monotonic() - began
    seconds = LONG_AWAY if bench.long else AWAY
    async with mesh.traffic(expect=FORWARDED) as traffic:
        await traffic.for_(seconds)
        status, _ = await mesh.get("/ready")
    began = time.monotonic()
    await mesh.api.start()
    await mesh.answered(BOUND, VIP, 60.0)
    synced = time.monotonic() - began
    await bench.until(lambda: server.status("/ready") == 200, 5.0, "/ready")
    bench.baseline(server)
    return Outcome(
        f"listening after {listening:.2f} s; {seconds:.0f} s without an API server: {traffic.said()}, /ready {status}; synced "
        f"{synced:.2f} s after it was there",
        met=listening <= LISTENING and traffic.clean and status == 503 and synced <= SYNCED,
    )


@row(
    "K2",
    "API server goes away later",
    "bound names answered from the last table >= 24 h, no errors; a gauge of staleness; /ready stays 200",
)
async def down_later(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1)
    server = await mesh.serve()
    await mesh.api.stop()
    began = time.monotonic()
    seconds = LONG_AWAY if bench.long else AWAY
    async with mesh.traffic() as traffic:
        await traffic.for_(seconds)
        status, _ = await mesh.get("/ready")
        stale = time.time() - await mesh.counted("canal_dns_source_last_event_timestamp_seconds", kind="VirtualService")
        away = time.monotonic() - began
        mesh.swap(NAMES, NAMES + 1)
        began = time.monotonic()
        await mesh.api.start()
        back = await mesh.swapped(NAMES, NAMES + 1, began)
    await bench.until(lambda: server.status("/ready") == 200, 5.0, "/ready")
    return Outcome(
        f"{away:.0f} s without an API server: {traffic.said()}, /ready {status}, the gauge says {stale:.0f} s; what had "
        f"changed was known {back:.2f} s after it was back. A table has no age: nothing in it could end after 24 h",
        met=traffic.clean and status == 200 and away - 1 <= stale <= away + seconds and back <= SYNCED,
    )


# -- refusals ------------------------------------------------------------------------------------------------------------

FAILURES = {"services": 500, "virtualservices": 503, "gateways": 429}
"""What these are answered with; all others: 500."""


@row(
    "K6",
    "429, 500, 503, refused connections",
    "back-off 0.8 s x2 to 30 s, jitter 1.0, reset after 2 min; 429 on a watch does not relist; <= 0.25 requests/s in steady "
    "failure. Where nobody listens one attempt per second goes on: it is nobody's work, and K1 wants us back after 2 s",
)
async def refusals(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    await mesh.serve()
    async with mesh.traffic() as traffic:
        # A watch that ended at once would be a failure of its own.
        await traffic.for_(1.2)
        began = time.monotonic()
        for resource in PLURALS.values():
            mesh.api.always[resource] = Refuse(FAILURES.get(resource, 500))
        for watch in mesh.api.watches():
            watch.end()
        await traffic.for_(100.0 if bench.long else 6.0)
        pauses = _pauses(mesh.api, began)
        wrong = [f"{pause:.2f} s as number {number + 1}" for number, pause in pauses if not _as_demanded(number, pause)]
        relists = sum(request.at > began for request in mesh.api.asked("gateways", "list"))
        if bench.long:
            steady, seconds = time.monotonic(), 180.0
            await traffic.for_(seconds)
            share = sum(request.at > steady for request in mesh.api.requests) / seconds
            said = f"{share:.2f} requests/s after the first 100 s"
        else:
            share = len(PLURALS) / LONGEST_PAUSE
            said = f"by these pauses at most {share:.2f} requests/s once they are {LONGEST_PAUSE:.0f} s (the long form counts)"
        mesh.api.always.clear()
        await mesh.api.stop()
        attempts, alone = 1.0, ""
        if bench.long:
            await traffic.for_(100.0)
            before, began = _attempts(), time.monotonic()
            await traffic.for_(120.0)
            attempts = (_attempts() - before) / (time.monotonic() - began)
            alone = f"nobody listening: {attempts:.2f} attempts/s; "
        else:
            await traffic.for_(2.0)
        await mesh.api.start()
        back = await bench.until(lambda: len(mesh.api.watches()) == len(PLURALS), 10.0, "watches")
    return Outcome(
        f"{len(pauses)} pauses, {f'wrong: {wrong[:3]}' if wrong else 'all as demanded'}; {relists} lists by 429; {said}; "
        f"{alone}watches again {back:.2f} s after an API server was there; {traffic.said()}",
        met=not wrong and not relists and share <= SHARE and attempts <= 1.0 + SHARE and back <= SYNCED and traffic.clean,
    )


def _pauses(api: FakeApiServer, since: float) -> list[tuple[int, float]]:
    """Between two requests for the same kind: the how many-th pause after the first failure, and its seconds."""
    found = []
    for resource in PLURALS.values():
        at = [request.at for request in api.asked(resource) if request.at > since]
        found += [(number, later - earlier) for number, (earlier, later) in enumerate(itertools.pairwise(at))]
    return found


def _as_demanded(number: int, pause: float) -> bool:
    shortest = min(FIRST_PAUSE * 2**number, LONGEST_PAUSE)
    return shortest - SLACK <= pause <= 2 * shortest + SLACK


def _attempts() -> int:
    """Connections of this network namespace that were refused."""
    names, figures = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:"))
    return int(figures[names.index("AttemptFails")])
