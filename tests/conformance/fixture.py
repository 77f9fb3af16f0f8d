"""The fixture of the cases: manifests, a configuration, a real `canal-dns serve` process, and what can be seen of it.

Rules of this file:
- the process is started as a user would, by its command line and a file; nothing of it is imported;
- readiness is asked at /ready, never waited for by the clock;
- everything lies in one temporary folder; every process that is started here is ended here.
"""

import contextlib
import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.conformance import message as dns
from tests.conformance.upstream import Upstream

VIP4, VIP6 = "10.96.0.200", "fd00:10:96::c8"
GATEWAYS = {"gw-v4": (VIP4,), "gw-dual": (VIP4, VIP6), "gw-v6": (VIP6,)}
BOUND = {"web": "gw-v4", "dual": "gw-dual", "v6": "gw-v6", "api-0": "gw-v4"}
START_TIMEOUT = 30.0
"""Seconds for the process to be ready, on a machine that does other things too."""


# --- manifests --------------------------------------------------------------------------------------------------------------


def gateway(name, addresses):
    """An internal gateway: Service, Pod, EndpointSlice and Gateway."""
    labels = {"istio": name}
    port = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}
    pod = f"{name}-1"
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "istio-system"},
            "spec": {
                "clusterIP": addresses[0],
                "clusterIPs": list(addresses),
                "ipFamilies": ["IPv6" if ":" in address else "IPv4" for address in addresses],
                "selector": labels,
                "ports": [port],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": "istio-system", "labels": labels},
            "status": {"phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-x",
                "namespace": "istio-system",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": ["10.244.0.9"],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "targetRef": {"kind": "Pod", "name": pod, "namespace": "istio-system"},
                }
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": name, "namespace": "istio-system"},
            "spec": {
                "selector": labels,
                "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
            },
        },
    ]


def service(name, address):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    }


def virtual_service(name, through):
    host = f"{name}.shop.svc.cluster.local"
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "hosts": [host],
            "gateways": [f"istio-system/{through}"],
            "http": [{"route": [{"destination": {"host": host, "port": {"number": 80}}}]}],
        },
    }


def write(path, objects):
    """A manifest file in one step, as an editor or kubelet leaves it."""
    new = path.with_name(path.name + ".new")
    new.write_text(yaml.safe_dump_all(objects, sort_keys=False))
    new.replace(path)


