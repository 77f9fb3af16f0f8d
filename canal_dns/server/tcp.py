"""TCP listeners, and the limits that all connections of a process share.

Rules of this file:
- connections are accepted here, not by the loop: what is over a limit is closed before anything is built for it;
- connections do not get the last descriptors; without any nothing is accepted for a moment: neither asyncio nor uvloop is
  left to spin on a ready socket;
- a client is its address (IPv4-mapped ones normalised), or its prefix where one may be without end (Gate.group); those of
  `access.peers` have no limit of their own;
- what all connections together hold in memory is bounded: when it is too much, those that hold more than their share end.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import resource
import socket
import time
from collections import Counter

from canal_dns.dns.access import Verdict
from canal_dns.server.connection import LINGER, Connection
from canal_dns.server.intake import Intake
from canal_dns.server.sockets import BACKLOG
from canal_dns.server.wheel import Wheel
from canal_dns.settings import Network, TcpSettings

READ = 64 << 10
"""Octets of one read: what a connection can put into memory at once."""
MEMORY = 32 << 20
"""Octets that all connections may hold: what was read and waits for its turn, and replies that their clients do not take."""
ACCEPTS = 64
"""Connections taken per readiness event, so that packets are not kept waiting by them."""
ACCEPT_PAUSE = 0.25
"""Seconds without accepting after the kernel had no descriptor left; closing time-outs free some meanwhile."""
RESERVED = 320
"""Descriptors that no client's connection gets, of so few that they run out half of them: the sockets towards the upstreams
(UdpChannels.POOL) and the API server, the admin endpoints and files take theirs from the same table."""
CROWDED = 0.9
"""Share of the connections above which idle ones are closed early (dnsdist's overload threshold)."""
CROWDED_IDLE = 0.1
"""What is left of the idle time-out then."""


class Connections:
    """Every connection of a process: how many there may be, and their one timer."""

    def __init__(self, intake: Intake, settings: TcpSettings, peers: tuple[Network, ...]) -> None:
        self.intake = intake
        self.settings = settings
        self.buffer = memoryview(bytearray(READ))
        self.loop = asyncio.get_running_loop()
        self._peers = peers
        self._open: set[Connection] = set()
        self._changed = asyncio.Event()
        self._per_client: Counter[str | bytes] = Counter()
        self._held = 0
        self._wheel = Wheel(_shortest(settings))
        self._closed = intake.counters["canal_dns_tcp_closed_total"]
        self._gauge = intake.counters["canal_dns_tcp_connections"]
        self._gauge[()] = 0

    def __len__(self) -> int:
        return len(self._open)

    def reconfigure(self, settings: TcpSettings, peers: tuple[Network, ...]) -> None:
        """Take over other limits; open connections go on under them."""
        self.settings, self._peers = settings, peers
        self._wheel.reconfigure(_shortest(settings))

    def admit(self, address: tuple[str, int]) -> Connection | None:
        """A connection for this client, or None where one more is too many, or where the client may not ask at all.

        REFUSED would take a connection to say, and with that the place of a client that may (dnsdist closes at once, too).
        """
        host = _client(address[0])
        if self.intake.gate.verdict(host, stream=True, now=time.monotonic()) is Verdict.REFUSE:
            self.count_closed("refused")
            return None
        if len(self._open) >= self.settings.connections:
            self.count_closed("connections")
            return None
        group = self.intake.gate.group(host)
        if self._per_client[group] >= self.settings.connections_per_client and not self._is_peer(host):
            self.count_closed("client-connections")
            return None
        connection = Connection(self, host, address[1], group)
        self._open.add(connection)
        self._per_client[group] += 1
        self._gauge[()] = len(self._open)
        self._wheel.add(connection)
        return connection

    def closed(self, connection: Connection) -> None:
        """The end of a connection that was admitted."""
        if connection in self._open:
            self._open.discard(connection)
            self._wheel.discard(connection)
            self._per_client[connection.group] -= 1
            if not self._per_client[connection.group]:
                del self._per_client[connection.group]
            self.hold(connection, 0)
            self._gauge[()] = len(self._open)
            self._changed.set()

    def idle(self) -> float:
        """The idle time-out in seconds: short while there are almost too many connections."""
        crowded = len(self._open) >= CROWDED * self.settings.connections
        return self.settings.idle * CROWDED_IDLE if crowded else self.settings.idle

    def hold(self, connection: Connection, octets: int) -> bool:
        """Take note of what a connection holds in memory now. False: it is to end, since all hold too much, and it more than
        its share."""
        self._held += octets - connection.held
        connection.held = octets
        return self._held <= MEMORY or octets * len(self._open) <= MEMORY

    def count_closed(self, reason: str) -> None:
        self._closed[(reason,)] += 1

    def finish(self) -> None:
        """Let every connection answer what it has read, and close it."""
        for connection in list(self._open):
            connection.rest()

    async def wait_closed(self) -> None:
        """Wait until there is no connection."""
        while self._open:
            self._changed.clear()
            await self._changed.wait()

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in list(self._open):
            connection.abort()

    def _is_peer(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._peers)


class TcpListener:
    """One listening socket."""

    def __init__(self, sock: socket.socket, connections: Connections) -> None:
        self._sock = sock
        self._connections = connections
        self._errors = connections.intake.counters["canal_dns_tcp_accept_errors_total"]
        self._loop = asyncio.get_running_loop()
        self._started = False
        self._paused: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._started = True
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def close(self) -> None:
        """Accept what waits, since the kernel would reset it, and then no more. Connections that are open stay open."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        if self._sock.fileno() >= 0:
            if self._started:
                self._loop.remove_reader(self._sock.fileno())
                self._accept(BACKLOG + 1)
            self._sock.close()

    async def taken_over(self) -> None:
        """Wait until every connection that was accepted is one of the loop's."""
        if self._handshakes:
            await asyncio.wait(self._handshakes)

    def _on_readable(self) -> None:
        if not self._accept(ACCEPTS):
            self._pause()

    def _accept(self, most: int) -> bool:
        """Take so many connections at most; False where the kernel cannot give one that waits."""
        for _ in range(most):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                self._errors[(errno.errorcode.get(error.errno or 0, "other"),)] += 1
                if error.errno == errno.ECONNABORTED:
                    continue
                return False
            if sock.fileno() >= _for_clients():
                # The kernel gives the lowest number that is free: all below are in use.
                self._connections.count_closed("descriptors")
                sock.close()
                continue
            connection = self._connections.admit(address[:2])
            if connection is None:
                sock.close()
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._take_over(sock, connection))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
        return True

    async def _take_over(self, sock: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError:
            sock.close()
            self._connections.closed(connection)

    def _pause(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._paused = self._loop.call_later(ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self.start()


def _for_clients() -> int:
    """Descriptors that may be in use with one more connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - min(RESERVED, soft // 2)


def _client(host: str) -> str:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return host if mapped is None else str(mapped)


def _shortest(settings: TcpSettings) -> float:
    return min(settings.first_byte, settings.message, settings.write, settings.idle * CROWDED_IDLE, LINGER)
