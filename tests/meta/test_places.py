"""No file names a place that exists on one machine only: somebody's working folder, or a package index inside some network."""

import re

import pytest

from tests.meta.tree import name, texts

# Written in pieces, so that this file is clean by its own rule.
PLACES = (
    r"(?<![\w.-])/wo" + r"rk/",
    r"/tm" + r"p/(?!canal-dns)[a-z]+/",
    r"/(?:home|Us" + r"ers)/(?!nonroot)[a-z]",
    r"/ro" + r"ot/",
    r"/opt/wh" + r"eels",
    r"\b(?:index-u" + r"rl|extra-index-u" + r"rl|find-li" + r"nks|GOPRO" + r"XY)\b",
    r"https?://[^\s/\"']*(?:artifact" + r"ory|nex" + r"us|pypi-pro" + r"xy|goproxy)\b",
    r"\.inter" + r"nal[:/]",
)
FORBIDDEN = re.compile("|".join(PLACES))


def found(text):
    return [match[0] for match in FORBIDDEN.finditer(text)]


def test_no_file_names_a_place_of_one_machine():
    wrong = {name(path): hits for path in texts() if (hits := found(path.read_text(errors="replace")))}
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    ["see /wo" + "rk/main", "/tm" + "p/set" + "up/x", "/home/" + "me/x", "/ro" + "ot/.cache", "pip install --index-u" + "rl x"],
)
def test_the_check_itself(text):
    assert found(text)


@pytest.mark.parametrize("text", ["/etc/canal-dns/manifests", "framework/x", "https://kubernetes.io/docs", "a.work/b", "/work"])
def test_what_is_no_such_place(text):
    assert not found(text)
