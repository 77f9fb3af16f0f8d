"""What a client gets at a listener: plain text and TLS side by side, several virtual hosts, ports, refused configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.result import Reason, Result
from canal_dns.mesh.routes import MAX_EXPRESSIONS
from canal_dns.settings import PortGuard
from tests.mesh.builders import (
    HELLO,
    SETTINGS,
    delegate,
    full,
    gateway,
    gateway_service,
    http,
    l4,
    namespace,
    outcome,
    server,
    service,
    sni,
    tcp_server,
    tls_server,
    to,
    virtual_service,
)

PLAIN = full("plain.default")
LOUD = HELLO.upper()
LOOSE = replace(SETTINGS, port_guard=PortGuard.WARN)
TWO = (service("plain"), service())


def ports(result: Result, name: str = HELLO) -> tuple[tuple[int, ...], tuple[str, ...]]:
    bound = result.bound.get(name)
    return (bound.ports, bound.claims) if bound else ((), ())


def loosely(*objects: Any) -> Result:
    return outcome(*TWO, *objects, settings=LOOSE)


def test_https_that_the_gateway_terminates() -> None:
    result = loosely(gateway(tls_server(8443, "SIMPLE", "HTTPS")), virtual_service(hosts=[HELLO]))
    assert ports(result) == ((8443,), ("destination", "host"))


def test_https_servers_are_chosen_by_server_name_then_by_host() -> None:
    servers = gateway(
        tls_server(8443, "SIMPLE", "HTTPS", hosts=["*.default.svc.cluster.local"], name="a"),
        tls_server(8443, "SIMPLE", "HTTPS", hosts=["*.example"], name="b"),
        tls_server(8443, "SIMPLE", "HTTPS", hosts=["*"], name="c"),
    )
    result = loosely(servers, virtual_service(http(HELLO)), service("other", "shop"))
    assert ports(result) == ((8443,), ("destination",))
    narrow = loosely(
        servers,
        virtual_service(http(full("other.shop"))),
        service("other", "shop", annotations={"canal-dns.io/allow-from": "*"}),
    )
    assert ports(narrow, full("other.shop")) == ((8443,), ("destination",))


def test_a_scheme_is_that_of_the_listener() -> None:
    routes = (http(HELLO, match={"scheme": {"exact": "https"}}), http(PLAIN))
    plain = loosely(gateway(server(80)), virtual_service(*routes))
    assert (ports(plain), ports(plain, PLAIN)) == (((), ()), ((80,), ("destination",)))
    assert plain.skipped[HELLO].reason is Reason.MATCH_NOT_APPLICABLE
    secure = loosely(gateway(tls_server(8443, "SIMPLE", "HTTPS")), virtual_service(*routes))
    assert ports(secure) == ((8443,), ("destination",))


def test_an_authority_has_the_port_unless_it_is_the_schemes_own() -> None:
    """Envoy compares with what clients send: `Host: name:9000` (seen on istiod 1.31 and Envoy 1.40 with port 5000)."""
    both = gateway(server(80), server(9000))

    def bound_on(authority: str) -> tuple[int, ...]:
        routes = virtual_service(http(HELLO, match={"authority": {"exact": authority}}))
        return ports(loosely(both, routes))[0]

    assert bound_on(HELLO) == (80,)
    assert bound_on(f"{HELLO}:9000") == (9000,)
    assert bound_on(f"{HELLO}:80") == ()


def test_plain_text_and_tls_on_one_port() -> None:
    """PASSTHROUGH, then HTTP: both are there, and a name may be served by both."""
    result = loosely(gateway(tls_server(8443), server(8443)), virtual_service(http(HELLO), tls=[sni(HELLO)], hosts=[HELLO]))
    assert ports(result) == ((8443,), ("destination", "host"))
    tcp = loosely(
        gateway(tls_server(8443), tcp_server(8443)),
        virtual_service(tcp=[l4(HELLO)], tls=[sni(PLAIN, to_host=PLAIN)], hosts=["*"]),
    )
    assert ports(tcp) == ((8443,), ("destination",))
    assert ports(tcp, PLAIN) == ((8443,), ("destination", "host"))


def test_server_names_with_wildcards_go_label_by_label() -> None:
    routes = [sni("*.default.svc.cluster.local", to_host=PLAIN), sni("*.local", to_host=HELLO)]
    result = loosely(gateway(tls_server()), virtual_service(tls=routes, hosts=["*.local"]))
    assert ports(result, PLAIN) == ((8443,), ("destination",))
    assert ports(result) == ((), ())
    assert result.skipped[HELLO].reason is Reason.HOST_NOT_SERVED
    assert "more specific" in result.skipped[HELLO].message


def test_a_server_name_that_nobody_has_goes_to_the_rest() -> None:
    result = loosely(gateway(tls_server()), virtual_service(tls=[sni("x.example"), sni("*", to_host=PLAIN)], hosts=["*"]))
    assert ports(result, PLAIN) == ((8443,), ("destination",))


def test_tls_by_a_servers_own_hosts() -> None:
    """TLS that is terminated and goes on as TCP: the server's hosts are the server names."""
    result = loosely(gateway(tls_server(8443, "SIMPLE", hosts=[HELLO])), virtual_service(tcp=[l4(PLAIN)]))
    assert ports(result) == ((8443,), ("host",))
    assert ports(result, PLAIN) == ((), ())


