"""Forwarding in batches: with the extension and without it the same comes out, and its flights are in the one book.

Every test of a running server runs twice: as it is, and with Python alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.inflight import JOSTLE, Inflight
from canal_dns.dns.relay import relay
from canal_dns.dns.wire import Query, match_reply, parse_query
from canal_dns.server import forwarder as forwarder_module
from canal_dns.server.forwarding import QUICK
from canal_dns.settings import CacheSettings, Endpoint
from tests.dns.packets import BOUND, bound_table, opt, upstream_reply
from tests.server.scripted import TRUE, Ask, eventually, message, record, silent, true
from tests.server.serving import Running, ask, connected, receive, serving, udp_client

TABLE = bound_table()
NAME = "a1.up.test"
WEB_ = "web.shop.svc.cluster.local."

RECORDS = [
    ("a1.up.test.", 300, "A", "192.0.2.1"),
    ("a1.up.test.", 300, "A", "192.0.2.2"),
    ("A1.Up.test.", 300, "AAAA", "2001:db8::1"),
    ("a1.up.test.", 300, "CNAME", "b.up.test."),
    ("a1.up.test.", 300, "CNAME", WEB_),
    ("b.up.test.", 30, "A", "192.0.2.3"),
    (WEB_, 30, "A", "10.0.0.1"),
    (WEB_.upper(), 30, "AAAA", "fd00::1"),
    (WEB_, 30, "TXT", '"text"'),
    ("up.test.", 300, "NS", "ns.up.test."),
    ("up.test.", 30, "SOA", "ns.up.test. root.up.test. 1 2 3 4 30"),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("_x._tcp.up.test.", 30, "SRV", "0 100 80 www.up.test."),
    ("1.2.0.192.in-addr.arpa.", 30, "PTR", "www.up.test."),
    ("up.test.", 30, "TXT", '"text" "more"'),
    ("up.test.", 30, "TYPE65280", r"\# 6 c00cc00c00ff"),
    ("up.test.", 30, "HTTPS", "1 . ipv4hint=192.0.2.1"),
    ("up.test.", 30, "DNAME", "down.test."),
    ("up.test.", 30, "NAPTR", '1 2 "a" "b" "c" up.test.'),
    ("a1.up.test.", 30, "RRSIG", "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"),
    ("up.test.", 30, "NSEC", "z.up.test. A"),
]
SECTION = st.lists(st.sampled_from(RECORDS), unique=True, max_size=5)
LONG = [(f"{'x' * 60}.{'y' * 60}.up.test.", 30, "TXT", '"' + "z" * 250 + '"')]


def asking(
    name: str = NAME, qtype: int = 1, *, flags: int = 0x0100, own: bytes = b"", ident: int = 0x1A2B, qclass: int = 1
) -> bytes:
    head = struct.pack(">HHHHHH", ident, flags, 1, 0, 0, 1 if own else 0)
    return head + names.from_text(name) + struct.pack(">HH", qtype, qclass) + own


@st.composite
def questions(draw: st.DrawFn) -> bytes:
    return asking(
        draw(st.sampled_from([NAME, "A1.uP.TEST", "up.test", WEB_[:-1], "b.up.test"])),
        draw(st.sampled_from([1, 28, 5, 6, 12, 16, 33, 43, 46, 64, 65, 255])),
        flags=draw(st.sampled_from([0x0100, 0x0000, 0x0110, 0x0120, 0x0130, 0x0020])),
        own=draw(st.sampled_from([b"", opt(), opt(512), opt(100), opt(4096, flags=0x8000), opt(options=b"\0\n\0\4abcd")])),
    )


def nearly(data: st.DataObject) -> tuple[bytes, bytes]:
    """A query, and a reply to it, or nearly."""
    draw = data.draw
    packet = draw(questions())
    parsed = parse_query(packet, stream=False)
    asked = parsed if isinstance(parsed, Query) else parsed.query
    assert asked is not None
    reply = bytearray(
        upstream_reply(
            asked,
            draw(SECTION),
            draw(SECTION),
            draw(st.one_of(SECTION, st.just(LONG), st.just(LONG + RECORDS[:2]))),
            rcode=draw(st.sampled_from(["NOERROR", "NXDOMAIN", "NOERROR", "SERVFAIL", "YXDOMAIN"])),
            edns=draw(st.sampled_from([b"", opt(), opt(flags=0x8000), opt(rcode=1), opt(options=b"\0\n\0\4abcd")])),
        )
    )
    for flag in draw(st.sets(st.sampled_from([(2, 0x04), (2, 0x02), (3, 0x20), (3, 0x10), (3, 0x40)]), max_size=2)):
        reply[flag[0]] ^= flag[1]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        reply[draw(st.integers(0, len(reply) - 1))] = draw(st.sampled_from([0, 1, 0x0C, 0x3F, 0x40, 0xC0, 0xFF]))
    end = draw(st.sampled_from([None, None, None, -1, -5]))
    return packet, bytes(reply[:end]) + draw(st.sampled_from([b"", b"", b"", b"\0"]))


@pytest.mark.skipif(QUICK is None, reason="the extension is not built")
class TestRelayed:
    """What the extension makes of a reply is what `relay` makes of it, or is left to it."""

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_as_relay_or_not_at_all(self, data: st.DataObject) -> None:
        from canal_dns.server._forward_c import relayed

        packet, reply = nearly(data)
        wire = relayed(packet, reply, TABLE.names)
        if wire is not None:
            asked = parse_query(packet, stream=False)
            assert isinstance(asked, Query)
            assert match_reply(asked, int.from_bytes(reply[:2]), reply) is None
            expected = relay(asked, reply, TABLE)
            assert (wire, expected.rewritten) == (expected.wire, False)

    @pytest.mark.parametrize("own", [b"", opt(), opt(flags=0x8000)])
    @pytest.mark.parametrize("records", [RECORDS[:2], [RECORDS[3], RECORDS[5]], []])
    @pytest.mark.parametrize("rcode", ["NOERROR", "NXDOMAIN"])
    def test_what_is_usual_is_not_left(self, own: bytes, records: list[tuple[str, int, str, str]], rcode: str) -> None:
        from canal_dns.server._forward_c import relayed

        packet = asking(own=own)
        asked = parse_query(packet, stream=False)
        assert isinstance(asked, Query)
        for additional in ([], [("ns.up.test.", 9, "A", "192.0.2.9")]):
            reply = upstream_reply(asked, records, [RECORDS[10]], additional, rcode=rcode, edns=opt(flags=0x8000))
            assert relayed(packet, reply, TABLE.names) is not None

    @pytest.mark.parametrize("name", BOUND)
    def test_what_is_said_of_a_bound_name_is_left(self, name: str) -> None:
        from canal_dns.server._forward_c import relayed

        packet = asking()
        asked = parse_query(packet, stream=False)
        assert isinstance(asked, Query)
        for said in ((f"{name.upper()}.", 30, "A", "10.0.0.1"), (f"{NAME}.", 30, "CNAME", f"{name}.")):
            assert relayed(packet, upstream_reply(asked, [said]), TABLE.names) is None
            assert relayed(packet, upstream_reply(asked, [], [], [said]), TABLE.names) is None


@pytest.fixture(params=["native", "python"])
def filling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(forwarder_module, "QUICK", None)
    elif QUICK is None:
        pytest.skip("the extension is not built")
    return str(request.param)


class Book:
    """How many queries went into the book by Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.submitted = 0
        submit = Inflight.submit

        def counted(*arguments: object) -> object:
            self.submitted += 1
            return submit(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Inflight, "submit", counted)


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    return Book(monkeypatch)


