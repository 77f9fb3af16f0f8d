"""Hosts as Istio completes and compares them; the examples of istio pkg/config/host are among these."""

from __future__ import annotations

import pytest

from canal_dns.mesh.hosts import (
    complete,
    gateway_name,
    intersection,
    meant_service,
    names_for_namespace,
    overlaps,
    sanitized,
    service_of,
    subset_of,
)


@pytest.mark.parametrize(
    ("host", "want"),
    [
        ("a", "a.ns.svc.cluster.local"),
        ("*", "*"),
        ("a.b", "a.b"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("a:b", "a:b.ns.svc.cluster.local"),
        ("A", "A.ns.svc.cluster.local"),
    ],
)
def test_short_names_get_the_owners_namespace(host: str, want: str) -> None:
    assert complete(host, "ns", "cluster.local") == want


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("mesh", "mesh"),
        ("gw", "ns/gw"),
        ("other/gw", "other/gw"),
        ("./gw", "ns/gw"),
        ("gw.other", "other/gw"),
        ("gw.other.svc.cluster.local", "other/gw"),
    ],
)
def test_gateway_names(name: str, want: str) -> None:
    assert gateway_name(name, "ns") == want


@pytest.mark.parametrize(
    ("narrow", "wide", "subset", "overlap"),
    [
        ("foo.com", "foo.com", True, True),
        ("foo.com", "bar.com", False, False),
        ("foo.com", "*.com", True, True),
        ("*.com", "foo.com", False, True),
        ("foo.com", "*.foo.com", False, False),
        ("foo.com", "*", True, True),
        ("*.com", "*", True, True),
        ("*", "*.com", False, True),
        ("*.foo.com", "*.com", True, True),
        ("*.com", "*.net", False, False),
        ("FOO.com", "foo.com", False, False),
    ],
)
def test_what_covers_what(narrow: str, wide: str, subset: bool, overlap: bool) -> None:
    assert subset_of(narrow, wide) == subset
    assert overlaps(narrow, wide) == overlap


@pytest.mark.parametrize(
    ("hosts", "others", "want"),
    [
        (["foo.com", "bar.com"], ["*.com"], ["foo.com", "bar.com"]),
        (["foo.com", "*.net"], ["*.com", "bar.net"], ["foo.com", "bar.net"]),
        (["foo.com", "*.net"], ["*.bar.net"], ["*.bar.net"]),
        (["foo.com"], ["bar.com"], []),
        ([], ["bar.com"], []),
        (["*", "*.com"], ["foo.com"], ["foo.com"]),
    ],
)
def test_intersection_keeps_the_more_specific(hosts: list[str], others: list[str], want: list[str]) -> None:
    assert intersection(hosts, others) == want


def test_names_for_a_namespace() -> None:
    hosts = ["a/one", "*/two", "b/three", "four"]
    assert names_for_namespace(hosts, "a") == ["one", "two", "four"]


@pytest.mark.parametrize(
    ("hosts", "want"),
    [
        (["./x", "*/y", "ns/z", "w"], ("gw/x", "y", "ns/z", "w")),
        (["*/*"], ("*",)),
        (["./x", "*/*"], ("*",)),
        (["*/*", "w"], ("*",)),
        (["*/*", "./x"], None),
        (["*/*", "*/x"], None),
    ],
)
def test_servers_hosts_as_istiod_writes_them(hosts: list[str], want: tuple[str, ...] | None) -> None:
    assert sanitized(hosts, "gw") == want


@pytest.mark.parametrize(
    ("host", "key", "meant"),
    [
        ("a.ns.svc.cluster.local", ("ns", "a"), ("ns", "a")),
        ("A.ns.svc.cluster.local.", None, ("ns", "a")),
        ("a.ns", None, ("ns", "a")),
        ("a.ns.svc", None, ("ns", "a")),
        ("a.ns.svc.other.local", None, None),
        ("b.a.ns.svc.cluster.local", None, None),
        (".svc.cluster.local", None, None),
        ("a.svc.cluster.local", None, None),
        ("a", None, None),
        ("10.1.2.3", None, None),
    ],
)
def test_the_service_of_a_host(host: str, key: tuple[str, str] | None, meant: tuple[str, str] | None) -> None:
    assert service_of(host, "cluster.local") == key
    assert meant_service(host, "cluster.local") == meant
