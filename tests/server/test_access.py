"""Nobody is answered whom the gate turns away: on no path, by no filling, whoever asked the same before.

Every test runs twice: with the extensions and with Python alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
import time

import pytest

from canal_dns.server import _batch_py, batch, connection, udp
from canal_dns.server import forwarder as forwarder_module
from canal_dns.settings import AccessSettings, CacheSettings, RateLimitSettings
from tests.server.scripted import Ask, eventually, record, true
from tests.server.serving import WEB, Running, connected, is_vip, query, rcode, receive, serving, udp_client

FREE, OTHER = "127.0.0.1", "127.0.0.2"
PATHS = {"table": WEB, "cache": "known.up.test", "upstream": "a1.up.test"}
"""Where an answer comes from, and a name that is answered from there."""
REFUSED, NOERROR = 5, 0


@pytest.fixture(params=["native", "python"], autouse=True)
def filling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and batch.IMPLEMENTATION != "native":
        pytest.skip("the extension is not built")
    if request.param == "python":
        monkeypatch.setattr(forwarder_module, "QUICK", None)
        monkeypatch.setattr(udp, "drain", _batch_py.drain)
        monkeypatch.setattr(connection, "answer_stream", _batch_py.answer_stream)
    return str(request.param)


path = pytest.mark.parametrize("path", PATHS)


def networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def only_free() -> AccessSettings:
    return AccessSettings(allow=networks(f"{FREE}/32"))


def limited(slip: int, per_second: int = 1) -> AccessSettings:
    return AccessSettings(rate_limit=RateLimitSettings(per_second, slip, networks(f"{FREE}/32")))


async def exchange(running: Running, name: str, host: str, ident: int = 7) -> bytes:
    with udp_client(host) as sock:
        sock.sendto(query(name, ident=ident), (running.endpoint.host, running.endpoint.port))
        return (await receive(sock))[0]


async def until_known(running: Running, host: str) -> None:
    """Ask for all of them, twice: what can be remembered of client and answers is."""
    for _ in range(2):
        for name in PATHS.values():
            assert rcode(await exchange(running, name, host)) == NOERROR


def briefly(asked: Ask) -> None:
    asked.reply(record(ttl=300 if asked.name.startswith("known") else 0))


def answers(wire: bytes) -> int:
    return int.from_bytes(wire[6:8])


@path
async def test_whom_the_acl_refuses_gets_nothing_but_that(path: str) -> None:
    async with serving(briefly, access=only_free(), cache=CacheSettings()) as running:
        await until_known(running, FREE)
        asked = len(running.upstream.asks)
        for ident in range(5):
            reply = await exchange(running, PATHS[path], OTHER, ident)
            assert (reply[:2], rcode(reply), answers(reply)) == (bytes([0, ident]), REFUSED, 0)
        async with connected(running.endpoint, OTHER) as client:
            client.write(query(PATHS[path]))
            assert await client.closed()
        assert len(running.upstream.asks) == asked
        assert rcode(await exchange(running, PATHS[path], FREE)) == NOERROR


async def test_whom_the_acl_refuses_waits_for_no_question_of_another() -> None:
    held: list[Ask] = []
    async with serving(held.append, access=only_free()) as running:
        waiting = asyncio.ensure_future(exchange(running, PATHS["upstream"], FREE))
        await eventually(lambda: bool(held))
        assert rcode(await exchange(running, PATHS["upstream"], OTHER)) == REFUSED
        held[0].reply()
        assert answers(await waiting) == 1
        assert len(held) == 1


@path
async def test_whom_a_reload_refuses_is_refused_from_then_on(path: str) -> None:
    async with serving(briefly, cache=CacheSettings()) as running:
        await until_known(running, OTHER)
        async with connected(running.endpoint, OTHER) as client:
            assert answers(await client.ask(query(PATHS[path]))) == 1
            await running.service.reconfigure(dataclasses.replace(running.settings, access=only_free()))
            asked = len(running.upstream.asks)
            for _ in range(3):
                assert rcode(await exchange(running, PATHS[path], OTHER)) == REFUSED
                assert rcode(await client.ask(query(PATHS[path]))) == REFUSED
            assert len(running.upstream.asks) == asked


@path
@pytest.mark.parametrize("slip", [0, 1])
async def test_who_is_above_its_limit_gets_no_answer_over_udp_and_all_over_tcp(path: str, slip: int) -> None:
    async with serving(briefly, access=limited(slip, per_second=6), cache=CacheSettings()) as running:
        await until_known(running, FREE)
        await until_known(running, OTHER)
        began = time.monotonic()
        with udp_client(OTHER) as sock:
            for ident in range(50):
                sock.sendto(query(PATHS[path], ident=ident), (running.endpoint.host, running.endpoint.port))
            assert rcode(await exchange(running, PATHS[path], FREE)) == NOERROR
            counted = "canal_dns_truncated_total" if slip else "canal_dns_dropped_total"
            most = 6 * (time.monotonic() - began) + 1
            await eventually(lambda: running.counted(counted, "rate" if slip else "rate-limit") >= 50 - most)
            replies = _all_there(sock)
        whole = [reply for reply in replies if not reply[2] & 2]
        assert len(whole) <= 6 * (time.monotonic() - began) + 1
        assert all(answers(reply) == 0 for reply in replies if reply[2] & 2)
        assert len(replies) == (50 if slip else len(whole))
        async with connected(running.endpoint, OTHER) as client:
            for _ in range(10):
                assert answers(await client.ask(query(PATHS[path]))) == 1


def _all_there(sock: socket.socket) -> list[bytes]:
    replies = []
    while True:
        try:
            replies.append(sock.recv(4096))
        except BlockingIOError:
            return replies


async def test_a_limit_that_begins_while_it_runs_holds_for_those_who_had_none() -> None:
    async with serving(true) as running:
        assert is_vip(await exchange(running, WEB, OTHER))
        await running.service.reconfigure(dataclasses.replace(running.settings, access=limited(1)))
        replies = [await exchange(running, WEB, OTHER) for _ in range(5)]
        assert is_vip(replies[0]) and sum(is_vip(reply) for reply in replies) < 5
        assert is_vip(await exchange(running, WEB, FREE))


@pytest.mark.parametrize("host", [FREE, OTHER])
async def test_who_may_be_somebody_else_gets_no_long_answer_over_udp(host: str) -> None:
    """From the cache and from upstream; the table: tests/dns/test_responder."""

    def long(asked: Ask) -> None:
        records = [record(f"192.0.2.{last}", ttl=300 if asked.name.startswith("known") else 0) for last in range(20)]
        asked.reply(*records)

    async with serving(long, access=limited(1, per_second=1000), cache=CacheSettings()) as running:
        for name in (PATHS["cache"], PATHS["cache"], PATHS["upstream"]):
            reply = await exchange(running, name, host)
            asked = query(name)
            if host == FREE:
                assert answers(reply) == 20
            else:
                assert reply[2] & 2 and len(reply) == len(asked)
            async with connected(running.endpoint, host) as client:
                assert answers(await client.ask(asked)) == 20
        assert running.counted("canal_dns_truncated_total", "size") == (0 if host == FREE else 3)
