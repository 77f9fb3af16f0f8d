"""A Kubernetes API server of our own, for what a real one does not do on demand. Real sockets, plain asyncio, HTTP or TLS.

    async with FakeApiServer() as server:
        server.put(make.service())                      # create or update; `server.delete(...)` takes it away
        settings = server.kubeconfig(tmp_path)          # ClusterSettings of a user with `server.bearer`
        ...
        await server.watching("services")               # a watch is open
        server.compact()                                # all watches of an older version: 410

It lists (limit, continue, labelSelector) and watches (from a version, with bookmarks on demand) whatever resources it is given;
every change has a version of its own. What goes wrong is scripted:

    server.next("services", "list", Refuse(429, retry_after=1), Reset())    # the next requests, one after the other
    server.always["gateways"] = Refuse(403)                                 # until the entry is deleted
    server.versions["networking.istio.io"] = ["v1beta1"]                    # others: 404
    server.bearer = "new"                                                    # anybody else: 401
    server.gzip, server.drip = True, (1000, 0.001)                          # how bodies travel
    for watch in server.watches("services"): watch.error(410); watch.cut(); watch.reset(); watch.mute(); watch.vanish()
    await server.stop(); await server.start()                               # same port, everything kept
    server.forget()                                                         # history gone, as after a long time away
    server.rewind(5)                                                        # an older backup was restored: versions go back

`server.requests` has every request that was read, `server.asked("services", "list")` those of a kind.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import ctypes
import gzip
import json
import ssl
import struct
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from canal_dns.settings import ClusterSettings
from tests.e2e.certificates import Authority

Raw = dict[str, Any]

RESOURCES = {
    "services": ("", "v1", "Service"),
    "pods": ("", "v1", "Pod"),
    "namespaces": ("", "v1", "Namespace"),
    "endpointslices": ("discovery.k8s.io", "v1", "EndpointSlice"),
    "gateways": ("networking.istio.io", "v1", "Gateway"),
    "virtualservices": ("networking.istio.io", "v1", "VirtualService"),
    "destinationrules": ("networking.istio.io", "v1", "DestinationRule"),
}
PLURALS = {kind: resource for resource, (_, _, kind) in RESOURCES.items()}

STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 410: "Gone"}
_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
}


def status(code: int, message: str = "", reason: str = "", **more: Any) -> Raw:
    """A meta/v1 Status."""
    told = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code}
    return {**told, "message": message or f"code {code}", "reason": reason or _REASONS.get(code, "Unknown"), **more}


TOO_LARGE = status(
    504,
    "Too large resource version: 9, current: 1",
    "Timeout",
    details={
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    },
)


@dataclass
class Request:
    """One request, as it was read."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    resource: str
    namespace: str
    version: str
    port: int
    """The client's: requests of one connection have the same."""
    at: float = field(default_factory=time.monotonic)
    """When it was read."""

    @property
    def verb(self) -> str:
        return "watch" if "watch" in self.query else "list"


@dataclass
class Refuse:
    """An HTTP error; `body` None: a Status with the code."""

    code: int
    message: str = ""
    retry_after: float | None = None
    body: bytes | Raw | None = None


@dataclass
class Body:
    """A whole response, not chunked, with this body and status 200."""

    body: bytes | Raw


@dataclass
class Reset:
    """RST before any octet of a response."""


@dataclass
class Hang:
    """No answer until the server stops."""


Fault = Refuse | Body | Reset | Hang


