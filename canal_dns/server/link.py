"""What control process and worker say to each other, and how it is framed on their socketpair.

Rules of this file:
- a message is four octets of length and a msgpack map with its kind; the structs below are all there are;
- both ends are this package in this version: a message that cannot be decoded is a bug, and the link is closed for it;
- `send` never waits: while `blocked` the caller leaves out what is superseded anyway, until it hears `on_writable`;
- settings travel cut to what a worker needs; networks as text, since msgspec knows no address types.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, cast

import msgspec

from canal_dns.dns.table import Addresses
from canal_dns.settings import (
    AccessSettings,
    CacheSettings,
    ForwardSettings,
    ListenSettings,
    LogSettings,
    RateLimitSettings,
    Settings,
    SourceSettings,
    ZoneSettings,
)

MAX_MESSAGE = 64 << 20
"""Octets of one message; a full table of 20,000 names has some 2 MiB."""
HIGH_WATER = 1 << 20
"""Octets waiting for a slow worker above which it gets no more deltas, but one full table once it reads again."""

_LENGTH = 4


class WorkerSettings(msgspec.Struct, frozen=True, array_like=True):
    """The part of Settings that packets need."""

    listen: ListenSettings
    zone: ZoneSettings
    forward: ForwardSettings
    log: LogSettings
    cache: CacheSettings
    allow: tuple[str, ...]
    peers: tuple[str, ...]
    error_replies_per_second: int
    per_second: int
    slip: int
    exempt: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> WorkerSettings:
        access, limit = settings.access, settings.access.rate_limit
        return cls(
            listen=settings.listen,
            zone=settings.zone,
            forward=settings.forward,
            log=settings.log,
            cache=settings.cache,
            allow=tuple(map(str, access.allow)),
            peers=tuple(map(str, access.peers)),
            error_replies_per_second=access.error_replies_per_second,
            per_second=limit.per_second,
            slip=limit.slip,
            exempt=tuple(map(str, limit.exempt)),
        )

    def settings(self) -> Settings:
        """The Settings again, with defaults for everything a worker has no use for."""
        return Settings(
            source=SourceSettings(),
            listen=self.listen,
            zone=self.zone,
            forward=self.forward,
            log=self.log,
            cache=self.cache,
            access=AccessSettings(
                allow=tuple(map(ipaddress.ip_network, self.allow)),
                peers=tuple(map(ipaddress.ip_network, self.peers)),
                error_replies_per_second=self.error_replies_per_second,
                rate_limit=RateLimitSettings(self.per_second, self.slip, tuple(map(ipaddress.ip_network, self.exempt))),
            ),
        )


class Configure(msgspec.Struct, frozen=True, tag=True):
    """Control to worker: run with these settings. Answered by Listening or Refused with the same token.

    `table`: a full table follows, and the first listeners are to wait for it.
    """

    token: int
    settings: WorkerSettings
    table: bool = False


class Publish(msgspec.Struct, frozen=True, tag=True):
    """Control to worker: a step of the answer table; `full`: a new table of just these names.

    `since`: as given to `DataPlane.publish`.
    """

    names: dict[bytes, Addresses | None]
    generation: int
    serial: int
    full: bool
    since: float | None = None


class Exempt(msgspec.Struct, frozen=True, tag=True):
    """Control to worker: for these clients, and no others, nothing is bound."""

    addresses: frozenset[str]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Control to worker: send a Report with this token."""

    token: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Control to worker: answer what was accepted, close everything and exit 0."""


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Worker to control: the settings are in force."""

    token: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Worker to control: a ListenError; the settings before stay in force."""

    token: int
    address: str
    transport: str
    problem: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """Worker to control: `Counters.to_plain()` of what is not in the tally; None: as before. Token 0: the heartbeat."""

    token: int
    generation: int
    rows: list[list[Any]] | None


Message = Configure | Publish | Exempt | Ask | Stop | Listening | Refused | Report

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    """The message with its length in front, ready for `Link.send_packed`."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} octets, at most {MAX_MESSAGE} are allowed")
    return len(body).to_bytes(_LENGTH, "big") + body


class Link(asyncio.Protocol):
    """One end of the socketpair. Callbacks: each message, the end of the link (once), room to write again."""

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_lost: Callable[[], None],
        on_writable: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._held = False
        self.blocked = False
        """True while the other end is slow: what would be superseded anyway is not to be sent."""

    def send(self, message: Message) -> None:
        self.send_packed(pack(message))

    def send_packed(self, packed: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed)

    def hold(self, held: bool) -> None:
        """True: read no more, so that the other end finds us slow; False: read on."""
        if held is not self._held and self._transport is not None and not self._transport.is_closing():
            self._held = held
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in everything but their class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(received[at : at + _LENGTH], "big")
            if end - at - _LENGTH > MAX_MESSAGE:
                raise ValueError("a message longer than any that is sent")
            if end > len(received):
                break
            message = _decoder.decode(memoryview(received)[at + _LENGTH : end])
            at = end
            self._on_message(message)
        del received[:at]

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.blocked = False
        self._on_lost()
