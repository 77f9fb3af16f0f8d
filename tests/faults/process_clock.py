"""A clock that is set while names are in the cache and timers run: by a shim in the process, never on the machine."""

from __future__ import annotations

import shutil
import time

from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import NotRunError, Outcome, row
from tests.faults.server import BOUND, BOUND_QUESTION, VIP
from tests.faults.shim import Shim
from tests.process import DEMO
from tests.server.scripted import Ask, record

HOUR = 3600
JUMPS = (HOUR, -HOUR, 24 * HOUR, -24 * HOUR)
SHORT = 1
"""Seconds: the TTL of what is to expire on time, whatever the clock says."""


@row("P11", "clock jumps (+-1 h, +-1 day)", "0 premature expiries, 0 stuck timers")
async def clock_jumps(bench: Bench) -> Outcome:
    def answer(ask: Ask) -> None:
        ask.reply(record(ttl=SHORT if ask.name.startswith("short") else 86_400))

    shim = Shim(bench.folder)
    upstream = await bench.upstream(answer)
    manifests = bench.folder / "manifests"
    shutil.copytree(DEMO, manifests)
    server = await bench.server(
        upstream,
        workers=1,
        cache={"size": 1000},
        source={"manifests": str(manifests)},
        binding={"settle": "100ms"},
        environment=shim.environment,
    )
    cached = [Question(f"long-{number}.example.com") for number in range(50)]
    short = Question("short.example.com")
    async with Stream(server.endpoint, cached, 200) as filling:
        await filling.for_(0.5)
    bench.baseline(server)
    lost = again = stuck = unshifted = 0
    slowest = 0.0
    for jump in JUMPS:
        asks = _asked(upstream.asks, "long")
        shorts = _asked(upstream.asks, "short")
        shim.set("offset", jump * 1_000_000_000)
        async with Stream(server.endpoint, [*cached, BOUND_QUESTION, short], 500) as stream:
            await stream.for_(60.0 if bench.long else 1.7 * SHORT)
        lost += stream.sent - stream.right
        again += _asked(upstream.asks, "long") - asks
        # The records with a short life are asked for when it is over, not before and not never.
        stuck += _asked(upstream.asks, "short") - shorts < 2
        began = time.monotonic()
        file = manifests / "helloworld.yaml"
        file.rename(bench.folder / file.name)
        await bench.until(lambda: not server.answers(BOUND, VIP), 10, "a name is forgotten")
        (bench.folder / file.name).rename(file)
        await bench.until(lambda: server.answers(BOUND, VIP), 10, "a name is bound")
        slowest = max(slowest, time.monotonic() - began)
        told = server.counted("canal_dns_table_last_change_timestamp_seconds")
        unshifted += abs(told - time.time() - jump) > 600
        shim.set("offset", 0)
    if unshifted:
        raise NotRunError("the clock of the process could not be shifted")
    return Outcome(
        f"{len(JUMPS)} jumps and back: {again} of {len(cached)} cached answers asked for anew, {lost} queries failed, "
        f"{stuck} times a short TTL did not end on time; a change of a manifest and its opposite were followed in "
        f"{slowest:.1f} s at most",
        met=not lost and not again and not stuck,
    )


def _asked(asks: list[Ask], prefix: str) -> int:
    return sum(ask.name.startswith(prefix) for ask in asks)
