"""VirtualServices as istiod reads them: names, exports, delegates."""

from __future__ import annotations

from typing import Any

import pytest

from canal_dns.mesh.records import VirtualService
from canal_dns.mesh.resources import parse
from canal_dns.mesh.rules import Resolved, Tier, conflicts, delegates_of, exported_to, merged_matches, resolve, tier
from tests.mesh.builders import delegate, http, l4, to, virtual_service


def record(raw: Any) -> VirtualService:
    found = parse(raw)
    assert isinstance(found, VirtualService)
    return found


def read(root: Any, *others: Any) -> Resolved:
    known = {(one.namespace, one.name): one for one in map(record, others)}
    return resolve(record(root), lambda namespace, name: known.get((namespace, name)), "cluster.local", ("*",))


def test_names_belong_to_their_owner() -> None:
    root = virtual_service(
        http("a", match={"gateways": ["gw"]}, mirror={"host": "m"}, mirrors=[{"destination": {"host": "n"}}]),
        namespace="ns",
        hosts=["h", "x.example"],
        gateways=["gw", "./gw", "mesh"],
        tcp=[l4("b", match={"gateways": ["gw.other"]})],
        tls=[l4("c", match={"sniHosts": ["s"]})],
    )
    found = read(root)
    assert found.hosts == ("h.ns.svc.cluster.local", "x.example")
    assert found.gateways == ("ns/gw", "mesh")
    rule = found.http[0]
    assert rule.destinations[0].host == "a.ns.svc.cluster.local"
    assert rule.mirrors == ("m.ns.svc.cluster.local", "n.ns.svc.cluster.local")
    assert rule.matches[0].gateways == ("ns/gw",)
    assert found.tcp[0].matches[0].gateways == ("other/gw",)
    assert found.tls[0].matches[0].sni_hosts == ("s",)


@pytest.mark.parametrize(
    ("entry", "action", "hosts", "refused"),
    [
        (http(to("a.b", weight=0)), "route", ["a.b"], ""),
        (http(to("a.b", weight=0), to("c.d", weight=1)), "route", ["c.d"], ""),
        (http(to("a.b", weight=0), to("c.d")), "route", [], "all its weights are 0"),
        (http(), "route", [], "it has no action"),
        (http("a.b", redirect={"uri": "/"}), "redirect", [], ""),
        (http("a.b", directResponse={"status": 200}), "answer", [], ""),
        (http(redirect={"redirectCode": 304}), "redirect", [], "its redirectCode is none that Envoy knows"),
        (http("a.b", fault={"abort": {"httpStatus": 503}}), "route", ["a.b"], ""),
    ],
)
def test_actions(entry: Any, action: str, hosts: list[str], refused: str) -> None:
    rule = read(virtual_service(entry)).http[0]
    assert (rule.action, [one.host for one in rule.destinations], rule.refused) == (action, hosts, refused)


@pytest.mark.parametrize(
    ("export", "namespace", "default", "want"),
    [
        (["*"], "gw", ("*",), Tier.PUBLIC),
        (["*", "prod"], "gw", ("*",), Tier.PUBLIC),
        (["gw"], "gw", ("*",), Tier.EXPORTED),
        (["."], "gw", ("*",), None),
        (["."], "ns", ("*",), Tier.PRIVATE),
        (["ns"], "ns", ("*",), Tier.PRIVATE),
        (["~"], "ns", ("*",), None),
        (["~", "gw"], "gw", ("*",), None),
        (["prod"], "gw", ("*",), None),
        ([], "gw", ("*",), Tier.PUBLIC),
        ([], "gw", (".",), None),
        ([], "ns", (".",), Tier.PRIVATE),
    ],
)
def test_who_sees_it(export: list[str], namespace: str, default: tuple[str, ...], want: Tier | None) -> None:
    found = record(virtual_service(namespace="ns", exportTo=export))
    assert tier(found, namespace, default) == want
    assert exported_to(found, default)


ROOT = virtual_service(
    http(match={"uri": {"prefix": "/a"}}, delegate={"name": "d", "namespace": "ns"}, mirror={"host": "m"}), http("after.x")
)


def test_a_delegate_takes_the_place_of_its_entry() -> None:
    found = read(
        ROOT, delegate(http("one"), http("two", match={"uri": {"exact": "/a/b"}}, mirror={"host": "own"}), namespace="ns")
    )
    assert [rule.written[0].host for rule in found.http] == ["one.ns.svc.cluster.local", "two.ns.svc.cluster.local", "after.x"]
    assert [rule.owner for rule in found.http] == ["ns/d", "ns/d", "istio-system/helloworld"]
    assert found.http[0].matches[0].uri.value == "/a"  # type: ignore[union-attr]
    assert found.http[1].matches[0].uri.value == "/a/b"  # type: ignore[union-attr]
    assert found.http[0].mirrors == ("m.istio-system.svc.cluster.local",)
    assert found.http[1].mirrors == ("own.ns.svc.cluster.local",)
    assert delegates_of(record(ROOT)) == {("ns", "d")}
    assert not delegates_of(record(delegate(http(delegate={"name": "e"}))))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((), "the delegate ns/d does not exist"),
        ((virtual_service(name="d", namespace="ns"),), "has hosts, so it is no delegate"),
        ((delegate(http("one"), namespace="ns", exportTo=["prod"]),), "is not exported to namespace istio-system"),
        ((delegate(http("one", match={"uri": {"prefix": "/b"}}), namespace="ns"),), "its match is not part of the match"),
    ],
)
def test_a_delegate_that_brings_nothing(other: Any, message: str) -> None:
    found = read(ROOT, *other)
    assert [rule.written[0].host for rule in found.http] == ["after.x"]
    assert message in found.unused[0].message


