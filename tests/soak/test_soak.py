"""The soak without its figures: what is held to be true and when, how a record is judged, and what the client records."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from canal_dns.settings import Endpoint
from tests.figures import MISSED
from tests.server.scripted import FORGED, message, record
from tests.soak import __main__ as command
from tests.soak import content, load
from tests.soak.account import SHARE, Account, figures
from tests.soak.history import WINDOW, History
from tests.soak.judge import Kill, Verdict, judge
from tests.soak.load import Record

NAME = content.ROUTED[0]
OLD, NEW, NEWER = "10.96.9.9", "198.18.0.1", "198.18.0.2"
needs_compiler = pytest.mark.skipif(
    not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")), reason="no C compiler"
)


@pytest.fixture
def history():
    return History({NAME: OLD})


# -- what is true when ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "received", "right"),
    [
        (90.0, 90.1, {OLD}),
        (99.9, 100.1, {OLD, NEW}),
        (100.1, 100.2, {OLD, NEW}),
        (100.0 + WINDOW, 100.1 + WINDOW, {NEW}),
        (99.0, 103.0, {OLD, NEW}),
    ],
)
def test_the_old_answer_is_right_for_a_while(history, sent, received, right):
    history.change([NAME], [NEW], 100.0)
    assert history.allowed(NAME, sent, received) == right


def test_changes_that_follow_each_other_closely(history):
    history.change([NAME], [NEW], 100.0)
    history.change([NAME], [NEWER], 101.0)
    assert history.allowed(NAME, 101.5, 101.6) == {OLD, NEW, NEWER}
    assert history.allowed(NAME, 102.5, 102.6) == {NEW, NEWER}
    assert history.allowed(NAME, 103.5, 103.6) == {NEWER}
    assert len(history) == 2


def test_time_does_not_run_while_the_api_server_is_away(history):
    history.change([NAME], [NEW], 99.0)
    history.away(100.0)
    history.change([NAME], [NEWER], 110.0)
    assert history.allowed(NAME, 150.0, 150.1) == {OLD, NEW, NEWER}
    history.back(200.0)
    assert history.allowed(NAME, 200.0 + WINDOW, 210.0) == {NEWER}


def test_what_was_settled_before_the_api_server_went_stays_settled(history):
    history.change([NAME], [NEW], 90.0)
    history.away(100.0)
    assert history.allowed(NAME, 101.0, 101.1) == {NEW}


def test_how_far_an_answer_is_behind(history):
    history.change([NAME], [NEW], 100.0)
    assert history.behind(NAME, NEW, 99.9, 100.1) == 0.0
    assert history.behind(NAME, OLD, 99.9, 100.1) == 0.0
    assert history.behind(NAME, OLD, 100.5, 100.6) == pytest.approx(0.5)
    history.change([NAME], [OLD], 110.0)
    assert history.behind(NAME, NEW, 110.25, 110.3) == pytest.approx(0.25)


# -- the verdict ---------------------------------------------------------------------------------------------------------

ASKED = [
    (content.BOUND[0], "A", content.VIPS[0]),
    (content.OTHERS[0], "A", NEW),
    (content.MISSING[0], "A", "NXDOMAIN"),
    (NAME, "A", "-"),
]


def verdict_of(history, *records, kills=()):
    return judge(records, ASKED, history, kills, 0.0)


def said(query, rcode=0, address="", sent=10.0, received=10.1):
    return Record(sent, received, query, rcode, ipaddress.ip_address(address).packed if address else b"")


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (said(0, address=NEW), "wrong"),
        (said(1, address=OLD), "wrong"),
        (said(0, rcode=3), "wrong"),
        (said(0, rcode=128, address=content.VIPS[0]), "wrong"),
        (said(2), "wrong"),
        (said(3, address=FORGED), "wrong"),
        (said(3, address=OLD), "judged"),
        (said(1, rcode=2), "failed"),
        (said(1, received=0.0), "lost"),
    ],
)
def test_a_record_is_one_thing(history, one, what):
    verdict = verdict_of(history, one)
    assert Counter(wrong=verdict.wrong, failed=verdict.failed, lost=verdict.lost)[what] == (what != "judged")
    assert verdict.wrong + verdict.failed + verdict.lost == (what != "judged")
    assert verdict.judged == (one.query == 3)


@pytest.mark.parametrize(
    ("query", "sent", "held", "beside"),
    [
        (0, 99.9, 1, 0),
        (0, 99.5, 0, 0),  # a bound name waits for nobody
        (1, 98.5, 1, 0),
        (1, 98.0, 0, 0),
        (0, 100.2, 0, 1),
        (0, 102.0, 0, 0),
    ],
)
def test_what_was_lost_with_a_worker(history, query, sent, held, beside):
    kill = Kill(100.0, 100.01, 100.7)
    verdict = verdict_of(history, said(query, sent=sent, received=0.0), kills=[kill])
    assert (kill.held, kill.beside, verdict.lost) == (held, beside, 1 - held - beside)


# -- the client ----------------------------------------------------------------------------------------------------------


class Answers(asyncio.DatagramProtocol):
    """A server that says what the lines of the file of queries expect, but for some names."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, packet, client):
        name = packet[13 : 13 + packet[12]].decode()
        if name.startswith("lost"):
            return
        if name.startswith("wrong"):
            self.transport.sendto(message(packet, record(FORGED)), client)
        elif name.startswith("none"):
            self.transport.sendto(message(packet, rcode=3), client)
        else:
            self.transport.sendto(message(packet, record(OLD), record(NEW)), client)
            if name.startswith("twice"):
                self.transport.sendto(message(packet, record(NEW)), client)


