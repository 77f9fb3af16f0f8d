"""Requests that prove what is claimed: the pods that answer them, the client that sends them, Envoy's log of them.

Rules of this file:
- a pod says in every reply for which Service it stands, and speaks TLS to those who do;
- each request has a connection of its own, to an address that is given: what DNS says is asked for elsewhere;
- where Envoy sent a request is read from its access log, so that a request which finds no pod proves something too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.processes import until
from tests.e2e.programmed import DESTINATION, Request, Served, Way, authority


class Pods:
    """Servers on pod addresses that say in every reply for which Service they stand; a TLS client gets TLS."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._servers: list[socketserver.ThreadingTCPServer] = []

    def serve(self, service: str, address: str, ports: Iterable[int]) -> None:
        context = self._context

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(60)
                with (
                    contextlib.suppress(OSError, ValueError),
                    _accepted(self.request, context) as connection,
                    connection.makefile("rb") as lines,
                ):
                    while head := _head(lines):
                        lines.read(int(head.get("content-length", "0")))
                        reply = f"HTTP/1.1 200 OK\r\nx-service: {service}\r\ncontent-length: 0\r\n\r\n"
                        connection.sendall(reply.encode())

        for port in ports:
            server = _Server((address, port), Handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 1}, daemon=True).start()
            self._servers.append(server)

    def end(self) -> None:
        ends = [threading.Thread(target=server.shutdown) for server in self._servers]
        for one in ends:
            one.start()
        for one, server in zip(ends, self._servers, strict=True):
            one.join()
            server.server_close()


def _accepted(connection: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """As the client wants it."""
    tls = connection.recv(1, socket.MSG_PEEK) == b"\x16"
    return context.wrap_socket(connection, server_side=True) if tls else connection


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = allow_reuse_port = daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go when they like."""


def _head(lines: Any) -> dict[str, str]:
    """The first line as "", and the headers; empty at the end of the connection."""
    first = lines.readline().decode("latin-1").strip()
    head = {"": first} if first else {}
    while first and (line := lines.readline().decode("latin-1").strip()):
        key, _, value = line.partition(":")
        head[key.lower()] = value.strip()
    return head


@dataclass(frozen=True, slots=True)
class Answered:
    """`status` 0: no HTTP answer."""

    status: int
    service: str = ""
    """Whose pod answered, by full name; "": none did."""
    problem: str = ""


def ask(address: str, port: int, name: str, request: Request, *, tls: bool = False, ident: str = "-") -> Answered:
    """One request with a connection of its own, as `curl --resolve` does it."""
    query = "&".join(f"{key}={value}" for key, value in request.query)
    lines = [
        f"{request.method} {request.path}{f'?{query}' if query else ''} HTTP/1.1",
        f"Host: {authority(name, port, tls=tls)}",
        f"X-ID: {ident}",
        "Content-Length: 0",
        "Connection: close",
        *(f"{key}: {value}" for key, value in request.headers),
    ]
    try:
        with socket.create_connection((address, port), timeout=5) as plain, _secured(plain, name if tls else "") as connection:
            connection.sendall("\r\n".join((*lines, "", "")).encode())
            reply = http.client.HTTPResponse(connection, method=request.method)
            with contextlib.closing(reply):
                reply.begin()
                return Answered(reply.status, reply.headers.get("x-service", ""))
    except (OSError, http.client.HTTPException) as problem:
        return Answered(0, problem=repr(problem))


def _secured(connection: socket.socket, name: str) -> socket.socket:
    if not name:
        return connection
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname=name)


class AccessLog:
    """What Envoy says of each request, by its X-ID."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._lines: dict[str, tuple[str, str, str]] = {}

    def of(self, ident: str) -> tuple[str, str, str]:
        """Route, cluster, and flags ("-": nothing special). Raises AssertionError."""
        return until(lambda: self._read().get(ident), 10, f"Envoy's access log knows {ident}", pause=0.01)

    def _read(self) -> dict[str, tuple[str, str, str]]:
        if self._path.exists():
            with self._path.open("rb") as log:
                log.seek(self._at)
                data = log.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                ident, *rest = line.split("|", 1)
                if rest and rest[0].count("|") >= 3:
                    before, _, flags = rest[0].rpartition("|")
                    route, _, others = before.partition("|")
                    # Envoy gives a cluster's statistical name, which istiod ends with a semicolon
                    self._lines[ident] = (route, others.rpartition("|")[0].removesuffix(";"), flags)
        return self._lines


@dataclass(slots=True)
class Prover:
    """Sends what is claimed."""

    log: AccessLog
    asked: int = 0
    unreachable: int = 0
    """Requests that came to the right cluster, which has no endpoint (a subset without pods), or to an injected fault."""
    _prefix: str = field(default_factory=lambda: f"{os.getpid()}-{time.time():.0f}")

    def served(self, address: str, name: str, way: Way) -> str:
        """What is wrong with a way; "" if the right backend answers."""
        self.asked += 1
        ident = f"{self._prefix}-{self.asked}"
        reply = ask(address, way.port, name, way.request, tls=way.tls, ident=ident)
        if way.http:
            route, cluster, flags = self.log.of(ident)
            if route != way.route or cluster not in (*way.clusters, "-"):
                return f"{way}: took route {route} to {cluster}, flags {flags}"
            if flags != "-":
                self.unreachable += 1
                return ""
        elif not reply.service:
            self.unreachable += 1
            return ""
        return "" if reply.service in way.hosts else f"{way}: {reply}"

    def not_served(self, address: str, name: str, port: int, *, tls: bool) -> str:
        self.asked += 1
        reply = ask(address, port, name, Request("/zz"), tls=tls, ident=f"{self._prefix}-{self.asked}")
        return f"port {port}: {reply}" if reply.service == name else ""


def best_ways(served: Served) -> Iterator[Way]:
    """One per port: to the Service itself where there is such a way, and alone if possible."""
    for port in served.ports:
        yield min(
            (way for way in served.ways if way.port == port),
            key=lambda way: (DESTINATION not in way.claims, len(way.clusters), way.tls),
        )
