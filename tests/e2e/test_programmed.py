"""The oracle and the comparison of test_agreement, on made-up dumps: each rule once, and what must be found wrong is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.agreement import Look, Said, apart, compare, refused_ports, said_of
from tests.e2e.programmed import DESTINATION, HOST, Programmed, Request, Served, Way, authority, host_of

WEB, CART = "web.shop.svc.cluster.local", "cart.shop.svc.cluster.local"
TO_WEB, TO_CART = f"outbound|80||{WEB}", f"outbound|80||{CART}"


def route(cluster: str, **match: Any) -> dict[str, Any]:
    return {"name": "r", "match": match or {"prefix": "/"}, "route": {"cluster": cluster}}


def chain(filters: str, config: dict[str, Any], *, names: tuple[str, ...] = (), tls: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"filters": [{"name": f"envoy.filters.network.{filters}", "typed_config": config}]}
    if names:
        made["filter_chain_match"] = {"server_names": [*names]}
    return made | ({"transport_socket": {}} if tls else {})


def http(*, tls: bool = False) -> dict[str, Any]:
    return chain("http_connection_manager", {"rds": {"route_config_name": "http.80"}}, tls=tls)


def dump(
    *routes: dict[str, Any], domains: tuple[str, ...] = ("*",), clusters: tuple[str, ...] = (TO_WEB, TO_CART),
    chains: tuple[dict[str, Any], ...] = (), address: str = "0.0.0.0", **host: Any,
) -> dict[str, Any]:  # fmt: skip
    listener = {
        "address": {"socket_address": {"address": address, "port_value": 80}},
        "filter_chains": [*(chains or (http(),))],
    }
    hosts = [{"name": "one", "domains": [*domains], "routes": [*routes], **host}]
    return {
        "configs": [
            {"@type": "x/envoy.admin.v3.ClustersConfigDump",
             "dynamic_active_clusters": [{"cluster": {"name": name}} for name in clusters]},
            {"@type": "x/envoy.admin.v3.ListenersConfigDump",
             "dynamic_listeners": [{"name": "80", "active_state": {"listener": listener}}]},
            {"@type": "x/envoy.admin.v3.RoutesConfigDump",
             "dynamic_route_configs": [{"route_config": {"name": "http.80", "virtual_hosts": hosts}}]},
        ]
    }  # fmt: skip


def served(made: dict[str, Any], name: str = WEB) -> list[str]:
    found = Programmed(made).served([name], [80])
    return found[name].claims if name in found else []


NOTHING: list[str] = []


@pytest.mark.parametrize(
    ("made", "claims"),
    [
        pytest.param(dump(route(TO_WEB)), [DESTINATION], id="a route to it under any name"),
        pytest.param(dump(route(TO_WEB), domains=(WEB,)), [DESTINATION, HOST], id="under its own name"),
        pytest.param(dump(route(TO_CART), domains=(WEB,)), [HOST], id="its own name leads elsewhere"),
        pytest.param(dump(route(TO_CART), domains=("*.shop.svc.cluster.local",)), NOTHING, id="another one's route"),
        pytest.param(dump(route(TO_WEB), domains=(CART,)), NOTHING, id="under another name only"),
        pytest.param(dump(route(TO_CART), route(TO_WEB)), NOTHING, id="behind a route that takes everything"),
        pytest.param(dump(route(TO_CART, prefix="/a"), route(TO_WEB, prefix="/a/b")), NOTHING, id="behind a shorter prefix"),
        pytest.param(dump(route(TO_CART, path="/zz"), route(TO_WEB)), [DESTINATION], id="behind one path"),
        pytest.param(dump(route(TO_CART, path="/zz"), route(TO_WEB, path="/zz")), NOTHING, id="behind the same path"),
        pytest.param(dump(route(TO_WEB), clusters=(TO_CART,)), NOTHING, id="a cluster that is not there"),
        pytest.param(dump(route(TO_WEB), chains=(http(tls=True),)), [DESTINATION], id="over TLS"),
        pytest.param(dump(route(TO_WEB), address="127.0.0.1"), NOTHING, id="where nobody comes"),
        pytest.param(dump(route(TO_WEB), require_tls="ALL"), NOTHING, id="a redirect to TLS"),
        pytest.param(
            dump({"match": {"prefix": "/"}, "redirect": {}}, route(TO_WEB)), NOTHING, id="behind a redirect of everything"
        ),
        pytest.param(
            dump(
                {
                    "match": {"prefix": "/"},
                    "route": {"weighted_clusters": {"clusters": [{"name": TO_WEB}, {"name": TO_CART, "weight": 1}]}},
                }
            ),
            NOTHING,
            id="weight 0",
        ),
        pytest.param(
            dump(
                route(
                    TO_CART,
                    prefix="/",
                    headers=[
                        {
                            "name": "x-a",
                            "string_match": {"exact": "1"},
                            "invert_match": True,
                            "treat_missing_header_as_empty": True,
                        }
                    ],
                ),
                route(TO_WEB),
            ),
            [DESTINATION],
            id="only with a header",
        ),
        pytest.param(
            dump(route(TO_CART, prefix="/", headers=[{"name": ":authority", "string_match": {"exact": WEB}}]), route(TO_WEB)),
            NOTHING,
            id="behind a route for its own name",
        ),
        pytest.param(dump(chains=(chain("tcp_proxy", {"cluster": TO_WEB}),)), [DESTINATION], id="all connections"),
        pytest.param(
            dump(chains=(chain("tcp_proxy", {"cluster": TO_CART}, names=(WEB,)),)), [HOST], id="connections for its name"
        ),
        pytest.param(
            dump(chains=(chain("tcp_proxy", {"cluster": TO_WEB}, names=("*.default.svc.cluster.local",)),)),
            NOTHING,
            id="connections for other names",
        ),
    ],
)
def test_what_a_dump_says_of_a_name(made: dict[str, Any], claims: list[str]) -> None:
    assert served(made) == claims


def test_the_witness_takes_the_way() -> None:
    made = dump(
        route(TO_CART, prefix="/a"),
        route(TO_WEB, prefix="/", headers=[{"name": "x-user", "string_match": {"exact": "jason"}}]),
    )
    (way,) = Programmed(made).served([WEB], [80])[WEB].ways
    assert (way.request.headers, way.hosts) == ((("x-user", "jason"),), {WEB})
    assert not way.request.path.startswith("/a")


def test_the_authority_has_the_port_unless_it_is_the_schemes_own() -> None:
    own = route(TO_CART, prefix="/", headers=[{"name": ":authority", "string_match": {"exact": WEB}}])
    made = dump(own, route(TO_WEB))
    assert served(made) == []
    made["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"]["address"]["socket_address"]["port_value"] = 5000
    assert Programmed(made).served([WEB], [5000])[WEB].ports == [5000]
    assert authority(WEB, 443, tls=True) == WEB
    assert authority(WEB, 80, tls=True) == f"{WEB}:80"


@pytest.mark.parametrize(
    ("chains", "asked"),
    [
        ((http(),), [False]),
        ((http(tls=True),), [True]),
        ((http(), chain("tcp_proxy", {"cluster": TO_WEB}, names=(WEB,))), [False, True]),
        ((chain("tcp_proxy", {"cluster": TO_WEB}, names=(WEB,)),), [True]),
        ((chain("tcp_proxy", {"cluster": TO_WEB}),), [True]),
    ],
    ids=["http", "https", "http and passthrough", "passthrough", "passthrough of all names"],
)
def test_how_a_port_is_asked(chains: tuple[dict[str, Any], ...], asked: list[bool]) -> None:
    made = dump(chains=chains)
    listener = made["configs"][1]["dynamic_listeners"][0]["active_state"]["listener"]
    if True in asked:
        listener["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector"}]
    assert Programmed(made).asked(80) == asked
    assert Programmed(made).asked(81) == []


def test_what_is_half_done_and_what_is_refused_is_told() -> None:
    made = dump()
    listener = made["configs"][1]["dynamic_listeners"][0]
    listener |= {"name": "0.0.0.0_80", "warming_state": {}, "error_state": {"details": "no"}}
    programmed = Programmed(made)
    assert (programmed.warming, programmed.refused) == (["0.0.0.0_80"], {"0.0.0.0_80": "no"})
    assert programmed.refused_ports == {80}
    assert host_of("outbound_.80_._.web") == ""


# --- the comparison --------------------------------------------------------------------------------------------------------


def way(*claims: str, port: int = 80) -> Served:
    return Served([Way(port, False, True, "r", (TO_WEB,), frozenset(claims), Request())])


@pytest.mark.parametrize(
    ("ours", "theirs", "there", "outcome"),
    [
        pytest.param(Said(True, (80,), (HOST,)), way(HOST), True, "agreed", id="bound and served"),
        pytest.param(Said(False, reason="Shadowed"), Served(), True, "agreed", id="neither"),
        pytest.param(Said(True, (80,), (HOST,)), Served(), True, "differs", id="bound and not served"),
        pytest.param(Said(False, reason="Shadowed"), way(HOST), True, "differs", id="served and not bound"),
        pytest.param(Said(True, (80, 81), (HOST,)), way(HOST), True, "differs", id="on another port too"),
        pytest.param(Said(True, (80,), (HOST,)), way(DESTINATION), True, "differs", id="by another claim"),
        pytest.param(Said(True, (80, 81), (HOST,), forgiven=True), way(HOST), True, "forgiven", id="503 on one port"),
        pytest.param(Said(True, (80,), (HOST,), forgiven=True), way(HOST, port=81), True, "differs", id="503, other port"),
        pytest.param(Said(False, reason="CrossNamespace"), way(HOST), True, "policies", id="a policy"),
        pytest.param(Said(True, (80,), (HOST,)), way(HOST), False, "differs", id="bound without a Service"),
        pytest.param(Said(False, reason="TargetNotFound", absent=True), way(HOST), False, "absent", id="no Service"),
        pytest.param(Said(False, reason="TargetNotFound", absent=True), way(HOST), True, "differs", id="a Service unseen"),
    ],
)
def test_the_comparison(ours: Said, theirs: Served, there: bool, outcome: str) -> None:
    found = compare({WEB: ours}, {WEB: theirs} if theirs.ways else {}, {WEB: there})
    outcomes = {
        "differs": len(found.differences), "agreed": len(found.agreed), "forgiven": found.forgiven,
        "policies": found.policies, "absent": found.absent,
    }  # fmt: skip
    assert outcomes.pop(outcome) == 1
    assert found.differences or not any(outcomes.values())


def bindings(*, bound: bool, reason: str = "NoRoute") -> str:
    one = {"name": WEB, "ports": [80], "claims": [DESTINATION], "warnings": [], "reason": reason, "message": ""}
    return json.dumps({"bound": [one] if bound else [], "skipped": [] if bound else [one]})


def test_bindings_are_read_with_their_reasons() -> None:
    said = json.loads(bindings(bound=False, reason="OptedOut"))
    assert not said_of(said)[WEB].comparable
    said["skipped"][0] |= {"reason": "TargetNotFound", "message": f"there is no Service for {WEB}"}
    assert said_of(said)[WEB].absent


def test_ports_that_envoy_refuses_are_told() -> None:
    problems = [{"message": "Envoy refuses port 8443: two chains"}, {"message": "Envoy refuses it, and with it every route"}]
    assert refused_ports({"problems": problems}) == {8443}


IN, OUT = json.dumps(dump(route(TO_WEB))), json.dumps(dump())


@pytest.mark.parametrize(
    ("states", "found"),
    [
        pytest.param([(True, IN), (True, IN)], None, id="at one"),
        pytest.param([(False, OUT), (True, OUT), (True, OUT), (True, IN)], (True, 1, "canal-dns", "envoy"), id="it leads"),
        pytest.param([(True, IN), (True, OUT), (True, OUT), (False, OUT)], (True, 1, "envoy", "canal-dns"), id="unbound late"),
        pytest.param([(False, OUT), (False, IN), (True, IN)], (False, 0, "envoy", "canal-dns"), id="bound late"),
        pytest.param([(False, OUT), (True, IN), (False, OUT)], None, id="together"),
        pytest.param([(True, IN), (False, IN), (False, IN)], (False, 1, "canal-dns", ""), id="not over yet"),
        pytest.param([(True, OUT), (False, IN), (False, OUT)], (True, 0, "", "both"), id="changed places"),
    ],
)
def test_intervals_in_which_they_differ(states: list[tuple[bool, str]], found: tuple[bool, float, str, str] | None) -> None:
    looks = [Look(float(at), bindings(bound=bound), text) for at, (bound, text) in enumerate(states)]
    intervals = apart(looks, [WEB])
    first = intervals[0] if intervals else None
    assert (first and (first.bound, first.seconds, first.began_by, first.ended_by)) == found
    assert [one.late for one in intervals[:1]] == ([found[2:] == ("envoy", "canal-dns")] if found else [])


def test_what_a_policy_forbids_is_not_looked_at() -> None:
    looks = [Look(0.0, bindings(bound=False, reason="OptedOut"), IN), Look(9.0, bindings(bound=False, reason="OptedOut"), IN)]
    assert apart(looks, [WEB]) == []
