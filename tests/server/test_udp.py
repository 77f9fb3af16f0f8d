"""UDP on real sockets: hits, forwarded queries, garbage, and the address that a reply comes from."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from canal_dns.server.batch import BUDGET
from canal_dns.server.sockets import open_udp
from canal_dns.settings import AccessSettings, Endpoint
from tests.server.scripted import Ask, eventually, silent
from tests.server.serving import WEB, ask, ask_again, is_vip, query, rcode, receive, serving, udp_client


async def test_a_bound_name_is_answered_from_memory() -> None:
    async with serving(silent) as running:
        for ident in (1, 2, 0xFFFF):
            reply = await ask(running.endpoint, query(ident=ident))
            assert reply[:2] == ident.to_bytes(2, "big")
            assert is_vip(reply)
        assert running.upstream.asks == []


async def test_what_is_counted() -> None:
    async with serving() as running:
        for name, qtype in ((WEB, 1), (WEB, 1), (WEB, 28), (WEB, 255), ("a.up.test", 1), ("a.up.test", 666)):
            await ask(running.endpoint, query(name, qtype))
        await ask(running.endpoint, query(qclass=3))
        counted = running.counted
        assert counted("canal_dns_requests_total", "udp", "A") == 4
        assert counted("canal_dns_requests_total", "udp", "AAAA") == 1
        assert counted("canal_dns_requests_total", "udp", "ANY") == 1
        assert counted("canal_dns_requests_total", "udp", "other") == 1
        assert counted("canal_dns_responses_total", "NOERROR") == 6
        assert counted("canal_dns_responses_total", "REFUSED") == 1
        assert counted("canal_dns_answers_total", "table") == 4
        assert counted("canal_dns_answers_total", "upstream") == 2
        assert counted("canal_dns_answers_total", "local") == 1
        durations = running.service.own_counters().histograms["canal_dns_request_duration_seconds"]
        assert {labels[0]: sum(one.counts) for labels, one in durations.items()} == {"table": 4, "upstream": 2, "local": 1}


async def test_everything_else_is_forwarded() -> None:
    async with serving() as running:
        reply = await ask(running.endpoint, query("a.up.test", ident=7))
        assert reply[:2] == b"\0\7"
        assert reply.endswith(socket.inet_aton("192.0.2.1"))


async def test_before_the_first_table_bound_names_are_forwarded_too() -> None:
    async with serving(bound=False) as running:
        assert (await ask(running.endpoint, query())).endswith(socket.inet_aton("192.0.2.1"))
        assert len(running.upstream.asks) == 1


async def test_packets_without_a_reply_do_not_end_the_loop() -> None:
    async with serving() as running:
        with udp_client() as sock:
            where = (running.endpoint.host, running.endpoint.port)
            for size in range(12):
                sock.sendto(bytes(size), where)
                sock.sendto(b"\xff" * size, where)
            sock.sendto(query(flags=0x8100), where)
            sock.sendto(query(ident=9), where)
            reply, _ = await receive(sock)
            assert reply[:2] == b"\0\x09"
        assert running.counted("canal_dns_dropped_total", "short") == 24
        assert running.counted("canal_dns_dropped_total", "response") == 1


async def test_a_client_that_may_not_ask_is_refused_even_for_bound_names() -> None:
    async with serving(access=AccessSettings(allow=())) as running:
        assert rcode(await ask(running.endpoint, query())) == 5


async def test_a_flood_of_garbage_leaves_it_answering() -> None:
    async with serving(silent) as running:
        where = (running.endpoint.host, running.endpoint.port)
        with udp_client() as sock:
            for number in range(100_000):
                try:
                    sock.sendto(number.to_bytes(4, "big") * (number % 20), where)
                except BlockingIOError:
                    await asyncio.sleep(0)
                if number % 1000 == 0:
                    await asyncio.sleep(0)
        assert is_vip(await ask_again(running.endpoint, query()))


async def test_one_event_reads_no_more_than_the_budget() -> None:
    async with serving() as running:
        turns = 0

        def count_turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(count_turn)

        with udp_client() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for number in range(4 * BUDGET):
                sock.sendto(query(ident=number), (running.endpoint.host, running.endpoint.port))
            count_turn()
            replies = [await receive(sock) for _ in range(4 * BUDGET)]
        assert len(replies) == 4 * BUDGET
        assert turns >= 4


async def test_no_closure_outlives_a_closed_listener() -> None:
    held: list[Ask] = []
    async with serving(held.append) as running:
        with udp_client() as sock:
            sock.sendto(query("slow.up.test"), (running.endpoint.host, running.endpoint.port))
            await eventually(lambda: len(held) == 1)
            await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0),))
            held[0].reply()
            reply, _ = await receive(sock)
            assert rcode(reply) == 0


@pytest.mark.parametrize("kind", ["hit", "forwarded"])
async def test_a_reply_comes_from_the_address_that_was_asked(kind: str) -> None:
    """P18: a wildcard socket, two addresses of this host."""
    async with serving(listen=(Endpoint("0.0.0.0", 0),)) as running:
        name = WEB if kind == "hit" else "a.up.test"
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            for _ in range(2):
                with udp_client() as sock:
                    sock.sendto(query(name), (host, running.endpoint.port))
                    reply, peer = await receive(sock)
                assert peer == (host, running.endpoint.port)
                assert is_vip(reply) or kind == "forwarded"


async def test_ipv6_and_ipv4_wildcards_stand_side_by_side() -> None:
    async with serving() as running:
        port = running.endpoint.port
        await running.reconfigure(addresses=(Endpoint("0.0.0.0", 0),))
        port = running.endpoint.port
        await running.reconfigure(addresses=(Endpoint("0.0.0.0", 0), Endpoint("::", port)))
        for host in ("::1", "127.0.0.1"):
            with udp_client(host) as sock:
                sock.sendto(query(), (host, port))
                reply, peer = await receive(sock)
                assert peer[0] == host
                assert is_vip(reply)


async def test_a_query_of_our_own_that_comes_back_ends_here() -> None:
    """AMP-06: the upstream is ourselves."""
    async with serving() as running:
        looping = running.settings.forward.__class__(upstreams=(running.endpoint,))
        await running.service.reconfigure(
            running.settings.__class__(source=running.settings.source, listen=running.settings.listen, forward=looping)
        )
        reply = await ask(running.endpoint, query("a1.up.test"))
        assert rcode(reply) == 2
        assert running.counted("canal_dns_loops_total") >= 1
        assert running.counted("canal_dns_requests_total", "udp", "A") <= 20
        assert is_vip(await ask(running.endpoint, query()))


async def test_a_fault_of_ours_costs_one_packet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        decide = running.service._intake.decide

        def faulty(packet: bytes, *others: Any) -> Any:
            if packet == b"trouble":
                raise ZeroDivisionError
            return decide(packet, *others)

        monkeypatch.setattr(type(running.service._intake), "decide", lambda self, *arguments: faulty(*arguments))
        with udp_client() as sock:
            for packet in (b"trouble", b"trouble", query(ident=5)):
                sock.sendto(packet, (running.endpoint.host, running.endpoint.port))
            assert (await receive(sock))[0][:2] == b"\0\5"
        assert running.counted("canal_dns_dropped_total", "internal") == 2
        assert len(caplog.records) == 1


def test_a_socket_on_one_address_needs_no_control_messages() -> None:
    with open_udp(Endpoint("127.0.0.1", 0), shared=False) as one, open_udp(Endpoint("0.0.0.0", 0), shared=False) as all_:
        assert (one.wildcard, all_.wildcard) == (False, True)
        assert one.dropped() == 0


async def test_what_the_kernel_drops_is_counted() -> None:
    async with serving() as running:
        listener = next(iter(running.service._pairs.values())).udp
        listener._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with udp_client() as sock:
            for _ in range(1000):
                sock.sendto(query(), (running.endpoint.host, running.endpoint.port))
        assert running.counted("canal_dns_udp_receive_dropped_total") > 0
