"""The load of the soak: client.c, compiled on first use, run, and what it leaves to be judged.

Rules of this file:
- what the client prints must add up, else there is no Load: sent = as said + recorded;
- its records are read as a stream: there are as many as there were questions for names that change.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.build import NEEDED, compiled
from canal_dns.settings import Endpoint

SOURCE = Path(__file__).with_name("client.c")
LIMIT = 30.0
"""Seconds beyond its time that the client may take."""
_record = struct.Struct("<qqIBB16s2x")
_BLOCK = 4096


class LoadError(Exception):
    """There is no load, or it cannot be believed; the text says why."""


class Record(NamedTuple):
    """One question whose answer is to be judged. Times: time.monotonic() in seconds."""

    sent: float
    received: float
    """0: never."""
    query: int
    """Line of the file of queries, from 0."""
    rcode: int
    """128 is added where the reply was cut short (TC)."""
    address: bytes
    """Of the last record of the answer; empty: none."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run. `seconds`: of sending."""

    seconds: float
    sent: int
    answered_in_time: int
    as_said: int
    recorded: int
    lost: int
    late: int
    """Of these, answered after all, when nobody waited any more."""
    strays: int
    skipped: int
    """Queries that the client itself could not send in time."""
    refused: int

    @property
    def answered(self) -> int:
        return self.sent - self.lost


def client() -> Path:
    """The program. Raises LoadError where there is no compiler."""
    if (found := compiled(SOURCE)) is None:
        raise LoadError(f"no C compiler: install {NEEDED}")
    return found


async def ask(endpoints: tuple[Endpoint, Endpoint], queries: Path, records: Path, seconds: float, rate: float) -> Load:
    """Ask at a rate (0: as fast as is answered). `endpoints`: of 127.0.0.1 and of ::1. Raises LoadError."""
    ports = [str(endpoint.port) for endpoint in endpoints]
    argv = [str(client()), *ports, str(queries), str(records), f"{seconds:g}", f"{rate:.3f}"]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds + LIMIT)
    except (TimeoutError, asyncio.CancelledError):
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise LoadError(f"the client failed ({process.returncode}): {err.decode().strip()}")
    load = Load(**json.loads(out))
    if load.sent != load.as_said + load.recorded:
        raise LoadError(f"the client miscounts: {load}")
    return load


def read(path: Path) -> Iterator[Record]:
    """The records, in the order in which they were written."""
    with path.open("rb") as file:
        while block := file.read(_record.size * _BLOCK):
            for sent, received, query, rcode, size, value in _record.iter_unpack(block):
                yield Record(sent / 1e9, received / 1e9, query, rcode, value[:size])
