"""Worker processes: fed, converging, killed, hung, orphaned. Each is a fresh interpreter at the end of a socketpair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from canal_dns.dns import names
from canal_dns.dns.table import Addresses
from canal_dns.errors import ListenError, TableError, WorkerError
from canal_dns.server import workers
from canal_dns.server.link import Configure, Link, WorkerSettings
from canal_dns.server.tally import memory
from canal_dns.server.workers import WorkerPool
from canal_dns.settings import AccessSettings, Endpoint, Settings
from tests.server.scripted import Script, Scripted, eventually, silent, true
from tests.server.serving import (
    BOUND,
    LOOPBACK,
    VIP,
    WEB,
    ask,
    connected,
    is_vip,
    query,
    rcode,
    settings,
    udp_client,
)

ALONE = "127.77.0.2"
"""An address of this host on which nobody else has a port."""
HOME = Endpoint(f"127.78.{os.getpid() >> 8 & 255}.{os.getpid() & 255}", 0)
"""An address of this test process alone: a port is free between the probe and the workers, and others take any they get."""
NEW_VIP = bytes([10, 96, 0, 201])
NEW = {names.from_text(WEB): Addresses((NEW_VIP,), (), 5)}
START = "from canal_dns.server.workers import run_worker; run_worker({fd}, {tally}{factory})"


def argv(fd: int, tally: int) -> Sequence[str]:
    """The command of a worker; on the loop that this test runs on."""
    uv = "uvloop" in type(asyncio.get_running_loop()).__module__
    return [
        sys.executable, "-c",
        ("import uvloop; " if uv else "") + START.format(fd=fd, tally=tally, factory=", uvloop.new_event_loop" if uv else ""),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def pool(count: int = 2, *, script: Script = true, bound: bool = True, **different: Any) -> AsyncIterator[WorkerPool]:
    async with Scripted(script) as upstream:
        running = WorkerPool(settings(upstream.endpoint, **{"listen": (HOME,)} | different), count, argv)
        await running.start()
        try:
            if bound:
                running.publish(BOUND, 1, 1, full=True)
            yield running
        finally:
            await running.stop()
            assert running.listeners


def pids(running: WorkerPool) -> list[int]:
    return [slot.process.pid for slot in running._slots if slot.process is not None]


def whole(running: WorkerPool, count: int = 2) -> bool:
    return sum(slot.ready for slot in running._slots) == count


async def restarts(running: WorkerPool, cause: str) -> float:
    return (await running.counters())["canal_dns_worker_restarts_total"][(cause,)]


async def answers(endpoint: Endpoint, count: int) -> list[bytes]:
    """The replies to that many queries, each from a port of its own, so that every worker has its share."""
    loop = asyncio.get_running_loop()
    replies: list[bytes] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(udp_client())
            loop.add_reader(sock.fileno(), lambda sock=sock: replies.append(sock.recv(512)))
            stack.callback(loop.remove_reader, sock.fileno())
            sock.sendto(query(), (endpoint.host, endpoint.port))
        await eventually(lambda: len(replies) == count)
    return replies


async def converged(endpoint: Endpoint, vip: bytes = VIP, seconds: float = 5.0) -> None:
    """Every worker gives this answer."""
    async with asyncio.timeout(seconds):
        while {is_vip(reply, vip) for reply in await answers(endpoint, 100)} != {True}:
            pass


async def test_both_transports_are_answered_by_all_workers() -> None:
    async with pool() as running:
        (endpoint,) = running.listeners
        await eventually(lambda: whole(running))
        await converged(endpoint)
        async with connected(endpoint) as client:
            assert is_vip(await client.ask(query()))
            assert (await client.ask(query("a.up.test"))).endswith(socket.inet_aton("192.0.2.1"))
        counted = await running.counters()
        assert counted["canal_dns_workers"][()] == 2
        assert counted["canal_dns_requests_total"][("udp", "A")] >= 100
        assert counted["canal_dns_requests_total"][("tcp", "A")] == 2
        assert all(slot.counters()["canal_dns_requests_total"][("udp", "A")] > 20 for slot in running._slots)
        assert running.healthy()


async def test_bnd_09_a_new_vip_is_everywhere_within_a_second() -> None:
    async with pool() as running:
        (endpoint,) = running.listeners
        await converged(endpoint)
        running.publish(NEW, 2, 2, full=False)
        await converged(endpoint, NEW_VIP, 1.0)
        for _ in range(10):
            assert not [reply for reply in await answers(endpoint, 100) if reply.endswith(VIP)]


async def test_every_worker_times_a_table_from_what_caused_it_once() -> None:
    async with pool() as running:
        running.publish(NEW, 2, 2, full=False, since=time.monotonic() - 100)
        running.publish(BOUND, 3, 3, full=True, since=time.monotonic() - 200)
        await converged(running.listeners[0])
        await running.counters()
        os.kill(pids(running)[0], signal.SIGKILL)
        await eventually(lambda: not whole(running))
        await eventually(lambda: whole(running))
        await converged(running.listeners[0])
        # The table of the one that came later has no cause but its own start.
        histogram = (await running.counters()).histograms["canal_dns_event_to_answer_seconds"][()]
        assert sum(histogram.counts) == 4
        assert 600 <= histogram.total < 620


async def test_p6_a_killed_worker_is_back_with_its_table() -> None:
    async with pool() as running:
        (endpoint,) = running.listeners
        running.publish(NEW, 2, 2, full=False)
        await converged(endpoint, NEW_VIP)
        before = (await running.counters())["canal_dns_requests_total"][("udp", "A")]
        victim = pids(running)[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: victim not in pids(running))
        # Meanwhile the other one answers everything, and the new one says nothing before it knows what is bound.
        while not whole(running):
            assert {is_vip(reply, NEW_VIP) for reply in await answers(endpoint, 20)} == {True}
        assert {is_vip(reply, NEW_VIP) for reply in await answers(endpoint, 200)} == {True}
        assert await restarts(running, "signal") == 1
        after = (await running.counters())["canal_dns_requests_total"][("udp", "A")]
        assert after >= before


async def test_p7_a_worker_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENT", 1.5)
    async with pool() as running:
        (endpoint,) = running.listeners
        victim = pids(running)[0]
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        # Nobody has noticed yet: its counters are still known.
        assert (await running.counters())["canal_dns_workers"][()] == 2
        await eventually(lambda: victim not in pids(running) and whole(running), 10)
        assert time.monotonic() - stopped > 1.0
        assert await restarts(running, "silent") == 1
        await converged(endpoint)


async def test_p6_nobody_waits_for_the_counters_of_a_worker_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ANSWER", 50.0)
    async with pool() as running:
        victim = pids(running)[0]
        os.kill(victim, signal.SIGSTOP)
        counting = asyncio.create_task(running.counters())
        await asyncio.sleep(0)
        os.kill(victim, signal.SIGKILL)
        counted = await asyncio.wait_for(counting, 10)
        assert counted["canal_dns_workers"][()] == 1


async def test_counters_of_the_dead_are_kept() -> None:
    async with pool(1) as running:
        (endpoint,) = running.listeners
        await answers(endpoint, 40)
        assert (await running.counters())["canal_dns_requests_total"][("udp", "A")] >= 40
        os.kill(pids(running)[0], signal.SIGKILL)
        await eventually(lambda: not whole(running, 1))
        await eventually(lambda: whole(running, 1))
        counted = await running.counters()
        assert counted["canal_dns_requests_total"][("udp", "A")] >= 40
        assert counted["canal_dns_tcp_connections"][()] == 0


async def test_a_killed_worker_takes_no_count_along() -> None:
    """Not even of the last millisecond: what it counts lies in memory that is not its own."""
    async with pool(1) as running:
        (endpoint,) = running.listeners
        (slot,) = running._slots
        async with connected(endpoint) as client:
            for _ in range(50):
                await client.ask(query())
                await ask(endpoint, query())
                await ask(endpoint, query("a.up.test"))
            # A reply leaves a moment before it is counted.
            await eventually(lambda: slot.counters()["canal_dns_responses_total"][("NOERROR",)] == 150)
            (victim,) = pids(running)
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: victim not in pids(running) and whole(running, 1))
        counted = await running.counters()
        assert counted["canal_dns_requests_total"] == {("udp", "A"): 100, ("tcp", "A"): 50}
        assert counted["canal_dns_responses_total"] == {("NOERROR",): 150}
        durations = counted.histograms["canal_dns_request_duration_seconds"]
        assert {labels: sum(one.counts) for labels, one in durations.items()} == {("table",): 100, ("upstream",): 50}


@pytest.mark.parametrize("count", [2, 3, 4])
async def test_many_clients_are_spread_evenly(count: int) -> None:
    """The kernel gives each client to one worker, by a hash of addresses and ports: what comes of it is binomial.

    Six standard deviations from the mean: exceeded by chance in one run of a hundred million.
    """
    clients, rounds = 400, 3
    async with pool(count) as running:
        (endpoint,) = running.listeners
        await eventually(lambda: whole(running, count))
        before = [slot.counters()["canal_dns_responses_total"][("NOERROR",)] for slot in running._slots]
        for _ in range(rounds):
            await answers(endpoint, clients)
        total = rounds * clients
        far = 6 * (total / count * (1 - 1 / count)) ** 0.5

        def shares() -> list[float]:
            now = [slot.counters()["canal_dns_responses_total"][("NOERROR",)] for slot in running._slots]
            return [one - other for one, other in zip(now, before, strict=True)]

        # A reply leaves a moment before it is counted.
        await eventually(lambda: sum(shares()) == total)
        assert all(abs(share - total / count) < far for share in shares())


async def test_workers_that_die_one_after_the_other_end_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CRASHES", 3)
    async with pool() as running:
        failed = asyncio.create_task(running.failed())
        for _ in range(3):
            await eventually(lambda: whole(running))
            assert not failed.done()
            os.kill(pids(running)[0], signal.SIGSEGV)
            await eventually(lambda: not whole(running))
        with pytest.raises(WorkerError, match="3 times within 60 s"):
            await failed


async def test_a_command_that_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STARTING", 1.0)
    running = WorkerPool(settings(LOOPBACK), 1, lambda *_: [sys.executable, "-c", "pass"])
    with pytest.raises(WorkerError):
        await running.start()


async def test_a_command_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CRASHES", 2)
    monkeypatch.setattr(workers, "STARTING", 1.0)
    running = WorkerPool(settings(LOOPBACK), 1, lambda *_: ["/nowhere/python"])
    with pytest.raises(WorkerError, match="ended 2 times"):
        await running.start()


async def test_settings_reach_a_worker_that_is_just_starting() -> None:
    async with pool() as running:
        await converged(running.listeners[0])
        victim = pids(running)[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: victim not in pids(running) and running._slots[0].link is not None)
        await running.reconfigure(replace(running._settings, access=AccessSettings(allow=())))
        await eventually(lambda: whole(running))
        assert {rcode(reply) for reply in await answers(running.listeners[0], 100)} == {5}


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with SO_REUSEPORT"])
async def test_p17_a_port_in_use_is_an_error_at_once(transport: str, shared: bool) -> None:
    kind = socket.SOCK_DGRAM if transport == "UDP" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as taken:
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((ALONE, 0))
        if transport == "TCP":
            taken.listen()
        endpoint = Endpoint(ALONE, taken.getsockname()[1])
        running = WorkerPool(settings(LOOPBACK, listen=(endpoint,)), 2, argv)
        with pytest.raises(ListenError, match=rf"cannot listen on {endpoint} \({transport}\): Address already in use"):
            await running.start()
        assert not running._slots
        await running.stop()


async def test_an_address_that_only_the_workers_find_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody took it between the probe and the workers' own binding."""
    async with pool() as running:
        with udp_client(ALONE) as taken:
            bad = Endpoint(ALONE, taken.getsockname()[1])
            monkeypatch.setattr(workers, "probe", lambda endpoint: endpoint)
            before = running.listeners
            with pytest.raises(ListenError, match=rf"{bad} \(UDP\): Address already in use"):
                await running.reconfigure(listening(running, HOME, bad))
            assert running.listeners == before
            await converged(before[0])

            other = WorkerPool(settings(LOOPBACK, listen=(bad,)), 2, argv)
            with pytest.raises(ListenError, match=rf"{bad} \(UDP\)"):
                await other.start()


