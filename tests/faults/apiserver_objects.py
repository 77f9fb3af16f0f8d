"""Objects that are broken, huge, or in each other's way."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.bench import Bench
from tests.faults.mesh import FORWARDED, GATEWAYS, NAMES, OTHER, OTHER_VIP, Mesh, name_of, other_gateway, route, service
from tests.faults.rows import Outcome, row
from tests.faults.server import VIP
from tests.kube.apiserver import PLURALS, Raw
from tests.kube.garbage import ODD, anything
from tests.kube.world import EVERYTHING
from tests.mesh import builders as make

# -- broken ones -----------------------------------------------------------------------------------------------------------

Damage = Callable[[Raw], None]


def _set(*path: Any) -> Damage:
    """Puts the last one to where the others lead."""

    def damage(item: Raw) -> None:
        found: Any = item
        for key in path[:-2]:
            found = found[key]
        found[path[-2]] = path[-1]

    return damage


def _without(*path: Any) -> Damage:
    def damage(item: Raw) -> None:
        found: Any = item
        for key in path[:-1]:
            found = found[key]
        del found[path[-1]]

    return damage


BROKEN: dict[str, tuple[str, Damage]] = {
    "an address that is none": ("gateway", _set("spec", "clusterIP", "10.96.9.300")),
    "a CIDR for an address": ("gateway", _set("spec", "clusterIP", "10.96.9.0/24")),
    "::ffff:1.2.3.4": ("gateway", _set("spec", "clusterIP", "::ffff:1.2.3.4")),
    "0.0.0.0": ("gateway", _set("spec", "clusterIP", "0.0.0.0")),
    "no ports": ("service", _set("spec", "ports", "80")),
    "no spec": ("route", _without("spec")),
    "a host of 300 characters": ("route", _set("spec", "hosts", ["x" * 300 + ".default.svc.cluster.local"])),
    "a name that is not ASCII": ("route", _set("spec", "hosts", ["wörld.default.svc.cluster.local"])),
    "hosts that are a number": ("route", _set("spec", "hosts", 7)),
    "a destination without a host": ("route", _without("spec", "http", 0, "route", 0, "destination", "host")),
}
"""What is broken, in the object of which one name depends."""


@row(
    "K8",
    "malformed objects: bad address, 300-character host, name that is not ASCII, missing fields, CIDR, ::ffff:1.2.3.4, 0.0.0.0",
    "that object skipped, one rate-limited log line, a counter; all others served; 10,000 random objects",
)
async def broken(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    number = NAMES
    whole = {"gateway": other_gateway()[0], "service": service(number), "route": route(number, OTHER)}
    mesh.api.put(*other_gateway(), whole["service"], whole["route"])
    server = await mesh.serve(gateways=GATEWAYS)
    await mesh.answered(name_of(number), OTHER_VIP)
    watches = mesh.api.watches()
    served = []
    count = 10_000 if bench.long else 1_000
    async with mesh.traffic() as traffic:
        for what, (which, damage) in BROKEN.items():
            item = copy.deepcopy(whole[which])
            damage(item)
            mesh.api.put(item)
            try:
                await mesh.answered(name_of(number), FORWARDED, 5.0)
            except TimeoutError:
                served.append(what)
            mesh.api.put(whole[which])
            await mesh.answered(name_of(number), OTHER_VIP, 5.0)
        await _random_objects(mesh, count)
        stayed = mesh.api.watches() == watches
        relists = await mesh.counted("canal_dns_source_relists_total")
        mesh.api.forget()
        for watch in watches:
            watch.end()
        listed = await bench.until(lambda: server.counted("canal_dns_source_relists_total") == relists + len(EVERYTHING), 30.0)
        await traffic.for_(0.5)
    counted = await mesh.counted("canal_dns_source_skipped_objects_total")
    counted += await mesh.counted("canal_dns_source_errors_total", code="decode")
    lines = sum("not used" in line for line in server.errors)
    said = f"served all the same: {served}" if served else "none served"
    return Outcome(
        f"{len(BROKEN)} kinds of damage: {said}, right again each time; {count} random objects in events, then all in lists "
        f"({listed:.1f} s): {counted:.0f} counted, {lines} log lines, {'no' if stayed else 'a'} watch ended; {traffic.said()}",
        met=not served and counted > 0 and not relists and stayed and lines <= 3 * len(watches) and traffic.clean,
    )


async def _random_objects(mesh: Mesh, count: int) -> None:
    """As events; those that a list can hold stay in the API server."""
    chance = random.Random(8)
    # On a gateway of their own: Envoy refuses all routes of a gateway for one that it cannot read, and the names are forwarded.
    alone = NAMES + 1
    examples = [*make.BASE, *other_gateway(), service(alone), route(alone, OTHER), make.destination_rule(name_of(alone), "v1")]
    for number in range(count):
        whole = anything(chance) if number % 2 else _damaged(chance, chance.choice(examples), f"random-{number}")
        kind = whole.get("kind")
        resource = PLURALS.get(kind if isinstance(kind, str) else "")
        if resource is None:
            resource = chance.choice(EVERYTHING)
        if {"kind", "apiVersion"} <= whole.keys() and _is_text(whole):
            mesh.api.objects(resource)["random", str(number)] = whole
        for watch in mesh.api.watches(resource):
            watch.tell(chance.choice(("ADDED", "MODIFIED")), whole)
        if number % 50 == 0:
            # The loop belongs to others, too.
            await asyncio.sleep(0.005)


def _is_text(item: Raw) -> bool:
    """An API server writes no half of a character: a whole list would be no JSON."""
    try:
        return bool(json.dumps(item, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _places(inside: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in an object where a value stands."""
    for key, value in inside.items() if isinstance(inside, dict) else enumerate(inside):
        yield inside, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _damaged(chance: random.Random, whole: Raw, name: str) -> Raw:
    """An object under another name, with up to three of its values others, or gone."""
    item = copy.deepcopy(whole)
    item["metadata"]["name"] = name
    for _ in range(chance.randrange(1, 4)):
        spec = item.get("spec")
        places = list(_places(spec if isinstance(spec, dict | list) and chance.random() < 0.8 else item))
        if not places:
            break
        inside, key = chance.choice(places)
        if chance.random() < 0.3:
            del inside[key]
        else:
            inside[key] = chance.choice(ODD)
    return item


