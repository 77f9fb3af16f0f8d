"""The plain manifests: what they grant, how the pods are locked in, and whether the parts meet."""

import pytest
import yaml

from canal_dns import settings
from canal_dns.cli import main
from manifests.tools.places import MANIFESTS
from tests.manifests.objects import applied, everything, folder, key, load, only

CLUSTER_SCOPED = {"Namespace", "ClusterRole", "ClusterRoleBinding"}


@pytest.fixture(scope="module")
def pod():
    return only("Deployment")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


@pytest.fixture(scope="module")
def config():
    return only("ConfigMap")["data"]["canal-dns.yaml"]


def test_kubectl_applies_the_namespace_before_what_is_in_it():
    objects = applied()
    assert key(objects[0]) == ("v1", "Namespace", "", "canal-dns")
    homes = {one["metadata"]["namespace"] for one in objects if one["kind"] not in CLUSTER_SCOPED}
    assert homes == {"canal-dns", "istio-system"}
    assert all("namespace" not in one["metadata"] for one in objects if one["kind"] in CLUSTER_SCOPED)


def test_plain_objects_need_no_custom_resource():
    groups = {one["apiVersion"].rpartition("/")[0] for one in applied()}
    assert groups == {"", "apps", "policy", "rbac.authorization.k8s.io"}


def test_no_object_stands_twice():
    keys = [key(one) for one in everything()]
    assert len(keys) == len(set(keys))


def test_every_file_says_that_it_is_made():
    for path in [*folder(), *folder(MANIFESTS / "optional")]:
        assert path.read_text().startswith("# Made by `make manifests`"), path.name


