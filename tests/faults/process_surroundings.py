"""What stands around a process: who reads its log and its metrics, how much CPU it has, which addresses, and who is probed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from canal_dns.settings import Endpoint
from tests.faults.bench import Bench
from tests.faults.clients import Question, Stream
from tests.faults.floods import capacity, flood, forwarding
from tests.faults.process_configuration import addresses
from tests.faults.process_kernel import FILLINGS
from tests.faults.process_streams import slowly
from tests.faults.rows import NotRunError, Outcome, row
from tests.faults.server import BOUND_QUESTION, Server
from tests.server.scripted import Scripted, message, silent, true

_PIPE_SIZE = 1031
"""F_SETPIPE_SZ."""
HERE, HERE6 = "10.78.0.1", "fd00::78"


@row(
    "P13",
    "stdout blocks or disk full",
    "logging never blocks the loop: bounded queue (10 000), drop counter; p99 unchanged with the log reader stopped",
)
async def log_reader_stopped(bench: Bench) -> Outcome:
    # Buffered as a person would run it: a buffer has a lock, which a writer that is stuck keeps.
    server = await bench.server(workers=2, log={"queries": True}, watched=False, environment={"PYTHONUNBUFFERED": ""})
    fcntl.fcntl(server.popen.stderr, _PIPE_SIZE, 4096)
    seconds = 130.0 if bench.long else 2.0
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as read:
        await read.for_(2.0)
    server.reading.clear()
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as filling:
        await filling.for_(1.0)
    await bench.until(lambda: _all_stuck(server), 5.0, "a log that blocks")
    async with Stream(server.endpoint, [BOUND_QUESTION], 500) as unread:
        await unread.for_(seconds)
    dropped = server.counted("canal_dns_log_dropped_total")
    exported = "\ncanal_dns_log_dropped_total " in server.get("/metrics")[1]
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    status = await asyncio.to_thread(server.popen.wait, 20)
    took = time.monotonic() - began
    server.reading.set()
    p99, idle = unread.percentile(0.99), read.percentile(0.99)
    return Outcome(
        f"p99 {p99 * 1e3:.2f} ms with the reader stopped, {idle * 1e3:.2f} ms before; {unread.said()}; {dropped:.0f} lines "
        f"dropped and counted, the writers blocked; SIGTERM then: "
        f"exit {status} after {took:.1f} s",
        met=unread.right == unread.sent
        and filling.right == filling.sent
        and p99 <= max(2 * idle, 0.002)
        and exported
        and (dropped > 0 or not bench.long)
        and status == 0,
    )


def _all_stuck(server: Server) -> bool:
    """True while a thread of every worker waits for room in a pipe."""
    return all(any("pipe" in _text(task / "wchan") for task in Path(f"/proc/{pid}/task").iterdir()) for pid in server.workers)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@row(
    "P14",
    "metrics/health endpoint abused",
    "header <= 8 KiB, body 0, 5 s, <= 16 connections; DNS unaffected by 1 000 slow scrapers",
)
async def slow_scrapers(bench: Bench) -> Outcome:
    server = await bench.server(workers=1)
    seconds, rounds = (60.0, 1) if bench.long else (1.0, 3)
    idle, faulty, probes = [], [], []
    for _ in range(rounds):
        async with Stream(server.endpoint, [BOUND_QUESTION], 500) as alone:
            await alone.for_(min(seconds, 10.0))
        async with (
            slowly(server.admin, 1000, b"GET /metrics HTTP/1.1\r\nX"),
            Stream(server.endpoint, [BOUND_QUESTION], 500) as stream,
        ):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                status = await asyncio.to_thread(server.status, "/ready")
                probes.append(time.monotonic() - began if status == 200 else float("inf"))
                await stream.for_(0.2)
            held = sum(_peers(server.popen.pid, server.admin.port))
        idle.append(alone.percentile(0.99))
        faulty.append((stream.percentile(0.99), stream.sent - stream.right))
    p99, lost = min(one for one, _ in faulty), sum(one for _, one in faulty)
    refusals = [
        await asyncio.to_thread(_status, server.admin, head)
        for head in (
            b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        )
    ]
    return Outcome(
        f"DNS p99 {p99 * 1e3:.2f} ms among 1000 slow scrapers, idle {min(idle) * 1e3:.2f} ms, {lost} lost; {held} of them held "
        f"open; slowest of {len(probes)} /ready {max(probes) * 1e3:.0f} ms; 9 KiB of header, POST, a body: "
        f"{', '.join(map(str, refusals))}",
        met=p99 <= max(2 * min(idle), 0.002) and not lost and held <= 17 and max(probes) < 1.0 and refusals == [431, 405, 413],
    )


def _peers(pid: int, port: int) -> Iterator[int]:
    """One for each established connection at the port that the process has open."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
            yield f"socket:[{fields[9]}]" in inodes


