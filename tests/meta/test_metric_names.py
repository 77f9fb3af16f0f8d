"""Metrics: what is declared is counted and the reverse, names are as Prometheus asks, documents know no others."""

import ast
import re

import pytest

from canal_dns.metrics import BY_NAME, METRICS, Kind
from tests.meta.tree import modules, name, texts

NAME = re.compile(r"canal_dns_[a-z0-9_]+\Z")
IN_TEXT = re.compile(r"\bcanal_dns_[a-z0-9_]+\b")
UNBOUNDED = {"name", "qname", "client", "address", "namespace", "service", "path", "id"}
RESERVED = {"le", "quantile", "job", "instance"}
NOT_BASE_UNITS = ("_ms", "_millis", "_milliseconds", "_us", "_minutes", "_kb", "_mb", "_percent")


def used():
    """{metric: the modules whose code names it}."""
    found = {}
    for path in modules():
        if path.name == "metrics.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.match(node.value):
                found.setdefault(node.value, set()).add(name(path))
    return found


def test_what_code_counts_is_declared():
    assert {metric: places for metric, places in used().items() if metric not in BY_NAME} == {}


def test_what_is_declared_is_counted():
    assert set(BY_NAME) - set(used()) == set()


def test_documents_and_dashboards_know_no_other_metric():
    wrong = []
    for path in texts():
        if path.suffix not in (".md", ".json", ".yaml", ".yml", ".tpl"):
            continue
        for found in IN_TEXT.findall(path.read_text()):
            base = re.sub(r"_(bucket|count|sum)\Z", "", found)
            histogram = BY_NAME.get(base)
            if found not in BY_NAME and not (histogram and histogram.kind is Kind.HISTOGRAM):
                wrong.append(f"{name(path)}: {found}")
    assert wrong == []


def faults(metric):
    """What Prometheus' naming rules have against a metric."""
    wrong = []
    if not NAME.match(metric.name):
        wrong.append("the prefix is canal_dns_, all letters small")
    if (metric.kind is Kind.COUNTER) != metric.name.endswith("_total"):
        wrong.append("a counter, and nothing else, ends in _total")
    if metric.kind is Kind.HISTOGRAM and not metric.name.endswith(("_seconds", "_bytes")):
        wrong.append("a histogram ends in its unit")
    if "timestamp" in metric.name and not metric.name.endswith("_timestamp_seconds"):
        wrong.append("a timestamp ends in _timestamp_seconds")
    if metric.name.removesuffix("_total").endswith(NOT_BASE_UNITS):
        wrong.append("units are base units")
    if metric.name.endswith(("_count", "_sum", "_bucket", "_created")):
        wrong.append("the ending belongs to histograms")
    if not (metric.help.endswith(".") and (metric.help[0].isupper() or metric.help[0].isdigit())):
        wrong.append("the help is a sentence")
    if set(metric.labels) & (UNBOUNDED | RESERVED) or any(
        not re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels
    ):
        wrong.append("a label is a bounded set with a name of its own")
    return wrong


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_rules(metric):
    assert faults(metric) == []


def test_names_are_unique():
    assert len(BY_NAME) == len(METRICS)
    stems = [metric.name.removesuffix("_total") for metric in METRICS]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize(
    ("metric_name", "kind", "text", "labels"),
    [
        ("requests_total", Kind.COUNTER, "Ok.", ()),
        ("canal_dns_requests", Kind.COUNTER, "Ok.", ()),
        ("canal_dns_up_total", Kind.GAUGE, "Ok.", ()),
        ("canal_dns_duration", Kind.HISTOGRAM, "Ok.", ()),
        ("canal_dns_wait_ms", Kind.GAUGE, "Ok.", ()),
        ("canal_dns_last_timestamp", Kind.GAUGE, "Ok.", ()),
        ("canal_dns_thing_count", Kind.GAUGE, "Ok.", ()),
        ("canal_dns_x", Kind.GAUGE, "not a sentence", ()),
        ("canal_dns_x", Kind.GAUGE, "Ok.", ("client",)),
        ("canal_dns_x", Kind.GAUGE, "Ok.", ("le",)),
    ],
)
def test_the_check_itself(metric_name, kind, text, labels):
    good = METRICS[0]
    assert faults(good) == []
    assert faults(type(good)(metric_name, kind, text, labels))