# -- huge ones -------------------------------------------------------------------------------------------------------------

MIB = 1 << 20


@row(
    "K9",
    "huge object: 256 KiB of annotations, a line of 1.5 MiB, and longer",
    "1.5 MiB is processed; what is longer than any object leads to a list, not to an end",
)
async def huge(bench: Bench) -> Outcome:
    mesh = await Mesh.of(bench)
    big = NAMES
    mesh.api.put(*_big(big, MIB + MIB // 2))
    server = await mesh.serve()
    await mesh.answered(name_of(big), VIP)
    took = {}
    async with mesh.traffic() as traffic:
        for size in (MIB // 4, MIB + MIB // 2, 8 * MIB) * (20 if bench.long else 1):
            # No cluster has many of them.
            mesh.api.delete("Service", "default", f"s{big}")
            big += 1
            began = time.monotonic()
            mesh.api.put(*_big(big, size))
            await mesh.answered(name_of(big), VIP)
            took[size] = max(time.monotonic() - began, took.get(size, 0.0))
        await mesh.api.watching(*EVERYTHING)
        began = time.monotonic()
        mesh.miss(mesh.swap, big, big + 1)
        for watch in (*mesh.api.watches("services"), *mesh.api.watches("virtualservices")):
            watch.send(b'{"type":"ADDED","object":{"x":"' + b"x" * 17 * MIB)
        relisted = await mesh.swapped(big, big + 1, began)
    relists = await mesh.counted("canal_dns_source_relists_total", reason="line_too_long")
    said = ", ".join(f"{size / MIB:g} MiB {seconds * 1e3:.0f} ms" for size, seconds in took.items())
    return Outcome(
        f"bound by an object of {said}; 17 MiB without an end of line on 2 watches: {relists:.0f} lists, right after "
        f"{relisted:.2f} s; {traffic.said()}",
        met=max(took.values()) <= 2.0 and relists == 2 and relisted <= 5.0 and server.alive() and traffic.clean,
    )


def _big(number: int, octets: int) -> tuple[Raw, Raw]:
    return service(number, annotations={"note": "x" * octets}), route(number)


# -- in each other's way ---------------------------------------------------------------------------------------------------


@row(
    "K14",
    "conflicting bindings for one name",
    "the same on every replica: oldest creationTimestamp, then ns/name; a counter of conflicts",
)
async def conflicts(bench: Bench) -> Outcome:
    contested = range(NAMES, NAMES + 30)
    rounds = 10 if bench.long else 2
    replicas = [await Mesh.of(bench) for _ in range(2)]
    for mesh in replicas:
        mesh.api.put(*other_gateway(), *(service(number) for number in contested))
        await mesh.serve(gateways=GATEWAYS)
    chance = random.Random(14)
    expected: dict[int, bytes] = {}
    differences = 0
    async with replicas[0].traffic() as traffic, replicas[1].traffic() as other_traffic:
        for _ in range(rounds):
            claims = []
            for number in contested:
                ages = {gateway: chance.randrange(4) for gateway in ("internalgateway", OTHER)}
                claims += [route(number, gateway, created=age) for gateway, age in ages.items()]
                winner = min(ages, key=lambda gateway: (ages[gateway], "default", f"s{number}-{gateway}"))
                expected[number] = VIP if winner == "internalgateway" else OTHER_VIP
            for mesh in replicas:
                await _shuffled(mesh, claims, chance)
            for mesh in replicas:
                for number, address in expected.items():
                    try:
                        await mesh.answered(name_of(number), address, 5.0)
                    except TimeoutError:
                        differences += 1
    told = [await mesh.bindings() for mesh in replicas]
    same = told[0]["bound"] == told[1]["bound"]
    problems = [sum(problem["reason"] == "Conflicted" for problem in one["problems"]) for one in told]
    counted = [await mesh.counted("canal_dns_problems", reason="Conflicted") for mesh in replicas]
    return Outcome(
        f"{len(contested)} names, each claimed by two gateways, in {rounds} rounds of events in any order, on 2 replicas: "
        f"{differences} not the oldest's; bindings {'equal' if same else 'differ'}; {problems} conflicts told, "
        f"{counted[0]:.0f} and {counted[1]:.0f} in the gauge; {traffic.said()}",
        met=not differences and same and problems == [len(contested)] * 2 == counted and traffic.clean and other_traffic.clean,
    )


async def _shuffled(mesh: Mesh, claims: list[Raw], chance: random.Random) -> None:
    """All claims, some of them twice, some taken back and made again, in an order of its own."""
    routes = mesh.api.objects("virtualservices")
    for claim in chance.sample(claims, len(claims)):
        key = claim["metadata"]["namespace"], claim["metadata"]["name"]
        if key in routes and chance.random() < 0.5:
            mesh.api.delete("VirtualService", *key)
            await asyncio.sleep(0)
        mesh.api.put(claim)
        if chance.random() < 0.2:
            await asyncio.sleep(0.002)
