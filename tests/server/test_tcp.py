"""TCP on real sockets, named after tests/conformance/cases.json where a case is behind it; the limits are short here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import ipaddress
import os
import resource
import socket
import time
from typing import Any

import pytest

from canal_dns.server.connection import Connection
from canal_dns.server.wheel import Wheel
from canal_dns.settings import AccessSettings, Endpoint, TcpSettings
from tests.server.scripted import Ask, by_name, eventually, message, record, silent
from tests.server.serving import (
    VIP,
    WEB,
    Running,
    TcpClient,
    ask,
    connected,
    descriptors,
    is_vip,
    query,
    rcode,
    serving,
)

LOOPBACK_NET = ipaddress.ip_network("127.0.0.0/8")


def limits(**changed: float) -> TcpSettings:
    return TcpSettings(**changed)  # type: ignore[arg-type]


def upstream_sockets(running: Running) -> int:
    """Those the forwarder keeps for a while, whoever's query they were for."""
    return len(running.service._forwarder._udp)


async def test_hdr_01_a_bound_name() -> None:
    async with serving(silent) as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        assert running.counted("canal_dns_requests_total", "tcp", "A") == 1
        assert running.counted("canal_dns_tcp_connections") == 1


async def test_a_message_may_come_in_any_pieces() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        packet = query()
        for octet in len(packet).to_bytes(2, "big") + packet:
            client.writer.write(bytes([octet]))
            await asyncio.sleep(0)
        assert is_vip(await client.read())


async def test_tcp_03_pipelined_and_out_of_order() -> None:
    held: list[Ask] = []
    async with serving(by_name({"slow.up.test.": held.append})) as running, connected(running.endpoint) as client:
        client.write(query("slow.up.test", ident=0), *(query(ident=ident) for ident in range(1, 25)))
        first = [await client.read() for _ in range(24)]
        assert [int.from_bytes(one[:2], "big") for one in first] == list(range(1, 25))
        assert all(map(is_vip, first))
        held[0].reply()
        assert (await client.read())[:2] == b"\0\0"


async def test_replies_to_one_read_are_one_write() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        client.write(*(query(ident=ident) for ident in range(10)))
        assert len(await client.reader.read(65_535)) == 10 * (2 + len(await ask(running.endpoint, query())))


async def test_tcp_05_a_message_cut_off_by_fin() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        client.writer.write(bytes.fromhex("001d1a2b0100000100000000"))
        client.writer.write_eof()
        assert await client.closed()
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)


async def test_tcp_06_a_frame_of_no_octets_closes() -> None:
    async with serving() as running:
        async with connected(running.endpoint) as client:
            client.writer.write(b"\0\0")
            assert await client.closed()
        async with connected(running.endpoint) as client:
            client.write(query(), b"")
            assert is_vip(await client.read())
            assert await client.closed()
        assert running.counted("canal_dns_tcp_closed_total", "garbage") == 2


@pytest.mark.parametrize("garbage", [b"0123456789a", query(flags=0x8100)], ids=["TCP-07 short", "HDR-14 a response"])
async def test_what_is_no_query_closes_after_what_was_answered(garbage: bytes) -> None:
    async with serving() as running:
        async with connected(running.endpoint) as client:
            assert is_vip(await client.ask(query()))
            client.write(query(ident=7), garbage, query(ident=8))
            assert (await client.read())[:2] == b"\0\7"
            assert await client.closed()
        async with connected(running.endpoint) as client:
            assert is_vip(await client.ask(query()))


