"""A way to the API server that a test can cut: octets are passed on as they are, so TLS and certificates are the server's.

Rules of this file:
- `cut` resets every connection, as a node's death does; new ones are let through at once;
- `close` lets nobody in until `open`: connections are refused, as where no API server runs;
- whoever is to be cut is told the relay's port; all others ask the API server itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from pathlib import Path

from tests.e2e.controlplane import HOST, PORT

RELAY_PORT = 6444


class Relay:
    """Listens on every address at `RELAY_PORT`; closed until `open`."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()

    def open(self) -> None:
        listener = socket.create_server(("0.0.0.0", RELAY_PORT), backlog=100)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            # what waits in accept() is not woken by close() alone
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def through(self, kubeconfig: Path, written: Path) -> Path:
        """The same kubeconfig with this way to the server."""
        config = json.loads(kubeconfig.read_text())
        for one in config["clusters"]:
            one["cluster"]["server"] = f"https://{HOST}:{RELAY_PORT}"
        written.write_text(json.dumps(config))
        return written

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, PORT), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = client, server
            with self._lock:
                self._pairs.add(pair)
            for source, sink in (pair, (server, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
