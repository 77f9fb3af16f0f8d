"""The admin endpoints over HTTP: /health, /ready, /metrics, /bindings, and an index at /.

Rules of this file:
- GET and HEAD with fixed answers: nothing of a request is ever sent back, nothing can be changed from here;
- it reads the callables it is given and knows nothing of what is behind them;
- everything is bounded: connections, the size of a request, the time to read it and to write the answer. Whoever does not
  finish a request makes room for the next, so that slow scrapers do not lock out the kubelet's probes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from canal_dns.errors import ListenError
from canal_dns.metrics import BUCKETS, METRICS, Counters, Kind
from canal_dns.settings import Endpoint

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEAD = 8192
"""Octets of a request line and its headers."""
TIMEOUT = 5.0
"""Seconds to send a request, and again to take the answer."""
LARGE = 1 << 20
LARGE_ANSWERS = 2
"""Answers of more octets than LARGE that may be on their way at once: `/bindings` of a large cluster has many MiB."""
METRICS_TIMEOUT = 2.0
"""Seconds that worker processes have to tell their counters."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
"""The classic text format: every name here is within its letters, and every Prometheus reads it."""

INDEX = b"canal-dns\n\n/health    is the process alive\n/ready     may it get queries\n/metrics   for Prometheus\n"
INDEX += b"/bindings  which names answer with which VIP, which do not, and why\n"

_STATUS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What is behind the paths."""

    ready: Callable[[], Sequence[str]]
    """Why the process is not ready, one line per reason; empty: it is."""
    metrics: Callable[[], Awaitable[Counters]]
    """The counters of all processes."""
    bindings: Callable[[], bytes | Awaitable[bytes]]
    """JSON."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = TEXT


class Admin:
    """The HTTP listener. `address` may have port 0; the real one stands in `address` after `start`."""

    def __init__(self, address: Endpoint, endpoints: Endpoints) -> None:
        self.address = address
        self._endpoints = endpoints
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._unfinished: dict[asyncio.StreamWriter, None] = {}
        self._one_at_a_time = asyncio.Lock()
        self._large = 0
        """Large answers that are on their way."""

    async def start(self) -> None:
        """Listen. Raises ListenError."""
        host, port = self.address.host, self.address.port
        family = socket.AF_INET6 if self.address.is_ipv6 else socket.AF_INET
        dual = self.address.is_ipv6 and self.address.is_wildcard and socket.has_dualstack_ipv6()
        try:
            listener = socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=dual)
        except OSError as problem:
            raise ListenError(str(self.address), "HTTP", os.strerror(problem.errno or 0)) from None
        listener.setblocking(False)
        self.address = Endpoint(host, listener.getsockname()[1])
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=MAX_HEAD)

    async def close(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            oldest = next(iter(self._unfinished), writer)
            self._unfinished.pop(oldest, None)
            self._connections.discard(oldest)
            oldest.transport.abort()
            if oldest is writer:
                return
        self._connections.add(writer)
        self._unfinished[writer] = None
        try:
            async with asyncio.timeout(TIMEOUT):
                head_only, answer = await self._answer(reader)
            self._unfinished.pop(writer, None)
            writer.transport.set_write_buffer_limits(0)
            writer.write(_head(answer))
            await self._deliver(writer, b"" if head_only else answer.body)
        except (TimeoutError, OSError, EOFError):
            # A client that is slow or gone.
            pass
        finally:
            self._unfinished.pop(writer, None)
            self._connections.discard(writer)
            writer.transport.abort()

    async def _deliver(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        """Raises TimeoutError, OSError."""
        large = len(body) > LARGE
        self._large += large
        try:
            writer.write(body)
            async with asyncio.timeout(TIMEOUT):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            self._large -= large

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[bool, _Answer]:
        """The answer, and whether only its head is wanted. Raises EOFError when the client goes before it has asked."""
        try:
            request = _request(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            request = 431
        if isinstance(request, int):
            return False, _refusal(request)
        method, path = request
        try:
            return method == b"HEAD", await self._content(path)
        except Exception:
            log.exception("an admin endpoint failed")
            return method == b"HEAD", _refusal(500)

    async def _content(self, path: bytes) -> _Answer:
        match path:
            case b"/health":
                return _Answer(200, b"OK")
            case b"/ready":
                reasons = self._endpoints.ready()
                return _Answer(503, "".join(f"{reason}\n" for reason in reasons).encode()) if reasons else _Answer(200, b"OK")
            case b"/metrics":
                return await self._metrics()
            case b"/bindings":
                async with self._one_at_a_time:
                    if self._large >= LARGE_ANSWERS:
                        return _Answer(503, b"others are being given as much: ask again\n")
                    content = self._endpoints.bindings()
                    return _Answer(200, await content if inspect.isawaitable(content) else content, JSON)
            case b"/":
                return _Answer(200, INDEX)
        return _refusal(404)

    async def _metrics(self) -> _Answer:
        async with self._one_at_a_time:
            try:
                counters = await asyncio.wait_for(self._endpoints.metrics(), METRICS_TIMEOUT)
            except TimeoutError:
                return _Answer(503, b"the worker processes did not tell their counters in time\n")
            return _Answer(200, exposition(counters), PROMETHEUS)


def _request(head: bytes) -> tuple[bytes, bytes] | int:
    """Method and path without its query; the status that refuses anything but a plain GET or HEAD (RFC 9112 section 3)."""
    line, *fields = head[:-4].split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not words[1].startswith(b"/"):
        return 400
    if words[0] not in (b"GET", b"HEAD"):
        return 405
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"transfer-encoding" or (name.lower() == b"content-length" and value.strip() != b"0"):
            return 413
    return words[0], words[1].partition(b"?")[0]


def _refusal(status: int) -> _Answer:
    return _Answer(status, f"{_STATUS[status]}\n".encode())


def _head(answer: _Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {_STATUS[answer.status]}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *(["Allow: GET, HEAD"] if answer.status == 405 else []),
        "Connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def exposition(counters: Counters) -> bytes:
    """The counters in Prometheus' text format 0.0.4; every declared metric has its HELP and TYPE, with samples or without."""
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(_Families(counters))
    return prometheus_client.generate_latest(registry)


class _Families(Collector):
    """The declared metrics with the values of one moment, as prometheus_client wants them."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                yield self._histogram(metric.name, metric.help, metric.labels)
                continue
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in sorted(self._counters[metric.name].items()):
                family.add_metric(labels, value)
            yield family

    def _histogram(self, name: str, text: str, label_names: Sequence[str]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=label_names)
        bounds = [*(repr(bound) for bound in BUCKETS), "+Inf"]
        for labels, histogram in sorted(self._counters.histograms[name].items(), key=lambda item: item[0]):
            family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
        return family