@pytest.mark.parametrize("later", [False, True], ids=["at once", "once there is room"])
async def test_a_fault_of_ours_costs_one_message(monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    held: list[Ask] = []
    async with (
        serving(by_name({"slow.up.test.": held.append}), tcp=limits(in_flight=1 if later else 10)) as running,
        connected(running.endpoint) as client,
    ):
        intake = running.service._intake
        decide = intake.decide

        def faulty(self: object, packet: bytes, *others: Any) -> Any:
            return 1 // 0 if packet[:2] == b"\0\7" else decide(packet, *others)

        monkeypatch.setattr(type(intake), "decide", faulty)
        client.write(query("slow.up.test", ident=5), query("a.up.test", ident=7), query("a.up.test", ident=8))
        await eventually(lambda: held)
        if later:
            held.pop().reply()
            assert (await client.read())[:2] == b"\0\5"
        assert (await client.read())[:2] == b"\0\x08"
        assert running.counted("canal_dns_dropped_total", "internal") == 1


async def test_tcp_09_nothing_is_said() -> None:
    async with serving(tcp=limits(first_byte=0.2)) as running, connected(running.endpoint) as client:
        assert await client.closed(10)
        assert running.counted("canal_dns_tcp_closed_total", "first-byte") == 1


async def test_tcp_10_idle_begins_after_the_last_reply() -> None:
    async with serving(tcp=limits(idle=0.4)) as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        await asyncio.sleep(0.25)
        assert is_vip(await client.ask(query()))
        assert await client.closed(10)
        assert running.counted("canal_dns_tcp_closed_total", "idle") == 1


async def test_tcp_11_slow_loris() -> None:
    async with serving(tcp=limits(message=0.5, idle=20, first_byte=20)) as running, connected(running.endpoint) as client:
        client.writer.write(b"\xff\xff")
        closed = asyncio.ensure_future(client.closed())
        while not closed.done():
            client.writer.write(b"a")
            await asyncio.sleep(0.02)
        assert closed.result()
        assert running.counted("canal_dns_tcp_closed_total", "message") == 1
        assert is_vip(await ask(running.endpoint, query()))


async def test_tcp_12_half_close() -> None:
    held: list[Ask] = []
    async with serving(held.append) as running, connected(running.endpoint) as client:
        client.write(query("slow.up.test", ident=3))
        client.writer.write_eof()
        await eventually(lambda: len(held) == 1)
        held[0].reply()
        assert (await client.read())[:2] == b"\0\3"
        assert await client.closed()


async def test_tcp_13_resets_leave_nothing_behind() -> None:
    async with serving(lambda ask: ask.later(0.01, ask.reply)) as running:
        async with connected(running.endpoint) as client:
            await client.ask(query("a.up.test"))
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        gc.collect()
        files, tasks = descriptors() - upstream_sockets(running), len(asyncio.all_tasks())
        for round_ in range(50):
            clients = [TcpClient(*await asyncio.open_connection("127.0.0.1", running.endpoint.port)) for _ in range(20)]
            for number, client in enumerate(clients):
                client.write(*(query(f"n{round_}-{number}-{one}.up.test") for one in range(3)))
                await asyncio.sleep(0)
                client.reset()
            await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        await eventually(lambda: len(running.service._forwarder._inflight) == 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        assert descriptors() - upstream_sockets(running) <= files
        assert not [one for one in gc.get_objects() if type(one) is Connection]
        assert is_vip(await ask(running.endpoint, query()))


async def test_tcp_14_connections_of_one_client() -> None:
    async with serving(tcp=limits(connections_per_client=5)) as running, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(running.endpoint)) for _ in range(6)]
        for client in clients:
            client.write(query())
        answers = await asyncio.gather(*(client.read() for client in clients), return_exceptions=True)
        assert sum(isinstance(one, bytes) for one in answers) == 5
        assert running.counted("canal_dns_tcp_closed_total", "client-connections") == 1
        assert is_vip(await ask(running.endpoint, query()))
        async with connected(running.endpoint, "127.0.0.9") as other:
            assert is_vip(await other.ask(query()))
        for client in clients:
            client.writer.close()
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        async with connected(running.endpoint) as client:
            assert is_vip(await client.ask(query()))