async def test_listeners_change_in_every_worker() -> None:
    async with pool() as running:
        first = running.listeners[0]
        with udp_client(HOME.host) as taken:
            bad = Endpoint(HOME.host, taken.getsockname()[1])
            with pytest.raises(ListenError):
                await running.reconfigure(listening(running, HOME, bad))
        assert running.listeners == (first,)
        assert len(await answers(first, 20)) == 20

        other = Endpoint("127.0.0.2", 0)
        await running.reconfigure(listening(running, HOME, other))
        assert running.listeners[0] == first
        second = running.listeners[1]
        assert len(await answers(first, 20)) + len(await answers(second, 20)) == 40
        await running.reconfigure(listening(running, other))
        assert running.listeners == (second,)
        assert len(await answers(second, 20)) == 20


async def test_the_number_of_workers_changes() -> None:
    async with pool(1) as running:
        (endpoint,) = running.listeners
        await running.reconfigure(listening(running, HOME, workers=3))
        assert whole(running, 3)
        await converged(endpoint)
        await running.reconfigure(listening(running, HOME, workers=1))
        await eventually(lambda: not running._retiring)
        assert len(await answers(endpoint, 50)) == 50
        assert await restarts(running, "exit") == 0


async def test_more_workers_that_do_not_start_leave_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "EXIT", 0.1)
    async with pool(1, budget=0.5) as running:
        # Those that do start may take their time.
        monkeypatch.setattr(workers, "STARTING", 1.0)
        before, first = running._settings, running._slots[0]
        (endpoint,) = running.listeners
        monkeypatch.setattr(running, "_argv", lambda *_: [sys.executable, "-c", "import time; time.sleep(300)"])
        other = listening(running, HOME, Endpoint("127.0.0.2", 0), workers=3)
        with pytest.raises(WorkerError, match="did not start within 1 s"):
            await running.reconfigure(replace(other, access=AccessSettings(allow=())))
        assert running._slots == [first]
        assert running._settings == before
        assert running.listeners == (endpoint,)
        assert {is_vip(reply) for reply in await answers(endpoint, 20)} == {True}
        await eventually(lambda: not running._retiring)
        monkeypatch.setattr(running, "_argv", argv)
        monkeypatch.setattr(workers, "STARTING", 10.0)
        await running.reconfigure(listening(running, HOME, workers=2))
        assert whole(running)
        assert await restarts(running, "exit") == await restarts(running, "signal") == 0


