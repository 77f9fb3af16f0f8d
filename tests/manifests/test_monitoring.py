"""Alerts and the dashboard: each expression is PromQL, and names metrics and labels that there are."""

import json
import re

import promql_parser
import pytest
import yaml

from canal_dns.mesh.result import Reason
from canal_dns.metrics import BY_NAME, Kind
from manifests.tools.dashboard import ROWS, dashboard
from manifests.tools.places import CHART, MANIFESTS
from tests.manifests.objects import load

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in ALERTS} | {
    f"{panel.title}, {legend or 'value'}": query
    for row in ROWS.values()
    for panel in row
    for legend, query in panel.queries.items()
}
OF_PROMETHEUS = {"namespace", "pod", "le"}
"""Labels that Prometheus adds."""


def metric(name):
    """The metric behind a series' name."""
    base = re.sub(r"_(bucket|count|sum)\Z", "", name)
    found = BY_NAME.get(name) or BY_NAME.get(base)
    return found if found and (found.name == name or found.kind is Kind.HISTOGRAM) else None


def faults(expression):
    """What is wrong with an expression."""
    text = expression.replace("$__rate_interval", "5m")
    try:
        promql_parser.parse(text)
    except ValueError as problem:
        return [str(problem)]
    wrong, known = [], set(OF_PROMETHEUS)
    for name, matchers in re.findall(r"\b(canal_dns_\w+)(?:\{([^}]*)\})?", text):
        found = metric(name)
        if found is None:
            wrong.append(f"there is no {name}")
            continue
        known |= set(found.labels)
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            if label not in OF_PROMETHEUS | set(found.labels):
                wrong.append(f"{name} has no label {label}")
        if found.kind is Kind.COUNTER and not re.search(rf"(?:rate|increase)\({name}\b", text):
            wrong.append(f"{name} is a counter: its value means nothing by itself")
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
        wrong += [f"nothing here has a label {label}" for label in re.split(r",\s*", labels) if label not in known]
    return wrong


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_expressions_ask_what_there_is(expression):
    assert faults(expression) == []


def test_reasons_that_are_named_exist():
    named = {reason for text in EXPRESSIONS.values() for reason in re.findall(r'\breason!?="(\w+)"', text)}
    assert named and named <= {reason.value for reason in Reason}


@pytest.mark.parametrize(
    "expression",
    [
        "sum(canal_dns_ready",
        "canal_dns_reddy == 0",
        'canal_dns_ready{kind="x"}',
        "canal_dns_requests_total > 1",
        "sum by (kind) (canal_dns_ready)",
        "rate(canal_dns_ready_bucket[5m])",
    ],
)
def test_the_check_itself(expression):
    assert faults(expression)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_is_wrong_and_how_bad(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".") and rule["annotations"]["description"].endswith((".", '".'))
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]))
    if aggregated := re.search(r"\bby \(([^)]*)\)", rule["expr"]):
        assert used <= set(re.split(r",\s*", aggregated[1])), "the aggregation takes these labels away"


def test_alerts_have_names_of_their_own():
    names = [rule["alert"] for rule in ALERTS]
    assert len(names) == len(set(names)) and all(name.startswith("CanalDns") for name in names)


def test_the_rule_and_the_config_map_hold_the_same():
    (rule,) = load(MANIFESTS / "optional" / "prometheusrule.yaml")
    assert rule["spec"]["groups"][0]["rules"] == ALERTS
    (config_map,) = load(MANIFESTS / "optional" / "dashboard.yaml")
    assert json.loads(config_map["data"]["canal-dns.json"]) == dashboard()
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def minimal(one):
    """What the operator's CRDs ask for at least; they themselves are not here."""
    spec = one["spec"]
    if one["kind"] == "ServiceMonitor":
        return set(spec) == {"selector", "endpoints"} and all(
            {"port", "path", "interval"} == set(end) for end in spec["endpoints"]
        )
    rules = [rule for group in spec["groups"] for rule in group["rules"]]
    return set(spec) == {"groups"} and all(
        set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        and all(isinstance(rule["labels"][key], str) for key in rule["labels"])
        for rule in rules
    )


@pytest.mark.parametrize("name", ["servicemonitor", "prometheusrule"])
def test_objects_of_the_prometheus_operator_have_its_shape(name):
    (one,) = load(MANIFESTS / "optional" / f"{name}.yaml")
    assert one["apiVersion"] == "monitoring.coreos.com/v1" and minimal(one)
