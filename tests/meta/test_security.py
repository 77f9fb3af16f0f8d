"""SECURITY.md: each promise names what shows it, and all that is named exists."""

import json
import re

import pytest

from manifests.tools.places import CONFIG
from tests import seccomp
from tests.faults.rows import IDS
from tests.meta.tree import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()
HEADER = ("they may", "promised", "shown by")
PROMISES = [
    row
    for row in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
    if row != HEADER and not set("".join(row)) <= {"-"}
]
FILE = re.compile(r"`?((?:tests|manifests|docs)/[\w./-]+\.\w+)`?")
COMMAND = re.compile(r"`make ([a-z0-9-]+)`")
ROW = re.compile(r"\b([UKPA]\d{1,2})\b")
CASE = re.compile(r"\b([A-Z]{2,4}-\d\d)\b")

CASES = {case["id"] for case in json.loads((ROOT / "tests" / "conformance" / "cases.json").read_text())["cases"]}


def missing(text):
    """What a text names and is not there."""
    makefile = (ROOT / "Makefile").read_text()
    wrong = [path for path in FILE.findall(text) if not (ROOT / path).exists()]
    wrong += [f"make {name}" for name in COMMAND.findall(text) if not re.search(rf"^{name}:", makefile, re.MULTILINE)]
    wrong += [name for name in ROW.findall(text) if name not in IDS]
    return wrong + [name for name in CASE.findall(text) if name not in CASES]


def test_there_is_something_to_test():
    assert len(PROMISES) > 20 and TEXT.count("| they may | promised | shown by |") == 6


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0][:60])
def test_every_promise_names_what_shows_it(row):
    assert any(kind.search(row[2]) for kind in (FILE, COMMAND, ROW, CASE)), "name a test, a command, a row or a case"


def test_what_is_named_exists():
    assert missing(TEXT) == []


def test_settings_that_are_named_exist():
    example = CONFIG.read_text()
    for key in re.findall(r"`(?:access|binding|log)\.(\w+)`", TEXT):
        assert re.search(rf"^\s+{key}:", example, re.MULTILINE), key


def test_the_number_of_system_calls_is_right():
    profile = json.loads(seccomp.PROFILE.read_text())
    names = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert f"the {len(names)} of `manifests/optional/seccomp.json`" in TEXT


@pytest.mark.parametrize("text", ["`tests/test_gone.py`", "`make gone`", "U99", "SPF-99", "`manifests/optional/gone.yaml`"])
def test_the_check_itself(text):
    assert len(missing(text)) == 1
