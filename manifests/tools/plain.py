"""manifests/*.yaml and manifests/optional/: the chart, rendered by Helm for `kubectl apply -f`.

Rules of this file:
- `kubectl apply -f manifests/` reads one folder in the order of the names, hence the numbers;
- what needs something that a cluster may lack (metrics, a policy engine, the Prometheus operator, Istio's injection) is in
  optional/, one file each;
- labels that speak of Helm go; nothing else of what Helm gives is touched.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from manifests.tools.places import CHART, MADE, MANIFESTS

NAMESPACE = f"""\
# {MADE.capitalize()}.
apiVersion: v1
kind: Namespace
metadata:
  name: canal-dns
  labels:
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/audit: restricted
    pod-security.kubernetes.io/warn: restricted
"""

_ALWAYS = {
    "10-rbac.yaml": "rbac",
    "20-configmap.yaml": "configmap",
    "30-deployment.yaml": "deployment",
    "40-service.yaml": "service",
    "50-pdb.yaml": "pdb",
}
_OPTIONAL = {
    "hpa.yaml": (
        "hpa",
        "autoscaling.enabled",
        "Needs metrics-server. Take `replicas` out of the Deployment, or each apply sets it back.",
    ),
    "networkpolicy.yaml": (
        "networkpolicy",
        "networkPolicy.enabled",
        "Who may ask differs by layout: read it before you apply it.",
    ),
    "quota.yaml": (
        "quota",
        "criticalPodsQuota.enabled",
        "For platforms (GKE) that admit critical pods only so; apply it first.",
    ),
    "servicemonitor.yaml": ("monitoring", "metrics.serviceMonitor.enabled", "Needs the CRDs of the Prometheus operator."),
    "prometheusrule.yaml": ("monitoring", "metrics.prometheusRule.enabled", "Needs the CRDs of the Prometheus operator."),
    "dashboard.yaml": ("monitoring", "metrics.dashboard.enabled", "For Grafana's sidecar, which looks for the label."),
    "internalgateway.yaml": ("internalgateway", "internalGateway.enabled", "Needs istiod: its injection makes the Envoy."),
}
_HELMS_OWN = re.compile(r"^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)
_SOURCE = re.compile(r"^---\n# Source: .*\n", re.MULTILINE)


def render(helm: Path, *arguments: str) -> str:
    """What `helm template` says for the release canal-dns in the namespace canal-dns. Raises CalledProcessError."""
    command = [helm, "template", "canal-dns", CHART, "--namespace", "canal-dns", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603


def make(helm: Path) -> dict[Path, str]:
    """Raises CalledProcessError where Helm refuses the chart."""
    files = {MANIFESTS / "00-namespace.yaml": NAMESPACE}
    for name, template in _ALWAYS.items():
        files[MANIFESTS / name] = _plain(render(helm, "--show-only", f"templates/{template}.yaml"), "")
    for name, (template, switch, note) in _OPTIONAL.items():
        rendered = render(helm, "--show-only", f"templates/{template}.yaml", "--set", f"{switch}=true")
        files[MANIFESTS / "optional" / name] = _plain(rendered, note)
    return files


def _plain(rendered: str, note: str) -> str:
    documents = [_HELMS_OWN.sub("", part).strip("\n") for part in _SOURCE.split(rendered) if part.strip()]
    head = f"# {MADE.capitalize()}, of manifests/helm/canal-dns." + (f" {note}" if note else "")
    return head + "\n" + "\n---\n".join(documents) + "\n"
