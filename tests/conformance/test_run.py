"""The run itself: a server that is wrong passes nothing, a failure costs the exit status, nothing is left out in silence."""

import sys

import pytest

from tests.conformance import run
from tests.conformance.fixture import Server, StartError, running
from tests.conformance.lab import CHECKS, load
from tests.conformance.run import FAILED, NOT_RUN, PASSED, Outcome, Run

CASES = load()


def contrary(monkeypatch, mode):
    monkeypatch.setattr(Server, "COMMAND", (sys.executable, "-m", "tests.conformance.contrary", mode))


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("mode", "allowed"),
    [
        ("yes", {"QD-12"}),
        # What may be refused as well as answered, and what must only not be bound.
        (
            "refuse",
            {"NAM-21", "NAM-22", "EDN-25", "TYP-20", "TYP-21", "FWD-04", "FWD-09", "OPC-04", "OPC-05", "OPC-08", "TYP-19"},
        ),
    ],
)
def test_a_server_that_is_wrong_passes_nothing(monkeypatch, mode, allowed):
    """The cases that `check` alone judges; those with a check of their own take minutes against such a server."""
    contrary(monkeypatch, mode)
    chosen = [case for case in CASES.values() if case.id not in CHECKS and case.transport != "tcp"]
    assert len(chosen) > 60
    outcomes = Run(chosen, 0).all()
    assert {outcome.id for outcome in outcomes.values() if outcome.status == PASSED} <= allowed


def test_a_server_that_does_not_start_fails_every_case(monkeypatch):
    monkeypatch.setattr(Server, "COMMAND", (sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"))
    outcomes = Run([CASES["HDR-01"], CASES["FWD-01"], CASES["CCH-01"]], 0).all()
    assert [outcome.status for outcome in outcomes.values()] == [FAILED, FAILED, FAILED]
    assert "status 3" in outcomes["HDR-01"].text and "no such thing" in outcomes["HDR-01"].text
    with pytest.raises(StartError), running():
        pass


def test_every_case_ends_in_the_table():
    outcomes = [
        Outcome("A-1", "MUST", PASSED),
        Outcome("A-2", "MUST", FAILED, "because"),
        Outcome("A-3", "SHOULD", NOT_RUN, "no such tool"),
        Outcome("A-4", "MUST", NOT_RUN, "no such machine"),
        Outcome("A-5", "MUST", NOT_RUN, "no such machine"),
    ]
    text = run.table(outcomes, "title")
    assert "FAILED: A-2" in text
    assert "NOT RUN: A-3 (no such tool)" in text
    assert "NOT RUN: A-4 A-5 (no such machine)" in text
    assert text.splitlines()[2].split() == ["MUST", "1", "1", "2"]


@pytest.mark.parametrize(
    ("level", "status", "exit_status"),
    [("MUST", FAILED, 1), ("SHOULD", FAILED, 0), ("MUST", PASSED, 0), ("MUST", NOT_RUN, 0)],
)
def test_the_exit_status(monkeypatch, capsys, level, status, exit_status):
    monkeypatch.setattr(Run, "all", lambda self: {"HDR-01": Outcome("HDR-01", level, status)})
    assert run.main(["HDR-01"]) == exit_status
    assert "workers: 0" in capsys.readouterr().out


def test_an_unknown_case_is_an_error():
    with pytest.raises(SystemExit, match="no such case: HDR-99"):
        run.main(["HDR-99"])


@pytest.mark.parametrize(
    ("outcome", "verbose", "told"),
    [
        (Outcome("A-1", "MUST", FAILED, "because"), False, True),
        (Outcome("A-1", "MUST", PASSED), False, False),
        (Outcome("A-1", "MUST", PASSED), True, True),
    ],
)
def test_lines(capsys, outcome, verbose, told):
    run.Teller(1, verbose)(outcome)
    assert ("A-1" in capsys.readouterr().out) == told


def test_a_check_that_breaks_is_a_failure_with_its_place(monkeypatch):
    monkeypatch.setitem(CHECKS, "FUZ-07", (lambda workers, case: 1 / 0, "alone"))
    outcome = Run([CASES["FUZ-07"]], 0).all()["FUZ-07"]
    assert outcome.status == FAILED and "ZeroDivisionError" in outcome.text and "test_run.py" in outcome.text


def test_every_check_belongs_to_a_case():
    assert set(CHECKS) <= set(CASES)
    assert {lane for _, lane in CHECKS.values()} == {"main", "beside", "alone", "cached", "last"}
