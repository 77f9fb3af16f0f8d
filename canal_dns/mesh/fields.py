"""Reading fields of a raw object: the right type, or FieldError with the path of the field and a sentence.

Rules of this file:
- an absent field and null are the same: the default;
- a wrong type is never guessed at: a text where a list is expected would be read letter by letter;
- paths are put together when somebody asks: tens of thousands of objects have nothing to complain of;
- only `resources` uses this, and turns FieldError into a Skip: no exception leaves the border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
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

    __slots__ = ("_above", "_index", "_key", "mapping")

    def __init__(
        self, mapping: Mapping[str, Any], above: Fields | None = None, key: str = "", index: int | None = None
    ) -> None:
        """`above`: what it is found in, under `key`; there, if that is a list, at `index`. None: it is the object itself."""
        self.mapping = mapping
        self._above = above
        self._key = key
        self._index = index

    @property
    def path(self) -> str:
        if self._above is None:
            return ""
        place = self._above.where(self._key)
        return place if self._index is None else f"{place}[{self._index}]"

    def where(self, key: str) -> str:
        path = self.path
        return f"{path}.{key}" if path else key

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
        text = self.required(key)
        why = _no_host(text)
        if why:
            raise FieldError(self.where(key), why)
        return text

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
        value = self.mapping.get(key)
        # What JSON gives is a dict; asking the abstract class is ten times slower.
        return Fields(value, self, key) if type(value) is dict else self._odd(value, key)

    def children(self, key: str) -> Iterable[Fields]:
        """The mappings of the list under `key`."""
        items = self._items(key)
        return self._each(items, key) if items else ()

    def _each(self, items: list[Any], key: str) -> Iterator[Fields]:
        for index, item in enumerate(items):
            if item is None:
                raise FieldError(f"{self.where(key)}[{index}]", "an empty entry")
            yield Fields(item, self, key, index) if type(item) is dict else self._odd(item, key, index)

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list under `key`."""
        items = self._items(key)
        if not items:
            return ()
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item:
                raise FieldError(f"{self.where(key)}[{index}]", f"a text is needed, not {_type(item)}")
        return tuple(items)

    def hosts(self, key: str) -> tuple[str, ...]:
        texts = self.texts(key)
        for index, text in enumerate(texts):
            why = _no_host(text)
            if why:
                raise FieldError(f"{self.where(key)}[{index}]", why)
        return texts

    def labels(self, key: str) -> tuple[tuple[str, str], ...]:
        """A mapping of texts to texts, as sorted pairs."""
        if self.mapping.get(key) is None:
            return ()
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

    def _odd(self, value: object, key: str, index: int | None = None) -> Fields:
        """What is no dict: nothing, another mapping, or wrong."""
        found = Fields(value if isinstance(value, Mapping) else _NOTHING, self, key, index)
        if value is not None and found.mapping is _NOTHING:
            raise FieldError(found.path, f"a mapping is needed, not {_type(value)}")
        return found


_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _no_host(text: str) -> str:
    """Why this is no host as Istio writes it, by its length or because it is not one word; "" if it is."""
    if len(text) > MAX_HOST:
        bare = text.rpartition("/")[2]
        if len(bare) > MAX_HOST:
            return f"a host of {len(bare)} characters, at most {MAX_HOST} are allowed"
    return "" if text.isprintable() and " " not in text else f"{text[:80]!r} is not a host"


def _type(value: object) -> str:
    names: dict[type, str] = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return "nothing" if value is None or value == "" else names.get(type(value), "a mapping")
