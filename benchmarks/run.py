"""`python -m benchmarks.run`: measures everybody who is installed, in interleaved rounds, and writes data, report and plot.

Rules of this file:
- all servers are started first and stay up, idle, while others are measured; the load always comes from the other core;
- a round measures every contender once, in the same order; ratios are taken within a round;
- one contender that fails is reported as left out; exit code 1 when canal-dns itself, or everybody, cannot be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import render
from benchmarks.contenders import CONTENDERS, UPSTREAMS
from benchmarks.contenders.base import Contender
from benchmarks.errors import BenchError
from benchmarks.load.generators import SOCKETS, Generator, Load, find_generators
from benchmarks.machine import core_busy_seconds, describe, two_cores
from benchmarks.progress import Progress
from benchmarks.results import SATURATED, SCHEMA, STEADY, Contestant, LeftOut, Method, Results, Sample
from benchmarks.scenarios import NAMES, SCENARIOS, UPSTREAM, Scenario
from benchmarks.server import Server, running

HERE = Path(__file__).parent
WINDOW = 192
"""Queries kept open: as many as fit into a socket's default buffer (212,992 bytes, 768 for each small packet), so that
what is lost is the server's doing."""
WARM_UP = 0.4
"""Seconds of load before the first round: caches fill, heaps grow, Python specialises its bytecode."""
STEADY_SHARE = 0.5
"""The steady rate, as a share of what the slowest contender of the scenario can do."""


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    steady_rounds: int
    seconds: float
    keys: frozenset[str]
    """Empty: everybody."""
    scenarios: tuple[str, ...]

    def wants(self, contender: Contender) -> bool:
        return contender.scenario in self.scenarios and (not self.keys or contender.key in self.keys)


