"""Octets of a list or a watch become records: only the fields that `mesh.resources` reads ever become Python objects.

Rules of this file:
- two steps: the envelope with its objects left as octets, then each object, cut to size while it is decoded;
- `resources.parse` stays the one judge: an object that does not have the expected shape is decoded whole, so that it can say
  what is wrong;
- what is no JSON at all raises MalformedError; nothing else leaves this file as an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import msgspec

from canal_dns.kube.kinds import Kind
from canal_dns.mesh import resources
from canal_dns.mesh.records import Record, Skip

T = TypeVar("T")
R = TypeVar("R")

MAX_LINE = 16 * 1024 * 1024
"""Octets of one event: etcd takes objects of 1.5 MiB, which JSON may blow up."""


DEPTH = 15_000
"""Levels of one object. The API server takes 10,000, in a `status` that nobody checks for one; Python's own limit is 1,000."""


class MalformedError(Exception):
    """Octets that are not what the API says; the text says how."""


_Annotations = TypedDict(
    "_Annotations",
    {
        "canal-dns.io/bind": Any,
        "canal-dns.io/allow-from": Any,
        "canal-dns.io/ttl": Any,
        "networking.istio.io/exportTo": Any,
    },
    total=False,
)
_Labels = TypedDict("_Labels", {"istio.io/rev": Any, "kubernetes.io/service-name": Any}, total=False)


class _Meta(TypedDict, total=False):
    name: Any
    namespace: Any
    creationTimestamp: Any
    resourceVersion: Any
    labels: _Labels | None
    annotations: _Annotations | None


class _Object(TypedDict, total=False):
    """Most kinds: no managedFields, no status, of the annotations those that are read."""

    apiVersion: Any
    kind: Any
    metadata: _Meta | None
    spec: Any


class _Slice(TypedDict, total=False):
    apiVersion: Any
    kind: Any
    metadata: _Meta | None
    endpoints: Any
    ports: Any


class _NamedMeta(TypedDict, total=False):
    name: Any
    namespace: Any
    resourceVersion: Any
    labels: Any


class _Container(TypedDict, total=False):
    ports: Any


class _PodSpec(TypedDict, total=False):
    hostNetwork: Any
    containers: list[_Container] | None


class _Pod(TypedDict, total=False):
    apiVersion: Any
    kind: Any
    metadata: _NamedMeta | None
    spec: _PodSpec | None


class _Bare(TypedDict, total=False):
    """A Namespace is its name and its annotations; of a deleted object only the name counts."""

    apiVersion: Any
    kind: Any
    metadata: _Meta | None


_SHAPES: dict[str, Any] = {"EndpointSlice": _Slice, "Pod": _Pod, "Namespace": _Bare}


class _PageMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    token: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    kind: str = ""
    metadata: _PageMeta | None = None
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str = ""
    object: msgspec.Raw = msgspec.Raw()
    kind: str = ""


_page = msgspec.json.Decoder(_Page).decode
_event = msgspec.json.Decoder(_Event).decode
_anything = msgspec.json.Decoder().decode

_FAILURES = (msgspec.MsgspecError, ValueError, RecursionError)


def _deep(decode: Callable[[T], R], octets: T) -> R:
    """Decode what may be nested deeper than Python allows in the ordinary way: one such object must not spoil a list."""
    try:
        return decode(octets)
    except RecursionError:
        ordinary = sys.getrecursionlimit()
        sys.setrecursionlimit(DEPTH)
        try:
            return decode(octets)
        finally:
            sys.setrecursionlimit(ordinary)


@dataclass(frozen=True, slots=True)
class Page:
    """One part of a list."""

    version: str
    """resourceVersion of the whole list."""
    token: str
    """`continue`: what asks for the next part; "": this is the last one."""
    items: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch. `type` is ERROR for a Status that stands in the place of events."""

    type: str
    object: bytes | msgspec.Raw


def page(body: bytes) -> Page:
    """Read the envelope of a list."""
    try:
        found = _deep(_page, body)
    except _FAILURES as problem:
        raise MalformedError(f"not a list: {problem}") from None
    if not found.kind.endswith("List") or found.metadata is None:
        raise MalformedError(f"not a list but {found.kind[:80] or 'an object without a kind'!r}")
    return Page(found.metadata.resourceVersion, found.metadata.token, found.items or [])


def event(line: bytes) -> Event:
    """Read the envelope of an event."""
    try:
        found = _deep(_event, line)
    except _FAILURES as problem:
        raise MalformedError(f"not an event: {problem}") from None
    if not found.type:
        if found.kind == "Status":
            return Event("ERROR", line)
        raise MalformedError("an event without a type")
    return Event(found.type, found.object)


class Objects:
    """Objects of one kind, as one API version has them."""

    def __init__(self, kind: Kind, version: str) -> None:
        self._api_version = kind.api_version(version)
        self._kind = kind.name
        self._cut = msgspec.json.Decoder(_SHAPES.get(kind.name, _Object)).decode

    def read(self, octets: bytes | msgspec.Raw) -> tuple[str, Record | Skip | None]:
        """Its resourceVersion, and the record, or why it is of no use; None: another kind. Raises MalformedError."""
        raw = self._raw(octets, self._cut)
        if isinstance(raw, dict):
            # The API leaves both out inside of a list.
            raw.setdefault("kind", self._kind)
            raw.setdefault("apiVersion", self._api_version)
            if raw["kind"] == self._kind:
                return _version(raw), resources.parse(raw)
        return "", None

    def name(self, octets: bytes | msgspec.Raw) -> tuple[str, str, str]:
        """Its resourceVersion, namespace and name. Raises MalformedError."""
        raw = self._raw(octets, _bare)
        meta = raw.get("metadata") if isinstance(raw, dict) else None
        if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not meta["name"]:
            raise MalformedError("an object without a name")
        if raw.get("kind") != self._kind:
            raise MalformedError(f"an object of another kind than {self._kind}")
        namespace = meta.get("namespace")
        return _version(raw), namespace if isinstance(namespace, str) else "", meta["name"]

    @staticmethod
    def version(octets: bytes | msgspec.Raw) -> str:
        """The resourceVersion of a bookmark. Raises MalformedError."""
        raw = Objects._raw(octets, _bare)
        return _version(raw) if isinstance(raw, dict) else ""

    @staticmethod
    def _raw(octets: bytes | msgspec.Raw, cut: Any) -> Any:
        try:
            return _deep(cut, octets)
        except msgspec.ValidationError:
            pass
        except _FAILURES as problem:
            raise MalformedError(f"not an object: {problem}") from None
        try:
            return _deep(_anything, octets)
        except _FAILURES as problem:
            raise MalformedError(f"not an object: {problem}") from None


_bare = msgspec.json.Decoder(_Bare).decode


def _version(raw: dict[str, Any]) -> str:
    meta = raw.get("metadata")
    version = meta.get("resourceVersion") if isinstance(meta, dict) else None
    return version if isinstance(version, str) else ""


class Lines:
    """A stream cut into lines."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    @property
    def rest(self) -> bytes:
        """The line that has no end yet."""
        return b"".join(self._begun)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, empty ones left out. Raises MalformedError for one that is longer than MAX_LINE."""
        *whole, tail = chunk.split(b"\n")
        if whole and self._begun:
            whole[0] = self.rest + whole[0]
            self._begun, self._size = [], 0
        if tail:
            self._begun.append(tail)
            self._size += len(tail)
        if self._size > MAX_LINE or any(len(line) > MAX_LINE for line in whole):
            raise MalformedError(f"a line of more than {MAX_LINE} octets")
        return [line for line in whole if line]