def listening(running: WorkerPool, *addresses: Endpoint, workers: int | None = None) -> Settings:
    return replace(running._settings, listen=replace(running._settings.listen, addresses=addresses, workers=workers))


async def test_what_no_table_takes_reaches_no_worker() -> None:
    async with pool() as running:
        with pytest.raises(TableError):
            running.publish({b"\3WEB\0": Addresses((VIP,), (), 5)}, 2, 2, full=False)
        await converged(running.listeners[0])


async def test_the_plane_is_not_healthy_before_every_worker_has_the_first_table() -> None:
    async with pool(2, bound=False) as running:
        assert running.healthy()
        victim = pids(running)[0]
        os.kill(victim, signal.SIGSTOP)
        running.publish(BOUND, 1, 1, full=True)
        await eventually(lambda: sum(slot.generation == 1 for slot in running._slots) == 1)
        assert not running.healthy()
        os.kill(victim, signal.SIGCONT)
        await eventually(running.healthy)
        assert {is_vip(reply) for reply in await answers(running.listeners[0], 100)} == {True}


async def test_a_slow_worker_gets_one_full_table_instead_of_all_deltas() -> None:
    many = {names.from_text(f"s{number}.shop.svc.cluster.local"): Addresses((VIP,), (), 5) for number in range(2000)}
    async with pool(1) as running:
        (slot,) = running._slots
        (endpoint,) = running.listeners
        victim = pids(running)[0]
        os.kill(victim, signal.SIGSTOP)
        generation = 1
        while not slot.stale:
            generation += 1
            running.publish(many, generation, generation, full=False)
        running.publish(NEW, generation + 1, generation + 1, full=False)
        os.kill(victim, signal.SIGCONT)
        await eventually(lambda: not slot.stale)
        await converged(endpoint, NEW_VIP)
        assert is_vip(await ask(endpoint, query("s1999.shop.svc.cluster.local")))