async def test_peers_may_have_any_number_of_connections() -> None:
    access = AccessSettings(peers=(LOOPBACK_NET,))
    async with serving(tcp=limits(connections_per_client=2), access=access) as running, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(running.endpoint)) for _ in range(5)]
        assert all([is_vip(await client.ask(query())) for client in clients])


async def test_connections_in_all_and_idle_time_shrinks_when_crowded() -> None:
    settings = limits(connections=10, connections_per_client=100, idle=2.0)
    async with serving(tcp=settings) as running, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(running.endpoint)) for _ in range(10)]
        assert all([is_vip(await client.ask(query())) for client in clients])
        async with connected(running.endpoint) as extra:
            assert await extra.closed()
        assert running.counted("canal_dns_tcp_closed_total", "connections") == 1
        # At 90 % an idle connection lasts a tenth of the time: room is made for others.
        await eventually(lambda: running.counted("canal_dns_tcp_connections") < 9, 1.0)
        async with connected(running.endpoint) as client:
            assert is_vip(await client.ask(query()))


async def test_queries_per_connection() -> None:
    async with serving(tcp=limits(queries_per_connection=5)) as running, connected(running.endpoint) as client:
        client.write(*(query(ident=ident) for ident in range(8)))
        assert [(await client.read())[:2] for _ in range(5)] == [ident.to_bytes(2, "big") for ident in range(5)]
        assert await client.closed()
        assert running.counted("canal_dns_tcp_closed_total", "queries") == 1


async def flood(endpoint: Endpoint, count: int, tail: bytes = b"") -> int:
    """Whole replies that a client gets which writes all its queries, and this after them, before it reads."""
    frames = b"".join(len(one).to_bytes(2, "big") + one for one in (query(ident=ident) for ident in range(count)))
    async with connected(endpoint) as client:
        client.writer.write(frames + tail)
        await client.writer.drain()
        received = await client.reader.read()
        replies = 0
        while received:
            received = received[2 + int.from_bytes(received[:2], "big") :]
            replies += 1
        return replies


@pytest.mark.parametrize("count", [128, 200, 2000, 20_000])
async def test_queries_beyond_the_last_do_not_destroy_its_answer(count: int) -> None:
    async with serving() as running:
        assert await flood(running.endpoint, count) == 128
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        assert running.counted("canal_dns_tcp_closed_total", "queries") == 1
        assert running.counted("canal_dns_tcp_closed_total", "write") == 0


async def test_what_follows_garbage_does_not_destroy_the_answers_before_it() -> None:
    async with serving() as running:
        assert await flood(running.endpoint, 100, bytes(2_000_000)) == 100
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)


async def test_who_does_not_close_after_the_last_answer_is_closed() -> None:
    async with serving(tcp=limits(queries_per_connection=1)) as running, connected(running.endpoint) as client:
        client.write(query(ident=1))
        assert is_vip(await client.read())
        assert await client.closed()
        assert running.counted("canal_dns_tcp_connections") == 1
        with contextlib.suppress(ConnectionError):
            while running.counted("canal_dns_tcp_connections"):
                client.write(query(ident=2))
                await asyncio.sleep(0.005)


async def test_the_last_query_may_be_a_forwarded_one() -> None:
    held: list[Ask] = []
    async with serving(held.append, tcp=limits(queries_per_connection=2)) as running, connected(running.endpoint) as client:
        client.write(query("slow.up.test", ident=1), query(ident=2))
        assert is_vip(await client.read())
        held[0].reply()
        assert (await client.read())[:2] == b"\0\1"
        assert await client.closed()


async def test_tcp_17_a_client_that_reads_nothing() -> None:
    big = [record(f"10.0.{number // 250}.{number % 250}") for number in range(1990)]

    def script(ask: Ask) -> None:
        ask.write(message(ask.packet, *big)) if ask.stream else ask.write(message(ask.packet, tc=True))

    async with serving(script, tcp=limits(write=0.6, in_flight=5)) as running:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", running.endpoint.port))
            frames = [query(f"big{number}.up.test", ident=number) for number in range(28)]
            await loop.sock_sendall(sock, b"".join(len(one).to_bytes(2, "big") + one for one in frames))
            await eventually(lambda: running.counted("canal_dns_tcp_closed_total", "write") == 1)
            await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        # What could not be written held back what was asked.
        assert len(running.upstream.tcp) < 28
        assert is_vip(await ask(running.endpoint, query()))


