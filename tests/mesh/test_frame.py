"""The gateway's pods, their labels, its ports, its address: what every route depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from canal_dns.mesh.attach import has_revision, why_not_attached, workload
from canal_dns.mesh.frame import frame
from canal_dns.mesh.resources import parse
from canal_dns.settings import MeshSettings
from tests.mesh import builders as make
from tests.mesh.builders import GATEWAY, HELLO, SETTINGS, outcome, world

MESH = MeshSettings()
LABELS = {"istio": "internalgateway", "app": "internalgateway"}
ADDED = {"topology.istio.io/cluster": "Kubernetes"}


def labels(*objects: Any, gateway: Any = GATEWAY) -> dict[str, str]:
    view = world(*objects, base=(make.gateway_service(),))
    return dict(workload(gateway, view.services["istio-system", "internalgateway"], view).labels)


def test_pods_behind_the_endpoints_decide() -> None:
    stray = make.pod("stray", labels={"istio": "internalgateway", "stray": "yes"})
    assert labels(make.endpoints(), make.pod(), stray) == {**LABELS, **ADDED}


def test_else_the_pods_that_the_services_selector_takes() -> None:
    other = make.pod("other", labels={"istio": "other"})
    assert labels(make.pod(), other) == {**LABELS, **ADDED}


def test_only_labels_that_all_pods_have_count() -> None:
    """In the middle of a rollout a Gateway must fit the old pods and the new ones."""
    newer = make.pod("gw-1", labels={"istio": "internalgateway", "version": "2"})
    assert labels(make.endpoints(pods=("gw-0", "gw-1")), make.pod(), newer) == {"istio": "internalgateway", **ADDED}


def test_no_pods_known_the_selector_stands_in_with_a_warning() -> None:
    result = outcome(make.gateway(), make.virtual_service(), base=(make.gateway_service(), make.endpoints()))
    assert HELLO in result.bound
    assert "no Pod of istio-system/internalgateway is known" in result.gateways[0].warnings[0]


def test_pods_on_their_nodes_network_are_warned_of() -> None:
    """Their addresses are the nodes', so others that ask from there get the real answers too."""
    base = (make.gateway_service(), make.endpoints(), make.pod(hostNetwork=True))
    (state,) = outcome(make.gateway(), make.virtual_service(), base=base).gateways
    assert any("share their node's network" in warning for warning in state.warnings)
    (state,) = outcome(make.gateway(), make.virtual_service()).gateways
    assert not any("node's network" in warning for warning in state.warnings)


def test_configured_labels_win() -> None:
    told = replace(GATEWAY, pod_labels=(("istio", "told"), ("topology.istio.io/cluster", "east")))
    assert labels(make.pod(), gateway=told) == {"istio": "told", "topology.istio.io/cluster": "east"}


def test_why_a_gateway_is_not_attached() -> None:
    view = world()
    target = workload(GATEWAY, view.services["istio-system", "internalgateway"], view)

    def why(mesh: MeshSettings = MESH, **more: Any) -> str:
        record = parse(make.gateway(**more))
        return why_not_attached(record, target, mesh)  # type: ignore[arg-type]

    assert why() == ""
    assert why(selector={}) == ""
    assert why(selector={"topology.istio.io/cluster": "Kubernetes"}) == ""
    assert why(selector={"istio": "x"}) == "its selector asks for istio=x, the gateway's pods have istio=internalgateway"
    assert why(selector={"a": "b"}) == "its selector asks for a=b, the gateway's pods have no label a"
    assert "istio.io/rev is 'canary'" in why(MeshSettings(revision="stable"), labels={"istio.io/rev": "canary"})
    assert "scopes Gateways to their namespace" in why(MeshSettings(scope_gateway_to_namespace=True), namespace="shop")
    record = parse(make.gateway(labels={"istio.io/rev": "stable"}))
    assert has_revision(record, MeshSettings(revision="stable"))  # type: ignore[arg-type]