class Measurement:
    """One run of the whole benchmark."""

    def __init__(self, plan: Plan, progress: Progress, folder: Path, stack: contextlib.ExitStack) -> None:
        self.plan = plan
        self.progress = progress
        self.server_core, self.load_core = two_cores()
        self.generators = find_generators(self.load_core, WINDOW)
        self.left_out: list[LeftOut] = []
        self.contestants: list[Contestant] = []
        self.samples: list[Sample] = []
        self.comparison: list[Sample] = []
        self.upstream = ""
        self.rates: dict[str, int] = {}
        self._folder = folder
        self._stack = stack
        self._servers: list[Server] = []
        self._queries = {name: folder / f"{name}.queries" for name in SCENARIOS}

    @property
    def generator(self) -> Generator:
        return self.generators[0]

    def start(self) -> None:
        """The upstream, then everybody; each is ready, that is: has answered rightly. Raises BenchError when nobody is left."""
        for name, scenario in SCENARIOS.items():
            scenario.write_queries(self._queries[name])
        wanted = [contender for contender in CONTENDERS if self.plan.wants(contender)]
        self.progress.expect(1 + len(wanted))
        upstream_port = self._start_upstream()
        for contender in wanted:
            self.progress.step(f"start {contender.key} ({contender.scenario})")
            binary = contender.program.find()
            if binary is None:
                self._leave_out(contender, "not installed", contender.program.install)
                continue
            scenario = SCENARIOS[contender.scenario]
            try:
                server = self._run(contender, binary, scenario, self.server_core, upstream_port)
                version = contender.program.version(binary)
            except (BenchError, OSError, subprocess.SubprocessError) as problem:
                self._leave_out(contender, str(problem), "")
                continue
            self._servers.append(server)
            self.contestants.append(Contestant(contender.key, contender.scenario, version, contender.note))
        if not self._servers:
            raise BenchError("nobody can be measured: " + "; ".join(f"{one.key}: {one.why}" for one in self.left_out))

    def _start_upstream(self) -> int:
        for contender in UPSTREAMS:
            if (binary := contender.program.find()) is not None:
                self.progress.step(f"start the upstream: {contender.key}")
                server = self._run(contender, binary, UPSTREAM, self.load_core, 0)
                self.upstream = f"{contender.key} {contender.program.version(binary)}"
                return server.site.port
        installs = " or ".join(contender.program.install for contender in UPSTREAMS)
        raise BenchError(f"no authoritative server that could stand behind the forwarders; install one: {installs}")

    def _run(self, contender: Contender, binary: Path, scenario: Scenario, core: int, upstream_port: int) -> Server:
        folder = self._folder / f"{scenario.name}-{contender.key.replace(' ', '-')}"
        return self._stack.enter_context(running(contender, binary, scenario, folder, core, upstream_port))

    def _leave_out(self, contender: Contender, why: str, install: str) -> None:
        self.left_out.append(LeftOut(contender.key, contender.scenario, why, install))
        self.progress.note(f"left out: {contender.key} ({contender.scenario}): {why}" + (f" ({install})" if install else ""))

    def measure(self) -> None:
        """Warm-up, saturated rounds, steady rounds, and the generators against each other."""
        plan = self.plan
        self.progress.expect(len(self._servers) * (1 + plan.rounds + plan.steady_rounds) + len(self.generators))
        for server in list(self._servers):
            self.progress.step(f"warm up {server.label}")
            self._load(server, SATURATED, 0, 0)
        for number in range(1, plan.rounds + 1):
            for server in list(self._servers):
                self.progress.step(f"round {number} of {plan.rounds}, saturated: {server.label}")
                self._load(server, SATURATED, number, 0)
        self.rates = steady_rates(self.samples)
        for number in range(1, plan.steady_rounds + 1):
            for server in list(self._servers):
                rate = self.rates[server.site.scenario.name]
                self.progress.step(f"round {number} of {plan.steady_rounds}, at {rate:,} queries/s: {server.label}")
                self._load(server, STEADY, number, rate)
        self._compare_generators()

    def _load(self, server: Server, kind: str, number: int, rate: int) -> None:
        """One run, kept as a sample unless it is the warm-up (round 0); a server that fails it is out from then on."""
        seconds = self.plan.seconds if number else WARM_UP
        try:
            sample = self._sample(server, self.generator, kind, number, seconds, rate)
        except BenchError as problem:
            self._servers.remove(server)
            key, scenario = server.contender.key, server.site.scenario.name
            self.samples = [sample for sample in self.samples if (sample.key, sample.scenario) != (key, scenario)]
            self.contestants = [one for one in self.contestants if (one.key, one.scenario) != (key, scenario)]
            self._leave_out(server.contender, str(problem), "")
            return
        if number:
            self.samples.append(sample)

    def _sample(self, server: Server, generator: Generator, kind: str, number: int, seconds: float, rate: int) -> Sample:
        queries = self._queries[server.site.scenario.name]
        before, busy_before = server.usage(), core_busy_seconds(self.server_core)
        load: Load
        if kind == STEADY:
            load = generator.steady(server.site.port, queries, seconds, rate)
        else:
            load = generator.saturate(server.site.port, queries, seconds)
        after, busy_after = server.usage(), core_busy_seconds(self.server_core)
        if before.pids != after.pids:
            raise BenchError("a process of it ended or began while it was measured")
        if not load.answered or load.rcodes.get("0", 0) < 0.99 * load.answered:
            raise BenchError(f"{load.answered} answers to {load.sent} queries, by response code: {load.rcodes}")
        if load.problems.get("empty", 0) > 0.01 * load.answered:
            raise BenchError(f"{load.problems['empty']} of {load.answered} answers are empty")
        cpu = after.cpu - before.cpu
        return Sample(
            key=server.contender.key,
            scenario=server.site.scenario.name,
            kind=kind,
            round=number,
            generator=generator.name,
            sent=load.sent,
            answered=load.answered,
            lost=load.lost,
            seconds=round(load.seconds, 4),
            qps=round(load.qps, 1),
            cpu_seconds=round(cpu, 6),
            foreign_seconds=round(max(0.0, busy_after - busy_before - cpu), 2),
            rss_kib=server.resident_kib(),
            processes=len(after.pids),
            p50_us=load.p50_us,
            p99_us=load.p99_us,
            rcodes=load.rcodes,
            problems=load.problems,
        )

    def _compare_generators(self) -> None:
        """The contender that needs least CPU, under each generator: if it is idle then, the generator is the bottleneck."""
        if not self._servers:
            raise BenchError("nobody was left to be measured: " + "; ".join(f"{one.key}: {one.why}" for one in self.left_out))
        saturated = [sample for sample in self.samples if sample.kind == SATURATED]
        best = min(saturated, key=lambda sample: sample.cpu_us)
        server = next(one for one in self._servers if (one.contender.key, one.site.scenario.name) == (best.key, best.scenario))
        for generator in self.generators:
            self.progress.step(f"{generator.name} against {server.label}")
            with contextlib.suppress(BenchError):
                self.comparison.append(self._sample(server, generator, SATURATED, 1, max(1.0, self.plan.seconds), 0))


