"""Upstreams that lead back to canal-dns."""

from __future__ import annotations

import asyncio
import contextlib

from canal_dns.dns import names
from canal_dns.dns.loops import mark_of, probe
from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.rows import Outcome, row
from tests.faults.server import BOUND_QUESTION
from tests.server.scripted import message, record
from tests.server.serving import ask, query, rcode, udp_client
from tests.server.stub import NXDOMAIN, Stub

SERVFAIL = 2
WORKERS = 2
CLIENT = 2
"""Packets of one question, from its client and to it."""
AT_ONCE = 0.05


@row(
    "U20",
    "forwarding loop",
    "detect, SERVFAIL, alert; <= 20 packets for a question before that, none upstream after it; never exit on a packet; used "
    "again when mended",
)
async def forwarding_loop(bench: Bench) -> Outcome:
    stub = Stub()
    try:
        return await _loops(bench, stub)
    finally:
        stub.close()


async def _loops(bench: Bench, stub: Stub) -> Outcome:
    # As behind the address of a Service: what comes back comes from elsewhere.
    stub.source = "127.0.0.2"
    server = await bench.server(stub.endpoint, workers=WORKERS)
    await bench.until(lambda: server.counted("canal_dns_loop_probes_total") >= WORKERS, what="both workers have probed")
    stub.targets = [server.endpoint]

    first = "first.default.svc.cluster.local"
    reply = await ask(server.endpoint, query(first), seconds=5.0)
    packets = stub.packets[first] + CLIENT
    others = [Question(f"other-{number}.default.svc.cluster.local") for number in range(100)]
    looked = asyncio.create_task(
        bench.until(lambda: server.counted("canal_dns_forward_upstream_looping") == WORKERS, 40, "both workers know")
    )
    while not looked.done():
        # Each worker has to find out for itself: by what it is asked, or by the probe that it sends every half a minute.
        async with Stream(server.endpoint, others[:10], 20) as asked:
            await asked.for_(0.5)
    found = looked.result()

    before = stub.packets.copy()
    async with Stream(server.endpoint, others, 500) as failing, Stream(server.endpoint, [BOUND_QUESTION], 500) as bound:
        await failing.for_(20 if bench.long else 2)
    sent = sum(count for name, count in (stub.packets - before).items() if name.startswith("other-"))
    slowest = failing.percentile(0.99)

    await _forge(bench, server.endpoint, str(stub.endpoint))
    stub.mended = lambda name: True
    back = await bench.until(lambda: server.counted("canal_dns_forward_upstream_looping") == 0, 30, "it is used again")
    after = rcode(await ask(server.endpoint, query("after.default.svc.cluster.local"), seconds=5.0))
    return Outcome(
        f"{packets} packets until SERVFAIL; both workers knew after {found:.1f} s; then {failing.failed} of {failing.sent} "
        f"SERVFAIL, p99 {slowest * 1e3:.1f} ms, {sent} packets upstream; bound names: {bound.said()}; mended: used again after "
        f"{back:.1f} s",
        met=rcode(reply) == SERVFAIL
        and packets <= 20
        and failing.failed == failing.sent
        and slowest <= AT_ONCE
        and sent == 0
        and bound.right == bound.sent
        and after == NXDOMAIN,
    )


async def _forge(bench: Bench, endpoint: Endpoint, upstream: str) -> None:
    """Probes and their answers as a client can send them, who knows everything but a nonce."""
    asked = probe(mark_of(upstream, True), bytes(8), names.from_text("cluster.local"))
    packet = b"\x1a\x2b\1\0\0\1\0\0\0\0\0\0" + asked.question
    with udp_client() as sock:
        for _ in range(2000 if bench.long else 200):
            for forged in (packet, message(packet, record("240.0.0.0", 0))):
                with contextlib.suppress(OSError):
                    sock.sendto(forged, (endpoint.host, endpoint.port))
