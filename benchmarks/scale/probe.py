"""The two ends of a measurement: a question over UDP, and a change at the API server whose reply is timed to the octet.

Rules of this file:
- one thread: the question follows the API server's reply on the same clock, time.perf_counter;
- the reply counts from its first octet; it is read and judged after the answer has changed;
- a question that is lost (0.5 s) is asked again, and stands in the figure.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from canal_dns.dns import names

LOST = 0.5
GIVEN_UP = 20.0
TIGHT, PAUSE = 0.02, 0.0002
"""After so many seconds of asking, a pause follows each question: API server and etcd need the core, too."""
IDLE = 20.0
"""Seconds after which a connection is made anew."""


class Asker:
    """Asks one server for A records."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(LOST)
        self._socket.connect((address, 53))
        self._id = 0

    def ask(self, question: bytes) -> tuple[int, bytes]:
        """(rcode, answer section and what follows). Raises OSError when nobody answers."""
        self._id = (self._id + 1) & 0xFFFF
        ident = self._id.to_bytes(2, "big")
        self._socket.send(ident + question)
        while True:
            reply = self._socket.recv(4096)
            if reply[:2] == ident:
                return reply[3] & 15, reply[2 + len(question) :]

    def until(self, question: bytes, right: Callable[[int, bytes], bool]) -> float:
        """Ask in a tight loop; when the first right answer was there. Raises BenchError."""
        began = time.perf_counter()
        while True:
            try:
                rcode, rest = self.ask(question)
            except OSError:
                rcode, rest = -1, b""
            now = time.perf_counter()
            if right(rcode, rest):
                return now
            if now - began > GIVEN_UP:
                raise BenchError(f"no right answer within {GIVEN_UP:g} s (rcode {rcode})")
            if now - began > TIGHT:
                time.sleep(PAUSE)

    def close(self) -> None:
        self._socket.close()


def question(name: str) -> bytes:
    """A query for A without its ID."""
    return struct.pack("!5H", 0x0100, 1, 0, 0, 0) + names.from_text(name) + struct.pack("!2H", 1, 1)


class Changer:
    """A connection to the API server, as the administrator."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._place = (host, port)
        self._context = context
        self._socket: ssl.SSLSocket | None = None
        self._used = 0.0

    def _connected(self) -> ssl.SSLSocket:
        """The server closes what is idle for long."""
        now = time.monotonic()
        if self._socket is None or now - self._used > IDLE:
            self.close()
            plain = socket.create_connection(self._place, timeout=30)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = self._context.wrap_socket(plain, server_hostname=self._place[0])
        self._used = now
        return self._socket

    def send(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[float, bytes]:
        """When the first octets of the reply arrived, and these, for `finish`."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._place[0]}\r\nAccept: application/json\r\n"
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = self._connected()
        connection.sendall(head.encode() + data)
        first = connection.recv(65536)
        return time.perf_counter(), first

    def finish(self, first: bytes) -> None:
        """Read the rest of the reply. Raises BenchError where the server refused."""
        reply = first
        while not _is_whole(reply):
            more = self._connected().recv(65536)
            if not more:
                raise BenchError(f"the API server ended a reply too soon: {reply[:300]!r}")
            reply += more
        if int(reply.split(b" ", 2)[1]) >= 300:
            raise BenchError(f"the API server refused a change: {reply[:600]!r}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_whole(reply: bytes) -> bool:
    """Is this a whole reply, with a length or in chunks?"""
    head, end, body = reply.partition(b"\r\n\r\n")
    if not end:
        return False
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


def administrator(folder: Path) -> ssl.SSLContext:
    """The test administrator's certificate, of the control plane in `folder`."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    return context


def percentile(figures: Iterable[float], share: float) -> float:
    """By nearest rank: with n = 200, p99 is the second largest but one."""
    ordered = sorted(figures)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
