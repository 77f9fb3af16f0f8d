"""docs/reliability.md says what the last runs measured, and no run is missing."""

import re

from tests.figures import MET, NOT_RUN, read
from tests.meta.render_reliability import FILE, RUNS, render
from tests.meta.tree import ROOT


def test_the_document_has_the_figures_of_the_last_runs():
    text = FILE.read_text()
    assert render(text) == text, "run `make docs`"
    for name in RUNS:
        assert f"<!-- {name}: generated -->\n" in text


def test_what_was_missed_or_not_run_is_marked():
    text = FILE.read_text()
    for path in RUNS.values():
        for figure in read(path)[1]:
            if figure.result != MET:
                assert f"**{figure.result}**" in text
            assert figure.result != NOT_RUN or figure.measured


def test_make_has_what_the_document_names():
    make = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)", FILE.read_text())):
        assert f"\n{target}:" in make
