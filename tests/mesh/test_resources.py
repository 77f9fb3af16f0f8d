"""The border: what is read, what is refused and with which field, and that nothing JSON can express raises."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.mesh.records import Skip, StringMatch, Uses, key_text
from canal_dns.mesh.resources import KINDS, parse, unusable
from tests.mesh import builders as make
from tests.mesh.builders import ISTIO


def skip(raw: Any) -> tuple[str, str]:
    """Field and message of a refused object."""
    found = parse(raw)
    assert isinstance(found, Skip), found
    assert found.reason == "Invalid"
    return found.field, found.message


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of an object with one field set; `path` as in messages."""
    import copy

    copied = copy.deepcopy(raw)
    at: Any = copied
    parts = path.replace("]", "").replace("[", ".").split(".")
    for part in parts[:-1]:
        at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
    if isinstance(at, list):
        at[int(parts[-1])] = value
    else:
        at[parts[-1]] = value
    return copied


LONG = "a" * 300

REFUSED: list[tuple[dict[str, Any], str, Any, str]] = [
    (make.virtual_service(), "spec.hosts[0]", LONG, "a host of 300 characters, at most 253"),
    (make.virtual_service(), "spec.hosts", "helloworld", "a list is needed, not a text"),
    (make.virtual_service(), "spec.hosts[0]", 7, "a text is needed, not a number"),
    (make.virtual_service(), "spec.hosts[0]", "a b", "is not a host"),
    (make.virtual_service(), "spec.gateways", "gw", "a list is needed"),
    (make.virtual_service(), "spec.gateways[0]", "", "a text is needed, not nothing"),
    (make.virtual_service(), "spec.exportTo", {"*": 1}, "a list is needed, not a mapping"),
    (make.virtual_service(), "spec.http", {"route": []}, "a list is needed"),
    (make.virtual_service(), "spec.http[0]", None, "an empty entry"),
    (make.virtual_service(), "spec.http[0]", "x", "a mapping is needed, not a text"),
    (make.virtual_service(), "spec.http[0].match", [3], "a mapping is needed, not a number"),
    (make.virtual_service(), "spec.http[0].route[0].destination.host", None, "this field is missing"),
    (make.virtual_service(), "spec.http[0].route[0].destination.host", LONG, "300"),
    (make.virtual_service(), "spec.http[0].route[0].destination.port", {"number": "80"}, "a whole number"),
    (make.virtual_service(), "spec.http[0].route[0].destination.port", {"number": True}, "a whole number"),
    (make.virtual_service(), "spec.http[0].route[0].weight", 1.5, "a whole number"),
    (make.virtual_service(), "spec.http[0].delegate", {}, "this field is missing"),
    (make.virtual_service(), "spec.http[0].match", [{"uri": "/a"}], "a mapping is needed"),
    (make.virtual_service(), "spec.http[0].match", [{"uri": {"exact": 1}}], "a text is needed"),
    (make.virtual_service(), "spec.http[0].match", [{"headers": ["x"]}], "a mapping is needed, not a list"),
    (make.virtual_service(), "spec.http[0].match", [{"headers": {1: {"exact": "x"}}}], "the name of a header"),
    (make.virtual_service(), "spec.http[0].match", [{"sourceLabels": {"a": 1}}], "a text is needed"),
    (make.virtual_service(), "spec.http[0].match", [{"ignoreUriCase": "yes"}], "true or false"),
    (make.virtual_service(), "spec.http[0].match", [{"port": 70000}], "70000"),
    (make.virtual_service(), "spec.tcp", [{"match": [{"sniHosts": "x"}]}], "a list is needed"),
    (make.virtual_service(), "metadata.creationTimestamp", "yesterday", "a time such as"),
    (make.virtual_service(), "metadata.annotations", {"canal-dns.io/bind": True}, "a text is needed, not a boolean"),
    (make.virtual_service(), "metadata.labels", "x", "a mapping is needed"),
    (make.virtual_service(), "metadata.name", None, "this field is missing"),
    (make.virtual_service(), "metadata.name", "a/b", "not the name of an object"),
    (make.virtual_service(), "metadata.namespace", "x" * 254, "not the name of an object"),
    (make.virtual_service(), "spec", [], "a mapping is needed, not a list"),
    (make.gateway(), "spec.servers", [], "a Gateway without servers"),
    (make.gateway(), "spec.servers", None, "a Gateway without servers"),
    (make.gateway(), "spec.servers[0].hosts", [], "a server without hosts"),
    (make.gateway(), "spec.servers[0].hosts", ["ns/" + LONG], "300"),
    (make.gateway(), "spec.servers[0].port", None, "a whole number from 1 to 65535 is needed, not nothing"),
    (make.gateway(), "spec.servers[0].port.number", 0, "a whole number"),
    (make.gateway(), "spec.servers[0].port.protocol", "", "this field is missing"),
    (make.gateway(), "spec.servers[0].tls", "SIMPLE", "a mapping is needed"),
    (make.gateway(), "spec.selector", ["app"], "a mapping is needed"),
    (make.service(), "metadata.name", "Hello_World", "not a DNS label"),
    (make.service(), "metadata.namespace", "a.b", "not a DNS label"),
    (make.service(), "spec.ports[0].port", 0, "a whole number"),
    (make.service(), "spec.ports[0].targetPort", [80], "a whole number"),
    (make.service(), "spec.ports", "", "a list is needed"),
    (make.service(), "spec.ports", {}, "a list is needed"),
    (make.service(ports=(1,)), "spec.ports[0].port", True, "a whole number"),
    (make.service(ports=(80,)), "spec.ports[0].port", 80.0, "a whole number"),
    (make.service(type="ExternalName"), "spec.externalName", None, "this field is missing"),
    (make.pod(), "metadata.labels", {"a": None}, "a text is needed, not nothing"),
    (make.endpoints(), "endpoints[0]", {"addresses": "10.244.0.1"}, "a list is needed"),
    (make.endpoints(), "endpoints[0].conditions", {"terminating": "no"}, "true or false"),
    (make.destination_rule("x"), "spec.host", "", "this field is missing"),
    (make.destination_rule("x"), "spec.subsets", [{}], "this field is missing"),
]


