"""`python -m tests.fuzz.keep [TARGET ...] [--more FOLDER]`: the corpus anew, as small as it can be and still reach as far.

Of what is kept, the seeds, and the inputs in FOLDER (`grown` of a guided run), it takes the smallest that reach a place in the
code that none before them reached. What was found once stays, whatever it reaches: its name begins with `finding-`.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.targets import CORPUS, Target, load
from tests.fuzz.work import _counted

MOST = 250
"""Inputs of a target."""
LARGEST = 2500
"""Octets of an input."""

Place = tuple[str, int, int, int]
"""A line, the one before it, and how often in that order, in powers of two."""


def reached(call: Callable[[], None]) -> frozenset[Place]:
    """What a call reaches."""
    found: Counter[tuple[str, int, int]] = Counter()

    def outside(frame: FrameType, _event: str, _argument: object) -> Any:
        if not _counted(frame.f_code.co_filename):
            return None
        name, before = frame.f_code.co_filename, 0

        def inside(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal before
            if event == "line":
                found[name, before, frame.f_lineno] += 1
                before = frame.f_lineno
            return inside

        return inside

    sys.settrace(outside)
    try:
        call()
    finally:
        sys.settrace(None)
    return frozenset((*place, count.bit_length()) for place, count in found.items())


def keep(target: Target, more: list[bytes]) -> tuple[int, int]:
    """Write the corpus of a target. Gives how many inputs and octets it has now."""
    before = target.corpus()
    findings = {name: data for name, data in before.items() if name.startswith("finding-")}
    known: set[Place] = set()
    for data in findings.values():
        known |= reached(lambda data=data: target.one(data))  # type: ignore[misc]
    chosen: list[bytes] = []
    candidates = {data for data in (*before.values(), *target.seeds(), *more) if len(data) <= LARGEST}
    for data in sorted(candidates - set(findings.values()), key=lambda data: (len(data), data)):
        places = reached(lambda data=data: target.one(data))  # type: ignore[misc]
        if len(chosen) < MOST and not places <= known:
            known |= places
            chosen.append(data)
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in before.keys() - findings.keys():
        (folder / name).unlink()
    for data in chosen:
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12]).write_bytes(data)
    whole = [*findings.values(), *chosen]
    return len(whole), sum(map(len, whole))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.keep")
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--more", type=Path, help="a folder with inputs of one target")
    wanted = parser.parse_args(arguments)
    logging.disable()
    targets = load()
    for name in wanted.targets or targets:
        more = [path.read_bytes() for path in sorted(wanted.more.iterdir())] if wanted.more else []
        inputs, octets = keep(targets[name], more)
        print(f"{name}: {inputs} inputs, {octets} octets")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
