"""Forged replies: an upstream that is silent over UDP, and a forger who sends guesses from its address and port.

A failure is no forgery: under such a flood, and on a machine that is busy with it, TCP may take longer than a query has.

The forger knows the question, and sends from the upstream's own socket; half of the guesses go to the very port that the
question came from, half to others, since a forger off the path has to guess it. Only the ID is unknown: each guess at the right
port hits with 1 in 65,536. Others know the ID and not the source: another port, another address.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from dataclasses import dataclass

from tests.faults.bench import Bench
from tests.faults.rows import Outcome
from tests.server.scripted import FORGED, TRUE, Ask, eventually, message, record
from tests.server.serving import query, receive, udp_client

GUESSES = 1000
"""For one question."""
TOGETHER = 20
"""Questions at a time."""
TRUTH = 0.3
"""Seconds after which the upstream answers over TCP, which the forger has for himself."""
SHORT, LONG = 20_000, 1_000_000
"""Forged replies of a run."""
_forged, _true = map(socket.inet_aton, (FORGED, TRUE))


@dataclass
class _Count:
    sent: int = 0
    at_the_port: int = 0
    elsewhere: int = 0
    accepted: int = 0
    true: int = 0
    other: int = 0


async def spoof(bench: Bench) -> Outcome:
    """A run; nothing forged may reach a client, at once or from the cache."""

    def script(ask: Ask) -> None:
        if ask.stream:
            ask.later(TRUTH, ask.reply)
        else:
            open_[ask.question.lower()] = ask

    open_: dict[bytes, Ask] = {}
    upstream = await bench.upstream(script, keep=False)
    server = await bench.server(upstream, cache={"size": 10_000})
    chance, count = random.Random(), _Count()
    sock = upstream._udp.get_extra_info("socket")  # type: ignore[union-attr]
    own = socket.socket(fileno=os.dup(sock.fileno()))
    others = [udp_client(), udp_client("127.0.0.2")]
    names = 0
    try:
        while count.sent < (LONG if bench.long else SHORT):
            asked = [f"v{names + at}.default.svc.cluster.local" for at in range(TOGETHER)]
            names += TOGETHER
            await _round(server.endpoint, asked, open_, own, others, chance, count)
    finally:
        for one in (own, *others):
            one.close()
    ignored = server.counted("canal_dns_forward_ignored_replies_total")
    by_chance = count.at_the_port / 65_536
    return Outcome(
        f"{count.sent} forged replies to {names} questions, {count.at_the_port} of them at the right port, of which "
        f"{by_chance:.2f} have the ID by chance, {count.elsewhere} with the right ID from elsewhere: "
        f"{count.accepted} accepted; "
        f"{count.true} true answers, {count.other} failures, none without one; {ignored:.0f} packets ignored by the forwarder",
        met=count.accepted == 0 and count.true + count.other == 2 * names,
    )


async def _round(endpoint, asked, open_, own, others, chance, count) -> None:  # type: ignore[no-untyped-def]
    open_.clear()
    clients = [udp_client() for _ in asked]
    for client in clients:
        # What is guessed at random ports is not to reach them past the server.
        client.connect((endpoint.host, endpoint.port))
    try:
        for at, (client, name) in enumerate(zip(clients, asked, strict=True)):
            client.send(query(name, ident=at))
        await eventually(lambda: len(open_) == len(asked))
        for at in range(GUESSES):
            for ask in open_.values():
                _guess(ask, own, others, chance, count, known=at % 50 == 49)
            if at % 10 == 9:
                await asyncio.sleep(0)
        for client in clients:
            _judge((await receive(client, 5.0))[0], count)
        # And once more, of what the server has kept.
        for client, name in zip(clients, asked, strict=True):
            client.send(query(name, ident=7))
        for client in clients:
            _judge((await receive(client, 5.0))[0], count)
    finally:
        for client in clients:
            client.close()


def _guess(ask: Ask, own: socket.socket, others: list[socket.socket], chance, count: _Count, *, known: bool) -> None:  # type: ignore[no-untyped-def]
    if known:
        sock, ident, port = chance.choice(others), ask.id, ask.port
        count.elsewhere += 1
    else:
        sock, ident = own, chance.randrange(65_536)
        port = ask.port if count.sent % 2 else chance.randrange(32_768, 61_000)
        count.at_the_port += port == ask.port
    try:
        sock.sendto(message(ask.packet, record(FORGED), ident=ident), ("127.0.0.1", port))
    except OSError:
        # The buffer is full for a moment, or somebody complained about the one before.
        return
    count.sent += 1


def _judge(reply: bytes, count: _Count) -> None:
    count.accepted += reply.endswith(_forged) or _forged in reply
    count.true += _true in reply
    count.other += _true not in reply and _forged not in reply
