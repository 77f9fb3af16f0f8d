"""Loops through another server, on real sockets: found, kept from what loops, told, and over when they are.

Every test runs with the extension and with Python alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest

from canal_dns.dns import loops, names
from canal_dns.dns.loops import mark_of, probe
from canal_dns.server import forwarder as forwarder_module
from canal_dns.server.forwarding import QUICK
from canal_dns.server.service import PacketService
from canal_dns.server.sockets import probe as free_endpoint
from canal_dns.settings import CacheSettings, Endpoint, Sentinel, Settings
from tests.server.scripted import FORGED, Scripted, eventually, message, record
from tests.server.serving import BOUND, LOOPBACK, ask, connected, descriptors, is_vip, query, rcode, settings, udp_client
from tests.server.stub import NXDOMAIN, Stub

CLUSTER = names.from_text("cluster.local")
PLAIN, SHOP = "plain.default.svc.cluster.local", "stock.shop.svc.cluster.local"
SERVFAIL = 2


@pytest.fixture(params=["native", "python"], autouse=True)
def filling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(forwarder_module, "QUICK", None)
    elif QUICK is None:
        pytest.skip("the extension is not built")
    return str(request.param)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SOON", 0.1), ("CONFIRM", 0.02), ("PERIOD", 0.3)):
        monkeypatch.setattr(loops, name, seconds)


class Node:
    """A service and where it listens."""

    def __init__(self, *upstreams: Endpoint, **different: object) -> None:
        self.endpoint = free_endpoint(LOOPBACK)
        self.settings: Settings = settings(*upstreams, listen=(self.endpoint,), **different)  # type: ignore[arg-type]
        self.service = PacketService(self.settings)

    async def __aenter__(self) -> Node:
        await self.service.start()
        self.service.publish(BOUND, 1, 1, full=True)
        # Known to its client, so that the extension takes what comes next.
        assert is_vip(await self.ask(query()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.service.stop()

    async def ask(self, packet: bytes) -> bytes:
        return await ask(self.endpoint, packet)

    async def says(self, name: str) -> int:
        """The response code."""
        return rcode(await self.ask(query(name)))

    async def reload(self, *upstreams: Endpoint, **different: object) -> None:
        forward = dataclasses.replace(self.settings.forward, upstreams=upstreams, **different)  # type: ignore[arg-type]
        self.settings = dataclasses.replace(self.settings, forward=forward)
        await self.service.reconfigure(self.settings)

    def counted(self, metric: str, *labels: str) -> float:
        return self.service.own_counters()[f"canal_dns_{metric}"][labels]

    def loops(self, to: Endpoint) -> bool:
        return self.counted("forward_upstream_looping", str(to)) == 1

    async def finds(self, to: Endpoint) -> None:
        """Wait until it knows that this upstream loops, and how much of it."""
        forwarder = self.service._forwarder
        await eventually(lambda: self.loops(to) and not any(map(forwarder.loops.searching, forwarder._upstreams)))

    async def probed(self, to: Endpoint) -> None:
        await eventually(lambda: all(watch.clean for watch in self.service._forwarder.loops._watches.values()))
        assert not self.loops(to)


def unchanged(packet: bytes) -> bytes:
    return packet


def without_opt(packet: bytes) -> bytes:
    return packet[:10] + b"\0\0" + packet[12:-11]


def only(zone: str) -> Callable[[str], bool]:
    """For `mended`: what is not in this zone."""
    return lambda name: not name.endswith(zone)


class TestFound:
    @pytest.mark.parametrize("replicas", [1, 2])
    async def test_at_the_start_and_then_nothing_is_sent_any_more(
        self, stub: Stub, hurry: None, replicas: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        nodes = [Node(stub.endpoint, budget=0.5) for _ in range(replicas)]
        stub.targets = [node.endpoint for node in nodes]
        stub.mended = only("cluster.local")
        async with contextlib.AsyncExitStack() as stack:
            for node in nodes:
                await stack.enter_async_context(node)
            for node in nodes:
                await node.finds(stub.endpoint)
                reply = await node.ask(query(PLAIN))
                assert rcode(reply) == SERVFAIL
                assert node.counted("forward_rejected_total", "loop") == 1
                assert is_vip(await node.ask(query()))
            assert stub.packets[PLAIN] == 0
        lines = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert len(lines) == replicas
        assert (
            f"upstream {stub.endpoint} sends our own questions back to us: it is not asked for names in cluster.local."
            in lines[0]
        )

    @pytest.mark.parametrize(
        ("source", "passes"),
        [("127.0.0.1", without_opt), ("127.0.0.2", unchanged), ("127.0.0.2", without_opt)],
        ids=["from the upstream's address", "with our OPT record", "by time-out"],
    )
    @pytest.mark.parametrize("replicas", [1, 2])
    async def test_by_a_question_that_loops_in_a_narrow_zone(
        self, stub: Stub, replicas: int, source: str, passes: Callable[[bytes], bytes]
    ) -> None:
        nodes = [Node(stub.endpoint, budget=0.5) for _ in range(replicas)]
        stub.targets, stub.source, stub.passes = [node.endpoint for node in nodes], source, passes
        stub.mended = only("shop.svc.cluster.local")
        async with contextlib.AsyncExitStack() as stack:
            for node in nodes:
                await stack.enter_async_context(node)
                await node.probed(stub.endpoint)
            assert await nodes[0].says(SHOP) == SERVFAIL
            await eventually(lambda: any(node.loops(stub.endpoint) for node in nodes))
            assert stub.packets[SHOP] + 2 <= 20
            [finder] = [node for node in nodes if node.loops(stub.endpoint)][:1]
            await finder.finds(stub.endpoint)
            assert stub.probes()[-1].endswith("svc.cluster.local")
            before = stub.packets.copy()
            assert await finder.says("other.shop.svc.cluster.local") == SERVFAIL
            assert stub.packets["other.shop.svc.cluster.local"] == 0
            assert await finder.says(PLAIN) == NXDOMAIN, "nothing is kept from it but what loops"
            assert before[SHOP] == stub.packets[SHOP]

    async def test_by_the_failure_of_one_who_knows(self, stub: Stub) -> None:
        """Else it would go on asking, and never see its own question again: the other one ends it."""
        one, other = Node(stub.endpoint), Node(stub.endpoint)
        stub.targets, stub.source = [one.endpoint], "127.0.0.2"
        stub.mended = only("shop.svc.cluster.local")
        async with one, other:
            for node in (one, other):
                await node.probed(stub.endpoint)
            assert await one.says(SHOP) == SERVFAIL
            await one.finds(stub.endpoint)
            assert await other.says(SHOP) == SERVFAIL
            await other.finds(stub.endpoint)

    async def test_through_another_pool_and_back(self, stub: Stub) -> None:
        """A asks B, B asks A."""
        b = Node(stub.endpoint)
        a = Node(b.endpoint)
        stub.targets = [a.endpoint]
        async with b, a:
            # Who has found it first breaks it for the other one, too.
            await eventually(lambda: b.loops(stub.endpoint) or a.loops(b.endpoint))
            assert await a.says(PLAIN) == SERVFAIL
            assert await b.says(PLAIN) == SERVFAIL

    async def test_the_upstream_is_canal_dns_itself(self) -> None:
        node = Node()
        async with node:
            await node.reload(node.endpoint)
            await node.finds(node.endpoint)
            assert await node.says(PLAIN) == SERVFAIL
            assert node.counted("loops_total") >= 1

    async def test_without_a_table_too(self, stub: Stub) -> None:
        """Before the first sync everything is forwarded."""
        node = Node(stub.endpoint)
        stub.targets = [node.endpoint]
        await node.service.start()
        try:
            await node.finds(stub.endpoint)
            assert await node.says(PLAIN) == SERVFAIL
        finally:
            await node.service.stop()

    async def test_those_who_wait_are_told_at_once(self, stub: Stub) -> None:
        """What was asked before it was known: nobody waits for the budget to end."""
        node = Node(stub.endpoint, budget=30.0)
        stub.source = "127.0.0.2"
        nobody = Endpoint("127.0.0.1", 9)
        stub.targets = [nobody]
        stub.mended = lambda name: name.startswith("canal-dns-loop-") and nobody in stub.targets
        async with node:
            await node.probed(stub.endpoint)
            waiting = [asyncio.ensure_future(node.ask(query(f"n{number}.shop.svc.cluster.local"))) for number in range(5)]
            await eventually(lambda: node.service._forwarder._inflight.waiting == 5)
            stub.targets = [node.endpoint]
            node.service._forwarder.suspect(names.from_text(SHOP), time.monotonic(), stub.endpoint.host)
            assert [rcode(reply) for reply in await asyncio.gather(*waiting)] == [SERVFAIL] * 5


class TestUpstreams:
    @pytest.mark.parametrize("first", [True, False], ids=["the first loops", "the second loops"])
    async def test_another_one_is_asked(self, stub: Stub, first: bool) -> None:
        async with Scripted() as good:
            order = (stub.endpoint, good.endpoint) if first else (good.endpoint, stub.endpoint)
            node = Node(*order)
            stub.targets = [node.endpoint]
            async with node:
                await node.finds(stub.endpoint)
                for number in range(20):
                    assert await node.says(f"n{number}.default.svc.cluster.local") == 0
                assert not any(name.startswith("n") for name in stub.asked)
                assert len(good.asks) == 20

    async def test_what_waits_for_it_goes_to_another_one(self, stub: Stub) -> None:
        async with Scripted() as good:
            node = Node(stub.endpoint, good.endpoint, budget=30.0)
            stub.targets = [node.endpoint]
            stub.mended = only("shop.svc.cluster.local")
            async with node:
                await node.probed(stub.endpoint)
                assert await node.says(SHOP) == 0
                assert node.loops(stub.endpoint)

    async def test_a_reload_to_a_good_one(self, stub: Stub) -> None:
        node = Node(stub.endpoint)
        stub.targets = [node.endpoint]
        async with node, Scripted() as good:
            await node.finds(stub.endpoint)
            await node.reload(good.endpoint)
            assert await node.says(PLAIN) == 0
            assert dict(node.service.own_counters()["canal_dns_forward_upstream_looping"]) == {(str(good.endpoint),): 0}

    async def test_one_behind_the_other_is_no_loop(self) -> None:
        async with Scripted() as good, Node(good.endpoint) as b, Node(b.endpoint) as a:
            await eventually(lambda: good.loop_probes >= 2)
            await a.probed(b.endpoint)
            await b.probed(good.endpoint)
            assert await a.says(PLAIN) == 0

    async def test_another_way_of_asking_is_not_this_one(self, stub: Stub) -> None:
        """Replicas of before and after a change: who asks with DO=1 passes by, who does not comes back."""
        async with Scripted() as good:
            old, new = Node(stub.endpoint, sentinel=Sentinel.NONE), Node(stub.endpoint)
            stub.targets = [old.endpoint]
            async with old, new:
                await old.finds(stub.endpoint)
                await eventually(lambda: new.counted("loop_probes_total", str(stub.endpoint)) >= 1)
                assert not new.loops(stub.endpoint)
                assert good.asks == []


class TestOver:
    async def test_it_is_used_again_when_it_is_mended(self, stub: Stub, hurry: None, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        node = Node(stub.endpoint)
        stub.targets = [node.endpoint]
        async with node:
            await node.finds(stub.endpoint)
            assert await node.says(PLAIN) == SERVFAIL
            stub.mended = lambda name: True
            await eventually(lambda: not node.loops(stub.endpoint))
            assert await node.says(PLAIN) == NXDOMAIN
            assert f"upstream {stub.endpoint} does not send our own questions back to us any more" in caplog.text
            stub.mended = lambda name: False
            await node.finds(stub.endpoint)

    async def test_nothing_is_left_at_the_end(self, stub: Stub) -> None:
        before = descriptors()
        node = Node(stub.endpoint)
        stub.targets = [Endpoint("127.0.0.1", 9)]
        async with node:
            await eventually(lambda: bool(stub.probes()))
        stub.let_go()
        await eventually(lambda: descriptors() <= before)


class TestForged:
    """Nothing that a client sends makes us believe in a loop, or stop."""

    async def test_markers_from_a_client(self) -> None:
        async with Scripted() as upstream, Node(upstream.endpoint) as node:
            await node.probed(upstream.endpoint)
            asked = probe(mark_of(str(upstream.endpoint), True), bytes(8), CLUSTER)
            packet = b"\x1a\x2b\1\0\0\1\0\0\0\0\0\0" + asked.question
            with udp_client() as sock:
                for _ in range(100):
                    sock.sendto(message(packet, record("240.0.0.0", 0)), (node.endpoint.host, node.endpoint.port))
                    sock.sendto(packet, (node.endpoint.host, node.endpoint.port))
            for channel in node.service._forwarder._udp.own.values():
                with udp_client() as sock:
                    sock.sendto(message(packet, record("240.0.0.0", 0)), channel.local)
            assert await node.says(PLAIN) == 0
            assert not node.loops(upstream.endpoint)
            assert node.counted("loops_total") == 0

    @pytest.mark.parametrize("address", ["10.96.9.9", FORGED, "240.0.0.1"])
    async def test_an_upstream_that_answers_every_name_is_no_loop(self, stub: Stub, address: str, hurry: None) -> None:
        """A wildcard record."""
        stub.reply = lambda packet: message(packet, record(address))
        async with Node(stub.endpoint) as node:
            await eventually(lambda: node.counted("loop_probes_total", str(stub.endpoint)) >= 2)
            assert not node.loops(stub.endpoint)

    async def test_a_probe_with_our_mark_is_answered_over_both_transports_and_one_with_another_is_forwarded(self) -> None:
        async with Scripted() as upstream, Node(upstream.endpoint) as node:
            own, other = (probe(mark_of(to, True), bytes(8), CLUSTER) for to in (str(upstream.endpoint), "10.0.0.1:53"))
            for asked, answer in ((own, b"\xf0\0\0\0"), (other, b"")):
                packet = b"\x1a\x2b\1\0\0\1\0\0\0\0\0\0" + asked.question
                async with connected(node.endpoint) as client:
                    for reply in (await node.ask(packet), await client.ask(packet)):
                        assert rcode(reply) == (0 if answer else NXDOMAIN)
                        assert reply.endswith(answer)

    async def test_the_marker_is_never_kept(self, stub: Stub) -> None:
        """Neither by whom it is meant for nor on its way: A asks B, and B what leads to A."""
        b = Node(stub.endpoint, cache=CacheSettings(size=100))
        a = Node(b.endpoint, cache=CacheSettings(size=100))
        stub.targets = [a.endpoint]
        stub.mended = lambda name: mark_of(str(stub.endpoint), True).decode() in name
        async with b, a:
            await a.finds(b.endpoint)
            for node in (a, b):
                assert node.service._cache is not None
                for entry in node.service._cache.entries.values():
                    assert entry.flags & 15 in (SERVFAIL, NXDOMAIN)
