"""What the rows of the upstreams share: names with an address of their own, and the books that must balance at the end.

Rules of this file:
- testbound's: no client's query, and no query to an upstream, may be unaccounted for (`outcome`), else the row is missed;
- the addresses of `numbered` names are told by the number in the name, so that a reply that went to somebody else is seen.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterable
from itertools import chain

from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.lossy import Lossy
from tests.faults.rows import Outcome
from tests.faults.server import Server
from tests.server.scripted import TRUE, Ask, Scripted, record

DOMAIN = "up.test"
RIGHT = socket.inet_aton(TRUE)
AAAA = 28


def numbered(count: int, kind: str = "n", first: int = 0) -> list[Question]:
    """`n-0.up.test`, ..., each to be answered with its own address."""
    return [Question(f"{kind}-{number}.{DOMAIN}", socket.inet_aton(_address(number))) for number in range(first, first + count)]


def named(count: int, kind: str, expect: bytes | None = RIGHT) -> list[Question]:
    """The same names, all with one address, or with any."""
    return [Question(f"{kind}-{number}.{DOMAIN}", expect) for number in range(count)]


def mixed(*groups: list[Question]) -> list[Question]:
    """Taken from each in turn."""
    return list(chain.from_iterable(zip(*groups, strict=True)))


def number_of(ask: Ask) -> int:
    """The number in its name."""
    return int(ask.name.partition(".")[0].rpartition("-")[2])


def kind_of(ask: Ask) -> str:
    """What stands before the number."""
    return ask.name.partition(".")[0].rpartition("-")[0]


def own_address(ask: Ask) -> None:
    """Answer with the address of the name's number."""
    ask.reply(record(_address(number_of(ask))))


async def took(bench: Bench, server: Server, questions: Iterable[Question], rate: float, **different: float) -> Stream:
    """A stream that asks these once each; afterwards nothing of it is open."""
    asked = list(questions)
    async with Stream(server.endpoint, asked, rate, total=len(asked), **different) as stream:  # type: ignore[arg-type]
        await stream.finished()
    return stream


async def outcome(
    bench: Bench, server: Server, measured: str, met: bool, *, streams: Iterable[Stream], upstreams: Iterable[Scripted | Lossy]
) -> Outcome:
    """The row's outcome, if all is accounted for; the upstreams are taken away, so that their sockets are closed now.

    Give `upstreams` only whose every packet counts: what is sent to a closed port cannot be counted there.
    """
    missing = await _unaccounted(bench, server, list(streams), list(upstreams))
    await take_away(bench, server)
    if missing:
        return Outcome(f"{measured}; unaccounted for: {', '.join(missing)}", met=False)
    return Outcome(measured, met)


async def take_away(bench: Bench, server: Server) -> None:
    """Configure another upstream: all sockets towards the present ones are closed, and not only when they are old."""
    other = await bench.upstream()
    server.write({**server.settings, "upstreams": [str(other.endpoint)]})
    server.signal(signal.SIGHUP)


async def _unaccounted(bench: Bench, server: Server, streams: list[Stream], upstreams: list[Scripted | Lossy]) -> list[str]:
    found: list[str] = []

    def balanced() -> bool:
        found[:] = _differences(server, streams, upstreams)
        return not found

    try:
        await bench.until(balanced, 5.0)
    except TimeoutError:
        await asyncio.sleep(0)
    return found


def _differences(server: Server, streams: list[Stream], upstreams: list[Scripted | Lossy]) -> list[str]:
    found = []
    for stream in streams:
        if stream.lost:
            found.append(f"{stream.lost} of {stream.sent} queries got no reply")
        if stream.strays:
            found.append(f"{stream.strays} replies to nobody")
    asked = server.counted("canal_dns_requests_total")
    told = sum(server.counted(f"canal_dns_{what}_total") for what in ("responses", "dropped", "send_errors"))
    if asked != told:
        found.append(f"canal-dns counts {asked:.0f} queries, and {told:.0f} that were answered or dropped")
        if replaced := server.counted("canal_dns_worker_restarts_total"):
            found.append(f"{replaced:.0f} workers were replaced")
    for upstream in upstreams:
        sent = server.counted("canal_dns_forward_requests_total", to=str(upstream.endpoint), proto="udp")
        if isinstance(upstream, Lossy):
            came = upstream.there.came - upstream.loop_probes
            for way, counts in (("there", upstream.there), ("back", upstream.back)):
                if counts.missing:
                    found.append(f"{counts.missing} datagrams on their way {way}")
        else:
            came = upstream.received
            sent += server.counted("canal_dns_forward_requests_total", to=str(upstream.endpoint), proto="tcp")
        if sent != came:
            found.append(f"{sent:.0f} were sent to {upstream.endpoint}, where {came} came in")
    if waiting := server.counted("canal_dns_forward_in_flight"):
        found.append(f"{waiting:.0f} still on their way")
    return found


def ratio(pairs: Iterable[tuple[Stream, Stream]], share: float = 0.99) -> float:
    """Of the faulty percentile to the idle one: the best round, since this machine has other things to do as well."""
    return min(faulty.percentile(share) / idle.percentile(share) for idle, faulty in pairs)


def _address(number: int) -> str:
    return socket.inet_ntoa((10 << 24 | number).to_bytes(4))
