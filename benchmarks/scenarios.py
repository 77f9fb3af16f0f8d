"""What is asked: 1,000 names, the address that every contender must give for each, and the files that they are written to.

Rules of this file:
- the same names, in the same order, for every contender of a scenario;
- `hits`: every name answers with the gateway's VIP, whatever trick a contender needs for it; nothing is forwarded;
- `forward`: nothing is answered from memory; an authoritative server on the load's core has the addresses;
- that upstream knows the bound names by their Services' own addresses, not by the VIP: who forwards them is found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOMAIN = "cluster.local"
VIP = "10.96.9.9"
GATEWAY = "internalgateway.istio-system.svc.cluster.local"
NAMES = 1000
NAMESPACES = 20
TTL = 3600
"""Seconds: no cache forgets anything while it is measured."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of work, and what it asks for. `addresses`: name without final dot -> the IPv4 address of the right answer."""

    name: str
    title: str
    addresses: dict[str, str]

    def write_queries(self, path: Path) -> None:
        """The file that both load generators read."""
        path.write_text("".join(f"{name} A\n" for name in self.addresses))


def service(number: int, prefix: str) -> tuple[str, str]:
    """(name, namespace) of a Service: spread over namespaces, as in a cluster."""
    return f"{prefix}-{number:04d}", f"team-{number % NAMESPACES:02d}"


def own_address(number: int, prefix: str) -> str:
    """The ClusterIP of a Service."""
    return f"10.{98 if prefix == 'bound' else 97}.{number // 250}.{number % 250 + 1}"


def _services(prefix: str) -> dict[str, str]:
    """Name -> ClusterIP of all Services of one prefix."""
    numbers = range(NAMES)
    return {".".join((*service(number, prefix), "svc", DOMAIN)): own_address(number, prefix) for number in numbers}


HITS = Scenario("hits", "Names answered from memory", dict.fromkeys(_services("bound"), VIP))
FORWARD = Scenario("forward", "Names forwarded, without any cache", _services("plain"))
UPSTREAM = Scenario("upstream", "What stands behind", {**_services("bound"), **_services("plain")})
SCENARIOS = {scenario.name: scenario for scenario in (HITS, FORWARD)}


def zone_file(addresses: dict[str, str]) -> str:
    """A zone `cluster.local.` with these addresses."""
    head = f"$ORIGIN {DOMAIN}.\n$TTL {TTL}\n@ SOA ns hostmaster 1 7200 1800 86400 30\n@ NS ns\nns A 10.96.0.10\n"
    return head + "".join(f"{name}. A {address}\n" for name, address in addresses.items())


def hosts_file(addresses: dict[str, str]) -> str:
    """The same as /etc/hosts would have it."""
    return "".join(f"{address} {name}\n" for name, address in addresses.items())
