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
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import agreement, cluster, mesh, objects
from tests.e2e.agreement import GATEWAY_PORTS, Mark, Watcher
from tests.e2e.ask import ask
from tests.e2e.conftest import Say, Tell
from tests.e2e.invention import CERTIFICATE, PORT_NAMES, SYSTEM
from tests.e2e.inventor import Inventor, Operation
from tests.e2e.kube import ApiError
from tests.e2e.layouts import B
from tests.e2e.processes import until
from tests.e2e.programmed import Served
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


class Run:
    """The steps of one test, and what came of them."""

    def __init__(self, world: World, dns: ClusterSite, inventor: Inventor, mark: Mark, watcher: Watcher, folder: Path) -> None:
        self.world, self.dns, self.inventor, self.mark, self.watcher, self.folder = world, dns, inventor, mark, watcher, folder
        self.chance = random.Random(SEED)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest: dict[str, float] = {}
        self.prover = Prover(AccessLog(world.mesh.access_log))

    def step(self, number: int, operations: Iterator[Operation]) -> None:
        """Change, wait until all is quiet, look, and try."""
        before = self.world.mesh.rejected()
        done = []
        for operation in operations:
            if done and self.chance.random() < 0.4:
                time.sleep(self.chance.random() * 0.4)  # istiod takes what comes at once together, and what does not apart
            done.append(self.do(operation))
        self.mark.move()
        now = agreement.quiet(self.mark.host, 30, self.alive)
        looks = [*self.watcher.take(), now]
        programmed = now.programmed()
        self.counts["steps"] += 1
        if programmed.refused or self.world.mesh.rejected() != before:
            self.counts["steps that Envoy refused"] += 1
            return
        served = programmed.served(self.inventor.names, GATEWAY_PORTS)
        compared = agreement.compare(now.said(), served, self.inventor.there())
        self.counts["names"] += len(self.inventor.names)
        self.counts["names compared"] += len(compared.agreed) + len(compared.differences)
        self.counts["bound by both"] += sum(one.bound for one in compared.agreed.values())
        self.counts["forgiven"] += compared.forgiven
        self.counts["policies"] += compared.policies
        self.counts["without a Service"] += compared.absent
        for name, told in compared.differences.items():
            self.tell(number, done, f"{name}: {told}\n{served.get(name)}\n{self.dns.explain(name)[1]}", now)
        for one in agreement.apart(looks, self.inventor.names):
            self.follow(number, done, one, looks)
        self.try_out(number, done, now, compared, served, programmed)

        if number % ENFORCED == 0:
            self.enforce(number, done, now, served)

    def enforce(self, number: int, done: list[str], now: agreement.Look, served: dict[str, Served]) -> None:
        """The default `portGuard` on the quiet cluster, taken over live: bound is what is served on all its ports."""
        expected = set()
        for (kind, namespace, name), thing in self.inventor.objects.items():
            full = cluster.fqdn(f"{name}.{namespace}")
            if kind == "Service" and full in served:
                ports = {port["port"] for port in thing["spec"].get("ports", []) if port["protocol"] == "TCP"}
                udp = any(port["protocol"] == "UDP" for port in thing["spec"].get("ports", []))
                ours = now.said()[full]
                if ours.comparable and not udp and ports <= set(served[full].ports):
                    expected.add(full)
        self.counts["bound with portGuard: enforce"] += len(expected)

        def bound() -> set[str]:
            said = agreement.said_of(self.dns.canal_dns.bindings())
            return {name for name in self.inventor.names if name in said and said[name].bound}

        before = bound()
        self.reconfigure({**BINDING, "portGuard": "enforce"})
        try:
            until(lambda: bound() == expected, 5, lambda: f"bound with portGuard: enforce is {expected}; it is {bound()}")
        except AssertionError as problem:
            self.tell(number, done, str(problem), now)
        self.reconfigure(BINDING)
        until(lambda: bound() == before, 5, lambda: f"bound with portGuard: warn again is {before}; it is {bound()}")

    def reconfigure(self, binding: dict[str, str]) -> None:
        ours = self.dns.canal_dns
        loads = ours.series("canal_dns_config_reloads_total", result="ok")
        ours.configure(binding=binding)
        ours.signal(signal.SIGHUP)
        until(
            lambda: ours.series("canal_dns_config_reloads_total", result="ok") > loads, 10, "the configuration is loaded again"
        )

    def alive(self) -> None:
        for process in (self.world.mesh.istiod, self.world.mesh.envoy, self.dns.canal_dns):
            process.alive()

    def do(self, operation: Operation) -> str:
        kind, namespace, name = operation.thing["kind"], *map(operation.thing["metadata"].get, ("namespace", "name"))
        self.counts["changes"] += 1
        try:
            if operation.verb == "create":
                self.world.kube.create(operation.thing)
            elif operation.verb == "delete":
                self.world.kube.delete(kind, name, namespace)
            else:
                change: list[Any] = [{"op": "replace", "path": "/spec", "value": operation.thing["spec"]}]
                if kind == "Service":
                    spec = operation.thing["spec"]
                    annotations = operation.thing["metadata"]["annotations"]
                    change = [
                        {"op": "replace", "path": "/spec/ports", "value": spec["ports"]},
                        {"op": "add", "path": "/metadata/annotations", "value": annotations},
                    ]
                self.world.kube.patch(kind, name, namespace, change, how="json")
        except ApiError as problem:
            if problem.status not in (400, 422):
                raise
            self.counts["changes that the API server refused"] += 1
            return f"refused: {operation}: {problem}"
        self.inventor.keep(operation)
        return str(operation)

    def follow(self, number: int, done: list[str], one: agreement.Apart, looks: list[agreement.Look]) -> None:
        """While objects change: each may be ahead of the other for a short while."""
        limit = OUR_LAG if one.late else ISTIOD_LAG
        what = "canal-dns behind Envoy" if one.late else "bound before Envoy" if one.bound else "unbound before Envoy"
        self.longest[what] = max(self.longest.get(what, 0.0), one.seconds)
        self.counts[what] += 1
        if one.seconds > limit:
            self.tell(number, done, f"while objects change: {one}", looks[-1])

    def try_out(
        self, number: int, done: list[str], now: agreement.Look, compared: agreement.Comparison, served: Any, programmed: Any
    ) -> None:
        """By requests and questions: each bound name on each port, and some that are not bound."""
        for name, said in compared.agreed.items():
            if said.bound:
                addresses = ask(cluster.CANAL_DNS[0], name, "A").addresses()
                if addresses != {mesh.VIP}:
                    self.tell(number, done, f"{name} is bound, and its address is {addresses}", now)
                    continue
                for way in best_ways(served[name]):
                    if problem := self.prover.served(mesh.VIP, name, way):
                        self.tell(number, done, f"request for the bound {name}: {problem}", now)
        skipped = [name for name, said in compared.agreed.items() if not said.bound]
        for name in self.chance.sample(skipped, min(2, len(skipped))):
            if mesh.VIP in ask(cluster.CANAL_DNS[0], name, "A").addresses():
                self.tell(number, done, f"{name} is skipped, and its address is the VIP", now)
            for port in GATEWAY_PORTS:
                if (tls := programmed.speaks_tls(port)) is not None and (
                    problem := self.prover.not_served(mesh.VIP, name, port, tls=tls)
                ):
                    self.tell(number, done, f"request for the skipped {name}: {problem}", now)

    def tell(self, number: int, done: list[str], text: str, now: agreement.Look) -> None:
        """A finding, with all that is needed to look into it."""
        path = self.folder / f"finding-{SEED}-{len(self.wrong)}.json"
        things = list(self.inventor.objects.values())
        path.write_text(
            json.dumps({"seed": SEED, "step": number, "done": done, "text": text, "objects": things,
                        "bindings": json.loads(now.bindings), "dump": json.loads(now.dump)})
        )  # fmt: skip
        self.wrong.append(f"seed {SEED}, step {number}, {path}:\n  {'; '.join(done)}\n  {text}")


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
        f"{run.prover.asked} requests; {len(run.wrong)} findings",
    )
    for line in (
        f"agreement: {dict(counts)}; looks while objects change: {watcher.count}; requests {run.prover.asked}, "
        f"{run.prover.unreachable} of them to clusters without endpoints or faults; {time.monotonic() - began:.0f} s",
        "agreement: longest " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in sorted(run.longest.items())),
    ):
        measured(line)
        print(line)
    assert not run.wrong, "\n\n".join(run.wrong)
    assert share > 0.6, counts
    assert counts["bound by both"] >= STEPS / 4, counts
    assert counts["steps that Envoy refused"] <= max(2, counts["steps"] / 2), counts
