"""How much work an input makes: lines of canal-dns that are run for it, which is the same number on every machine.

Rules of this file:
- lines of canal_dns and of PyYAML's Python part are counted, and nothing else: of what runs in C, only how often it is called;
- counted by sys.settrace, some thirty times slower: for the corpus and the families, not while inputs are looked for.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import lru_cache
from types import FrameType
from typing import Any

from tests.fuzz.targets import Finding, Target, need

SIZES = (500, 2000, 8000)
"""Octets of a family's inputs."""
GROWTH = 1.5
"""Work for an input may grow so much faster than its size, between one of SIZES and the next: what is linear has at most 1."""


@lru_cache(maxsize=4096)
def _counted(path: str) -> bool:
    return ("/canal_dns/" in path or "/yaml/" in path) and "/tests/" not in path


class TooMuchError(Exception):
    """The limit was reached."""


def lines(call: Callable[[], None], limit: int = 1 << 62) -> int:
    """Lines that a call runs. Raises TooMuchError as soon as there are more than `limit`."""
    count = 0

    def inside(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count > limit:
                raise TooMuchError
        return inside

    def outside(frame: FrameType, _event: str, _argument: object) -> Any:
        return inside if _counted(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(outside)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def allowed(target: Target, data: bytes) -> int:
    return target.fixed + target.per_octet * len(data)


def bounded(target: Target, data: bytes) -> int:
    """Lines for an input. Raises Finding for more than the target allows, and what the target raises."""
    limit = allowed(target, data)
    try:
        # A refusal from inside might be taken for a fault of what it interrupts, and be handled: so it comes late.
        count = lines(lambda: target.one(data), 20 * limit)
    except TooMuchError:
        count = 20 * limit
    need(count <= limit, f"{count} lines for {len(data)} octets, {limit} are allowed")
    return count


def growth(target: Target) -> list[str]:
    """What grows faster than its input, or costs more than it may, among the target's families; one line each."""
    found = []
    for family in target.families:
        counts = []
        for size in SIZES:
            data = family(size)
            try:
                counts.append((len(data), bounded(target, data)))
            except Finding as problem:
                found.append(f"{family.__name__}, {len(data)} octets: {problem}")
                break
        for (size, count), (more, counted) in itertools.pairwise(counts):
            if more > size and counted > target.fixed + GROWTH * count * more / size:
                found.append(f"{family.__name__}: {count} lines for {size} octets, {counted} for {more}")
    return found
