"""One soak from its start to its figures: a server, its peak, the load at a share of it, disturbances, and the account.

Rules of this file:
- all processes share the machine's cores; the peak is what was measured in that way, a moment before;
- what is true is printed, missed or met: no figure is left out because another one failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from canal_dns.settings import Endpoint
from tests.faults.server import Server
from tests.figures import Figure
from tests.kube.apiserver import FakeApiServer
from tests.server.scripted import Scripted
from tests.soak import content, load
from tests.soak.account import DESCRIPTORS, SHARE, WORKERS, Account, figures
from tests.soak.disturbances import Disturbances
from tests.soak.history import History
from tests.soak.judge import judge
from tests.soak.load import Load
from tests.soak.recorder import Recorder

PEAK_RUNS, PEAK_SECONDS = 3, 1.5
SETTLE = 15.0
"""Seconds in which the server must have noticed what happened last, and closed its sockets: they live 10 s at most."""
UPSTREAM_PORTS = 5301, 5302
"""Below those that the kernel gives to clients: they are free again after each pause of an upstream."""


async def soak(seconds: float) -> list[Figure]:
    """The figures of a soak of so many seconds. Raises LoadError, and what a disturbance raises that cannot be made."""
    with tempfile.TemporaryDirectory(prefix="canal-dns-soak-") as place:
        folder = Path(place)
        asked = content.questions()
        queries, records = folder / "queries", folder / "records"
        content.write(queries, asked)
        async with _running(folder) as (server, api, upstreams):
            endpoints = _endpoints(server)
            recorder = Recorder(server)
            peaks = [await load.ask(endpoints, queries, folder / "peak", PEAK_SECONDS, 0) for _ in range(1 + PEAK_RUNS)]
            # The first one fills the caches; the lowest of the others is what the machine can do at any time.
            peak = min(one.answered_in_time / one.seconds for one in peaks[1:])
            print(f"peak {peak:,.0f} answers a second; {seconds:g} s at {SHARE:.0%} of it", flush=True)
            history = History(_start())
            disturbances = Disturbances(server, api, upstreams, history, recorder)
            began = time.monotonic()
            measured = await _under(disturbances, load.ask(endpoints, queries, records, seconds, SHARE * peak))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE):
                    while not (disturbances.noticed() and recorder.is_idle(DESCRIPTORS)):
                        await asyncio.sleep(0.1)
                        await recorder.scrape()
            verdict = judge(load.read(records), asked, history, disturbances.kills, began)
            ended = [] if server.alive() else server.errors[-3:]
        return figures(Account(peak, measured, peaks, verdict, history, disturbances, recorder, ended))


async def _under(disturbances: Disturbances, loading: object) -> Load:
    """The load, disturbed from its start to its end."""
    disturbing = asyncio.create_task(disturbances.run())
    asking = asyncio.ensure_future(loading)
    try:
        await asyncio.wait({disturbing, asking}, return_when=asyncio.FIRST_COMPLETED)
        if disturbing.done():
            disturbing.result()
        return await asking
    finally:
        for task in (disturbing, asking):
            task.cancel()
        await asyncio.gather(disturbing, asking, return_exceptions=True)


def _start() -> dict[str, str]:
    bound = dict.fromkeys(content.ROUTED + content.CREATED, content.VIPS[0])
    return bound | dict.fromkeys(content.MOVED, content.MOVING_VIPS[0])


@contextlib.asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[tuple[Server, FakeApiServer, tuple[Scripted, Scripted]]]:
    """The server, with everything bound that is to be, and what it depends on."""
    first, second = (Scripted(content.upstream, port=port) for port in UPSTREAM_PORTS)
    async with FakeApiServer() as api, first, second:
        api.put(*content.objects())
        server = Server(
            folder,
            [first.endpoint, second.endpoint],
            listen=["127.0.0.1:0", "[::1]:0"],
            source={"cluster": {"kubeconfig": api.kubeconfig(folder).kubeconfig}},
            gateways=[{"service": f"istio-system/{name}"} for name in (content.GATEWAY, content.MOVING_GATEWAY)],
            binding={"settle": "200ms"},
            cache={"size": 10000},
            workers=WORKERS,
            snapshot={"path": str(folder / "table")},
            # All clients have one address here, as behind CoreDNS.
            access={"peers": ["127.0.0.1", "::1"]},
        )
        try:
            await asyncio.to_thread(server.ready)
            bound = len(content.BOUND + content.CHANGING)
            async with asyncio.timeout(10):
                while await asyncio.to_thread(server.counted, "canal_dns_bound_names") != bound:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield server, api, (first, second)
        finally:
            await asyncio.to_thread(server.__exit__)


def _endpoints(server: Server) -> tuple[Endpoint, Endpoint]:
    """Where it listens: 127.0.0.1 and ::1."""
    said = [line.split()[2].rstrip(",").rpartition(":") for line in server.lines if line.startswith("listening on")]
    v4, v6 = (Endpoint(host.strip("[]"), int(port)) for host, _, port in said)
    return v4, v6
