"""CoreDNS and canal-dns as processes: started, stopped, made silent, woken, and asked for their counters.

Rules of this file:
- every process leads a process group of its own; what was started is ended by that group's id, and its end is waited for;
  if the test run itself is killed, the kernel kills them (`--pdeathsig`);
- ready means asked and answered, never slept;
- packets are counted by the kernel (`datagrams`), so that no server is believed on what it sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

from tests.e2e import cluster
from tests.e2e.ask import ask

T = TypeVar("T")

ADMIN = "127.0.0.1:9180"  # 8080 is CoreDNS's `health` here


def until(condition: Callable[[], T | None], seconds: float, what: str | Callable[[], str], pause: float = 0.05) -> T:
    """The first true value of `condition`. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(pause)
    return value


def http(url: str) -> tuple[int, str]:
    """Status and body; status 0 while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - our own address
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, reply.read().decode()
    except OSError:
        return 0, ""


def sums(url: str, *names: str, **labels: str) -> tuple[float, ...]:
    """For each metric the sum over all its series that carry these labels."""
    totals = dict.fromkeys(names, 0.0)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    for name, given, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", http(url)[1], re.MULTILINE):
        if name in totals and all(label in given for label in wanted):
            totals[name] += float(value)
    return tuple(totals.values())


class Process:
    """One program with its children, in a process group of its own; it writes into `log`."""

    def __init__(self, command: list[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.log = log
        self.variables = variables or {}
        self.running: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        with self.log.open("ab") as sink:
            self.running = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env={**os.environ, **self.variables},
                start_new_session=True,
            )

    def alive(self) -> bool:
        assert self.running is not None
        if self.running.poll() is not None:
            raise AssertionError(f"ended by itself ({self.running.returncode}): {self.said()}")
        return True

    def said(self) -> str:
        """What it was started as, and the end of its log."""
        return f"{self.command}\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def members(self) -> dict[int, str]:
        """Process id -> state (R, S, T, Z, ...) of all that belong to it."""
        assert self.running is not None
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(group) == self.running.pid:
                found[int(stat.parent.name)] = state
        return found

    def signal(self, number: Signals) -> None:
        """To the process that was started, which has to tell its children."""
        assert self.running is not None
        self.running.send_signal(number)

    def pause(self) -> None:
        """Silence: all processes exist and hold their sockets, none runs."""
        self._signal_all(signal.SIGSTOP)
        until(lambda: set(self.members().values()) == {"T"}, 5, "all processes stand still")

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Ends all of it, without a word and whatever its state; nothing to do where nothing runs."""
        if self.running is not None:
            self._signal_all(signal.SIGKILL)
            self.wait_for_end()

    def stop(self) -> int:
        """Asks it to end, as Kubernetes does; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_for_end()

    def wait_for_end(self, seconds: float = 30) -> int:
        """Until nothing is left of it, children included; the exit code."""
        assert self.running is not None
        code = self.running.wait(seconds)
        until(lambda: not self.members(), 5, f"nothing is left of {self.command}")
        self.running = None
        return code

    def _signal_all(self, number: Signals) -> None:
        assert self.running is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, number)


class CoreDns(Process):
    """A CoreDNS with one Corefile. `addresses`: where it must answer before it counts as started."""

    def __init__(self, binary: Path, folder: Path, corefile: str, addresses: tuple[str, ...]) -> None:
        path = folder / "Corefile"
        path.write_text(corefile)
        super().__init__([str(binary), "-conf", str(path)], folder / "coredns.log")
        self.addresses = addresses

    def start(self) -> None:
        self.launch()
        for address in self.addresses:
            until(partial(self._answers, address), 20, f"CoreDNS answers on {address}:\n{self.said()}")

    def _answers(self, address: str) -> bool:
        return self.alive() and _answers(address)

    def questions(self, **labels: str) -> float:
        """How many questions its server blocks were asked."""
        (asked,) = sums("http://127.0.0.1:9153/metrics", "coredns_dns_requests_total", **labels)
        return asked


class CanalDns(Process):
    """A canal-dns at port 53 of `addresses`. `settings`: its configuration, as in YAML; where it is silent, what tests want."""

    def __init__(
        self, folder: Path, addresses: tuple[str, ...], settings: Mapping[str, Any], variables: Mapping[str, str] | None = None
    ) -> None:
        self.settings = {
            "listen": [f"[{address}]:53" if ":" in address else f"{address}:53" for address in addresses],
            "admin": ADMIN,
            "lameduck": "1s",
            "binding": {"settle": "200ms"},
            **settings,
        }
        self.config = folder / "canal-dns.yaml"
        self.configure()
        command = [sys.executable, "-m", "canal_dns", "serve", "-c", str(self.config)]
        super().__init__(command, folder / "canal-dns.log", variables)

    def configure(self, **changes: Any) -> None:
        """Writes the configuration, with these keys changed: a running one loads it live."""
        self.settings |= changes
        draft = self.config.with_suffix(".new")
        draft.write_text(json.dumps(self.settings))
        draft.replace(self.config)

    def start(self) -> None:
        self.launch()
        until(lambda: self.alive() and http(f"http://{ADMIN}/ready")[0] == 200, 30, self.said)

    def series(self, *names: str, **labels: str) -> tuple[float, ...]:
        """Each metric of /metrics, summed over those of its labels that are not given."""
        return sums(f"http://{ADMIN}/metrics", *names, **labels)

    def ready(self) -> tuple[int, str]:
        """`/ready`: status and text."""
        return http(f"http://{ADMIN}/ready")

    def bindings(self) -> dict[str, Any]:
        """`/bindings`. Raises AssertionError."""
        status, text = http(f"http://{ADMIN}/bindings")
        assert status == 200, text
        return dict(json.loads(text))


def _answers(address: str) -> bool:
    try:
        ask(address, cluster.DOMAIN, "SOA", timeout=5)
    except (TimeoutError, ConnectionRefusedError):
        return False
    return True


def datagrams() -> int:
    """UDP packets sent in this network namespace since it exists, IPv4 and IPv6: read, not asked for, so it adds none."""
    header, values = (line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines() if line.startswith("Udp:"))
    sent6 = next(
        line.split()[1] for line in Path("/proc/self/net/snmp6").read_text().splitlines() if line.startswith("Udp6OutD")
    )
    return int(values[header.index("OutDatagrams")]) + int(sent6)


def unchanged(count: Callable[[], T], polls: int = 10, pause: float = 0.1, seconds: float = 10) -> T:
    """The count, once it has been the same over `polls` polls. Raises AssertionError when it goes on for `seconds`."""
    last, same = count(), 0
    deadline = time.monotonic() + seconds
    while same < polls:
        assert time.monotonic() < deadline, f"still counting after {seconds:g} s: {last}"
        time.sleep(pause)
        now = count()
        last, same = (last, same + 1) if now == last else (now, 0)
    return last
