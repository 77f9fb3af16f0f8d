"""canal-dns as the fault bench runs it: the real process, whatever it costs the machine, and what it says of itself.

Rules of this file:
- started by the command line with a configuration file, asked over sockets, told by signals; nothing of it is imported;
- descriptors, memory and CPU are the kernel's figures, of the control process and of every worker.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from canal_dns.settings import Endpoint
from tests.faults.clients import Question
from tests.process import DEMO, Process, wait_for
from tests.server.serving import query

BOUND = "helloworld.default.svc.cluster.local"
VIP = socket.inet_aton("10.96.9.9")
BOUND_QUESTION = Question(BOUND, VIP)
_TICKS = os.sysconf("SC_CLK_TCK")


class Server(Process):
    """`canal-dns serve`, with the demo's manifests where no source is named. Call `ready` before anything else."""

    def __init__(
        self, folder: Path, upstreams: list[Endpoint], *, environment: Mapping[str, str] | None = None, **different: Any
    ) -> None:
        """`environment`: variables over those of this process; `different`: keys of the configuration file, over those of the
        bench."""
        self.config = folder / "canal-dns.yaml"
        self.settings: dict[str, Any] = {
            "listen": ["127.0.0.1:0"],
            "admin": "127.0.0.1:0",
            "upstreams": [str(upstream) for upstream in upstreams],
            "source": {"manifests": str(DEMO)},
            "workers": 0,
            "lameduck": "0s",
            "cache": {"size": 0},
            **different,
        }
        self.write(self.settings)
        super().__init__("serve", "-c", str(self.config), environment=environment)

    def write(self, settings: dict[str, Any] | str) -> None:
        """Put another configuration in place, in one step; a text is written as it is."""
        fresh = self.config.with_suffix(".fresh")
        fresh.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
        fresh.rename(self.config)

    def ready(self, seconds: float = 20.0) -> Server:
        """Wait for /ready to say 200, and give the server back."""
        wait_for(lambda: self.status("/ready") == 200, seconds, "/ready")
        return self

    def listening(self) -> Server:
        """Wait for the sockets only: it need not know what is bound."""
        self.line_with("admin endpoints: ")
        return self

    @property
    def endpoint(self) -> Endpoint:
        host, _, port = self.line_with("listening on").split()[2].rstrip(",").rpartition(":")
        return Endpoint(host.strip("[]"), int(port))

    @property
    def admin(self) -> Endpoint:
        host, _, port = self.line_with("admin endpoints: ").split()[-1].rpartition("/")[2].rpartition(":")
        return Endpoint(host.strip("[]"), int(port))

    # -- what it says of itself --------------------------------------------------------------------------------------

    def get(self, path: str, seconds: float = 5.0) -> tuple[int, str]:
        """Status and text of an admin endpoint. Raises OSError."""
        endpoint = self.admin
        with socket.create_connection((endpoint.host, endpoint.port), seconds) as sock:
            sock.settimeout(seconds)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            whole = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, body = whole.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def status(self, path: str) -> int:
        """0 while nobody answers."""
        try:
            return self.get(path)[0]
        except (OSError, IndexError):
            return 0

    def counted(self, metric: str, **labels: str) -> float:
        """The sum over all series of a metric that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = re.findall(rf"^{metric}(?:\{{(.*)\}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(float(value) for given, value in found if all(label in given for label in wanted))

    # -- what the kernel says of it ----------------------------------------------------------------------------------

    @property
    def workers(self) -> list[int]:
        """Process ids."""
        return [int(pid) for pid in Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()]

    @property
    def pids(self) -> list[int]:
        return [self.popen.pid, *self.workers]

    def alive(self) -> bool:
        return self.popen.poll() is None

    def descriptors(self) -> int:
        """Open files of all its processes."""
        return sum(map(open_files, self.pids))

    def memory(self, pids: Iterable[int] = ()) -> int:
        """Octets of RAM of its processes, or of these, that are nobody else's: anonymous memory, which a leak would be."""
        texts = (_read(f"/proc/{pid}/status") for pid in pids or self.pids)
        return sum(int(found[1]) << 10 for text in texts if (found := re.search(r"RssAnon:\s+(\d+)", text)))

    def cpu_seconds(self) -> float:
        """Of its present processes, since they began."""
        fields = [_read(f"/proc/{pid}/stat").rpartition(")")[2].split() for pid in self.pids]
        return sum(int(one[11]) + int(one[12]) for one in fields if one) / _TICKS

    def answers(self, name: str = BOUND, expect: bytes = VIP, seconds: float = 1.0, host: str = "") -> bool:
        """True where one query over UDP gets this answer within the time."""
        endpoint = self.endpoint
        with socket.socket(socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            if host:
                sock.bind((host, 0))
            try:
                sock.sendto(query(name, ident=0xBEEF), (endpoint.host, endpoint.port))
                reply = sock.recv(4096)
            except OSError:
                return False
        return reply[:2] == b"\xbe\xef" and reply[3] & 15 == 0 and expect in reply


def open_files(pid: int) -> int:
    """Descriptors of one process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
