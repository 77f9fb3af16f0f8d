"""canal-dns against istiod, live: for invented objects that come, change and go, `/bindings` and Envoy agree.

canal-dns runs with `settle: 0s`, and with its policies turned to warnings, so that almost every name can be compared; what
cannot be is counted. CANAL_DNS_AGREEMENT_STEPS (60) makes it longer, CANAL_DNS_AGREEMENT_SEED repeats a run.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import agreement, cluster, mesh, objects
from tests.e2e.agreement import GATEWAY_PORTS, Comparison, Look, Mark, Watcher
from tests.e2e.ask import ask
from tests.e2e.conftest import Say, Tell
from tests.e2e.invention import CERTIFICATE, PORT_NAMES, SYSTEM, key_of
from tests.e2e.inventor import Inventor, Operation
from tests.e2e.kube import ApiError
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.programmed import Programmed, Served
from tests.e2e.proof import AccessLog, Pods, Prover, best_ways
from tests.e2e.sites import ClusterSite
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

STEPS = int(os.environ.get("CANAL_DNS_AGREEMENT_STEPS", "60"))
SEED = int(os.environ.get("CANAL_DNS_AGREEMENT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
CHAPTER = 8
"""Steps after which everything but the Services is replaced."""
ENFORCED = 4
"""Steps after which the default `portGuard` is tried too."""

BINDING = {"settle": "0s", "portGuard": "warn", "crossNamespace": "allow"}

ISTIOD_LAG = 2.0
"""Seconds in which istiod and Envoy follow a change: no longer may canal-dns bind what Envoy does not serve yet."""
OUR_LAG = 1.0
"""Seconds that canal-dns may be behind Envoy."""


@pytest.fixture(scope="module")
def dns(make_cluster_site: Callable[..., ClusterSite]) -> ClusterSite:
    site = make_cluster_site(B, settings={"ttl": 1, "binding": BINDING})
    site.start()
    return site


@pytest.fixture
def inventor(world: World) -> Iterator[Inventor]:
    """With its namespaces, and a certificate; all objects that are left at the end are removed."""
    shop, prod = world.fresh("shop"), world.fresh("prod")
    for name in (shop, prod):
        world.kube.create(objects.namespace(name))
    folder = world.control.authority.folder
    world.control.authority.sign("invented", "invented", hosts=("*.svc.cluster.local",))
    data = {f"tls.{end}": base64.b64encode((folder / f"invented.{end}").read_bytes()).decode() for end in ("crt", "key")}
    secret = objects.made("v1", "Secret", CERTIFICATE, SYSTEM, type="kubernetes.io/tls", data=data)
    world.kube.apply(secret)
    made = Inventor(SEED, shop, prod)
    try:
        yield made
    finally:
        world.kube.remove(*reversed(made.objects.values()), secret)


@pytest.fixture
def pods(world: World, inventor: Inventor) -> Iterator[Pods]:
    """One pod per Service, v1, which answers whether or not the Service is there."""
    folder = world.control.authority.folder
    running = Pods(folder / "invented.crt", folder / "invented.key")
    ports = [(10000 + number, name) for number, name in PORT_NAMES.items()]
    made = []
    try:
        for name, namespace in inventor.shapes:
            address = world.pod_ip()
            pod = objects.pod(f"{name}-v1", namespace, address, {"app": name, "version": "v1"})
            made += [pod, objects.endpoint_slice(name, namespace, [address], ports=ports, pods=[f"{name}-v1"])]
            for thing in made[-2:]:
                world.kube.create(thing)
            world.kube.status(pod)
            running.serve(cluster.fqdn(f"{name}.{namespace}"), address, [number for number, _ in ports])
        yield running
    finally:
        running.end()
        world.kube.remove(*made)


@pytest.fixture
def mark(world: World) -> Iterator[Mark]:
    made = Mark(world.kube, world.fresh("mark"))
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    running = Watcher()
    running.start()
    try:
        yield running
    finally:
        running.end()


@dataclass(frozen=True, slots=True)
class Step:
    """The cluster when it was quiet again after some changes."""

    number: int
    done: list[str]
    looks: list[Look]
    """Since the step before; the last one is the quiet one."""
    programmed: Programmed
    ports: list[int]
    """Those of the gateway where Envoy does what istiod wants."""
    served: dict[str, Served]
    compared: Comparison

    @property
    def now(self) -> Look:
        return self.looks[-1]


class Run:
    """The steps of one test, and what came of them."""

    def __init__(self, world: World, dns: ClusterSite, inventor: Inventor, mark: Mark, watcher: Watcher, folder: Path) -> None:
        self.world, self.dns, self.inventor, self.mark, self.watcher, self.folder = world, dns, inventor, mark, watcher, folder
        self.chance = random.Random(SEED)
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.longest: dict[str, float] = {}
        self.prover = Prover(AccessLog(world.mesh.access_log))

    def step(self, number: int, operations: Iterator[Operation]) -> None:
        """Change, wait until all is quiet, look, and try."""
        before = self.refusals()
        done: list[str] = []
        for operation in operations:
            if done and self.chance.random() < 0.4:
                time.sleep(self.chance.random() * 0.4)  # istiod takes what comes at once together, and what does not apart
            done.append(self.do(operation))
        self.mark.move()
        now = agreement.quiet(self.mark.host, 30, self.alive)
        looks = [*self.watcher.take(), now]
        programmed = now.programmed()
        self.counts["steps"] += 1
        if self.refusals() != before:
            self.counts["steps with refused routes"] += 1
            return
        ports = [port for port in GATEWAY_PORTS if port not in programmed.refused_ports]
        served = programmed.served(self.inventor.names, ports)
        compared = agreement.compare(now.said(), served, self.inventor.there())
        step = Step(number, done, looks, programmed, ports, served, compared)
        self.count(compared)
        for name, told in compared.differences.items():
            self.tell(step, f"{name}: {told}\n{served.get(name)}\n{self.dns.explain(name)[1]}")
        self.compare_refused(step)
        if not programmed.refused_ports:
            self.follow(step)
        self.try_bound(step)
        self.try_skipped(step)
        if number % ENFORCED == 0:
            self.enforce(step)

    def alive(self) -> None:
        for process in (self.world.mesh.istiod, self.world.mesh.envoy, self.dns.canal_dns):
            process.alive()

    def refusals(self) -> dict[str, int]:
        """Of routes: what Envoy goes on with is not known then. Of listeners it says which, and clusters are there or not:
        istiod gives the same one twice for a subset that stands twice in a DestinationRule, and Envoy keeps the first."""
        return {name: times for name, times in self.world.mesh.rejected().items() if ".rds." in name}

    def compare_refused(self, step: Step) -> None:
        """Where Envoy keeps an old state, canal-dns says so, and counts nothing."""
        theirs, ours = step.programmed.refused_ports, agreement.refused_ports(json.loads(step.now.bindings))
        self.counts["steps with refused ports"] += bool(theirs)
        if ours != theirs:
            self.tell(
                step,
                f"Envoy refuses ports {theirs or 'nowhere'}; canal-dns says {ours or 'nowhere'}\n{step.programmed.refused}",
            )

    def count(self, compared: Comparison) -> None:
        self.counts["names"] += len(self.inventor.names)
        self.counts["names compared"] += len(compared.agreed) + len(compared.differences)
        self.counts["bound by both"] += sum(one.bound for one in compared.agreed.values())
        self.counts["forgiven"] += compared.forgiven
        self.counts["policies"] += compared.policies
        self.counts["without a Service"] += compared.absent

    def do(self, operation: Operation) -> str:
        """In words what became of it."""
        thing = operation.thing
        kind, namespace, name = key_of(thing)
        self.counts["changes"] += 1
        try:
            if operation.verb == "create":
                self.world.kube.create(thing)
            elif operation.verb == "delete":
                self.world.kube.delete(kind, name, namespace)
            else:
                change: list[Any] = [{"op": "replace", "path": "/spec", "value": thing["spec"]}]
                if kind == "Service":
                    change = [
                        {"op": "replace", "path": "/spec/ports", "value": thing["spec"]["ports"]},
                        {"op": "add", "path": "/metadata/annotations", "value": thing["metadata"]["annotations"]},
                    ]
                self.world.kube.patch(kind, name, namespace, change, how="json")
        except ApiError as problem:
            if problem.status not in (400, 422):
                raise
            self.counts["changes that the API server refused"] += 1
            return f"refused: {operation}: {problem}"
        self.inventor.keep(operation)
        return str(operation)

    def follow(self, step: Step) -> None:
        """While objects change: each may be ahead of the other for a short while."""
        for one in agreement.apart(step.looks, self.inventor.names):
            what = "canal-dns behind Envoy" if one.late else "bound before Envoy" if one.bound else "unbound before Envoy"
            self.longest[what] = max(self.longest.get(what, 0.0), one.seconds)
            self.counts[what] += 1
            if one.seconds > (OUR_LAG if one.late else ISTIOD_LAG):
                self.tell(step, f"while objects change: {one}")

    def try_bound(self, step: Step) -> None:
        """Each bound name on each port: by a question to canal-dns, and by a request to the address that it gives."""
        for name, said in step.compared.agreed.items():
            if said.bound:
                addresses = ask(cluster.CANAL_DNS[0], name, "A").addresses()
                if addresses != {mesh.VIP}:
                    self.tell(step, f"{name} is bound, and its address is {addresses}")
                    continue
                for way in best_ways(step.served[name]):
                    if problem := self.prover.served(mesh.VIP, name, way):
                        self.tell(step, f"request for the bound {name}: {problem}")

    def try_skipped(self, step: Step) -> None:
        """Some of those that are not: the gateway would not bring their requests to them."""
        skipped = [name for name, said in step.compared.agreed.items() if not said.bound]
        for name in self.chance.sample(skipped, min(2, len(skipped))):
            if mesh.VIP in ask(cluster.CANAL_DNS[0], name, "A").addresses():
                self.tell(step, f"{name} is skipped, and its address is the VIP")
            for port in step.ports:
                for tls in step.programmed.asked(port):
                    if problem := self.prover.not_served(mesh.VIP, name, port, tls=tls):
                        self.tell(step, f"request for the skipped {name}: {problem}")

    def enforce(self, step: Step) -> None:
        """The default `portGuard` on the quiet cluster, taken over live: bound is what is served on all its ports."""
        said = step.now.said()
        expected = set()
        for (kind, namespace, name), thing in self.inventor.objects.items():
            full = cluster.fqdn(f"{name}.{namespace}")
            if kind == "Service" and full in step.served and said[full].comparable:
                ports = {(port["protocol"], port["port"]) for port in thing["spec"]["ports"]}
                if ports <= {("TCP", port) for port in step.served[full].ports}:
                    expected.add(full)
        self.counts["bound with portGuard: enforce"] += len(expected)
        before = self.bound()
        self.reconfigure({**BINDING, "portGuard": "enforce"})
        try:
            until(lambda: self.bound() == expected, 5, lambda: f"with portGuard: enforce {expected}; bound is {self.bound()}")
        except AssertionError as problem:
            self.tell(step, str(problem))
        self.reconfigure(BINDING)
        until(lambda: self.bound() == before, 5, lambda: f"with portGuard: warn again {before}; bound is {self.bound()}")

    def bound(self) -> set[str]:
        said = agreement.said_of(self.dns.canal_dns.bindings())
        return {name for name in self.inventor.names if name in said and said[name].bound}

    def reconfigure(self, binding: dict[str, str]) -> None:
        ours = self.dns.canal_dns
        loads = ours.series("canal_dns_config_reloads_total", result="ok")
        ours.configure(binding=binding)
        ours.signal(signal.SIGHUP)
        until(
            lambda: ours.series("canal_dns_config_reloads_total", result="ok") > loads, 10, "the configuration is loaded again"
        )

    def tell(self, step: Step, text: str) -> None:
        """A finding, with all that is needed to look into it."""
        path = self.folder / f"finding-{SEED}-{len(self.findings)}.json"
        all_of_it = {
            "seed": SEED, "step": step.number, "done": step.done, "text": text,
            "objects": list(self.inventor.objects.values()),
            "bindings": json.loads(step.now.bindings), "dump": json.loads(step.now.dump),
        }  # fmt: skip
        path.write_text(json.dumps(all_of_it))
        self.findings.append(f"seed {SEED}, step {step.number}, {path}:\n  {'; '.join(step.done)}\n  {text}")


@pytest.mark.timeout(120 + 10 * STEPS)
def test_canal_dns_and_the_gateway_agree(
    world: World, dns: ClusterSite, inventor: Inventor, pods: Pods, mark: Mark, watcher: Watcher, tmp_path: Path,
    tell: Tell, measured: Say,
) -> None:  # fmt: skip
    print(f"CANAL_DNS_AGREEMENT_SEED={SEED}")
    run = Run(world, dns, inventor, mark, watcher, tmp_path)
    began = time.monotonic()
    run.step(0, inventor.services())
    for number in range(STEPS):
        run.step(number + 1, inventor.chapter() if number % CHAPTER == 0 else inventor.step())
    counts = run.counts
    share = counts["names compared"] / max(1, counts["names"])
    tell(
        f"seed {SEED}: {counts['steps']} steps, {counts['changes']} changes of objects, both compared name by name",
        f"{counts['names compared']} names compared ({share:.0%} of all), {counts['bound by both']} of them bound; "
        f"{run.prover.asked} requests; {len(run.findings)} findings",
    )
    for line in (
        f"agreement: {dict(counts)}; looks while objects change: {watcher.count}; requests {run.prover.asked}, "
        f"{run.prover.unreachable} of them to clusters without endpoints or faults; {time.monotonic() - began:.0f} s",
        "agreement: longest " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in sorted(run.longest.items())),
    ):
        measured(line)
        print(line)
    assert not run.findings, "\n\n".join(run.findings)
    assert share > 0.5, counts
    assert counts["bound by both"] >= STEPS / 10, counts
    assert counts["steps with refused routes"] <= max(2, counts["steps"] / 2), counts
