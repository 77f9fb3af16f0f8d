"""config/canal-dns.yaml shows every key, each with its default."""

import dataclasses
import re

import pytest
import yaml

from canal_dns import settings
from canal_dns.settings import reading
from tests.meta.tree import ROOT

FILE = ROOT / "config" / "canal-dns.yaml"


@pytest.fixture(scope="module")
def text():
    if not FILE.exists():
        pytest.fail("config/canal-dns.yaml is missing: it shows every key with its default")
    return FILE.read_text()


@pytest.fixture(scope="module")
def mapping(text):
    return yaml.safe_load(text)


def test_every_value_is_the_default(mapping):
    """What has no default (upstreams, gateways, source) stands there as an example; all the rest must change nothing."""
    needed = {key: mapping[key] for key in ("upstreams", "gateways", "source")}
    shown, default = settings.parse(mapping), settings.parse(needed)
    for field in dataclasses.fields(shown):
        assert getattr(shown, field.name) == getattr(default, field.name), field.name


def known_keys(mapping, monkeypatch):
    """{section: keys} that the parser asks for."""
    known = {}
    done = reading._Section.done
    monkeypatch.setattr(
        reading._Section, "done", lambda section: (known.update({section.path: set(section._known)}), done(section))
    )
    settings.parse(mapping)
    return known


def test_every_key_is_there(text, mapping, monkeypatch):
    """As a key, or, where the default is to leave it out, as a comment that shows it."""
    known = known_keys(mapping, monkeypatch)
    assert {"", "binding", "limits", "access", "access.rateLimit", "mesh", "log"} <= set(known)
    missing = []
    for path, keys in known.items():
        section = mapping
        for part in filter(None, re.split(r"\.|\[|\]", path)):
            section = section.get(part) or {} if isinstance(section, dict) else section[int(part)]
        missing += [
            f"{path}.{key}" for key in keys - set(section) if not re.search(rf"^\s*#\s*(- )?{key}:", text, re.MULTILINE)
        ]
    assert missing == []


def test_the_check_itself(text, mapping):
    assert settings.parse(mapping | {"ttl": 6}).zone != settings.parse(mapping).zone
