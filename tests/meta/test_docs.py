"""docs/install.md, migrate.md and operate.md: every block says where it runs, those that need no cluster are run here, and
what they name exists. The blocks for a cluster are run by tests/e2e/test_docs.py.

Where a block runs is its second word: "here", "cluster", "helm" (a cluster, by itself), or "elsewhere NAME": not by any test.
"""

import ast
import re
import shlex

import pytest
import yaml

from canal_dns.cli import main, options
from canal_dns.mesh.records import Skip
from canal_dns.mesh.resources import parse
from tests.meta import prose, render_operate
from tests.meta.tree import ROOT, modules

DOCS = ROOT / "docs"
NAMES = ("binding.md", "install.md", "migrate.md", "operate.md")
BLOCKS = [block for name in NAMES for block in prose.blocks(DOCS / name)]
COMMANDS = [block for block in BLOCKS if block.language in ("sh", "console")]
FILES = [block for block in BLOCKS if block.language == "yaml" and block.kind.endswith(".yaml")]

NOT_RUN = {
    "image": "needs a container runtime and a registry",
    "gateway": "needs a kubelet and istiod's injection; the file itself is applied by tests/e2e/test_manifests.py",
    "rollout": "needs a kubelet: no Deployment has pods here",
    "helm-test": "needs a kubelet: the test is a pod",
    "port-forward": "needs a kubelet; the commands after it ask canal-dns beside the API server",
    "k3s": "restarts a CoreDNS that a platform runs",
    "dnsperf": "loads a cluster for minutes",
    "eks": "Amazon's own command, for a cluster there",
}
"""Blocks that nothing runs, by name, and why. The document says so too."""

PLACES = {"here", "cluster", "helm", "elsewhere"}
OTHER_KINDS = {"world", "case", "verdict", "pod-dns"}
SETTING = re.compile(r"`(?:binding|snapshot|limits|access|mesh|log|cache)\.[A-Za-z.]+`")
LOG_LINE = re.compile(r"^\| (`[^|]+`) \| ", re.MULTILINE)


def text(name):
    return (DOCS / name).read_text()


def argv(line):
    """The words of a `canal-dns …` command, up to a pipe, a redirection or the end."""
    words = shlex.split(line.replace('"$KUBECONFIG"', "kubeconfig"), comments=True)[1:]
    return words[: next((at for at, word in enumerate(words) if word in ("|", "||", "&&", ";", ">")), len(words))]


def lines_of(block):
    return [command for command, _ in block.commands()] if block.language == "console" else block.text.splitlines()


# --- where blocks run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block):
    if block in COMMANDS:
        assert block.kind in PLACES, "where does it run?"
    else:
        assert block in FILES or block.kind in OTHER_KINDS, "what is it?"


def test_what_nothing_runs_is_listed_by_name():
    named = [block.words[1] for block in COMMANDS if block.kind == "elsewhere"]
    assert sorted(named) == sorted(NOT_RUN), "a block that nothing runs is named here, once, with the reason"


def test_every_document_is_looked_at_and_every_cluster_block_is_run():
    # tests/e2e/test_document.py reads layouts.md; reliability.md has figures, and no command but of make.
    assert {path.name for path in DOCS.glob("*.md")} == {*NAMES, "layouts.md", "reliability.md"}
    journeys = set(re.findall(r'Journey\("([\w.]+)"', (ROOT / "tests" / "e2e" / "test_docs.py").read_text()))
    assert {block.document for block in COMMANDS if block.kind in ("cluster", "helm")} == journeys


def test_there_is_something_to_run():
    for kind in ("here", "cluster", "helm"):
        assert any(block.kind == kind for block in COMMANDS), kind


