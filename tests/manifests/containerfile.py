"""Reads Containerfile and .containerignore, as far as this project uses them.

Rules of this file:
- an instruction that is not understood is an error: a rehearsal that leaves a step out proves nothing;
- nothing here runs anything.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "Containerfile"
IGNORE = ROOT / ".containerignore"


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, its text), in order."""

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def stages(text: str) -> list[Stage]:
    """Raises ValueError for what is not understood."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction not in (
            "ARG",
            "FROM",
            "ENV",
            "WORKDIR",
            "COPY",
            "RUN",
            "LABEL",
            "USER",
            "EXPOSE",
            "STOPSIGNAL",
            "ENTRYPOINT",
            "CMD",
        ):
            raise ValueError(f"Containerfile: {instruction} is not understood")
        if instruction == "FROM":
            base, _, name = expand(rest, arguments).partition(" AS ")
            found.append(Stage(base, name))
        elif not found:
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            found[-1].steps.append((instruction, rest.strip()))
    return found


def expand(text: str, variables: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` as far as they are known."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), text)


def pairs(text: str) -> dict[str, str]:
    """`A=b C="d e"`"""
    return dict(part.split("=", 1) for part in shlex.split(text))


def words(text: str) -> list[str]:
    """The exec form of ENTRYPOINT and CMD. Raises ValueError for the shell form, which would swallow signals."""
    said = json.loads(text)
    if not isinstance(said, list):
        raise ValueError(f"{text}: the exec form is needed")
    return said


def is_sent(path: str) -> bool:
    """Does .containerignore let a path of the project through to the build?"""
    sent = True
    for line in IGNORE.read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, keep = line.removeprefix("!"), line.startswith("!")
            parents = [path, *map(str, Path(path).parents)]
            tail = pattern.removeprefix("**/")
            if any(fnmatch.fnmatch(one, pattern) or (tail != pattern and Path(one).name == tail) for one in parents):
                sent = keep
    return sent
