"""The JSON schema of canal-dns's configuration, taken from the code that reads it and the file that shows it.

Rules of this file:
- which keys there are, and what may stand there, is what `canal_dns.settings.reading` asks for: its parsers are looked into;
- what a key means is the comment beside it in config/canal-dns.yaml;
- a parser that is not known here is an error: a schema that lets everything through is none.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from canal_dns.settings import reading
from manifests.tools.places import CONFIG

Schema = dict[str, Any]

_ADDRESS = r"(\[[0-9a-fA-F:.]+\]|[0-9.]+)"
_FIXED: Mapping[str, Schema] = {
    "_listener": {"type": "string", "pattern": rf"^{_ADDRESS}:[0-9]{{1,5}}$"},
    "_upstream": {"type": "string", "pattern": rf"^{_ADDRESS}(:[0-9]{{1,5}})?$"},
    "_admin": {"anyOf": [{"type": "string", "pattern": rf"^{_ADDRESS}:[0-9]{{1,5}}$"}, {"enum": ["off", False]}]},
    "_workers": {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": 1024}]},
    "_user": {"type": "string", "pattern": "^(auto|[0-9]{1,10}(:[0-9]{1,10})?)$"},
    "_text_or_nothing": {"type": "string"},
    "_boolean": {"type": "boolean"},
    "_network": {"type": "string", "pattern": r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"},
    "_domain": {"type": "string", "minLength": 1, "maxLength": 121},
    "_service": {"type": "string", "pattern": r"^[a-z0-9.-]+/[a-z0-9.-]+$"},
    "_namespaced": {"type": "string", "pattern": r"^([a-z0-9.-]+|\*)/([a-z0-9.-]+|\*)$"},
    "_labels": {"type": "object", "additionalProperties": {"type": "string"}},
}
"""Parsers without parameters."""


def of_settings() -> Schema:
    """The schema of a whole configuration."""
    asked = _asked()
    return _section("", asked, _comments(CONFIG.read_text()))


def _asked() -> dict[str, dict[str, Callable[..., Any] | None]]:
    """{section: {key: its parser, or None for a section}}, as `parse` asks for them; "[]" stands for an item of a list."""
    asked: dict[str, dict[str, Callable[..., Any] | None]] = {}

    class Recorder(reading._Section):
        def __init__(self, path: str, mapping: object) -> None:
            super().__init__(path, mapping)
            self.keys = asked.setdefault(re.sub(r"\[\d+\]", "[]", path), {})

        def section(self, key: str) -> reading._Section:
            self.keys[key] = None
            self._known.add(key)
            return Recorder(self.where(key), self.mapping.get(key))

        def take(self, key: str, parser: Callable[..., Any], default: Any) -> Any:
            self.keys[key] = parser
            return super().take(key, parser, default)

    shown = yaml.safe_load(CONFIG.read_text())
    original = reading._Section
    reading._Section = Recorder  # type: ignore[misc]
    try:
        for source in ({"cluster": {}}, {"manifests": "manifests"}):  # one of the two may stand there
            reading.parse({**shown, "source": source})
    finally:
        reading._Section = original  # type: ignore[misc]
    return asked


def _section(path: str, asked: Mapping[str, Mapping[str, Callable[..., Any] | None]], comments: Mapping[str, str]) -> Schema:
    properties: Schema = {}
    for key, parser in asked[path].items():
        where = f"{path}.{key}" if path else key
        schema = _section(where, asked, comments) if parser is None else _value(where, parser, asked, comments)
        comment = comments.get(where)
        properties[key] = {"description": comment, **schema} if comment else schema
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}


def _value(
    where: str,
    parser: Callable[..., Any],
    asked: Mapping[str, Mapping[str, Callable[..., Any] | None]],
    comments: Mapping[str, str],
) -> Schema:
    """An absent value and null are the same to the parser, and null is how Helm takes a default away."""
    schema = _type(where, parser, asked, comments)
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    return {"anyOf": [*schema["anyOf"], {"type": "null"}]}


def _type(
    where: str,
    parser: Callable[..., Any],
    asked: Mapping[str, Mapping[str, Callable[..., Any] | None]],
    comments: Mapping[str, str],
) -> Schema:
    bound = inspect.getclosurevars(parser).nonlocals
    match parser.__qualname__.split(".")[0]:
        case "_list_of":
            return {"type": "array", "items": _type(f"{where}[]", bound["parser"], asked, comments)}
        case "_gateway":
            section = _section(where, asked, comments)
            return {**section, "type": "object", "required": ["service"]}
        case "_integer":
            return {"type": "integer", "minimum": bound["low"], "maximum": bound["high"]}
        case "_duration":
            return {"anyOf": [{"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"}, {"const": 0}]}
        case "_duration_or_off":
            duration = _type(where, bound["duration"], asked, comments)
            return {"anyOf": [*duration["anyOf"], {"enum": ["off", False]}]}
        case "_choice":
            return {"enum": [member.value for member in bound["kind"]]}
        case "_one_of":
            return {"enum": list(bound["allowed"])}
        case "_text":
            return {"type": "string", "minLength": 1}
        case name if name in _FIXED:
            return dict(_FIXED[name])
        case name:
            raise LookupError(f"{where}: what {name} accepts is not known to {__name__}")


def _comments(text: str) -> dict[str, str]:
    """{dotted key: the comment beside it}; keys in list items and keys that are commented out are left out."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([A-Za-z]+):(.*)$", line)
        if match is None:
            continue
        indent, key, rest = len(match[1]), match[2], match[3]
        above = [(level, name) for level, name in above if level < indent] + [(indent, key)]
        comment = re.search(r"(?:^|\s)# (.+)$", rest)
        if comment:
            found[".".join(name for _, name in above)] = comment[1].strip()
    return found
