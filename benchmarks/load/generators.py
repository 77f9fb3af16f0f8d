"""Two load generators with one interface: our `flood`, which is built on first use, and dnsperf where no compiler exists.

Rules of this file:
- a generator is pinned to one core and told how long to run; it never decides what is measured;
- both read the same file of queries ("NAME TYPE" on each line) and keep as many queries open;
- what they print becomes a `Load`: sent = answered + lost, whoever counted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.errors import BenchError
from benchmarks.load.build import FLOOD, NEEDED, compiled
from benchmarks.machine import pinned
from benchmarks.scenarios import Shape

TIMEOUT_MS = 500
"""A query that waits longer is lost; nothing on loopback is that slow."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a generator saw. `seconds`: of sending; `answered` includes what came in while draining."""

    generator: str
    sent: int
    answered: int
    lost: int
    seconds: float
    qps: float
    rcodes: dict[str, int]
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    problems: dict[str, int] = field(default_factory=dict)
    """Counts of what should not be there: strays, empty answers, truncated ones, late sends, closed connections."""


class Generator(Protocol):
    name: str
    version: str

    def saturate(self, port: int, queries: Path, seconds: float, shape: Shape) -> Load:
        """As fast as the server answers, with a window of open queries."""

    def paced(self, port: int, queries: Path, seconds: float, shape: Shape, rate: int, *, calm: bool) -> Load:
        """`rate` queries a second; the load carries the percentiles. `calm`: it sleeps in between, as clients do."""


class Flood:
    """flood.c: closed or open loop, batches of 64; it sleeps only when it is to be calm."""

    name = "flood"
    version = "of this repository"

    def __init__(self, binary: Path, core: int) -> None:
        self._binary = binary
        self._core = core

    def saturate(self, port: int, queries: Path, seconds: float, shape: Shape) -> Load:
        return self._run(port, queries, seconds, shape, ["-w", str(shape.window)])

    def paced(self, port: int, queries: Path, seconds: float, shape: Shape, rate: int, *, calm: bool) -> Load:
        return self._run(port, queries, seconds, shape, ["-r", str(rate), *(["-c"] if calm else [])])

    def _run(self, port: int, queries: Path, seconds: float, shape: Shape, more: list[str]) -> Load:
        argv = [str(self._binary), "-p", str(port), "-f", str(queries), "-t", f"{seconds:g}", "-m", shape.transport]
        argv += ["-s", str(shape.sockets), "-T", str(TIMEOUT_MS), *more]
        return parse_flood(_output(argv, self._core, seconds + 20))


class Dnsperf:
    """dnsperf: the same two loops; it is itself at its limit at about 180,000 queries a second and core."""

    name = "dnsperf"

    def __init__(self, binary: Path, core: int) -> None:
        self._binary = binary
        self._core = core
        text = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=10, check=False)
        found = re.search(r"Version (\S+)", text.stdout + text.stderr)
        self.version = found.group(1) if found else "unknown"

    def saturate(self, port: int, queries: Path, seconds: float, shape: Shape) -> Load:
        return parse_dnsperf(self._run(port, queries, seconds, shape, []))

    def paced(self, port: int, queries: Path, seconds: float, shape: Shape, rate: int, *, calm: bool) -> Load:
        return parse_dnsperf(self._run(port, queries, seconds, shape, ["-Q", str(rate), "-v"]))

    def _run(self, port: int, queries: Path, seconds: float, shape: Shape, more: list[str]) -> str:
        argv = [str(self._binary), "-s", "127.0.0.1", "-p", str(port), "-d", str(queries), "-l", str(max(1, round(seconds)))]
        argv += ["-c", str(shape.sockets), "-m", shape.transport, "-T", "1", "-q", str(shape.window), "-t", "1", *more]
        return _output(argv, self._core, seconds + 20)


def _output(argv: list[str], core: int, limit: float) -> str:
    with pinned(core):
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"{Path(argv[0]).name} did not end after {limit:.0f} s") from None
    if process.returncode != 0:
        raise BenchError(f"{Path(argv[0]).name} failed: {(err or out).strip()[:300]}")
    return out


def parse_flood(text: str) -> Load:
    """The line of JSON that flood prints. Raises BenchError when its counts do not add up."""
    plain = json.loads(text)
    if plain["sent"] != plain["answered"] + plain["lost"]:
        raise BenchError(f"flood miscounts: {plain['sent']} sent, {plain['answered']} answered, {plain['lost']} lost")
    return Load(
        generator="flood",
        sent=plain["sent"],
        answered=plain["answered"],
        lost=plain["lost"],
        seconds=plain["seconds"],
        qps=plain["answered_in_time"] / plain["seconds"],
        rcodes=plain["rcodes"],
        p50_us=plain["p50_us"],
        p99_us=plain["p99_us"],
        p999_us=plain["p999_us"],
        problems={key: plain[key] for key in ("strays", "empty", "truncated", "refusals", "late", "closed") if plain[key]},
    )


_RCODES = {"NOERROR": "0", "FORMERR": "1", "SERVFAIL": "2", "NXDOMAIN": "3", "NOTIMP": "4", "REFUSED": "5"}


def parse_dnsperf(text: str) -> Load:
    """dnsperf's statistics; with its lines of `-v` ("> NOERROR NAME A 0.000123") also the percentiles."""

    def number(label: str) -> float:
        found = re.search(rf"^\s*{label}:?\s+([0-9.]+)", text, re.MULTILINE)
        if not found:
            raise BenchError(f"dnsperf printed no {label!r}: {text.strip()[-300:]}")
        return float(found.group(1))

    codes = re.search(r"^\s*Response codes:\s+(.*)$", text, re.MULTILINE)
    pairs = re.findall(r"([A-Z0-9]+) (\d+) \(", codes.group(1)) if codes else []
    took = sorted(float(value) * 1e6 for value in re.findall(r"^> \S+ .* ([0-9.]+)$", text, re.MULTILINE))
    return Load(
        generator="dnsperf",
        sent=int(number("Queries sent")),
        answered=int(number("Queries completed")),
        lost=int(number("Queries sent") - number("Queries completed")),
        seconds=number(r"Run time \(s\)"),
        qps=number("Queries per second"),
        rcodes={_RCODES.get(code, code): int(count) for code, count in pairs},
        p50_us=took[len(took) // 2] if took else None,
        p99_us=took[len(took) * 99 // 100] if took else None,
        p999_us=took[len(took) * 999 // 1000] if took else None,
    )


def find_generators(core: int) -> list[Generator]:
    """What can send here, the best first. Raises BenchError when there is nothing."""
    found: list[Generator] = []
    if (flood := compiled(FLOOD)) is not None:
        found.append(Flood(flood, core))
    if (dnsperf := shutil.which("dnsperf")) is not None:
        found.append(Dnsperf(Path(dnsperf), core))
    if not found:
        raise BenchError(f"no load generator: install {NEEDED} or dnsperf (Debian: dnsperf)")
    return found