def ports(*written: Any, objects: Any = (), **spec: Any) -> dict[int, int]:
    view = world(*objects, base=(make.gateway_service(ports=written, **spec), make.pod()))
    return dict(frame(GATEWAY, view, MESH).ports)


NAMED = {"port": 80, "name": "http", "targetPort": "web"}
NUMBERED = {"port": 80, "name": "http", "targetPort": 1}


@pytest.mark.parametrize(
    ("written", "objects", "spec", "want"),
    [
        ((80,), (), {}, {80: 80}),
        (({"port": 80, "targetPort": 8080},), (), {}, {80: 8080}),
        (({"port": 80, "protocol": "UDP"},), (), {}, {}),
        (({"port": 80, "targetPort": 1}, {"port": 80, "targetPort": 2}), (), {}, {80: 1}),
        ((NAMED,), (make.endpoints(ports=({"name": "http", "port": 8081},)),), {}, {80: 8081}),
        ((NAMED,), (make.pod(containers=[{"ports": [{"name": "web", "containerPort": 8082}]}]),), {}, {80: 8082}),
        ((NAMED,), (), {}, {80: 80}),
        ((NUMBERED,), (make.endpoints(ports=({"name": "http", "port": 2},)),), {"selector": {}}, {80: 2}),
        ((NUMBERED,), (), {"selector": {}}, {80: 1}),
    ],
)  # fmt: skip
def test_where_a_port_of_the_gateways_service_leads(written: Any, objects: Any, spec: Any, want: dict[int, int]) -> None:
    assert ports(*written, objects=objects, **spec) == want


def serves(*servers: Any, **service: Any) -> bool:
    result = outcome(make.gateway(*servers), make.virtual_service(), make.gateway_service(**service))
    return HELLO in result.bound


def test_server_numbers_are_the_services_ports() -> None:
    """80 -> 8080: a server with either number listens there; one with another number is out of reach."""
    translated = {"port": 80, "targetPort": 8080}
    assert serves(make.server(80), ports=(translated,))
    assert serves(make.server(8080), ports=(translated,))
    assert not serves(make.server(8081), ports=(translated,))
    assert not serves(make.server(80), ports=(translated,), selector={})
    assert serves(make.server(8080), ports=(translated,), selector={})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"clusterIP": "None"}, "is headless"),
        ({"clusterIP": ""}, "has no usable address yet"),
        ({"clusterIP": "127.0.0.1"}, "has no usable address (127.0.0.1: it is a loopback address)"),
        ({"clusterIP": "0.0.0.0"}, "has no usable address (0.0.0.0: it is unspecified)"),
        ({"type": "ExternalName", "externalName": "x.example"}, "is an ExternalName"),
    ],
)
def test_a_gateway_without_address_binds_nothing_and_says_so(spec: Any, message: str) -> None:
    result = outcome(make.gateway(), make.virtual_service(), make.gateway_service(**spec))
    assert not result.bound
    assert message in result.skipped[HELLO].message
    assert message in result.gateways[0].warnings[0]


def test_one_bad_address_beside_a_good_one_is_left_out() -> None:
    result = outcome(make.gateway(), make.virtual_service(), make.gateway_service(clusterIPs=["10.96.9.9", "fe80::1"]))
    assert (result.bound[HELLO].v4, result.bound[HELLO].v6) == (("10.96.9.9",), ())
    assert "address fe80::1 is not answered: it is a link-local address" in result.gateways[0].warnings


def test_the_state_of_the_gateway() -> None:
    result = outcome(make.gateway(make.server(80), make.server(8080)), make.gateway(selector={}, name="any"))
    state = result.gateways[0]
    assert (state.gateway, state.ready, state.ports) == ("istio-system/internalgateway", True, (80,))
    assert state.endpoints == ("10.244.0.1",)
    assert state.attached == ("istio-system/any", "istio-system/internalgateway")
    assert state.warnings == ("Gateway istio-system/any has no selector: it attaches to every gateway of the mesh",)
    nothing = outcome(base=(make.gateway_service(),), settings=SETTINGS).gateways[0]
    assert not nothing.ready
    assert "no Gateway is attached" in nothing.warnings[-1]
