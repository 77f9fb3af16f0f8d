"""Upstreams that answer, and not what one wants to hear: failures, of one or of all of them, and how often is asked then."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.rows import Outcome, row
from tests.faults.server import Server
from tests.faults.upstreams import kind_of, mixed, named, number_of, numbered, outcome, own_address, take_away, took
from tests.server.scripted import Ask, Script, Scripted, silent

SERVFAIL, NOTIMP, REFUSED, FORMERR = 2, 4, 5, 1


@row("U18", "SERVFAIL or REFUSED from one upstream", "<= 1 extra query, never a loop; the last result if all fail")
async def one_fails(bench: Bench) -> Outcome:
    def failing(ask: Ask) -> None:
        ask.fail((SERVFAIL, REFUSED, NOTIMP, FORMERR)[number_of(ask) % 4])

    def last(ask: Ask) -> None:
        ask.fail(REFUSED) if kind_of(ask) == "all" else own_address(ask)

    upstreams = [await bench.upstream(script) for script in (failing, last, own_address)]
    server = await bench.server(*upstreams)
    count = 5000 if bench.long else 500
    one = await took(bench, server, numbered(count, "one"), 400)
    every = await took(bench, server, named(count // 2, "all", None), 400)
    most = max(_asked(upstreams).values())
    return await outcome(
        bench,
        server,
        f"one of 3 fails: {one.said()}; two fail: {every.rcodes.get(REFUSED, 0)} of {every.sent} get the last result; at most "
        f"{most} packets per query",
        one.right == one.sent and every.rcodes == {REFUSED: every.sent} and most <= 2,
        streams=[one, every],
        upstreams=upstreams,
    )


BAD: dict[str, Script] = {
    "silent": silent,
    "formerr": lambda ask: ask.fail(FORMERR),
    "servfail": lambda ask: ask.fail(SERVFAIL),
    "refused": lambda ask: ask.fail(REFUSED),
    "notimp": lambda ask: ask.fail(NOTIMP),
    "tc": lambda ask: ask.reply(tc=True),
    "id": lambda ask: ask.reply(ident=ask.id ^ 1),
    "question": lambda ask: ask.reply(question=b"\4evil\0\0\1\0\1"),
    "empty": lambda ask: ask.write(b""),
    "tail": lambda ask: ask.reply(tail=b"x"),
    "echo": lambda ask: ask.write(ask.packet),
}


@row(
    "U19",
    "resend loop on bad answers",
    "packets per client query <= 2 x upstreams (+1 TCP each); CPU < 1 % extra when FORMERR answers everything",
)
async def resend_loop(bench: Bench) -> Outcome:
    names = mixed(*(named(50 if bench.long else 5, kind, None) for kind in BAD))
    most: list[tuple[int, int]] = []
    streams = []
    within = True
    for count in (1, 2):
        upstreams = [await bench.upstream(lambda ask: BAD[kind_of(ask)](ask)) for _ in range(count)]
        server = await bench.server(*upstreams)
        streams.append(await took(bench, server, names, 100))
        udp, tcp = _asked(upstreams, stream=False), _asked(upstreams, stream=True)
        most.append((max(udp.values()), max(tcp.values())))
        within = within and most[-1][0] <= 2 * count and most[-1][1] <= count
        await take_away(bench, server)

    upstream = await bench.upstream(own_address)
    server = await bench.server(upstream)
    seconds = 10.0 if bench.long else 1.0
    rounds = []
    for _ in range(3):
        upstream.script = own_address
        usual = await _cpu(bench, server, seconds)
        upstream.script = lambda ask: ask.fail(FORMERR)
        rounds.append(await _cpu(bench, server, seconds) - usual)
    extra = sorted(rounds)[1]
    return await outcome(
        bench,
        server,
        f"{len(BAD)} kinds of answer: at most {most[0][0]} packets and {most[0][1]} over TCP with one upstream, "
        f"{most[1][0]} and {most[1][1]} with two; FORMERR to 100 queries/s: {extra:+.1%} CPU",
        within and extra < 0.01,
        streams=streams,
        upstreams=[upstream],
    )


def _asked(upstreams: list[Scripted], *, stream: bool | None = None) -> Counter[bytes]:
    """How often each question came to any of them."""
    return Counter(ask.question.lower() for one in upstreams for ask in one.asks if stream in (None, ask.stream))


async def _cpu(bench: Bench, server: Server, seconds: float) -> float:
    """CPU seconds per second while 100 queries come in each second."""
    before = _on_cpu(server)
    await took(bench, server, numbered(int(100 * seconds)), 100)
    return (_on_cpu(server) - before) / seconds


def _on_cpu(server: Server) -> float:
    """As `Server.cpu_seconds`, where that is too coarse: the scheduler's own figure is in nanoseconds."""
    tasks = Path(f"/proc/{server.popen.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
