"""The measurements: starts, memory, rest, single changes, many at once, and answers while other objects change.

Rules of this file:
- one contender runs at a time, on the server's core; API server, etcd, the writer of other events and the one who asks share
  the other core;
- changes are paced with a random pause and taken back: the cluster is afterwards what it was;
- whoever asks at a fixed pace has real-time priority where that is allowed: what is measured is the server, not the queue for
  the other core.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.machine import core_busy_seconds, pinned
from benchmarks.progress import Progress
from benchmarks.scale import content
from benchmarks.scale.contenders import Canal, Contender, Kubernetes
from benchmarks.scale.content import Size
from benchmarks.scale.noise import OBJECTS
from benchmarks.scale.probe import Asker, Changer, administrator, percentile, question
from benchmarks.scale.results import BUSY, QUIET, AtOnce, Changes, Hits, Memory, Noise, Work
from tests.e2e.cluster import fqdn
from tests.e2e.controlplane import HOST, PORT

_VIP = bytes(map(int, content.VIP.split(".")))
_MERGE = "application/merge-patch+json"
_ROUTES = "/apis/networking.istio.io/v1/namespaces"
_ATTACHED = [f"istio-system/{content.GATEWAY}"]
_ROOT = Path(__file__).parents[2]
_CREATORS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    size: Size
    starts: int = 5
    changes: int = 200
    """Of each contender, under each load: half of them there, half of them back; twice as many for canal-dns, by two shapes."""
    pause: tuple[float, float] = (0.09, 0.15)
    """Seconds between two of them."""
    rest: float = 20.0
    rounds: int = 3
    hits: float = 6.0
    """Seconds of each round."""
    rate: int = 500
    """Queries a second."""
    noise: int = 1000
    """Events a second."""
    at_once: int = 100
    at_once_times: int = 5


class Measurement:
    """`folder`: the control plane's, whose processes run."""

    def __init__(self, plan: Plan, progress: Progress, folder: Path, coredns: Path, cores: tuple[int, int]) -> None:
        self.plan = plan
        self.progress = progress
        self.folder = folder
        self.starts: dict[str, list[float]] = {}
        self.start_cpu: dict[str, list[float]] = {}
        self.memory: list[Memory] = []
        self.changes: list[Changes] = []
        self.hits: list[Hits] = []
        self.work: list[Work] = []
        self.noise: list[Noise] = []
        self.at_once: list[AtOnce] = []
        self.histograms: dict[str, dict[str, float]] = {}
        self.load_average: list[float] = []
        self.foreign = 0.0
        self._taken = str(int(time.time()))
        self._cores = cores
        self._random = random.Random(4)
        self._half = plan.size.virtual_services // 2
        """Objects below this number are changed one by one, those from it on all the time."""
        self._changer = Changer(HOST, PORT, administrator(folder))
        kubeconfig = folder / "kubeconfig"
        self.canal = Canal(folder / "canal-dns", kubeconfig, cores[0])
        known = plan.size.host_of(1)
        self.coredns = Kubernetes(coredns, folder / "coredns", kubeconfig, cores[0], known, lambda rest: len(rest) > 16)

    def run(self) -> None:
        """All of it. Raises BenchError."""
        self.progress.expect(2 * self.plan.starts + 10)
        gc.disable()
        self._touch()
        busy, began, own = core_busy_seconds(self._cores[0]), time.monotonic(), 0.0
        for contender in (self.canal, self.coredns):
            try:
                own += self._one(contender)
            finally:
                contender.end()
        self._changer.close()
        gc.enable()
        self.foreign = max(0.0, core_busy_seconds(self._cores[0]) - busy - own) / (time.monotonic() - began)

    def _touch(self) -> None:
        """The API server itself writes what will be written all the time: in its own form, which it reads fastest."""
        size = self.plan.size
        self._step("touch what will change all the time")
        for number in range(self._half, min(self._half + OBJECTS, size.services)):
            path = f"/api/v1/namespaces/{size.namespace_of(number)}/services/{content.service_name(number)}"
            change = {"metadata": {"annotations": {"example.test/touched": self._taken}}}
            self._changer.finish(self._changer.send("PATCH", path, change, _MERGE)[1])

    def _one(self, contender: Contender) -> float:
        """Everything about one contender; the CPU seconds that it used."""
        own = 0.0
        if isinstance(contender, Canal):
            with pinned(self._cores[1]):
                contender.upstream.launch()
        for number in range(self.plan.starts):
            self._step(f"{contender.key}: start {number + 1} of {self.plan.starts}")
            if number:
                own += sum(contender.cpu())
                contender.process.kill()
            self.starts.setdefault(contender.key, []).append(round(contender.start(), 3))
            self.start_cpu.setdefault(contender.key, []).append(round(sum(contender.cpu()), 3))
        self._tell("starts", self.starts[contender.key])
        time.sleep(3)
        self._remember(contender, "after the start")
        self.progress.note(f"      memory: {self.memory[-1]}; CPU s to ready: {self.start_cpu[contender.key]}")
        self._step(f"{contender.key}: {self.plan.rest:g} s at rest")
        self._watch_work(contender, "rest", lambda: time.sleep(self.plan.rest))
        change = self._bind if isinstance(contender, Canal) else self._exist
        self._step(f"{contender.key}: single changes")
        with self._told(contender, QUIET):
            change(contender, QUIET)
        if isinstance(contender, Canal):
            self._step(f"{contender.key}: {self.plan.at_once} VirtualServices at once")
            self._at_once(contender)
        self._step(f"{contender.key}: single changes among others")
        with self._noisy(contender, "changes"), self._told(contender, BUSY):
            change(contender, BUSY)
        self._remember(contender, "after single changes among others")
        self._step(f"{contender.key}: queries at a fixed pace, with and without events")
        for number in range(1, self.plan.rounds + 1):
            self._watch_work(contender, QUIET, partial(self._paced, contender, QUIET, number))
            with self._noisy(contender, "queries"):
                self._watch_work(contender, BUSY, partial(self._paced, contender, BUSY, number))
        self._remember(contender, "at the end")
        return own + sum(contender.cpu())

    def _tell(self, what: str, seconds: Sequence[float]) -> None:
        p50, p99, most = (percentile(seconds, share) * 1e3 for share in (0.5, 0.99, 1.0))
        self.progress.note(f"      {what}: n {len(seconds)}, p50 {p50:.2f}, p99 {p99:.2f}, max {most:.2f} ms")

    def _step(self, text: str) -> None:
        self.load_average.append(round(os.getloadavg()[0], 2))
        self.progress.step(text)

    def _remember(self, contender: Contender, moment: str) -> None:
        found = contender.memory()
        self.memory.append(Memory(contender.key, moment, [one["rss"] for one in found], [one["pss"] for one in found]))

    def _watch_work(self, contender: Contender, load: str, during: Callable[[], Any]) -> None:
        before, events, began = contender.cpu(), self._events(contender), time.monotonic()
        during()
        after, seconds = contender.cpu(), time.monotonic() - began
        if len(before) != len(after):
            raise BenchError(f"{contender.key}: a process ended or began while it was measured")
        cpu = [round(new - old, 6) for new, old in zip(after, before, strict=True)]
        self.work.append(Work(contender.key, load, seconds, cpu, self._events(contender) - events))

    @contextlib.contextmanager
    def _told(self, contender: Contender, load: str) -> Iterator[None]:
        """What canal-dns says itself of the changes meanwhile."""
        if not isinstance(contender, Canal):
            yield
            return
        before = contender.event_to_answer()
        yield
        after = contender.event_to_answer()
        self.histograms[load] = {key: value - before.get(key, 0.0) for key, value in after.items()}

    def _events(self, contender: Contender) -> float:
        return contender.events() if isinstance(contender, Canal) else 0.0

    # -- single changes ---------------------------------------------------------------------------------------------------

    def _bind(self, contender: Contender, load: str) -> None:
        """VirtualServices leave their Gateway and come back."""
        size, asker = self.plan.size, Asker(contender.address)
        for shape, odd in (("its own host", 0), ("host *", 1)):
            gone: list[float] = []
            back: list[float] = []
            numbers = range(odd, self._half, 2)
            for number in self._random.sample(numbers, min(len(numbers), self.plan.changes // 2)):
                path = f"{_ROUTES}/{content.route_namespace(size, number)}/virtualservices/{content.service_name(number)}"
                asked = question(size.host_of(number))
                for gateways, figures, bound in ((["mesh"], gone, False), (_ATTACHED, back, True)):
                    self._pause()
                    change = {"spec": {"gateways": gateways}}
                    figures.append(self._change(asker, asked, _is_vip(bound), "PATCH", path, change, _MERGE))
            for what, figures in ((f"VirtualService with {shape} bound", back), (f"VirtualService with {shape} unbound", gone)):
                self.changes.append(Changes(contender.key, load, what, figures))
                self._tell(f"{what}, {load}", figures)
        asker.close()

    def _exist(self, contender: Contender, load: str) -> None:
        """Services come and go."""
        asker, namespace = Asker(contender.address), self.plan.size.namespace_of(0)
        made: list[float] = []
        gone: list[float] = []
        path = f"/api/v1/namespaces/{namespace}/services"
        # Among other events a new Service costs the API server a second: half as many have to do.
        count = self.plan.changes // (2 if load == QUIET else 4)
        for number in range(count):
            name = f"probe-{load}-{self._taken}-{number}"
            asked = question(fqdn(f"{name}.{namespace}"))
            thing = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
            self._pause()
            made.append(self._change(asker, asked, lambda rcode, _: rcode == 0, "POST", path, thing))
            self._pause()
            gone.append(self._change(asker, asked, lambda rcode, _: rcode == 3, "DELETE", f"{path}/{name}"))
        self.changes += [
            Changes(contender.key, load, "Service created", made),
            Changes(contender.key, load, "Service deleted", gone),
        ]
        self._tell(f"Service created, {load}", made)
        asker.close()

    def _pause(self) -> None:
        time.sleep(self._random.uniform(*self.plan.pause))

    def _change(
        self, asker: Asker, asked: bytes, right: Callable[[int, bytes], bool], method: str, path: str, body: Any = None,
        content_type: str = "application/json",
    ) -> float:  # fmt: skip
        replied, first = self._changer.send(method, path, body, content_type)
        try:
            answered = asker.until(asked, right)
        finally:
            self._changer.finish(first)
        return round(answered - replied, 6)

    # -- many at once -----------------------------------------------------------------------------------------------------

    def _at_once(self, contender: Contender) -> None:
        """Services that nobody has bound get their VirtualServices together."""
        size, count = self.plan.size, self.plan.at_once
        free = [number for number in range(size.virtual_services, size.services) if number % 3 and number % 50 != 7][:count]
        changers = [Changer(HOST, PORT, administrator(self.folder)) for _ in range(_CREATORS)]
        asker = Asker(contender.address)
        for _ in range(self.plan.at_once_times):
            things = [content.virtual_service(size, number) for number in free]
            began = time.perf_counter()
            with ThreadPoolExecutor(_CREATORS) as pool:
                parts = [things[at::_CREATORS] for at in range(_CREATORS)]
                replied = max(pool.map(_create_all, changers, parts))
            answered = max(asker.until(question(size.host_of(number)), _is_vip(True)) for number in free)
            self.progress.note(f"      {replied - began:.3f} s to the last reply, {answered - began:.3f} s to the last answer")
            self.at_once.append(AtOnce(count, round(replied - began, 6), round(answered - began, 6)))
            for number in free:
                path = f"{_ROUTES}/{content.route_namespace(size, number)}/virtualservices/{content.service_name(number)}"
                self._changer.finish(self._changer.send("DELETE", path)[1])
            for number in free:
                asker.until(question(size.host_of(number)), _is_vip(False))
            time.sleep(3)
        asker.close()
        for changer in changers:
            changer.close()

    # -- other events -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _noisy(self, contender: Contender, during: str) -> Iterator[None]:
        """Other objects change all the time."""
        command = [sys.executable, "-m", "benchmarks.scale.noise"]
        command += [str(self.folder), str(self.plan.noise), str(self._half)]
        with pinned(self._cores[1]):
            writer = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            if not writer.stdout.readline():
                raise BenchError("no other events can be written")
            time.sleep(1)
            yield
            said = json.loads(writer.communicate(b"\n", timeout=30)[0])
            self.noise.append(Noise(contender.key, during, said["written"], said["seconds"]))
            self.progress.note(f"      {said['written'] / said['seconds']:.0f} other events a second")
        finally:
            if writer.poll() is None:
                writer.kill()
                writer.wait()

    # -- queries at a fixed pace ------------------------------------------------------------------------------------------

    def _paced(self, contender: Contender, load: str, number: int) -> None:
        names = [question(self.plan.size.host_of(one)) for one in range(min(1000, self.plan.size.virtual_services))]
        asker = Asker(contender.address)
        seconds: list[float] = []
        lost = 0
        with _first():
            began = time.perf_counter()
            for turn in range(int(self.plan.hits * self.plan.rate)):
                # Spread around its turn, so that no rhythm of the server's is met.
                due = began + (turn + self._random.random()) / self.plan.rate
                time.sleep(max(0.0, due - time.perf_counter()))
                asked = time.perf_counter()
                try:
                    asker.ask(names[turn % len(names)])
                    seconds.append(round(time.perf_counter() - asked, 6))
                except OSError:
                    lost += 1
        asker.close()
        self.hits.append(Hits(contender.key, load, number, seconds, lost))
        self._tell(f"hits, {load}", seconds)


def _is_vip(wanted: bool) -> Callable[[int, bytes], bool]:
    return lambda rcode, rest: rcode == 0 and (_VIP in rest) is wanted


def _create_all(changer: Changer, things: Sequence[content.Object]) -> float:
    """When the last reply arrived."""
    replied = 0.0
    for thing in things:
        path = f"{_ROUTES}/{thing['metadata']['namespace']}/virtualservices"
        replied, first = changer.send("POST", path, thing)
        changer.finish(first)
    return replied


@contextlib.contextmanager
def _first() -> Iterator[None]:
    """This thread runs as soon as it can, where the system lets it."""
    assert threading.current_thread() is threading.main_thread()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
