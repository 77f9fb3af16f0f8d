"""The machine under the measurement: its cores, what a process has used of them, and what it is called.

Rules of this file:
- Linux only: /proc and the CPU clocks of processes;
- figures are read, never estimated: CPU time comes from the kernel's own sum over all threads of a process, in nanoseconds;
- nothing is started here; what was started is held on its core.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.errors import BenchError

_TICK = os.sysconf("SC_CLK_TCK")


def cache_folder() -> Path:
    """Where built and downloaded programs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canal-dns" / "bin"


def two_cores() -> tuple[int, int]:
    """(server's core, load's core). Raises BenchError on a machine with one: there, only the scheduler would be measured."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError(f"two cores are needed, one for the server and one for the load; usable here: {len(usable)}")
    return usable[0], usable[1]


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside runs on `core` only; so does this process, for that moment."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> tuple[int, ...]:
    """A process and all that descend from it, by way of /proc/PID/task/TID/children."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                found.extend(int(child) for child in path.read_text().split())
    return tuple(found)


def pin_family(pid: int, core: int) -> None:
    """Hold every thread of a process and of its descendants on `core`, whatever it chose itself (Knot spreads its workers)."""
    for member in family(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, ended threads included: utime + stime of /proc/PID/stat, but in nanoseconds.

    clock_getcpuclockid(3) gives a process the clock `(~pid << 3) | CPUCLOCK_SCHED`. Raises BenchError when the process is gone.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        raise BenchError(f"process {pid} ended while it was measured") from None


def resident_kib(pid: int) -> int:
    """VmRSS in KiB; pages shared between processes count in each."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def core_busy_seconds(core: int) -> float:
    """Seconds in which this core was not idle, by whomever; stolen time included. Resolution: one tick, 10 ms as a rule."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _idle, _wait, interrupts, soft, steal, *_ = map(int, line.split()[1:])
            return (user + nice + system + interrupts + soft + steal) / _TICK
    raise BenchError(f"/proc/stat does not name core {core}")


def describe(server_core: int, load_core: int) -> dict[str, str | int]:
    """The machine as the report names it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "server_core": server_core,
        "load_core": load_core,
        "siblings": _siblings(server_core),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "system": _system(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _siblings(core: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(core)


def _system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"
