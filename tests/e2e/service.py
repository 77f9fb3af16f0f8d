"""A Service without a cluster: its ClusterIP at port 53, UDP and TCP, in front of replicas that come and go.

Rules of this file:
- a replica gets new flows while its /ready says 200, as EndpointSlices and kube-proxy have it: `delay` seconds late;
- a new flow goes to the replica that was given the fewest: with as few flows as CoreDNS has, chance might leave one out;
- a UDP flow stays with its replica as long as its client keeps the port, as conntrack has it; `pinned` seconds after the
  replica is out, kube-proxy has removed the entry, and the next packet goes to another one;
- a TCP connection stays where it is until one end closes it;
- replicas see the client's own address, as they do behind iptables.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass, field

from tests.e2e.processes import http

_POLL = 0.1
_GRACE = 1.0
"""Seconds for which a reply that is on its way still arrives after a flow has another replica."""


@dataclass(eq=False)
class _Endpoint:
    address: str
    admin: str
    seen: bool = False
    """What /ready said last."""
    ready: bool = False
    """What kube-proxy knows."""


@dataclass(eq=False)
class _Flow:
    endpoint: _Endpoint
    sock: socket.socket


@dataclass
class Service:
    """Runs in a thread of its own between `start` and `end`."""

    address: str
    delay: float = 0.5
    pinned: float = 1.5
    picked: dict[str, int] = field(default_factory=dict)
    """Replica -> flows and connections that it was given."""

    def __post_init__(self) -> None:
        self._endpoints: list[_Endpoint] = []
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._open: set[socket.socket] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stopped: asyncio.Event | None = None

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10), f"nobody listens on {self.address}"

    def end(self) -> None:
        if self._thread.is_alive() and self._stopped is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(10)

    def add(self, address: str, admin: str) -> None:
        """A replica; its readiness is asked for."""
        self._endpoints.append(_Endpoint(address, admin))

    def remove(self, address: str) -> None:
        """Its pod is gone for good."""
        self._endpoints = [one for one in self._endpoints if one.address != address]

    def serving(self) -> set[str]:
        """The replicas that get new flows now."""
        return {one.address for one in self._endpoints if one.ready}

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        listener = await asyncio.start_server(self._connected, self.address, 53)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as front:
            front.bind((self.address, 53))
            self._loop.add_reader(front, self._from_client, front)
            polling = asyncio.create_task(self._poll())
            self._started.set()
            await self._stopped.wait()
            polling.cancel()
            self._loop.remove_reader(front)
            for sock in list(self._open):
                self._close(sock)
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # -- who is ready ------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            for one in self._endpoints:
                now = (await asyncio.to_thread(http, f"http://{one.admin}/ready"))[0] == 200
                if now != one.seen:
                    one.seen = now
                    self._loop.call_later(self.delay, self._know, one, now)
            await asyncio.sleep(_POLL)

    def _know(self, endpoint: _Endpoint, ready: bool) -> None:
        endpoint.ready = ready
        if not ready:
            self._loop.call_later(self.pinned, self._release, endpoint)

    def _release(self, endpoint: _Endpoint) -> None:
        """Its flows go elsewhere, unless it is back."""
        if endpoint.ready:
            return
        for client, flow in list(self._flows.items()):
            if flow.endpoint is endpoint:
                del self._flows[client]
                self._loop.call_later(_GRACE, self._close, flow.sock)

    def _pick(self) -> _Endpoint | None:
        ready = [one for one in self._endpoints if one.ready]
        if not ready:
            return None
        chosen = min(ready, key=lambda one: self.picked.get(one.address, 0))
        self.picked[chosen.address] = self.picked.get(chosen.address, 0) + 1
        return chosen

    # -- UDP ---------------------------------------------------------------------------------------------------------

    def _from_client(self, front: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, client = front.recvfrom(65535)
                flow = self._flows.get(client) or self._new_flow(front, client)
                if flow is not None:
                    # ICMP about an earlier packet: a client of a real Service would see it, and this packet is lost too.
                    with contextlib.suppress(ConnectionRefusedError):
                        flow.sock.send(packet)

    def _new_flow(self, front: socket.socket, client: tuple[str, int]) -> _Flow | None:
        endpoint = self._pick()
        if endpoint is None:
            return None
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((client[0], 0))
        sock.connect((endpoint.address, 53))
        self._open.add(sock)
        self._loop.add_reader(sock, self._from_replica, front, sock, client)
        self._flows[client] = flow = _Flow(endpoint, sock)
        return flow

    @staticmethod
    def _from_replica(front: socket.socket, sock: socket.socket, client: tuple[str, int]) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                front.sendto(sock.recv(65535), client)

    def _close(self, sock: socket.socket) -> None:
        if sock in self._open:
            self._open.remove(sock)
            self._loop.remove_reader(sock)
            sock.close()

    # -- TCP ---------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoint = self._pick()
        if endpoint is None:
            writer.transport.abort()
            return
        try:
            source = writer.get_extra_info("peername")[0], 0
            behind = await asyncio.open_connection(endpoint.address, 53, local_addr=source)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, behind[1]), _pump(behind[0], writer))
        finally:
            for one in (writer, behind[1]):
                one.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, its end included: a connection is closed by its ends, in halves, and by nobody in between."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
