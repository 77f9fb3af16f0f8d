"""A server that leads back: what a CoreDNS with a stub block is to canal-dns, should its block take what canal-dns asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

from canal_dns.dns import names
from canal_dns.settings import Endpoint
from tests.server.scripted import message
from tests.server.serving import udp_client

NXDOMAIN = 3


class Stub:
    """A server that sends what it is asked on, to its `targets` in turn, and answers NXDOMAIN where `mended` says so.

    `source`: the address from which it asks on; `passes`: what it makes of a query.
    """

    def __init__(self) -> None:
        self.targets: list[Endpoint] = []
        self.mended: Callable[[str], bool] = lambda name: False
        self.reply: Callable[[bytes], bytes] = lambda packet: message(packet, rcode=NXDOMAIN)
        self.passes: Callable[[bytes], bytes] = lambda packet: packet
        self.source = "127.0.0.1"
        self.asked: list[str] = []
        self.packets: Counter[str] = Counter()
        """Received and sent, by name."""
        self._sock = udp_client()
        self.endpoint = Endpoint("127.0.0.1", self._sock.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def probes(self) -> list[str]:
        """The zones that were probed."""
        return [name.partition(".")[2] for name in self.asked if name.startswith("canal-dns-loop-")]

    def let_go(self) -> None:
        """Wait no longer for anybody it asked."""
        for sock in [*self._open]:
            self._drop(sock)

    def close(self) -> None:
        self.let_go()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(*self._sock.recvfrom(4096))

    def _take(self, packet: bytes, peer: tuple[str, int]) -> None:
        name = names.to_text(packet[12 : packet.index(0, 12) + 1]).rstrip(".")
        self.asked.append(name)
        self.packets[name] += 2
        if not name or self.mended(name) or not self.targets:
            self._sock.sendto(self.reply(packet), peer)
            return
        target = self.targets[len(self.asked) % len(self.targets)]
        sock = udp_client(self.source)
        sock.connect((target.host, target.port))
        self._open.add(sock)
        self._loop.add_reader(sock.fileno(), self._answered, sock, peer, name)
        sock.send(self.passes(packet))

    def _answered(self, sock: socket.socket, peer: tuple[str, int], name: str) -> None:
        with contextlib.suppress(OSError):
            self._sock.sendto(sock.recv(4096), peer)
            self.packets[name] += 2
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock.fileno())
        self._open.discard(sock)
        sock.close()
