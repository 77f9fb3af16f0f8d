"""What is asked: the names, the address that every contender must give for each, and the files that the generators read.

Rules of this file:
- the same queries, in the same order, for every contender of a scenario;
- a bound name answers with the gateway's VIP, whatever trick a contender needs for it;
- the upstream knows the bound names by their Services' own addresses, not by the VIP: who forwards them is found out;
- scenarios whose figures are divided by each other stand in one block, which is measured in the same rounds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import CALM, HALF, SATURATED
from canal_dns.app import queries

DOMAIN = "cluster.local"
VIP = "10.96.9.9"
GATEWAY = "internalgateway.istio-system.svc.cluster.local"
NAMES = 1000
NAMESPACES = 20
SIZES = (10, 100, 1000, 10_000, 100_000)
"""Bound names of the tables whose cost is compared."""
TTL = 3600
"""Seconds: no cache forgets an address while it is measured."""
MIX = "bound=60,unbound=10,missing=5,search=25"
MIX_QUERIES = 8000
"""As few different names as every cache holds in its usual size."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the load comes: sockets or connections, and the queries that are open over all of them."""

    transport: str = "udp"
    sockets: int = 8
    window: int = 192
    """As many as fit into a socket's default buffer (212,992 octets, 768 for each small packet), so that what is lost is the
    server's doing."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """A kind of work, and what it asks for."""

    name: str
    title: str
    addresses: Mapping[str, str]
    """Name without final dot -> the IPv4 address of the right answer."""
    block: str
    """What is measured in the same rounds."""
    asked: tuple[str, ...] = ()
    """Lines "NAME TYPE"; empty: every address once."""
    missing: float = 0.0
    """Share of the queries whose name does not exist."""
    empty: float = 0.0
    """Share of the queries whose name has no such record."""
    kinds: tuple[str, ...] = (SATURATED,)
    shape: Shape = Shape()
    cached: bool = False
    """Before each run everything is asked once: negative answers are kept for seconds only, and a turn may come later."""
    served_by: str = ""
    """Another scenario whose servers are asked; empty: it has its own."""

    def write_queries(self, path: Path) -> None:
        """The file that both load generators read."""
        lines = self.asked or tuple(f"{name} A" for name in self.addresses)
        path.write_text("".join(f"{line}\n" for line in lines))


def service(number: int, prefix: str) -> tuple[str, str]:
    """(name, namespace) of a Service: spread over namespaces, as in a cluster."""
    return f"{prefix}-{number:04d}", f"team-{number % NAMESPACES:02d}"


def own_address(number: int, prefix: str) -> str:
    """The ClusterIP of a Service."""
    network = 98 + number // 62500 if prefix == "bound" else 97
    return f"10.{network}.{number // 250 % 250}.{number % 250 + 1}"


def services(prefix: str, count: int = NAMES) -> dict[str, str]:
    """Name -> ClusterIP of the Services of one prefix."""
    return {".".join((*service(number, prefix), "svc", DOMAIN)): own_address(number, prefix) for number in range(count)}


def bound(count: int = NAMES) -> dict[str, str]:
    """Name -> VIP of the bound Services."""
    return dict.fromkeys(services("bound", count), VIP)


def _shuffled(names: Iterable[str]) -> tuple[str, ...]:
    """In an order that no prefetcher of a processor guesses."""
    order = list(names)
    random.Random(1).shuffle(order)
    return tuple(f"{name} A" for name in order)


def _mix() -> Scenario:
    known, plain = bound(), services("plain")
    names = queries.Names(tuple(sorted(known)), tuple(sorted(plain)), DOMAIN)
    lines = tuple(queries.lines(names, queries.read_mix(MIX), MIX_QUERIES, 1))
    exists = known.keys() | plain.keys()
    asked = [line.split() for line in lines]
    missing = sum(name not in exists for name, _ in asked)
    empty = sum(name in exists and kind == "AAAA" for name, kind in asked)
    return Scenario(
        "mix", "A cluster's mix, cache on", {**known, **plain}, "mix", lines,
        missing / len(lines), empty / len(lines), (SATURATED, HALF), cached=True,
    )  # fmt: skip


def _chain() -> dict[str, str]:
    """Three bound names, then two others, and so on."""
    some_bound, some_plain = list(bound().items()), list(services("plain").items())
    return dict(pair for at in range(200) for pair in (*some_bound[3 * at : 3 * at + 3], *some_plain[2 * at : 2 * at + 2]))


HITS = Scenario("hits", "Names answered from memory", bound(), "hits", kinds=(SATURATED, HALF, CALM))
SIZED = tuple(
    Scenario(f"names-{size}", f"A table of {size:,} names, all asked", bound(size), "names", _shuffled(bound(size)))
    for size in SIZES
)
HOT = Scenario(
    f"hot-{SIZES[-1]}", f"1,000 of {SIZES[-1]:,} names", bound(SIZES[-1]), "names", _shuffled(bound()), served_by=SIZED[-1].name
)
MIXED = _mix()
FORWARD = Scenario("forward", "Names forwarded, without any cache", services("plain"), "forward", kinds=(SATURATED, HALF, CALM))
CACHED = Scenario("cached", "Names forwarded once, then from the cache", services("plain"), "cached", cached=True)
TCP = Scenario("tcp", "TCP, 16 connections, 32 queries in flight on each", bound(), "tcp", shape=Shape("tcp", 16, 512))
CHAIN = Scenario("chain", "The whole chain: pod, CoreDNS, canal-dns", _chain(), "chain", kinds=(SATURATED, CALM))
UPSTREAM = Scenario("upstream", "What stands behind", {**services("bound"), **services("plain")}, "upstream")
SCENARIOS = {one.name: one for one in (HITS, *SIZED, HOT, MIXED, FORWARD, CACHED, TCP, CHAIN)}
DELTA = "delta"
"""A block without queries: what a change of the table costs."""
BLOCKS = (*dict.fromkeys(one.block for one in SCENARIOS.values()), DELTA)


def zone_file(addresses: Mapping[str, str]) -> str:
    """A zone `cluster.local.` with these addresses."""
    head = f"$ORIGIN {DOMAIN}.\n$TTL {TTL}\n@ SOA ns hostmaster 1 7200 1800 86400 30\n@ NS ns\nns A 10.96.0.10\n"
    return head + "".join(f"{name}. A {address}\n" for name, address in addresses.items())


def hosts_file(addresses: Mapping[str, str]) -> str:
    """The same as /etc/hosts would have it."""
    return "".join(f"{address} {name}\n" for name, address in addresses.items())
