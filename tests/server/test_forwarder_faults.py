"""Forged, broken, late and missing replies on real sockets: the SPF rows of the conformance cases, faults U1 to U19.

What is demanded in figures is counted, not clocked, wherever that can be.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

import dns.flags
import dns.rcode
import pytest

from canal_dns.dns.wire import Type
from canal_dns.server.upstream_tcp import MAX_CONNECTIONS
from canal_dns.server.upstream_udp import POOL
from canal_dns.settings import Endpoint, ForwardSettings
from tests.server.scripted import FORGED, TRUE, Ask, Scripted, by_name, eventually, message, record, silent
from tests.server.test_forwarder import SHORT, addresses, extended_error, forwarding, query, read

FWD_MALFORMED = (
    # A count of four answers of which none is there; a name that points at itself.
    lambda ask: message(ask.packet)[:6] + b"\0\4\0\0\0\0" + ask.question,
    lambda ask: message(ask.packet, b"\xc0" + bytes([12 + len(ask.question)]) + record()[2:]),
)


@pytest.fixture
def impatient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """More probes a second: an upstream is found out the sooner."""
    for module in ("upstreams", "inflight"):
        monkeypatch.setattr(f"canal_dns.dns.{module}.PROBE_INTERVAL", 0.2)


def then_true(*before: Callable[[Ask], None]) -> Callable[[Ask], None]:
    """Something else first, and the true reply 50 ms later."""

    def script(ask: Ask) -> None:
        for act in before:
            act(ask)
        ask.later(0.05, ask.reply)

    return script


FORGERIES: dict[str, tuple[Callable[[Ask], None], str | None]] = {
    "spf_01_wrong_id": (lambda ask: ask.reply(record(FORGED), ident=ask.id ^ 0xFFFF), "id"),
    "spf_04_wrong_type": (
        lambda ask: ask.reply(record(FORGED), question=ask.question[:-4] + struct.pack(">HH", Type.MX, 1)),
        "question",
    ),
    "wrong_class": (lambda ask: ask.reply(record(FORGED), question=ask.question[:-2] + b"\0\3"), "question"),
    "wrong_name": (lambda ask: ask.reply(record(FORGED), question=b"\4evil\0\0\1\0\1"), "question"),
    "spf_06_our_own_query": (lambda ask: ask.write(ask.packet), "not-a-reply"),
    "other_opcode": (lambda ask: ask.write(ask.packet[:2] + b"\xa9\x80" + message(ask.packet)[4:]), "opcode"),
    "spf_08_other_port": (lambda ask: ask.from_elsewhere(message(ask.packet, record(FORGED))), None),
    "spf_09_other_address": (lambda ask: ask.from_elsewhere(message(ask.packet, record(FORGED)), "127.0.0.2"), None),
    "spf_11_thirteen_octets": (
        lambda ask: ask.write((ask.id ^ 0xFFFF).to_bytes(2, "big") + b"\x81\x80\0\1\0\0\0\0\0\0\1"),
        "id",
    ),
    "spf_12_records_that_are_not_there": (
        lambda ask: ask.write(message(ask.packet)[:6] + b"\0\5\0\0\0\0" + ask.question + record(FORGED)[:-2]),
        "malformed",
    ),
    "trailing_octets": (lambda ask: ask.reply(record(FORGED), tail=b"\0"), "malformed"),
    "spf_13_zero_octets": (lambda ask: ask.write(b""), "short"),
    "two_octets": (lambda ask: ask.write(ask.packet[:2]), "short"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_u6_to_u9_what_is_not_the_reply_is_ignored_and_the_true_one_delivered(
    forge: tuple[Callable[[Ask], None], str | None],
) -> None:
    act, reason = forge
    async with Scripted(then_true(act)) as upstream, forwarding(upstream) as client:
        assert addresses(await client.answer()) == [TRUE]
        assert dict(client.counters["canal_dns_forward_ignored_replies_total"]) == ({(reason,): 1} if reason else {})
        assert len(upstream.asks) == 1


async def test_u6_a_flood_of_forgeries_and_the_true_reply_inside_the_budget() -> None:
    def script(ask: Ask) -> None:
        if ask.stream:
            ask.later(0.2, ask.reply)
            return
        for offset in range(1, 50):
            ask.reply(record(FORGED), ident=(ask.id + offset) & 0xFFFF)
        ask.later(0.1, ask.reply)

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        wires = await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(20)))
        assert {tuple(addresses(read(wire))) for wire in wires} == {(TRUE,)}
        assert client.count("forward_ignored_replies_total", "id") > 20 * 3


async def test_spf_02_every_reply_has_a_wrong_id_and_tcp_is_honest() -> None:
    def script(ask: Ask) -> None:
        if ask.stream:
            ask.reply()
        else:
            ask.reply(record(FORGED), ident=ask.id ^ 1)

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        assert addresses(await client.answer()) == [TRUE]
        assert client.count("forward_ignored_replies_total", "id") >= 1
        assert (len(upstream.udp), len(upstream.tcp)) == (1, 1)


async def test_spf_02_and_without_tcp_it_is_servfail() -> None:
    async with (
        Scripted(lambda ask: ask.reply(record(FORGED), ident=ask.id ^ 1), tcp=False) as upstream,
        forwarding(upstream, budget=1.0) as client,
    ):
        reply = await client.answer(query(payload=1232))
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert extended_error(reply) == [23]
        assert client.count("forward_requests_total", "tcp") == 1


async def test_spf_14_and_u10_duplicates_are_counted_and_go_nowhere() -> None:
    def script(ask: Ask) -> None:
        for _ in range(3):
            ask.reply()

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        # The client fails if a question gets two outcomes.
        assert addresses(await client.answer()) == [TRUE]
        await eventually(lambda: client.count("forward_ignored_replies_total", "unexpected") == 2)
        assert addresses(await client.answer(query("b.up.test"))) == [TRUE]


async def test_spf_15_and_u11_a_late_reply_is_given_to_nobody() -> None:
    late: list[Ask] = []

    def script(ask: Ask) -> None:
        if int(ask.name[1:].split(".")[0]) % 20 == 0:
            late.append(ask)
        else:
            ask.reply(record(f"10.0.{len(ask.upstream.asks) % 250}.1"))

    async with Scripted(script) as upstream, forwarding(upstream, budget=SHORT, max_outstanding_per_client=10_000) as client:
        wires: list[bytes | None] = []
        for _ in range(4):
            asked = [client.ask(query(f"n{n}.up.test", ident=n)) for n in range(500)]
            for ask in late:
                ask.reply(record(FORGED))
            late.clear()
            wires += await asyncio.gather(*asked)
        replies = [read(wire) for wire in wires]
        assert sum(reply.rcode() == dns.rcode.SERVFAIL for reply in replies) >= 4 * 25
        assert all(FORGED not in addresses(reply) for reply in replies)
        for at, reply in enumerate(replies):
            assert reply.question[0].to_text().startswith(f"n{at % 500}.up.test.")


async def test_spf_16_and_17_unasked_records_are_nobodys_answer() -> None:
    def script(ask: Ask) -> None:
        if ask.name.startswith("s17"):
            ask.reply(record(), record(FORGED, owner=b"\4bank\4test\0"))
        else:
            ask.reply()

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        await client.answer(query("s17.up.test"))
        assert addresses(await client.answer(query("bank.test"))) == [TRUE]
        assert [ask.name for ask in upstream.asks] == ["s17.up.test.", "bank.test."]


@pytest.mark.parametrize("malformed", FWD_MALFORMED)
async def test_spf_25_nothing_but_malformed_packets(malformed: Callable[[Ask], bytes]) -> None:
    async with (
        Scripted(lambda ask: ask.write(malformed(ask)), tcp=False) as upstream,
        forwarding(upstream, budget=SHORT) as client,
    ):
        assert (await client.answer()).rcode() == dns.rcode.SERVFAIL
        upstream.script = lambda ask: ask.reply()
        assert addresses(await client.answer(query("alive.up.test"))) == [TRUE]


async def test_spf_28_a_large_reply_full_of_names() -> None:
    owner = b"\1x\xc0\x0c"

    def script(ask: Ask) -> None:
        if not ask.stream:
            ask.reply(tc=True)
            return
        ask.reply(*(record(owner=owner) for _ in range(3600)))

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        assert len(addresses(await client.answer(query(stream=True)))) >= 1


class TestU1SilentFromTheStart:
    async def test_servfail_with_the_question_for_everybody(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            started = asyncio.get_running_loop().time()
            replies = [read(wire) for wire in await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(200)))]
            assert all(reply.rcode() == dns.rcode.SERVFAIL and len(reply.question) == 1 for reply in replies)
            assert asyncio.get_running_loop().time() - started < SHORT + 1.0


@pytest.mark.usefixtures("impatient_probes")
class TestU2DiesUnderLoad:
    async def test_the_other_one_answers_and_the_dead_one_is_found_out(self) -> None:
        async with Scripted() as first, Scripted() as second, forwarding(first, second, budget=1.0) as client:
            await client.answer()
            first.script, first.probes_answered = silent, False
            failed = 0
            for n in range(1000):
                wires = await asyncio.gather(*(client.ask(query(f"n{n}-{m}.up.test")) for m in range(5)))
                failed += sum(read(wire).rcode() != 0 for wire in wires)
                if client.count("forward_upstream_up", str(first.endpoint)) == 0:
                    break
            assert failed == 0
            asked = len(first.asks)
            assert addresses(await client.answer(query("after.up.test"))) == [TRUE]
            assert len(first.asks) == asked
            assert client.count("forward_upstream_up", str(second.endpoint)) == 1

    async def test_and_it_is_used_again_when_it_is_back(self) -> None:
        async with Scripted() as first, Scripted() as second, forwarding(first, second, budget=1.0) as client:
            first.script, first.probes_answered = silent, False
            await client.answer()
            await eventually(lambda: client.count("forward_upstream_up", str(first.endpoint)) == 0)
            first.script, first.probes_answered = lambda ask: ask.reply(), True
            await eventually(lambda: client.count("forward_upstream_up", str(first.endpoint)) == 1)
            asked = len(first.asks)
            await client.answer(query("back.up.test"))
            assert len(first.asks) == asked + 1


@pytest.mark.usefixtures("impatient_probes")
class TestU5AllDown:
    async def test_probes_one_trial_and_the_rest_is_told_at_once(self) -> None:
        async with Scripted(silent) as upstream, forwarding(upstream, budget=SHORT) as client:
            upstream.probes_answered = False
            await client.answer()
            await eventually(lambda: client.count("forward_upstream_up", str(upstream.endpoint)) == 0)
            trial = client.ask(query("trial.up.test"))
            asked = len(upstream.asks)
            for n in range(100):
                told = client.ask(query(f"n{n}.up.test", payload=1232))
                reply = read(told.result())
                assert (reply.rcode(), extended_error(reply)) == (dns.rcode.SERVFAIL, [22])
            assert client.count("forward_rejected_total", "down") == 100
            assert not trial.done()
            assert len(upstream.asks) <= asked + 1
            upstream.probes_answered = True
            await trial
            await eventually(lambda: client.count("forward_upstream_up", str(upstream.endpoint)) == 1)
            upstream.script = lambda ask: ask.reply()
            assert addresses(await client.answer()) == [TRUE]

    async def test_the_trial_helps_where_only_the_probes_are_broken(self) -> None:
        async with Scripted(silent, probes_answered=False) as upstream, forwarding(upstream, budget=SHORT) as client:
            await client.answer()
            await eventually(lambda: client.count("forward_upstream_up", str(upstream.endpoint)) == 0)
            upstream.script = lambda ask: ask.reply()
            assert addresses(await client.answer(query("trial.up.test"))) == [TRUE]
            assert addresses(await client.answer(query("next.up.test"))) == [TRUE]

    async def test_one_slow_name_brings_nobody_down(self) -> None:
        async with (
            Scripted(by_name({"dead.up.test.": silent})) as upstream,
            forwarding(upstream, budget=0.2) as client,
        ):
            for _ in range(10):
                assert (await client.answer(query("dead.up.test"))).rcode() == dns.rcode.SERVFAIL
            assert upstream.probes >= 1
            assert client.count("forward_upstream_up", str(upstream.endpoint)) == 1
            assert addresses(await client.answer(query("alive.up.test"))) == [TRUE]


class TestU12Truncated:
    async def test_the_whole_reply_comes_over_tcp_from_the_same_upstream(self) -> None:
        def script(ask: Ask) -> None:
            if ask.stream:
                ask.reply(*(record(f"192.0.2.{n}") for n in range(20)))
            else:
                ask.reply(tc=True)

        async with Scripted(script) as first, Scripted(script) as second, forwarding(first, second) as client:
            reply = await client.answer(query(payload=1232))
            assert len(addresses(reply)) == 20
            assert not reply.flags & dns.flags.TC
            assert [len(first.udp), len(first.tcp), len(second.asks)] == [1, 1, 0]

    async def test_many_share_one_connection(self) -> None:
        async with (
            Scripted(lambda ask: ask.reply(tc=not ask.stream)) as upstream,
            forwarding(upstream) as client,
        ):
            for _ in range(3):
                wires = await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(50)))
                assert all(not read(wire).flags & dns.flags.TC for wire in wires)
            assert upstream.connections == 1
            assert len(upstream.tcp) == 150


def tc_then(act: Callable[[Ask], None]) -> Callable[[Ask], None]:
    return lambda ask: act(ask) if ask.stream else ask.reply(tc=True)


class TestU14UpstreamTcp:
    async def test_an_idle_connection_that_the_upstream_closed_costs_nothing(self) -> None:
        async with Scripted(tc_then(lambda ask: ask.reply())) as upstream, forwarding(upstream) as client:
            for n in range(5):
                assert not (await client.answer(query(f"n{n}.up.test"))).flags & dns.flags.TC
                for transport in list(upstream.open):
                    transport.close()
            assert client.count("forward_failures_total", "tcp") <= 5

    async def test_a_connection_closed_in_the_very_moment_is_tried_anew(self) -> None:
        def first_time(ask: Ask) -> None:
            ask.hang_up() if ask.number == 0 else ask.reply()

        async with Scripted(tc_then(first_time)) as upstream, forwarding(upstream) as client:
            assert not (await client.answer()).flags & dns.flags.TC
            assert len(upstream.tcp) == 2

    async def test_rst_is_tried_anew_once_then_the_truncated_reply_is_relayed(self) -> None:
        async with Scripted(tc_then(lambda ask: ask.reset())) as upstream, forwarding(upstream) as client:
            reply = await client.answer()
            assert reply.flags & dns.flags.TC
            assert len(upstream.tcp) == 2
            assert client.count("forward_failures_total", "tcp") == 2

    @pytest.mark.parametrize("octets", [0, 1, 2, 20])
    async def test_a_stall_ends_with_the_budget(self, octets: int) -> None:
        async with (
            Scripted(tc_then(lambda ask: ask.part(octets))) as upstream,
            forwarding(upstream, budget=SHORT) as client,
        ):
            assert (await client.answer()).flags & dns.flags.TC
            upstream.script = tc_then(lambda ask: ask.reply())
            # The connection that stalled is not used again.
            assert not (await client.answer(query("next.up.test"))).flags & dns.flags.TC
            assert upstream.connections == 2

    @pytest.mark.parametrize("tcp", [False, True], ids=["refused", "silent"])
    async def test_the_other_upstream_is_asked_instead(self, tcp: bool) -> None:
        async with (
            Scripted(tc_then(lambda ask: None), tcp=tcp) as first,
            Scripted(tc_then(lambda ask: ask.reply())) as second,
            forwarding(first, second, budget=1.0) as client,
        ):
            assert addresses(await client.answer(query(stream=True))) == [TRUE]
            assert (len(first.udp), len(second.udp), len(second.tcp)) == (1, 0, 1)

    async def test_a_peer_that_does_not_speak_dns_is_left(self) -> None:
        async with Scripted(tc_then(lambda ask: ask.write(b""))) as upstream, forwarding(upstream) as client:
            assert (await client.answer()).flags & dns.flags.TC
            assert upstream.connections == 1

    async def test_forged_replies_do_not_end_the_wait_here_either(self) -> None:
        def script(ask: Ask) -> None:
            ask.reply(record(FORGED), ident=ask.id ^ 1)
            ask.reply(record(FORGED), question=b"\4evil\0\0\1\0\1")
            ask.reply()

        async with Scripted(tc_then(script)) as upstream, forwarding(upstream) as client:
            assert addresses(await client.answer()) == [TRUE]

    async def test_an_upstream_that_talks_nonsense_has_few_connections(self) -> None:
        def nonsense(ask: Ask) -> None:
            ask.reply(record(FORGED), ident=ask.id ^ 1)

        async with Scripted(tc_then(nonsense)) as upstream, forwarding(upstream, budget=1.0) as client:
            waiting = []
            for n in range(30):
                waiting.append(client.ask(query(f"n{n}.up.test")))
                ignored = n + 1
                await eventually(lambda: client.count("forward_ignored_replies_total", "id") == ignored)  # noqa: B023
            assert upstream.connections == MAX_CONNECTIONS
            assert all(read(wire).flags & dns.flags.TC for wire in await asyncio.gather(*waiting))
            await eventually(lambda: len(upstream.open) <= 1)

    async def test_an_idle_connection_is_closed_by_us(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("canal_dns.server.upstream_tcp.IDLE", 0.1)
        async with Scripted(tc_then(lambda ask: ask.reply())) as upstream, forwarding(upstream) as client:
            await client.answer()
            assert len(upstream.open) == 1
            await eventually(lambda: not upstream.open)
            assert not (await client.answer(query("b.up.test"))).flags & dns.flags.TC

    async def test_the_upstream_is_taken_out_while_a_connection_stands(self) -> None:
        async with (
            Scripted(tc_then(lambda ask: ask.reply())) as old,
            Scripted() as new,
            forwarding(old) as client,
        ):
            await client.answer()
            client.forwarder.reconfigure(ForwardSettings(upstreams=(new.endpoint,)))
            await eventually(lambda: not old.open)

    async def test_a_hundred_resets_leave_nothing_behind(self) -> None:
        async with Scripted(tc_then(lambda ask: ask.reset())) as upstream, forwarding(upstream) as client:
            for n in range(100):
                assert (await client.answer(query(f"n{n}.up.test"))).flags & dns.flags.TC
            assert not upstream.open


class TestU15IcmpUnreachable:
    async def test_the_other_upstream_is_asked_at_once(self) -> None:
        async with Scripted() as second:
            gone = Scripted()
            await gone.start()
            await gone.stop()
            async with forwarding(gone, second) as client:
                replies = [
                    read(wire) for wire in await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(20)))
                ]
                assert all(addresses(reply) == [TRUE] for reply in replies)
                assert client.count("forward_failures_total", "timeout") == 0
                assert client.count("forward_failures_total", "refused") >= 20
                assert client.count("forward_upstream_up", str(gone.endpoint)) == 1

    async def test_alone_it_is_no_servfail_before_the_budget_ends(self) -> None:
        upstream = Scripted()
        await upstream.start()
        await upstream.stop()
        async with forwarding(upstream) as client:
            asked = client.ask()
            await eventually(lambda: client.count("forward_failures_total", "refused") >= 1)
            assert not asked.done()
            await upstream.start()
            # The second try finds it.
            assert addresses(read(await asked)) == [TRUE]

    async def test_the_socket_that_was_told_so_goes_on_listening(self) -> None:
        """libuv polls a socket with an error no more: anybody's ICMP packet would have made it deaf."""
        async with Scripted(silent) as upstream, forwarding(upstream) as client:
            asked = client.ask()
            await eventually(lambda: len(upstream.asks) == 1)
            await upstream.stop()
            (channel,) = (one for one in client.forwarder._udp.own.values() if one.local[1] == upstream.asks[0].port)
            channel.sock.send(bytes(12))
            await eventually(lambda: client.count("forward_failures_total", "refused") >= 1)
            await upstream.start()
            upstream.send(message(upstream.asks[0].packet, record()), channel.local)
            assert addresses(read(await asked)) == [TRUE]
            assert client.count("forward_failures_total", "timeout") == 0

    async def test_without_a_route_it_is_the_same(self) -> None:
        async with Scripted() as second, forwarding(second, budget=SHORT) as client:
            unreachable = Endpoint("255.255.255.255", 53)
            client.forwarder.reconfigure(ForwardSettings(upstreams=(unreachable, second.endpoint), budget=SHORT))
            assert addresses(await client.answer()) == [TRUE]
            assert client.count("forward_failures_total", "socket") >= 1
            assert client.count("forward_failures_total", "timeout") == 0


