"""The store: apply, delete, reset answer whether anything changed; drain says what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.records import EndpointSlice, Pod, Service, Skip
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import Change, View
from tests.mesh import builders as make

HELLO = Service("default", "helloworld")
BROKEN = Skip("Service", "default", "helloworld", "Invalid", "no", "spec")


def test_apply_and_delete() -> None:
    view = View()
    assert view.apply(HELLO)
    assert not view.apply(HELLO)
    assert view.services[("default", "helloworld")] == HELLO
    assert view.count("Service") == 1
    assert view.delete("Service", "default", "helloworld")
    assert not view.delete("Service", "default", "helloworld")
    assert not view.services


def test_an_object_that_became_unusable_takes_the_place_of_its_former_self() -> None:
    view = View([HELLO])
    assert view.apply(BROKEN)
    assert not view.apply(BROKEN)
    assert not view.services
    assert view.skips() == [BROKEN]
    assert view.apply(HELLO)
    assert view.skips() == []
    view.apply(BROKEN)
    assert view.delete("Service", "default", "helloworld")
    assert view.skips() == []


def test_objects_are_found_usable_or_not() -> None:
    view = View([HELLO, Service("default", "other")])
    view.apply(BROKEN)
    assert view.find("Service", ("default", "helloworld")) == BROKEN
    assert view.find("Service", ("default", "nobody")) is None
    assert sorted(view.keys("Service")) == [("default", "helloworld"), ("default", "other")]


def test_reset_is_a_relist() -> None:
    other = Service("default", "other")
    view = View([HELLO, BROKEN, other])
    assert view.skips()
    assert view.reset("Service", [other, HELLO])
    assert set(view.services) == {("default", "helloworld"), ("default", "other")}
    assert not view.reset("Service", [HELLO, other])
    assert view.reset("Service", [HELLO])
    assert view.reset("Service", [])
    assert not view.reset("Service", [])


def test_drain_tells_each_object_once_and_nothing_that_is_as_before() -> None:
    view = View([HELLO])
    assert view.drain() == [Change("Service", ("default", "helloworld"), None, HELLO)]
    assert view.drain() == []
    newer = Service("default", "helloworld", headless=True)
    view.apply(newer)
    view.apply(Service("default", "helloworld", ttl=3))
    view.apply(newer)
    assert view.drain() == [Change("Service", ("default", "helloworld"), HELLO, newer)]
    view.delete("Service", "default", "helloworld")
    view.apply(newer)
    assert view.drain() == []


def test_drain_tells_that_something_is_unusable_for_another_reason() -> None:
    view = View([BROKEN])
    nothing = Change("Service", ("default", "helloworld"), None, None)
    assert view.drain() == [nothing]
    view.apply(replace(BROKEN, message="never"))
    assert view.drain() == [nothing]
    assert view.skip("Service", ("default", "helloworld")) == replace(BROKEN, message="never")
    view.apply(HELLO)
    view.apply(replace(BROKEN, message="never"))
    assert view.drain() == []
    view.apply(HELLO)
    assert view.drain() == [Change("Service", ("default", "helloworld"), None, HELLO)]
    assert view.skip("Service", ("default", "helloworld")) is None


def test_slices_and_pods_are_found_by_what_they_belong_to() -> None:
    view = View([EndpointSlice("ns", "b", "svc"), EndpointSlice("ns", "a", "svc"), Pod("ns", "p")])
    assert [one.name for one in view.slices("ns", "svc")] == ["a", "b"]
    assert set(view.pods("ns")) == {"p"}
    view.apply(EndpointSlice("ns", "a", "other"))
    assert [one.name for one in view.slices("ns", "svc")] == ["b"]
    assert [one.name for one in view.slices("ns", "other")] == ["a"]
    view.delete("EndpointSlice", "ns", "b")
    view.delete("Pod", "ns", "p")
    assert view.slices("ns", "svc") == ()
    assert not view.pods("ns")


@pytest.mark.parametrize("name", ["services", "namespaces", "gateways", "virtual_services", "destination_rules"])
def test_what_is_read_cannot_be_written(name: str) -> None:
    known: Any = getattr(View(), name)
    with pytest.raises(TypeError):
        known["x", "y"] = HELLO


def test_kinds_that_may_not_be_read() -> None:
    view = View()
    assert view.set_unavailable(["DestinationRule"])
    assert not view.set_unavailable(["DestinationRule"])
    assert view.unavailable == {"DestinationRule"}


def test_a_status_update_is_no_change() -> None:
    raw = make.gateway_service()
    first, second = parse(raw), parse({**raw, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}})
    assert first is not None
    assert second is not None
    assert not View([first]).apply(second)