async def test_a_stop_is_not_prolonged_by_new_queries_and_nobody_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    async with pool(script=silent, budget=0.5) as running:
        (endpoint,) = running.listeners
        await converged(endpoint)
        with udp_client() as sock:
            stopping: asyncio.Task[None] | None = None
            number = 0
            while stopping is None or not stopping.done():
                number += 1
                sock.sendto(query(f"n{number}.up.test"), (endpoint.host, endpoint.port))
                await asyncio.sleep(0.001)
                if number == 50:
                    stopping = asyncio.create_task(running.stop())
            await stopping
    assert not [record for record in caplog.records if "is killed" in record.getMessage()]


async def test_signals_of_a_terminal_do_not_end_a_worker() -> None:
    async with pool(1) as running:
        (victim,) = pids(running)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(victim, number)
        await converged(running.listeners[0])
        assert pids(running) == [victim]
        assert whole(running, 1)


@pytest.mark.parametrize("hurry", [False, True])
async def test_an_orphan_answers_through_the_lameduck_and_exits_0(hurry: bool) -> None:
    ours, theirs = socket.socketpair()
    config = settings(LOOPBACK)
    with udp_client(HOME.host) as probe:
        endpoint = Endpoint(HOME.host, probe.getsockname()[1])
    config = listening_on(config, endpoint, lameduck=30.0 if hurry else 1.0)
    lost = asyncio.Event()
    said: list[Any] = []
    with theirs, memory() as tally:
        given = theirs.fileno(), tally
        process = await asyncio.create_subprocess_exec(*argv(*given), pass_fds=given)
    link = Link(said.append, lost.set)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    link.send(Configure(1, WorkerSettings.of(config)))
    await eventually(lambda: any(type(one).__name__ == "Listening" for one in said))
    link.close()
    await lost.wait()
    orphaned = time.monotonic()
    assert (await ask(endpoint, query(".", 2)))[3] & 15 == 0
    if hurry:
        process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert hurry or time.monotonic() - orphaned > 0.9


def listening_on(config: Settings, endpoint: Endpoint, lameduck: float) -> Settings:
    return replace(config, listen=replace(config.listen, addresses=(endpoint,), lameduck=lameduck))


def test_a_worker_imports_no_more_than_it_needs() -> None:
    script = "import canal_dns.server.workers, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    for heavy in (
        "prometheus_client", "yaml", "kubernetes_asyncio", "aiohttp", "dnslib", "uvloop",
        "canal_dns.mesh", "canal_dns.kube", "canal_dns.admin",
    ):  # fmt: skip
        assert heavy not in loaded