@pytest.mark.parametrize(("raw", "path", "value", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_with_field_and_reason(raw: dict[str, Any], path: str, value: Any, message: str) -> None:
    field, said = skip(changed(raw, path, value))
    assert message in said
    assert field.startswith(path.rpartition(".")[0]) or path.startswith(field)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        "Service",
        {},
        {"kind": ["Service"], "apiVersion": "v1"},
        {"kind": "ConfigMap", "apiVersion": "v1"},
        {"kind": "Service", "apiVersion": "serving.knative.dev/v1"},
        {"kind": "Gateway", "apiVersion": "gateway.networking.k8s.io/v1"},
        {"kind": "VirtualService", "apiVersion": ["networking.istio.io/v1"]},
    ],
)
def test_anything_else_is_none_of_ours(raw: Any) -> None:
    assert parse(raw) is None


FIELDS = [
    *(
        "hosts",
        "gateways",
        "http",
        "tcp",
        "tls",
        "route",
        "destination",
        "host",
        "port",
        "number",
        "servers",
        "selector",
        "ports",
    ),
    *("clusterIP", "clusterIPs", "labels", "annotations", "name", "namespace", "match", "uri", "exact", "regex", "headers"),
    *("endpoints", "conditions", "delegate", "subsets", "exportTo", "spec"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
VERSIONS = {"EndpointSlice": "discovery.k8s.io/v1", "Gateway": ISTIO, "VirtualService": ISTIO, "DestinationRule": ISTIO}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), json_values, json_values, st.dictionaries(st.sampled_from(["endpoints", "ports"]), json_values))
def test_no_json_raises(kind: str, metadata: Any, spec: Any, more: Any) -> None:
    found = parse({"kind": kind, "apiVersion": VERSIONS.get(kind, "v1"), "metadata": metadata, "spec": spec, **more})
    assert found is not None
    assert found.kind == kind
    hash(found)


def path_sets(raw: Any, path: str = "") -> list[str]:
    """Every place in an object."""
    if isinstance(raw, dict):
        return [path] * bool(path) + [one for key in raw for one in path_sets(raw[key], f"{path}.{key}" if path else key)]
    if isinstance(raw, list):
        return [path] + [one for number, item in enumerate(raw) for one in path_sets(item, f"{path}[{number}]")]
    return [path]


