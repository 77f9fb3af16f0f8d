"""Kubernetes' own words for what went wrong, in all shapes that are known of them."""

from __future__ import annotations

import json

import pytest

from canal_dns.kube import failures
from tests.kube.apiserver import TOO_LARGE, status


def body(told) -> bytes:
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("told", "code", "reason"),
    [
        (status(410), "410", "expired"),
        (status(0, reason="Expired"), "410", "expired"),
        (status(0, reason="Gone"), "410", "expired"),
        (TOO_LARGE, "504", "too_large"),
        (status(504, "Too large resource version: 9, current: 1"), "504", "too_large"),
        (status(500, "etcd is away"), "500", ""),
        (status(429), "429", ""),
        ({"kind": "Status", "details": None}, "500", ""),
    ],
)
def test_events(told, code, reason):
    found = failures.from_event(body(told))
    assert (found.code, found.reason) == (code, reason)


@pytest.mark.parametrize("octets", [b"", b"null", b"[1]", b'{"code":"x"}', b"\xff", b"[" * 5000])
def test_an_event_that_says_nothing(octets):
    assert failures.from_event(octets).code == "500"


def test_the_status_of_the_answer_counts():
    found = failures.from_answer(403, body(status(500, "services is forbidden")))
    assert (found.code, found.text) == ("403", "services is forbidden")


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"404 page not found\n", "404 page not found"),
        (b"", "HTTP status 404"),
        (b"<html>\n <b>no</b>\xff</html>", "<html> <b>no</b>\ufffd</html>"),
        (b'{"kind":"Other","message":"x"}', '{"kind":"Other","message":"x"}'),
        (b"x" * 10_000, "x" * failures.MAX_TEXT),
    ],
)
def test_a_body_that_is_no_status_is_quoted(octets, text):
    assert failures.from_answer(404, octets).text == text


def test_how_long_to_wait():
    assert failures.from_answer(429, b"", 7.0).retry_after == 7.0
    assert failures.from_answer(429, body(status(429, details={"retryAfterSeconds": 3}))).retry_after == 3
    assert failures.from_answer(429, body(status(429, details={"retryAfterSeconds": 3})), 0.0).retry_after == 0
    assert failures.from_answer(503, b"").retry_after is None
