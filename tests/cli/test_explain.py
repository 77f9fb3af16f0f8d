"""`canal-dns explain`: the chain of a bound name, or the first rule that fails, with object and field."""

import json

import pytest

from canal_dns.cli import main
from tests.process import DEMO, Server

REASONS = [
    # name, reason, object at fault, field at fault
    ("orders.default", "PortNotServed", "Service default/orders", "spec.ports[1]"),
    ("payments.default", "HostNotServed", "VirtualService default/payments", "spec.hosts"),
    ("inventory.default", "TargetNotFound", "VirtualService default/inventory", "spec.http[0].route[0].destination.subset"),
    ("forgotten.default", "TargetNotFound", "VirtualService default/forgotten", "spec.hosts[0]"),
    ("legacy.default", "OptedOut", "Service default/legacy", "metadata.annotations[canal-dns.io/bind]"),
    ("accounts.team-b", "CrossNamespace", "VirtualService team-a/accounts", "metadata.namespace"),
    ("search.default", "GatewayNotFound", "VirtualService default/search", "spec.gateways"),
    ("session.default", "Headless", "Service default/session", "spec.clusterIP"),
    ("promo.default", "Shadowed", "VirtualService default/welcome", "spec.http[1]"),
    ("metrics-server.kube-system", "Protected", "Service kube-system/metrics-server", "metadata.name"),
    ("productpage.default", "NoRoute", "Service default/productpage", ""),
]


def explained(capsys, *names):
    status = main(["explain", *names, "--manifests", str(DEMO)])
    return status, capsys.readouterr().out


def test_a_bound_name_shows_its_chain(capsys):
    status, text = explained(capsys, "helloworld.default.svc.cluster.local.")
    assert status == 0
    lines = text.splitlines()
    assert lines[0] == "helloworld.default.svc.cluster.local"
    assert all(line.startswith("  ok  ") for line in lines[1:-1])
    for part in (
        "Service default/helloworld",
        "VirtualService default/helloworld",
        "Gateway istio-system/internalgateway",
        "10.96.9.9",
    ):
        assert part in text
    assert lines[-1].startswith("bound: ")


@pytest.mark.parametrize(("name", "reason", "thing", "field"), REASONS, ids=[f"{row[1]}-{row[0]}" for row in REASONS])
def test_one_name_per_reason_prints_object_field_and_rule(capsys, name, reason, thing, field):
    status, text = explained(capsys, name)
    assert status == 1
    assert f"not bound: {reason}: " in text
    assert f"({thing} {field})".replace(" )", ")") in text.splitlines()[-1]
    assert "  FAIL  " in text


@pytest.mark.parametrize(
    "name", ["helloworld", "helloworld.default", "HELLOWORLD.Default.svc", "helloworld.default.svc.cluster.local"]
)
def test_names_as_people_write_them(capsys, name):
    assert explained(capsys, name)[0] == 0


@pytest.mark.parametrize("name", ["www.example.com", "no-such-service", "a..b", "x" * 300])
def test_what_is_no_service(capsys, name):
    status, text = explained(capsys, name)
    assert status == 1
    assert text


def test_several_names_are_bound_only_if_all_are(capsys):
    assert explained(capsys, "helloworld", "details")[0] == 0
    assert explained(capsys, "helloworld", "orders")[0] == 1


def test_json(capsys):
    assert main(["explain", "-o", "json", "orders", "--manifests", str(DEMO)]) == 1
    (one,) = json.loads(capsys.readouterr().out)
    assert one["name"] == "orders.default.svc.cluster.local"
    assert one["bound"] is False
    assert [step for step in one["steps"] if not step["ok"]]
    assert one["steps"][0].keys() == {"object", "field", "text", "ok"}


def test_a_running_server_explains_too(capsys):
    with Server() as server:
        server.ready()
        assert main(["explain", "helloworld.default", "--server", server.admin]) == 0
        assert "bound: helloworld.default.svc.cluster.local is 10.96.9.9, fd00:10:96::9" in capsys.readouterr().out
        for name, reason, thing, field in REASONS:
            assert main(["explain", name, "--server", server.admin]) == 1
            text = capsys.readouterr().out
            assert f"not bound: {reason}: " in text
            assert f"{thing} {field}".strip() in text
        assert main(["explain", "no-such-service", "--server", server.admin]) == 1
