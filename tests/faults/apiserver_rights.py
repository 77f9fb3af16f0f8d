"""Rights and credentials that change, kinds that are gone, and one kind that never comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator

from tests.e2e.account import MOUNT, project
from tests.e2e.certificates import Authority
from tests.faults.bench import Bench
from tests.faults.mesh import FORWARDED, NAMES, Mesh, name_of, service
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND, VIP
from tests.kube.apiserver import FakeApiServer, Refuse
from tests.server.scripted import record

OLD = 1.2
"""Seconds after which the end of a watch is no failure of the watch."""

# -- credentials -------------------------------------------------------------------------------------------------------------


@row("K12", "token rotated or expired, CA rotated", "401 -> read again, success <= 5 s; a projected token of 10 min")
async def rotated(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1, authority=await _authority(bench, "first"))
    await bench.enter(_empty_run())
    _write(mesh.api, "token")
    pod = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(mesh.api.port)}
    await mesh.serve(source={"cluster": {}}, environment=pod)
    lifetime, count = (120.0, 5) if bench.long else (2.0, 2)
    fresh = NAMES

    async def known() -> float:
        nonlocal fresh
        fresh += 1
        return await mesh.swapped(fresh - 1, fresh)

    def refuse(bearer: str) -> None:
        mesh.api.bearer = bearer
        mesh.miss(mesh.swap, fresh, fresh + 1)
        for watch in mesh.api.watches():
            watch.end()

    async with mesh.traffic() as traffic:
        slowest = 0.0
        for number in range(count):
            # As a kubelet does: the next one comes when 80 % of its time are over.
            await traffic.for_(0.8 * lifetime)
            _write(mesh.api, f"token-{number}")
            await traffic.for_(0.2 * lifetime)
            refuse(f"token-{number}")
            slowest = max(slowest, await known())
        refused = await mesh.counted("canal_dns_source_errors_total", code="401")
        await traffic.for_(OLD)
        refuse("late")
        await traffic.for_(60.0 if bench.long else 3.0)
        late = await mesh.counted("canal_dns_source_errors_total", code="401")
        _write(mesh.api, "late")
        expired = await known()
        await traffic.for_(OLD)
        await mesh.api.stop()
        mesh.api.authority = await _authority(bench, "second")
        await mesh.api.start()
        await traffic.for_(2.0)
        mesh.swap(fresh, fresh + 1)
        _write(mesh.api, "late")
        other = await known()
    return Outcome(
        f"{count} tokens of {lifetime:.0f} s, each rotated in time: {refused:.0f} refused, {slowest:.2f} s; expired before it "
        f"was rotated: {late:.0f} refused, then {expired:.2f} s; CA rotated: {other:.2f} s; {traffic.said()}",
        met=not refused and late > 0 and max(slowest, expired, other) <= 5.0 and traffic.clean,
    )


async def _authority(bench: Bench, name: str) -> Authority:
    folder = bench.folder / name
    folder.mkdir()
    return await asyncio.to_thread(Authority, folder)


def _write(api: FakeApiServer, token: str) -> None:
    assert api.authority is not None
    project(MOUNT, {"token": token, "ca.crt": (api.authority.folder / "ca.crt").read_text(), "namespace": "canal-dns"})


@contextlib.asynccontextmanager
async def _empty_run() -> AsyncIterator[None]:
    """A /run of our own, for the service account."""
    await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", "/run"], check=True)


# -- rights ------------------------------------------------------------------------------------------------------------------

GONE = {"virtualservices": 403, "gateways": 404, "destinationrules": 404}
KINDS = ("VirtualService", "Gateway", "DestinationRule")
RETRY = 30.0


@row(
    "K13",
    "RBAC removed (403) or CRD deleted (404)",
    "the last objects of that kind are kept, and an alert; back-off 30 s; other kinds unaffected",
)
async def denied(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench, NAMES + 1)
    server = await mesh.serve()
    async with mesh.traffic() as traffic:
        await traffic.for_(OLD)
        began = time.monotonic()
        for resource, code in GONE.items():
            mesh.api.always[resource] = Refuse(code)
            for watch in mesh.api.watches(resource):
                watch.end()
        told = await bench.until(
            lambda: all(server.counted("canal_dns_source_available", kind=kind) == 0 for kind in KINDS), 10.0, "an alert"
        )
        mesh.api.delete("Service", "default", f"s{NAMES}")
        others = await mesh.answered(name_of(NAMES), FORWARDED)
        mesh.api.put(service(NAMES))
        others = max(others, await mesh.answered(name_of(NAMES), VIP))
        await traffic.for_(100.0 if bench.long else 5.0)
        tries = [_tries(mesh.api, resource, began) for resource in GONE]
        problems = (await mesh.bindings())["source"]["problems"]
        back = ""
        if bench.long:
            mesh.swap(NAMES, NAMES + 1)
            mesh.api.always.clear()
            back = f"; rights back: known after {await mesh.swapped(NAMES, NAMES + 1):.0f} s"
    pauses = [later - earlier for at in tries for earlier, later in itertools.pairwise(at)]
    # A server may have refused because it had only just started: it is asked once more as soon as it says that it is ready.
    long_ones = [pause for pause in pauses if pause > 3.0]
    waited = f"pauses of {min(long_ones):.0f} to {max(long_ones):.0f} s" if long_ones else "the pause after them is not over"
    return Outcome(
        f"told by the gauge of CanalDnsSourceUnavailable after {told:.2f} s; {max(map(len, tries))} requests for a kind in "
        f"{100 if bench.long else 5} s, {waited}; another kind followed within {others * 1e3:.0f} ms{back}; {traffic.said()}",
        met=told <= 5.0
        and max(map(len, tries)) <= (6 if bench.long else 2)
        and all(RETRY - 0.5 <= pause <= 1.5 * RETRY + 1 for pause in long_ones)
        and (bool(long_ones) or not bench.long)
        and others <= 2.0
        and len(problems) == len(GONE)
        and traffic.clean,
    )


def _tries(api: FakeApiServer, resource: str, since: float) -> list[float]:
    """When a kind was asked for; its versions, one after the other, are one."""
    found: list[float] = []
    last = 0.0
    for request in api.asked(resource):
        if request.at > since and request.at - last > 0.4:
            found.append(request.at)
        last = request.at
    return found


# -- one that never comes ------------------------------------------------------------------------------------------------------

ANOTHER = "192.0.2.77"


@row("K15", "a second kind never syncs", "/ready reflects each kind; reload while unready works")
async def one_kind(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    late = {"virtualservices": "virtualservices.networking.istio.io", "namespaces": "namespaces"}
    for resource in late:
        mesh.api.always[resource] = Refuse(500, "etcd is away")
    server = await mesh.serve(ready=False)
    await mesh.answered(BOUND, FORWARDED)
    await bench.until(lambda: server.get("/ready")[1].count("etcd is away") == len(late), 10.0, "both kinds in /ready")
    both = await mesh.get("/ready")
    async with mesh.traffic(expect=FORWARDED) as traffic:
        await traffic.for_(60.0 if bench.long else 2.0)
        del mesh.api.always["namespaces"]
        await bench.until(lambda: "namespaces" not in server.get("/ready")[1], 60.0, "/ready without namespaces")
        one = await mesh.get("/ready")
    # Reload: other upstreams count at once, though nothing was read.
    other = await bench.upstream(lambda ask: ask.reply(record(ANOTHER)))
    server.write({**server.settings, "upstreams": [str(other.endpoint)]})
    server.signal(signal.SIGHUP)
    reloaded = await mesh.answered(BOUND, socket.inet_aton(ANOTHER))
    after = await mesh.get("/ready")
    gauges = [await mesh.counted("canal_dns_source_synced", kind=kind) for kind in ("VirtualService", "Service")]
    mesh.api.always.clear()
    await mesh.answered(BOUND, VIP, 70.0)
    await bench.until(lambda: server.status("/ready") == 200, 5.0, "/ready")
    bench.baseline(server)
    exact = all(kind in both[1] for kind in late.values()) and both[1].count("source: ") == 1 + len(late)
    exact &= late["virtualservices"] in one[1] and one[1].count("source: ") == 2
    return Outcome(
        f"/ready {both[0]} and {one[0]}, {'with' if exact else 'not with'} the kinds that are missing: first two, then one "
        f"of them; reloaded meanwhile: in force after {reloaded:.2f} s, /ready {after[0]}; ready with the last kind; "
        f"{traffic.said()}",
        met=exact and (both[0], one[0], after[0]) == (503, 503, 503) and gauges == [0, 1] and reloaded <= 2.0 and traffic.clean,
    )
