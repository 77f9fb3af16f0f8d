"""Clients that call a Service all the time, as the workloads of a cluster do, and count every request that fails.

Rules of this file:
- `fresh`: a look-up through libc and a connection for every request;
- `ttl`: keeps an address for its TTL, as resolvers of language runtimes do, and connects anew; two seconds at most, since
  CoreDNS gives a Service's own address 30, and that one stays good;
- `kept`: one connection for as long as the server keeps it; a connection closed between requests is opened anew once, as
  HTTP clients do. DNS does not move these, so they are counted apart;
- a request has failed when it is not answered 200 within five seconds. Nothing is retried.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.e2e import cluster
from tests.e2e.ask import ask

SECONDS = 5.0
LONGEST = 2.0
PAUSE = 0.01
"""Between a client's requests: the machine has other things to do."""


@dataclass(slots=True)
class Kind:
    """What one kind of client saw."""

    requests: int = 0
    through: int = 0
    """Of these, answered through the gateway."""
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Calls `http://HOST:PORT/PATH`; `host` as the clients write it ("helloworld.default")."""

    def __init__(self, host: str, port: int, path: str = "/hello") -> None:
        self.host, self.port, self.path = host, port, path
        self.fresh, self.ttl, self.kept = Kind(), Kind(), Kind()
        self._stop = threading.Event()
        self._began = time.monotonic()

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        """Clients of all three kinds, until the end of the block."""
        clients = (self._fresh, self._fresh, self._ttl, self._kept)
        threads = [threading.Thread(target=client, daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(2 * SECONDS)
            assert not any(thread.is_alive() for thread in threads)

    def seen(self, kind: Kind) -> tuple[int, int]:
        """Requests answered so far: through the gateway, and past it."""
        return kind.through, kind.requests - kind.through - len(kind.failures)

    def _fresh(self) -> None:
        while not self._stop.wait(PAUSE):
            with self._counting(self.fresh):
                connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
                try:
                    self._ask(connection, self.fresh)
                finally:
                    connection.close()

    def _ttl(self) -> None:
        name, address, until = cluster.fqdn(self.host), "", 0.0
        while not self._stop.wait(PAUSE):
            with self._counting(self.ttl):
                if time.monotonic() >= until:
                    answer = ask(cluster.KUBE_DNS[0], name, "A")
                    [rrset] = answer.message.answer
                    address, until = rrset[0].to_text(), time.monotonic() + min(rrset.ttl, LONGEST)
                connection = http.client.HTTPConnection(address, self.port, timeout=SECONDS)
                try:
                    self._ask(connection, self.ttl)
                finally:
                    connection.close()

    def _kept(self) -> None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        while not self._stop.wait(PAUSE):
            with self._counting(self.kept):
                try:
                    try:
                        self._ask(connection, self.kept)
                    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                        connection.close()
                        self._ask(connection, self.kept)
                except Exception:
                    connection.close()
                    raise
        connection.close()

    @contextmanager
    def _counting(self, kind: Kind) -> Iterator[None]:
        kind.requests += 1
        try:
            yield
        except (OSError, ValueError, http.client.HTTPException, AssertionError) as problem:
            kind.failures.append(f"after {time.monotonic() - self._began:.2f} s: {problem!r}")

    def _ask(self, connection: http.client.HTTPConnection, kind: Kind) -> None:
        connection.request("GET", self.path, headers={"Host": f"{self.host}:{self.port}"})
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == 200, f"{reply.status} {body[:80]!r}"
        kind.through += json.loads(body)["gateway"]