@dataclass(eq=False)
class Watch:
    """One open watch; what is done to it happens at once, in order."""

    request: Request
    server: FakeApiServer
    writer: asyncio.StreamWriter
    packer: Any = None
    muted: bool = False
    version: int = 0
    """All changes up to this one were sent."""
    queue: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def tell(self, kind: str, item: Raw) -> None:
        """An event."""
        self.send(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def error(self, code: int, message: str = "", body: Raw | None = None) -> None:
        """An ERROR event."""
        self.tell("ERROR", body or status(code, message))

    def bookmark(self) -> None:
        _, version, kind = RESOURCES[self.request.resource]
        self.tell("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(self.server.version)}})

    def send(self, octets: bytes) -> None:
        if not self.muted:
            self.queue.put_nowait(octets)

    def mute(self) -> None:
        """Silence: the connection stays, nothing is sent any more."""
        self.muted = True

    def unmute(self) -> None:
        """Go on; what was to be said meanwhile is lost."""
        self.muted = False

    def vanish(self) -> None:
        """The other side is unplugged: whatever the client sends is dropped unseen, and nothing comes from here any more."""
        self.mute()
        drop_everything = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # one instruction: BPF_RET, 0 octets
        program = struct.pack("HP", 1, ctypes.addressof(drop_everything))
        self.writer.get_extra_info("socket").setsockopt(1, 26, program)  # SOL_SOCKET, SO_ATTACH_FILTER

    def end(self) -> None:
        """The end that a watch comes to after timeoutSeconds."""
        self.queue.put_nowait(None)

    def cut(self, half: bytes = b"") -> None:
        """The connection ends without the last chunk, after these octets of it."""
        if half:
            self.writer.write(_chunk(half))
        self.writer.close()

    def reset(self) -> None:
        """RST."""
        _reset(self.writer)


class FakeApiServer:
    """See the module."""

    def __init__(self, authority: Authority | None = None) -> None:
        self.port = 0
        self.version = 100
        """The last change's."""
        self.bearer: str | None = "token"
        self.versions: dict[str, list[str]] = {"": ["v1"], "discovery.k8s.io": ["v1"], "networking.istio.io": ["v1"]}
        self.always: dict[str, Fault] = {}
        """Faults by resource, or `resource/verb`."""
        self.gzip = False
        self.drip: tuple[int, float] | None = None
        """Octets at a time, and the seconds between."""
        self.requests: list[Request] = []
        self.connections = 0
        self.authority = authority
        """Whose certificate it shows; None: no TLS."""
        self._objects: dict[str, dict[tuple[str, str], Raw]] = defaultdict(dict)
        self._history: list[tuple[int, str, str, Raw]] = []
        self._oldest = 0
        """Versions below are forgotten."""
        self._watches: list[Watch] = []
        self._next: dict[str, deque[Fault]] = defaultdict(deque)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._lists: dict[str, tuple[int, list[Raw]]] = {}

    async def __aenter__(self) -> FakeApiServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        tls = _tls(self.authority) if self.authority else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Gone, with all its connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._watches.clear()

    # What it has

    @property
    def url(self) -> str:
        return f"http{'s' if self.authority else ''}://127.0.0.1:{self.port}"

    def kubeconfig(self, folder: Path, **user: Any) -> ClusterSettings:
        """Settings of a client; `user`: the kubeconfig's user, by default one with the token of now."""
        cluster: Raw = {"server": self.url}
        if self.authority:
            cluster["certificate-authority-data"] = base64.b64encode((self.authority.folder / "ca.crt").read_bytes()).decode()
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user or {"token": self.bearer or ""}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(content))
        return ClusterSettings(str(path))

    def account(self, folder: Path) -> Path:
        """A folder as it is mounted into a pod; the environment has to name `port` too."""
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(self.bearer or "")
        if self.authority:
            (folder / "ca.crt").write_bytes((self.authority.folder / "ca.crt").read_bytes())
        return folder

    def objects(self, resource: str) -> dict[tuple[str, str], Raw]:
        """What it has now, by namespace and name."""
        return self._objects[resource]

    def put(self, *items: Raw) -> None:
        """Create or update."""
        for item in items:
            resource = PLURALS[item["kind"]]
            key = _key(item)
            self._change(resource, "MODIFIED" if key in self._objects[resource] else "ADDED", key, item)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        resource = PLURALS[kind]
        self._change(resource, "DELETED", (namespace, name), self._objects[resource][namespace, name])

    def _change(self, resource: str, event: str, key: tuple[str, str], item: Raw) -> None:
        self.version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self.version)
        if event == "DELETED":
            old = self._objects[resource].pop(key)
        else:
            old = self._objects[resource].get(key)
            self._objects[resource][key] = item
        self._history.append((self.version, resource, event, item))
        for watch in self._watches:
            # One that waits for a version still to come is told nothing before that.
            if watch.request.resource == resource and self.version > watch.version:
                self._inform(watch, event, item, old)
                watch.version = self.version

    @staticmethod
    def _inform(watch: Watch, event: str, item: Raw, old: Raw | None) -> None:
        """As the API server does: an object that leaves a selector is deleted for those that watch by it."""
        request = watch.request
        if request.namespace and request.namespace != item["metadata"].get("namespace"):
            return
        selects = _selector(request.query.get("labelSelector", ""))
        now, before = event != "DELETED" and selects(item), old is not None and selects(old)
        if now:
            watch.tell("MODIFIED" if before else "ADDED", item)
        elif before:
            watch.tell("DELETED", item)

    # What goes wrong

    def next(self, resource: str, verb: str, *faults: Fault) -> None:
        """What happens to the next requests of a resource; `verb`: list or watch."""
        self._next[f"{resource}/{verb}"].extend(faults)

    def compact(self) -> None:
        """Forget all history: watches and `continue` of older versions are answered 410."""
        self.version += 1
        self._oldest = self.version

    def forget(self) -> None:
        """As if a long time had gone by."""
        self.version += 1000
        self._oldest = self.version

    def rewind(self, version: int) -> None:
        """Another etcd: the version starts from here, history is empty; objects stay until they are changed."""
        self.version = self._oldest = version
        self._history.clear()

    # What was asked

    def watches(self, resource: str = "") -> list[Watch]:
        """Open watches."""
        return [watch for watch in self._watches if resource in ("", watch.request.resource)]

    def asked(self, resource: str, verb: str = "") -> list[Request]:
        return [request for request in self.requests if request.resource == resource and verb in ("", request.verb)]

    async def watching(self, *resources: str) -> None:
        """Until there is a watch of each."""
        await self.until(lambda: all(self.watches(resource) for resource in resources))

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    # How it answers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = _request(head, writer.get_extra_info("peername")[1])
                self.requests.append(request)
                if not await self._answer(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True if the connection may be used again."""
        fault = self._fault(request)
        match fault:
            case None:
                pass
            case Reset():
                _reset(writer)
                return False
            case Hang():
                await asyncio.Event().wait()
            case Refuse(code, message, retry_after, body):
                extra = f"Retry-After: {retry_after:g}\r\n" if retry_after is not None else ""
                await self._whole(writer, status(code, message) if body is None else body, code, extra)
                return True
            case Body(body):
                await self._whole(writer, body)
                return True
        if request.path == "/readyz":
            await self._whole(writer, b"ok")
            return True
        if request.verb == "list":
            await self._list(request, writer)
            return True
        return await self._watch(request, reader, writer)

    def _fault(self, request: Request) -> Fault | None:
        if self.bearer is not None and request.headers.get("authorization") != f"Bearer {self.bearer}":
            return Refuse(401)
        name = f"{request.resource}/{request.verb}"
        if self._next[name]:
            return self._next[name].popleft()
        always = self.always.get(name) or self.always.get(request.resource) or self.always.get("*")
        if always is None and request.resource in RESOURCES:
            group = RESOURCES[request.resource][0]
            if request.version not in self.versions[group]:
                return Refuse(404, body=b"404 page not found\n")
        return always

    async def _whole(self, writer: asyncio.StreamWriter, body: bytes | Raw, code: int = 200, extra: str = "") -> None:
        octets = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.gzip:
            octets, extra = gzip.compress(octets, 1), extra + "Content-Encoding: gzip\r\n"
        head = f"HTTP/1.1 {code} {STATUS.get(code, 'Other')}\r\nContent-Type: application/json\r\n{extra}"
        writer.write(f"{head}Content-Length: {len(octets)}\r\n\r\n".encode())
        await self._drip(writer, octets)

    async def _drip(self, writer: asyncio.StreamWriter, octets: bytes) -> None:
        size, pause = self.drip or (max(1, len(octets)), 0.0)
        for start in range(0, len(octets), size):
            writer.write(octets[start : start + size])
            await writer.drain()
            if self.drip:
                await asyncio.sleep(pause)

    async def _list(self, request: Request, writer: asyncio.StreamWriter) -> None:
        group, _, kind = RESOURCES[request.resource]
        token = request.query.get("continue", "")
        if token:
            number, _, start = token.partition("/")
            version, items = self._lists[number]
            if version < self._oldest:
                return await self._whole(writer, status(410, "The provided continue parameter is too old"), 410)
            begin = int(start)
        else:
            selects = _selector(request.query.get("labelSelector", ""))
            found = sorted(self._objects[request.resource].items())
            items = [item for (namespace, _), item in found if request.namespace in ("", namespace) and selects(item)]
            version, begin, number = self.version, 0, str(len(self._lists))
            self._lists[number] = version, items
        limit = int(request.query.get("limit", "0")) or len(items)
        more = f"{number}/{begin + limit}" if begin + limit < len(items) else ""
        part = [dict(item) for item in items[begin : begin + limit]]
        api_version = f"{group}/{request.version}" if group else request.version
        if group == "networking.istio.io":
            part = [{**item, "apiVersion": api_version} for item in part]
        else:
            for item in part:
                del item["kind"], item["apiVersion"]
        meta: Raw = {"resourceVersion": str(version)} | ({"continue": more} if more else {})
        return await self._whole(writer, {"kind": f"{kind}List", "apiVersion": api_version, "metadata": meta, "items": part})

    async def _watch(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        since = int(request.query["resourceVersion"])
        if since < self._oldest:
            await self._whole(writer, status(410, f"too old resource version: {since} ({self._oldest})"), 410)
            return True
        extra = "Content-Encoding: gzip\r\n" if self.gzip else ""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{extra}Transfer-Encoding: chunked\r\n\r\n".encode())
        watch = Watch(request, self, writer)
        watch.packer = zlib.compressobj(wbits=31) if self.gzip else None
        known: dict[tuple[str, str], Raw] = {}
        for version, resource, event, item in self._history:
            if resource == request.resource:
                if version > since:
                    self._inform(watch, event, item, known.get(_key(item)))
                known[_key(item)] = item
        watch.version = max(since, self.version)
        self._watches.append(watch)
        # A client that goes away says so by the end of its stream.
        leaving = asyncio.create_task(reader.read(1))
        leaving.add_done_callback(lambda _: watch.end())
        try:
            while (octets := await watch.queue.get()) is not None:
                if watch.packer:
                    octets = watch.packer.compress(octets) + watch.packer.flush(zlib.Z_SYNC_FLUSH)
                size, pause = self.drip or (len(octets), 0.0)
                for start in range(0, len(octets), size):
                    writer.write(_chunk(octets[start : start + size]))
                    await writer.drain()
                    if self.drip:
                        await asyncio.sleep(pause)
            writer.write((_chunk(watch.packer.flush()) if watch.packer else b"") + b"0\r\n\r\n")
            await writer.drain()
        finally:
            self._watches.remove(watch)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        return True


def _tls(authority: Authority) -> ssl.SSLContext:
    authority.sign("served", "apiserver", hosts=["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.folder / "served.crt", authority.folder / "served.key")
    return context


def _key(item: Raw) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _chunk(octets: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(octets), octets) if octets else b""


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        raw.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER: close() sends RST
    writer.transport.abort()


def _request(head: bytes, port: int) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    target = urlsplit(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    parts = target.path.strip("/").split("/")
    # /api/v1/..., /apis/GROUP/VERSION/..., with or without namespaces/NAME.
    version, rest = (parts[1], parts[2:]) if parts[0] == "api" else (parts[2] if len(parts) > 2 else "", parts[3:])
    namespace = rest[1] if len(rest) > 2 and rest[0] == "namespaces" else ""
    resource = (rest[2] if namespace else rest[0]) if rest else parts[-1]
    return Request(target.path, dict(parse_qsl(target.query)), headers, resource, namespace, version, port)


def _selector(text: str) -> Callable[[Raw], bool]:
    """labelSelector: `a=b,c in (d,e)`."""
    wanted: dict[str, set[str]] = {}
    for part in text.replace(", ", ",").split("),"):
        name, found, values = part.partition(" in (")
        if found:
            wanted[name] = set(values.rstrip(")").split(","))
        else:
            wanted |= {pair.partition("=")[0]: {pair.partition("=")[2]} for pair in part.split(",") if pair}
    return lambda item: all(item["metadata"].get("labels", {}).get(name) in values for name, values in wanted.items())