def write_manifests(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, addresses in GATEWAYS.items():
        write(folder / f"{name}.yaml", gateway(name, addresses))
    names = [*BOUND, "late", "plain"]
    write(folder / "services.yaml", [service(name, f"10.96.0.{11 + number}") for number, name in enumerate(names)])
    write(folder / "routes.yaml", [virtual_service(name, through) for name, through in BOUND.items()])


# --- ports and the process --------------------------------------------------------------------------------------------------


def free_port(*hosts):
    """A port that is free for UDP and TCP on all of these addresses."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            try:
                port = 0
                for host in hosts:
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        one = stack.enter_context(socket.socket(family, kind))
                        one.bind((host, port))
                        port = one.getsockname()[1]
            except OSError:
                continue
            return port
    raise OSError(f"no port is free on {', '.join(hosts)}")


class StartError(Exception):
    """The server did not become ready; the text has the end of its log."""


class Server:
    """One `canal-dns serve` process on 127.0.0.1, [::1] and 127.0.0.2."""

    HOSTS = ("127.0.0.1", "::1", "127.0.0.2")
    COMMAND = (sys.executable, "-m", "canal_dns", "serve", "-c")
    """What is run, with the configuration file as the last argument."""

    def __init__(self, folder, upstreams, *, workers=0, changes=None, manifests=True, wait=True, environment=None):
        """`changes`: keys of the configuration that differ; `manifests=False`: the folder is not there yet.

        `environment`: variables for the process, beside those of this one.
        """
        self.folder = Path(folder)
        self.manifests = self.folder / "manifests"
        if manifests:
            write_manifests(self.manifests)
        self.workers = workers
        self.port = free_port(*self.HOSTS)
        self.admin_port = free_port("127.0.0.1")
        self.config = {
            "listen": [f"{f'[{host}]' if ':' in host else host}:{self.port}" for host in self.HOSTS],
            "upstreams": [upstream.replace("SELF", f"127.0.0.1:{self.port}") for upstream in upstreams],
            "gateways": [{"service": f"istio-system/{name}"} for name in GATEWAYS],
            "source": {"manifests": str(self.manifests)},
            "workers": workers,
            "lameduck": "0s",
            "admin": f"127.0.0.1:{self.admin_port}",
            "binding": {"settle": "0s", "gatewayUnready": "forward"},
            "limits": {"tcpIdle": "8s"},
            # What is asked is to reach the upstream, and to be counted there; the cache has cases of its own.
            "cache": {"size": 0},
        }
        for key, value in (changes or {}).items():
            self.config[key] = {**self.config.get(key, {}), **value} if isinstance(value, dict) else value
        self.log = self.folder / "server.log"
        self._wait = wait
        self._environment = {**os.environ, **(environment or {})}
        self._process = None

    def __enter__(self):
        file = self.folder / "canal-dns.yaml"
        file.write_text(yaml.safe_dump(self.config))
        command = [*self.COMMAND, str(file)]
        with self.log.open("wb") as log:
            root = Path(__file__).resolve().parents[2]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=root, env=self._environment
            )
        try:
            if self._wait:
                self.until(lambda: self.get("/ready")[0] == 200, START_TIMEOUT, "ready")
            else:
                self.until(lambda: self.get("/health")[0] == 200, START_TIMEOUT, "healthy")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def until(self, condition, seconds, what):
        """Wait for a condition. Raises StartError when it does not come, or the process ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None:
                raise StartError(f"canal-dns ended with status {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"canal-dns was not {what} after {seconds:g} s; /ready: {self.get('/ready')}\n{self.tail()}")
            time.sleep(0.02)

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    @property
    def alive(self):
        return self._process.poll() is None

    # -- what the admin endpoints say

    def get(self, path):
        """(status, body); (0, the problem) when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as problem:
            return 0, str(problem).encode()
        finally:
            connection.close()

    def metric(self, name, **labels):
        """The sum of the samples of a metric that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].decode().splitlines():
            match = re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total += float(match[2])
        return total

    # -- what the kernel says

    def pids(self):
        """The process and its descendants."""
        found, todo = [], [self._process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    todo.extend(int(child) for child in children.read_text().split())
        return found

    def memory(self):
        """Resident octets of all processes."""
        return sum(self._field(pid, "VmRSS:") * 1024 for pid in self.pids())

    def descriptors(self):
        """Open files of all processes."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        return total

    def cpu(self):
        """CPU seconds of all processes so far."""
        total = 0
        for pid in self.pids():
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(path.read_text().split()[0])
        return total / 1e9

    @staticmethod
    def _field(pid, name):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(name):
                    return int(line.split()[1])
        return 0


@contextlib.contextmanager
def running(*, workers=0, changes=None, upstreams=None, silent=False, manifests=True, wait=True, environment=None):
    """(server, upstream), both fresh. `upstreams`: what the configuration names instead of the upstream's address."""
    with tempfile.TemporaryDirectory(prefix="canal-dns-") as folder, Upstream(silent=silent) as upstream:
        named = [text.replace("V6", upstream.v6) for text in upstreams] if upstreams else [upstream.v4]
        different = {"workers": workers, "changes": changes, "manifests": manifests, "wait": wait, "environment": environment}
        with Server(folder, named, **different) as server:
            yield server, upstream


# --- clients ----------------------------------------------------------------------------------------------------------------


class Udp:
    """A client's UDP socket, connected, so that a reply from elsewhere is not taken."""

    def __init__(self, server, host="127.0.0.1", source=None):
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, server.port))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, wire):
        with contextlib.suppress(ConnectionRefusedError):
            self.socket.send(wire)

    def receive(self, seconds):
        """The next datagram; None: there was none in time."""
        deadline = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.0001, deadline - time.monotonic()))
            try:
                return self.socket.recv(65535)
            except TimeoutError:
                return None
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    return None

    def ask(self, wire, seconds=5.0):
        self.send(wire)
        return self.receive(seconds)


CLOSED = object()
"""What `Tcp.receive` gives for the end of the stream."""


class Tcp:
    """A client's TCP connection that speaks in frames."""

    def __init__(self, server, host="127.0.0.1", source=None, port=0, receive_buffer=None):
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, port))
        self.socket.settimeout(5)
        self.socket.connect((host, server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *messages):
        """Frames, in one write."""
        self.send_raw(b"".join(struct.pack("!H", len(wire)) + wire for wire in messages))

    def send_raw(self, octets):
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(octets)

    def receive(self, seconds):
        """The next message; None: there was none in time; CLOSED: there will be none."""
        deadline = time.monotonic() + seconds
        while True:
            if len(self._pending) >= 2:
                length = struct.unpack_from("!H", self._pending)[0]
                if len(self._pending) >= 2 + length:
                    wire, self._pending = self._pending[2 : 2 + length], self._pending[2 + length :]
                    return wire
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return None
            except ConnectionError:
                return CLOSED
            if not data:
                return CLOSED
            self._pending += data

    def ask(self, wire, seconds=5.0):
        self.send(wire)
        return self.receive(seconds)

    def reset(self):
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def answer(client, name, qtype=dns.A, seconds=5.0, **parts):
    """Ask for a name and read the reply; None: there was none."""
    wire = client.ask(dns.query(name, qtype, **parts), seconds)
    return None if wire is None or wire is CLOSED else dns.read(wire)
