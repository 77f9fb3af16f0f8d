"""The bench itself: no row is left out, and one that is missed is told by the exit status."""

import pytest

from tests.faults import __main__ as command
from tests.faults import rows
from tests.faults.bench import run
from tests.faults.rows import IDS, NotRunError, Outcome, Row, chosen
from tests.figures import MET, MISSED, NOT_RUN, Figure, failing, read, write


def test_every_row_has_a_scenario_in_the_order_of_the_rows():
    assert [row.id for row in chosen(())] == list(IDS)


def test_a_row_has_one_scenario_and_no_other_name():
    for ident in ("U1", "X1"):
        with pytest.raises(ValueError, match=ident):
            rows.row(ident, "", "")(None)


def scenario(outcome):
    async def measured(bench):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Row("U1", "a fault", "a demand", measured)


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome("1 ms", True), MET),
        (Outcome("1 h", False), MISSED),
        (NotRunError("no kernel"), NOT_RUN),
        (RuntimeError("what is this"), MISSED),
    ],
)
def test_how_a_row_ends(outcome, result, capsys):
    figure = command.one(scenario(outcome), long=False)
    assert figure.result == result
    assert "a demand" in capsys.readouterr().out


async def test_a_server_that_is_gone_afterwards_is_a_miss():
    async def killed(bench):
        server = await bench.server()
        server.popen.kill()
        server.wait()
        return Outcome("fine", True)

    outcome = await run(Row("U1", "", "", killed), long=False, limit=60)
    assert not outcome.met and "ended (-9)" in outcome.measured


async def test_what_a_scenario_leaves_open_is_a_miss(monkeypatch):
    monkeypatch.setattr("tests.faults.bench.SETTLE", 0.5)

    async def left_open(bench):
        server = await bench.server()
        monkeypatch.setattr(type(server), "descriptors", lambda self: 1000)
        return Outcome("fine", True)

    outcome = await run(Row("U1", "", "", left_open), long=False, limit=60)
    assert not outcome.met and "more open files" in outcome.measured


def test_figures_are_kept(tmp_path):
    figures = [Figure("U1", "a fault", "a demand", "1 ms", MET, 0.1)]
    write(tmp_path / "kept.json", figures, form="short")
    told, kept = read(tmp_path / "kept.json")
    assert kept == figures and told["form"] == "short"


def test_on_a_shared_machine_a_miss_is_measured_again():
    outcomes = iter([Outcome("late", False), Outcome("in time", True), Outcome("not asked for", False)])

    async def measured(bench):
        return next(outcomes)

    figure = command.repeated(Row("U1", "", "", measured), long=False, times=3)
    assert (figure.result, figure.measured) == (MET, "in time")
    assert command.repeated(Row("U1", "", "", measured), long=False, times=1).result == MISSED


def test_what_fails_a_run():
    def figure(ident, result):
        return Figure(ident, "", "", "", result, 0.0)

    figures = [figure("U1", MET), figure("U2", MISSED), figure("U3", MISSED), figure("U4", NOT_RUN)]
    assert [one.id for one in failing(figures)] == ["U2", "U3", "U4"]
    assert [one.id for one in failing(figures, {"U1", "U3", "U4"})] == ["U2", "U4"]
    assert set(IDS) >= rows.TIMED


def test_bad_use(capsys):
    for arguments in (["X1"], ["U1", "--write"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
