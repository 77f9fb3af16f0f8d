"""canal-dns and the gateway side by side: marks that tell when both are quiet, what they say, and requests that try it.

Rules of this file:
- quiet means seen, not slept: after its changes a step moves a mark that depends on one object of each kind, and each kind's
  watch is in order, so who serves the mark has read all that was before it;
- while objects change both are read ten times a second and only looked at later;
- an interval in which they differ lasts from the first to the last look that saw it: never longer than it was.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import mesh, objects
from tests.e2e.cluster import fqdn
from tests.e2e.invention import SAMPLES
from tests.e2e.kube import Kube
from tests.e2e.processes import ADMIN, until
from tests.e2e.processes import http as fetch
from tests.e2e.programmed import DESTINATION, Programmed, Request, Served, Way

GATEWAY_PORTS = tuple(number for number, _ in mesh.PORTS)
MARK_PORT = 443

POLICIES = frozenset(
    {
        "PortNotServed", "CrossNamespace", "Protected", "Headless", "ExternalName", "OptedOut", "Conflicted",
        "GatewayNotUsable", "GatewayNotReady", "LimitExceeded",
    }
)  # fmt: skip
"""Reasons that are canal-dns's own: the gateway may serve such a name."""
_FORGIVEN = "get 503 on routes where"
"""In a warning: with `portGuard: warn` a port counts that Envoy answers with 503."""
_NO_SERVICE = "there is no Service for"
"""In a message."""


# --- quiet ----------------------------------------------------------------------------------------------------------------


class Mark:
    """A Service that is served on port 443 once its Service, Gateway, VirtualService and DestinationRule are all there."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._kube = kube
        self._name = name
        self._number = 0

    @property
    def host(self) -> str:
        return fqdn(f"{self._name}-{self._number}.default")

    def move(self) -> None:
        """Another Service, with all that belongs to it; the one before goes."""
        old = self._service()
        self._number += 1
        self._kube.create(self._service())
        for thing in self._others():
            self._kube.apply(thing)
        self._kube.remove(old)

    def clear(self) -> None:
        self._kube.remove(*reversed(self._others()), self._service())

    def _service(self) -> objects.Object:
        return objects.service(f"{self._name}-{self._number}", ports=((MARK_PORT, "http"),))

    def _others(self) -> list[objects.Object]:
        subset = f"s{self._number}"
        rule = objects.destination_rule(self._name, mesh.NAMESPACE, self.host, {subset: {"version": subset}})
        rule["spec"]["exportTo"] = ["."]  # comes before everybody else's, also before wildcards
        route = {"route": [objects.destination(self.host, subset=subset)]}
        return [
            rule,
            objects.gateway(self._name, selector=mesh.LABELS, ports=((MARK_PORT, "http"),), hosts=(self.host,)),
            objects.virtual_service(self._name, hosts=(self.host,), gateways=(self._name,), http=[route]),
        ]


# --- what both say ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A name in the words of `/bindings`."""

    bound: bool
    ports: tuple[int, ...] = ()
    claims: tuple[str, ...] = ()
    reason: str = ""
    forgiven: bool = False
    absent: bool = False
    """There is no Service of this name."""

    @property
    def comparable(self) -> bool:
        return self.bound or not (self.absent or self.reason in POLICIES)

    def __str__(self) -> str:
        return f"bound {list(self.ports)} as {' and '.join(self.claims)}" if self.bound else f"skipped, {self.reason}"


def said_of(bindings: Mapping[str, Any]) -> dict[str, Said]:
    found = {
        one["name"]: Said(False, reason=one["reason"], absent=one["message"].startswith(_NO_SERVICE))
        for one in bindings["skipped"]
    }
    for one in bindings["bound"]:
        forgiven = any(_FORGIVEN in warning for warning in one["warnings"])
        found[one["name"]] = Said(True, tuple(one["ports"]), tuple(one["claims"]), forgiven=forgiven)
    return found


