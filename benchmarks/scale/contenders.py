"""canal-dns and CoreDNS's `kubernetes` plugin as they stand before the same API server, each alone on the server's core.

Rules of this file:
- canal-dns: `workers: 1`, `settle: 0s`, everything else as it is by default; behind it an upstream that answers at once;
  its bytecode is there, as pip leaves it in an image: an editable checkout would be compiled at each start;
- CoreDNS: kubeadm's `kubernetes` block and nothing else, GOMAXPROCS=1;
- canal-dns is ready when /ready says 200, CoreDNS when it gives a Service's address: it has no other word for it.
"""

from __future__ import annotations

import compileall
import contextlib
import http.client
import sys
import time
from collections.abc import Callable
from pathlib import Path

import canal_dns
from benchmarks.errors import BenchError
from benchmarks.machine import cpu_seconds, family, pinned
from benchmarks.scale.probe import Asker, question
from tests.e2e import cluster
from tests.e2e.processes import ADMIN, CanalDns, CoreDns, Process
from tests.e2e.sites import GATEWAY

START_LIMIT = 120.0
_POLL = 0.005
_UPSTREAM = ("127.0.0.1", 5399)

_COREFILE = """\
{domain}:53 {{
    bind {address}
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
}}
"""


class Contender:
    """A server on its core."""

    key: str
    address: str

    def __init__(self, process: Process, core: int) -> None:
        self.process = process
        self._core = core

    def start(self) -> float:
        """Seconds until it was ready. Raises BenchError."""
        began = time.perf_counter()
        with pinned(self._core):
            self.process.launch()
        while not self.is_ready():
            self.process.alive()
            if time.perf_counter() - began > START_LIMIT:
                raise BenchError(f"{self.key} was not ready within {START_LIMIT:g} s: {self.process.said()}")
            time.sleep(_POLL)
        return time.perf_counter() - began

    def is_ready(self) -> bool:
        raise NotImplementedError

    def end(self) -> None:
        self.process.kill()

    def pids(self) -> tuple[int, ...]:
        """Its processes, the control process first."""
        assert self.process.running is not None
        return family(self.process.running.pid)

    def cpu(self) -> list[float]:
        """CPU seconds of each process until now."""
        return [cpu_seconds(pid) for pid in self.pids()]

    def memory(self) -> list[dict[str, int]]:
        """KiB of each process: "rss", and "pss", in which a page that n processes share counts a n-th."""
        found = []
        for pid in self.pids():
            lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            values = {line[0].rstrip(":").lower(): int(line[1]) for line in lines}
            found.append({key: values[key] for key in ("rss", "pss")})
        return found


class Canal(Contender):
    key = "canal-dns"
    address = cluster.CANAL_DNS[0]

    def __init__(self, folder: Path, kubeconfig: Path, core: int) -> None:
        folder.mkdir(exist_ok=True)
        compileall.compile_dir(Path(canal_dns.__file__).parent, quiet=1)
        settings = {
            "upstreams": [":".join(map(str, _UPSTREAM))],
            "gateways": [{"service": GATEWAY}],
            "source": {"cluster": {"kubeconfig": str(kubeconfig)}},
            "binding": {"settle": "0s"},
            "workers": 1,
            "lameduck": "0s",
        }
        self.server = CanalDns(folder, (self.address,), settings)
        super().__init__(self.server, core)
        command = [sys.executable, "-m", "benchmarks.scale.upstream", *map(str, _UPSTREAM)]
        root = Path(__file__).parents[2]
        self.upstream = Process(command, folder / "upstream.log", {"PYTHONPATH": str(root)})

    def is_ready(self) -> bool:
        host, _, port = ADMIN.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        return False

    def event_to_answer(self) -> dict[str, float]:
        """Its own histogram: upper bound -> events until then, "sum", "count"."""
        from tests.e2e.processes import http as get

        found = {}
        for line in get(f"http://{ADMIN}/metrics")[1].splitlines():
            if line.startswith("canal_dns_event_to_answer_seconds"):
                name, _, value = line.partition(" ")
                bound = name.partition('le="')[2].partition('"')[0]
                found[bound or name.rpartition("_")[2]] = float(value)
        return found

    def end(self) -> None:
        super().end()
        self.upstream.kill()

    def events(self) -> float:
        """Events of watches that it has read."""
        (total,) = self.server.series("canal_dns_source_events_total")
        return total


class Kubernetes(Contender):
    key = "CoreDNS"
    address = cluster.KUBE_DNS[0]

    def __init__(
        self, binary: Path, folder: Path, kubeconfig: Path, core: int, known: str, right: Callable[[bytes], bool]
    ) -> None:
        """`known`: the full name of a Service, `right`: is this its answer?"""
        folder.mkdir(exist_ok=True)
        corefile = _COREFILE.format(domain=cluster.DOMAIN, address=self.address, kubeconfig=kubeconfig)
        server = CoreDns(binary, folder, corefile, ())
        server.variables = {"GOMAXPROCS": "1"}
        super().__init__(server, core)
        self._question = question(known)
        self._right = right

    def is_ready(self) -> bool:
        asker = Asker(self.address)
        try:
            rcode, rest = asker.ask(self._question)
        except OSError:
            return False
        finally:
            asker.close()
        return rcode == 0 and self._right(rest)
