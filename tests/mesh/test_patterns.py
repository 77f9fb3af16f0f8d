"""The automaton against Python's own `re`, and what it does not try to understand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.mesh.patterns import beginning, pattern

UNDERSTOOD = [
    "", ".*", "/a.*", "/a/.*", "/a(/.*)?", "/(a|b)/[^/]+", "a{2,3}", "a{2}", "a{2,}", "a{0,2}b", "^/x$", "a*", "a+b?",
    "[a-c]+", "x{0}y", "(a|)b", r"\d+\.x", r"\w\W\s\S\D", "[]a]", "[^]a]", "[a-]", r"[\d\-]", "(?:ab)+", "(?P<n>a)",
    "a*?b", r"\n|\t", "é+",
    "[^a]", "((a))", "a|b|c", r"a\$", "(?i)/Ab[x-z]", "a{1,1}",
    "^/a$|^/b$", "(^a|b$)+", "a^b", "a$b", "^$", "^", "(?s).*", "(?is)A.", "(?i:a)b", "(?s:.)|.b", "(?s-i:.)a", "(a$|b)(^|x)",
    "(?i:a(?-i:b)){2}", "$a?",
]  # fmt: skip
UNKNOWN = [
    "a**", "[", "(a", "a)", r"\b", r"\pL", "(?!x)", "(?P<n", "a{x}", "a{1", "a{5,2}", "a{1000}", "^*", "(?i)*a", "(?m)^a",
    "(?i", "*a", "{2}", "\\", "[[:no:]]", "[[:alpha]", "[b-a]", r"[a-\d]", "(" * 60 + ")" * 60, "((a{50}){50}){50}",
    "a{,3}", "[a", "(?", "a{1234567}", "a{²}", "a{1,²}", "a{٣}",
]  # fmt: skip


@pytest.mark.parametrize("regex", UNDERSTOOD)
@settings(max_examples=25, deadline=None)
@given(text=st.text("ab/xyéA1.-\n\t$ ]", max_size=6))
def test_the_same_as_re(regex: str, text: str) -> None:
    known = pattern(regex)
    assert known is not None
    assert known.takes(text) == bool(re.fullmatch(regex, text, re.ASCII))


@pytest.mark.parametrize("regex", UNDERSTOOD)
def test_examples_are_taken(regex: str) -> None:
    known = pattern(regex)
    assert known is not None
    assert all(known.takes(text) for text in known.examples())
    assert all(text.startswith("/") and known.takes(text) for text in known.examples("/"))
    assert known.examples() or regex in (r"\n|\t", "a^b", "a$b")


@pytest.mark.parametrize("regex", UNKNOWN)
def test_what_is_not_understood_is_none(regex: str) -> None:
    assert pattern(regex) is None


def test_examples_take_every_way() -> None:
    known = pattern("/(a|b)/x?")
    assert known is not None
    assert {"/a/", "/b/", "/a/x"} <= set(known.examples("/"))
    assert pattern("a+").examples("/") == []  # type: ignore[union-attr]
    assert len(pattern("[a-z]{4}").examples(limit=3)) == 3  # type: ignore[union-attr]


def test_it_is_linear() -> None:
    """The text on which a backtracking engine would never end."""
    known = pattern("(a|a|aa)*b")
    assert known is not None
    assert not known.takes("a" * 2000)


@pytest.mark.parametrize("regex", ["(a*)*" * 200, "(a|b|c|d){1,100}", "(" + "|".join("abcdefghij" * 20) + ")*"])
def test_what_takes_too_much_work_is_not_understood(regex: str) -> None:
    """A tenant's object of 1 MiB could hold a thousand of them, half a second each."""
    assert pattern(regex) is None


@pytest.mark.parametrize("regex", ["/.{1,100}/.{1,100}", r"/([a-z]{1,63}\.){1,4}[a-z]{2,}", "/[a-z0-9-]{1,63}(/.*)?"])
def test_what_takes_some_work_is_understood(regex: str) -> None:
    known = pattern(regex)
    assert known is not None
    assert known.examples("/")


@pytest.mark.parametrize(
    ("regex", "taken", "not_taken"),
    [
        ("/[[:alpha:]]+", ["/abc"], ["/", "/a1"]),
        ("[[:^digit:]x]", ["a", "x", "é"], ["1"]),
        ("[^[:space:]]", ["a"], [" ", "\v"]),
        ("[[:punct:]]", ["_", "-", "~"], ["a", " "]),
        ("(?i)[[:upper:]]", ["a", "A"], ["1"]),
        ("a(?i)b|c", ["ab", "aB", "C"], ["Ab"]),
        ("(a(?i)b)c", ["aBc"], ["abC"]),
        ("(?U)a+", ["aa"], ["b"]),
        ("a$?", [], []),
    ],
)
def test_what_re_does_not_know(regex: str, taken: list[str], not_taken: list[str]) -> None:
    known = pattern(regex)
    assert (known is not None) == bool(taken)
    assert known is None or [text for text in (*taken, *not_taken) if known.takes(text)] == taken


@pytest.mark.parametrize(
    ("regex", "start"),
    [
        (r"/api/\bx", "/api/"), (r"^/a-b\b", "/a-b"), (r"/ab?\b", "/a"), (r"/ab*", "/a"), ("/ab{0,1}", "/a"),
        (r"/ab+\b", "/ab"),
        (r"/a|\b", ""), (r"\b/a", ""), ("(?i)/a", ""), ("/a", "/a"), (r"/a\.b", "/a"), ("[", ""), ("", ""),
    ],
)  # fmt: skip
def test_how_a_text_must_begin(regex: str, start: str) -> None:
    assert beginning(regex) == start