@pytest.mark.parametrize("block", [block for block in COMMANDS if block.kind == "here"], ids=str)
def test_commands_without_a_cluster(block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for command, shown in block.commands():
        assert command.startswith("canal-dns ")
        main(argv(command))
        printed = capsys.readouterr().out
        assert prose.shows(shown, printed), printed


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_ours_is_one(name):
    """In blocks, and in the prose where it is whole: `canal-dns explain NAME --server URL`."""
    blocks = [block for block in COMMANDS if block.document == name]
    found = [line for block in blocks for line in lines_of(block) if line.startswith("canal-dns ")]
    found += re.findall(r"`(canal-dns (?:table|explain|queries|check|serve|demo) [^`\n]+)`", text(name))
    for line in found:
        options.parser().parse_args(argv(line.replace("…", "")))


def test_make_targets_and_modules_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name in NAMES:
        for target in re.findall(r"`make ([a-z0-9-]+)`", text(name)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"
        for module in re.findall(r"`python -m ([\w.]+)`", text(name)):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"{name}: {module}"


# --- what is named exists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", FILES, ids=str)
def test_manifests_are_understood(block):
    for one in yaml.safe_load_all(block.text):
        assert not isinstance(parse(one), Skip | None), one


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_are_named_exist(name):
    known = yaml.safe_load((ROOT / "config" / "canal-dns.yaml").read_text())
    commented = (ROOT / "config" / "canal-dns.yaml").read_text()
    for found in SETTING.findall(text(name)):
        place = known
        for key in found.strip("`").split("."):
            if not (isinstance(place, dict) and key in place):
                assert re.search(rf"^\s*#\s*(- )?{key}:", commented, re.MULTILINE), f"{name}: {found}"
                break
            place = place[key]


def test_values_of_the_chart_that_are_named_exist():
    values = yaml.safe_load((ROOT / "manifests" / "helm" / "canal-dns" / "values.yaml").read_text())
    paths = set()
    for name in NAMES:
        written = text(name)
        paths.update(re.findall(r"--set '?([A-Za-z.]+)=", written))
        paths.update(found for found in re.findall(r"`([A-Za-z]+(?:\.[A-Za-z]+)+)`", written) if found.split(".")[0] in values)
    assert len(paths) > 5
    for path in paths:
        place = values
        for key in path.split("."):
            assert key in place, path
            place = place[key]


def test_paths_of_manifests_exist():
    for name in NAMES:
        for path in re.findall(r"(?<![\w./])(manifests/[\w./-]+)", text(name)):
            assert (ROOT / path.rstrip(".")).exists(), f"{name}: {path}"


def test_the_generated_parts_of_operate_are_the_generators():
    assert render_operate.render(text("operate.md")) == text("operate.md"), "run python -m tests.meta.render_operate"


def test_every_alert_has_advice_and_the_reverse():
    assert [rule["alert"] for rule in render_operate.rules()] == list(render_operate.TO_DO)


def strings():
    """All text of the package's code, with `…` for what is put in."""
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[\d.]*[a-z]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values))
    return found


def unknown(line, known):
    """Pieces of a log line that nothing in the code says."""
    pieces = [piece.strip() for piece in line.split("…")]
    return [piece for piece in pieces if piece and not any(piece in one for one in known)]


def test_log_lines_are_those_of_the_code():
    table = text("operate.md").partition("## The log\n")[2].partition("\n## ")[0]
    found = [line for cell in LOG_LINE.findall(table) for line in re.findall(r"`([^`]+)`", cell)]
    known = strings()
    assert len(found) > 10
    assert {line: pieces for line in found if (pieces := unknown(line, known))} == {}
    assert unknown("the …: no such words", known) == ["the", ": no such words"] or unknown("…: no such words at all", known)


def test_the_check_of_outputs_itself():
    assert prose.shows("a\n...\nc\n", "a\nb\nb\nc\n")
    assert prose.shows("a  \n", "a\n")
    assert prose.shows("a...c\n", "abc\n")
    assert not prose.shows("a\nc\n", "a\nb\nc\n")
    assert not prose.shows("a\n", "ab\n")