def steady_rates(samples: Sequence[Sample]) -> dict[str, int]:
    """Scenario -> half of what its slowest contender can do, in full hundreds: a rate at which nobody is overloaded."""
    rates = {}
    for scenario in dict.fromkeys(sample.scenario for sample in samples):
        by_key: dict[str, list[float]] = {}
        for sample in samples:
            if sample.scenario == scenario and sample.kind == SATURATED:
                by_key.setdefault(sample.key, []).append(sample.qps)
        slowest = min(statistics.median(figures) for figures in by_key.values())
        rates[scenario] = max(100, int(slowest * STEADY_SHARE) // 100 * 100)
    return rates


def measure(plan: Plan, progress: Progress, command: str) -> Results:
    """Raises BenchError when nothing can be measured."""
    taken = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with tempfile.TemporaryDirectory(prefix="canal-dns-bench-") as folder, contextlib.ExitStack() as stack:
        work = Measurement(plan, progress, Path(folder), stack)
        work.start()
        work.measure()
        generator = work.generator
        return Results(
            schema=SCHEMA,
            taken=taken,
            commit=commit(),
            command=command,
            machine=describe(work.server_core, work.load_core),
            software=software(),
            method=Method(
                rounds=plan.rounds,
                steady_rounds=plan.steady_rounds,
                seconds=plan.seconds,
                window=WINDOW,
                sockets=SOCKETS,
                names=NAMES,
                generator=f"{generator.name} ({generator.version})",
                upstream=work.upstream,
                rates=work.rates,
            ),
            contestants=work.contestants,
            left_out=work.left_out,
            samples=work.samples,
            comparison=work.comparison,
        )


def commit() -> str:
    try:
        argv = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+changes", "--abbrev=10"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def software() -> dict[str, str]:
    versions = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in ("uvloop",):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, help="saturated rounds (default 5, at least 1)")
    parser.add_argument("--seconds", type=float, default=1.6, help="length of one run (default 1.6)")
    parser.add_argument("--quick", action="store_true", help="one short round: a look, not a measurement; about a minute")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this contender (repeatable)")
    parser.add_argument("--scenario", action="append", default=[], choices=sorted(SCENARIOS), help="only this one")
    parser.add_argument("--list", action="store_true", help="who would be measured here, and who is missing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where RESULTS.md and results/ go (default: this package for a whole run, nowhere for a quick or partial one)",
    )
    options = parser.parse_args(arguments)
    known = {contender.key for contender in CONTENDERS}
    if unknown := set(options.only) - known:
        parser.error(f"--only {', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}")
    if options.rounds < 1 or not 0.1 <= options.seconds <= 60:
        parser.error("--rounds is at least 1, --seconds 0.1 to 60")
    return options


def _list() -> None:
    for contender in CONTENDERS:
        binary = contender.program.find()
        what = f"{binary} {contender.program.version(binary)}" if binary else f"not installed: {contender.program.install}"
        print(f"{contender.scenario:8} {contender.key:16} {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 canal-dns or everybody cannot be measured, 2 bad use."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    plan = Plan(
        rounds=1 if options.quick else options.rounds,
        steady_rounds=1 if options.quick else min(3, options.rounds),
        seconds=min(1.0, options.seconds) if options.quick else options.seconds,
        keys=frozenset(options.only),
        scenarios=tuple(options.scenario or SCENARIOS),
    )
    progress = Progress()
    try:
        results = measure(plan, progress, shlex.join(["python", "-m", "benchmarks.run", *arguments]))
    except BenchError as problem:
        progress.note(f"nothing measured: {problem}")
        return 1
    progress.end()
    partial = options.quick or options.only or options.scenario
    output: Path | None = options.output or (None if partial else HERE)
    if output is None:
        print(render.report(results))
    else:
        results.write(output / "results" / "latest.json")
        render.write(results, output)
        progress.note(f"written: {output / 'RESULTS.md'}")
    return 1 if any(one.key == "canal-dns" for one in results.left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
