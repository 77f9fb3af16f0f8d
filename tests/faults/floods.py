"""Floods for fault scenarios: benchmarks/load/flood.c, which asks faster than any server answers and accounts for every query.

Rules of this file:
- capacity is what a closed loop gets through on the spot: no figure of another machine, or of another day, is used;
- an answer after flood's own time-out is a stray to it, and an answer all the same to us.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.build import FLOOD, NEEDED, compiled
from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import NotRunError
from tests.faults.server import BOUND, Server


@dataclass(frozen=True, slots=True)
class Flooded:
    """What one flood came to. Times in seconds, `worst` and percentiles among answers."""

    seconds: float
    sent: int
    answered: int
    lost: int
    strays: int
    p99: float
    p999: float
    worst: float

    @property
    def rate(self) -> float:
        """Queries per second that left."""
        return self.sent / self.seconds

    @property
    def goodput(self) -> float:
        """Answers per second, late ones too."""
        return (self.answered + self.strays) / self.seconds


async def flood(
    folder: Path,
    endpoint: Endpoint,
    seconds: float,
    *,
    rate: float = 0,
    names: list[str] | None = None,
    source: str = "",
    sockets: int = 16,
    window: int = 192,
    patience: float = 0.5,
    burst: int = 1,
) -> Flooded:
    """Flood for so long; `rate` 0: as much as comes back (a closed loop); `burst`: queries that leave at once; `patience`:
    seconds until a query is lost. Raises NotRunError without a compiler."""
    program = await asyncio.to_thread(compiled, FLOOD)
    if program is None:
        raise NotRunError(f"{NEEDED} is needed for the load generator")
    queries = folder / "flood.txt"
    queries.write_text("".join(f"{name} A\n" for name in names or [BOUND]))
    arguments = ["-a", endpoint.host, "-p", endpoint.port, "-f", queries, "-t", seconds, "-s", sockets, "-w", window]
    arguments += ["-T", round(patience * 1000)]
    arguments += ["-r", round(rate), "-n", burst] if rate else []
    arguments += ["-b", source] if source else []
    process = await asyncio.create_subprocess_exec(
        program, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        said, complained = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise RuntimeError(complained.decode().strip())
    told = json.loads(said)
    return Flooded(
        told["seconds"], told["sent"], told["answered"], told["lost"], told["strays"],
        told["p99_us"] / 1e6, told["p999_us"] / 1e6, told["max_us"] / 1e6,
    )  # fmt: skip


async def forwarding(bench: Bench, server: Server) -> None:
    """Forward until there is a whole pool of sockets towards the upstream, and take that as what it must be like at the end."""
    names = [Question(f"warm-{number}.example.com") for number in range(1000)]
    async with Stream(server.endpoint, names, 1200) as stream:
        await stream.for_(0.5)
    bench.baseline(server)


async def capacity(folder: Path, endpoint: Endpoint, seconds: float = 1.0, names: list[str] | None = None) -> float:
    """Answers per second that a server gives to whoever always has a question more."""
    return (await flood(folder, endpoint, seconds, names=names)).goodput
