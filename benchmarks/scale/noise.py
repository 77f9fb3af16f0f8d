"""Events of other objects: `python -m benchmarks.scale.noise FOLDER RATE FIRST` writes objects into etcd again, until told.

Rules of this file:
- in transactions, straight into etcd: the API server sees and sends every event as it would any other, but is not asked to take
  the writes, for which two cores would not do at such a rate;
- objects with a number from FIRST on only: the others are changed by whoever measures;
- nine of ten are Services written as they were (a new resourceVersion, as after a status update); the tenth is a
  VirtualService whose status is another one;
- never faster than the API server can tell of them: five times a second it must know what was written;
- evenly: a few every 10 ms. Says when it begins, and at the end how many were written in how many seconds.
"""

from __future__ import annotations

import base64
import http.client
import json
import select
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.scale.probe import Changer, administrator
from tests.e2e.controlplane import HOST, PORT

ETCD = ("127.0.0.1", 2379)
_SERVICES, _ROUTES = "/registry/services/specs/", "/registry/networking.istio.io/virtualservices/"
_STEP, _ASK = 0.01, 0.2
OBJECTS = 1000
"""So many Services from the first one on are written."""
_EACH = 10
"""One event in so many is a VirtualService's."""
_READ = 100_000


class Etcd:
    """etcd's gRPC gateway: JSON, octets in base64."""

    def __init__(self) -> None:
        self._connection = http.client.HTTPConnection(*ETCD, timeout=60)

    def __enter__(self) -> Etcd:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def some(self, prefix: str, limit: int) -> list[tuple[str, str]]:
        """Keys and values, both in base64, as they come."""
        last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        found = self._post("/v3/kv/range", {"key": _encoded(prefix), "range_end": _encoded(last), "limit": limit})
        return [(one["key"], one["value"]) for one in found.get("kvs", ())]

    @staticmethod
    def put(key: str, value: Any) -> Any:
        """An operation for `write`; the value as JSON."""
        return {"requestPut": {"key": _encoded(key), "value": _encoded(json.dumps(value))}}

    def write(self, puts: list[Any]) -> str:
        """In one transaction: 128 operations at most. The revision, which is a resourceVersion."""
        return str(self._post("/v3/kv/txn", {"success": puts})["header"]["revision"])

    def _post(self, path: str, body: Any) -> Any:
        self._connection.request("POST", path, json.dumps(body))
        reply = self._connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise BenchError(f"etcd: {reply.status} {data[:300]!r}")
        return json.loads(data)


def main(folder: Path, rate: int, first: int) -> None:
    server = Changer(HOST, PORT, administrator(folder))
    with Etcd() as etcd:
        services, routes = (
            [one for one in etcd.some(prefix, _READ) if first <= _number(base64.b64decode(one[0]).decode()) < first + OBJECTS]
            for prefix in (_SERVICES, _ROUTES)
        )
        written, asked = 0, 0.0
        print("begins", flush=True)
        began = now = time.monotonic()
        while not select.select([sys.stdin], [], [], max(0.0, _STEP - (time.monotonic() - now)))[0]:
            now = time.monotonic()
            due = int((now - began) * rate) - written
            if due > 0:
                puts = [_put(services, routes, number) for number in range(written, written + min(due, 100))]
                revision = etcd.write(puts)
                written += len(puts)
                if now - asked > _ASK:
                    # The API server answers when it has come to this version.
                    asked = now
                    _, place, name = base64.b64decode(services[0][0]).decode().rsplit("/", 2)
                    path = f"/api/v1/namespaces/{place}/services/{name}?resourceVersion={revision}"
                    server.finish(server.send("GET", path)[1])
    print(json.dumps({"written": written, "seconds": now - began}), flush=True)


def _put(services: list[tuple[str, str]], routes: list[tuple[str, str]], number: int) -> Any:
    if number % _EACH or not routes:
        key, value = services[number % len(services)]
    else:
        key, value = routes[number // _EACH % len(routes)]
        thing = json.loads(base64.b64decode(value))
        thing["status"] = {"observedGeneration": number}
        value = base64.b64encode(json.dumps(thing).encode()).decode()
    return {"requestPut": {"key": key, "value": value}}


def _number(key: str) -> int:
    """Of an object of `content`; -1 for others."""
    _, mark, number = key.rpartition("-api-")
    return int(number) if mark else -1


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