def granted():
    """{(role's kind, namespace): {(api group, resource): verbs}}"""
    found = {}
    for one in applied():
        if one["kind"] in ("ClusterRole", "Role"):
            rules = {
                (group, resource): set(rule["verbs"])
                for rule in one["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }
            found[one["kind"], one["metadata"].get("namespace", "")] = rules
    return found


def test_rbac_is_list_and_watch_of_these_and_nothing_else():
    look = {"list", "watch"}
    istio = "networking.istio.io"
    assert granted() == {
        ("ClusterRole", ""): {
            ("", "services"): look,
            ("", "namespaces"): look,
            (istio, "gateways"): look,
            (istio, "virtualservices"): look,
            (istio, "destinationrules"): look,
        },
        ("Role", "istio-system"): {("discovery.k8s.io", "endpointslices"): look, ("", "pods"): look},
    }


def test_rights_are_bound_to_canal_dns_alone():
    account = {"kind": "ServiceAccount", "name": "canal-dns", "namespace": "canal-dns"}
    bindings = [one for one in applied() if one["kind"].endswith("Binding")]
    assert [one["subjects"] for one in bindings] == [[account], [account]]
    assert {(one["kind"], one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings} == {
        ("ClusterRoleBinding", "ClusterRole", "canal-dns"),
        ("RoleBinding", "Role", "canal-dns"),
    }


def test_the_pod_meets_pod_security_restricted(pod, container):
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"configMap", "emptyDir"}
    assert not any("hostPort" in port for port in container["ports"])
    labels = only("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pod_does_not_resolve_through_what_it_serves(pod):
    assert pod["dnsPolicy"] == "Default"
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert (labels["sidecar.istio.io/inject"], labels["istio.io/dataplane-mode"]) == ("false", "none")


def test_probes_ask_what_deployments_need(container):
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    liveness, readiness = container["livenessProbe"], container["readinessProbe"]
    assert (liveness["initialDelaySeconds"], liveness["timeoutSeconds"], liveness["failureThreshold"]) == (60, 5, 5)
    assert readiness["periodSeconds"] == 5 and readiness["failureThreshold"] <= 3
    assert {container[probe]["httpGet"]["port"] for probe in paths} == {"admin"}


def test_the_lameduck_fits_into_the_grace_period(pod, config):
    read = settings.parse(yaml.safe_load(config))
    assert pod["terminationGracePeriodSeconds"] >= read.listen.lameduck + 10


def test_pods_are_replaced_without_a_gap_and_spread():
    spec = only("Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for one in spread:
        assert (one["whenUnsatisfiable"], one["matchLabelKeys"]) == ("ScheduleAnyway", ["pod-template-hash"])
        assert one["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_memory_has_a_limit_and_cpu_has_none(container):
    resources = container["resources"]
    # With caches, connections and waiting queries all full, it takes more than it does as a rule (tests/faults P12).
    assert resources["limits"] == {"memory": "384Mi"} and resources["requests"]["memory"] == "256Mi"
    assert "cpu" in resources["requests"]


@pytest.mark.parametrize("name", ["canal-dns", "canal-dns-admin"])
def test_services_lead_to_ports_of_the_pods(name, container):
    service = only("Service", name)
    spec = only("Deployment")["spec"]
    assert service["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    ports = {(port["name"], port["protocol"]) for port in container["ports"]}
    assert {(port["targetPort"], port["protocol"]) for port in service["spec"]["ports"]} <= ports


def test_the_dns_service_is_pinned_and_keeps_to_the_cluster_policy():
    spec = only("Service")["spec"]
    assert spec["clusterIP"] == "10.96.0.53"
    assert {(port["port"], port["protocol"]) for port in spec["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert "internalTrafficPolicy" not in spec


def test_ports_are_those_of_the_configuration(container, config):
    read = settings.parse(yaml.safe_load(config))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"dns": 1053, "dns-tcp": 1053, "admin": 8080}
    assert read.listen.addresses[0].port == ports["dns"] and read.health.admin.port == ports["admin"]


def test_canal_dns_accepts_the_configuration_without_a_warning(config, tmp_path, capsys):
    path = tmp_path / "canal-dns.yaml"
    path.write_text(config)
    assert main(["check", "--config", str(path)]) == 0
    assert "warning" not in capsys.readouterr().err.lower()


def test_the_container_is_given_the_configuration_and_a_place_for_the_table(pod, container, config):
    read = settings.parse(yaml.safe_load(config))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["serve", "--config", f"{mounts['config']}/canal-dns.yaml"]
    assert read.snapshot.path.startswith(f"{mounts['snapshot']}/")
    assert not any("subPath" in mount for mount in container["volumeMounts"]), "a subPath never sees a change"


def test_every_gateway_has_a_role_in_its_namespace(config):
    read = settings.parse(yaml.safe_load(config))
    roles = {one["metadata"]["namespace"] for one in applied() if one["kind"] == "Role"}
    assert roles == {gateway.namespace for gateway in read.binding.gateways}


# -- optional ----------------------------------------------------------------------------------------------------------


def optional(name):
    return load(MANIFESTS / "optional" / f"{name}.yaml")


def test_the_autoscaler_scales_the_deployment():
    (scaler,) = optional("hpa")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", only("Deployment")["metadata"]["name"])
    assert scaler["spec"]["minReplicas"] >= 2


def test_the_network_policy_lets_in_coredns_and_out_to_it_and_the_api_server(container):
    (policy,) = optional("networkpolicy")
    spec = policy["spec"]
    assert spec["podSelector"]["matchLabels"] == only("Deployment")["spec"]["selector"]["matchLabels"]
    questions, metrics = spec["ingress"]
    assert {(port["port"], port["protocol"]) for port in questions["ports"]} == {(1053, "UDP"), (1053, "TCP")}
    assert {(port["port"], port["protocol"]) for port in metrics["ports"]} == {(8080, "TCP")}
    upstreams, api_server = spec["egress"]
    assert questions["from"][0] == upstreams["to"][0]
    assert {port["port"] for port in upstreams["ports"]} == {53, 8053}
    assert {port["port"] for port in api_server["ports"]} == {443, 6443} and "to" not in api_server


def test_the_service_monitor_finds_the_admin_service():
    (monitor,) = optional("servicemonitor")
    service = only("Service", "canal-dns-admin")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert not monitor["spec"]["selector"]["matchLabels"].items() <= only("Service")["metadata"]["labels"].items()
    assert [one["port"] for one in monitor["spec"]["endpoints"]] == [port["name"] for port in service["spec"]["ports"]]


def test_the_internal_gateway_is_what_the_configuration_names(config):
    objects = optional("internalgateway")
    service, deployment = (only(kind, "internalgateway", objects) for kind in ("Service", "Deployment"))
    read = settings.parse(yaml.safe_load(config))
    assert (service["metadata"]["namespace"], service["metadata"]["name"]) == (
        read.binding.gateways[0].namespace,
        read.binding.gateways[0].name,
    )
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["annotations"]["inject.istio.io/templates"] == "gateway"
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
    (proxy,) = pod["spec"]["containers"]
    assert (proxy["name"], proxy["image"]) == ("istio-proxy", "auto")
    gateway = only("Gateway", "internalgateway", objects)
    assert gateway["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert [one["port"]["number"] for one in gateway["spec"]["servers"]] == [port["port"] for port in service["spec"]["ports"]]
    ours = only("Deployment")["spec"]["selector"]["matchLabels"]
    assert not ours.items() <= pod["metadata"]["labels"].items(), "canal-dns's Service would send questions to Envoy"