@dataclass(frozen=True, slots=True)
class Look:
    """Both at one moment, as texts."""

    at: float
    bindings: str
    dump: str

    def said(self) -> dict[str, Said]:
        return said_of(json.loads(self.bindings))

    def programmed(self) -> Programmed:
        return Programmed(json.loads(self.dump), SAMPLES)


def look() -> Look | None:
    """None: one of them did not answer."""
    first, bindings = fetch(f"http://{ADMIN}/bindings")
    second, dump = fetch(f"http://{mesh.ADMIN}/config_dump")
    return Look(time.monotonic(), bindings, dump) if (first, second) == (200, 200) else None


def quiet(host: str, seconds: float, alive: Any) -> Look:
    """The first look at which both serve the mark `host` and Envoy has nothing half done. Raises AssertionError."""
    seen: list[str] = []

    def both() -> Look | None:
        seen[:] = ["somebody does not answer"]
        alive()
        now = look()
        if now is None:
            return None
        programmed = now.programmed()
        ours, theirs = now.said().get(host), programmed.served([host], [MARK_PORT])
        seen[:] = [f"canal-dns: {ours}; Envoy: {'served' if theirs else 'not served'}; warming: {programmed.warming}"]
        return now if ours is not None and ours.bound and theirs and not programmed.warming else None

    return until(both, seconds, lambda: f"both serve the mark {host}: {seen}", pause=0.03)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One look at the quiet cluster."""

    differences: dict[str, str]
    agreed: dict[str, Said]
    forgiven: int
    policies: int
    absent: int


NOBODY = Said(False, absent=True)
"""What is said of a name by its absence: every Service is listed."""


def compare(said: Mapping[str, Said], served: Mapping[str, Served], names: Mapping[str, bool]) -> Comparison:
    """Name by name: bound or not, with which ports, as destination or host. `names`: with whether there is such a Service;
    where there is none the gateway may serve what it likes, and the name is not bound."""
    differences: dict[str, str] = {}
    agreed: dict[str, Said] = {}
    forgiven = policies = absent = 0
    for name, there in names.items():
        ours = said.get(name, NOBODY)
        theirs = served.get(name, Served())
        same = (list(ours.ports), list(ours.claims)) == (theirs.ports, theirs.claims)
        if ours.absent or not there:
            absent += 1
            if ours.bound or ours.absent is there:
                differences[name] = f"canal-dns: {ours}; there is {'a' if there else 'no'} Service"
        elif not ours.comparable:
            policies += 1
        elif ours.forgiven and not same and set(theirs.ports) <= set(ours.ports):
            forgiven += 1
        elif same:
            agreed[name] = ours
        else:
            told = f"served on {theirs.ports} as {' and '.join(theirs.claims)}" if theirs.ways else "not served"
            differences[name] = f"canal-dns: {ours}; Envoy: {told}"
    return Comparison(differences, agreed, forgiven, policies, absent)


# --- while objects change ---------------------------------------------------------------------------------------------------


class Watcher(threading.Thread):
    """Looks all the time; keeps a look when something is different from the one before, and the last."""

    def __init__(self, pause: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._pause = pause
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._looks: list[Look] = []
        self.count = 0

    def run(self) -> None:
        while not self._ended.wait(self._pause):
            now = look()
            if now is not None:
                self.count += 1
                with self._lock:
                    self._looks.append(now)

    def take(self) -> list[Look]:
        """All since the last call."""
        with self._lock:
            taken, self._looks = self._looks, []
        return taken

    def end(self) -> None:
        self._ended.set()
        self.join(30)


@dataclass(frozen=True, slots=True)
class Apart:
    """An interval in which canal-dns and Envoy differed about a name."""

    name: str
    bound: bool
    """canal-dns binds it, and Envoy does not serve it; or the other way round."""
    seconds: float
    began_by: str
    """Who changed first: "canal-dns", "envoy", "both" or "" (it began before)."""
    ended_by: str

    def __str__(self) -> str:
        state = "bound and not served" if self.bound else "served and not bound"
        return f"{self.name} {state} for {self.seconds:.2f} s, from {self.began_by} to {self.ended_by}"

    @property
    def late(self) -> bool:
        """canal-dns followed Envoy, not the reverse."""
        return self.began_by == "envoy" and self.ended_by == "canal-dns"


def apart(looks: list[Look], names: Iterable[str]) -> list[Apart]:
    """Every such interval. Policies aside: a name that one of them forbids is as if nobody had looked."""
    parsed: dict[str, dict[str, bool]] = {}
    states: dict[str, list[tuple[float, bool, bool]]] = {name: [] for name in names}
    for one in looks:
        if one.dump not in parsed:
            served = one.programmed().served(states, GATEWAY_PORTS)
            parsed[one.dump] = {name: name in served for name in states}
        said = one.said()
        for name, list_of in states.items():
            ours = said.get(name, NOBODY)
            if ours.comparable:
                list_of.append((one.at, ours.bound, parsed[one.dump][name]))
    return [interval for name, list_of in states.items() for interval in _intervals(name, list_of)]


def _intervals(name: str, states: list[tuple[float, bool, bool]]) -> Iterator[Apart]:
    before: tuple[float, bool, bool] | None = None
    start: tuple[float, bool, bool] | None = None
    began_by, last = "", 0.0
    for state in states:
        at, bound, served = state
        changed = start is not None and (bound, served) != start[1:]
        if start is not None and changed:
            yield Apart(name, start[1], last - start[0], began_by, _who(start, state))
            start = None
        if bound != served:
            if start is None:
                start, began_by = state, _who(before, state)
            last = at
        before = state
    if start is not None:
        yield Apart(name, start[1], last - start[0], began_by, "")


def _who(before: tuple[float, bool, bool] | None, now: tuple[float, bool, bool]) -> str:
    if before is None:
        return ""
    ours, theirs = before[1] != now[1], before[2] != now[2]
    return "both" if ours and theirs else "canal-dns" if ours else "envoy"


# --- requests ---------------------------------------------------------------------------------------------------------------


class Pods:
    """Servers on pod addresses that say in every reply for which Service they stand; a TLS client gets TLS."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._servers: list[socketserver.ThreadingTCPServer] = []

    def serve(self, service: str, address: str, ports: Iterable[int]) -> None:
        context = self._context

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(60)
                with (
                    contextlib.suppress(OSError, ValueError),
                    _accepted(self.request, context) as connection,
                    connection.makefile("rb") as lines,
                ):
                    while head := _head(lines):
                        lines.read(int(head.get("content-length", "0")))
                        reply = f"HTTP/1.1 200 OK\r\nx-service: {service}\r\ncontent-length: 0\r\n\r\n"
                        connection.sendall(reply.encode())

        for port in ports:
            server = _Server((address, port), Handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 1}, daemon=True).start()
            self._servers.append(server)

    def end(self) -> None:
        ends = [threading.Thread(target=server.shutdown) for server in self._servers]
        for one in ends:
            one.start()
        for one, server in zip(ends, self._servers, strict=True):
            one.join()
            server.server_close()


