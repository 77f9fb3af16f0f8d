"""How long replies over UDP are beside their queries, for whoever may be forged and for whoever may not: the table in
docs/operate.md.

Rules of this file:
- measured on the very functions that decide; what an upstream says is made here, as long as it gets;
- `tests/faults` measures the same on a running server (A4).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.codes import Ede, Type
from canal_dns.dns.relay import relay
from canal_dns.dns.responder import Forward, Reply, decide
from canal_dns.dns.table import Addresses, AnswerTable
from canal_dns.dns.wire import servfail
from canal_dns.settings import AccessSettings, RateLimitSettings
from tests.dns.packets import WEB, opt, packet, upstream_reply

FORGED, PRIVATE = "198.51.100.7", "10.244.1.7"
SOA = ("up.test.", 30, "SOA", "ns.dns.up.test. hostmaster.up.test. 1 7200 1800 86400 30")
TWENTY = [("many.up.test.", 30, "A", f"192.0.2.{number}") for number in range(20)]
TEXT = [("text.up.test.", 30, "TXT", " ".join(['"' + "x" * 250 + '"'] * 4))]
LONG = opt(4096)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is asked, and, where it is forwarded, what comes back: records, SOA beside them or not, response code."""

    what: str
    query: bytes
    answer: tuple[tuple[str, int, str, str], ...] = ()
    rcode: str = "NOERROR"
    denied: bool = False


def kinds() -> Iterator[Kind]:
    yield Kind("a bound name, 1 VIP", packet())
    yield Kind("a bound name, 20 VIPs", packet("many.shop.svc.cluster.local"))
    yield Kind("a bound name, ANY", packet("many.shop.svc.cluster.local", Type.ANY))
    yield Kind("a bound name, HTTPS: nothing, and the SOA", packet(qtype=Type.HTTPS))
    yield Kind("forwarded: 1 address", packet("one.up.test"), (("one.up.test.", 30, "A", "192.0.2.1"),))
    yield Kind("forwarded: 20 addresses", packet("many.up.test"), tuple(TWENTY))
    yield Kind("forwarded: 1 KiB of text, EDNS", packet("text.up.test", Type.TXT, additional=LONG), tuple(TEXT))
    yield Kind("forwarded: ANY, EDNS", packet("many.up.test", Type.ANY, additional=LONG), tuple(TWENTY))
    yield Kind("forwarded: NXDOMAIN and the SOA", packet("gone.up.test"), rcode="NXDOMAIN", denied=True)
    yield Kind("no reply from upstream: SERVFAIL, EDNS", packet("one.up.test", additional=LONG), rcode="")
    yield Kind("FORMERR, NOTIMP, REFUSED", packet() + b"\0")
    yield Kind("BADVERS", packet(additional=opt(version=1)))
    yield Kind("above the limit: TC=1", packet("many.up.test", additional=LONG), rcode="TC")


def length(kind: Kind, address: str) -> int:
    """Octets of the longest reply, fresh or from the cache."""
    table = AnswerTable(names.from_text("cluster.local"))
    vips = tuple(bytes([10, 96, 0, last]) for last in range(20))
    table.apply({names.from_text(WEB): Addresses(vips[:1], (), 5)}, 1, 1)
    table.apply({names.from_text("many.shop.svc.cluster.local"): Addresses(vips, (), 5)}, 2, 2)
    limit = RateLimitSettings(1, exempt=()) if kind.rcode == "TC" else RateLimitSettings(1000)
    gate = Gate(AccessSettings(allow=(ipaddress.ip_network("0.0.0.0/0"),), rate_limit=limit))
    cache = AnswerCache(10)
    longest = 0
    for _ in range(2):
        verdict = decide(kind.query, address, 40_000, False, table, gate, 100.0, cache)
        if isinstance(verdict, Reply):
            longest = len(verdict.wire) if kind.rcode == "TC" else max(longest, len(verdict.wire))
        elif isinstance(verdict, Forward) and kind.rcode == "":
            longest = len(servfail(verdict.query, Ede.NO_REACHABLE_AUTHORITY))
        elif isinstance(verdict, Forward) and kind.rcode != "TC":
            reply = upstream_reply(verdict.query, kind.answer, [SOA] if kind.denied else [], rcode=kind.rcode)
            longest = max(longest, len(relay(verdict.query, reply, table).wire))
            cache.put(verdict.query, reply, table, 100.0)
    return longest


def ratios() -> Iterator[tuple[str, int, float, float]]:
    """What is asked, octets of the query, and how many times as long the reply is: to the forged one, to a private network."""
    for kind in kinds():
        size = len(kind.query)
        yield kind.what, size, length(kind, FORGED) / size, length(kind, PRIVATE) / size


def lines() -> Iterator[str]:
    yield "\n| asked over UDP | octets | the reply, where the address may be forged | in private networks |\n"
    yield "|---|---|---|---|\n"
    for what, size, forged, private in ratios():
        yield f"| {what} | {size} | {forged:.2f}x | {private:.2f}x |\n"
    yield "\n"
