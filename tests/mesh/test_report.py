"""The result as plain data."""

from __future__ import annotations

import json
from collections import Counter

from canal_dns.mesh.binding import bind
from canal_dns.mesh.explain import explain
from canal_dns.mesh.report import reasons, to_plain
from canal_dns.mesh.result import Bound, Reason, difference, joined
from tests.mesh.builders import HELLO, SETTINGS, full, gateway, http, namespace, service, virtual_service, world


def test_every_service_is_there_once_in_order_of_name() -> None:
    view = world(
        gateway(), service("other"), service("zeta"), virtual_service(), virtual_service(http(full("gone.default")), name="zz")
    )
    plain = to_plain(bind(view, SETTINGS), view, SETTINGS)
    assert json.loads(json.dumps(plain)) == plain
    assert [(one["name"], one["vips"], one["gateway"], one["routes"]) for one in plain["bound"]] == [
        (HELLO, ["10.96.9.9"], "istio-system/internalgateway", ["istio-system/helloworld"])
    ]
    assert {one["name"]: one["reason"] for one in plain["skipped"]} == {
        full("gone.default"): "TargetNotFound",
        full("internalgateway.istio-system"): "Protected",
        full("other.default"): "NoRoute",
        full("zeta.default"): "NoRoute",
    }
    assert [one["name"] for one in plain["skipped"]] == sorted(one["name"] for one in plain["skipped"])
    assert plain["gateways"][0]["gateway"] == "istio-system/internalgateway"
    assert plain["gateways"][0]["ready"]


def test_what_no_virtual_service_names_has_the_reason_that_explain_gives() -> None:
    view = world(
        gateway(),
        virtual_service(http(full("gone.default"))),
        service("coredns", "kube-system"),
        service("silent", annotations={"canal-dns.io/bind": "false"}),
        service("quiet", "quiet"),
        namespace("quiet", bind="false"),
        service("alias", type="ExternalName", externalName="www.example.com"),
        service("pods", clusterIP="None"),
    )
    result = bind(view, SETTINGS)
    plain = to_plain(result, view, SETTINGS)
    assert {one["name"]: one["reason"] for one in plain["skipped"]} == {
        HELLO: "NoRoute",
        full("gone.default"): "TargetNotFound",
        full("internalgateway.istio-system"): "Protected",
        full("coredns.kube-system"): "Protected",
        full("silent.default"): "OptedOut",
        full("quiet.quiet"): "OptedOut",
        full("alias.default"): "ExternalName",
        full("pods.default"): "Headless",
    }
    for one in plain["skipped"]:
        place = f" ({one['object']} {one['field']})".replace(" )", ")")
        said = f"not bound: {one['reason']}: {one['message']}{place}"
        assert explain(result, view, SETTINGS, one["name"]).verdict == said
    assert reasons(result, view, SETTINGS) == Counter(one["reason"] for one in plain["skipped"])


def test_problems_name_object_and_field() -> None:
    broken = gateway(name="broken")
    broken["spec"]["servers"] = []
    view = world(gateway(), broken, service(annotations={"canal-dns.io/ttl": "soon"}), virtual_service(hosts=["a" * 300]))
    problems = to_plain(bind(view, SETTINGS), view, SETTINGS)["problems"]
    assert {(one["object"], one["field"], one["reason"]) for one in problems} == {
        ("Gateway istio-system/broken", "spec.servers", "Invalid"),
        ("Service default/helloworld", "metadata.annotations[canal-dns.io/ttl]", "Invalid"),
        ("VirtualService istio-system/helloworld", "spec.hosts[0]", "Invalid"),
    }


def test_every_reason_explains_itself() -> None:
    for reason in Reason:
        assert reason.value.isidentifier()
        assert reason.value[0].isupper()
        assert reason.text.endswith(".")
    assert Reason("Shadowed") is Reason.SHADOWED


def test_difference() -> None:
    def bound(name: str, ttl: int) -> Bound:
        return Bound(name, "a/b", (), (), ttl, "g/w", (), (), (), ())

    old = {"a": bound("a", 1), "b": bound("b", 1), "c": bound("c", 1)}
    new = {"a": bound("a", 1), "b": bound("b", 2), "d": bound("d", 1)}
    assert difference(old, new) == {"b": new["b"], "c": None, "d": new["d"]}
    assert joined([]) == "nothing"
    assert joined(["a", 1]) == "a, 1"
