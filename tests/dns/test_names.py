"""Names in wire form and in text, held against dnspython."""

from __future__ import annotations

import dns.name
import pytest
from hypothesis import given

from canal_dns.dns import names
from canal_dns.errors import WireError
from tests.dns.packets import wire_names


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("", b"\0"),
        (".", b"\0"),
        ("a", b"\1a\0"),
        ("a.B.", b"\1a\1B\0"),
        (r"a\.b.c", b"\3a.b\1c\0"),
        (r"\000\255.c", b"\2\0\xff\1c\0"),
        ("x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
    ],
)
def test_presentation_form_becomes_wire_form(text, wire):
    assert names.from_text(text) == wire


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("a..", "empty label"),
        ("x" * 64, "64 octets"),
        (".".join(["x" * 63] * 4), "257 octets"),
        ("a\\", "nothing to escape"),
        ("\\é", "nothing to escape"),
        (r"\25é", "not ASCII"),
        ("bücher", "not ASCII"),
    ],
)
def test_what_is_no_name_is_refused(text, problem):
    with pytest.raises(WireError, match=problem):
        names.from_text(text)


def test_a_name_may_have_255_octets():
    assert len(names.from_text(".".join(["x" * 63] * 3 + ["x" * 61]))) == names.MAX_NAME


@given(wire_names())
def test_text_and_wire_agree_with_dnspython(name):
    oracle = dns.name.from_wire(name, 0)[0]
    assert names.from_text(names.to_text(name)) == name
    assert dns.name.from_text(names.to_text(name)) == oracle
    assert list(names.labels(name)) == list(oracle.labels[:-1])
    assert name.lower() == oracle.canonicalize().to_wire()


@pytest.mark.parametrize(
    ("wire", "text"),
    [(b"\0", "."), (b"\3a.b\1c\0", r"a\.b.c."), (b"\2\n \0", r"\010\032."), (b"\1\xe9\0", r"\233.")],
)
def test_text_is_printable_ascii_whatever_the_octets(wire, text):
    assert names.to_text(wire) == text


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("web-0", True),
        ("0", True),
        ("-web", False),
        ("web-", False),
        ("Web", False),
        ("", False),
        ("a" * 64, False),
        ("a\n", False),
    ],
)
def test_labels_of_kubernetes(text, good):
    assert names.is_label(text) is good


def test_the_name_of_a_service():
    assert names.service_name("web", "shop", "cluster.local") == "web.shop.svc.cluster.local"