def test_several_services_behind_one_tcp_route() -> None:
    result = loosely(
        gateway(tcp_server()),
        virtual_service(tcp=[l4(to(weight=50), to(PLAIN, weight=50))]),
        service(ports=(9000,)),
        service("plain", ports=(9000,)),
    )
    assert ports(result) == ((9000,), ("destination",))
    assert ports(result, PLAIN) == ((9000,), ("destination",))


def test_a_routes_port_is_that_of_the_first_server_that_meets() -> None:
    """Two servers of a Gateway on one port of the pods: the routes are built once, with the first number."""
    both = {"ports": ({"port": 80, "targetPort": 8080}, {"port": 8080, "targetPort": 8080})}
    objects = (
        gateway_service(**both),
        gateway(server(80), server(8080, hosts=["*.local"])),
        virtual_service(http(HELLO, match={"port": 80})),
    )
    assert ports(loosely(*objects)) == ((80, 8080), ("destination",))
    later = virtual_service(http(HELLO, match={"port": 8080}))
    assert ports(loosely(objects[0], objects[1], later)) == ((80, 8080), ("destination",))


def test_redirecting_servers_spare_other_hosts() -> None:
    servers = gateway(server(80, hosts=["./" + PLAIN, PLAIN], tls={"httpsRedirect": True}), server(80))
    result = loosely(servers, virtual_service(http(HELLO), http(PLAIN)))
    assert ports(result) == ((80,), ("destination",))
    both = gateway(server(80, tls={"httpsRedirect": True}), tls_server(8443, "SIMPLE", "HTTPS"))
    assert ports(loosely(both, virtual_service())) == ((8443,), ("destination",))


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (http(match={"uri": {"prefix": "/x"}}), "it has no action"),
        (http(to(weight=0), to(PLAIN, weight=0)), "all its weights are 0"),
        (http(delegate={"name": "d"}), "it has no action"),
        (http(redirect={"redirectCode": 304}), "redirectCode"),
    ],
)
def test_one_route_that_envoy_refuses_stops_all(route: Any, message: str) -> None:
    bad = virtual_service(route, name="bad", hosts=["x.example"])
    result = loosely(gateway(), virtual_service(), bad, delegate(http(delegate={"name": "e"})))
    assert ports(result) == ((), ())
    assert result.skipped[HELLO].reason is Reason.GATEWAY_NOT_PROGRAMMED
    assert "istio-system/bad" in result.skipped[HELLO].message
    problem = next(one for one in result.problems if one.object == "VirtualService istio-system/bad")
    assert message in problem.message
    assert problem.field.startswith("spec.http[0]")