WHOLE = [
    make.virtual_service(
        make.http("a", match={"uri": {"exact": "/"}, "headers": {"x": {"regex": "*"}}}, mirror={"host": "m"}),
        make.http(delegate={"name": "d"}),
        tcp=[make.l4("b", match={"port": 3})],
        tls=[make.sni("c")],
        labels={"istio.io/rev": "x"},
        annotations={"canal-dns.io/bind": "true"},
        created=3,
        exportTo=["."],
    ),
    make.gateway(make.tls_server(), make.server(), created=3),
    make.service(annotations={"canal-dns.io/ttl": "3"}, clusterIPs=["10.0.0.1"]),
    make.pod(containers=[{"ports": [{"name": "http", "containerPort": 80}]}]),
    make.endpoints(ports=({"name": "http", "port": 80},)),
    make.namespace("x", bind="true"),
    make.destination_rule("a", "v1", exportTo=["*"], workloadSelector={"matchLabels": {"a": "b"}}),
]
PLACES = [(raw, path) for raw in WHOLE for path in path_sets(raw) if path not in ("kind", "apiVersion")]


@pytest.mark.parametrize(
    "value", [None, 0, -1, 10**30, 1.5, True, "", "x y", LONG, [], [None], {}, {"x": None}, {1: 2}], ids=str
)
def test_no_field_raises_whatever_stands_there(value: Any) -> None:
    for raw, path in PLACES:
        assert parse(changed(raw, path, value)) is not None, path


def test_equal_ports_are_shared_by_value_and_type() -> None:
    first, second = (parse(make.service(name, ports=(1, 80))) for name in ("a", "b"))
    assert first.ports is second.ports  # type: ignore[union-attr]
    for equal in (True, 1.0):
        assert isinstance(parse(make.service(ports=({"port": equal}, {"port": 80}))), Skip)


def test_a_service() -> None:
    raw = make.service(
        ports=(
            {"port": 80, "name": "http", "targetPort": "web", "appProtocol": "http"},
            {"port": 53, "protocol": "UDP", "targetPort": 5353},
        ),
        annotations={
            "canal-dns.io/bind": "False",
            "canal-dns.io/allow-from": " ns1,ns2 ,",
            "canal-dns.io/ttl": " 30 ",
            "networking.istio.io/exportTo": ".,shop",
        },
        clusterIPs=["10.96.1.1", "fd00::0001"],
    )
    record = parse(raw)
    assert record is not None
    assert (record.v4, record.v6) == (("10.96.1.1",), ("fd00::1",))  # type: ignore[union-attr]
    assert [(one.name, one.protocol, one.port, one.target) for one in record.ports] == [
        ("http", "TCP", 80, "web"),
        ("", "UDP", 53, 5353),
    ]  # type: ignore[union-attr]
    assert (record.bind, record.ttl, record.allow_from) == (False, 30, {"ns1", "ns2"})  # type: ignore[union-attr]
    assert record.export_to == {".", "shop"}  # type: ignore[union-attr]
    assert not record.remarks  # type: ignore[union-attr]


def test_bad_annotations_are_remarks_and_the_service_counts() -> None:
    record = parse(make.service(annotations={"canal-dns.io/bind": "maybe", "canal-dns.io/ttl": "soon"}))
    assert (record.bind, record.ttl) == (None, None)  # type: ignore[union-attr]
    assert [field for field, _ in record.remarks] == [  # type: ignore[union-attr]
        "metadata.annotations[canal-dns.io/bind]",
        "metadata.annotations[canal-dns.io/ttl]",
    ]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.0.1", "loopback"),
        ("::1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("::ffff:10.0.0.1", "IPv4-mapped"),
        ("fe80::1%eth0", "zone"),
        ("10.0.0", "no IP address"),
        ("10.96.0.1", ""),
        ("fd00::1", ""),
        ("240.0.0.1", ""),
    ],
)
def test_addresses_that_must_not_be_answered(address: str, why: str) -> None:
    assert why in unusable(address)
    assert bool(unusable(address)) == bool(why)
    record = parse(make.service(clusterIP=address))
    assert bool(record.rejected) == bool(why)  # type: ignore[union-attr]
    assert bool(record.v4 or record.v6) != bool(why)  # type: ignore[union-attr]


