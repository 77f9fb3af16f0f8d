"""Reading fields of a raw object: the right type, or FieldError with the path of the field and a sentence.

Rules of this file:
- an absent field and null are the same: the default;
- a wrong type is never guessed at: a text where a list is expected would be read letter by letter;
- only `resources` uses this, and turns FieldError into a Skip: no exception leaves the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_HOST = 253
"""Characters of a DNS name in text (RFC 1035: 255 octets on the wire)."""


class FieldError(Exception):
    """A field that cannot be used."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message
        super().__init__(f"{field}: {message}")


class Fields:
    """A mapping of the object, and where it stands."""

    __slots__ = ("mapping", "path")

    def __init__(self, mapping: Mapping[str, Any], path: str) -> None:
        self.mapping = mapping
        self.path = path

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return self.mapping.get(key) is not None

    def text(self, key: str, default: str = "") -> str:
        value = self.mapping.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise FieldError(self.where(key), f"a text is needed, not {_type(value)}")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if not value:
            raise FieldError(self.where(key), "this field is missing")
        return value

    def host(self, key: str) -> str:
        return host(self.required(key), self.where(key))

    def boolean(self, key: str) -> bool:
        value = self.mapping.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise FieldError(self.where(key), f"true or false is needed, not {_type(value)}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.mapping.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            shown = "nothing" if value is None else value if isinstance(value, int) else _type(value)
            raise FieldError(self.where(key), f"a whole number from {low} to {high} is needed, not {shown}"[:200])
        return value

    def child(self, key: str) -> Fields:
        """The mapping under `key`; empty where it is absent."""
        return _mapping(self.mapping.get(key), self.where(key))

    def children(self, key: str) -> Iterator[Fields]:
        """The mappings of the list under `key`."""
        for index, item in enumerate(self._items(key)):
            place = f"{self.where(key)}[{index}]"
            if item is None:
                raise FieldError(place, "an empty entry")
            yield _mapping(item, place)

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list under `key`."""
        items = self._items(key)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item:
                raise FieldError(f"{self.where(key)}[{index}]", f"a text is needed, not {_type(item)}")
        return tuple(items)

    def hosts(self, key: str) -> tuple[str, ...]:
        return tuple(host(text, f"{self.where(key)}[{index}]") for index, text in enumerate(self.texts(key)))

    def labels(self, key: str) -> tuple[tuple[str, str], ...]:
        """A mapping of texts to texts, as sorted pairs."""
        child = self.child(key)
        for name, value in child.mapping.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise FieldError(child.where(str(name)[:80]), f"a text is needed, not {_type(value)}")
        return tuple(sorted(child.mapping.items()))

    def _items(self, key: str) -> list[Any]:
        value = self.mapping.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise FieldError(self.where(key), f"a list is needed, not {_type(value)}")
        return value


def host(text: str, place: str) -> str:
    """A host as Istio writes it: its length is checked, and that it is one word."""
    bare = text.rpartition("/")[2]
    if len(bare) > MAX_HOST:
        raise FieldError(place, f"a host of {len(bare)} characters, at most {MAX_HOST} are allowed")
    if not text.isprintable() or " " in text:
        raise FieldError(place, f"{text[:80]!r} is not a host")
    return text


def _mapping(value: object, place: str) -> Fields:
    if value is None:
        return Fields({}, place)
    # What JSON gives is a dict; asking the abstract class is ten times slower.
    if type(value) is not dict and not isinstance(value, Mapping):
        raise FieldError(place, f"a mapping is needed, not {_type(value)}")
    return Fields(value, place)


def _type(value: object) -> str:
    names: dict[type, str] = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return "nothing" if value is None or value == "" else names.get(type(value), "a mapping")