@contextlib.asynccontextmanager
async def answering():
    loop = asyncio.get_running_loop()
    transports = [
        (await loop.create_datagram_endpoint(Answers, (host, 0)))[0] for host in ("127.0.0.1", "::1")
    ]  # fmt: skip
    try:
        yield tuple(Endpoint(*transport.get_extra_info("sockname")[:2]) for transport in transports)
    finally:
        for transport in transports:
            transport.close()


@needs_compiler
async def test_the_client_records_what_is_not_as_its_line_says(tmp_path):
    lines = [("right.x", NEW), ("wrong.x", NEW), ("none.x", "NXDOMAIN"), ("lost.x", NEW), ("open.x", "-"), ("twice.x", NEW)]
    content.write(tmp_path / "queries", [(name, "A", truth) for name, truth in lines])
    async with answering() as endpoints:
        done = await load.ask(endpoints, tmp_path / "queries", tmp_path / "records", 0.5, 600)
    records = list(load.read(tmp_path / "records"))
    by_line = Counter(one.query for one in records)
    assert by_line.keys() == {1, 3, 4}
    assert {one.address for one in records if one.query == 1} == {socket.inet_aton(FORGED)}
    assert {one.address for one in records if one.query == 4} == {socket.inet_aton(NEW)}
    assert not any(one.received for one in records if one.query == 3)
    assert all(one.sent < one.received for one in records if one.query != 3)
    assert done.lost == by_line[3] > 0
    assert done.strays > 0
    assert done.sent + done.skipped == pytest.approx(300, abs=50)
    assert (done.late, done.refused) == (0, 0)


@needs_compiler
async def test_the_client_refuses_what_it_does_not_understand(tmp_path):
    (tmp_path / "queries").write_text("name-without-more\n")
    with pytest.raises(load.LoadError, match="not NAME TYPE TRUTH"):
        await load.ask((Endpoint("127.0.0.1", 9), Endpoint("::1", 9)), tmp_path / "queries", tmp_path / "records", 1, 0)


def test_the_questions_are_what_they_are_said_to_be():
    asked = content.questions()
    kinds = Counter(name.partition("-")[0] for name, _, _ in asked)
    assert len(asked) == pytest.approx(content.LINES, rel=0.01)
    assert kinds["bound"] / len(asked) == pytest.approx(0.6, abs=0.01)
    assert {truth for name, _, truth in asked if name.startswith("bound-")} == set(content.VIPS)
    assert {truth for name, _, truth in asked if name.startswith("missing-")} == {"NXDOMAIN"}
    assert not set(content.VIPS + content.MOVING_VIPS) & {content.plain(name) for name in content.OTHERS + content.CHANGING}
    assert asked == content.questions()


def test_bad_use(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--seconds", "1"])
    assert ended.value.code == 2


# -- the account ---------------------------------------------------------------------------------------------------------


class Recorded:
    """A recorder's figures."""

    def __init__(self):
        self.counts = dict.fromkeys(
            ("requests_total", "responses_total", "answers_total", "request_duration_seconds_count"), 1000.0
        )
        self.backwards, self.scrapes, self.slowest = [], 60, 0.01
        self.grown = {"memory": (100.0, 104.0), "control": (30.0, 31.0)}
        self.idle, self.idle_again, self.samples = 60, 68, []

    def total(self, metric):
        return self.counts.get(metric.removeprefix("canal_dns_"), 0.0)

    def totals(self, metric, label):
        return {}

    def growth(self, figure):
        return self.grown[figure]


@pytest.fixture
def account(history):
    sent = load.Load(60.0, 1000, 1000, 980, 20, 0, 0, 0, 0, 0)
    happened = SimpleNamespace(kills=[Kill(1.0, 1.1, 2.0)], flaps=3, stall=0.1, restarts=1, good=2, bad=1, noticed=lambda: True)
    return Account(1000 / 60 / SHARE, sent, [], Verdict(), history, happened, Recorded(), [])


def missed(account):
    return [figure.id for figure in figures(account) if figure.result == MISSED]


def test_all_is_well(account):
    assert missed(account) == []


@pytest.mark.parametrize(
    ("spoil", "row"),
    [
        (lambda one: replace(one, peak=2 * one.peak), "S1"),
        (lambda one: replace(one, verdict=Verdict(wrong=1)), "S2"),
        (lambda one: replace(one, load=replace(one.load, strays=1)), "S2"),
        (lambda one: replace(one, verdict=Verdict(lost=1)), "S3"),
        (lambda one: one.disturbances.kills.append(Kill(1.0, 1.1, 2.0, held=3, beside=3)), "S3"),
        (lambda one: replace(one, verdict=Verdict(failed=1)), "S4"),
        (lambda one: one.recorder.grown.update(memory=(100.0, 106.0)), "S5"),
        (lambda one: one.recorder.grown.update(control=(100.0, 106.0)), "S5"),
        (lambda one: setattr(one.recorder, "idle_again", 69), "S6"),
        (lambda one: one.recorder.counts.update(answers_total=999.0), "S7"),
        (lambda one: one.recorder.counts.update(dropped_total=1.0), "S7"),
        (lambda one: one.recorder.counts.update(requests_total=1001.0), "S7"),
        (lambda one: one.recorder.backwards.append("one"), "S7"),
        (lambda one: replace(one, load=replace(one.load, sent=1100, as_said=1080)), "S7"),
        (lambda one: replace(one, ended=["Traceback"]), "S8"),
        (lambda one: setattr(one.disturbances, "noticed", lambda: False), "S8"),
    ],
)
def test_what_is_missed_is_told(account, spoil, row):
    assert missed(spoil(account) or account) == [row]
