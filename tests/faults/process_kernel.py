"""A kernel that does not take what it is given, and signals that nobody expects."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from benchmarks.contenders.canal_dns import UNCOMPILED
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.floods import capacity, flood, forwarding
from tests.faults.rows import NotRunError, Outcome, row
from tests.faults.server import BOUND_QUESTION
from tests.faults.shim import ALWAYS, MILLION, Shim

FILLINGS = {
    "extension": {},
    "mmsg": {"PYTHONPATH": str(UNCOMPILED)},
    "plain": {"CANAL_DNS_NO_EXTENSIONS": "1"},
}
"""Of the packet loop -> what makes a server use it."""
BATCHES = {"extension": "native", "mmsg": "mmsg", "plain": "pure"}
_TROUBLE = 40
"""Sends per second that fail: a third of them for want of room, far less often than what is waited for."""


@row(
    "P5",
    "partial sends; EAGAIN, ENOBUFS, EPERM, EINVAL, EMSGSIZE, ECONNREFUSED of an earlier ICMP",
    "return n < vlen: resume at n; a permanent error skips exactly one, counted by errno; EAGAIN/ENOBUFS: wait <= 10 ms, then "
    "drop; 0 replies lost but for those in 10 M; never > 1 000 system calls without progress",
)
async def sends_that_fail(bench: Bench) -> Outcome:
    measured, met = [], True
    for name, environment in FILLINGS.items():
        outcome = await _troubled(bench, name, environment)
        measured.append(outcome.measured)
        met &= outcome.met
    return Outcome("; ".join(measured), met=met)


async def _troubled(bench: Bench, name: str, environment: dict[str, str]) -> Outcome:
    folder = bench.folder / name
    folder.mkdir()
    shim = Shim(folder)
    upstream = await bench.upstream()
    server = await bench.server(upstream, workers=1, environment={**shim.environment, **environment})
    await forwarding(bench, server)
    most = await capacity(folder, server.endpoint, 0.4)
    # Well below capacity, so that what is lost was lost by a send.
    rate = min(most / 4, 20_000)
    seconds = 3_400_000 / rate if bench.long else 1.0
    told = server.get("/metrics")[1]
    if f'batch="{BATCHES[name]}"' not in told:
        raise NotRunError(f"the packet loop {name} is not there")
    others = [Question(f"other-{number}.example.com") for number in range(1000)]
    dropped, errors = server.counted("canal_dns_udp_receive_dropped_total"), server.counted("canal_dns_send_errors_total")
    refused = shim["permanent"]
    async with Stream(server.endpoint, others, 200, patience=1.0) as forwarded:
        calls = shim["calls"]
        await flood(folder, server.endpoint, 0.3, rate=rate)
        shim.set("trouble", round(_TROUBLE / ((shim["calls"] - calls) / 0.3) * MILLION))
        flooded = await flood(folder, server.endpoint, seconds, rate=rate, patience=1.0)
    shim.set("trouble", 0)
    refused = shim["permanent"] - refused
    lost = flooded.lost + forwarded.lost
    dropped = server.counted("canal_dns_udp_receive_dropped_total") - dropped
    counted = server.counted("canal_dns_send_errors_total") - errors

    # And one that takes nothing for a while: it is waited for, but not for long, and not in a circle.
    calls = shim["calls"]
    async with Stream(server.endpoint, [BOUND_QUESTION], 200, patience=0.5) as stream:
        shim.set("trouble", ALWAYS)
        before, began = server.cpu_seconds(), time.monotonic()
        await stream.for_(1.0)
        cpu = (server.cpu_seconds() - before) / (time.monotonic() - began)
        calls = shim["calls"] - calls
        shim.set("trouble", 0)
    async with Stream(server.endpoint, [BOUND_QUESTION], 200) as after:
        await after.for_(0.3)
    return Outcome(
        f"{name}: of {flooded.answered + forwarded.answered} replies {lost} lost, {refused} refused for good, {counted:.0f} "
        f"counted by errno ({shim['partial']} partial sends, {shim['pending']} pending errors, {shim['passing']} times not "
        f"now); nothing taken for 1 s: {calls} sends, CPU {cpu:.0%}, afterwards {after.lost} lost",
        met=lost - dropped <= refused == counted
        and refused > 0
        and shim["most_in_vain"] < 1000
        and cpu < 0.5
        and not after.lost,
    )


@row("P16", "SIGPIPE, SIGHUP, SIGUSR1", "ignored or handled; alive")
async def signals(bench: Bench) -> Outcome:
    server = await bench.server(workers=2)
    pids = server.pids
    numbers = (signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as stream:
        for _ in range(20 if bench.long else 3):
            for number in numbers:
                for pid in pids:
                    os.kill(pid, number)
                    await asyncio.sleep(0.02)
    ended = [pid for pid in pids if pid not in server.pids]
    names = ", ".join(number.name for number in numbers)
    return Outcome(
        f"{names} to {len(pids)} processes: {len(ended)} ended; {stream.said()}",
        met=server.alive() and not ended and stream.right == stream.sent,
    )