@pytest.mark.parametrize(
    "servers",
    [
        (tls_server(80, "SIMPLE", "HTTPS", hosts=["prod/*"], name="a"), tls_server(80, "SIMPLE", "HTTPS", name="b")),
        (tls_server(80, "SIMPLE", "HTTPS"), server(80)),
        (tls_server(80, "SIMPLE", "HTTPS"), tls_server(80, bind="127.0.0.1"), tls_server(80, "SIMPLE", "HTTPS", name="c")),
    ],
)
def test_chains_that_are_chosen_by_the_same_are_refused(servers: Any) -> None:
    result = loosely(gateway(*servers), virtual_service())
    assert ports(result) == ((), ())
    assert any("Envoy refuses port 80" in one.message for one in result.problems)


def test_a_server_name_of_two_kinds_is_refused() -> None:
    result = loosely(
        gateway(tls_server(8443, "SIMPLE", "HTTPS", hosts=[HELLO]), tls_server(8443)),
        virtual_service(tls=[sni(HELLO)], hosts=[HELLO]),
    )
    assert ports(result) == ((), ())
    assert result.skipped[HELLO].reason is Reason.GATEWAY_NOT_PROGRAMMED
    assert "server name" in result.skipped[HELLO].message


SECURE = tls_server(8443, "SIMPLE", "HTTPS", hosts=["HelloWorld.default.svc.cluster.local"])
ENDING = tls_server(8443, "SIMPLE", hosts=["HelloWorld.default.svc.cluster.local"])
REST = tls_server(8443, "SIMPLE", "HTTPS", name="rest")


@pytest.mark.parametrize(
    ("servers", "routes", "want"),
    [
        ([tls_server()], {"tls": [sni(LOUD)]}, ("destination", "host")),
        ([tls_server()], {"tls": [sni("*.Default.svc.cluster.local")]}, ("destination",)),
        ([SECURE], {"http": [http(HELLO)]}, ("destination", "host")),
        ([ENDING], {"tcp": [l4(HELLO)]}, ("destination", "host")),
        # the more specific name leads elsewhere, to what is there or to nothing
        ([tls_server()], {"tls": [sni(LOUD, to_host=PLAIN), sni("*")]}, ("host",)),
        ([tls_server()], {"tls": [sni(LOUD, to_host=full("gone.default")), sni("*")]}, ()),
        # the chain is chosen whatever the case, its virtual hosts are not
        ([tls_server(8443, "SIMPLE", "HTTPS", hosts=[LOUD]), REST], {"http": [http(PLAIN)], "hosts": [HELLO]}, ()),
        ([REST], {"http": [http(PLAIN)], "hosts": [HELLO]}, ("host",)),
    ],
)
def test_server_names_have_no_case(servers: Any, routes: Any, want: tuple[str, ...]) -> None:
    result = loosely(gateway(*servers), virtual_service(**routes))
    assert ports(result) == (((8443,), want) if want else ((), ()))


@pytest.mark.parametrize(
    ("servers", "routes", "places"),
    [
        (
            [tls_server()],
            {"tls": [sni(LOUD), sni(HELLO)]},
            ["istio-system/helloworld spec.tls[0].match[0].sniHosts", "istio-system/helloworld spec.tls[1].match[0].sniHosts"],
        ),
        ([tls_server()], {"tls": [sni(LOUD, HELLO)]}, ["istio-system/helloworld spec.tls[0].match[0].sniHosts"]),
        (
            [tls_server(8443, "SIMPLE", "HTTPS", hosts=[HELLO, LOUD])],
            {"http": [http(HELLO)]},
            ["istio-system/internalgateway spec.servers[0]"],
        ),
        (
            [tls_server(8443, "SIMPLE", "HTTPS", hosts=[HELLO], name="a"), tls_server(8443, "SIMPLE", hosts=[LOUD])],
            {"tcp": [l4(HELLO)]},
            ["istio-system/internalgateway spec.servers[0]", "istio-system/internalgateway spec.servers[1]"],
        ),
    ],
)
def test_one_server_name_in_two_spellings_is_refused(servers: Any, routes: Any, places: list[str]) -> None:
    result = loosely(gateway(*servers), virtual_service(**routes))
    assert ports(result) == ((), ())
    message = next(one.message for one in result.problems if "Envoy refuses port 8443" in one.message)
    assert f"server name {HELLO}" in message
    assert [place for place in places if place not in message] == []