class TestU18AnotherMayKnowBetter:
    @pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR])
    async def test_the_next_one_is_asked(self, rcode: int) -> None:
        async with (
            Scripted(lambda ask: ask.fail(rcode)) as first,
            Scripted() as second,
            forwarding(first, second) as client,
        ):
            assert addresses(await client.answer()) == [TRUE]
            assert (len(first.asks), len(second.asks)) == (1, 1)

    async def test_the_last_result_if_all_fail(self) -> None:
        async with (
            Scripted(lambda ask: ask.fail(dns.rcode.SERVFAIL)) as first,
            Scripted(lambda ask: ask.fail(dns.rcode.REFUSED)) as second,
            Scripted() as third,
            forwarding(first, second, third) as client,
        ):
            assert (await client.answer()).rcode() == dns.rcode.REFUSED
            assert [len(one.asks) for one in (first, second, third)] == [1, 1, 0]


class TestU19PacketsPerQuery:
    """At most two per upstream, and one over TCP each, whatever comes back."""

    @pytest.mark.parametrize(
        "script",
        [
            silent,
            lambda ask: ask.fail(dns.rcode.FORMERR),
            lambda ask: ask.fail(dns.rcode.SERVFAIL),
            lambda ask: ask.reply(tc=True),
            lambda ask: ask.reply(ident=ask.id ^ 1),
            lambda ask: ask.write(b""),
            lambda ask: ask.reply(tail=b"x"),
        ],
        ids=["silent", "formerr", "servfail", "tc", "id", "empty", "malformed"],
    )
    @pytest.mark.parametrize("count", [1, 2])
    async def test_are_bounded(self, script: Callable[[Ask], None], count: int) -> None:
        async with (
            Scripted(script) as one,
            Scripted(script) as two,
            forwarding(*(one, two)[:count], budget=SHORT) as client,
        ):
            await client.answer()
            assert len(one.udp) + len(two.udp) <= 2 * count
            assert len(one.tcp) + len(two.tcp) <= count

    async def test_formerr_to_everything_is_one_packet_each(self) -> None:
        async with Scripted(lambda ask: ask.fail(dns.rcode.FORMERR)) as upstream, forwarding(upstream) as client:
            for n in range(100):
                assert (await client.answer(query(f"n{n}.up.test"))).rcode() == dns.rcode.FORMERR
            assert len(upstream.asks) == 100


