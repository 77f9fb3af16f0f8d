"""Writes the figures into docs/reliability.md: `python -m tests.meta.render_reliability`; a test holds the document against it.

Rules of this file:
- figures come from the runs alone (`tests/*/results.json`); a run that was not made is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.figures import MET, read
from tests.meta.tree import ROOT

FILE = ROOT / "docs" / "reliability.md"
RUNS = {
    "faults": ROOT / "tests" / "faults" / "results.json",
    "soak": ROOT / "tests" / "soak" / "results.json",
    "fuzz": ROOT / "tests" / "fuzz" / "results.json",
}


def table(path: Path) -> Iterator[str]:
    """Raises FileNotFoundError where the run was never made."""
    told, figures = read(path)
    machine = told["machine"]
    assert isinstance(machine, dict)
    met = sum(figure.result == MET for figure in figures)
    yield (
        f"\ncanal-dns {told['version']}, {told['date']}, {told['form']}; {machine['cpus']} CPUs, Linux {machine['kernel']}, "
        f"Python {machine['python']}: {met} of {len(figures)} met.\n\n"
    )
    named = any(figure.id for figure in figures)
    yield (
        "| row | what | demanded | measured | |\n|---|---|---|---|---|\n"
        if named
        else ("| what | demanded | measured | |\n|---|---|---|---|\n")
    )
    for figure in figures:
        cells = [figure.what, figure.demand, figure.measured, figure.result if figure.result == MET else f"**{figure.result}**"]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in ([figure.id, *cells] if named else cells)) + " |\n"
    yield "\n"


def render(text: str) -> str:
    """The document with its generated parts made anew."""
    for name, path in RUNS.items():
        start, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->\n"
        before, found, rest = text.partition(start)
        if found:
            text = before + start + "".join(table(path)) + end + rest.partition(end)[2]
    return text


def main() -> None:
    FILE.write_text(render(FILE.read_text()))


if __name__ == "__main__":
    main()