def _status(endpoint: Endpoint, request: bytes) -> int:
    with socket.create_connection((endpoint.host, endpoint.port), 5) as sock:
        sock.sendall(request)
        return int(sock.recv(100).split()[1])


@row("P15", "CPU throttling (CFS quota)", "at 50 % quota: shed as P1, no health flap, no false 'upstream down'")
async def throttled(bench: Bench) -> Outcome:
    seconds = 30.0 if bench.long else 3.0
    upstream = await bench.upstream()
    server = await bench.server(upstream, workers=1, environment={"CANAL_DNS_NO_EXTENSIONS": "1"})
    workers = server.workers
    await forwarding(bench, server)
    others = [Question(f"other-{number}.example.com") for number in range(1000)]
    with _quota(server, 0.5) as throttled_for:
        most = await capacity(bench.folder, server.endpoint, 1.0)
        memory = server.memory()
        statuses: list[int] = []
        asking = asyncio.create_task(_ask_ready(server, statuses))
        async with Stream(server.endpoint, [BOUND_QUESTION], 200) as among, Stream(server.endpoint, others, 50):
            flooded = await flood(bench.folder, server.endpoint, seconds, rate=5 * most, patience=0.03, burst=32)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        growth, waited = server.memory() - memory, throttled_for()
    if waited < 0.1:
        raise NotRunError("nothing was throttled: this machine gave the server less than its quota")
    async with Stream(server.endpoint, [BOUND_QUESTION], 200) as after:
        await after.for_(1.0)
    down = [line for line in server.errors if "is down" in line]
    share, age = flooded.goodput / most, max(among.seconds, default=9.0)
    flaps = sum(status != 200 for status in statuses)
    return Outcome(
        f"throttled for {waited:.1f} s; capacity {most / 1e3:.0f} k/s, flooded with {flooded.rate / most:.1f} times that: "
        f"goodput {share:.0%}, oldest served {age * 1e3:.0f} ms, RSS {growth / 2**20:+.0f} MiB; {len(statuses)} times /ready, "
        f"{flaps} not 200; {len(down)} times an upstream was called down; {len(set(workers) - set(server.workers))} workers "
        f"replaced; afterwards {after.said()}",
        met=share >= 0.8
        and age <= 1.0
        and growth <= 64 << 20
        and not flaps
        and len(statuses) > 3
        and not down
        and workers == server.workers
        and after.right == after.sent,
    )


async def _ask_ready(server: Server, statuses: list[int]) -> None:
    while True:
        statuses.append(await asyncio.to_thread(server.status, "/ready"))
        await asyncio.sleep(0.2)


@contextlib.contextmanager
def _quota(server: Server, share: float) -> Iterator[Callable[[], float]]:
    """Give the server's processes a share of one CPU; what is given says how many seconds they were held back. Raises
    NotRunError where no group can be made."""
    group, parent = _group()
    period = 100_000
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{round(share * period)} {period}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(round(share * period)))
        for pid in server.pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield lambda: _throttled(group)
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def _group() -> tuple[Path, Path]:
    """A fresh group of the CPU controller, of either version, and where its processes go back to."""
    for parent in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = parent / f"canal-dns-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "cpu.cfs_quota_us").exists() or (group / "cpu.max").exists():
            return group, parent
        group.rmdir()
    raise NotRunError("no control group with a CPU quota can be made here")


