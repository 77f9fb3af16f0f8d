"""What is asked and what is true of it: names by kind, the cluster's objects, the upstreams' script, the file of queries.

    bound     60 %   a VirtualService leads them through the gateway all the time: its VIP, A and AAAA
    changing   2 %   bound and not bound in turn, or bound to an address that changes: see history.py
    others    28 %   not bound, Services among them, and kept in the cache
    missing    9.8 % the upstream says NXDOMAIN, kept in the cache
    fresh      0.2 % TTL 0: every question goes to an upstream

Rules of this file:
- upstreams know every name, bound ones too: a bound name that is forwarded, or a VIP for another name, is a wrong answer;
- what an upstream says follows from the name alone, so both say the same at all times;
- names repeat: the upstreams are Python, and must not be what is measured.
"""

from __future__ import annotations

import ipaddress
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mesh import builders as make
from tests.server.scripted import Ask, record

GATEWAY, MOVING_GATEWAY = "internalgateway", "movinggateway"
VIPS = ("10.96.9.9", "fd00:10:96::9:9")
MOVING_VIPS = ("10.96.9.10", "10.96.9.11")
BOUND = [make.full(f"bound-{number}.default") for number in range(200)]
ROUTED, CREATED, MOVED = (
    [make.full(f"{kind}-{number}.default") for number in range(20)] for kind in ("routed", "created", "moved")
)
CHANGING = ROUTED + CREATED + MOVED
OTHERS = [make.full(f"other-{number}.default") for number in range(200)]
OTHERS += [f"host-{number}.example.org" for number in range(200)]
MISSING = [make.full(f"missing-{number}.default") for number in range(100)]
FRESH = [f"fresh-{number}.example.org" for number in range(500)]
TTL = 30
LINES = 100_000
_SHARES = ((BOUND, 0.60), (CHANGING, 0.02), (OTHERS, 0.28), (MISSING, 0.098), (FRESH, 0.002))
_V6_SHARE = 0.3
_SOA = b"\xc0\x0c" + struct.pack(">HHIH", 6, 1, TTL, 22) + b"\0\0" + struct.pack(">5I", 1, 7200, 1800, 86400, TTL)


def plain(name: str, qtype: str = "A") -> str:
    """What an upstream says: the address of a name as if nothing were bound."""
    digest = zlib.crc32(name.encode())
    if qtype == "A":
        return str(ipaddress.IPv4Address(0xC6120000 | digest & 0x1FFFF))  # 198.18.0.0/15
    return str(ipaddress.IPv6Address(0x20010DB8 << 96 | digest))


def upstream(ask: Ask) -> None:
    """The script of both upstreams, which keeps no log."""
    ask.upstream.asks.clear()
    name = ask.name.rstrip(".").lower()
    if name.startswith("missing-"):
        ask.write(_denial(ask))
        return
    ttl = 0 if name.startswith("fresh-") else TTL
    if ask.question[-4:-2] == b"\0\x1c":
        address = ipaddress.IPv6Address(plain(name, "AAAA")).packed
        ask.reply(b"\xc0\x0c" + struct.pack(">HHIH", 28, 1, ttl, 16) + address)
    else:
        ask.reply(record(plain(name), ttl))


def _denial(ask: Ask) -> bytes:
    return ask.packet[:2] + b"\x81\x83\0\1\0\0\0\1\0\0" + ask.question + _SOA


# -- the cluster ---------------------------------------------------------------------------------------------------------


def objects() -> Iterator[make.Raw]:
    """Everything that there is at the start."""
    yield from (make.namespace("default"), make.namespace("istio-system"))
    for name, pod, address in ((GATEWAY, "gw-0", "10.244.0.1"), (MOVING_GATEWAY, "gw-1", "10.244.0.2")):
        yield make.endpoints(name, pods=(pod,), addresses=(address,))
        yield make.pod(pod, labels={"istio": name})
        yield make.gateway(name=name, selector={"istio": name})
    yield make.gateway_service(GATEWAY, **_addresses(*VIPS))
    yield moving_gateway(MOVING_VIPS[0])
    for name in BOUND + CHANGING:
        yield service(name)
        yield route(name)
    # Services that nobody routes: they stay what they are.
    yield from map(service, OTHERS[:100])


def moving_gateway(vip: str) -> make.Raw:
    return make.gateway_service(MOVING_GATEWAY, **_addresses(vip))


def service(name: str) -> make.Raw:
    return make.service(name.partition(".")[0], **_addresses(plain(name), plain(name, "AAAA")))


def route(name: str) -> make.Raw:
    """The VirtualService that binds a name."""
    gateway = MOVING_GATEWAY if name in MOVED else GATEWAY
    short = name.partition(".")[0]
    return make.virtual_service(
        make.http(name), name=short, namespace="default", hosts=(name,), gateways=(f"istio-system/{gateway}",)
    )


def _addresses(*addresses: str) -> dict[str, Any]:
    families = ["IPv6" if ":" in address else "IPv4" for address in addresses]
    return {"clusterIP": addresses[0], "clusterIPs": [*addresses], "ipFamilies": families}


# -- the questions -------------------------------------------------------------------------------------------------------


def questions() -> list[tuple[str, str, str]]:
    """(name, type, truth) in the order in which they are asked; the truth is an address, NXDOMAIN, or - where it changes."""
    seeded = random.Random(1)
    asked = [_question(seeded, names) for names, share in _SHARES for _ in range(round(share * LINES))]
    seeded.shuffle(asked)
    return asked


def _question(seeded: random.Random, names: list[str]) -> tuple[str, str, str]:
    name = seeded.choice(names)
    if names is CHANGING:
        return name, "A", "-"
    qtype = "AAAA" if seeded.random() < _V6_SHARE else "A"
    if names is MISSING:
        return name, qtype, "NXDOMAIN"
    return name, qtype, VIPS[qtype == "AAAA"] if names is BOUND else plain(name, qtype)


def write(path: Path, asked: list[tuple[str, str, str]]) -> None:
    """As client.c reads them."""
    path.write_text("".join(f"{name} {qtype} {truth}\n" for name, qtype, truth in asked))