async def test_u3_fast_names_are_not_held_up_by_slow_ones() -> None:
    held: list[Ask] = []

    def script(ask: Ask) -> None:
        held.append(ask) if ask.name.startswith("slow") else ask.reply()

    async with Scripted(script) as upstream, forwarding(upstream) as client:
        waiting = [client.ask(query(f"slow{n}.up.test")) for n in range(300)]
        for n in range(50):
            assert addresses(await client.answer(query(f"fast{n}.up.test"))) == [TRUE]
        assert not any(future.done() for future in waiting)
        for ask in held:
            ask.reply()
        wires = await asyncio.gather(*waiting)
        assert all(addresses(read(wire)) == [TRUE] for wire in wires)


async def test_a_process_that_was_held_up_reads_what_came_before_it_calls_anybody_silent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        upstream.setblocking(False)
        async with forwarding(budget=SHORT) as client:
            endpoint = Endpoint("127.0.0.1", upstream.getsockname()[1])
            client.forwarder.reconfigure(ForwardSettings(upstreams=(endpoint,), budget=SHORT))
            asked = client.ask()
            packet, peer = upstream.recvfrom(512)
            upstream.sendto(message(packet, record()), peer)
            time.sleep(SHORT * 1.5)  # noqa: ASYNC251 - it is what happens here
            assert addresses(read(await asked)) == [TRUE]
            assert client.count("forward_failures_total") == 0