@contextlib.asynccontextmanager
async def known(script=true, **different) -> AsyncIterator[Running]:  # type: ignore[no-untyped-def]
    """A server that has seen the client's address before, without a cache."""
    async with serving(script, cache=CacheSettings(size=0), **different) as running:
        await ask(running.endpoint, asking("web.shop.svc.cluster.local"))
        yield running
        inflight = running.service._forwarder._inflight
        await eventually(lambda: len(inflight) == 0)
        assert (inflight.waiting, inflight._clients) == (0, {})
        for channel in running.service._forwarder._udp.own.values():
            assert all(flight.probe for flight in channel.flights.values())
            assert channel.waiting == len(channel.flights)


async def test_a_query_and_its_reply(filling: str, book: Book) -> None:
    async with known() as running:
        reply = await ask(running.endpoint, asking(flags=0x0110, own=opt(flags=0x8000)))
        assert (reply[:2], reply[2:4], reply[-11:]) == (b"\x1a\x2b", b"\x81\x90", opt(flags=0x8000))
        assert reply[6:8] == b"\0\1"
        assert book.submitted == (0 if filling == "native" else 1)
        [asked] = running.upstream.udp
        assert asked.packet[2:12] == b"\x01\x10\0\1\0\0\0\0\0\1"
        assert asked.do
        to = str(running.upstream.endpoint)
        assert running.counted("canal_dns_forward_requests_total", to, "udp") == 1
        assert running.counted("canal_dns_forward_responses_total", to, "NOERROR") == 1
        assert running.counted("canal_dns_requests_total", "udp", "A") == 2
        assert running.counted("canal_dns_answers_total", "upstream") == 1
        assert running.counted("canal_dns_responses_total", "NOERROR") == 2
        histograms = running.service.own_counters().histograms
        assert sum(histograms["canal_dns_forward_request_duration_seconds"][(to,)].counts) == 1
        assert sum(histograms["canal_dns_request_duration_seconds"][("upstream",)].counts) == 1


