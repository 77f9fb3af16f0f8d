"""Who may ask, how much, and as what: the client ACL, the ports that are never answered, the limits, the exempt clients.

Rules of this file:
- an address is parsed once and its standing remembered by its text: what a packet costs is one look-up;
- what is remembered is bounded, whatever source addresses are forged;
- a peer is a client that is allowed and has no limit;
- an exempt client is one for whom nothing is bound: a gateway pod, whose own look-ups must not lead back to it. A peer
  that is named by its very address is never exempt: others stand behind it. One that is only in a network of peers is, since
  that network is all pods, as a rule, gateway pods among them;
- an IPv4-mapped address counts as the IPv4 address in it (RFC 4291 section 2.5.5.2), or an ACL could be walked around.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from canal_dns.dns.ratelimit import PerSecond, TokenBuckets
from canal_dns.settings import AccessSettings, Network

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

DROPPED_PORTS = frozenset({0, 7, 13, 19, 37})
"""Source ports of services that answer anything (echo, daytime, chargen, time): a reply to them would never end."""
LAST_DROPPED_PORT = max(DROPPED_PORTS)

REMEMBERED = 65_536
"""Client addresses, and prefixes with a bucket, that are remembered at most."""


class Verdict(Enum):
    """What becomes of a client's packet before it is read."""

    PASS = "pass"  # noqa: S105
    REFUSE = "refuse"
    SLIP = "slip"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class _Client:
    allowed: bool
    peer: bool
    prefix: bytes | None
    """The prefix whose bucket it draws from; None: no limit."""
    exempt: bool


class Gate:
    """The ACL and the limits of one process. `exempt`: addresses as text."""

    def __init__(self, settings: AccessSettings, exempt: Iterable[str] = ()) -> None:
        self._settings = settings
        self._exempt = _parsed(exempt)
        self._errors = PerSecond(settings.error_replies_per_second)
        self._buckets = TokenBuckets(settings.rate_limit.per_second, REMEMBERED)
        self._clients: dict[str, _Client] = {}
        self.free: set[str] = set()
        """Addresses known to be allowed, without a limit and not exempt: for them, from a port above LAST_DROPPED_PORT, every
        check that comes before the table is passed. The packet loop looks here; decide() puts the addresses in. Nobody takes
        one out: when they are no longer known for that, it is another set."""

    def verdict(self, address: str, *, stream: bool, now: float) -> Verdict:
        """Judge one packet of a client; a stream cannot be forged, so it has no limit per prefix."""
        if address in self.free:
            return Verdict.PASS
        client = self._client(address)
        if not client.allowed:
            return Verdict.REFUSE
        if client.prefix is None or stream:
            return Verdict.PASS
        refused = self._buckets.take(client.prefix, now)
        if not refused:
            return Verdict.PASS
        slip = self._settings.rate_limit.slip
        return Verdict.SLIP if slip and refused % slip == 0 else Verdict.DROP

    def is_peer(self, address: str) -> bool:
        """True for a CoreDNS, behind which stand many clients: limits per client do not apply."""
        return self._client(address).peer

    def is_exempt(self, address: str) -> bool:
        """True for a client that is to be treated as if nothing were bound."""
        return bool(self._exempt) and self._client(address).exempt

    def exempt(self, addresses: Iterable[str]) -> None:
        """Exempt these clients, and no others, from now on. What is no address is nobody's; the limits go on as they were."""
        exempt = _parsed(addresses)
        if exempt != self._exempt:
            self._exempt = exempt
            self._forget()

    def error_allowed(self, now: float) -> bool:
        """True where one more error reply may be sent now; it counts as sent."""
        return self._errors.take(now)

    def _client(self, address: str) -> _Client:
        client = self._clients.get(address)
        if client is None:
            client = self._judge(address)
            if len(self._clients) >= REMEMBERED:
                self._forget()
            self._clients[address] = client
            if client.allowed and client.prefix is None and not client.exempt:
                self.free.add(address)
        return client

    def _forget(self) -> None:
        self._clients.clear()
        self.free = set()

    def _judge(self, address: str) -> _Client:
        parsed = _parse(address)
        if parsed is None:
            return _Client(allowed=False, peer=False, prefix=None, exempt=False)
        settings = self._settings
        peer = _within(parsed, settings.peers)
        limited = settings.rate_limit.per_second > 0 and not peer and not _within(parsed, settings.rate_limit.exempt)
        prefix = parsed.packed[:8] if limited else None
        allowed = peer or _within(parsed, settings.allow)
        named = any(network.num_addresses == 1 and parsed in network for network in settings.peers)
        return _Client(allowed=allowed, peer=peer, prefix=prefix, exempt=parsed in self._exempt and not named)


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _parsed(texts: Iterable[str]) -> frozenset[Address]:
    return frozenset(address for address in map(_parse, texts) if address is not None)


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
