"""The measurement itself: one block after the other, in each everybody side by side, in interleaved rounds.

Rules of this file:
- all servers of a block are started first and stay up, idle, while others are measured; the load comes from the other core;
- a round measures every contender once, in the same order; ratios are taken within a round;
- each run begins with a moment of load that is not counted, since a server that has waited for its turn is cold;
- one contender that fails is reported as left out.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders.base import Contender
from benchmarks.errors import BenchError
from benchmarks.load.generators import Generator, Load, find_generators
from benchmarks.machine import core_busy_seconds, pinned, two_cores
from benchmarks.progress import Progress
from benchmarks.results import CALM, HALF, SATURATED, Contestant, Deltas, LeftOut, Sample
from benchmarks.scenarios import DELTA, SCENARIOS, UPSTREAM, Scenario
from benchmarks.server import Server, running

WARM_UP = 0.6
"""Seconds of load before the first round: caches fill, heaps grow, Python specialises its bytecode."""
PRELOADS = (0.15, 0.4, 1.0, 3.0)
"""Seconds of load before each run: the first will do, unless more must be asked."""
CALM_RATE = 1000
"""Queries a second of the calm runs: what most clusters run at."""
HALF_SHARE = 0.5
DELTA_WORKERS = (1, 2)
DELTA_NAMES = 10_000
TOLERANCE = 0.01
"""By so much the shares of response codes and of empty answers may differ from what the queries call for."""


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    paced_rounds: int
    seconds: float
    calm_seconds: float
    keys: frozenset[str]
    """Empty: everybody."""
    blocks: tuple[str, ...]
    changes: int
    """One-name changes of the table in a run of the block `delta`."""

    def wants(self, contender: Contender, block: str) -> bool:
        return SCENARIOS[contender.scenario].block == block and (not self.keys or contender.key in self.keys)


@dataclass(frozen=True, slots=True)
class Entry:
    """A server under the queries of a scenario; several scenarios may ask the same server."""

    server: Server
    scenario: Scenario

    @property
    def key(self) -> str:
        return self.server.contender.key

    @property
    def label(self) -> str:
        return f"{self.key} ({self.scenario.name})"


class Measurement:
    """One run of the whole benchmark."""

    def __init__(
        self, plan: Plan, progress: Progress, folder: Path, contenders: Sequence[Contender], upstreams: Sequence[Contender]
    ) -> None:
        self.plan = plan
        self.progress = progress
        self.server_core, self.load_core = two_cores()
        self.generators = find_generators(self.load_core)
        self.left_out: list[LeftOut] = []
        self.contestants: list[Contestant] = []
        self.samples: list[Sample] = []
        self.deltas: list[Deltas] = []
        self.comparison: list[Sample] = []
        self.upstream = ""
        self._contenders = contenders
        self._upstreams = upstreams
        self._folder = folder

    @property
    def generator(self) -> Generator:
        return self.generators[0]

    def run(self) -> None:
        """Every block of the plan. Raises BenchError when nobody is left."""
        with contextlib.ExitStack() as stack:
            self.progress.expect(1)
            upstream_port = self._start_upstream(stack)
            for block in self.plan.blocks:
                if block == DELTA:
                    self._measure_deltas()
                else:
                    self._measure_block(block, upstream_port)
        if not self.samples and not self.deltas:
            raise BenchError("nobody can be measured: " + "; ".join(f"{one.key}: {one.why}" for one in self.left_out))

    # -- who is there ---------------------------------------------------------------------------------------------------

    def _start_upstream(self, stack: contextlib.ExitStack) -> int:
        for contender in self._upstreams:
            if (binary := contender.program.find()) is not None:
                self.progress.step(f"start the upstream: {contender.key}")
                server = stack.enter_context(self._running(contender, binary, UPSTREAM, self.load_core, 0))
                self.upstream = f"{contender.key} {contender.program.version(binary)}"
                return server.site.port
        installs = " or ".join(contender.program.install for contender in self._upstreams)
        raise BenchError(f"no authoritative server that could stand behind the forwarders; install one: {installs}")

    @contextlib.contextmanager
    def _running(
        self, contender: Contender, binary: Path, scenario: Scenario, core: int, upstream_port: int
    ) -> Iterator[Server]:
        folder = self._folder / re.sub(r"[^a-z0-9]+", "-", f"{scenario.name} {contender.key}")
        with running(contender, binary, scenario, folder, core, upstream_port) as server:
            yield server

    def _start(self, block: str, upstream_port: int, stack: contextlib.ExitStack) -> list[Entry]:
        """Everybody of a block; each is ready, that is: has answered rightly."""
        wanted = [contender for contender in self._contenders if self.plan.wants(contender, block)]
        borrowers = [one for one in SCENARIOS.values() if one.block == block and one.served_by]
        self.progress.expect(len(wanted))
        entries = []
        for contender in wanted:
            self.progress.step(f"start {contender.key} ({contender.scenario})")
            try:
                binary = contender.program.find()
                if binary is None:
                    self._leave_out(contender.key, contender.scenario, "not installed", contender.program.install)
                    continue
                scenario = SCENARIOS[contender.scenario]
                server = stack.enter_context(self._running(contender, binary, scenario, self.server_core, upstream_port))
                version = contender.program.version(binary)
            except (BenchError, OSError, subprocess.SubprocessError) as problem:
                self._leave_out(contender.key, contender.scenario, str(problem), "")
                continue
            for asked in (scenario, *(one for one in borrowers if one.served_by == scenario.name)):
                entries.append(Entry(server, asked))
                self.contestants.append(Contestant(contender.key, asked.name, version, contender.note))
        return entries

    def _leave_out(self, key: str, scenario: str, why: str, install: str) -> None:
        self.left_out.append(LeftOut(key, scenario, why, install))
        self.progress.note(f"left out: {key} ({scenario}): {why}" + (f" ({install})" if install else ""))

    # -- the rounds -------------------------------------------------------------------------------------------------------

    def _measure_block(self, block: str, upstream_port: int) -> None:
        with contextlib.ExitStack() as stack:
            entries = self._start(block, upstream_port, stack)
            for scenario in {entry.scenario.name: entry.scenario for entry in entries}.values():
                scenario.write_queries(self._queries(scenario))
            self.progress.expect(len(entries) * (1 + self.plan.rounds))
            for entry in list(entries):
                self.progress.step(f"warm up {entry.label}")
                self._load(entries, entry, SATURATED, 0, 0)
            for number in range(1, self.plan.rounds + 1):
                for entry in list(entries):
                    self.progress.step(f"round {number} of {self.plan.rounds}, saturated: {entry.label}")
                    self._load(entries, entry, SATURATED, number, 0)
            for kind in (HALF, CALM):
                paced = [entry for entry in entries if kind in entry.scenario.kinds]
                self.progress.expect(len(paced) * self.plan.paced_rounds)
                for number in range(1, self.plan.paced_rounds + 1):
                    for entry in [one for one in paced if one in entries]:
                        rate = CALM_RATE if kind == CALM else half_rate(self.samples, entry)
                        self.progress.step(
                            f"round {number} of {self.plan.paced_rounds}, {kind} ({rate:,} queries/s): {entry.label}"
                        )
                        self._load(entries, entry, kind, number, rate)
            if block == self.plan.blocks[0]:
                self._compare_generators(entries)

    def _queries(self, scenario: Scenario) -> Path:
        return self._folder / f"{scenario.name}.queries"

    def _load(self, entries: list[Entry], entry: Entry, kind: str, number: int, rate: int) -> None:
        """One run, kept as a sample unless it is the warm-up (round 0); a server that fails it is out from then on."""
        try:
            if number:
                self._preload(entry)
            sample = self._sample(entry, self.generator, kind, number, rate)
        except BenchError as problem:
            entries.remove(entry)
            name = entry.scenario.name
            self.samples = [sample for sample in self.samples if (sample.key, sample.scenario) != (entry.key, name)]
            self.contestants = [one for one in self.contestants if (one.key, one.scenario) != (entry.key, name)]
            self._leave_out(entry.key, name, str(problem), "")
            return
        if number:
            self.samples.append(sample)

    def _preload(self, entry: Entry) -> None:
        """A moment of load; where caches answer, a longer one until everything was asked."""
        scenario = entry.scenario
        wanted = len(scenario.asked or scenario.addresses) if scenario.cached else 0
        for seconds in PRELOADS:
            if self._send(entry, self.generator, SATURATED, seconds, 0).answered >= wanted:
                return

    def _send(self, entry: Entry, generator: Generator, kind: str, seconds: float, rate: int) -> Load:
        port, queries, shape = entry.server.site.port, self._queries(entry.scenario), entry.scenario.shape
        if kind == SATURATED:
            return generator.saturate(port, queries, seconds, shape)
        return generator.paced(port, queries, seconds, shape, rate, calm=kind == CALM)

    def _sample(self, entry: Entry, generator: Generator, kind: str, number: int, rate: int) -> Sample:
        server, scenario = entry.server, entry.scenario
        seconds = WARM_UP if not number else self.plan.calm_seconds if kind == CALM else self.plan.seconds
        before, busy_before = server.usage(), core_busy_seconds(self.server_core)
        load = self._send(entry, generator, kind, seconds, rate)
        after, busy_after = server.usage(), core_busy_seconds(self.server_core)
        server.check()
        if before.pids != after.pids:
            raise BenchError("a process of it ended or began while it was measured")
        _check(load, scenario)
        by_part = {part: round(after.cpu[part] - before.cpu[part], 6) for part in after.cpu}
        cpu = sum(by_part.values())
        return Sample(
            key=entry.key,
            scenario=scenario.name,
            kind=kind,
            round=number,
            rate=rate,
            generator=generator.name,
            sent=load.sent,
            answered=load.answered,
            lost=load.lost,
            seconds=round(load.seconds, 4),
            qps=round(load.qps, 1),
            cpu_seconds=round(cpu, 6),
            foreign_seconds=round(max(0.0, busy_after - busy_before - cpu), 2),
            cpu_by_part=by_part,
            rss_by_part=server.resident_kib(),
            p50_us=load.p50_us,
            p99_us=load.p99_us,
            p999_us=load.p999_us,
            rcodes=load.rcodes,
            problems=load.problems,
        )

    def _compare_generators(self, entries: Sequence[Entry]) -> None:
        """The contender that needs least CPU, under each generator: if it is idle then, the generator is the bottleneck."""
        saturated = [sample for sample in self.samples if sample.kind == SATURATED]
        if not saturated or not entries:
            return
        best = min(saturated, key=lambda sample: sample.cpu_us)
        entry = next(one for one in entries if (one.key, one.scenario.name) == (best.key, best.scenario))
        self.progress.expect(len(self.generators))
        for generator in self.generators:
            self.progress.step(f"{generator.name} against {entry.label}")
            with contextlib.suppress(BenchError):
                self.comparison.append(self._sample(entry, generator, SATURATED, 1, 0))

    # -- changes of the table ---------------------------------------------------------------------------------------------

    def _measure_deltas(self) -> None:
        self.progress.expect(self.plan.paced_rounds * len(DELTA_WORKERS))
        for number in range(1, self.plan.paced_rounds + 1):
            for workers in DELTA_WORKERS:
                self.progress.step(f"round {number} of {self.plan.paced_rounds}, changes of one name: {workers} workers")
                try:
                    self.deltas.append(self._delta(number, workers))
                except BenchError as problem:
                    self._leave_out("canal-dns", DELTA, str(problem), "")
                    return

    def _delta(self, number: int, workers: int) -> Deltas:
        argv = [sys.executable, "-m", "benchmarks.delta", "--names", str(DELTA_NAMES)]
        argv += ["--workers", str(workers), "--changes", str(self.plan.changes)]
        with pinned(self.server_core):
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
            )
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise BenchError("the changes did not end") from None
        if process.returncode != 0:
            raise BenchError(err.strip()[-300:])
        spent = json.loads(out)
        return Deltas(number, DELTA_NAMES, workers, self.plan.changes, round(spent["control"], 6), round(spent["workers"], 6))


def _check(load: Load, scenario: Scenario) -> None:
    """Raises BenchError for answers that are not those which the queries call for."""
    if not load.answered:
        raise BenchError(f"no answers to {load.sent} queries")
    rcodes = {code: count / load.answered for code, count in load.rcodes.items()}
    # A run may end in the middle of the queries: what is asked then differs by what one time through them may.
    some = TOLERANCE + min(0.1, len(scenario.asked) / load.answered if scenario.missing else 0)
    if abs(rcodes.get("3", 0) - scenario.missing) > some or rcodes.get("0", 0) < 1 - scenario.missing - some:
        raise BenchError(f"{load.answered} answers to {load.sent} queries, by response code: {load.rcodes}")
    empty = load.problems.get("empty", 0)
    if empty / load.answered > scenario.empty + some:
        raise BenchError(f"{empty} of {load.answered} answers are empty")


def half_rate(samples: Sequence[Sample], entry: Entry) -> int:
    """Half of what a contender answered in saturated runs (median), in full hundreds."""
    peak = statistics.median(
        sample.qps
        for sample in samples
        if (sample.key, sample.scenario, sample.kind) == (entry.key, entry.scenario.name, SATURATED)
    )
    return max(100, int(peak * HALF_SHARE) // 100 * 100)


def minutes_since(began: float) -> float:
    return round((time.monotonic() - began) / 60, 1)