def _accepted(connection: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """As the client wants it."""
    tls = connection.recv(1, socket.MSG_PEEK) == b"\x16"
    return context.wrap_socket(connection, server_side=True) if tls else connection


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = allow_reuse_port = daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go when they like."""


def _head(lines: Any) -> dict[str, str]:
    """The first line as "", and the headers; empty at the end of the connection."""
    first = lines.readline().decode("latin-1").strip()
    head = {"": first} if first else {}
    while first and (line := lines.readline().decode("latin-1").strip()):
        key, _, value = line.partition(":")
        head[key.lower()] = value.strip()
    return head


@dataclass(frozen=True, slots=True)
class Answered:
    """`status` 0: no HTTP answer."""

    status: int
    service: str = ""
    """Whose pod answered, by full name; "": none did."""
    problem: str = ""


def ask(address: str, port: int, name: str, request: Request, *, tls: bool = False, ident: str = "-") -> Answered:
    """One request with a connection of its own, as `curl --resolve` does it."""
    query = "&".join(f"{key}={value}" for key, value in request.query)
    lines = [
        f"{request.method} {request.path}{f'?{query}' if query else ''} HTTP/1.1",
        f"Host: {name}",
        f"X-ID: {ident}",
        "Content-Length: 0",
        "Connection: close",
        *(f"{key}: {value}" for key, value in request.headers),
    ]
    try:
        with socket.create_connection((address, port), timeout=5) as plain, _secured(plain, name if tls else "") as connection:
            connection.sendall("\r\n".join((*lines, "", "")).encode())
            reply = http.client.HTTPResponse(connection, method=request.method)
            with contextlib.closing(reply):
                reply.begin()
                return Answered(reply.status, reply.headers.get("x-service", ""))
    except (OSError, http.client.HTTPException) as problem:
        return Answered(0, problem=repr(problem))


def _secured(connection: socket.socket, name: str) -> socket.socket:
    if not name:
        return connection
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname=name)


class AccessLog:
    """What Envoy says of each request, by its X-ID."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._lines: dict[str, tuple[str, str, str]] = {}

    def of(self, ident: str) -> tuple[str, str, str]:
        """Route, cluster, and flags ("-": nothing special). Raises AssertionError."""
        return until(lambda: self._read().get(ident), 10, f"Envoy's access log knows {ident}", pause=0.01)

    def _read(self) -> dict[str, tuple[str, str, str]]:
        if self._path.exists():
            with self._path.open("rb") as log:
                log.seek(self._at)
                data = log.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                ident, *rest = line.split("|", 1)
                if rest and rest[0].count("|") >= 3:
                    before, _, flags = rest[0].rpartition("|")
                    route, _, others = before.partition("|")
                    # Envoy gives a cluster's statistical name, which istiod ends with a semicolon
                    self._lines[ident] = (route, others.rpartition("|")[0].removesuffix(";"), flags)
        return self._lines


@dataclass(slots=True)
class Prover:
    """Sends what is claimed."""

    log: AccessLog
    asked: int = 0
    unreachable: int = 0
    """Requests that came to the right cluster, which has no endpoint (a subset without pods), or to an injected fault."""
    _prefix: str = field(default_factory=lambda: f"{os.getpid()}-{time.time():.0f}")

    def served(self, address: str, name: str, way: Way) -> str:
        """What is wrong with a way; "" if the right backend answers."""
        self.asked += 1
        ident = f"{self._prefix}-{self.asked}"
        reply = ask(address, way.port, name, way.request, tls=way.tls, ident=ident)
        if way.http:
            route, cluster, flags = self.log.of(ident)
            if route != way.route or cluster not in (*way.clusters, "-"):
                return f"{way}: took route {route} to {cluster}, flags {flags}"
            if flags != "-":
                self.unreachable += 1
                return ""
        elif not reply.service:
            self.unreachable += 1
            return ""
        return "" if reply.service in way.hosts else f"{way}: {reply}"

    def not_served(self, address: str, name: str, port: int, *, tls: bool) -> str:
        self.asked += 1
        reply = ask(address, port, name, Request("/zz"), tls=tls, ident=f"{self._prefix}-{self.asked}")
        return f"port {port}: {reply}" if reply.service == name else ""


def best_ways(served: Served) -> Iterator[Way]:
    """One per port: to the Service itself where there is such a way, and alone if possible."""
    for port in served.ports:
        yield min(
            (way for way in served.ways if way.port == port),
            key=lambda way: (DESTINATION not in way.claims, len(way.clusters), way.tls),
        )
