"""files/dashboard.json: the Grafana dashboard, as a list of panels.

Rules of this file:
- a panel is what it asks, in which unit; where it stands follows from its place in the list;
- every metric stands in canal_dns/metrics.py (a test sees to it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.tools.places import CHART

_WHO = 'namespace=~"$namespace"'
_RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    queries: dict[str, str]
    """{legend: expression}"""
    unit: str = "short"
    kind: str = "timeseries"
    says: str = ""
    width: int = 8
    height: int = 7


def _rate(metric: str, by: str, matchers: str = "") -> str:
    chosen = f"{_WHO}, {matchers}" if matchers else _WHO
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[{_RATE}]))"


def _quantile(quantile: float, metric: str, by: str = "le") -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{{{_WHO}}}[{_RATE}])))"


def _one(metric: str) -> str:
    return f"{metric}{{{_WHO}}}"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it well?": (
        Panel("Ready replicas", {"": f"sum({_one('canal_dns_ready')})"}, kind="stat", width=4, height=5),
        Panel("Bound names", {"": f"max({_one('canal_dns_bound_names')})"}, kind="stat", width=4, height=5),
        Panel(
            "Kinds not synced",
            {"": f"count({_one('canal_dns_source_synced')} == 0) or vector(0)"},
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Upstreams down",
            {"": f"count({_one('canal_dns_forward_upstream_up')} == 0) or vector(0)"},
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Answers from the saved table", {"": f"sum({_one('canal_dns_snapshot_in_use')})"}, kind="stat", width=4, height=5
        ),
        Panel("Loops, last hour", {"": f"sum(increase({_one('canal_dns_loops_total')}[1h]))"}, kind="stat", width=4, height=5),
    ),
    "Answers": (
        Panel("Questions", {"{{proto}} {{type}}": _rate("canal_dns_requests_total", "proto, type")}, "reqps"),
        Panel(
            "Answers by origin", {"{{source}}": _rate("canal_dns_answers_total", "source")}, "reqps", says="table: bound names"
        ),
        Panel("Answers by code", {"{{rcode}}": _rate("canal_dns_responses_total", "rcode")}, "reqps"),
        Panel(
            "Time to the answer",
            {
                "p50 {{source}}": _quantile(0.5, "canal_dns_request_duration_seconds", "le, source"),
                "p99 {{source}}": _quantile(0.99, "canal_dns_request_duration_seconds", "le, source"),
            },
            "s",
        ),
        Panel(
            "Dropped",
            {
                "{{reason}}": _rate("canal_dns_dropped_total", "reason"),
                "kernel": _rate("canal_dns_udp_receive_dropped_total", "namespace"),
            },
            "pps",
        ),
        Panel("TCP connections", {"{{pod}}": f"sum by (pod) ({_one('canal_dns_tcp_connections')})"}),
    ),
    "CoreDNS behind it": (
        Panel("Questions to upstreams", {"{{to}} {{proto}}": _rate("canal_dns_forward_requests_total", "to, proto")}, "reqps"),
        Panel("Tries that failed", {"{{to}} {{reason}}": _rate("canal_dns_forward_failures_total", "to, reason")}, "reqps"),
        Panel(
            "Time of an upstream",
            {
                "p50 {{to}}": _quantile(0.5, "canal_dns_forward_request_duration_seconds", "le, to"),
                "p99 {{to}}": _quantile(0.99, "canal_dns_forward_request_duration_seconds", "le, to"),
            },
            "s",
        ),
    ),
    "What is bound": (
        Panel("Bound names", {"{{pod}}": f"max by (pod) ({_one('canal_dns_bound_names')})"}, says="Replicas agree"),
        Panel(
            "Names that are not bound",
            {"{{reason}}": f'max by (reason) (canal_dns_skipped_names{{{_WHO}, reason!="NoRoute"}})'},
            says="Without those that no VirtualService means",
        ),
        Panel(
            "Event to answer",
            {
                "p50": _quantile(0.5, "canal_dns_event_to_answer_seconds"),
                "p99": _quantile(0.99, "canal_dns_event_to_answer_seconds"),
            },
            "s",
        ),
    ),
    "The API server": (
        Panel("Objects", {"{{kind}}": f"max by (kind) ({_one('canal_dns_source_objects')})"}),
        Panel("Events", {"{{kind}} {{type}}": _rate("canal_dns_source_events_total", "kind, type")}, "ops"),
        Panel(
            "Silent for",
            {"{{kind}}": f"time() - min by (kind) ({_one('canal_dns_source_last_event_timestamp_seconds')} > 0)"},
            "s",
        ),
        Panel(
            "Lists", {"{{kind}} {{reason}}": f"sum by (kind, reason) (increase({_one('canal_dns_source_relists_total')}[15m]))"}
        ),
        Panel("Errors", {"{{kind}} {{code}}": _rate("canal_dns_source_errors_total", "kind, code")}, "ops"),
        Panel(
            "Configuration",
            {"{{result}}": f"sum by (result) (increase({_one('canal_dns_config_reloads_total')}[15m]))"},
            says="Reloads in 15 minutes",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": _place(0, top, 24, 1), "panels": []})
        top += 1
        left = 0
        for panel in row:
            if left + panel.width > 24:
                left, top = 0, top + panel.height
            panels.append(_panel(panel, len(panels) + 1, _place(left, top, panel.width, panel.height)))
            left += panel.width
        top += row[-1].height
    return {
        "title": "canal-dns",
        "uid": "canal-dns",
        "tags": ["dns", "istio"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "namespace",
                    "type": "query",
                    "label": "Namespace",
                    "datasource": _SOURCE,
                    "query": "label_values(canal_dns_build_info, namespace)",
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend or "__auto", "datasource": _SOURCE}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def make() -> dict[Path, str]:
    return {CHART / "files" / "dashboard.json": json.dumps(dashboard(), indent=1) + "\n"}
