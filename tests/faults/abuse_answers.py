"""Answers that are meant for somebody else: long ones to a forged address, and those that would be answered in turn.

Rules of this file:
- forged packets are real ones, from raw sockets, inside the bench's own network namespace;
- the client whose address may be forged is 127.0.0.2: all but 127.0.0.1 have a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from canal_dns.settings import Endpoint
from tests.dns.packets import opt
from tests.faults.bench import Bench
from tests.faults.clients import Stream
from tests.faults.rows import NotRunError, Outcome, row
from tests.faults.server import BOUND, BOUND_QUESTION, Server
from tests.faults.upstreams import take_away
from tests.server.scripted import Ask, message, record
from tests.server.serving import query, receive, udp_client

LIMITED = {"errorRepliesPerSecond": 100_000, "rateLimit": {"perSecond": 100_000, "exempt": ["127.0.0.1/32"]}}
FORGED, PRIVATE = "127.0.0.2", "127.0.0.1"
MOST = 3.0
PORTS = (0, 7, 13, 19, 37)
TXT, AAAA, HTTPS, ANY, AXFR = 16, 28, 65, 255, 252
_SOA = bytes.fromhex("c00c 0006 0001 0000001e 0040") + b"\1a" * 21 + b"\0\0" + bytes(20)


def _script(ask: Ask) -> None:
    """The longest of each kind that comes over UDP."""
    kind = ask.name.partition(".")[0]
    if kind == "many":
        ask.reply(*(record(f"192.0.2.{number}") for number in range(60)))
    elif kind == "text":
        ask.reply(b"\xc0\x0c" + struct.pack(">HHIH", TXT, 1, 300, 1024) + (b"\xff" + b"x" * 255) * 4)
    elif kind in ("gone", "empty"):
        reply = message(ask.packet, rcode=3 if kind == "gone" else 0, tail=_SOA)
        ask.write(reply[:8] + b"\0\1" + reply[10:])
    elif kind == "fails":
        ask.fail(2)
    elif kind == "cut":
        ask.reply(tc=True) if not ask.stream else ask.reply()
    else:
        ask.reply()


def _queries() -> dict[str, bytes]:
    """What is asked, by what it provokes."""
    plain = query(BOUND)
    return {
        "bound A": plain,
        "bound AAAA": query(BOUND, AAAA),
        "bound HTTPS": query(BOUND, HTTPS),
        "bound ANY": query(BOUND, ANY),
        "one address": query("one.up.test"),
        "60 addresses": query("many.up.test"),
        "1 KiB of text": query("text.up.test", TXT),
        "ANY of others": query("many.up.test", ANY),
        "NXDOMAIN": query("gone.up.test"),
        "NODATA": query("empty.up.test", AAAA),
        "SERVFAIL": query("fails.up.test"),
        "TC=1 from upstream": query("cut.up.test"),
        "root servers": query("", 2),
        "FORMERR": plain + b"\0",
        "NOTIMP": plain[:2] + b"\x28" + plain[3:],
        "class CH": plain[:-1] + b"\3",
        "AXFR": query(BOUND, AXFR),
        "no question": plain[:4] + bytes(8),
    }


def _forms(packet: bytes) -> dict[str, bytes]:
    """With OPT records too, as far as it has room for one."""
    forms = {"": packet}
    if packet[4:12] == b"\0\1\0\0\0\0\0\0":
        more = packet[:11] + b"\1" + packet[12:]
        forms |= {"EDNS": more + opt(4096), "DO": more + opt(4096, flags=0x8000), "EDNS 1": more + opt(4096, version=1)}
    return forms


@row(
    "A4",
    "amplification: each kind of answer asked for in somebody else's name",
    "octets of a reply <= 3x those of its query, over UDP, for whoever may be forged",
)
async def amplification(bench: Bench) -> Outcome:
    upstream = await bench.upstream(_script, keep=False)
    server = await bench.server(upstream, access=LIMITED, cache={"size": 1000})
    kinds = {f"{kind} {form}".strip(): sent for kind, packet in _queries().items() for form, sent in _forms(packet).items()}
    worst: dict[str, tuple[float, str]] = {}
    for host in (FORGED, PRIVATE):
        ratios = []
        for kind, sent in kinds.items():
            # The second one comes from the cache, if any.
            for _ in range(2):
                try:
                    ratios.append((len(await _ask(server.endpoint, sent, host)) / len(sent), kind))
                except TimeoutError:
                    raise TimeoutError(f"no reply to {kind} of {host}") from None
        worst[host] = max(ratios)
    await take_away(bench, server)
    times, what = worst[FORGED]
    private, private_what = worst[PRIVATE]
    return Outcome(
        f"{len(kinds)} kinds of query: at most {times:.2f}x ({what}); clients of private networks, who have no limit: "
        f"{private:.1f}x ({private_what})",
        met=times <= MOST,
    )


async def _ask(endpoint: Endpoint, packet: bytes, host: str) -> bytes:
    with udp_client(host) as sock:
        sock.sendto(packet, (endpoint.host, endpoint.port))
        return (await receive(sock, 4.0))[0]


@row(
    "A5",
    "response loops: source ports of echo and the like, responses as queries, its own address forged",
    "no reply to them; to its own address one, which ends there; others: loss 0",
)
async def response_loops(bench: Bench) -> Outcome:
    server = await bench.server()
    target = server.endpoint
    good = query(BOUND)
    bad = good + b"\0"
    rounds = 200
    async with Stream(target, [BOUND_QUESTION], 500, host="127.0.0.3") as others:
        with contextlib.ExitStack() as stack:
            raw = _raw(stack)
            victims = [stack.enter_context(udp_client(FORGED, port)) for port in PORTS if port]
            before = await asyncio.to_thread(_packets, server)
            for _ in range(rounds):
                for port in PORTS:
                    for packet in (good, bad):
                        raw.sendto(_datagram((FORGED, port), target, packet), (target.host, 0))
                await asyncio.sleep(0.001)
            dropped = 2 * len(PORTS) * rounds
            await bench.until(lambda: server.counted("canal_dns_dropped_total", reason="source-port") == dropped, 5, "ports")
            answered = sum(_waiting(sock) for sock in victims)

            response = good[:2] + b"\x81\x80" + good[4:]
            with udp_client(FORGED) as sock:
                for _ in range(rounds):
                    sock.sendto(response, (target.host, target.port))
                await bench.until(lambda: server.counted("canal_dns_dropped_total", reason="response") >= rounds, 5, "QR=1")
                answered += _waiting(sock)

            for _ in range(rounds):
                raw.sendto(_datagram((target.host, target.port), target, good), (target.host, 0))
                await asyncio.sleep(0.001)
            await bench.until(lambda: server.counted("canal_dns_dropped_total", reason="response") >= 2 * rounds, 5, "own")
            asked = others.sent
            after = await asyncio.to_thread(_packets, server)
    own = after["replies"] - before["replies"] - asked
    loops = await asyncio.to_thread(server.counted, "canal_dns_dropped_total", reason="response")
    return Outcome(
        f"{dropped} queries from ports {', '.join(map(str, PORTS))} and {rounds} responses: {answered} replies; {rounds} "
        f"from its own address: {loops - rounds:.0f} replies came back to it and were dropped; others: {others.said()}",
        met=not answered and loops == 2 * rounds and own <= rounds + 20 and others.right == others.sent,
    )


def _packets(server: Server) -> dict[str, float]:
    return {"replies": server.counted("canal_dns_responses_total")}


def _raw(stack: contextlib.ExitStack) -> socket.socket:
    try:
        return stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    except PermissionError:
        raise NotRunError("addresses can be forged by root only") from None


def _datagram(source: tuple[str, int], target: Endpoint, payload: bytes) -> bytes:
    """IPv4 and UDP, without the checksums: the kernel makes the one, and nobody wants the other."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target.host)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    return head + struct.pack(">HHHH", source[1], target.port, 8 + len(payload), 0) + payload


def _waiting(sock: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while sock.recv(4096):
            count += 1
    return count
