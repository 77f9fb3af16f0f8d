"""What is fuzzed: a target takes any octets, and raises where canal-dns does with them what it must not.

    @target("queries", "the decision for a packet", seeds=..., families=(...), fixed=..., per_octet=...)
    def queries(data: bytes) -> None: ...

Rules of this file:
- a target keeps nothing from one input to the next: what it finds is found again by the same octets alone;
- the same functions are run guided by coverage, over mutations, over the corpus, under sanitizers, and with their work counted;
- the corpus (`corpus/NAME/`) has an input per file; what a seed gives is in it already.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
MODULES = ("queries", "replies", "streams", "objects", "saved")
"""Of this package, with targets."""


class Finding(AssertionError):  # noqa: N818
    """An input for which canal-dns is not what it promises; the text says what was seen."""


def need(condition: object, text: str) -> None:
    """Raise Finding with the text unless the condition holds."""
    if not condition:
        raise Finding(text)


Family = Callable[[int], bytes]
"""An input of about so many octets, made to cost as much as it can."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    what: str
    one: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    families: tuple[Family, ...]
    fixed: int
    """Lines of canal-dns that an input may cost, whatever its size,"""
    per_octet: int
    """and so many more for each of its octets."""
    words: tuple[bytes, ...]
    """What inputs of its kind are made of, for the mutators."""
    largest: int
    """Octets of an input while it is looked for by chance."""

    def corpus(self) -> dict[str, bytes]:
        """Name of the file -> input, in order."""
        return {path.name: path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))}


TARGETS: dict[str, Target] = {}


def target(
    name: str,
    what: str,
    *,
    seeds: Callable[[], Iterable[bytes]],
    families: tuple[Family, ...] = (),
    fixed: int,
    per_octet: int,
    words: tuple[bytes, ...] = (),
    largest: int = 2048,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Registers a target."""

    def register(one: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[name] = Target(name, what, one, seeds, families, fixed, per_octet, words, largest)
        return one

    return register


def load() -> dict[str, Target]:
    """All targets by their names."""
    for module in MODULES:
        importlib.import_module(f"tests.fuzz.{module}")
    return TARGETS
