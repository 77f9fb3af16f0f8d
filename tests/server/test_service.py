"""One process's listeners as a whole: all or none, changed by difference, stopped without losing what was accepted."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import socket
import time

import pytest

from canal_dns.dns import names
from canal_dns.dns.table import Addresses
from canal_dns.errors import ListenError, TableError
from canal_dns.server.querylog import QueryLog
from canal_dns.server.service import DataPlane, PacketService
from canal_dns.server.workers import WorkerPool
from canal_dns.settings import AccessSettings, Endpoint, ForwardSettings, LogSettings, TcpSettings
from tests.server.scripted import Ask, Scripted, eventually, silent
from tests.server.serving import (
    BOUND,
    LOOPBACK,
    WEB,
    ask,
    connected,
    descriptors,
    is_vip,
    query,
    rcode,
    receive,
    serving,
    settings,
    udp_client,
)

ALONE = "127.77.0.1"
"""An address of this host on which nobody else has a port."""
NEW_VIP = bytes([10, 96, 0, 201])
WIRE = names.from_text(WEB)


def planes(service: PacketService, pool: WorkerPool) -> tuple[DataPlane, DataPlane]:
    """For the type checker: both are data planes."""
    return service, pool


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
async def test_p17_all_addresses_or_none(transport: str) -> None:
    kind = socket.SOCK_DGRAM if transport == "UDP" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((ALONE, 0))
        if transport == "TCP":
            taken.listen()
        bad = Endpoint(ALONE, taken.getsockname()[1])
        before = descriptors()
        service = PacketService(settings(LOOPBACK, listen=(LOOPBACK, bad)))
        with pytest.raises(ListenError) as raised:
            await service.start()
        assert (raised.value.address, raised.value.transport) == (str(bad), transport)
        assert raised.value.problem == "Address already in use"
        assert service.listeners == ()
        await asyncio.sleep(0)
        gc.collect()
        assert descriptors() <= before + 1


async def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:1053 \(UDP\): Cannot assign requested address"):
        await PacketService(settings(LOOPBACK, listen=(Endpoint("192.0.2.1", 1053),))).start()


async def test_each_table_is_timed_from_what_caused_it_if_that_is_known() -> None:
    def observed(service: PacketService) -> tuple[int, float]:
        histogram = service.own_counters().histograms["canal_dns_event_to_answer_seconds"][()]
        return sum(histogram.counts), histogram.total

    service = PacketService(settings(LOOPBACK))
    service.publish(BOUND, 1, 1, full=True)
    assert observed(service) == (0, 0.0)
    service.publish({WIRE: Addresses((NEW_VIP,), (), 5)}, 2, 2, full=False, since=time.monotonic() - 100)
    await service.replace(BOUND, 3, 3, since=time.monotonic() - 200)
    with pytest.raises(TableError):
        service.publish({b"\3WEB\0": Addresses((NEW_VIP,), (), 5)}, 4, 4, full=False, since=time.monotonic())
    count, total = observed(service)
    assert count == 2
    assert 300 <= total < 305


async def test_a_name_moves_at_once() -> None:
    async with serving() as running:
        assert is_vip(await ask(running.endpoint, query()))
        running.service.publish({WIRE: Addresses((NEW_VIP,), (), 5)}, 2, 2, full=False)
        assert is_vip(await ask(running.endpoint, query()), NEW_VIP)
        running.service.publish({WIRE: None}, 3, 3, full=False)
        assert (await ask(running.endpoint, query())).endswith(socket.inet_aton("192.0.2.1"))
        await running.service.replace(BOUND, 4, 4)
        assert is_vip(await ask(running.endpoint, query()))
        assert running.service.generation == 4
        running.service.publish({}, 5, 5, full=True)
        assert (await ask(running.endpoint, query())).endswith(socket.inet_aton("192.0.2.1"))


async def test_what_cannot_be_answered_changes_nothing() -> None:
    async with serving() as running:
        with pytest.raises(TableError):
            running.service.publish({WIRE: Addresses((), (), 5)}, 2, 2, full=True)
        assert is_vip(await ask(running.endpoint, query()))
        assert running.service.generation == 1


async def test_listeners_change_by_difference() -> None:
    async with serving() as running:
        first = running.endpoint
        async with connected(first) as client:
            assert is_vip(await client.ask(query()))
            with udp_client() as sock:
                # It waits in the socket that stays.
                sock.sendto(query("a.up.test"), (first.host, first.port))
                await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0), LOOPBACK))
                second, kept = running.service.listeners
                assert kept == first
                assert rcode((await receive(sock))[0]) == 0
            assert is_vip(await client.ask(query()))
        for endpoint in (first, second):
            assert is_vip(await ask(endpoint, query()))
        await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0),))
        assert running.service.listeners == (second,)
        assert is_vip(await ask(second, query()))
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(first.host, first.port)


async def test_a_bad_address_leaves_everything_as_it_was() -> None:
    async with serving() as running:
        before = running.service.listeners
        for _ in range(20):
            with pytest.raises(ListenError):
                await running.service.reconfigure(
                    dataclasses.replace(
                        running.settings,
                        listen=dataclasses.replace(running.settings.listen, addresses=(Endpoint("192.0.2.1", 1),)),
                        access=AccessSettings(allow=()),
                    )
                )
            assert running.service.listeners == before
            assert is_vip(await ask(running.endpoint, query()))


async def test_an_address_may_come_back_at_once() -> None:
    async with serving() as running:
        one, other = running.endpoint, Endpoint("127.0.0.2", 0)
        for addresses in ((other,), (one, other), (other,), (one,)):
            await running.reconfigure(addresses=addresses)
        assert is_vip(await ask(one, query()))


async def test_a_datagram_in_a_socket_that_goes_is_answered() -> None:
    async with serving() as running:
        with udp_client() as sock:
            for ident in range(100):
                sock.sendto(query(ident=ident), (running.endpoint.host, running.endpoint.port))
            await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0),))
            assert len({(await receive(sock))[0][:2] for _ in range(100)}) == 100


async def test_other_settings_are_taken_over() -> None:
    async with serving() as running, Scripted() as other:
        assert is_vip(await ask(running.endpoint, query()))
        await running.service.reconfigure(dataclasses.replace(running.settings, access=AccessSettings(allow=())))
        assert rcode(await ask(running.endpoint, query())) == 5
        forward = ForwardSettings(upstreams=(other.endpoint,))
        await running.service.reconfigure(dataclasses.replace(running.settings, forward=forward))
        assert rcode(await ask(running.endpoint, query("a.up.test"))) == 0
        assert len(other.asks) == 1


async def test_stop_finishes_what_is_on_its_way() -> None:
    held: list[Ask] = []
    async with serving(held.append) as running, connected(running.endpoint) as client:
        with udp_client() as sock:
            sock.sendto(query("u.up.test"), (running.endpoint.host, running.endpoint.port))
            client.write(query("t.up.test"))
            await eventually(lambda: len(held) == 2)
            stopping = asyncio.create_task(running.service.stop())
            await asyncio.sleep(0.05)
            assert not stopping.done()
            with pytest.raises(ConnectionError):
                await asyncio.open_connection(running.endpoint.host, running.endpoint.port)
            for one in held:
                one.reply()
            assert rcode((await receive(sock))[0]) == 0
            assert rcode(await client.read()) == 0
            assert await client.closed()
            client.writer.close()
            await stopping
        assert not running.service.healthy()


async def test_what_comes_during_the_stop_is_answered() -> None:
    held: list[Ask] = []
    async with (
        serving(held.append, budget=10.0) as running,
        connected(running.endpoint) as client,
        connected(running.endpoint) as idle,
    ):
        with udp_client() as sock:
            where = (running.endpoint.host, running.endpoint.port)
            sock.sendto(query("u.up.test"), where)
            client.write(query("t.up.test"))
            await eventually(lambda: len(held) == 2)
            stopping = asyncio.create_task(running.service.stop())
            assert await idle.closed()
            for ident in range(100):
                assert is_vip(await ask(running.endpoint, query(ident=ident)))
                assert rcode(await ask(running.endpoint, query(f"n{ident}.up.test"))) == 2
            assert not stopping.done()
            # These are in the socket when the last query that was waited for is over.
            for ident in range(100):
                sock.sendto(query(ident=ident), where)
            for one in held:
                one.reply()
            replies = {(await receive(sock))[0][:2] for _ in range(101)}
            assert replies >= {ident.to_bytes(2, "big") for ident in range(100)}
            assert rcode(await client.read()) == 0
            client.writer.close()
            await stopping


@pytest.mark.parametrize("way", ["stop", "reconfigure"])
async def test_connections_that_nobody_has_accepted_yet_are_answered(way: str) -> None:
    async with serving(tcp=TcpSettings(connections_per_client=200)) as running:
        packet = query()
        clients = [socket.socket() for _ in range(200)]
        # Nothing runs between these lines: all of them are still in the kernel's queue when the listener goes.
        for client in clients:
            client.connect((running.endpoint.host, running.endpoint.port))
            client.sendall(len(packet).to_bytes(2, "big") + packet)
            client.setblocking(False)
        if way == "stop":
            await running.service.stop()
        else:
            await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0),))
        loop = asyncio.get_running_loop()
        for client in clients:
            assert is_vip((await loop.sock_recv(client, 512))[2:])
            client.close()


async def test_new_queries_do_not_prolong_the_stop() -> None:
    async with serving(silent, budget=0.5) as running:
        with udp_client() as sock:
            sock.sendto(query("first.up.test"), (running.endpoint.host, running.endpoint.port))
            await eventually(lambda: len(running.upstream.asks) >= 1)
            stopping = asyncio.create_task(running.service.stop())
            number = 0
            while not stopping.done():
                number += 1
                sock.sendto(query(f"n{number}.up.test"), (running.endpoint.host, running.endpoint.port))
                await asyncio.sleep(0.001)
            await stopping
        assert f"n{number}.up.test." not in {one.name for one in running.upstream.asks}


async def test_an_address_that_goes_is_answered_until_it_is_closed() -> None:
    async with serving(budget=0.5) as running:
        gone = running.endpoint
        await running.reconfigure(addresses=(Endpoint("127.0.0.2", 0),))
        for ident in range(10):
            assert is_vip(await ask(gone, query(ident=ident)))
            assert rcode(await ask(gone, query("a.up.test"))) == 0
        await eventually(lambda: not running.service._retired)


async def test_stop_says_servfail_for_what_no_upstream_answers() -> None:
    async with serving(silent, budget=0.5) as running, connected(running.endpoint) as client:
        with udp_client() as sock:
            sock.sendto(query("u.up.test"), (running.endpoint.host, running.endpoint.port))
            client.write(query("t.up.test"))
            await eventually(lambda: len(running.upstream.asks) >= 2)
            await running.service.stop()
            assert rcode((await receive(sock))[0]) == 2
            assert rcode(await client.read()) == 2


async def test_idle_connections_do_not_delay_the_end() -> None:
    async with serving() as running, connected(running.endpoint) as client, connected(running.endpoint):
        assert is_vip(await client.ask(query()))
        await running.service.stop()
        assert await client.closed()


async def test_a_client_that_reads_nothing_does_not_delay_the_end_for_long() -> None:
    async with serving(tcp=TcpSettings(write=30), budget=0.2) as running, connected(running.endpoint) as client:
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.write(query("a.up.test"))
        await client.read()
        await running.service.stop()


async def test_starting_and_stopping_leaves_nothing() -> None:
    async with Scripted() as upstream:
        gc.collect()
        before, tasks = descriptors(), len(asyncio.all_tasks())
        for _ in range(3):
            service = PacketService(settings(upstream.endpoint, listen=(LOOPBACK, Endpoint("::1", 0))))
            await service.start()
            service.publish(BOUND, 1, 1, full=True)
            for endpoint in service.listeners:
                assert is_vip(await ask(endpoint, query()))
                assert rcode(await ask(endpoint, query("a.up.test"))) == 0
            await service.stop()
        gc.collect()
        assert descriptors() <= before
        assert len(asyncio.all_tasks()) <= tasks


async def test_failed_waits_for_ever() -> None:
    async with serving() as running:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.service.failed(), 0.05)
        assert (await running.service.counters())["canal_dns_dropped_total"] == {}


async def test_the_query_log(caplog: pytest.LogCaptureFixture) -> None:
    """AMP-07: one line per query, nothing of a name gets out of its line."""
    labels = [b"a\nb", b'x"} 1\n', b"<script>", b"\xff\xfe", b"\x1b[31m", b"%s%n"]
    async with serving(log=LogSettings(queries=True)) as running:
        with caplog.at_level(logging.INFO):
            for label in labels:
                wire = bytes([len(label)]) + label + names.from_text("up.test")
                await ask(running.endpoint, query()[:12] + wire + b"\0\1\0\1")
            assert is_vip(await ask(running.endpoint, query()))
            async with connected(running.endpoint) as client:
                await client.ask(query(qclass=3))
            with udp_client() as sock:
                sock.sendto(b"short", (running.endpoint.host, running.endpoint.port))
                await eventually(lambda: running.counted("canal_dns_dropped_total", "short") == 1)
        lines = [record.getMessage() for record in caplog.records if record.name == "canal_dns.queries"]
        assert len(lines) == len(labels) + 3
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert "A a\\010b.up.test.: forwarded" in lines[0]
        assert f"A {WEB}.: NOERROR from table" in lines[-3]
        assert lines[-2].startswith("tcp 127.0.0.1")
        assert lines[-1].endswith("no question in 5 octets: dropped, short")

        caplog.clear()
        await running.service.reconfigure(dataclasses.replace(running.settings, log=LogSettings(queries=False)))
        assert is_vip(await ask(running.endpoint, query()))
        assert not caplog.records


def test_the_query_log_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    log = QueryLog()
    with caplog.at_level(logging.INFO):
        for number in range(250):
            log.record(query(), "udp", "10.1.2.3", 4711, "forwarded", 7 + number / 1000)
        assert len(caplog.records) == 100
        log.record(query(), "udp", "10.1.2.3", 4711, "forwarded", 8.0)
    assert caplog.records[100].getMessage() == "150 queries more were not logged"
    assert len(caplog.records) == 102
