"""What every module owes its reader."""

import ast

import pytest

from tests.meta.tree import PACKAGE, modules, name, texts

MAX_LINES = 500
VAGUE = {"utils", "util", "helper", "helpers", "manager", "common", "misc", "base"}


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_says_what_it_is(path):
    if path.stat().st_size == 0:
        pytest.fail(f"{name(path)} is empty: say what the folder is for")
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_is_short(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{name(path)} has {lines} lines, at most {MAX_LINES}: split it by subject"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_is_a_noun(path):
    assert not VAGUE & set(path.relative_to(PACKAGE).with_suffix("").parts)


def test_every_test_module_says_what_it_is():
    tests = [path for path in texts() if path.suffix == ".py" and "tests" in path.parts and path.stat().st_size]
    assert tests
    assert [name(path) for path in tests if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_nothing_is_left_to_do():
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
    found = [f"{name(path)}: {mark}" for path in texts() for mark in marks if path.suffix == ".py" and mark in path.read_text()]
    assert found == []