def test_headless_and_external_name() -> None:
    assert parse(make.service(clusterIP="None")).headless  # type: ignore[union-attr]
    assert parse(make.service(clusterIP="None", clusterIPs=["None"])).v4 == ()  # type: ignore[union-attr]
    external = parse(make.service(type="ExternalName", externalName="x.example", clusterIP="None"))
    assert external.external_name == "x.example"  # type: ignore[union-attr]
    assert not external.headless  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ({}, True),
        ({"ready": None}, True),
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({"ready": True, "terminating": True}, False),
    ],
)
def test_an_endpoint_is_ready_unless_it_says_no_or_terminates(conditions: dict[str, Any], ready: bool) -> None:
    raw = make.endpoints(ports=({"name": "http", "port": 8080}, {"name": "any"}))
    raw["endpoints"][0]["conditions"] = conditions
    record = parse(raw)
    assert record.ready == ready  # type: ignore[union-attr]
    assert record.ports == (("http", 8080),)  # type: ignore[union-attr]
    assert record.pods == (("istio-system", "gw-0"),)  # type: ignore[union-attr]
    assert not parse(make.endpoints(pods=())).ready  # type: ignore[union-attr]


def test_addresses_of_all_endpoints_that_a_client_can_have() -> None:
    raw = make.endpoints(pods=("a",), addresses=("10.244.0.9", "10.244.0.10", "fd00:0:0::7"))
    raw["endpoints"] += [
        {"addresses": ["10.244.0.9", "10.244.0.2"], "conditions": {"ready": False, "terminating": True}},
        {"addresses": ["pod.example", "127.0.0.1", "fe80::1", "0.0.0.0", "::ffff:10.244.0.3", "fd00::1%eth0", "224.0.0.1"]},
        {},
    ]
    record = parse(raw)
    assert record.addresses == ("10.244.0.10", "10.244.0.2", "10.244.0.9", "fd00::7")  # type: ignore[union-attr]


def test_endpoints_that_are_no_pods() -> None:
    raw = make.endpoints()
    raw["endpoints"][0]["targetRef"] = {"kind": "Node", "name": "x"}
    raw["endpoints"].append({"targetRef": {"kind": "Pod", "name": "other"}})
    assert parse(raw).pods == (("istio-system", "other"),)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        (None, 0),
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01T00:01:00", 60),
        (datetime(1970, 1, 1, 0, 1, tzinfo=UTC), 60),
        (datetime(1970, 1, 1, 0, 1), 60),
    ],
)
def test_age_is_read_from_texts_and_from_what_yaml_makes_of_them(stamp: Any, seconds: float) -> None:
    """Manifests have none: they are the oldest, and all of one age."""
    raw = make.gateway()
    raw["metadata"]["creationTimestamp"] = stamp
    assert parse(raw).created == seconds  # type: ignore[union-attr]


def test_matches() -> None:
    raw = make.virtual_service(
        make.http(
            match={
                "uri": {"regex": "*"},
                "method": {},
                "headers": {"b": {"prefix": "1"}, "a": None},
                "withoutHeaders": {"c": {"exact": "2"}},
                "queryParams": {"q": {"regex": "x"}},
            }
        )
    )
    match = parse(raw).http[0].matches[0]  # type: ignore[union-attr]
    present = StringMatch(Uses.PRESENT)
    assert (match.uri, match.method, match.scheme) == (present, present, None)
    assert match.headers == (("a", present), ("b", StringMatch(Uses.PREFIX, "1")))
    assert match.without_headers == (("c", StringMatch(Uses.EXACT, "2")),)
    assert match.query_params == (("q", StringMatch(Uses.REGEX, "x")),)


@pytest.mark.parametrize(("code", "refused"), [(None, False), (301, False), (308, False), (304, True)])
def test_redirects_with_a_code_that_envoy_does_not_know(code: int | None, refused: bool) -> None:
    raw = make.virtual_service(make.http(redirect={"uri": "/x"} if code is None else {"redirectCode": code}))
    route = parse(raw).http[0]  # type: ignore[union-attr]
    assert route.redirect
    assert route.refused == refused


def test_tls_without_a_mode_is_passthrough() -> None:
    """PASSTHROUGH is the enum's zero."""
    assert parse(make.gateway(make.server(tls={}))).servers[0].mode == "PASSTHROUGH"  # type: ignore[union-attr]
    assert parse(make.gateway()).servers[0].mode == ""  # type: ignore[union-attr]


def test_namespaces_and_defaults() -> None:
    assert parse({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "namespace": "y"}}).namespace == ""  # type: ignore[union-attr]
    raw = make.service()
    del raw["metadata"]["namespace"]
    assert parse(raw).namespace == "default"  # type: ignore[union-attr]
    assert key_text("", "x") == "x"
    assert key_text("a", "x") == "a/x"


def test_pods_keep_their_named_ports() -> None:
    raw = make.pod(containers=[{"ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}, {}])
    assert parse(raw).ports == (("http", 80),)  # type: ignore[union-attr]