async def test_ids_and_ports_are_new_for_each(filling: str) -> None:
    async with known() as running:
        for number in range(60):
            await ask(running.endpoint, asking(f"n{number}.up.test"))
        assert len({(asked.id, asked.port) for asked in running.upstream.udp}) == 60
        assert len({asked.port for asked in running.upstream.udp}) == 60
        assert len({asked.id for asked in running.upstream.udp}) > 55


@pytest.mark.parametrize("unusual", [b"\x81", b"\x28"], ids=["response", "update"])
async def test_what_is_unusual_is_decided_as_ever(filling: str, book: Book, unusual: bytes) -> None:
    async with known() as running:
        packet = asking()
        with udp_client() as sock:
            sock.sendto(packet[:2] + unusual + packet[3:], (running.endpoint.host, running.endpoint.port))
            sock.sendto(asking(), (running.endpoint.host, running.endpoint.port))
            while (await receive(sock))[0][6:8] != b"\0\1":
                pass
        assert len(running.upstream.asks) == 1


def nth(*scripts):  # type: ignore[no-untyped-def]
    """Another script for each time that the question comes over UDP; the last one for all that follow."""
    return lambda asked: scripts[min(asked.number, len(scripts) - 1)](asked)


async def test_the_second_try_of_a_flight_that_is_late(filling: str) -> None:
    async with known(nth(silent, true), budget=0.3) as running:
        assert (await ask(running.endpoint, asking()))[6:8] == b"\0\1"
        assert len(running.upstream.udp) == 2
        assert running.counted("canal_dns_forward_failures_total", str(running.upstream.endpoint), "timeout") == 1


async def test_silence_ends_in_servfail_for_all_who_wait(filling: str) -> None:
    async with known(silent, budget=0.3) as running:
        got = await asyncio.gather(*(ask(running.endpoint, asking(ident=number)) for number in range(3)))
        assert [(reply[:2], reply[3] & 15) for reply in got] == [(number.to_bytes(2), 2) for number in range(3)]


async def test_a_truncated_reply_is_completed_over_tcp(filling: str) -> None:
    def script(asked: Ask) -> None:
        asked.reply(tc=not asked.stream)

    async with known(script) as running:
        assert (await ask(running.endpoint, asking()))[2] & 2 == 0
        assert len(running.upstream.tcp) == 1


@pytest.mark.parametrize("rcode", [2, 5])
async def test_a_failure_is_relayed_when_nobody_knows_better(filling: str, rcode: int) -> None:
    async with known(lambda asked: asked.fail(rcode)) as running:
        assert (await ask(running.endpoint, asking()))[3] & 15 == rcode


async def test_forged_replies_are_not_accepted_and_lead_to_tcp(filling: str) -> None:
    forged = record("6.6.6.6")

    def script(asked: Ask) -> None:
        if asked.stream:
            asked.reply()
            return
        wrong = [
            {"ident": asked.id ^ 1},
            {"question": names.from_text("other.test") + b"\0\1\0\1"},
            {"question": names.from_text(NAME) + b"\0\x1c\0\1"},
            {"question": names.from_text(NAME) + b"\0\1\0\3"},
            {"qr": False},
            {"tail": b"\0"},
        ]
        for different in wrong:
            asked.write(message(asked.packet, forged, **different))
        asked.write(message(asked.packet, forged)[:-1])
        asked.write(b"")
        asked.from_elsewhere(message(asked.packet, forged))

    async with known(script) as running:
        reply = await ask(running.endpoint, asking())
        assert reply.endswith(bytes(map(int, TRUE.split("."))))
        assert len(running.upstream.tcp) == 1
        ignored = running.service.own_counters()["canal_dns_forward_ignored_replies_total"]
        assert set(ignored) >= {("id",), ("question",), ("not-a-reply",), ("malformed",), ("short",)}


