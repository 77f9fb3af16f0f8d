"""The way to the upstreams and back, on real sockets: FWD and SIZ rows of the conformance cases, limits, changes, the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest

from canal_dns.dns import names
from canal_dns.dns.table import Addresses, AnswerTable, TableCell
from canal_dns.dns.wire import Query, Type, parse_query
from canal_dns.metrics import Counters
from canal_dns.server import forwarder as forwarder_module
from canal_dns.server.forwarder import Forwarder
from canal_dns.server.upstream_udp import POOL, connect
from canal_dns.settings import Endpoint, ForwardSettings, Sentinel
from tests.server.scripted import TRUE, Ask, Scripted, eventually, message, record, silent
from tests.server.serving import ask as serving_ask
from tests.server.serving import query as serving_query
from tests.server.serving import serving

SHORT = 0.3
"""A budget for tests that wait for its end."""


def query(
    text: str = "a1.up.test",
    qtype: int = Type.A,
    *,
    ident: int = 0x1A2B,
    flags: int = 0x0100,
    payload: int | None = None,
    do: bool = False,
    options: bytes = b"",
    stream: bool = False,
    case: bytes | None = None,
) -> Query:
    """A client's query, parsed."""
    wire = (case or names.from_text(text)) + qtype.to_bytes(2, "big") + b"\0\1"
    packet = (
        ident.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\0\1\0\0\0\0" + (b"\0\0" if payload is None else b"\0\1") + wire
    )
    if payload is not None:
        packet += b"\0\0\x29" + payload.to_bytes(2, "big") + (b"\0\0\x80\0" if do else b"\0\0\0\0")
        packet += len(options).to_bytes(2, "big") + options
    parsed = parse_query(packet, stream=stream)
    assert isinstance(parsed, Query)
    return parsed


class Client:
    """Asks a forwarder as a listener would, and fails if a question gets two outcomes."""

    def __init__(self, forwarder: Forwarder, counters: Counters) -> None:
        self.forwarder = forwarder
        self.counters = counters

    def ask(
        self, asked: Query | None = None, client: str = "192.0.2.53", *, exempt: bool = False
    ) -> asyncio.Future[bytes | None]:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.forwarder.submit(asked or query(), client, future.set_result, exempt)
        return future

    async def answer(self, asked: Query | None = None) -> dns.message.Message:
        return read(await self.ask(asked))

    def count(self, metric: str, *labels: str) -> float:
        return sum(
            value for series, value in self.counters[f"canal_dns_{metric}"].items() if all(label in series for label in labels)
        )


def read(wire: bytes | None) -> dns.message.Message:
    assert wire is not None
    return dns.message.from_wire(wire)


def addresses(reply: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in reply.answer for item in rrset)


def extended_error(reply: dns.message.Message) -> list[int]:
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]


