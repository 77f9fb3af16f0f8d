"""HTTP servers that stand for the workloads of the cluster: one child process serves all of them.

Rules of this file:
- a backend has a name (a workload: "helloworld", version "v1") and listens on pod addresses, and where a test wants to see
  traffic that goes past the gateway, on a ClusterIP too; every reply says who answered, and at which address;
- the child is told what to do by lines of JSON on its standard input and answers each with one line;
- it can be told to fail the next requests, to be slow, and says how many requests it got;
- all its sockets share their port (SO_REUSEPORT): Envoy listens on the same ports of every address.

`python -m tests.e2e.backends` is the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.processes import Process, until

Address = tuple[str, int]


class Backends:
    """The child process, and what it is told. Raises AssertionError with its words when it cannot do it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "backends.socket"
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = Process(
            [sys.executable, "-m", "tests.e2e.backends", str(self._path)],
            folder / "backends.log",
            {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self._control: socket.socket | None = None

    def start(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen(1)
            self._process.launch()
            until(lambda: self._process.alive() and select.select([listener], [], [], 0.1)[0], 30, "the backends answer")
            self._control = listener.accept()[0]
        self._control.settimeout(30)
        self._replies = self._control.makefile("rb")

    def end(self) -> None:
        if self._control is not None:
            self._replies.close()
            self._control.close()
        self._process.kill()

    def serve(self, name: str, *addresses: Address, version: str = "v1") -> None:
        """Listens; the replies of these addresses say `name` and `version`. More addresses may be added later."""
        self._tell("serve", name=name, version=version, addresses=[list(address) for address in addresses])

    def close(self, name: str) -> None:
        """Takes away all addresses of a name; open connections are cut."""
        self._tell("close", name=name)

    def fail(self, name: str, first: int, status: int = 503) -> None:
        """The next `first` requests to any address of the name are answered with `status`."""
        self._tell("fail", name=name, first=first, status=status)

    def slow(self, name: str, seconds: float) -> None:
        """Every request waits so long; 0: at once again."""
        self._tell("slow", name=name, seconds=seconds)

    def requests(self, name: str) -> dict[str, int]:
        """How many requests arrived so far, by "version address:port"; failed ones too."""
        return dict(self._tell("requests", name=name))

    def _tell(self, verb: str, **what: Any) -> Any:
        assert self._control is not None, "start() first"
        self._control.sendall(json.dumps({"verb": verb, **what}).encode() + b"\n")
        line = self._replies.readline()
        assert line, self._process.said()
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]


# --- the child ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Backend:
    name: str
    servers: list[asyncio.Server] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    requests: dict[str, int] = field(default_factory=dict)
    failing: int = 0
    status: int = 503
    seconds: float = 0


class _Child:
    def __init__(self) -> None:
        self._backends: dict[str, _Backend] = {}

    async def run(self, path: str) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        while line := await reader.readline():
            told = json.loads(line)
            try:
                answer = {"result": await getattr(self, told.pop("verb"))(**told)}
            except OSError as problem:
                answer = {"error": str(problem)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    def _get(self, name: str) -> _Backend:
        return self._backends.setdefault(name, _Backend(name))

    async def serve(self, name: str, version: str, addresses: list[Address]) -> None:
        backend = self._get(name)
        for host, port in addresses:
            place = f"{version} {host}:{port}"

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: str = place) -> None:
                await _connection(backend, version, place, reader, writer)

            backend.servers.append(await asyncio.start_server(answer, host, port, reuse_port=True, backlog=1000))
            backend.requests.setdefault(place, 0)

    async def close(self, name: str) -> None:
        backend = self._backends.pop(name, None)
        if backend is not None:
            for server in backend.servers:
                server.close()
            for writer in [*backend.writers]:
                writer.transport.abort()

    async def fail(self, name: str, first: int, status: int) -> None:
        backend = self._get(name)
        backend.failing, backend.status = first, status

    async def slow(self, name: str, seconds: float) -> None:
        self._get(name).seconds = seconds

    async def requests(self, name: str) -> dict[str, int]:
        return self._get(name).requests


async def _connection(
    backend: _Backend, version: str, place: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    backend.writers.add(writer)
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            await reader.readexactly(int(headers.get("content-length", "0")))
            backend.requests[place] = backend.requests.get(place, 0) + 1
            status, backend.failing = (backend.status, backend.failing - 1) if backend.failing else (200, 0)
            if backend.seconds:
                await asyncio.sleep(backend.seconds)
            body = {
                "service": backend.name, "version": version, "address": place.split()[1], "path": head[0].split()[1],
                "gateway": "x-forwarded-for" in headers, "headers": headers,
            }  # fmt: skip
            data = json.dumps(body).encode() + b"\n"
            keep = headers.get("connection") != "close"
            lines = [
                f"HTTP/1.1 {status} {'OK' if status == 200 else 'Told-To-Fail'}",
                "content-type: application/json",
                f"content-length: {len(data)}",
                *([] if keep else ["connection: close"]),
            ]
            writer.write("\r\n".join((*lines, "", "")).encode() + data)
            await writer.drain()
            if not keep:
                break
    backend.writers.discard(writer)
    writer.close()


def main(path: str) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Child().run(path))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