async def test_u17_the_second_try_leaves_by_another_socket() -> None:
    def script(ask: Ask) -> None:
        if ask.number == 1:
            ask.reply()

    async with Scripted(script) as upstream, forwarding(upstream, budget=SHORT) as client:
        assert addresses(await client.answer()) == [TRUE]
        assert len({ask.port for ask in upstream.asks}) == 2


async def test_u16_the_second_try_leaves_by_a_socket_that_is_younger_than_the_query() -> None:
    """Old ones may all lead nowhere: conntrack keeps them where they led, also when that pod is gone."""
    known: set[int] = set()

    def script(ask: Ask) -> None:
        if ask.port not in known:
            ask.reply()

    async with Scripted(script) as upstream, forwarding(upstream, budget=SHORT) as client:
        for _ in range(2):
            await asyncio.gather(*(client.ask(query(f"n{n}.up.test")) for n in range(POOL)))
        known |= {ask.port for ask in upstream.asks}
        wires = await asyncio.gather(*(client.ask(query(f"m{n}.up.test")) for n in range(100)))
        # Now and then the kernel gives a new socket a port that an old one had.
        assert sum(addresses(read(wire)) == [TRUE] for wire in wires) >= 80


async def test_the_first_socket_keeps_listening_during_the_second_try() -> None:
    def script(ask: Ask) -> None:
        if ask.number == 0:
            ask.later(0.2, ask.reply)

    async with Scripted(script) as upstream, forwarding(upstream, budget=SHORT) as client:
        assert addresses(await client.answer()) == [TRUE]
        assert len(upstream.asks) == 2


@pytest.mark.usefixtures("impatient_probes")
async def test_u4_flapping_costs_nothing_while_another_one_is_stable() -> None:
    async with Scripted() as first, Scripted() as second, forwarding(first, second, budget=1.0) as client:
        failed = 0
        for n in range(8):
            first.script = silent if n % 2 else lambda ask: ask.reply()
            first.probes_answered = n % 2 == 0
            wires = await asyncio.gather(*(client.ask(query(f"n{n}-{m}.up.test")) for m in range(10)))
            failed += sum(read(wire).rcode() != 0 for wire in wires)
        assert failed == 0
