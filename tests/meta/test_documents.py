"""Prose that can be checked: links lead somewhere, files that are named exist."""

import re
import urllib.parse

import pytest

from tests.meta.tree import ROOT, documents, name

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
PATH = re.compile(r"`((?:canal_dns|tests|config|manifests|docs|benchmarks)/[\w./-]+\.(?:py|pyx|ya?ml|md|json|sh|toml|cfg))`")


def links(text):
    """The targets of all links outside of code."""
    return [match[1] for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))]


def anchors(text):
    """The anchors that GitHub makes of the headings."""
    found = set()
    for match in HEADING.finditer(FENCE.sub("", text)):
        heading = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower()).replace(" ", "-")
        number = sum(1 for known in found if known == heading or re.fullmatch(re.escape(heading) + r"-\d+", known))
        found.add(f"{heading}-{number}" if number else heading)
    return found


def dead(path, text):
    """Targets in `text`, which stands at `path`, that lead nowhere."""
    wrong = []
    for target in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, anchor = urllib.parse.unquote(target).partition("#")
        aim = (path.parent / file).resolve() if file else path
        exists = aim == path or (aim.exists() and aim.is_relative_to(ROOT))
        if not exists or not _has_anchor(aim, anchor, text if aim == path else None):
            wrong.append(target)
    return wrong


def _has_anchor(file, anchor, text):
    return not anchor or file.suffix != ".md" or anchor in anchors(file.read_text() if text is None else text)


@pytest.mark.parametrize("path", documents(), ids=name)
def test_links_lead_somewhere(path):
    assert dead(path, path.read_text()) == []


@pytest.mark.parametrize("path", documents(), ids=name)
def test_files_that_are_named_exist(path):
    assert [match[1] for match in PATH.finditer(path.read_text()) if not (ROOT / match[1]).exists()] == []


def test_the_readme_is_there():
    assert (ROOT / "README.md").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](https://example.com) [b](mailto:x@y)", []),
        ("[a](LICENSE)", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("![a](nowhere.png)", ["nowhere.png"]),
        ("# One `two` three\n[a](#one-two-three)", []),
        ("# One\n# One\n[a](#one-1)", []),
        ("# One\n[a](#two)", ["#two"]),
        ("`[a](nowhere.md)`", []),
        ("```\n[a](nowhere.md)\n# Not a heading\n```\n[b](#not-a-heading)", ["#not-a-heading"]),
        ("[a](../outside.md)", ["../outside.md"]),
    ],
)
def test_the_check_itself(text, expected):
    assert dead(ROOT / "README.md", text) == expected