async def test_the_replies_of_a_client_that_reads_nothing_do_not_fill_the_memory() -> None:
    big = [record(f"10.0.{number // 250}.{number % 250}") for number in range(1990)]
    held: list[Ask] = []

    def script(ask: Ask) -> None:
        held.append(ask) if ask.stream else ask.write(message(ask.packet, tc=True))

    async with serving(script, tcp=limits(write=3600, in_flight=60)) as running:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", running.endpoint.port))
            frames = [query(f"big{number}.up.test", ident=number) for number in range(60)]
            await loop.sock_sendall(sock, b"".join(len(one).to_bytes(2, "big") + one for one in frames))
            await eventually(lambda: len(held) == 60)
            for one in held:
                one.write(message(one.packet, *big))
            await eventually(lambda: running.counted("canal_dns_tcp_connections") == 0)
        assert running.counted("canal_dns_tcp_closed_total", "write") == 1
        assert is_vip(await ask(running.endpoint, query()))


async def test_what_all_clients_leave_unread_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who hold more than their share end; who holds little does not (P3, P12)."""
    monkeypatch.setattr("canal_dns.server.tcp.MEMORY", 256 << 10)
    big = [record(f"10.0.{number // 250}.{number % 250}") for number in range(1990)]
    held: list[Ask] = []

    def script(ask: Ask) -> None:
        held.append(ask) if ask.stream else ask.write(message(ask.packet, tc=True))

    async with serving(script, tcp=limits(write=3600, idle=3600)) as running, connected(running.endpoint) as modest:
        loop = asyncio.get_running_loop()
        connections = running.service._connections
        with contextlib.ExitStack() as stack:
            for number in range(8):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                sock.bind((f"127.0.1.{number + 1}", 0))
                await loop.sock_connect(sock, ("127.0.0.1", running.endpoint.port))
                frames = [query(f"big{number}-{at}.up.test", ident=at) for at in range(10)]
                await loop.sock_sendall(sock, b"".join(len(one).to_bytes(2, "big") + one for one in frames))
            await eventually(lambda: len(held) == 80)
            for one in held:
                one.write(message(one.packet, *big))
                await asyncio.sleep(0)
            await eventually(lambda: running.counted("canal_dns_tcp_closed_total", "memory") > 0)
            assert is_vip(await modest.ask(query()))
            assert connections._held <= (256 << 10) + 128 * 1024
        await eventually(lambda: running.counted("canal_dns_tcp_connections") == 1)
        assert connections._held == 0


async def test_limited_clients_count_by_their_prefix() -> None:
    """Who has one address of a /64 has them all."""
    everybody = AccessSettings(allow=(ipaddress.ip_network("::/0"), ipaddress.ip_network("127.0.0.0/8")))
    async with serving(tcp=limits(connections_per_client=2), access=everybody) as running:
        connections = running.service._connections
        admitted = [connections.admit((f"2001:db8::{number}", 1)) for number in range(3)]
        assert [one is not None for one in admitted] == [True, True, False]
        assert connections.admit(("2001:db8:0:1::1", 1)) is not None, "another's"
        private = [connections.admit((f"fd00::{number}", 1)) for number in range(3)]
        assert None not in private, "the addresses of a node's pods"
        assert admitted[0] is not None
        connections.closed(admitted[0])
        assert connections.admit(("2001:db8::9", 1)) is not None
        for one in list(connections._open):
            connections.closed(one)
        assert not connections._per_client


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    big = [record(f"10.0.{number // 250}.{number % 250}") for number in range(1990)]

    def script(ask: Ask) -> None:
        ask.write(message(ask.packet, *big)) if ask.stream else ask.write(message(ask.packet, tc=True))

    async with serving(script, tcp=limits(write=0.5, in_flight=2)) as running, connected(running.endpoint) as client:
        client.write(*(query(f"big{number}.up.test", ident=number) for number in range(28)))
        seen = set()
        for _ in range(28):
            seen.add((await client.read())[:2])
            await asyncio.sleep(0.03)
        assert len(seen) == 28


async def test_tcp_21_in_flight_per_connection() -> None:
    waiting: list[Ask] = []
    most = 0

    def script(ask: Ask) -> None:
        nonlocal most
        waiting.append(ask)
        most = max(most, len(waiting))
        asyncio.get_running_loop().call_later(0.005, answer)

    def answer() -> None:
        waiting.pop(0).reply()

    async with serving(script, tcp=limits(in_flight=10)) as running, connected(running.endpoint) as client:
        client.write(*(query(f"n{ident}.up.test", ident=ident) for ident in range(100)))
        idents = {int.from_bytes((await client.read())[:2], "big") for _ in range(100)}
        assert idents == set(range(100))
        assert most == 10


async def test_what_comes_after_a_full_window_waits_for_room() -> None:
    held: list[Ask] = []
    async with serving(held.append, tcp=limits(in_flight=2)) as running, connected(running.endpoint) as client:
        forwarded = [query(f"n{ident}.up.test", ident=ident) for ident in range(1, 5)]
        client.write(*forwarded, query(ident=9))
        # What takes no room needs not wait for it.
        assert is_vip(await client.read())
        await eventually(lambda: len(held) == 2)
        held[1].reply()
        assert (await client.read())[:2] == b"\0\2"
        await eventually(lambda: len(held) == 3)
        held[2].reply()
        assert (await client.read())[:2] == b"\0\3"
        held[0].reply()
        assert (await client.read())[:2] == b"\0\1"
        await eventually(lambda: len(held) == 4)
        client.write(query(ident=10))
        assert is_vip(await client.read())
        held[3].reply()
        assert (await client.read())[:2] == b"\0\4"


HIT, MISS, GARBAGE = "hit", "miss", "garbage"


@pytest.mark.parametrize("piece", [1, 7, 31, 45, 100_000])
@pytest.mark.parametrize(
    ("sent", "answered", "closed"),
    [
        ((HIT,), 1, False),
        ((HIT,) * 100, 100, False),
        ((MISS, HIT) * 30, 60, False),
        ((HIT, MISS, MISS) * 20, 60, False),
        ((MISS,) * 40 + (HIT,) * 40, 80, False),
        ((HIT, HIT, GARBAGE, HIT), 2, True),
        ((MISS, HIT, GARBAGE), 2, True),
        ((MISS, GARBAGE, HIT, MISS), 1, True),
        ((GARBAGE, HIT), 0, True),
    ],
)
async def test_what_is_answered_at_once_and_what_is_not(sent: tuple[str, ...], answered: int, closed: bool, piece: int) -> None:
    """However it is cut: one answer to each query, of what it asked; nothing after what is no query."""
    messages = {HIT: lambda ident: query(ident=ident), MISS: lambda ident: query("a.up.test", ident=ident)}
    made = [messages.get(kind, lambda _: query(flags=0x8100))(ident) for ident, kind in enumerate(sent)]
    octets = b"".join(len(one).to_bytes(2, "big") + one for one in made)
    async with serving() as running, connected(running.endpoint) as client:
        for at in range(0, len(octets), piece):
            client.writer.write(octets[at : at + piece])
            await asyncio.sleep(0)
        replies = {}
        for _ in range(answered):
            reply = await client.read()
            replies[int.from_bytes(reply[:2], "big")] = is_vip(reply)
        assert replies == {ident: sent[ident] == HIT for ident in range(answered)}
        if closed:
            assert await client.closed()
        assert running.counted("canal_dns_requests_total", "tcp", "A") == answered
        assert running.counted("canal_dns_responses_total", "NOERROR") == answered
        assert running.counted("canal_dns_answers_total", "table") == sum(replies.values())


async def test_replies_that_come_together_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Ask] = []
    async with serving(held.append) as running, connected(running.endpoint) as client:
        client.write(*(query(f"n{ident}.up.test", ident=ident) for ident in range(8)))
        await eventually(lambda: len(held) == 8)
        flushes = 0
        flush = Connection._flush

        def counted(self: Connection) -> None:
            nonlocal flushes
            flushes += bool(self._out)
            flush(self)

        monkeypatch.setattr(Connection, "_flush", counted)
        (connection,) = running.service._connections._open
        for one in held[:4]:
            connection._answer(time.monotonic(), one.packet)
        assert flushes == 0
        assert [(await client.read())[:2] for _ in range(4)] == [one.packet[:2] for one in held[:4]]
        assert flushes == 1
        monkeypatch.undo()


async def test_what_was_read_before_the_end_is_answered() -> None:
    held: list[Ask] = []
    async with serving(held.append, tcp=limits(in_flight=2)) as running, connected(running.endpoint) as client:
        client.write(*(query(f"n{ident}.up.test", ident=ident) for ident in range(4)), query(ident=4))
        client.writer.write_eof()
        assert (await client.read())[:2] == b"\0\4"
        for count in range(4):
            await eventually(lambda count=count: len(held) > count)
            held[count].reply()
            assert int.from_bytes((await client.read())[:2], "big") == count
        assert await client.closed()


async def test_a_stop_in_between_answers_what_was_taken() -> None:
    held: list[Ask] = []
    async with serving(held.append, tcp=limits(in_flight=2)) as running, connected(running.endpoint) as client:
        client.write(query("a.up.test", ident=1), query(ident=2), query("b.up.test", ident=3))
        client.writer.write(b"\0\x20cut off")
        assert is_vip(await client.read())
        await eventually(lambda: len(held) == 2)
        stopping = asyncio.create_task(running.service.stop())
        await asyncio.sleep(0)
        assert {(await client.read())[:2] for _ in range(2)} == {b"\0\1", b"\0\3"}
        assert await client.closed()
        await stopping


async def test_peers_may_ask_without_end_on_one_connection() -> None:
    """CoreDNS with `force_tcp` keeps its connections, and asks there for all its clients."""
    access = AccessSettings(peers=(LOOPBACK_NET,))
    async with serving(access=access) as running, connected(running.endpoint) as client:
        for start in range(0, 1000, 100):
            client.write(*(query("a.up.test" if ident % 50 else WEB, ident=ident) for ident in range(start, start + 100)))
            idents = {int.from_bytes((await client.read())[:2], "big") for _ in range(100)}
            assert idents == set(range(start, start + 100))
        assert running.counted("canal_dns_tcp_closed_total", "queries") == 0
        assert running.counted("canal_dns_requests_total", "tcp", "A") == 1000


async def test_exempt_clients_get_nothing_at_once() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        running.service.exempt(frozenset({"127.0.0.1"}))
        assert (await client.ask(query())).endswith(socket.inet_aton("192.0.2.1"))


async def test_clients_that_may_not_ask_take_no_place() -> None:
    access = AccessSettings(allow=(ipaddress.ip_network("127.0.0.1/32"),))
    async with serving(access=access, tcp=limits(connections=3)) as running, contextlib.AsyncExitStack() as stack:
        for number in range(6):
            client = await stack.enter_async_context(connected(running.endpoint, f"127.0.0.{2 + number}"))
            assert await client.closed()
        assert running.counted("canal_dns_tcp_connections") == 0
        assert running.counted("canal_dns_tcp_closed_total", "refused") == 6
        async with connected(running.endpoint) as client:
            assert is_vip(await client.ask(query()))


async def test_a_client_that_may_ask_no_more_is_told() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        await running.service.reconfigure(dataclasses.replace(running.settings, access=AccessSettings(allow=())))
        assert rcode(await client.ask(query())) == 5


async def test_p4_connections_leave_descriptors_for_upstreams() -> None:
    async with serving() as running, contextlib.AsyncExitStack() as undo:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * descriptors() + 40, hard))
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        await running.reconfigure(tcp=limits(connections_per_client=1000))
        # Each of them takes a descriptor of the client, too: both are this process.
        for _ in range(40):
            await undo.enter_async_context(connected(running.endpoint))
            if running.counted("canal_dns_tcp_closed_total", "descriptors"):
                break
        else:
            raise AssertionError("there was no limit")
        reply = await ask(running.endpoint, query("a.up.test"))
        assert rcode(reply) == 0
        assert running.counted("canal_dns_tcp_accept_errors_total", "EMFILE") == 0


async def test_p4_without_descriptors_accepting_pauses() -> None:
    async with serving() as running:
        held = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as client:
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
            try:
                while True:
                    try:
                        held.append(os.dup(0))
                    except OSError:
                        break
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", running.endpoint.port))
                await eventually(lambda: running.counted("canal_dns_tcp_accept_errors_total", "EMFILE") == 1)
                began = time.process_time()
                await asyncio.sleep(0.15)
                assert time.process_time() - began < 0.05
            finally:
                for one in held:
                    os.close(one)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            packet = query()
            await asyncio.get_running_loop().sock_sendall(client, len(packet).to_bytes(2, "big") + packet)
            reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 512), 2)
            assert reply.endswith(VIP)


async def test_a_client_whose_port_is_one_of_our_udp_ports_is_not_us() -> None:
    async with serving() as running:
        await ask(running.endpoint, query("a.up.test"))
        port = running.upstream.asks[0].port
        reader, writer = await asyncio.open_connection("127.0.0.1", running.endpoint.port, local_addr=("127.0.0.1", port))
        assert rcode(await TcpClient(reader, writer).ask(query("b.up.test"))) == 0
        writer.close()
        await writer.wait_closed()


async def test_limits_change_under_open_connections() -> None:
    async with serving() as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        await running.reconfigure(tcp=limits(idle=0.2))
        assert await client.closed()


async def test_ipv6() -> None:
    async with serving(listen=(Endpoint("::1", 0),)) as running, connected(running.endpoint) as client:
        assert is_vip(await client.ask(query()))
        assert is_vip(await ask(running.endpoint, query()))


class _Item:
    slot = -1

    def __init__(self, at: float) -> None:
        self.at = at
        self.asked: list[float] = []

    def due(self, now: float) -> float:
        self.asked.append(now)
        return self.at


async def test_the_wheel_asks_when_due_and_rests_when_empty() -> None:
    wheel = Wheel(0.1)
    item = _Item(float("inf"))
    wheel.add(item)
    await eventually(lambda: len(item.asked) >= 3)
    assert all(after - before > 0.05 for before, after in zip(item.asked, item.asked[1:], strict=False))
    wheel.discard(item)
    asked = len(item.asked)
    await asyncio.sleep(0.15)
    assert len(item.asked) == asked
    assert wheel._timer is None


async def test_an_item_that_fails_does_not_stop_the_wheel(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(_Item):
        def due(self, now: float) -> float:
            super().due(now)
            raise RuntimeError("broken")

    wheel = Wheel(0.1)
    items = [_Item(float("inf")), Failing(0), _Item(float("inf")), Failing(0)]
    for item in items:
        wheel.add(item)
    await eventually(lambda: all(len(item.asked) >= 3 for item in items))
    for item in items:
        wheel.discard(item)
    assert {str(record.exc_info[1]) for record in caplog.records if record.exc_info} == {"broken"}