def test_a_direct_response_of_the_root_is_inherited() -> None:
    root = virtual_service(http(delegate={"name": "d"}, directResponse={"status": 200}))
    rule = read(root, delegate(http("one"))).http[0]
    assert (rule.action, rule.destinations) == ("answer", ())


def test_delegates_go_one_level_deep() -> None:
    found = read(
        virtual_service(http(delegate={"name": "d"})), delegate(http(delegate={"name": "e"})), delegate(http("x"), name="e")
    )
    assert found.http[0].refused == "it has no action"


def first(raw: Any) -> Any:
    return record(virtual_service(http("a", match=raw or {"port": 0}))).http[0].matches[0]


CONFLICTS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, False),
    ({"uri": {"prefix": "/a"}}, {}, False),
    ({"uri": {"prefix": "/a"}}, {"uri": {"prefix": "/a/b"}}, False),
    ({"uri": {"prefix": "/a/b"}}, {"uri": {"prefix": "/a"}}, True),
    ({"uri": {"prefix": "/a"}}, {"uri": {"exact": "/a/b"}}, False),
    ({"uri": {"prefix": "/a"}}, {"uri": {"exact": "/b"}}, True),
    ({"uri": {"exact": "/a"}}, {"uri": {"exact": "/a"}}, False),
    ({"uri": {"exact": "/a"}}, {"uri": {"prefix": "/a"}}, True),
    ({"uri": {"exact": "/a"}}, {"uri": {"exact": "/b"}}, True),
    ({"uri": {"regex": ".*"}}, {"uri": {"regex": ".*"}}, True),
    ({"uri": {"regex": ".*"}}, {"uri": {"exact": "/a"}}, True),
    ({"uri": {"prefix": "/"}}, {"uri": {"regex": ".*"}}, True),
    ({"uri": {}}, {"uri": {"exact": "/a"}}, True),
    ({"method": {"exact": "GET"}}, {"method": {"exact": "POST"}}, True),
    ({"scheme": {"exact": "http"}}, {"scheme": {"exact": "http"}}, False),
    ({"authority": {"prefix": "a"}}, {"authority": {"exact": "ab"}}, False),
    ({"headers": {"x": {"exact": "1"}}}, {"headers": {"y": {"exact": "1"}}}, False),
    ({"headers": {"x": {"exact": "1"}}}, {"headers": {"x": {"exact": "2"}}}, True),
    ({"withoutHeaders": {"x": {"exact": "1"}}}, {"withoutHeaders": {"x": {"exact": "2"}}}, True),
    ({"queryParams": {"x": {"exact": "1"}}}, {"queryParams": {"x": {"exact": "2"}}}, True),
    ({"ignoreUriCase": True}, {}, True),
    ({"port": 80}, {"port": 81}, True),
    ({"port": 80}, {}, False),
    ({"sourceNamespace": "a"}, {}, True),
    ({"sourceNamespace": "a"}, {"sourceNamespace": "a"}, False),
    ({}, {"sourceNamespace": "a"}, False),
    ({"sourceLabels": {"a": "b"}}, {"sourceLabels": {"a": "c"}}, True),
    ({"sourceLabels": {"a": "b"}}, {"sourceLabels": {"c": "d"}}, False),
    ({"gateways": ["a/b"]}, {"gateways": ["a/b"]}, False),
    ({"gateways": ["a/b"]}, {"gateways": ["a/c"]}, True),
    ({"gateways": ["a/b"]}, {"gateways": ["a/b", "a/c"]}, True),
    ({"gateways": ["a/b", "a/c"]}, {"gateways": ["a/c"]}, False),
    ({"gateways": ["a/b"]}, {}, False),
]


@pytest.mark.parametrize(("root", "sub", "want"), CONFLICTS)
def test_a_delegates_match_must_be_narrower(root: dict[str, Any], sub: dict[str, Any], want: bool) -> None:
    assert conflicts(first(root), first(sub)) == want
    assert (merged_matches((first(root),), (first(sub),)) is None) == want


def test_matches_are_merged_pair_by_pair() -> None:
    root = (first({"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}}), first({"uri": {"prefix": "/b"}, "port": 80}))
    sub = (first({"uri": {"exact": "/a/1"}, "headers": {"y": {"exact": "2"}}, "sourceLabels": {"l": "v"}}),)
    merged = merged_matches(root, sub)
    assert merged is not None
    assert len(merged) == 1
    assert dict(merged[0].headers).keys() == {"x", "y"}
    assert merged[0].source_labels == (("l", "v"),)
    assert merged_matches((), sub) == sub
    assert merged_matches(root, ()) == root
    assert merged_matches(root, (*sub, first({"uri": {"exact": "/c"}}))) is None
