"""Writes the metrics and the alerts into docs/operate.md: `python -m tests.meta.render_operate`; a test holds the document
against it.

Rules of this file:
- metrics come from `canal_dns.metrics`, alerts from the chart, lengths of replies from `amplification`; only what to do about
  an alert is written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from canal_dns.metrics import METRICS
from tests.meta import amplification
from tests.meta.tree import ROOT

FILE = ROOT / "docs" / "operate.md"
ALERTS = ROOT / "manifests" / "helm" / "canal-dns" / "files" / "alerts.yaml"

TO_DO = {
    "CanalDnsDown": "`kubectl -n canal-dns get pods`, then `/ready` of one of them; CoreDNS answers meanwhile",
    "CanalDnsNotReady": "`/ready` of that pod: a right, a CRD, the API server",
    "CanalDnsSourceNotSynced": "as above, for the kind that the label names",
    "CanalDnsSourceUnavailable": "give the Role `list` and `watch`, or install the CRD: [rights](install.md#rights)",
    "CanalDnsSourceStale": "is the API server there, and reachable from the pods (NetworkPolicy, proxy)?",
    "CanalDnsRelistStorm": "the label `reason`: an API server that restarts, or an etcd that forgets too early",
    "CanalDnsSourceErrors": "the label `code`: 401 and 403 are rights, 429 and 5xx the server, the rest the network",
    "CanalDnsGatewayNotReady": "the gateway's pods",
    "CanalDnsRuleFailed": "the traceback in the log, to be reported; take the object that changed last out by annotation",
    "CanalDnsBoundNamesGone": "`canal-dns table --all`: as a rule a Gateway, its selector, or the gateway's Service",
    "CanalDnsReplicasDisagree": "`/bindings` of each pod; restart the one that is behind",
    "CanalDnsForwardFailing": "CoreDNS, and the way to it; `canal_dns_forward_failures_total` by reason",
    "CanalDnsUpstreamDown": "is `upstreams` the address of CoreDNS's Service?",
    "CanalDnsServfail": "CoreDNS's log; the extended error of the answer (`dig`) says whose it is",
    "CanalDnsLoop": "`upstreams`: CoreDNS itself, whose block for canal-dns must not take what that asks: [loops](#loops)",
    "CanalDnsConfigRejected": "the pod's log names the key; `canal-dns check`",
    "CanalDnsWorkersRestart": "the label `cause`; memory limit, the log",
    "CanalDnsAnswersFromSnapshot": "the API server",
    "CanalDnsSnapshotNotSaved": "the volume: full, read-only, gone",
}
"""Alert -> what a person looks at first."""


def metrics() -> Iterator[str]:
    yield "\n| metric | kind | labels | |\n|---|---|---|---|\n"
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |\n"
    yield "\n"


def rules() -> list[dict[str, Any]]:
    """The alerts of the chart, in order."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def alerts() -> Iterator[str]:
    """Raises KeyError for an alert without advice."""
    yield "\n| alert | severity | after | means | look at |\n|---|---|---|---|---|\n"
    for rule in rules():
        name = rule["alert"]
        means = rule["annotations"]["summary"]
        yield f"| `{name}` | {rule['labels']['severity']} | {rule.get('for', 'at once')} | {means} | {TO_DO[name]} |\n"
    yield "\n"


PARTS = {"metrics": metrics, "alerts": alerts, "amplification": amplification.lines}


def render(text: str) -> str:
    """The document with its generated parts made anew."""
    for name, lines in PARTS.items():
        start, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = text.partition(start)
        text = before + start + "".join(lines()) + end + rest.partition(end)[2]
    return text


def main() -> None:
    FILE.write_text(render(FILE.read_text()))


if __name__ == "__main__":
    main()
