"""Listeners from servers: each rule of mergeGateways in one row."""

from __future__ import annotations

from typing import Any

import pytest

from canal_dns.mesh.resources import parse
from canal_dns.mesh.servers import Layout, layout
from tests.mesh.builders import gateway, server, tcp_server, tls_server


def build(*gateways: Any, ports: dict[int, int] | None = None) -> Layout:
    return layout([parse(one) for one in gateways], ports or {})  # type: ignore[misc]


def shape(made: Layout) -> list[str]:
    """`bind:port` and its chains: kind, route configuration, server names, t for TLS."""
    shapes = []
    for listener in made.listeners:
        chains = [
            f"{chain.kind}({chain.route_name}|{'-' if chain.names is None else ','.join(sorted(chain.names))}{'|t' * chain.tls})"  # noqa: E501
            for chain in listener.chains
        ]
        shapes.append(f"{listener.bind}:{listener.port} {' '.join(chains)}")
    return shapes


def test_http_servers_of_all_gateways_share_a_port() -> None:
    made = build(gateway(server(80)), gateway(server(80, "GRPC"), server(80, "http2"), name="b"))
    assert shape(made) == ["0.0.0.0:80 http(http.80|-)"]
    assert [(one.gateway, one.index) for one in made.route_configs["http.80"]] == [
        ("istio-system/internalgateway", 0),
        ("istio-system/b", 0),
        ("istio-system/b", 1),
    ]


def test_the_ports_of_the_pods_are_what_conflicts() -> None:
    made = build(gateway(server(80), tcp_server(8080)), ports={80: 8080})
    assert shape(made) == ["0.0.0.0:8080 http(http.8080|-)"]
    assert [one.message for one in made.dropped] == [
        "port 8080 is taken by istio-system/internalgateway spec.servers[0], an older server of protocol HTTP"
    ]


@pytest.mark.parametrize(
    ("first", "second", "want", "dropped"),
    [
        (tcp_server(80), server(80), "tcp(|-)", "taken by"),
        (server(80), tcp_server(80), "http(http.80|-)", "taken by"),
        (tcp_server(80), tcp_server(80), "tcp(|-)", "taken by"),
        (server(80), tls_server(80), "http(http.80|-)", "taken by"),
        (tls_server(80), server(80), "sni(|-) http(http.80|-)", ""),
        (tls_server(80), tcp_server(80), "sni(|-) tcp(|-)", ""),
        (tls_server(80, hosts=["a"]), tls_server(80, hosts=["b"]), "sni(|-) sni(|-)", ""),
        (tls_server(80), tls_server(80), "sni(|-)", "its host '*' is already used by another TLS server on port 80"),
        (
            tls_server(80, "SIMPLE", "HTTPS", hosts=["a"], name="one"),
            tls_server(80, "SIMPLE", "HTTPS", hosts=["b"], name="two"),
            "http(https.80.one.internalgateway.istio-system|a|t) http(https.80.two.internalgateway.istio-system|b|t)",
            "",
        ),
        (
            tls_server(80, "SIMPLE", "HTTPS", hosts=["a"], name="one"),
            tls_server(80, "SIMPLE", "HTTPS", hosts=["b"], name="one"),
            "http(https.80.one.internalgateway.istio-system|a|t)",
            "its port name 'one' is used twice",
        ),
        (tls_server(80, "SIMPLE", hosts=["ns/a"]), tls_server(80, "SIMPLE", hosts=["b"]), "tcp(|a|t) tcp(|b|t)", ""),
        (server(80, "HTTPS"), server(80), "tcp(|-)", "taken by"),
        (
            server(80, tls={"httpsRedirect": True}),
            server(80, tls={"httpsRedirect": True}),
            "http(http.80|-)",
            "its host '*' is already used",
        ),
        (server(80, hosts=["*/*", "./x"]), server(80), "http(http.80|-)", "istiod cannot read a host"),
    ],
)
def test_two_servers_on_one_port(first: Any, second: Any, want: str, dropped: str) -> None:
    made = build(gateway(first, second))
    assert shape(made) == [f"0.0.0.0:80 {want}"]
    assert bool(made.dropped) == bool(dropped)
    assert not dropped or dropped in made.dropped[0].message


