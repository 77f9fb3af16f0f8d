"""The cache in a process: hits on both transports, what a changed binding takes out, who is never told from it, and what
happens when it is about to forget, or has nobody left to ask."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

import pytest

from canal_dns.dns import names
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.table import Addresses
from canal_dns.settings import CacheSettings, LogSettings
from tests.server.scripted import Ask, Scripted, eventually, record, silent, true
from tests.server.serving import BOUND, ask, connected, is_vip, query, rcode, receive, serving, udp_client

ON = CacheSettings()
NAME = "a.up.test"
NEW = names.from_text("new.shop.svc.cluster.local")
NEW_VIP = bytes([10, 96, 0, 201])
DO = bytes.fromhex("00 0029 04d0 0000 8000 0000")


def brief(one: Ask) -> None:
    one.reply(record(ttl=1))


def alias(one: Ask) -> None:
    """A CNAME to NEW, and its true address."""
    at = 12 + len(one.question) + 12
    cname = b"\xc0\x0c\0\x05\0\1\0\0\1\x2c" + len(NEW).to_bytes(2) + NEW
    one.reply(cname, record(owner=(0xC000 | at).to_bytes(2)))


async def test_the_second_is_a_hit_on_whatever_transport():
    async with serving(cache=ON) as running, connected(running.endpoint) as client:
        replies = [await ask(running.endpoint, query(NAME)) for _ in range(3)]
        replies += [await client.ask(query(NAME.upper())) for _ in range(2)]
        assert {reply[-4:] for reply in replies} == {bytes([192, 0, 2, 1])}
        assert [reply[12:].startswith(names.from_text(NAME)) for reply in replies] == [True] * 3 + [False] * 2
        assert len(running.upstream.asks) == 1
        # A reply leaves a moment before it is counted.
        await eventually(lambda: running.counted("canal_dns_answers_total", "cache") == 4)
        assert running.counted("canal_dns_answers_total", "upstream") == 1
        assert running.counted("canal_dns_cache_entries", "success") == 1


async def test_bound_names_come_from_the_table_and_other_clients_questions_from_upstream():
    async with serving(cache=ON) as running:
        assert is_vip(await ask(running.endpoint, query()))
        for packet in (
            query(NAME),
            query(NAME, 28),
            query(NAME, flags=0x0110),
            query(NAME)[:11] + b"\1" + query(NAME)[12:] + DO,
        ):
            await ask(running.endpoint, packet)
        assert len(running.upstream.asks) == 4


async def test_what_two_kinds_of_clients_wait_for_is_kept_for_both():
    held: list[Ask] = []
    async with serving(held.append, cache=ON) as running:
        plain, signed = query(NAME), query(NAME)[:11] + b"\1" + query(NAME)[12:] + DO
        waiting = [asyncio.create_task(ask(running.endpoint, packet)) for packet in (plain, signed)]
        await eventually(lambda: held and running.counted("canal_dns_forward_coalesced_total") == 1)
        held[0].reply()
        await asyncio.gather(*waiting)
        for packet in (plain, signed):
            await ask(running.endpoint, packet)
        assert len(held) == 1


async def test_a_binding_that_changes_is_seen_at_once():
    async with serving(alias, cache=ON) as running:
        service = running.service
        assert (await ask(running.endpoint, query(NAME)))[-4:] == bytes([192, 0, 2, 1])
        service.publish({NEW: Addresses((NEW_VIP,), (), 5)}, 2, 2, full=False)
        assert (await ask(running.endpoint, query(NAME)))[-4:] == NEW_VIP
        service.publish({NEW: Addresses((bytes([10, 96, 0, 202]),), (), 5)}, 3, 3, full=False)
        assert (await ask(running.endpoint, query(NAME)))[-4:] == bytes([10, 96, 0, 202])
        service.publish({NEW: None}, 4, 4, full=False)
        assert (await ask(running.endpoint, query(NAME)))[-4:] == bytes([192, 0, 2, 1])
        assert len(running.upstream.asks) == 4
        service.publish({names.from_text("other.shop.svc.cluster.local"): Addresses((NEW_VIP,), (), 5)}, 5, 5, full=False)
        await ask(running.endpoint, query(NAME))
        assert len(running.upstream.asks) == 4, "what has nothing to do with the change stays"


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_another_table_takes_everything_out(in_pieces):
    async with serving(cache=ON) as running:
        await ask(running.endpoint, query(NAME))
        if in_pieces:
            await running.service.replace(BOUND, 2, 2)
        else:
            running.service.publish(BOUND, 2, 2, full=True)
        await ask(running.endpoint, query(NAME))
        assert len(running.upstream.asks) == 2


async def test_gateway_pods_have_nothing_to_do_with_it():
    async with serving(cache=ON) as running:
        running.service.exempt(frozenset({"127.0.0.2"}))

        async def pod(packet):
            with udp_client("127.0.0.2") as sock:
                sock.sendto(packet, (running.endpoint.host, running.endpoint.port))
                return (await receive(sock))[0]

        for _ in range(2):
            assert (await pod(query()))[-4:] == bytes([192, 0, 2, 1])
            await pod(query(NAME))
        assert len(running.upstream.asks) == 4
        await ask(running.endpoint, query(NAME))
        await ask(running.endpoint, query(NAME))
        assert len(running.upstream.asks) == 5
        await pod(query(NAME))
        assert len(running.upstream.asks) == 6
        assert is_vip(await ask(running.endpoint, query()))


async def test_its_size_is_changed_while_it_answers():
    async with serving(cache=ON) as running:

        async def configured(size):
            running.settings = dataclasses.replace(running.settings, cache=CacheSettings(size))
            await running.service.reconfigure(running.settings)

        async def asked(*numbers):
            before = len(running.upstream.asks)
            for number in numbers:
                await ask(running.endpoint, query(f"n{number}.up.test"))
            return len(running.upstream.asks) - before

        assert await asked(1, 1) == 1
        await configured(0)
        assert await asked(1, 1) == 2
        assert running.counted("canal_dns_cache_entries", "success") == 0
        await configured(2)
        assert await asked(1, 2, 3, 4, 5, 5) == 5
        assert running.counted("canal_dns_cache_entries", "success") == 2
        assert running.counted("canal_dns_cache_evictions_total") == 3
        await configured(3)
        assert await asked(5, 6, 7, 8) == 4
        assert running.counted("canal_dns_cache_evictions_total") == 4


async def test_what_other_upstreams_said_is_forgotten_with_them():
    def wrong(one: Ask) -> None:
        one.reply(record("192.0.2.9"))

    async with serving(wrong, cache=ON) as running, Scripted(true) as right:
        assert (await ask(running.endpoint, query(NAME)))[-1] == 9
        await running.service.reconfigure(dataclasses.replace(running.settings, log=LogSettings(queries=True)))
        assert (await ask(running.endpoint, query(NAME)))[-1] == 9
        assert len(running.upstream.asks) == 1
        forward = dataclasses.replace(running.settings.forward, upstreams=(right.endpoint,))
        await running.service.reconfigure(dataclasses.replace(running.settings, forward=forward))
        assert (await ask(running.endpoint, query(NAME)))[-1] == 1


async def test_what_they_say_too_late_is_not_kept():
    held: list[Ask] = []
    async with serving(held.append, cache=ON) as running, Scripted(true) as right:
        waiting = asyncio.create_task(ask(running.endpoint, query(NAME)))
        await eventually(lambda: held)
        forward = dataclasses.replace(running.settings.forward, upstreams=(right.endpoint,))
        await running.service.reconfigure(dataclasses.replace(running.settings, forward=forward))
        held[0].reply(record("192.0.2.9"))
        assert (await waiting)[-1] == 9
        assert (await ask(running.endpoint, query(NAME)))[-1] == 1


async def test_what_is_asked_for_all_the_time_is_fetched_before_it_expires():
    async with serving(brief, cache=ON) as running:
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            assert rcode(await ask(running.endpoint, query(NAME))) == 0
        fetched = running.counted("canal_dns_cache_prefetch_total")
        assert fetched >= 1
        assert len(running.upstream.asks) >= 1 + fetched
        assert len(running.upstream.asks) <= 6, "once for each time"
        assert all(one.do for one in running.upstream.asks), "it is marked as ours, as every other"


@pytest.mark.parametrize("stale", [0.0, 3600.0])
async def test_when_nobody_is_left_to_ask(stale):
    dead = asyncio.Event()

    def script(one: Ask) -> None:
        (silent if dead.is_set() else brief)(one)

    async with serving(script, cache=CacheSettings(serve_stale=stale), budget=0.3) as running:
        upstream = str(running.upstream.endpoint)
        await ask(running.endpoint, query(NAME))
        dead.set()
        running.upstream.probes_answered = False
        began = time.monotonic()
        while running.counted("canal_dns_forward_upstream_up", upstream) or time.monotonic() - began < 1.1:
            assert time.monotonic() - began < 10
            await ask(running.endpoint, query("unknown.up.test"))
        reply = await ask(running.endpoint, query(NAME.upper()))
        if stale:
            assert (rcode(reply), reply[-10:-6], reply[-4:]) == (0, b"\0\0\0\x1e", bytes([192, 0, 2, 1]))
            assert running.counted("canal_dns_cache_served_stale_total") == 1
            assert rcode(await ask(running.endpoint, query("unknown.up.test"))) == 2
        else:
            assert rcode(reply) == 2
            assert running.counted("canal_dns_cache_served_stale_total") == 0


async def test_what_cannot_be_kept_is_answered_all_the_same(monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(AnswerCache, "put", broken)
    async with serving(true, cache=ON) as running:
        with caplog.at_level(logging.ERROR):
            assert rcode(await ask(running.endpoint, query(NAME))) == 0
            await eventually(lambda: "could not be kept" in caplog.text)
    caplog.clear()


async def test_a_hit_is_logged_as_one(caplog):
    async with serving(cache=ON, log=LogSettings(queries=True)) as running:
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                await ask(running.endpoint, query(NAME))
            lines = [entry.message for entry in caplog.records if NAME in entry.message]
    assert ["from cache" in line for line in lines] == [False, True], lines
