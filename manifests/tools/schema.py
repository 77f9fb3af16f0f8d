"""values.schema.json: the chart's own values, typed by values.yaml and the exceptions below; `config` by the settings.

Rules of this file:
- a value's type is that of its default; what a default cannot say (choices, ranges, what may be null) stands in EXACT;
- an unknown key is refused wherever the chart reads every key itself; what is handed on to Kubernetes is Kubernetes' business;
- descriptions are the "# --" comments of values.yaml.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from manifests.tools.places import CHART
from manifests.tools.settings_schema import of_settings
from manifests.tools.values import descriptions

Schema = dict[str, Any]

_COUNT: Schema = {"type": "integer", "minimum": 1}
_PERCENT: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
_AMOUNT: Schema = {"type": ["integer", "string"], "pattern": "^[0-9]+%?$", "minimum": 0}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_IP = r"[0-9a-fA-F:.]+"
_OPEN = (
    "commonLabels", "podAnnotations", "podLabels", "nodeSelector", "affinity", "resources",
    "podSecurityContext", "securityContext", "probes.liveness", "probes.readiness", "probes.startup",
    "service.annotations", "serviceAccount.annotations", "metrics.serviceMonitor.labels", "metrics.prometheusRule.labels",
    "metrics.dashboard.labels", "metrics.dashboard.annotations", "internalGateway.podAnnotations",
    "internalGateway.nodeSelector", "internalGateway.affinity", "internalGateway.resources",
    "internalGateway.service.annotations",
)  # fmt: skip
"""Mappings whose keys are Kubernetes' or the user's."""

EXACT: dict[str, Schema] = {
    "image.repository": {"type": "string", "minLength": 1},
    "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.tag": {"type": "string"},
    "replicaCount": _COUNT,
    "autoscaling.minReplicas": _COUNT,
    "autoscaling.maxReplicas": _COUNT,
    "autoscaling.targetCPUUtilizationPercentage": _PERCENT,
    "podDisruptionBudget.maxUnavailable": _AMOUNT,
    "service.clusterIP": {"type": "string", "pattern": f"^{_IP}$"},
    "service.clusterIPs": {"type": "array", "items": {"type": "string", "pattern": f"^{_IP}$"}, "maxItems": 2},
    "service.ipFamilyPolicy": {"enum": ["", "SingleStack", "PreferDualStack", "RequireDualStack"]},
    "service.trafficDistribution": {"enum": ["", "PreferClose", "PreferSameZone", "PreferSameNode"]},
    "coredns.platform": {"enum": ["kubeadm", "k3s", "rke2", "aks", "eks", "gke", "openshift"]},
    "coredns.layout": {"enum": ["A", "B", "F"]},
    "coredns.zones": {"type": "array", "items": {"type": "string", "pattern": "^[a-z0-9.-]+$"}},
    "coredns.plainClusterIP": {"type": "string", "pattern": f"^{_IP}$"},
    "criticalPodsQuota.pods": _COUNT,
    "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 0},
    "networkPolicy.clients": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    "networkPolicy.upstreams": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    "networkPolicy.monitoring": {"type": "array", "items": {"type": "object"}},
    "networkPolicy.upstreamPorts": {"type": "array", "items": _PORT, "minItems": 1},
    "networkPolicy.apiServerPorts": {"type": "array", "items": _PORT, "minItems": 1},
    "metrics.serviceMonitor.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    "internalGateway.name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"},
    "internalGateway.namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
    "internalGateway.labels": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
    "internalGateway.ports": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "port", "protocol"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$"},
                "port": _PORT,
                "targetPort": _PORT,
                "protocol": {"enum": ["HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP", "MONGO"]},
                "tls": {"type": "object"},
            },
        },
    },
    "internalGateway.gateway.hosts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "internalGateway.service.clusterIP": {"type": "string", "pattern": f"^({_IP})?$"},
    "internalGateway.replicaCount": _COUNT,
    "internalGateway.autoscaling.minReplicas": _COUNT,
    "internalGateway.autoscaling.maxReplicas": _COUNT,
    "internalGateway.autoscaling.targetCPUUtilizationPercentage": _PERCENT,
    "internalGateway.podDisruptionBudget.maxUnavailable": _AMOUNT,
    "internalGateway.terminationGracePeriodSeconds": {"type": "integer", "minimum": 0},
}


def of_chart() -> Schema:
    """The schema of values.yaml."""
    text = (CHART / "values.yaml").read_text()
    schema = _mapping("", yaml.safe_load(text), descriptions(text))
    # Helm hands these to every chart.
    schema["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart canal-dns", **schema}


def make() -> dict[Path, str]:
    return {CHART / "values.schema.json": json.dumps(of_chart(), indent=2) + "\n"}


def _config() -> Schema:
    """The settings, with what the objects around the configuration need of it."""
    schema = of_settings()
    properties = schema["properties"]
    for key in ("listen", "upstreams", "gateways"):
        properties[key] |= {"type": "array", "minItems": 1}
    properties["admin"] = {"description": properties["admin"]["description"], **properties["admin"]["anyOf"][0]}
    return {**schema, "type": "object", "required": ["listen", "admin", "upstreams", "gateways", "source"]}


def _mapping(path: str, values: dict[str, Any], described: dict[str, str]) -> Schema:
    properties = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        schema = _value(where, value, described)
        properties[key] = {"description": described[where], **schema} if where in described else schema
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value(where: str, value: Any, described: dict[str, str]) -> Schema:
    if where == "config":
        return _config()
    if where in EXACT:
        return EXACT[where]
    if where in _OPEN:
        return {"type": "object"}
    match value:
        case dict():
            return _mapping(where, value, described)
        case bool():
            return {"type": "boolean"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
    raise LookupError(f"values.yaml: {where}: its type cannot be read off {value!r}; say it in {__name__}.EXACT")