async def test_a_second_reply_is_unexpected(filling: str) -> None:
    def twice(asked: Ask) -> None:
        asked.reply()
        asked.reply()

    async with known(twice) as running:
        await ask(running.endpoint, asking())
        await eventually(lambda: running.counted("canal_dns_forward_ignored_replies_total", "unexpected") == 1)


class TestOneOutstanding:
    """One upstream query for all who ask the same, whichever way they came."""

    async def answered(self, running: Running, packets: list[bytes], streams: list[bytes], unknown: list[bytes]) -> list[bytes]:
        held: list[Ask] = []
        running.upstream.script = held.append
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(connected(running.endpoint))
            waiting = []
            for packet in packets:
                waiting.append(asyncio.ensure_future(ask(running.endpoint, packet)))
                await eventually(lambda: running.service._forwarder._inflight.waiting >= len(waiting))
            client.write(*streams)
            await eventually(lambda: running.service._forwarder._inflight.waiting == len(packets) + len(streams))
            for packet in unknown:
                waiting.append(asyncio.ensure_future(ask(running.endpoint, packet)))
            await eventually(lambda: running.service._forwarder._inflight.waiting == len(packets) + len(streams) + len(unknown))
            [asked] = held
            asked.reply()
            return [*await asyncio.gather(*waiting), *[await client.read() for _ in streams]]

    async def test_datagrams_that_are_alike(self, filling: str, book: Book) -> None:
        async with known() as running:
            got = await self.answered(running, [asking(ident=1), asking("A1.UP.test", ident=2, own=opt())], [], [])
            assert [reply[:2] for reply in got] == [b"\0\1", b"\0\2"]
            assert [reply[10:12] for reply in got] == [b"\0\0", b"\0\1"]
            assert b"\2A1\2UP" in got[1]
            assert running.counted("canal_dns_forward_coalesced_total") == 1
            assert book.submitted == (0 if filling == "native" else 2)

    async def test_a_stream_joins_a_datagram(self, filling: str) -> None:
        async with known() as running:
            got = await self.answered(running, [asking(ident=1)], [asking(ident=2), asking(ident=3)], [asking(ident=4)])
            assert sorted(reply[:2] for reply in got) == [b"\0\1", b"\0\2", b"\0\3", b"\0\4"]
            assert all(reply[6:8] == b"\0\1" for reply in got)

    async def test_a_datagram_joins_a_stream(self, filling: str) -> None:
        async with known() as running:
            got = await self.answered(running, [], [asking(ident=2)], [asking(ident=4), asking(ident=5)])
            assert sorted(reply[:2] for reply in got) == [b"\0\2", b"\0\4", b"\0\5"]

    async def test_another_flag_is_another_question(self, filling: str) -> None:
        async with known() as running:
            await ask(running.endpoint, asking())
            await ask(running.endpoint, asking(flags=0x0110))
            await ask(running.endpoint, asking(flags=0))
            assert sorted(asked.packet[2:4] for asked in running.upstream.udp) == [b"\0\0", b"\1\0", b"\1\x10"]


async def test_limits_hold(filling: str) -> None:
    async with known(silent, budget=0.5, max_outstanding_per_client=2) as running:
        with udp_client() as sock:
            for number in range(4):
                sock.sendto(asking(f"n{number}.up.test", ident=number), (running.endpoint.host, running.endpoint.port))
            got = [(await receive(sock))[0] for _ in range(2)]
            assert all(reply[3] & 15 == 2 for reply in got)
            assert running.counted("canal_dns_forward_rejected_total", "client") == 2
            assert running.service._forwarder._inflight.waiting == 2
            for _ in range(2):
                await receive(sock)


