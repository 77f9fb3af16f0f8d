"""Control process and worker: what one says, the other hears."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import fields, replace
from typing import Any

import pytest

from canal_dns.dns.table import Addresses
from canal_dns.metrics import Counters
from canal_dns.server import child
from canal_dns.server import link as link_module
from canal_dns.server.link import (
    Ask,
    Configure,
    Exempt,
    Link,
    Listening,
    Publish,
    Refused,
    Report,
    Stop,
    WorkerSettings,
    pack,
)
from canal_dns.server.tally import Tally
from canal_dns.settings import (
    AccessSettings,
    BindingSettings,
    Endpoint,
    ForwardSettings,
    HealthSettings,
    ListenSettings,
    LogFormat,
    LogSettings,
    RateLimitSettings,
    Sentinel,
    Settings,
    SourceSettings,
    TcpSettings,
    ZoneSettings,
)
from tests.server.scripted import eventually

SETTINGS = Settings(
    source=SourceSettings("/manifests"),
    listen=ListenSettings((Endpoint("0.0.0.0", 53), Endpoint("::", 53)), 3, 7.5, TcpSettings(idle=3.0)),
    zone=ZoneSettings("example.org", 7),
    forward=ForwardSettings((Endpoint("10.96.0.10", 53),), Sentinel.NONE, 4.5, 1, 2, 3.0),
    access=AccessSettings(
        (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        (ipaddress.ip_network("10.1.2.3/32"),),
        17,
        RateLimitSettings(100, 2, (ipaddress.ip_network("10.9.0.0/16"),)),
    ),
    log=LogSettings("debug", LogFormat.JSON, True),
)


def counters() -> Counters:
    made = Counters()
    made["canal_dns_requests_total"][("udp", "A")] = 7
    made.histograms["canal_dns_request_duration_seconds"][("table",)].observe(0.001, 7)
    return made


MESSAGES = [
    Configure(1, WorkerSettings.of(SETTINGS)),
    Publish({b"\1a\0": Addresses((b"\1\2\3\4",), (bytes(16),), 5), b"\1b\0": None}, 3, 4, True),
    Publish({}, 4, 5, False, 12.25),
    Exempt(frozenset()),
    Exempt(frozenset({"10.244.1.7", "fd00::7"})),
    Ask(5),
    Stop(),
    Listening(1),
    Refused(1, "0.0.0.0:53", "TCP", "Address already in use"),
    Report(5, 3, counters().to_plain()),
    Report(0, 3, None),
]


class End:
    """One end of a link, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.lost = 0
        self.writable = 0
        self.link = Link(self.heard.append, self._on_lost, self._on_writable)

    def _on_lost(self) -> None:
        self.lost += 1

    def _on_writable(self) -> None:
        self.writable += 1

    async def attach(self, sock: socket.socket) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self.link, sock=sock)


async def pair() -> tuple[End, End]:
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await end.attach(sock)
    return ends


async def test_every_message_arrives_as_it_was() -> None:
    one, other = await pair()
    for message in MESSAGES:
        one.link.send(message)
    await eventually(lambda: len(other.heard) == len(MESSAGES))
    assert other.heard == MESSAGES
    one.link.close()
    await eventually(lambda: one.lost == other.lost == 1)
    one.link.send(Stop())


async def test_who_has_enough_is_found_slow_and_loses_nothing() -> None:
    one, other = await pair()
    other.link.hold(True)
    other.link.hold(True)
    big = Publish({bytes([4, *number.to_bytes(4), 0]): None for number in range(1000)}, 3, 4, True)
    count = 0
    while not one.link.blocked and count < 10_000:
        one.link.send(big)
        count += 1
    assert one.link.blocked
    assert not other.heard
    other.link.hold(False)
    await eventually(lambda: len(other.heard) == count)
    assert (one.link.blocked, one.writable) == (False, 1)
    one.link.close()
    await eventually(lambda: one.lost == other.lost == 1)
    other.link.hold(True)


def test_a_worker_reads_no_more_than_it_can_take_in(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(Link, "hold", lambda link, now: held.append(now))
    worker = child._Worker(Tally(), lambda settings: None, lambda: 0)
    for _ in range(child.INBOX):
        worker._on_message(Exempt(frozenset()))
    assert held == [False] * (child.INBOX - 1) + [True]


def test_a_worker_has_the_settings_that_packets_need() -> None:
    received = WorkerSettings.of(SETTINGS).settings()
    # Everything else is at its default in a worker.
    expected = replace(SETTINGS, source=SourceSettings(), health=HealthSettings(), binding=BindingSettings(), warnings=())
    assert received == expected


@pytest.mark.parametrize(
    "given",
    [SETTINGS.access, SETTINGS.access.rate_limit, SETTINGS.log, SETTINGS.forward, SETTINGS.zone],
    ids=lambda one: type(one).__name__,
)
def test_no_setting_above_is_at_its_default(given: Any) -> None:
    """Else one that does not travel would go unnoticed."""
    assert [one.name for one in fields(given) if getattr(given, one.name) == getattr(type(given)(), one.name)] == []


def test_counters_survive_the_way() -> None:
    assert Counters.from_plain(counters().to_plain()).to_plain() == counters().to_plain()


async def test_pieces_of_any_size_are_put_together() -> None:
    end = End()
    ours, theirs = socket.socketpair()
    await end.attach(theirs)
    ours.setblocking(False)
    with ours:
        for octet in b"".join(map(pack, MESSAGES)):
            await asyncio.get_running_loop().sock_sendall(ours, bytes([octet]))
            await asyncio.sleep(0)
        await eventually(lambda: len(end.heard) == len(MESSAGES))
    assert end.heard == MESSAGES
    await eventually(lambda: end.lost == 1)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\2\x80\x80"], ids=["endless", "no message"])
async def test_what_is_no_message_ends_the_link(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    end = End()
    ours, theirs = socket.socketpair()
    await end.attach(theirs)
    with ours:
        ours.send(garbage)
        await eventually(lambda: end.lost == 1)
    assert end.heard == []


async def test_a_slow_end_is_told_of_and_memory_is_bounded() -> None:
    end = End()
    ours, theirs = socket.socketpair()
    await end.attach(theirs)
    with ours:
        sent = 0
        while not end.link.blocked:
            end.link.send(MESSAGES[1])
            sent += len(pack(MESSAGES[1]))
            assert sent < 4 * link_module.HIGH_WATER
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        got = 0
        while got < sent:
            got += len(await loop.sock_recv(ours, 1 << 20))
        await eventually(lambda: end.writable == 1)
        assert not end.link.blocked
        end.link.close()


def test_a_message_above_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_MESSAGE", 10)
    with pytest.raises(ValueError, match="at most 10 are allowed"):
        pack(MESSAGES[0])