@asynccontextmanager
async def forwarding(
    *upstreams: Scripted,
    budget: float = 1.5,
    is_peer: Callable[[str], bool] = lambda client: False,
    cell: TableCell | None = None,
    **settings: object,
) -> AsyncIterator[Client]:
    """A forwarder; at its end nothing may be left: no waiter, no socket."""
    counters = Counters()
    before = descriptors()
    forwarder = Forwarder(
        ForwardSettings(upstreams=tuple(upstream.endpoint for upstream in upstreams), budget=budget, **settings),  # type: ignore[arg-type]
        cell or TableCell(),
        counters,
        is_peer,
    )
    try:
        yield Client(forwarder, counters)
    finally:
        await forwarder.close()
        for upstream in upstreams:
            await upstream.stop()
    await eventually(lambda: descriptors() <= before)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class TestRelayed:
    async def test_fwd_01_the_reply_of_the_upstream(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            reply = await client.answer()
            assert reply.id == 0x1A2B
            assert addresses(reply) == [TRUE]
            assert reply.flags & dns.flags.RA
            assert client.count("forward_requests_total", "udp", str(upstream.endpoint)) == 1
            assert client.count("forward_responses_total", "NOERROR", str(upstream.endpoint)) == 1
            histogram = client.counters.histograms["canal_dns_forward_request_duration_seconds"][(str(upstream.endpoint),)]
            assert sum(histogram.counts) == 1

    async def test_fwd_02_ids_and_ports_are_not_the_clients_and_not_repeated(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            for _ in range(100):
                assert (await client.answer()).id == 0x1A2B
            assert len({(ask.id, ask.port) for ask in upstream.asks}) == 100
            assert len({ask.id for ask in upstream.asks}) > 90
            assert len({ask.port for ask in upstream.asks}) == 100

    async def test_at_least_256_ports_over_10_000_queries(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            for _ in range(100):
                await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(100)))
            # On a crowded machine some are asked twice.
            assert len(upstream.asks) >= 10_000
            assert len({ask.port for ask in upstream.asks}) >= 256
            assert len({ask.id for ask in upstream.asks}) > 8000

    async def test_fwd_03_the_question_in_the_clients_case(self) -> None:
        async with (
            Scripted(lambda ask: ask.reply(question=ask.question[:-4].lower() + ask.question[-4:])) as upstream,
            forwarding(upstream) as client,
        ):
            asked = query(case=b"\2A1\2Up\4TeSt\0")
            wire = await client.ask(asked)
            assert wire is not None
            assert wire[12 : 12 + len(asked.question)] == asked.question

    @pytest.mark.parametrize("flags", [0x0100, 0x0000, 0x0110], ids=["rd", "no-rd", "cd"])
    async def test_fwd_04_rd_and_cd_are_the_clients(self, flags: int) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            reply = await client.answer(query(flags=flags))
            assert int.from_bytes(upstream.asks[0].packet[2:4], "big") == flags
            assert reply.flags & 0x0110 == flags

    @pytest.mark.parametrize("rcode", [1, 2, 3, 4, 5])
    async def test_fwd_07_a_single_upstreams_rcode(self, rcode: int) -> None:
        async with Scripted(lambda ask: ask.fail(rcode)) as upstream, forwarding(upstream) as client:
            reply = await client.answer()
            assert reply.rcode() == rcode
            assert len(reply.question) == 1
            assert len(upstream.asks) == 1

    async def test_fwd_09_a_bare_header_that_refuses_is_a_failure_with_the_question(self) -> None:
        async with (
            Scripted(lambda ask: ask.write(ask.packet[:2] + b"\x81\x85" + bytes(8))) as upstream,
            forwarding(upstream) as client,
        ):
            reply = await client.answer()
            assert reply.rcode() == dns.rcode.REFUSED
            assert len(reply.question) == 1

    @pytest.mark.parametrize("rcode", [0, 3])
    async def test_fwd_10_a_bare_header_is_no_answer(self, rcode: int) -> None:
        async with (
            Scripted(lambda ask: ask.write(ask.packet[:2] + bytes([0x81, 0x80 | rcode]) + bytes(8))) as upstream,
            forwarding(upstream, budget=SHORT) as client,
        ):
            assert (await client.answer()).rcode() == dns.rcode.SERVFAIL
            assert 2 <= len(upstream.asks) <= 3

    async def test_fwd_11_a_query_that_came_by_tcp(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            assert addresses(await client.answer(query(stream=True))) == [TRUE]

    @pytest.mark.parametrize("sentinel", [Sentinel.DO, Sentinel.NONE])
    @pytest.mark.parametrize("do", [True, False])
    async def test_fwd_13_upstream_sees_our_opt_and_the_sentinel(self, sentinel: Sentinel, do: bool) -> None:
        options = bytes.fromhex("000a000801020304050607080008000700011800010203fde9000178")
        async with Scripted() as upstream, forwarding(upstream, sentinel=sentinel) as client:
            reply = await client.answer(query(payload=4096, do=do, options=options))
            sent = dns.message.from_wire(upstream.asks[0].packet)
            assert (sent.edns, sent.payload, sent.options) == (0, 1232, ())
            assert upstream.asks[0].do is (do or sentinel is Sentinel.DO)
            assert bool(reply.ednsflags & dns.flags.DO) is do

    async def test_fwd_14_silence_is_servfail_with_the_reason_inside_the_budget(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            started = asyncio.get_running_loop().time()
            reply = await client.answer(query(payload=1232))
            assert asyncio.get_running_loop().time() - started < SHORT + 1.0
            assert reply.rcode() == dns.rcode.SERVFAIL
            assert reply.flags & (dns.flags.RA | dns.flags.RD) == dns.flags.RA | dns.flags.RD
            assert len(reply.question) == 1
            assert extended_error(reply) == [22]
            assert (len(upstream.udp), len(upstream.tcp)) == (2, 1)
            assert len({ask.port for ask in upstream.udp}) == 2

    async def test_a_reply_too_old_for_a_udp_client_is_dropped(self) -> None:
        async with (
            Scripted(lambda ask: ask.later(0.2, ask.reply)) as upstream,
            forwarding(upstream, discard_age=0.1) as client,
        ):
            by_udp, by_tcp = await asyncio.gather(client.ask(), client.ask(query(stream=True)))
            assert by_udp is None
            assert client.count("dropped_total", "late") == 1
            assert addresses(read(by_tcp)) == [TRUE]

    async def test_over_ipv6(self) -> None:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        listener.bind(("::1", 0))
        listener.setblocking(False)
        endpoint = Endpoint("::1", listener.getsockname()[1])
        counters = Counters()
        forwarder = Forwarder(ForwardSettings(upstreams=(endpoint,)), TableCell(), counters)
        client = Client(forwarder, counters)
        answered = client.ask()
        packet, peer = listener.recvfrom(512)
        asked = parse_query(packet, stream=False)
        assert isinstance(asked, Query)
        assert forwarder.is_own(asked, peer[0], peer[1])
        listener.sendto(message(packet, record()), peer)
        assert addresses(read(await answered)) == [TRUE]
        await forwarder.close()
        listener.close()


class TestSizes:
    async def test_siz_03_1232_octets_pass_and_1233_do_not(self) -> None:
        async def relayed(size: int) -> dns.message.Message:
            def script(ask: Ask) -> None:
                # The reply to the client has an OPT record of 11 octets more.
                ask.write(message(ask.packet, txt(size - 11 - 12 - len(ask.question))))

            async with Scripted(script) as upstream, forwarding(upstream) as client:
                return await client.answer(query("x.up.test", Type.TXT, payload=4096))

        assert not (await relayed(1232)).flags & dns.flags.TC
        assert (await relayed(1233)).flags & dns.flags.TC

    async def test_siz_04_what_is_too_big_for_the_client_is_cut_for_it_alone(self) -> None:
        many = [record(f"192.0.2.{n}") for n in range(64)]
        async with Scripted(lambda ask: ask.later(0.05, ask.reply, *many)) as upstream, forwarding(upstream) as client:
            small, stream, large = await asyncio.gather(
                client.answer(query()), client.answer(query(stream=True)), client.answer(query(payload=65535))
            )
            assert small.flags & dns.flags.TC
            assert len(addresses(stream)) == len(addresses(large)) == 64
            assert len(upstream.asks) == 1

    async def test_siz_05_where_tcp_is_impossible_the_truncated_reply_is_relayed(self) -> None:
        async with Scripted(lambda ask: ask.reply(tc=True), tcp=False) as upstream, forwarding(upstream) as client:
            by_udp, by_tcp = await asyncio.gather(client.ask(query(payload=1232)), client.ask(query(stream=True)))
            reply = read(by_udp)
            assert reply.flags & dns.flags.TC
            assert (reply.rcode(), reply.edns) == (0, 0)
            assert client.count("forward_requests_total", "tcp") == 1
            # On a stream there is nothing to truncate to.
            assert read(by_tcp).rcode() == dns.rcode.SERVFAIL

    @pytest.mark.parametrize("size", [30_000, 65_535])
    async def test_siz_08_and_09_the_whole_reply_over_tcp(self, size: int) -> None:
        def script(ask: Ask) -> None:
            if ask.stream:
                ask.write(message(ask.packet, txt(size - 12 - len(ask.question))))
            else:
                ask.reply(tc=True)

        async with Scripted(script) as upstream, forwarding(upstream) as client:
            wire = await client.ask(query("max.up.test", Type.TXT, stream=True))
            assert wire is not None
            assert len(wire) == size
            assert not read(wire).flags & dns.flags.TC

    async def test_u13_an_oversized_datagram_without_tc(self) -> None:
        async with (
            Scripted(lambda ask: ask.write(message(ask.packet, txt(9000)))) as upstream,
            forwarding(upstream) as client,
        ):
            by_udp, by_tcp = await asyncio.gather(
                client.answer(query("x.up.test", Type.TXT)), client.answer(query("x.up.test", Type.TXT, stream=True))
            )
            assert by_udp.flags & dns.flags.TC
            assert by_tcp.rcode() == 0
            assert by_tcp.answer


def txt(size: int) -> bytes:
    """A TXT record of so many octets."""
    data = size - 12
    text = b"".join(bytes([min(255, data - at - 1)]) + b"x" * min(255, data - at - 1) for at in range(0, data, 256))
    return b"\xc0\x0c\0\x10\0\1\0\0\0\x1e" + len(text).to_bytes(2, "big") + text


class TestOneFlight:
    async def test_spf_21_a_hundred_identical_queries_are_one(self) -> None:
        async with Scripted(lambda ask: ask.later(0.2, ask.reply)) as upstream, forwarding(upstream) as client:
            asked = [query(ident=n, case=b"\3s21\2UP\4test\0" if n % 2 else b"\3S21\2up\4TEST\0") for n in range(100)]
            wires = await asyncio.gather(*(client.ask(one, f"10.0.0.{n}") for n, one in enumerate(asked)))
            for one, wire in zip(asked, wires, strict=True):
                assert wire is not None
                assert int.from_bytes(wire[:2], "big") == one.id
                assert wire[12 : 12 + len(one.question)] == one.question
            assert len(upstream.asks) == 1
            assert client.count("forward_coalesced_total") == 99

    async def test_optn_06_client_subnets_do_not_split_it(self) -> None:
        async with Scripted(lambda ask: ask.later(0.1, ask.reply)) as upstream, forwarding(upstream) as client:
            subnets = [b"\0\x08\0\x07\0\1\x18\0\x0a\0" + bytes([n]) for n in range(50)]
            wires = await asyncio.gather(*(client.ask(query(payload=1232, options=subnet)) for subnet in subnets))
            assert all(addresses(read(wire)) == [TRUE] for wire in wires)
            assert len(upstream.asks) == 1
            assert dns.message.from_wire(upstream.asks[0].packet).options == ()

    async def test_an_exempt_client_shares_it_and_gets_the_addresses_that_others_do_not(self) -> None:
        bound = names.from_text("web.shop.svc.cluster.local")
        cell = TableCell()
        cell.current = AnswerTable(names.from_text("cluster.local"))
        cell.current.apply({bound: Addresses((bytes([10, 96, 0, 200]),), (), 5)}, 1, 1)

        def script(ask: Ask) -> None:
            alias = b"\xc0\x0c\0\5\0\1\0\0\0\x1e" + len(bound).to_bytes(2) + bound
            ask.later(0.1, lambda: ask.reply(alias, record(owner=bound)))

        async with Scripted(script) as upstream, forwarding(upstream, cell=cell) as client:
            for round_ in (1, 2):
                exempt = [False, True, False, True]
                wires = await asyncio.gather(*(client.ask(query("alias.up.test"), exempt=one) for one in exempt))
                assert [addresses(read(wire))[0] for wire in wires] == ["10.96.0.200", TRUE] * 2
                assert len(upstream.asks) == round_
            assert client.count("forward_rewritten_total") == 4

    async def test_a_client_whose_reply_fails_harms_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Scripted(lambda ask: ask.later(0.05, ask.reply)) as upstream, forwarding(upstream) as client:

            def broken(wire: bytes | None) -> None:
                raise RuntimeError("gone")

            client.forwarder.submit(query(), "192.0.2.1", broken)
            assert addresses(await client.answer()) == [TRUE]
            assert "gone" in caplog.text

    async def test_a_reply_that_brings_out_a_fault_is_servfail(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*arguments: object) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr("canal_dns.dns.memory.relay", broken)
        async with Scripted() as upstream, forwarding(upstream) as client:
            reply = await client.answer(query(payload=1232))
            assert (reply.rcode(), extended_error(reply)) == (dns.rcode.SERVFAIL, [0])
            assert "a fault" in caplog.text


class TestLimits:
    async def test_amp_08_more_than_may_wait_is_told_at_once(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT, max_outstanding=10) as client:
            waiting = [client.ask(query(f"n{n}.up.test")) for n in range(10)]
            one_more = client.ask(query("more.up.test", payload=1232))
            assert read(one_more.result()).rcode() == dns.rcode.SERVFAIL
            assert client.count("forward_rejected_total", "outstanding") == 1
            assert not any(future.done() for future in waiting)
            await asyncio.gather(*waiting)

    async def test_amp_09_no_client_can_gather_a_pulse(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            asked = [client.ask(query(f"n{n % 7}.up.test")) for n in range(5000)]
            assert sum(not future.done() for future in asked) == 1000
            assert client.count("forward_rejected_total", "client") == 4000
            other = client.ask(query("n1.up.test"), client="192.0.2.54")
            assert not other.done()
            await asyncio.gather(*asked, other)

    async def test_peers_have_no_limit_of_their_own(self) -> None:
        async with (
            Scripted() as upstream,
            forwarding(upstream, max_outstanding_per_client=1, is_peer=lambda client: True) as client,
        ):
            wires = await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(20)))
            assert all(addresses(read(wire)) == [TRUE] for wire in wires)

    async def test_tcp_13_nothing_is_left_of_clients_that_went_away(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=0.2) as client:
            for n in range(100):
                client.forwarder.submit(query(f"n{n}.up.test", stream=True), "192.0.2.1", lambda wire: None)
            await eventually(lambda: client.count("forward_failures_total", "timeout") == 200)
            await eventually(lambda: client.counters["canal_dns_forward_in_flight"][()] == 0)

    async def test_without_descriptors_the_old_sockets_serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            await client.answer()

            def none_left(*arguments: object) -> None:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr("canal_dns.server.upstream_udp.connect", none_left)
            assert addresses(await client.answer(query("b.up.test"))) == [TRUE]
            assert len({ask.port for ask in upstream.asks}) == 1

    @pytest.mark.parametrize("tcp", [True, False])
    async def test_without_any_socket_tcp_is_left_or_servfail(self, tcp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Scripted(tcp=tcp) as upstream, forwarding(upstream, budget=SHORT) as client:

            def none_left(*arguments: object) -> None:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr("canal_dns.server.upstream_udp.connect", none_left)
            assert (await client.answer()).rcode() == (dns.rcode.NOERROR if tcp else dns.rcode.SERVFAIL)
            assert client.count("forward_failures_total", "socket") >= 2


class TestSockets:
    async def test_each_is_replaced_when_it_is_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            await client.answer()
            local = ("127.0.0.1", upstream.asks[0].port)
            assert local in client.forwarder._udp.own
            monkeypatch.setattr(forwarder_module, "_clock", lambda: later)
            later = forwarder_module.time.monotonic() + 11
            await eventually(lambda: local not in client.forwarder._udp.own)

    async def test_each_is_replaced_when_it_is_used_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = []

        def counted(endpoint: Endpoint) -> socket.socket:
            opened.append(endpoint)
            return connect(endpoint)

        monkeypatch.setattr("canal_dns.dns.flights.CHANNEL_QUERIES", 3)
        monkeypatch.setattr("canal_dns.server.upstream_udp.connect", counted)
        async with Scripted() as upstream, forwarding(upstream) as client:
            for n in range(4 * POOL):
                await client.answer(query(f"n{n}.up.test"))
            assert len(opened) >= 4 * POOL / 3

    async def test_queries_that_come_together_share_one_and_others_do_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("canal_dns.server.upstream_udp.POOL", 16)
        monkeypatch.setattr("canal_dns.server.upstream_udp.os", SimpleNamespace(urandom=lambda n: bytes(range(16)) * (n // 16)))
        async with Scripted() as upstream, forwarding(upstream) as client:
            for n in range(16):
                await client.answer(query(f"grow{n}.up.test"))
            now = forwarder_module.time.monotonic()
            monkeypatch.setattr(forwarder_module, "_clock", lambda: now)
            await asyncio.gather(*(client.ask(query(f"burst{n}.up.test")) for n in range(24)))
            together = [ask.port for ask in upstream.asks[16:]]
            assert [together.count(port) for port in dict.fromkeys(together)] == [8, 8, 8]
            for n in range(12):
                now += 0.002
                await client.answer(query(f"single{n}.up.test"))
            assert len({ask.port for ask in upstream.asks[40:]}) == 12

    async def test_their_number_is_bounded_whatever_comes_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("canal_dns.server.upstream_udp.MAX_LEAVING", 10)
        monkeypatch.setattr("canal_dns.server.upstream_udp.POOL", 4)
        monkeypatch.setattr(
            "canal_dns.server.upstream_udp.os", SimpleNamespace(urandom=lambda n: bytes([0, 1, 2, 3] * (n // 4)))
        )

        def script(ask: Ask) -> None:
            ask.write(b"")

        async with Scripted(script) as upstream, forwarding(upstream, budget=SHORT) as client:
            before = descriptors()
            asked = []
            for n in range(100):
                asked.append(client.ask(query(f"n{n}.up.test")))
                await asyncio.sleep(0)
            assert descriptors() - before <= 4 + 10 + 2
            await asyncio.gather(*asked)
            assert len(upstream.udp) >= 100


class TestReconfigure:
    async def test_upstreams_come_and_go_and_what_is_on_its_way_arrives(self) -> None:
        async with Scripted(lambda ask: ask.later(0.1, ask.reply)) as old, Scripted() as new, forwarding(old) as client:
            on_its_way = client.ask(query("old.up.test"))
            await eventually(lambda: len(old.asks) == 1)
            client.forwarder.reconfigure(ForwardSettings(upstreams=(new.endpoint,)))
            assert addresses(await client.answer(query("new.up.test"))) == [TRUE]
            assert addresses(read(await on_its_way)) == [TRUE]
            assert (len(old.asks), len(new.asks)) == (1, 1)
            assert dict(client.counters["canal_dns_forward_upstream_up"]) == {(str(new.endpoint),): 1}

    async def test_another_order(self) -> None:
        async with Scripted() as one, Scripted() as two, forwarding(one, two) as client:
            await client.answer()
            client.forwarder.reconfigure(ForwardSettings(upstreams=(two.endpoint, one.endpoint)))
            await client.answer()
            assert (len(one.asks), len(two.asks)) == (1, 1)

    async def test_another_sentinel(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            await client.answer()
            client.forwarder.reconfigure(ForwardSettings(upstreams=(upstream.endpoint,), sentinel=Sentinel.NONE))
            await client.answer()
            assert [ask.do for ask in upstream.asks] == [True, False]

    async def test_a_hundred_times_under_load_nothing_is_lost(self) -> None:
        async with Scripted() as one, Scripted() as two, forwarding(one) as client:
            asked = []
            for n in range(100):
                asked.extend(client.ask(query(f"n{n}-{m}.up.test")) for m in range(5))
                order = (one, two) if n % 3 == 0 else (two,) if n % 3 == 1 else (one,)
                client.forwarder.reconfigure(ForwardSettings(upstreams=tuple(upstream.endpoint for upstream in order)))
                await asyncio.sleep(0)
            wires = await asyncio.gather(*asked)
            assert all(addresses(read(wire)) == [TRUE] for wire in wires)


class TestClose:
    async def test_what_is_on_its_way_ends_first(self) -> None:
        async with Scripted(lambda ask: ask.later(0.1, ask.reply)) as upstream, forwarding(upstream) as client:
            asked = client.ask()
            closing = asyncio.ensure_future(client.forwarder.close())
            await asyncio.sleep(0)
            rejected = client.ask(query("late.up.test", payload=1232))
            assert read(rejected.result()).rcode() == dns.rcode.SERVFAIL
            assert extended_error(read(rejected.result())) == [14]
            assert addresses(read(await asked)) == [TRUE]
            await closing

    async def test_an_upstream_that_is_silent_does_not_hold_it_up(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            asked = client.ask()
            await client.forwarder.close()
            assert read(asked.result()).rcode() == dns.rcode.SERVFAIL

    async def test_in_the_middle_of_a_connection(self) -> None:
        async with (
            Scripted(lambda ask: None if ask.stream else ask.reply(tc=True)) as upstream,
            forwarding(upstream, budget=SHORT) as client,
        ):
            asked = client.ask(query("tc.up.test"))
            await eventually(lambda: len(upstream.tcp) == 1)
            await client.forwarder.close()
            assert read(asked.result()).flags & dns.flags.TC
            await eventually(lambda: not upstream.open)


class Loop:
    """A listener that forwards everything: what canal-dns would be, were its upstream itself."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.packets = 0
        self.forwarders: list[Forwarder] = []
        self.guarded = True

    def readable(self) -> None:
        packet, peer = self.sock.recvfrom(4096)
        self.packets += 1
        asked = parse_query(packet, stream=False)
        if not isinstance(asked, Query):
            self.reply(peer, message(packet, rcode=5))
            return
        forwarder = self.forwarders[peer[1] % len(self.forwarders)]
        if self.guarded and forwarder.is_own(asked, peer[0], peer[1]):
            self.reply(peer, message(packet, rcode=2))
            return
        forwarder.submit(asked, peer[0], lambda wire: self.reply(peer, wire))

    def reply(self, peer: tuple[str, int], wire: bytes | None) -> None:
        self.packets += 1
        if wire is not None:
            self.sock.sendto(wire, peer)


@pytest.mark.parametrize(
    ("script", "source"),
    [(lambda ask: ask.reply(), "upstream"), (lambda ask: ask.fail(2), "upstream"), (silent, "local")],
    ids=["reply", "servfail of the upstream", "silence"],
)
async def test_a_servfail_is_counted_for_him_whose_it_is(script: Callable[[Ask], None], source: str) -> None:
    async with serving(script) as running:
        await serving_ask(running.endpoint, serving_query("a.up.test"))
        assert dict(running.service.own_counters()["canal_dns_answers_total"]) == {(source,): 1}


class TestOwn:
    """What comes from one of our own ports is our own query only if it is one that waits for its reply there."""

    @pytest.mark.parametrize(
        ("change", "own"),
        [
            (lambda asked, port: (asked, port), True),
            (lambda asked, port: (asked._replace(id=asked.id ^ 1), port), False),
            (lambda asked, port: (query("other.up.test", ident=asked.id), port), False),
            (lambda asked, port: (query("a1.up.test", Type.AAAA, ident=asked.id), port), False),
            (lambda asked, port: (asked, port ^ 1), False),
        ],
        ids=["itself", "other id", "other name", "other type", "other port"],
    )
    async def test_is_told_by_port_id_and_question(self, change: Callable[[Query, int], tuple[Query, int]], own: bool) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            answered = client.ask()
            await eventually(lambda: bool(upstream.asks))
            asked = parse_query(upstream.asks[0].packet, stream=False)
            assert isinstance(asked, Query)
            changed, port = change(asked, upstream.asks[0].port)
            assert client.forwarder.is_own(changed, "127.0.0.1", port) is own
            assert client.count("loops_total") == int(own)
            await answered

    async def test_what_was_answered_is_no_loop(self) -> None:
        async with Scripted() as upstream, forwarding(upstream) as client:
            await client.answer()
            asked = parse_query(upstream.asks[0].packet, stream=False)
            assert isinstance(asked, Query)
            assert not client.forwarder.is_own(asked, "127.0.0.1", upstream.asks[0].port)


@pytest.mark.parametrize(("processes", "guarded"), [(1, True), (1, False), (2, True), (2, False)])
async def test_amp_06_a_loop_ends_in_a_few_packets(processes: int, guarded: bool) -> None:
    loop = Loop()
    loop.guarded = guarded
    loop.sock.bind(("127.0.0.1", 0))
    asyncio.get_running_loop().add_reader(loop.sock.fileno(), loop.readable)
    endpoint = Endpoint("127.0.0.1", loop.sock.getsockname()[1])
    counters = [Counters() for _ in range(processes)]
    settings = ForwardSettings(upstreams=(endpoint,), budget=SHORT)
    loop.forwarders = [Forwarder(settings, TableCell(), one) for one in counters]
    client = Client(loop.forwarders[0], counters[0])
    reply = await client.answer()
    assert reply.rcode() == dns.rcode.SERVFAIL
    await asyncio.gather(*(forwarder.close() for forwarder in loop.forwarders))
    assert loop.packets <= 20
    if guarded and processes == 1:
        assert client.count("loops_total") >= 1
        assert loop.packets <= 4
    asyncio.get_running_loop().remove_reader(loop.sock.fileno())
    loop.sock.close()