def _throttled(group: Path) -> float:
    found = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(found.get("throttled_usec") or int(found.get("throttled_time", 0)) // 1000) / 1e6


@row(
    "P18",
    "multi-homed reply source address",
    "100 % with 2 addresses and a wildcard bind",
)
async def two_addresses(bench: Bench) -> Outcome:
    seconds = 30.0 if bench.long else 1.0
    upstream = await bench.upstream()
    measured, met = [], True
    with addresses(HERE, HERE6):
        for filling, environment in FILLINGS.items():
            server = await bench.server(
                upstream, workers=1, listen=["0.0.0.0:0", "[::]:0"], cache={"size": 100}, environment=environment
            )
            await forwarding(bench, server)
            ports = [int(found[1]) for line in server.lines if (found := re.match(r"listening on \S+:(\d+), ", line))]
            # Sockets of clients are connected: a reply from any other address is none.
            questions = [BOUND_QUESTION, Question("cached.example.com"), *_fresh(filling)]
            hosts = (("127.0.0.1", ports[0]), (HERE, ports[0]), ("::1", ports[1]), (HERE6, ports[1]))
            async with contextlib.AsyncExitStack() as undo:
                clients = [Stream(Endpoint(host, port), questions, 200, sockets=4) for host, port in hosts]
                streams = [await undo.enter_async_context(client) for client in clients]
                await streams[0].for_(seconds)
            sent, right = sum(one.sent for one in streams), sum(one.right for one in streams)
            measured.append(f"{filling}: {right} of {sent} answered from the address that was asked")
            met &= sent == right
    return Outcome(f"{'; '.join(measured)}; 2 IPv4 and 2 IPv6 addresses, bound, cached and forwarded names", met=met)


def _fresh(prefix: str) -> list[Question]:
    return [Question(f"{prefix}-{number}.example.com") for number in range(100)]


class Probed(Scripted):
    """An upstream whose probes get a response code of their own; None: nothing."""

    rcode: int | None = None

    def asked(self, packet: bytes, *how: object) -> None:
        before = self.probes
        super().asked(packet, *how)  # type: ignore[arg-type]
        if self.probes > before and self.rcode is not None:
            write = how[1]
            assert callable(write)
            write(message(packet, rcode=self.rcode))


@row("P21", "upstream probe itself abused", "<= 2 probes/s per upstream, any RCODE counts as alive")
async def probes(bench: Bench) -> Outcome:
    seconds = 30.0 if bench.long else 4.0
    found = [await _probed(bench, rcode, seconds) for rcode in ((5, 3, 1) if bench.long else (5,))]
    rate, alive = (max(one) for one in zip(*found, strict=True))
    return Outcome(
        f"at most {rate:.2f} probes/s of one worker while 200 queries/s fail; probes are in EDNS version 1, for the upstream "
        f"alone; up again {alive:.2f} s after a probe was answered with another response code (REFUSED first)",
        met=rate <= 2.05 and alive <= 1.0,
    )


async def _probed(bench: Bench, rcode: int, seconds: float) -> tuple[float, float]:
    """Probes per second of an upstream that is silent, and seconds from then on until it is up by this response code."""
    async with Probed(silent, probes_answered=False) as upstream:
        server = await bench.server(upstream, workers=1)
        names = [Question(f"other-{number}.example.com") for number in range(1000)]
        async with Stream(server.endpoint, names, 200) as stream:
            await stream.for_(1.0)
            began, before = time.monotonic(), upstream.probes
            await stream.for_(seconds)
            rate = (upstream.probes - before) / (time.monotonic() - began)
        await bench.until(lambda: not server.counted("canal_dns_forward_upstream_up"), 5, "down")
        upstream.rcode, upstream.script = rcode, true
        return rate, await bench.until(lambda: server.counted("canal_dns_forward_upstream_up"), 5, "up again")