@pytest.mark.parametrize(
    ("routes", "bound"),
    [
        ([sni(HELLO, HELLO)], False),
        ([sni(HELLO), sni("x.example", "y.example", "x.example")], False),
        # a match with `*` has no server names at all, a match that istiod drops none either
        ([sni("*", HELLO, HELLO)], True),
        ([sni(HELLO), sni("x.example", "x.example", HELLO)], True),
    ],
)
def test_a_server_name_twice_in_one_list_is_refused(routes: Any, bound: bool) -> None:
    result = loosely(gateway(tls_server()), virtual_service(tls=routes))
    assert (HELLO in result.bound) is bound
    if not bound:
        message = next(one.message for one in result.problems if "Envoy refuses port 8443" in one.message)
        assert f"twice in VirtualService istio-system/helloworld spec.tls[{len(routes) - 1}].match[0].sniHosts" in message


OVER_TLS = tls_server(9000, "SIMPLE", "TCP", hosts=["x.example"])


@pytest.mark.parametrize(
    ("gateways", "refused"),
    [
        ([gateway(OVER_TLS, tcp_server())], True),
        ([gateway(tls_server(9000, "PASSTHROUGH", "TCP"), tcp_server())], True),
        ([gateway(OVER_TLS, created=1), gateway(tcp_server(), name="younger", created=2)], True),
        ([gateway(tls_server(9000, "SIMPLE", "MONGO"), server(9000, "MONGO"))], True),
        ([gateway(tcp_server(), OVER_TLS)], False),
        ([gateway(tls_server(9000, "SIMPLE", hosts=["x.example"]), tcp_server())], False),
        ([gateway(tls_server(9000, "SIMPLE", "TCP"), tcp_server(bind="127.0.0.1"))], False),
        # no route for the plain server: no filter chain, and what is beside it stands
        ([gateway(tls_server(9000), OVER_TLS, tcp_server(hosts=["y.example"]))], False),
    ],
)
def test_plain_tcp_after_tcp_with_tls_is_refused(gateways: Any, refused: bool) -> None:
    names = ["istio-system/internalgateway", "istio-system/younger"]
    routes = {"tcp": [l4(HELLO)], "tls": [sni(HELLO)]}
    result = loosely(*gateways, virtual_service(hosts=[HELLO, "x.example"], gateways=names, **routes))
    assert (HELLO in result.bound) is not refused
    assert any("istiod builds the filter chain of Gateway" in one.message for one in result.problems) is refused
    assert not refused or result.skipped[HELLO].reason is Reason.GATEWAY_NOT_PROGRAMMED


def test_a_sni_name_repeated_on_another_address_is_none() -> None:
    result = loosely(
        gateway(tls_server(8443, bind="127.0.0.1"), tls_server(8443, hosts=["*.local"])),
        virtual_service(tls=[sni(HELLO)], hosts=[HELLO]),
    )
    assert ports(result) == ((8443,), ("destination", "host"))


def test_opted_out_routes_stand_but_claim_nothing() -> None:
    out = {"canal-dns.io/bind": "false"}
    result = loosely(gateway(), virtual_service(annotations=out))
    assert result.skipped[HELLO].reason is Reason.OPTED_OUT
    assert result.skipped[HELLO].object == "VirtualService istio-system/helloworld"
    tcp = loosely(gateway(tcp_server()), virtual_service(tcp=[l4(HELLO)], annotations=out))
    assert tcp.skipped[HELLO].reason is Reason.OPTED_OUT
    beside = loosely(
        gateway(), virtual_service(annotations=out), virtual_service(http(HELLO, match={"uri": {"prefix": "/a"}}), name="b")
    )
    assert beside.bound[HELLO].routes == ("istio-system/b",)


