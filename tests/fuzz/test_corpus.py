"""What was found once is found no more: every input that is kept, with its work counted; and how a run ends."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
from pathlib import Path

import pytest

from tests.faults.rows import NotRunError, Outcome
from tests.figures import MET, MISSED, NOT_RUN
from tests.fuzz import __main__ as command
from tests.fuzz import guided, native, work
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import CORPUS, Finding, Target, load

TARGETS = load()
SANITIZED = os.environ.get("CANAL_DNS_SANITIZE") == "1"
"""Run by tests/server/sanitized.py: what happens in C is looked at then, and each line of Python takes ten times as long."""
not_sanitized = pytest.mark.skipif(SANITIZED, reason="there is nothing in it for a sanitizer")
every = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every
def test_the_corpus(target: Target) -> None:
    corpus = target.corpus()
    assert corpus
    for name, data in corpus.items():
        try:
            if SANITIZED:
                target.one(data)
            else:
                work.bounded(target, data)
        except Exception as problem:
            raise AssertionError(f"{target.name}/{name}") from problem


@not_sanitized
@every
def test_work_grows_no_faster_than_the_input(target: Target) -> None:
    assert work.growth(target) == []


@every
def test_mutations_of_the_corpus(target: Target) -> None:
    mutator = Mutator(list(target.corpus().values()), target.words, 1, target.largest)
    for _ in range(300):
        target.one(mutator.one())


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 1 << 20
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@not_sanitized
def test_the_c_alone(tmp_path: Path) -> None:
    try:
        program = native.build(tmp_path)
    except NotRunError as problem:
        pytest.skip(str(problem))
    except native.BuildError as problem:
        # A compiler that has no sanitizers.
        pytest.skip(str(problem))
    counted = native.replay(program, [*native.inputs(), *native._families(tmp_path)], 0)
    assert counted["runs"] > 10


def test_what_costs_too_much_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SIZES", (30, 120, 480))
    from canal_dns.dns.wire import Framer

    def squared(data: bytes) -> None:
        for _ in data:
            Framer().feed(data)

    def linear(data: bytes) -> None:
        Framer().feed(data)

    families = (lambda octets: b"\0\1x" * (octets // 3),)
    costly = Target("squared", "", squared, tuple, families, 100, 1_000_000, (), 100)
    assert len(work.growth(costly)) >= 1
    with pytest.raises(Finding, match="lines for"):
        work.bounded(Target("squared", "", squared, tuple, (), 100, 1, (), 100), b"\0\1x" * 100)
    assert work.growth(Target("linear", "", linear, tuple, families, 100, 10, (), 100)) == []


def test_mutations_are_the_same_each_time() -> None:
    first, second = (Mutator([b"abcdef", b"ghi"], [b"word"], 7, 10) for _ in range(2))
    made = [first.one() for _ in range(200)]
    assert made == [second.one() for _ in range(200)]
    assert len(set(made)) > 150
    assert max(map(len, made)) <= 10


@pytest.mark.parametrize(
    ("outcome", "result"),
    [(Outcome("fine", True), MET), (Outcome("found", False), MISSED), (NotRunError("no cc"), NOT_RUN), (OSError("x"), MISSED)],
)
def test_how_a_target_ends(outcome: Outcome | Exception, result: str, capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    figure = command.one("queries", measure)
    assert figure.result == result
    assert "queries" in capsys.readouterr().out


def test_a_finding_is_told_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "found").mkdir()
        (tmp_path / "found" / "crash-1").write_bytes(b"\x2a")
        return subprocess.CompletedProcess(argv, 77, "", "Traceback")

    monkeypatch.setattr(subprocess, "run", child)
    outcome = command.look(TARGETS["link"], tmp_path, 1)
    assert not outcome.met
    assert "crash-1: 2a" in outcome.measured


def test_a_target_without_guidance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where there is no atheris."""
    assert guided.main(["link", str(tmp_path), "--seconds", "0", "--plain"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] >= 1
    logging.disable(logging.NOTSET)


def test_what_raises_leaves_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise Finding("always")

    monkeypatch.setitem(TARGETS, "link", dataclasses.replace(TARGETS["link"], one=broken))
    assert guided.main(["link", str(tmp_path), "--plain"]) == guided.FOUND
    assert len(list((tmp_path / "found").iterdir())) == 1
    logging.disable(logging.NOTSET)


def test_bad_use() -> None:
    for arguments in (["nothing"], ["queries", "--write"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
