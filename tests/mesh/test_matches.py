"""Which tests of a match the gateway decides and not the client: the scheme, by whichever header."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesh.builders import HELLO, full, gateway, http, outcome, server, service, tls_server, virtual_service

PLAIN = full("plain.default")
PROTO = "x-forwarded-proto"
SERVERS = {"http": server(80), "https": tls_server(80, "SIMPLE", "HTTPS")}


def bound(scheme: str, *routes: Any) -> list[str]:
    found = outcome(service("plain"), service(), gateway(SERVERS[scheme]), virtual_service(*routes)).bound
    return [name for name in (HELLO, PLAIN) if name in found]


def having(name: str = PROTO, **test: str) -> dict[str, Any]:
    return {"headers": {name: test}}


def without(name: str = PROTO, **test: str) -> dict[str, Any]:
    return {"withoutHeaders": {name: test}}


@pytest.mark.parametrize(
    ("match", "holds_on"),
    [
        (having(exact="http"), ["http"]),
        (having(exact="https"), ["https"]),
        (having("X-Forwarded-Proto", exact="https"), ["https"]),
        (having(prefix="http"), ["http", "https"]),
        (having(prefix="https"), ["https"]),
        (having(regex="https?"), ["http", "https"]),
        (having(regex="*"), ["http", "https"]),
        (having(exact="HTTP"), []),
        (without(exact="https"), ["http"]),
        (without("X-FORWARDED-PROTO", exact="http"), ["https"]),
        (without(exact="ws"), ["http", "https"]),
        (without(regex="*"), []),
        ({**having(exact="http"), **without(exact="http")}, []),
        ({**having(exact="http"), "scheme": {"exact": "http"}}, ["http"]),
        ({**having(exact="https"), "scheme": {"exact": "http"}}, []),
        (having(":scheme", exact="https"), ["https"]),
    ],
)
@pytest.mark.parametrize("scheme", SERVERS)
def test_the_gateway_writes_the_scheme_of_its_listener(match: dict[str, Any], holds_on: list[str], scheme: str) -> None:
    """What always holds hides the routes behind it, what never holds hides none of them."""
    assert bound(scheme, http(HELLO, match=match), http(PLAIN)) == [HELLO if scheme in holds_on else PLAIN]


def test_who_redirects_all_plain_requests_serves_none() -> None:
    redirect = http(match=having(exact="http"), redirect={"scheme": "https"})
    assert bound("http", redirect, http(HELLO)) == []
    assert bound("https", redirect, http(HELLO)) == [HELLO]
