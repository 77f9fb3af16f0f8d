"""What is not the reply: forged, broken or doubled, before the true one comes."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from functools import partial

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.rows import Outcome, row
from tests.faults.upstreams import kind_of, mixed, named, numbered, outcome, own_address, took
from tests.server.scripted import FORGED, Ask, message, record

BUDGET = 1.5
FORGERIES = 40
"""Before each true reply: what the receive buffer of one socket holds, and more would only be lost there."""
MISMATCHES = 3
EPHEMERAL = (32_768, 60_999)
GENUINE = 0.05
"""Seconds until the true reply."""


@row(
    "U6",
    "forged reply with a wrong ID",
    "0 wrong answers in 1,000,000 forgeries; genuine answer inside the budget; TCP after <= 3 mismatches; counted",
)
async def wrong_id(bench: Bench) -> Outcome:
    """Half of them guess the ID at the right port, half guess the port as well; from the upstream's own address and port."""
    chance = random.Random(6)
    sent = 0

    def script(ask: Ask) -> None:
        nonlocal sent
        mute = kind_of(ask) == "mute"
        if ask.stream:
            ask.later(0.0 if mute else GENUINE, ask.reply)
            return
        forged = message(ask.packet, record(FORGED))[2:]
        for _ in range(MISMATCHES if mute else FORGERIES // 2):
            ident = ask.id ^ chance.randrange(1, 0x10000)
            ask.write(ident.to_bytes(2) + forged)
            sent += 1
            if not mute:
                port = chance.randint(*EPHEMERAL)
                # What hits the ports where questions come in is no forged reply there.
                if port not in listening:
                    ask.to_port(chance.randrange(0x10000).to_bytes(2) + forged, port)
                    sent += 1
        if not mute:
            ask.later(GENUINE, ask.reply)

    upstream = await bench.upstream(script)
    server = await bench.server(upstream)
    listening = {upstream.endpoint.port, server.endpoint.port}
    wanted, rate = (1_000_000, 200) if bench.long else (20_000, 125)
    stream = await took(bench, server, named(wanted // FORGERIES, "n"), rate)
    # Those whose upstream says nothing but three forgeries by UDP: who is answered was asked for over TCP.
    mute = await took(bench, server, named(100, "mute"), 100)
    over_tcp = sum(kind_of(ask) == "mute" for ask in upstream.tcp)
    counted = server.counted("canal_dns_forward_ignored_replies_total", reason="id")
    slowest = max(stream.seconds)
    return await outcome(
        bench,
        server,
        f"{sent:,} forgeries: {stream.said()}, slowest {slowest:.2f} s; after 3 mismatches TCP for {over_tcp} of {mute.sent}, "
        f"slowest {max(mute.seconds):.2f} s; {counted:,.0f} counted",
        stream.right == stream.sent
        and slowest <= BUDGET
        and mute.right == mute.sent == over_tcp
        and max(mute.seconds) < 0.5
        and counted >= len(stream.seconds),
        streams=[stream, mute],
        upstreams=[upstream],
    )


@row("U7", "forged reply from another address or port", "0 accepted")
async def wrong_source(bench: Bench) -> Outcome:
    """With the right ID and question, from other ports of the upstream's address, and from other addresses, its port too."""
    upstream = await bench.upstream()
    sources = [("127.0.0.1", 0), ("127.0.0.1", 0), *((f"127.0.0.{n}", upstream.endpoint.port) for n in range(2, 5))]
    forgers = [await bench.enter(_Forger(host, port)) for host, port in sources]
    sent = 0

    def script(ask: Ask) -> None:
        nonlocal sent
        forged = message(ask.packet, record(FORGED))
        for number in range(FORGERIES):
            forgers[number % len(forgers)].send(forged, ask.port)
            sent += 1
        ask.later(GENUINE, ask.reply)

    upstream.script = script
    server = await bench.server(upstream)
    wanted, rate = (200_000, 200) if bench.long else (20_000, 125)
    stream = await took(bench, server, named(wanted // FORGERIES, "n"), rate)
    return await outcome(
        bench,
        server,
        f"{sent:,} forgeries: {stream.said()}, slowest {max(stream.seconds):.2f} s",
        stream.right == stream.sent and max(stream.seconds) <= BUDGET,
        streams=[stream],
        upstreams=[upstream],
    )


def _other_opcode(ask: Ask) -> bytes:
    reply = message(ask.packet, record(FORGED))
    return reply[:2] + b"\xa9\x80" + reply[4:]


WRONG = {
    "type": lambda ask: message(ask.packet, record(FORGED), question=ask.question[:-4] + struct.pack(">HH", 15, 1)),
    "class": lambda ask: message(ask.packet, record(FORGED), question=ask.question[:-2] + b"\0\3"),
    "name": lambda ask: message(ask.packet, record(FORGED), question=b"\4evil\0\0\1\0\1"),
    "longer": lambda ask: message(ask.packet, record(FORGED), question=b"\1a" + ask.question),
    "query": lambda ask: message(ask.packet, record(FORGED), qr=False),
    "echo": lambda ask: ask.packet,
    "opcode": _other_opcode,
}
"""Right ID, right source, and something else is not."""


@row("U8", "wrong question, QR=0, other opcode", "discarded, the wait goes on; 0 relayed, 0 cached")
async def not_the_question(bench: Bench) -> Outcome:
    return await _before_the_true_one(bench, WRONG, cache={"size": 10_000})


def _counts_too_much(ask: Ask) -> bytes:
    return message(ask.packet)[:6] + b"\0\4\0\0\0\0" + ask.question


def _points_at_itself(ask: Ask) -> bytes:
    return message(ask.packet, b"\xc0" + bytes([12 + len(ask.question)]) + record()[2:])


def _beginning(octets: int, ask: Ask) -> bytes:
    return message(ask.packet, record(FORGED))[:octets]


MALFORMED = {
    "empty": lambda ask: b"",
    "header": lambda ask: message(ask.packet)[:12],
    "counts": _counts_too_much,
    "loop": _points_at_itself,
    "forward": lambda ask: message(ask.packet, b"\xc0\xff" + record(FORGED)[2:]),
    "tail": lambda ask: message(ask.packet, record(FORGED), tail=b"\0"),
    "label": lambda ask: message(ask.packet, b"\x80" + record(FORGED)[2:]),
    "noise": lambda ask: ask.packet[:2] + bytes(range(0x80, 0xC0)),
    **{f"first{octets}": partial(_beginning, octets) for octets in range(1, 48)},
}
"""Right ID and source, and not a message."""


@row("U9", "malformed reply before the good one", "genuine answer delivered after every malformed one; an empty datagram too")
async def malformed_first(bench: Bench) -> Outcome:
    return await _before_the_true_one(bench, MALFORMED, cache={"size": 10_000})


async def _before_the_true_one(bench: Bench, bad: dict, **different: object) -> Outcome:
    def script(ask: Ask) -> None:
        if not ask.stream:
            ask.write(bad[kind_of(ask)](ask))
        ask.later(GENUINE, ask.reply)

    upstream = await bench.upstream(script)
    server = await bench.server(upstream, **different)
    names = mixed(*(named(100 if bench.long else 4, kind) for kind in bad))
    stream = await took(bench, server, names, 200)
    # What was kept of them is told again; nothing but the true reply may have been.
    again = await took(bench, server, names, 500)
    ignored = server.counted("canal_dns_forward_ignored_replies_total")
    slowest = max(stream.seconds)
    return await outcome(
        bench,
        server,
        f"{len(bad)} kinds: {stream.said()}, slowest {slowest:.2f} s; asked again: {again.said()}; {ignored:.0f} counted",
        stream.right == stream.sent and again.right == again.sent and slowest <= BUDGET and ignored >= stream.sent,
        streams=[stream, again],
        upstreams=[upstream],
    )


@row("U10", "doubled replies", "exactly one reply to the client; counted")
async def doubled(bench: Bench) -> Outcome:
    def script(ask: Ask) -> None:
        for _ in range(3):
            own_address(ask)

    upstream = await bench.upstream(script)
    server = await bench.server(upstream, workers=2)
    total = 20_000 if bench.long else 2000
    names = numbered(total)
    async with Stream(server.endpoint, names, 1000, total=total) as stream:
        await stream.finished()
        unexpected = 0.0

        def counted() -> bool:
            nonlocal unexpected
            unexpected = server.counted("canal_dns_forward_ignored_replies_total", reason="unexpected")
            return unexpected >= 2 * len(upstream.asks)

        with contextlib.suppress(TimeoutError):
            await bench.until(counted, 2.0)
    return await outcome(
        bench,
        server,
        f"2 workers, 3 replies to each: {stream.said()}; {unexpected:.0f} counted of {2 * len(upstream.asks)}",
        stream.right == stream.sent and not stream.strays and unexpected == 2 * len(upstream.asks),
        streams=[stream],
        upstreams=[upstream],
    )


class _Forger:
    """A socket with an address and port of its own, which is not the upstream's."""

    def __init__(self, host: str, port: int) -> None:
        self._local = Endpoint(host, port)

    def send(self, packet: bytes, port: int) -> None:
        self._sock.sendto(packet, ("127.0.0.1", port))

    async def __aenter__(self) -> _Forger:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((self._local.host, self._local.port))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._sock.close()