@pytest.mark.parametrize("where", ["service", "namespace"])
def test_services_and_namespaces_opt_out(where: str) -> None:
    objects = (
        [namespace("default", bind="false")] if where == "namespace" else [service(annotations={"canal-dns.io/bind": "false"})]
    )
    skipped = loosely(gateway(), virtual_service(), *objects).skipped[HELLO]
    assert skipped.reason is Reason.OPTED_OUT
    assert skipped.object.startswith(where.capitalize())


@pytest.mark.parametrize(("text", "seconds"), [(None, 5), ("30", 30), ("0", 1), ("86400", 3600), ("x", 5)])
def test_the_annotated_ttl_within_bounds(text: str | None, seconds: int) -> None:
    annotations = {"canal-dns.io/ttl": text} if text else None
    bound = outcome(gateway(), virtual_service(), service(annotations=annotations)).bound[HELLO]
    assert bound.ttl == seconds
    assert any("out of bounds" in one for one in bound.warnings) == (text in ("0", "86400"))


@pytest.mark.parametrize(
    ("port", "servers", "warned"),
    [
        ({"port": 80, "name": "mysql"}, server(80), True),
        ({"port": 80, "name": "mysql-x"}, server(80), True),
        ({"port": 80, "name": "x", "appProtocol": "mysql"}, server(80), True),
        ({"port": 80, "name": "http-x"}, server(80), False),
        ({"port": 80, "name": "grpc"}, server(80, "GRPC"), False),
        ({"port": 80, "name": "x", "appProtocol": "kubernetes.io/h2c"}, server(80), False),
        ({"port": 80, "name": "unheard-of"}, server(80), False),
        ({"port": 80, "name": "http"}, tls_server(80, "SIMPLE", "HTTPS"), True),
        ({"port": 80, "name": "https"}, tls_server(80, "SIMPLE", "HTTPS"), False),
        ({"port": 80, "name": "http"}, tcp_server(80), False),
    ],
)
def test_a_declared_protocol_that_the_server_contradicts(port: Any, servers: Any, warned: bool) -> None:
    result = outcome(gateway(servers), virtual_service(http(HELLO), tcp=[l4(HELLO)]), service(ports=(port,)))
    assert any("is declared as" in one for one in result.bound[HELLO].warnings) == warned


def test_short_forms_that_the_gateway_does_not_know_are_told() -> None:
    covered = outcome(gateway(), virtual_service()).bound[HELLO]
    assert covered.warnings == ()
    hosts = [HELLO, "helloworld.default", "helloworld.default.svc"]
    some = outcome(gateway(), virtual_service(hosts=hosts)).bound[HELLO]
    assert some.warnings == (f"requests for helloworld do not come to its routes: clients must write {HELLO}",)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ((service(ports=({"port": 80, "protocol": "UDP"}, 80)),), "no gateway can carry UDP"),
        ((service(ports=(80, 81)),), "has no port 81"),
        ((service(ports=(80, 9000)),), "no server of an attached Gateway listens on port 9000"),
        (
            (service(ports=(80, 9000)), gateway(server(80), tcp_server())),
            "does not serve this name",
        ),
        ((service(ports=(80, 9000)), gateway(server(80), server(9000, hosts=["x"]))), "does not serve this name"),
    ],
)
def test_why_a_port_is_not_served(objects: Any, message: str) -> None:
    result = outcome(gateway(), virtual_service(), *objects)
    skipped = result.skipped[HELLO]
    assert skipped.reason is Reason.PORT_NOT_SERVED
    assert message in skipped.message
    assert skipped.field.startswith("spec.ports[")


def test_the_istio_private_before_public_order_holds_for_tcp_too() -> None:
    result = loosely(
        gateway(tcp_server()),
        virtual_service(tcp=[l4(PLAIN)], name="a", created=1),
        virtual_service(tcp=[l4(HELLO)], name="b", created=2, exportTo=["."]),
    )
    assert ports(result) == ((9000,), ("destination",))


BROKEN = to(subset="v9")