@pytest.mark.parametrize(
    ("first", "second", "want", "dropped"),
    [
        (tls_server(80, "SIMPLE", "TCP"), tcp_server(80), "tcp(|-) tcp(|-)", "of the same protocol without TLS"),
        (tls_server(80, "PASSTHROUGH", "TCP"), tcp_server(80), "tcp(|-) tcp(|-)", "of the same protocol without TLS"),
        (tls_server(80, "SIMPLE", "MONGO"), server(80, "MONGO"), "tcp(|-) tcp(|-)", "of the same protocol without TLS"),
        (tcp_server(80), tls_server(80, "SIMPLE", "TCP"), "tcp(|-)", "taken by"),
        (tls_server(80, "SIMPLE", "TLS", hosts=["a"]), tcp_server(80), "tcp(|a|t) tcp(|-)", ""),
        (tls_server(80, "SIMPLE", "TCP", hosts=["a"]), server(80, "tcp"), "tcp(|a|t) tcp(|-)", ""),
        (tls_server(80, "SIMPLE", "TCP", hosts=["a"]), server(80, "MONGO"), "tcp(|a|t) tcp(|-)", ""),
    ],
)
def test_a_plain_server_after_one_with_tls_of_its_protocol_is_built_twice(
    first: Any, second: Any, want: str, dropped: str
) -> None:
    """serverPorts of mergeGateways has the port twice then, and only the younger server's chains."""
    for made in (build(gateway(first, second)), build(gateway(first), gateway(second, name="younger"))):
        assert shape(made) == [f"0.0.0.0:80 {want}"]
        assert [dropped in one.message for one in made.dropped] == [True] * bool(dropped)


def test_the_older_gateway_decides() -> None:
    made = build(gateway(tcp_server(80)), gateway(server(80), name="younger"))
    assert [(one.gateway, one.index) for one in made.dropped] == [("istio-system/younger", 0)]


def test_other_addresses_are_other_listeners() -> None:
    local = server(80, bind="127.0.0.1")
    made = build(gateway(local, server(80), server(80, hosts=["a"], bind="127.0.0.1"), server(80, bind="::")))
    assert shape(made) == [
        "127.0.0.1:80 http(http.80.127.0.0.1|-)",
        "0.0.0.0:80 http(http.80|-)",
        ":::80 http(http.80.::|-)",
    ]
    assert [one.reachable for one in made.listeners] == [False, True, True]
    assert len(made.route_configs["http.80.127.0.0.1"]) == 2


def test_a_tls_server_on_another_address_beside_a_plain_one() -> None:
    made = build(gateway(server(80), tls_server(80, bind="127.0.0.1"), tls_server(80, bind="127.0.0.2")))
    assert shape(made) == ["0.0.0.0:80 http(http.80|-)", "127.0.0.1:80 sni(|-)", "127.0.0.2:80 sni(|-)"]


def test_a_repeated_tls_host_on_another_address_is_none() -> None:
    made = build(gateway(tls_server(80), tls_server(80, bind="127.0.0.1"), tls_server(80)))
    assert not made.dropped
    assert len(made.listeners) == 2


def test_what_a_server_is() -> None:
    made = build(gateway(tls_server(80, "SIMPLE", "HTTPS", hosts=["./a", "b"], bind="10.0.0.1", name="n")))
    placed = made.listeners[0].chains[0].placed
    assert placed.field == "spec.servers[0]"
    assert placed.route_name == "https.80.n.internalgateway.istio-system.10.0.0.1"
    assert placed.server_names == ("a", "b")
    assert (placed.is_http, placed.is_tls, placed.is_passthrough, placed.routes_http) == (False, True, False, True)
