"""Gateway pods get the real answer, whatever is bound: on every transport, by every packet loop, in every process.

The gateway pod is 127.0.0.2, the workload 127.0.0.1; the true address of every name is 192.0.2.1 (`scripted`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from types import ModuleType

import pytest
import pytest_asyncio

from canal_dns.dns import names
from canal_dns.server import _batch_mmsg, _batch_py, udp
from canal_dns.server.service import DataPlane
from canal_dns.server.workers import WorkerPool
from canal_dns.settings import AccessSettings, Endpoint, LogSettings, Settings
from tests.server.scripted import Ask, eventually, record
from tests.server.serving import (
    BOUND,
    WEB,
    connected,
    is_vip,
    query,
    receive,
    serving,
    settings,
    udp_client,
)
from tests.server.test_workers import NEW, NEW_VIP, converged, pids, pool, whole

WORKLOAD, POD = "127.0.0.1", "127.0.0.2"
EXEMPT = frozenset({POD, "10.244.1.7", "fd00::7"})
ALL = Endpoint("0.0.0.0", 0)


def is_true(reply: bytes) -> bool:
    return reply.endswith(socket.inet_aton("192.0.2.1"))


def reached_at(endpoint: Endpoint) -> Endpoint:
    return Endpoint(WORKLOAD, endpoint.port) if endpoint.host == ALL.host else endpoint


async def over_udp(endpoint: Endpoint, client: str, packet: bytes | None = None) -> bytes:
    with udp_client(client) as sock:
        sock.sendto(packet or query(), (reached_at(endpoint).host, endpoint.port))
        return (await receive(sock))[0]


async def over_tcp(endpoint: Endpoint, client: str, packet: bytes | None = None) -> bytes:
    async with connected(reached_at(endpoint), client) as connection:
        return await connection.ask(packet or query())


async def told_apart(endpoint: Endpoint, times: int = 3) -> None:
    """The workload gets the VIP and the pod the truth, in turns and together, whatever was remembered for the other."""
    for ask in (over_udp, over_tcp):
        for _ in range(times):
            assert is_vip(await ask(endpoint, WORKLOAD))
            assert is_true(await ask(endpoint, POD))
        replies = await asyncio.gather(*(ask(endpoint, client) for client in (WORKLOAD, POD) * times))
        assert [is_vip(reply) for reply in replies] == [True, False] * times
        assert [is_true(reply) for reply in replies] == [False, True] * times


@pytest.fixture(params=[_batch_py, _batch_mmsg], ids=["pure", "mmsg"])
def loop_of_packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(udp, "drain", request.param.drain)
    # For the processes that are started.
    monkeypatch.setenv("CANAL_DNS_NO_EXTENSIONS", "1" if request.param is _batch_py else "")
    module: ModuleType = request.param
    return module


@pytest_asyncio.fixture(params=[0, 2], ids=["one process", "two workers"])
async def plane(request: pytest.FixtureRequest, loop_of_packets: ModuleType) -> AsyncIterator[DataPlane]:
    if request.param:
        async with pool(request.param) as running:
            await converged(running.listeners[0])
            yield running
    else:
        async with serving() as alone:
            yield alone.service


async def settled(plane: DataPlane, *, exempt: bool = True) -> None:
    """Until every process has heard of it."""
    (endpoint,) = plane.listeners
    async with asyncio.timeout(5):
        while {is_true(await over_udp(endpoint, POD)) for _ in range(20)} != {exempt}:
            pass


async def test_they_get_the_real_answer_over_both_transports(plane: DataPlane) -> None:
    plane.exempt(EXEMPT)
    await settled(plane)
    await told_apart(plane.listeners[0])
    counted = await plane.counters()
    assert counted["canal_dns_exempt_requests_total"][()] >= 32
    assert counted["canal_dns_answers_total"][("table",)] >= 12


async def test_who_they_are_changes_with_the_next_packet(plane: DataPlane) -> None:
    (endpoint,) = plane.listeners
    for ask in (over_udp, over_tcp):
        assert is_vip(await ask(endpoint, POD))
    plane.exempt(EXEMPT)
    await settled(plane)
    plane.exempt(frozenset())
    await settled(plane, exempt=False)
    for ask in (over_udp, over_tcp):
        assert is_vip(await ask(endpoint, POD))


@pytest.mark.parametrize("listen", [ALL, Endpoint("127.0.0.1", 0)], ids=["wildcard", "one address"])
async def test_of_wildcard_sockets_too(loop_of_packets: ModuleType, listen: Endpoint) -> None:
    async with serving(listen=(listen,)) as running:
        running.service.exempt(EXEMPT)
        await told_apart(running.endpoint)
        assert running.counted("canal_dns_exempt_requests_total") == 12


async def test_addresses_of_bound_names_in_what_is_relayed_are_true_for_them() -> None:
    bound = names.from_text(WEB)

    def script(ask: Ask) -> None:
        alias = b"\xc0\x0c\0\5\0\1\0\0\0\x1e" + len(bound).to_bytes(2, "big") + bound
        ask.later(0.05, lambda: ask.reply(alias, record(owner=bound)))

    asked = query("alias.up.test")
    async with serving(script) as running:
        running.service.exempt(EXEMPT)
        for ask in (over_udp, over_tcp):
            replies = await asyncio.gather(*(ask(running.endpoint, client, asked) for client in (WORKLOAD, POD)))
            assert [is_true(reply) for reply in replies] == [False, True]
            assert [reply.endswith(BOUND[bound].v4[0]) for reply in replies] == [True, False]
        assert len(running.upstream.asks) == 2
        assert running.counted("canal_dns_exempt_requests_total") == 2


async def test_before_the_first_table_and_before_the_start() -> None:
    async with serving(bound=False) as running:
        running.service.exempt(EXEMPT)
        running.service.publish(BOUND, 1, 1, full=True)
        await told_apart(running.endpoint)
    async with serving() as upstream_of:
        another = type(upstream_of.service)(settings(upstream_of.upstream.endpoint))
        another.exempt(EXEMPT)
        another.publish(BOUND, 1, 1, full=True)
        await another.start()
        try:
            await told_apart(another.listeners[0])
        finally:
            await another.stop()


async def test_other_settings_do_not_change_it(plane: DataPlane) -> None:
    plane.exempt(EXEMPT)
    await settled(plane)
    old = plane._settings  # type: ignore[attr-defined]
    await plane.reconfigure(dataclasses.replace(old, access=AccessSettings(error_replies_per_second=7)))
    await told_apart(plane.listeners[0])


async def test_the_query_log_tells_why_a_bound_name_was_forwarded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="canal_dns.queries")
    async with serving(log=LogSettings(queries=True)) as running:
        running.service.exempt(EXEMPT)
        assert is_true(await over_udp(running.endpoint, POD))
        assert is_vip(await over_udp(running.endpoint, WORKLOAD))
    lines = [record.getMessage() for record in caplog.records if record.name == "canal_dns.queries"]
    assert lines[0].endswith(f"A {WEB}.: forwarded, exempt")
    assert lines[1].endswith(f"A {WEB}.: NOERROR from table")


async def test_a_peer_stands_for_others_and_gets_the_vip() -> None:
    access = dataclasses.replace(AccessSettings(), peers=(ipaddress.ip_network(POD),))
    async with serving(access=access) as running:
        running.service.exempt(EXEMPT)
        for ask in (over_udp, over_tcp):
            assert is_vip(await ask(running.endpoint, POD))


async def test_a_worker_that_comes_later_knows_them() -> None:
    async with pool(1) as running:
        running.exempt(EXEMPT)
        await settled(running)
        await running.reconfigure(with_workers(running, 2))
        await told_apart(running.listeners[0], 10)
        for victim in pids(running):
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda victim=victim: victim not in pids(running) and whole(running))  # type: ignore[misc]
        await told_apart(running.listeners[0], 10)


async def test_a_slow_worker_hears_of_the_last_ones_and_since_when_it_was_behind() -> None:
    many = {names.from_text(f"s{number}.shop.svc.cluster.local"): NEW[names.from_text(WEB)] for number in range(2000)}
    async with pool(1) as running:
        (slot,) = running._slots
        victim = pids(running)[0]
        os.kill(victim, signal.SIGSTOP)
        generation, begin = 1, time.monotonic()
        while not slot.stale:
            generation += 1
            running.publish(many, generation, generation, full=False)
        for since in (begin - 100.0, begin - 500.0, begin - 50.0, None):
            generation += 1
            running.publish(NEW, generation, generation, full=False, since=since)
        running.exempt(frozenset({"10.244.1.7"}))
        running.exempt(EXEMPT)
        os.kill(victim, signal.SIGCONT)
        await eventually(lambda: not slot.stale)
        await converged(running.listeners[0], NEW_VIP)
        await settled(running)
        histogram = (await running.counters()).histograms["canal_dns_event_to_answer_seconds"][()]
        assert sum(histogram.counts) == 1
        assert 500.0 <= histogram.total < 510.0
        assert slot.since is None


def with_workers(running: WorkerPool, count: int) -> Settings:
    config = running._settings
    return dataclasses.replace(config, listen=dataclasses.replace(config.listen, workers=count))