async def test_when_too_many_wait_the_oldest_are_told_and_make_room(filling: str) -> None:
    def slow(asked: Ask) -> None:
        if asked.name.startswith("fast"):
            asked.reply()

    async with known(slow, max_outstanding=10) as running:
        with udp_client() as crowd, udp_client() as sock:
            for number in range(10):
                crowd.sendto(asking(f"n{number}.up.test", ident=number), (running.endpoint.host, running.endpoint.port))
            inflight = running.service._forwarder._inflight
            await eventually(lambda: inflight.waiting == 10)
            sock.sendto(asking("more.up.test"), (running.endpoint.host, running.endpoint.port))
            reply, _ = await receive(sock, 0.15)
            assert reply[3] & 15 == 2, "nobody has waited for long enough to be sent away"
            assert running.counted("canal_dns_forward_rejected_total", "outstanding") == 1
            await eventually(lambda: time.monotonic() - next(iter(inflight._fresh.values())).started > JOSTLE)
            for number in range(3):
                sock.sendto(asking(f"fast{number}.up.test", ident=number), (running.endpoint.host, running.endpoint.port))
            replies = [(await receive(sock))[0] for _ in range(3)]
            assert sorted(reply[:2] for reply in replies) == [b"\0\0", b"\0\1", b"\0\2"]
            assert all(reply[3] & 15 == 0 for reply in replies)
            displaced = running.counted("canal_dns_forward_rejected_total", "displaced")
            assert 1 <= displaced <= 3
            told = [(await receive(crowd, 0.2))[0] for _ in range(int(displaced))]
            assert [(reply[1], reply[3] & 15) for reply in told] == [(number, 2) for number in range(int(displaced))]


async def test_what_comes_too_late_is_not_sent(filling: str) -> None:
    async with known(lambda asked: asked.later(0.15, asked.reply), discard_age=0.1) as running:
        with udp_client() as sock:
            sock.sendto(asking(), (running.endpoint.host, running.endpoint.port))
            await eventually(lambda: running.counted("canal_dns_dropped_total", "late") == 1)


async def test_a_name_that_is_bound_meanwhile(filling: str) -> None:
    async with known(lambda asked: asked.later(0.1, asked.reply)) as running:
        name = "new.shop.svc.cluster.local"
        waiting = asyncio.ensure_future(ask(running.endpoint, asking(name)))
        await eventually(lambda: bool(running.upstream.udp))
        running.service.publish({names.from_text(name): BOUND["web.shop.svc.cluster.local"]}, 2, 2, full=False)
        assert (await waiting).endswith(bytes([10, 96, 0, 200]))


async def test_replies_are_kept_for_the_cache(filling: str) -> None:
    async with serving(cache=CacheSettings(size=100)) as running:
        for _ in range(3):
            assert (await ask(running.endpoint, asking()))[6:8] == b"\0\1"
        assert len(running.upstream.udp) == 1
        for number in range(3):
            await ask(running.endpoint, asking(f"n{number}.up.test"))
            await ask(running.endpoint, asking(f"n{number}.up.test"))
        assert len(running.upstream.udp) == 4


@pytest.mark.parametrize("listen", [Endpoint("0.0.0.0", 0), Endpoint("::1", 0), Endpoint("::", 0)], ids=str)
async def test_on_every_kind_of_socket(filling: str, book: Book, listen: Endpoint) -> None:
    async with serving(cache=CacheSettings(size=0), listen=(listen,)) as running:
        host = {"0.0.0.0": "127.0.0.3", "::": "::1"}.get(listen.host, listen.host)
        endpoint = Endpoint(host, running.endpoint.port)
        for number in range(3):
            with udp_client("::1" if endpoint.is_ipv6 else "127.0.0.1") as sock:
                sock.sendto(asking(f"n{number}.up.test"), (endpoint.host, endpoint.port))
                reply, peer = await receive(sock)
                assert reply[6:8] == b"\0\1"
                assert peer[:2] == (endpoint.host, endpoint.port)
        assert book.submitted == (1 if filling == "native" else 3)


async def test_an_upstream_that_is_not_there(filling: str) -> None:
    async with known() as running:
        await running.upstream.stop()
        got = await asyncio.gather(*(ask(running.endpoint, asking(f"n{number}.up.test", ident=number)) for number in range(5)))
        assert all(reply[3] & 15 == 2 for reply in got)


async def test_the_end_waits_for_what_is_on_its_way(filling: str) -> None:
    async with known(lambda asked: asked.later(0.1, asked.reply)) as running:
        waiting = asyncio.ensure_future(ask(running.endpoint, asking()))
        await eventually(lambda: bool(running.upstream.udp))
        await running.service._forwarder.close()
        assert (await waiting)[6:8] == b"\0\1"