@pytest.mark.parametrize(
    ("objects", "bound"),
    [
        # another virtual host of the port reaches the Service, so the port guard is what decides
        ((virtual_service(http(BROKEN), name="a"), virtual_service(name="b", hosts=["shop.example"])), True),
        # nothing reaches it
        ((virtual_service(http(BROKEN), name="a"),), False),
        # what reaches it is hidden behind another route
        (
            (
                virtual_service(http(BROKEN), name="a"),
                virtual_service(http(PLAIN), http(HELLO), name="b", hosts=["shop.example"]),
            ),
            False,
        ),
        # what reaches it stands on another port
        (
            (
                gateway(server(80), server(8443)),
                virtual_service(http(BROKEN, match={"port": 80}), http(HELLO, match={"port": 8443})),
            ),
            True,
        ),
        # no request for the name is led to it
        ((virtual_service(http(PLAIN), name="a"), virtual_service(name="b", hosts=["shop.example"])), False),
    ],
)
def test_a_port_where_only_other_names_are_served_is_a_warning_or_nothing(objects: Any, bound: bool) -> None:
    found = loosely(service("plain"), *([gateway()] * (objects[0]["kind"] != "Gateway")), *objects)
    assert (HELLO in found.bound) is bound
    enforced = outcome(service("plain"), *([gateway()] * (objects[0]["kind"] != "Gateway")), *objects)
    assert HELLO not in enforced.bound


BY_NAME = l4(BROKEN, match={"sniHosts": [HELLO]})
BESIDE = gateway(tls_server(8443), tls_server(8443, "SIMPLE", "HTTPS", hosts=["*.example"], name="b"))
HTTPS = virtual_service(name="b", hosts=["shop.example"])


@pytest.mark.parametrize(
    ("objects", "bound"),
    [
        # another server name of the port reaches the Service
        ((gateway(tls_server()), virtual_service(tls=[BY_NAME, sni("x.example")])), True),
        # a virtual host behind the TLS of the same port does
        ((BESIDE, virtual_service(tls=[BY_NAME]), HTTPS), True),
        # it would, but Envoy refuses every route of the gateway
        ((BESIDE, virtual_service(tls=[BY_NAME]), HTTPS, virtual_service(http(to(weight=0), to(weight=0)), name="c")), False),
        # the other server name leads elsewhere
        ((gateway(tls_server()), virtual_service(tls=[BY_NAME, sni("x.example", to_host=PLAIN)])), False),
        # the listener is refused as a whole
        ((gateway(tls_server(), server(8443)), virtual_service(tls=[BY_NAME, sni("*")])), False),
        # a tcp port has one route, whose other destination reaches it, or none does
        ((gateway(tcp_server()), virtual_service(tcp=[l4(to(subset="v9", weight=1), to(weight=1))])), True),
        ((gateway(tcp_server()), virtual_service(tcp=[l4(BROKEN)])), False),
    ],
)
def test_a_port_where_only_other_names_are_served_by_chains(objects: Any, bound: bool) -> None:
    found = loosely(service("plain"), *objects)
    assert (HELLO in found.bound) is bound
    if bound:
        assert any(f"requests for {HELLO} get 503" in one for one in found.bound[HELLO].warnings)


def test_so_many_expressions_of_a_virtual_service_are_looked_into() -> None:
    """Each further one costs as much as all before it: the square of what a tenant writes."""
    names = [f"s{number}" for number in range(MAX_EXPRESSIONS + 2)]

    def route(name: str, expression: str, **more: Any) -> dict[str, Any]:
        return http(full(f"{name}.default"), match={"uri": {"regex": expression}, **more})

    routes = [route(name, f"/{name}/[ab]*c") for name in names]
    again = route("again", "/s0/[ab]*c", headers={"x": {"exact": "1"}})
    last = http(full("last.default"), match={"uri": {"prefix": "/last"}})
    services = [service(name) for name in (*names, "again", "last")]
    found = outcome(gateway(), virtual_service(again, *routes, last, hosts=["*"]), *services)
    assert {name.partition(".")[0] for name in found.bound} == {*names[:MAX_EXPRESSIONS], "again", "last"}
    skipped = found.skipped[full(f"{names[-1]}.default")]
    assert skipped.reason is Reason.MATCH_NOT_APPLICABLE
    assert f"beyond the {MAX_EXPRESSIONS}" in skipped.message
