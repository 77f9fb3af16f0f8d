"""The parts of README.md that are made of measurements: between two marks, written by whoever renders the report.

A test holds each against its JSON, so that no figure in the README can be an old one.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.errors import BenchError

FILE = Path(__file__).parents[1] / "README.md"


def filled(readme: str, part: str, text: str) -> str:
    """The README with `text` as its part of that name. Raises BenchError where its marks are missing."""
    before, begin, rest = readme.partition(f"<!-- {part} -->\n")
    _, end, after = rest.partition(f"<!-- end of {part} -->\n")
    if not begin or not end:
        raise BenchError(f"{FILE.name} has no place for its part {part!r}")
    return f"{before}{begin}{text}{end}{after}"


def fill(part: str, text: str) -> None:
    """Write it. Raises BenchError."""
    FILE.write_text(filled(FILE.read_text(), part, text))
