"""The bytes of one manifest file, cut into Kubernetes objects: YAML (several documents), JSON, and `List` kinds.

Rules of this file:
- it gets bytes and gives plain mappings with the line on which each begins, or raises ManifestError; no files, no clock;
- what the bytes may cost is bounded before it is built: depth, the size that aliases blow up to (libyaml's own composer
  recurses on the C stack and dies of a deep document);
- only plain data comes out: no foreign tags, and `2024-01-01` stays text, as `kubectl` reads it;
- one bad document makes the whole file unusable: half a file is a state that nobody wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.events import AliasEvent
from yaml.nodes import Node
from yaml.resolver import Resolver

from canal_dns.errors import ManifestError

try:
    from yaml._yaml import CParser as _Events
except ImportError:
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class _Events(Reader, Scanner, Parser):  # type: ignore[no-redef]
        """The same events without libyaml, some ten times slower."""

        def __init__(self, data: bytes) -> None:
            Reader.__init__(self, data)
            Scanner.__init__(self)
            Parser.__init__(self)


MAX_DEPTH = 100
"""Nested collections in one document; Kubernetes objects need fewer than 30."""
MORE_NODES = 100_000
"""Values in one file beyond one per octet, aliases counted as often as they are used: without them no file has so many."""
MAX_LISTS = 4
"""`List` kinds inside `List` kinds."""


@dataclass(frozen=True, slots=True)
class Document:
    """One object as it was written, and the line (from 1) on which its document begins; None where that is not known."""

    raw: Mapping[str, Any]
    line: int | None


def read(data: bytes, path: str) -> list[Document]:
    """All objects of a file; `path` is for messages, and tells JSON by its ending.

    Raises ManifestError with the line of the first problem.
    """
    documents = _json(data, path) if path.lower().endswith(".json") else _yaml(data, path)
    objects: list[Document] = []
    for value, line in documents:
        if value is not None:
            objects.extend(_objects(value, line, path, 0))
    return objects


def _objects(value: object, line: int | None, path: str, depth: int) -> Iterator[Document]:
    if not isinstance(value, Mapping):
        raise ManifestError(path, line, f"a Kubernetes object is needed, this is {_name(value)}")
    kind = value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise ManifestError(path, line, "not a Kubernetes object: `kind` is missing")
    if not (kind.endswith("List") and "items" in value):
        yield Document(value, line)
        return
    items = value["items"] if value["items"] is not None else []
    if depth == MAX_LISTS or not isinstance(items, list):
        raise ManifestError(
            path, line, f"`items` of a {kind[:80]!r} is {_name(items)} or nested too deep; a list of objects is needed"
        )
    for item in items:
        yield from _objects(_with_type(item, kind, value), line, path, depth + 1)


def _with_type(item: object, kind: str, parent: Mapping[str, Any]) -> object:
    """The item of a typed list (`ServiceList`) as an object of its own: the API leaves `kind` and `apiVersion` out there."""
    if not isinstance(item, Mapping) or kind == "List" or "kind" in item:
        return item
    return {"kind": kind.removesuffix("List"), "apiVersion": parent.get("apiVersion"), **item}


def _name(value: object) -> str:
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else f"a value of type {type(value).__name__}"


def _json(data: bytes, path: str) -> Iterator[tuple[object, int | None]]:
    try:
        yield json.loads(data), None
    except json.JSONDecodeError as problem:
        raise ManifestError(path, problem.lineno, f"not JSON: {problem.msg}") from None
    except (ValueError, RecursionError) as problem:
        raise ManifestError(path, None, f"not JSON: {problem}") from None


def _yaml(data: bytes, path: str) -> Iterator[tuple[object, int | None]]:
    line: int | None = None
    try:
        loader = _Loader(data)
        while loader.check_node():
            node: Any = loader.get_node()
            line = node.start_mark.line + 1
            yield loader.construct_document(node), line
    except ManifestError:
        raise
    except yaml.reader.ReaderError as problem:
        # PyYAML gives the place of an octet that is not text as an offset.
        line = data.count(b"\n", 0, problem.position) + 1
        raise ManifestError(path, line, f"not text: {problem.reason}") from None
    except yaml.MarkedYAMLError as problem:
        mark: Any = problem.problem_mark or problem.context_mark
        text = ", ".join(part for part in (problem.context, problem.problem) if part)
        raise ManifestError(path, mark.line + 1 if mark else line, f"not YAML: {text}") from None
    except Exception as problem:
        # The constructors for `!!int`, `!!bool` and the like raise what they please (KeyError, IndexError, AttributeError).
        raise ManifestError(path, line, f"not YAML: {type(problem).__name__}: {problem}") from None


class _Loader(Composer, _Events, SafeConstructor, Resolver):
    """CSafeLoader with the composer that can be bounded, without the implicit timestamps and the numbers to the base of 60."""

    # YAML 1.1 would make a datetime of an unquoted creationTimestamp.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }

    def __init__(self, data: bytes) -> None:
        _Events.__init__(self, data)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = 0
        self._nodes = 0
        self._most = MORE_NODES + len(data)
        self._weights: dict[str, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        mark = event.start_mark
        before = self._nodes
        is_alias = isinstance(event, AliasEvent)
        if is_alias:
            if event.anchor in self.anchors and event.anchor not in self._weights:
                raise yaml.MarkedYAMLError(problem="an alias to what contains it", problem_mark=mark)
            self._nodes += self._weights.get(event.anchor, 0)
        self._nodes += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=mark)
        if self._nodes > self._most:
            raise yaml.MarkedYAMLError(problem=f"more than {self._most} values", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None and not is_alias:
            self._weights[event.anchor] = self._nodes - before
        return node


def _number(tag: str) -> None:
    """Numbers as the rest can take them.

    `1:30` is a text, as for `kubectl`: PyYAML would make a number to the base of 60 of it, which takes four times as long for
    twice as many digits. A number that Python cannot write in decimal is refused however it is written: who complains of a
    number has to.
    """
    make = SafeConstructor.yaml_constructors[tag]

    def construct(loader: Any, node: Any) -> Any:
        text = loader.construct_scalar(node)
        if ":" in text:
            return text
        value = make(loader, node)
        str(value)
        return value

    _Loader.add_constructor(tag, construct)


_number("tag:yaml.org,2002:int")
_number("tag:yaml.org,2002:float")
