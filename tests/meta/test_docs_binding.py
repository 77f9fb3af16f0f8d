"""docs/binding.md is what the rule does: its examples are given to the rule, and its list of reasons is the generator's."""

import asyncio
import re

import pytest
import yaml

from canal_dns import settings
from canal_dns.app.feed import offline
from canal_dns.mesh.policy import PROTECTED
from canal_dns.mesh.resources import ANNOTATION_ALLOW_FROM, ANNOTATION_BIND, ANNOTATION_TTL
from canal_dns.mesh.result import Reason
from canal_dns.settings import BindingSettings
from tests.meta import prose, render_binding
from tests.meta.tree import ROOT

FILE = ROOT / "docs" / "binding.md"
BLOCKS = prose.blocks(FILE)
WORLD = [block for block in BLOCKS if block.kind == "world"]
CASES = [block for block in BLOCKS if block.kind == "case"]
OUTCOME = re.compile(r"^- `([\w.-]+)`: \*\*(bound|skipped)\*\*(.*(?:\n  .*)*)", re.MULTILINE)
OWN_SETTINGS = re.compile(r"^# canal-dns\.yaml: (.*)$", re.MULTILINE)


def objects(*blocks):
    """The objects of these blocks; a later one takes the place of an earlier."""
    found = {}
    for block in blocks:
        for one in yaml.safe_load_all(block.text):
            found[one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]] = one
    return list(found.values())


def outcome(folder, block):
    """The result for a block's objects, as `canal-dns table` reads them."""
    (folder / "objects.yaml").write_text(yaml.safe_dump_all(objects(*WORLD, block)))
    written = {"source": {"manifests": str(folder)}, "gateways": [{"service": "istio-system/internalgateway"}]}
    for own in OWN_SETTINGS.findall(block.text):
        written |= yaml.safe_load(own)
    parsed = settings.parse(written, offline=True)
    feed = asyncio.run(offline(parsed.source, parsed.binding))
    assert list(feed.source.skips) == []
    assert list(feed.source.problems()) == []
    return feed


def wrong(feed, name, verdict, rest):
    """What is not as the document says."""
    full = f"{name}.svc.cluster.local"
    bound, skipped = feed.result.bound.get(full), feed.result.skipped.get(full)
    if verdict == "skipped":
        reason = re.search(r"`(\w+)`", rest)[1]
        return [] if skipped and skipped.reason is Reason(reason) else [f"{name}: {skipped or bound}, not {reason}"]
    if bound is None:
        return [f"{name}: {skipped}"]
    told = [] if bound.v4 == ("10.96.9.9",) else [f"{name} is {bound.v4}"]
    for claim in re.findall(r"as (destination|host)", rest):
        told += [] if bound.claims == (claim,) else [f"{name} is bound as {bound.claims}"]
    warning = re.search(r'warning "([^"]+)"', rest.replace("\n ", ""))
    texts = " ".join(bound.warnings)
    if warning and warning[1] not in texts:
        told.append(f"{name}: {warning[1]!r} is not in {texts!r}")
    problem = re.search(r"problem `(\w+)`", rest)
    if problem and Reason(problem[1]) not in {one.reason for one in feed.result.problems}:
        told.append(f"no problem {problem[1]}: {feed.result.problems}")
    if "no warning" in rest and texts:
        told.append(f"{name}: {texts}")
    return told


def test_there_is_something_to_test():
    assert len(WORLD) == 1 and len(CASES) >= 15


@pytest.mark.parametrize("block", CASES, ids=str)
def test_every_example_comes_out_as_the_document_says(block, tmp_path):
    said = OUTCOME.findall(block.after)
    assert said, "no outcome is stated below the example"
    feed = outcome(tmp_path, block)
    assert [line for name, verdict, rest in said for line in wrong(feed, name, verdict, rest)] == []


def test_the_check_itself(tmp_path):
    feed = outcome(tmp_path, CASES[0])
    for verdict, rest in (
        ("skipped", ", `Shadowed`"),
        ("bound", ", as host"),
        ("bound", ', warning "nobody says this"'),
        ("bound", ", problem `Conflicted`"),
    ):
        assert wrong(feed, "helloworld.default", verdict, rest), rest
    assert wrong(feed, "other.default", "bound", "")


def test_the_reasons_are_those_of_the_generator():
    _, _, rest = FILE.read_text().partition(render_binding.START)
    assert rest.partition(render_binding.END)[0] == render_binding.render(), "run python -m tests.meta.render_binding"


def test_the_generator_knows_every_reason_once():
    assert sorted(entry.reason.value for entry in render_binding.ENTRIES) == sorted(reason.value for reason in Reason)


def test_the_rule_names_every_reason_a_service_owner_meets():
    """In the part that people read first, not in the generated list only."""
    written = FILE.read_text().partition(render_binding.START)[0]
    missing = [reason.value for reason in Reason if f"`{reason.value}`" not in written]
    assert missing == []


def test_annotations_settings_and_protected_names_are_those_of_the_code():
    text = FILE.read_text()
    for annotation in (ANNOTATION_BIND, ANNOTATION_ALLOW_FROM, ANNOTATION_TTL):
        assert annotation in text
    for namespace, name in PROTECTED:
        assert any(form in text for form in (f"{namespace}/{name}", f"all of `{namespace}`", f"Service called `{name}`"))
    defaults = BindingSettings()
    assert f"`binding.maxBindings` ({defaults.max_bindings:,})" in text
    assert f"`binding.gatewayUnreadyAfter` ({defaults.gateway_unready_after:g} s)" in text
    assert f"`binding.settle` ({defaults.settle:g} s)" in text
    assert f"TTL `ttl` ({defaults.ttl} s" in text
