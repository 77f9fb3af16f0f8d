"""What is made equals what stands there: schema, tables, dashboard, CoreDNS's blocks. What needs Helm is in tests/e2e."""

import json
import re

import pytest
import yaml

from canal_dns import __version__
from canal_dns.settings import reading
from manifests.tools import corefiles, dashboard, schema, settings_schema, values
from manifests.tools.places import CHART, CONFIG, ROOT


@pytest.mark.parametrize("make", [schema.make, values.make, dashboard.make, corefiles.make], ids=lambda make: make.__module__)
def test_files_are_as_they_are_made(make):
    for path, text in make().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `make manifests`"


def test_the_chart_is_of_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert f"## {chart['version']}" in (CHART / "CHANGELOG.md").read_text()


def leaves(node, path=""):
    for key, value in node.get("properties", {}).items():
        where = f"{path}.{key}" if path else key
        yield where, value
        yield from leaves(value, where)


def test_the_schema_knows_every_key_of_the_example_configuration():
    known = dict(leaves(settings_schema.of_settings()))
    for key, value in yaml.safe_load(CONFIG.read_text()).items():
        assert key in known
        if isinstance(value, dict) and value:
            assert {f"{key}.{inner}" for inner in value} <= set(known)


def test_every_mapping_of_the_settings_refuses_unknown_keys():
    open_ones = [
        where for where, one in leaves(settings_schema.of_settings()) if "properties" in one and one["additionalProperties"]
    ]
    assert open_ones == []


def test_limits_are_the_parsers():
    known = dict(leaves(settings_schema.of_settings()))
    assert (known["ttl"]["minimum"], known["ttl"]["maximum"]) == (1, 3600)
    assert known["binding.portGuard"]["enum"] == ["enforce", "warn", None]
    assert known["log.level"]["enum"] == ["debug", "info", "warning", "error", None]
    assert known["limits.forwardBudget"]["description"].startswith("in all")


def _something_new(where, value):
    return value


def test_a_parser_that_is_not_known_is_an_error(monkeypatch):
    monkeypatch.setattr(reading, "_domain", _something_new)
    with pytest.raises(LookupError, match=r"clusterDomain: what _something_new"):
        settings_schema.of_settings()


@pytest.mark.parametrize(
    ("pattern_of", "good", "bad"),
    [
        ("listen", ["0.0.0.0:1053", "[::]:1053"], ["localhost:53", "1053", "0.0.0.0"]),
        ("upstreams", ["10.96.0.10", "10.96.0.10:53", "[fd00::10]:53"], ["kube-dns:53", "10.96.0.10:"]),
        ("access.allow", ["10.0.0.0/8", "::1/128", "10.0.0.1"], ["everybody", "10.0.0.0/"]),
        ("binding.protected", ["payments/*", "*/ledger"], ["payments", "a/b/c"]),
    ],
)
def test_patterns_agree_with_the_parsers(pattern_of, good, bad):
    """The schema may let through what only the parser can judge; it must never refuse what the parser takes."""
    pattern = dict(leaves(settings_schema.of_settings()))[pattern_of]["items"]["pattern"]
    assert [text for text in good if not re.search(pattern, text)] == []
    assert [text for text in bad if re.search(pattern, text)] == []


def test_every_value_has_a_type():
    chart = schema.of_chart()
    untyped = [where for where, one in leaves(chart) if not {"type", "enum", "anyOf"} & set(one)]
    assert untyped == []
    assert json.loads(json.dumps(chart)) == chart


def test_descriptions_are_the_comments_of_values():
    text = "# -- One\n# -- two.\na: 1\nb:\n  # -- Three.\n  c: 2\n  # other\n  d: 3\n"
    assert values.descriptions(text) == {"a": "One two.", "b.c": "Three."}
