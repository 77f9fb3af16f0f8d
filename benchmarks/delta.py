"""`python -m benchmarks.delta`: CPU of one change of the answer table, in the control process and in all workers together.

A real data plane (worker processes and their links) under a real publisher, in a process of its own. Names are unbound and
bound again, one change each, a few milliseconds apart, so that every change is a message and a wake-up of its own, as events
of a cluster are.
Reading and judging objects is not in it: SCALE.md has the whole way.

Rules of this file:
- it prints one line of JSON; what it measures is the CPU clocks of the processes, nothing else;
- the first changes are not counted; nobody asks between the two looks at the clocks, but everybody must answer the last change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time

from benchmarks.errors import BenchError
from benchmarks.machine import cpu_seconds, family
from benchmarks.scenarios import VIP, bound
from benchmarks.server import ask, free_port
from canal_dns import settings
from canal_dns.app import control, loop
from canal_dns.app.publish import Publisher
from canal_dns.dns.table import Addresses
from canal_dns.mesh.result import Bound

PAUSE = 0.003
"""Seconds between two changes."""
WARM_UP = 50
"""Changes before the clocks are read."""
LIMIT = 60.0
"""Seconds for the first table, and again for the last change."""
_SEEN_IN_A_ROW = 16
"""Right answers to as many client ports, one after the other: the kernel spreads them over the workers."""


def _bound(name: str, address: str) -> Bound:
    return Bound(name, "a/b", (address,), (), 5, "istio-system/internalgateway", ("a/g",), ("a/v",), (80,), ("destination",))


async def _answered(port: int, name: str, address: str) -> None:
    """Returns when every worker answers `name` with `address`. Raises BenchError."""
    ends, seen = time.monotonic() + LIMIT, 0
    while seen < _SEEN_IN_A_ROW:
        try:
            right = await asyncio.to_thread(ask, port, name, 0.5) == (0, socket.inet_aton(address))
        except OSError:
            right = False
        seen = seen + 1 if right else 0
        if time.monotonic() > ends:
            raise BenchError(f"{name} is not {address} after {LIMIT:.0f} s")
        if not right:
            await asyncio.sleep(0.01)


async def measure(names: int, workers: int, changes: int) -> dict[str, float]:
    """CPU seconds of `control` and `workers` for so many changes. Raises BenchError."""
    port = free_port()
    plane = control.data_plane(
        settings.parse(
            {
                "listen": [f"127.0.0.1:{port}"],
                # Nobody is there; nothing is forwarded either.
                "upstreams": ["127.0.0.1:9"],
                "source": {"manifests": "none"},
                "gateways": [{"service": "istio-system/internalgateway"}],
                "workers": workers,
                "admin": "off",
            }
        )
    )
    publisher = Publisher(plane, 0.0, lambda: 1)
    everybody = list(bound(names))
    await plane.start()
    try:
        publisher.restore({name: Addresses((socket.inet_aton(VIP),), (), 5) for name in everybody})
        await _answered(port, everybody[-1], VIP)
        before: dict[str, float] = {}
        for number in range(-WARM_UP, changes):
            if number == 0:
                before = _clocks()
            name = everybody[(number + WARM_UP) // 2 % names]
            is_live = name in publisher.live
            publisher.update({name: None if is_live else _bound(name, VIP)}, time.monotonic())
            await asyncio.sleep(PAUSE)
        after = _clocks()
        publisher.update({everybody[0]: _bound(everybody[0], "10.96.9.10")}, time.monotonic())
        await _answered(port, everybody[0], "10.96.9.10")
        return {part: after[part] - before[part] for part in after}
    finally:
        await plane.stop()


def _clocks() -> dict[str, float]:
    own, *workers = family(os.getpid())
    return {"control": cpu_seconds(own), "workers": sum(map(cpu_seconds, workers))}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delta", description=__doc__, allow_abbrev=False)
    parser.add_argument("--names", type=int, default=10_000, help="bound names (default 10000)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--changes", type=int, default=500, help="changes that are counted (default 500)")
    options = parser.parse_args()
    try:
        print(json.dumps(loop.run(measure(options.names, options.workers, options.changes))))
    except BenchError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
