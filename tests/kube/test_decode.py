"""Octets to records: cut to size, judged by `resources.parse` alone, and never an exception but MalformedError."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.kube import decode, kinds
from canal_dns.kube.decode import Lines, MalformedError, Objects
from canal_dns.mesh import resources
from canal_dns.mesh.records import Service, Skip
from canal_dns.mesh.resources import parse
from tests.kube.apiserver import PLURALS
from tests.mesh import builders as make

KINDS = {kind.name: kind for kind in (*kinds.EVERYWHERE, *kinds.BY_NAMESPACE)}

NOISE = {
    "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:ports": {}}}}],
    "uid": "c2f4",
    "finalizers": ["foregroundDeletion"],
    "ownerReferences": [{"kind": "Deployment", "name": "x"}],
}
ANNOTATIONS = {
    "canal-dns.io/bind": "false",
    "canal-dns.io/allow-from": "a,b",
    "canal-dns.io/ttl": "30",
    "networking.istio.io/exportTo": ".,other",
    "kubectl.kubernetes.io/last-applied-configuration": "{}" * 100,
}
LABELS = {"istio.io/rev": "canary", "kubernetes.io/service-name": "internalgateway", "app": "x"}

EXAMPLES = [
    make.service(ports=[{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "appProtocol": "http"}]),
    make.gateway_service(),
    make.pod(containers=[{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}], volumes=[{}]),
    make.endpoints(ports=[{"name": "http", "port": 8080}]),
    make.namespace("ns", bind="false"),
    make.gateway(make.server(80), make.tls_server()),
    make.virtual_service(make.http("a.b", match={"uri": {"exact": "/x"}, "headers": {"x": {"regex": "*"}}}, retries={})),
    make.destination_rule("a.b", "v1", "v2"),
]


def full(item: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """As an API server gives it: with much that nobody here reads."""
    added = NOISE | {"resourceVersion": "77", "creationTimestamp": "2026-01-01T00:00:00Z"} | meta
    status = {"loadBalancer": {}, "conditions": [{"type": "x"}]}
    return copy.deepcopy({**item, "metadata": item["metadata"] | added, "status": status})


def objects(item: dict[str, Any]) -> Objects:
    return Objects(KINDS[item["kind"]], item["apiVersion"].rpartition("/")[2])


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("annotations", [None, {}, ANNOTATIONS])
@pytest.mark.parametrize("item", EXAMPLES, ids=lambda item: item["kind"])
def test_what_is_cut_away_is_of_no_consequence(item, annotations, labels):
    given = {**item["metadata"].get("labels", {}), **(labels or {})}
    whole = full(item, **({"annotations": annotations} if annotations is not None else {}), labels=given)
    version, record = objects(item).read(json.dumps(whole).encode())
    assert version == "77"
    assert record is not None
    assert record == parse(whole)
    assert objects(item).name(json.dumps(whole).encode()) == ("77", record.namespace, record.name)


def test_every_annotation_that_is_read_is_kept():
    wanted = {value for name, value in vars(resources).items() if name.startswith("ANNOTATION_")}
    assert wanted < set(decode._Annotations.__annotations__)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@settings(max_examples=300, deadline=None)
@given(data=st.data(), item=st.sampled_from(EXAMPLES))
def test_a_broken_object_is_judged_as_if_nothing_had_been_cut(data, item):
    """Any value in any place: the verdict is that of `parse` on the whole object."""
    broken = full(item, annotations=dict(ANNOTATIONS), labels=dict(LABELS))
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(places(broken)))
        target: Any = broken
        try:
            for key in where[:-1]:
                target = target[key]
            target[where[-1]] = data.draw(VALUES)
        except (KeyError, IndexError, TypeError):
            pass
    octets = json.dumps(broken).encode()
    _, record = objects(item).read(octets)
    whole = json.loads(octets)
    if whole.get("kind") == item["kind"]:
        assert record == parse(whole)
    else:
        assert record is None


@pytest.mark.parametrize(
    ("meta", "field"),
    [({"labels": []}, "metadata.labels"), ({"annotations": "x"}, "metadata.annotations"), ({"name": 5}, "metadata.name")],
)
def test_a_wrong_shape_is_told_by_the_judge(meta, field):
    item = full(make.virtual_service(make.http("a.b")), **meta)
    _, record = objects(item).read(json.dumps(item).encode())
    assert isinstance(record, Skip)
    assert record.field == field


def test_items_of_lists_have_no_kind():
    item = make.service()
    del item["kind"], item["apiVersion"]
    _, record = Objects(kinds.SERVICE, "v1").read(json.dumps(item).encode())
    assert isinstance(record, Service)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_kind_is_where_the_rule_expects_it(kind):
    assert PLURALS[kind.name] == kind.resource
    for version in kind.versions:
        assert kind.api_version(version) in resources._VERSIONS[kind.name]


def test_every_kind_of_the_rule_is_watched():
    assert set(KINDS) == set(resources.KINDS)


@pytest.mark.parametrize("octets", [b"", b"{", b"[1", b'{"metadata": {"name": "\xff"}}', b"[" * 5000, b'{"a":' * 5000])
def test_what_is_no_json_is_malformed(octets):
    for read in (Objects(kinds.SERVICE, "v1").read, Objects(kinds.SERVICE, "v1").name, Objects.version):
        with pytest.raises(MalformedError):
            read(octets)


@pytest.mark.parametrize("octets", [b"7", b"null", b"[]", b'"x"', b"{}", b'{"metadata": []}', b'{"metadata": {"name": 7}}'])
def test_what_is_no_object_has_no_name(octets):
    with pytest.raises(MalformedError):
        Objects(kinds.SERVICE, "v1").name(octets)
    assert Objects.version(octets) == ""


def test_a_page():
    body = b'{"kind":"ServiceList","metadata":{"resourceVersion":"5","continue":"abc"},"items":[{"a":1},{"b":2}]}'
    page = decode.page(body)
    assert (page.version, page.token, [bytes(item) for item in page.items]) == ("5", "abc", [b'{"a":1}', b'{"b":2}'])
    assert decode.page(b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":null}').items == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"kind":"Status","metadata":{}}', b'{"kind":"ServiceList"}', b"\x00"])
def test_no_page(body):
    with pytest.raises(MalformedError, match="not a list"):
        decode.page(body)


def test_events():
    event = decode.event(b'{"type":"ADDED","object":{"a":1}}')
    assert event.type == "ADDED"
    assert msgspec.json.decode(event.object) == {"a": 1}
    line = b'{"kind":"Status","code":410,"message":"too old"}'
    assert decode.event(line) == decode.Event("ERROR", line)
    for line in (b"", b"{}", b"[]", b"x", b'{"type":1}', b'{"kind":"Service"}'):
        with pytest.raises(MalformedError):
            decode.event(line)


OCTETS = st.binary(max_size=20).map(lambda octets: octets.replace(b"\n", b""))


@given(st.lists(OCTETS, max_size=8), OCTETS, st.data())
def test_lines_do_not_depend_on_how_they_arrive(lines, rest, data):
    stream = b"".join(line + b"\n" for line in lines) + rest
    splitter = Lines()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found == [line for line in lines if line]
    assert splitter.rest == rest


def test_a_line_has_an_end_to_its_length():
    splitter = Lines()
    piece = b"x" * (decode.MAX_LINE // 4)
    for _ in range(4):
        assert splitter.feed(piece) == []
    with pytest.raises(MalformedError, match="octets"):
        splitter.feed(b"x")
    with pytest.raises(MalformedError):
        Lines().feed(b"x" * (decode.MAX_LINE + 1) + b"\n")


@pytest.mark.parametrize("depth", [900, 5_000])
@pytest.mark.parametrize("place", ["status", "spec"])
def test_an_object_nested_deeper_than_python_goes_spoils_no_list(depth, place):
    """Whoever may write a `status` could end the whole kind otherwise: some CRDs take anything there."""
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    odd = b'{"metadata":{"name":"odd","namespace":"shop"},"%s":%s}' % (place.encode(), nested)
    page = decode.page(b'{"kind":"VirtualServiceList","metadata":{"resourceVersion":"7"},"items":[' + odd + b"]}")
    _, record = Objects(KINDS["VirtualService"], "v1").read(page.items[0])
    assert record is not None and record.name == "odd"
    assert decode.event(b'{"type":"ADDED","object":' + odd + b"}").type == "ADDED"


def test_what_is_nested_deeper_than_that_is_malformed():
    endless = b'{"a":' * 100_000
    with pytest.raises(MalformedError):
        decode.page(endless)
    with pytest.raises(MalformedError):
        Objects(KINDS["VirtualService"], "v1").read(endless)
