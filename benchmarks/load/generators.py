"""Two load generators with one interface: our `flood`, which is built on first use, and dnsperf where no compiler exists.

Rules of this file:
- a generator is pinned to one core and told how long to run; it never decides what is measured;
- both read the same file of queries ("NAME TYPE" on each line) and keep as many queries open;
- what they print becomes a `Load`: sent = answered + lost, whoever counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.errors import BenchError
from benchmarks.machine import cache_folder, pinned

SOURCE = Path(__file__).with_name("flood.c")
SOCKETS = 8
"""Client sockets: enough that no queue of one socket decides, few enough to be polled."""
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
    problems: dict[str, int] = field(default_factory=dict)
    """Counts of what should not be there: strays, empty answers, truncated ones, late sends."""


class Generator(Protocol):
    name: str
    version: str

    def saturate(self, port: int, queries: Path, seconds: float) -> Load:
        """As fast as the server answers, with a window of open queries."""

    def steady(self, port: int, queries: Path, seconds: float, rate: int) -> Load:
        """`rate` queries a second; the load carries p50 and p99."""


class Flood:
    """flood.c: closed or open loop, batches of 64, no sleeping."""

    name = "flood"
    version = "of this repository"

    def __init__(self, binary: Path, core: int, window: int) -> None:
        self._binary = binary
        self._core = core
        self._window = window

    def saturate(self, port: int, queries: Path, seconds: float) -> Load:
        return self._run(port, queries, seconds, ["-w", str(self._window)])

    def steady(self, port: int, queries: Path, seconds: float, rate: int) -> Load:
        return self._run(port, queries, seconds, ["-r", str(rate)])

    def _run(self, port: int, queries: Path, seconds: float, more: list[str]) -> Load:
        argv = [str(self._binary), "-p", str(port), "-f", str(queries), "-t", f"{seconds:g}"]
        argv += ["-s", str(SOCKETS), "-T", str(TIMEOUT_MS), *more]
        return parse_flood(_output(argv, self._core, seconds + 20))


class Dnsperf:
    """dnsperf: the same two loops; it is itself at its limit at about 180,000 queries a second and core."""

    name = "dnsperf"

    def __init__(self, binary: Path, core: int, window: int) -> None:
        self._binary = binary
        self._core = core
        self._window = window
        text = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=10, check=False)
        found = re.search(r"Version (\S+)", text.stdout + text.stderr)
        self.version = found.group(1) if found else "unknown"

    def saturate(self, port: int, queries: Path, seconds: float) -> Load:
        return parse_dnsperf(self._run(port, queries, seconds, []))

    def steady(self, port: int, queries: Path, seconds: float, rate: int) -> Load:
        return parse_dnsperf(self._run(port, queries, seconds, ["-Q", str(rate), "-v"]))

    def _run(self, port: int, queries: Path, seconds: float, more: list[str]) -> str:
        argv = [str(self._binary), "-s", "127.0.0.1", "-p", str(port), "-d", str(queries), "-l", str(max(1, round(seconds)))]
        argv += ["-c", str(SOCKETS), "-T", "1", "-q", str(self._window), "-t", "1", *more]
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
        problems={key: plain[key] for key in ("strays", "empty", "truncated", "refusals", "late") if plain[key]},
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
    )


def build_flood() -> Path | None:
    """flood, compiled into the cache folder under the digest of its source; None where there is no compiler.

    Raises BenchError when the compiler refuses the source.
    """
    compiler = os.environ.get("CC") or next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
    if compiler is None:
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    binary = cache_folder() / f"flood-{digest}"
    if binary.exists():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_name(f"{binary.name}.{os.getpid()}")
    argv = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(fresh), str(SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise BenchError(f"{compiler} cannot build {SOURCE.name}: {done.stderr.strip()[:300]}")
    fresh.replace(binary)
    return binary


def find_generators(core: int, window: int) -> list[Generator]:
    """What can send here, the best first. Raises BenchError when there is nothing."""
    found: list[Generator] = []
    if (flood := build_flood()) is not None:
        found.append(Flood(flood, core, window))
    if (dnsperf := shutil.which("dnsperf")) is not None:
        found.append(Dnsperf(Path(dnsperf), core, window))
    if not found:
        raise BenchError("no load generator: install a C compiler (Debian: gcc libc6-dev) or dnsperf (Debian: dnsperf)")
    return found
