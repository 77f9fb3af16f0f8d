"""One contender running: started on its core in a folder of its own, ready when it gives the right answer, stopped at the end.

Rules of this file:
- ready means: a query was answered with the address that the scenario expects; never a pause and a hope;
- a server is its process and all that descend from it: CPU time and memory are their sum;
- what it writes goes to a file in its folder, whose last lines are shown when it fails;
- only processes started here are stopped here.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.contenders.base import Contender, Site
from benchmarks.errors import BenchError
from benchmarks.machine import cpu_seconds, family, pin_family, pinned, resident_kib
from benchmarks.scenarios import Scenario
from canal_dns.dns import names

_Number = TypeVar("_Number", int, float)

START_LIMIT = 20.0
"""Seconds until the first right answer: ample for every contender, CoreDNS with 1,000 rewrite lines included."""
START_LIMIT_PER_NAME = 1.5e-3
"""More for large tables: a control process reads two objects for each name."""
STOP_LIMIT = 5.0


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now, on UDP and on TCP."""
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            port: int = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                return port
    raise BenchError("no free port on 127.0.0.1")


def ask(port: int, name: str, timeout: float) -> tuple[int, bytes | None]:
    """(rcode, the first A record's four octets or None) of one query. Raises OSError when nobody answers."""
    packet = struct.pack("!6H", 0x2A2A, 0x0100, 1, 0, 0, 0) + names.from_text(name) + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect(("127.0.0.1", port))
        client.send(packet)
        reply = client.recv(4096)
    if len(reply) < len(packet) or reply[:2] != packet[:2]:
        return -1, None
    return reply[3] & 15, _first_address(reply, len(packet))


def _first_address(reply: bytes, at: int) -> bytes | None:
    for _ in range(struct.unpack_from("!H", reply, 6)[0]):
        while (length := reply[at]) and length < 0xC0:
            at += 1 + length
        at += 2 if length else 1
        kind, _class, _ttl, size = struct.unpack_from("!HHIH", reply, at)
        at += 10
        if kind == 1:
            return reply[at : at + size]
        at += size
    return None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server has used so far, in seconds of CPU by part; `pids`: they must be the same at both ends of a run."""

    cpu: dict[str, float]
    pids: tuple[int, ...]


class Server:
    """A started contender, of one process or several. `close` stops it."""

    def __init__(self, contender: Contender, site: Site, core: int) -> None:
        self.contender = contender
        self.site = site
        self.core = core
        self._log = site.folder / "output"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        environment = {**os.environ, **contender.environment}
        with self._log.open("wb") as out, pinned(core):
            for part, argv in contender.commands(site).items():
                self._processes[part] = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=_working_folder(argv, site)
                )

    @property
    def label(self) -> str:
        return f"{self.contender.key} ({self.site.scenario.name})"

    def wait_until_ready(self) -> None:
        """Returns when three names were answered rightly. Raises BenchError when it ends before, or takes too long."""
        limit = START_LIMIT + START_LIMIT_PER_NAME * len(self.site.scenario.addresses)
        ends = time.monotonic() + limit
        expected = self.contender.addresses(self.site.scenario)
        all_names = list(expected)
        waiting = [all_names[0], all_names[len(all_names) // 2], all_names[-1]]
        got = "no answer"
        while waiting:
            name = waiting[0]
            right = socket.inet_aton(expected[name])
            with contextlib.suppress(OSError):
                rcode, address = ask(self.site.port, name, 0.5)
                got = f"rcode {rcode}, address {socket.inet_ntoa(address) if address else 'none'} for {name}"
                if rcode == 0 and address == right:
                    waiting.pop(0)
                    continue
            if time.monotonic() > ends:
                raise BenchError(f"{self.label}: no right answer in {limit:.0f} s ({got}){self._last_words()}")
            # The wait between two attempts doubles as the watch for its end.
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.02)
                    raise BenchError(
                        f"{self.label}: ended with code {code} before it answered rightly ({got}){self._last_words()}"
                    )

    def hold_on_core(self) -> None:
        """It was started on its core, but may have moved its threads since."""
        for process in self._processes.values():
            pin_family(process.pid, self.core)

    def check(self) -> None:
        """Raises BenchError when one of its processes has ended."""
        for part, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise BenchError(f"{self.label}: {part} ended with code {code}{self._last_words()}")

    def _parts(self) -> Iterator[tuple[str, int]]:
        """What each process is: those that a part has started itself are told apart where the contender has a word for them."""
        for part, process in self._processes.items():
            own, *children = family(process.pid)
            yield part, own
            yield from ((self.contender.children or part, child) for child in children)

    def usage(self) -> Usage:
        parts = list(self._parts())
        return Usage(_sums((part, cpu_seconds(pid)) for part, pid in parts), tuple(pid for _, pid in parts))

    def resident_kib(self) -> dict[str, int]:
        """By part; pages that processes share count in each."""
        return _sums((part, resident_kib(pid)) for part, pid in self._parts())

    def close(self) -> None:
        """SIGTERM, then SIGKILL; descendants that outlive it get that, too. Returns when all of them have ended."""
        with contextlib.ExitStack() as stack:
            descendants = [
                stack.enter_context(_held(pid)) for process in self._processes.values() for pid in family(process.pid)[1:]
            ]
            for process in self._processes.values():
                process.terminate()
            for process in self._processes.values():
                try:
                    process.wait(STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for handle in descendants:
                if handle is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], STOP_LIMIT)

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        return f"; it said: {' / '.join(text)[:400]}" if text else ""


def _sums(values: Iterable[tuple[str, _Number]]) -> dict[str, _Number]:
    found: dict[str, _Number] = {}
    for part, value in values:
        found[part] = found[part] + value if part in found else value
    return found


def _working_folder(argv: list[str], site: Site) -> Path:
    # The package under test may be one that is not installed but lies beside this one.
    return Path(__file__).parents[1] if "canal_dns" in argv else site.folder


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """A handle of a process, which means this one for ever, whoever gets its number later; None when it has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def running(
    contender: Contender, binary: Path, scenario: Scenario, folder: Path, core: int, upstream_port: int
) -> Iterator[Server]:
    """A contender that answers, and is stopped afterwards."""
    folder.mkdir(parents=True)
    site = Site(folder, binary, free_port(), free_port(), free_port(), upstream_port, scenario, getpass.getuser())
    server = Server(contender, site, core)
    try:
        server.wait_until_ready()
        contender.verify(site)
        server.hold_on_core()
        yield server
    finally:
        server.close()
