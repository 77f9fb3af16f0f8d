"""The admin endpoints over real sockets: answers, limits, and clients that misbehave."""

import asyncio
import contextlib
import json
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from canal_dns import admin as module
from canal_dns.admin import Admin, Endpoints, exposition
from canal_dns.errors import ListenError
from canal_dns.metrics import METRICS, Counters, Kind
from canal_dns.settings import Endpoint


class Process:
    """What the endpoints read."""

    def __init__(self):
        self.reasons = []
        self.content = b'{"bound": []}'
        self.counters = Counters()
        self.hangs = False

    async def metrics(self):
        if self.hangs:
            await asyncio.Event().wait()
        return self.counters

    def bindings(self):
        return self.content


@contextlib.asynccontextmanager
async def running(process=None, host="127.0.0.1", **callables):
    process = process or Process()
    endpoints = {"ready": lambda: process.reasons, "metrics": process.metrics, "bindings": process.bindings, **callables}
    admin = Admin(Endpoint(host, 0), Endpoints(**endpoints))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def connect(admin):
    return await asyncio.open_connection(admin.address.host, admin.address.port)


async def raw(admin, request):
    """Everything the server sends for these octets, up to its close."""
    reader, writer = await connect(admin)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(admin, path, method="GET", headers=()):
    """(status, headers, body)."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return parse(await raw(admin, "\r\n".join(lines).encode()))


def parse(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    version, status = first.split(" ")[:2]
    assert version == "HTTP/1.1"
    return int(status), headers, body


# --- answers ----------------------------------------------------------------------------------------------------------------


async def test_health_is_ok_while_nothing_else_is():
    process = Process()
    process.reasons = ["starting"]
    process.hangs = True
    async with running(process) as admin:
        assert (await ask(admin, "/health"))[::2] == (200, b"OK")


async def test_ready_says_why_not():
    process = Process()
    async with running(process) as admin:
        assert (await ask(admin, "/ready"))[::2] == (200, b"OK")
        process.reasons = ["source: not read yet", "listeners: [::]:53"]
        assert (await ask(admin, "/ready"))[::2] == (503, b"source: not read yet\nlisteners: [::]:53\n")


async def test_bindings_are_the_callables_bytes():
    process = Process()
    process.content = json.dumps({"bound": ["x" * 3_000_000]}).encode()
    async with running(process) as admin:
        status, headers, body = await ask(admin, "/bindings")
    assert (status, headers["content-type"], body == process.content) == (200, "application/json", True)


async def test_bindings_may_be_awaited():
    async def bindings():
        return b"{}"

    async with running(bindings=bindings) as admin:
        assert (await ask(admin, "/bindings"))[::2] == (200, b"{}")


async def test_index_names_every_path():
    async with running() as admin:
        status, headers, body = await ask(admin, "/")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert all(path in body for path in (b"/health", b"/ready", b"/metrics", b"/bindings"))


async def test_every_answer_is_closed_unframed_and_not_cached():
    async with running() as admin:
        for path in ("/", "/health", "/ready", "/metrics", "/bindings", "/nothing"):
            _, headers, body = await ask(admin, path)
            assert headers["connection"] == "close"
            assert headers["cache-control"] == "no-store"
            assert int(headers["content-length"]) == len(body)
            assert "access-control-allow-origin" not in headers


async def test_head_has_the_head_of_get_and_no_body():
    async with running() as admin:
        status, headers, body = await ask(admin, "/health", "HEAD")
        assert (status, headers["content-length"], body) == (200, "2", b"")
        assert (await ask(admin, "/nothing", "HEAD"))[0] == 404


async def test_a_query_string_is_ignored():
    async with running() as admin:
        assert (await ask(admin, "/ready?verbose=1"))[0] == 200


async def test_ipv6():
    async with running(host="::1") as admin:
        assert (await ask(admin, "/health"))[0] == 200


async def test_the_ipv6_wildcard_serves_ipv4_too():
    async with running(host="::") as admin:
        for host in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(host, admin.address.port)
            writer.write(b"GET /health HTTP/1.1\r\n\r\n")
            assert (await reader.read()).endswith(b"OK")
            writer.close()


# --- metrics ----------------------------------------------------------------------------------------------------------------


def filled():
    counters = Counters()
    for metric in METRICS:
        labels = tuple("value" for _ in metric.labels)
        if metric.kind is Kind.HISTOGRAM:
            counters.histograms[metric.name][labels].observe(0.0003)
            counters.histograms[metric.name][labels].observe(99.0)
        else:
            counters[metric.name][labels] += 3
    return counters


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


async def test_metrics_are_read_by_a_strict_parser():
    process = Process()
    process.counters = filled()
    async with running(process) as admin:
        status, headers, body = await ask(admin, "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = families(body)
    for metric in METRICS:
        family = found.pop(metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name)
        assert family.type == metric.kind.value
        assert family.documentation == metric.help
        if metric.kind is not Kind.HISTOGRAM:
            (sample,) = family.samples
            assert (sample.name, sample.value) == (metric.name, 3)
            assert set(sample.labels) == set(metric.labels)
    assert found == {}


def test_every_metric_has_help_and_type_even_without_samples():
    found = families(exposition(Counters()))
    assert len(found) == len(METRICS)
    from_the_start = {
        metric.name.removesuffix("_total") for metric in METRICS if metric.kind is Kind.COUNTER and not metric.labels
    }
    assert {name.removesuffix("_total") for name, family in found.items() if family.samples} == from_the_start


def test_counters_do_not_get_total_twice():
    text = exposition(filled()).decode()
    assert "canal_dns_loops_total 3.0\n" in text
    assert "_total_total" not in text and "_created" not in text


def test_a_histogram_is_cumulative_and_whole():
    family = families(exposition(filled()))["canal_dns_request_duration_seconds"]
    samples = {(sample.name.removeprefix(family.name), sample.labels.get("le")): sample.value for sample in family.samples}
    assert samples["_bucket", "0.00025"] == 0
    assert samples["_bucket", "0.0005"] == 1
    assert samples["_bucket", "2.0"] == 1
    assert samples["_bucket", "+Inf"] == samples["_count", None] == 2
    assert samples["_sum", None] == pytest.approx(99.0003)


def test_label_values_cannot_break_the_text():
    counters = Counters()
    for value in ('x"} 1\n', "a\\b", "<script>", "\x1b[31m", "%s%n", "ü"):
        counters["canal_dns_requests_total"]["udp", value] += 1
    family = families(exposition(counters))["canal_dns_requests"]
    assert {sample.labels["type"] for sample in family.samples} == {'x"} 1\n', "a\\b", "<script>", "\x1b[31m", "%s%n", "ü"}


async def test_workers_that_do_not_tell_their_counters_cost_a_503(monkeypatch):
    monkeypatch.setattr(module, "METRICS_TIMEOUT", 0.05)
    process = Process()
    process.hangs = True
    async with running(process) as admin:
        assert (await ask(admin, "/metrics"))[0] == 503
        process.hangs = False
        assert (await ask(admin, "/metrics"))[0] == 200


async def test_an_endpoint_that_fails_costs_a_500_and_says_nothing_more(caplog):
    def bindings():
        raise RuntimeError("a secret")

    async with running(bindings=bindings) as admin:
        assert (await ask(admin, "/bindings"))[::2] == (500, b"Internal Server Error\n")
        assert (await ask(admin, "/health"))[0] == 200
    assert "a secret" in caplog.text


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /health/ HTTP/1.1\r\n\r\n", 404),
        (b"GET //health HTTP/1.1\r\n\r\n", 404),
        (b"GET /%68ealth HTTP/1.1\r\n\r\n", 404),
        (b"GET /../health HTTP/1.1\r\n\r\n", 404),
        (b"POST /health HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /bindings HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS /health HTTP/1.1\r\n\r\n", 405),
        (b"get /health HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/health HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"GET  /health HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET /health HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 413),
        (b"GET /health HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 8000 + b"\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 9000, 431),
    ],
)
async def test_status(request_, status):
    async with running() as admin:
        assert parse(await raw(admin, request_))[0] == status


async def test_405_names_what_is_allowed():
    async with running() as admin:
        assert (await ask(admin, "/", "PUT"))[1]["allow"] == "GET, HEAD"


async def test_nothing_of_a_request_comes_back():
    async with running() as admin:
        for request in (
            b"GET /CANARY HTTP/1.1\r\nX: CANARY\r\n\r\n",
            b"CANARY / HTTP/1.1\r\n\r\n",
            b"GET CANARY HTTP/1.1\r\n\r\n",
        ):
            assert b"CANARY" not in await raw(admin, request)


async def test_pipelined_requests_get_one_answer():
    async with running() as admin:
        answer = await raw(admin, b"GET /health HTTP/1.1\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 200") == 1


async def test_a_taken_port_is_a_listen_error():
    async with running() as admin:
        with pytest.raises(ListenError, match="already in use"):
            await Admin(admin.address, Endpoints(ready=list, metrics=Process().metrics, bindings=bytes)).start()


async def test_an_address_that_is_not_ours_is_a_listen_error():
    with pytest.raises(ListenError):
        await Admin(Endpoint("192.0.2.1", 0), Endpoints(ready=list, metrics=Process().metrics, bindings=bytes)).start()


async def test_close_without_start_and_twice():
    admin = Admin(Endpoint("127.0.0.1", 0), Endpoints(ready=list, metrics=Process().metrics, bindings=bytes))
    await admin.close()
    await admin.start()
    await admin.close()
    await admin.close()
    with pytest.raises(OSError):
        await connect(admin)


async def test_the_port_is_free_again_after_close():
    async with running() as first:
        await ask(first, "/health")
    second = Admin(first.address, Endpoints(ready=list, metrics=Process().metrics, bindings=bytes))
    await second.start()
    await second.close()


# --- clients that misbehave --------------------------------------------------------------------------------------------------


async def test_who_does_not_finish_a_request_is_closed(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    async with running() as admin:
        start = time.monotonic()
        assert await raw(admin, b"GET /health HTTP/1.1\r\n") == b""
        assert 0.05 < time.monotonic() - start < 5


async def test_a_request_octet_by_octet_does_not_last_longer(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    async with running() as admin:
        reader, writer = await connect(admin)
        start = time.monotonic()
        dripping = asyncio.create_task(_drip(writer))
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        dripping.cancel()
        assert time.monotonic() - start < 5
        writer.close()


async def _drip(writer):
    while not writer.transport.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.01)


async def test_who_does_not_read_the_answer_is_closed(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    process = Process()
    process.content = b"x" * 50_000_000
    async with running(process) as admin:
        _, writer = await connect(admin)
        writer.transport.pause_reading()
        writer.write(b"GET /bindings HTTP/1.1\r\n\r\n")
        await _until(lambda: admin._connections)
        await _until(lambda: not admin._connections)
        writer.transport.abort()


async def test_few_large_answers_are_in_memory_at_once():
    """The names of a large cluster are many MiB: whoever lets them lie does not get them sixteen times."""
    process = Process()
    process.content = b"x" * 50_000_000
    async with running(process) as admin:
        writers = []
        for _ in range(module.LARGE_ANSWERS):
            _, writer = await connect(admin)
            writer.transport.pause_reading()
            writer.write(b"GET /bindings HTTP/1.1\r\n\r\n")
            writers.append(writer)
        await _until(lambda: admin._large == module.LARGE_ANSWERS)
        assert (await ask(admin, "/bindings"))[0] == 503
        assert (await ask(admin, "/metrics"))[0] == 200
        writers[0].transport.abort()
        await _until(lambda: admin._large < module.LARGE_ANSWERS)
        assert (await ask(admin, "/bindings"))[0] == 200
        writers[1].transport.abort()
        await _until(lambda: admin._large == 0)


async def test_a_client_that_goes_away_is_no_error(caplog):
    async with running() as admin:
        for request in (b"", b"GET", b"GET /bindings HTTP/1.1\r\n\r\n"):
            client = socket.create_connection((admin.address.host, admin.address.port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(request)
            client.close()
        await _until(lambda: not admin._connections)
        assert (await ask(admin, "/health"))[0] == 200
    assert caplog.records == []


async def test_a_thousand_slow_scrapers_are_bounded_and_lock_nobody_out():
    async with running() as admin:
        slow = [socket.create_connection((admin.address.host, admin.address.port)) for _ in range(50)]
        beats = asyncio.create_task(_longest_gap())
        for wave in range(20):
            for client in slow:
                with contextlib.suppress(OSError):
                    client.sendall(b"GET /metrics HTTP/1.1\r\n")
                client.close()
            slow = [_nonblocking(admin) for _ in range(50)]
            await asyncio.sleep(0)
            if wave % 5 == 0:
                assert (await ask(admin, "/ready"))[0] == 200
                assert len(admin._connections) <= module.MAX_CONNECTIONS
        assert (await ask(admin, "/metrics"))[0] == 200
        beats.cancel()
        for client in slow:
            client.close()
    assert LONGEST[0] < 1.0


LONGEST = [0.0]


async def _longest_gap():
    """In seconds of our own CPU, so that a crowded machine is not taken for a loop that is held up."""
    last = time.process_time()
    while True:
        await asyncio.sleep(0.005)
        now = time.process_time()
        LONGEST[0], last = max(LONGEST[0], now - last), now


def _nonblocking(admin):
    client = socket.socket()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect((admin.address.host, admin.address.port))
    return client


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
