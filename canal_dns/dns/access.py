"""Who may ask, how much, and as what: the client ACL, the ports that are never answered, the limits, the exempt clients.

Rules of this file:
- an address is parsed once and its standing remembered by its text: what a packet costs is one look-up;
- what is remembered is bounded, whatever source addresses are forged;
- a peer is a client that is allowed and has no limit;
- an exempt client is one for whom nothing is bound: a gateway pod, whose own look-ups must not lead back to it. A peer
  that is named by its very address is never exempt: others stand behind it. One that is only in a network of peers is, since
  that network is all pods, as a rule, gateway pods among them;
- an IPv4-mapped address counts as the IPv4 address in it (RFC 4291 section 2.5.5.2), or an ACL could be walked around;
- whose address may be forged is limited by the network that one forger cannot leave: /32, and /64 for IPv6, since whoever has
  one address there has them all. Longer prefixes would give him 2^64 allowances, shorter ones make strangers share one.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from canal_dns.dns.ratelimit import PerSecond, TokenBuckets
from canal_dns.settings import AccessSettings, Network

DROPPED_PORTS = frozenset({0, 7, 13, 19, 37})
"""Source ports of services that answer anything (echo, daytime, chargen, time): a reply to them would never end."""
LAST_DROPPED_PORT = max(DROPPED_PORTS)

REMEMBERED = 65_536
"""Client addresses, and prefixes with a bucket, that are remembered at most. A prefix is forgotten once so many others came
after it: more packets than get here in a second, and after a second its bucket is full again: forging many gains nothing."""
_PREFIX = 8
"""Octets of an address that the limit goes by: all of IPv4's, the /64 of IPv6's."""


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
        limit = settings.rate_limit
        self._allow = _Networks((*settings.allow, *settings.peers))
        self._peers = _Networks(settings.peers)
        self._named = frozenset(one.network_address.packed for one in settings.peers if one.num_addresses == 1)
        self._unlimited = None if limit.per_second == 0 else _Networks((*limit.exempt, *settings.peers))
        self._exempt = _parsed(exempt)
        self._errors = PerSecond(settings.error_replies_per_second)
        self._buckets = TokenBuckets(settings.rate_limit.per_second, REMEMBERED)
        self._clients: dict[str, _Client] = {}
        self._kinds: dict[_Client, _Client] = {}
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

    def is_limited(self, address: str) -> bool:
        """True for a client with a limit: of its address nothing is known, over UDP it may be another's."""
        return address not in self.free and self._client(address).prefix is not None

    def group(self, address: str) -> str | bytes:
        """What counts as one client where streams are counted: its prefix if it has a limit, else its address."""
        return self._client(address).prefix or address

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
        packed = _parse(address)
        if packed is None or packed not in self._allow:
            client = _Client(allowed=False, peer=False, prefix=None, exempt=packed in self._exempt)
        else:
            limited = self._unlimited is not None and packed not in self._unlimited
            client = _Client(
                allowed=True,
                peer=packed in self._peers,
                prefix=packed[:_PREFIX] if limited else None,
                exempt=packed in self._exempt and packed not in self._named,
            )
        # Those without a prefix are of a few kinds: whatever addresses are forged, they share these.
        return client if client.prefix is not None else self._kinds.setdefault(client, client)


class _Networks:
    """Networks as ranges of packed addresses: one look-up, however many they are. A stranger's first packet costs it."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, networks: Iterable[Network]) -> None:
        whole = tuple(networks)
        v4 = ipaddress.collapse_addresses([one for one in whole if isinstance(one, ipaddress.IPv4Network)])
        v6 = ipaddress.collapse_addresses([one for one in whole if isinstance(one, ipaddress.IPv6Network)])
        by_size: dict[int, list[Network]] = {4: list(v4), 16: list(v6)}
        self._starts = {size: [one.network_address.packed for one in ranges] for size, ranges in by_size.items()}
        self._ends = {size: [one.broadcast_address.packed for one in ranges] for size, ranges in by_size.items()}

    def __contains__(self, address: bytes) -> bool:
        size = len(address)
        place = bisect_right(self._starts[size], address) - 1
        return place >= 0 and address <= self._ends[size][place]


def _parse(text: str) -> bytes | None:
    """An address in 4 or 16 octets."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed


def _parsed(texts: Iterable[str]) -> frozenset[bytes]:
    return frozenset(address for address in map(_parse, texts) if address is not None)
