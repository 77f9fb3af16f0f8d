"""Which upstream is asked, and when one is up or down. Time is a number here."""

from __future__ import annotations

from math import inf

import dns.flags
import dns.message
import pytest

from canal_dns.dns.upstreams import MAX_FAILS, PROBE_INTERVAL, Upstream, Upstreams, probe_packet
from canal_dns.settings import Endpoint

A, B, C = (Endpoint(f"10.0.0.{n}", 53) for n in (1, 2, 3))
LOOPS, OTHER = b"\4loop\0", b"\5other\0"


def silence(upstreams: Upstreams, upstream: Upstream, now: float) -> float:
    """Leave the upstream's probes unanswered until it is down; when that was."""
    upstreams.failed(upstream, now)
    while upstream.up:
        now = upstreams.next_probe()
        upstreams.due(now)
    return now


def test_the_first_one_in_order_is_preferred() -> None:
    upstreams = Upstreams([A, B, A])
    assert [upstream.text for upstream in upstreams] == ["10.0.0.1:53", "10.0.0.2:53"]
    assert upstreams.first is not None
    assert upstreams.first.endpoint == A
    assert repr(upstreams.first) == "<Upstream 10.0.0.1:53 up, 0 fails>"


def test_nobody_is_probed_while_all_answer() -> None:
    upstreams = Upstreams([A, B])
    assert upstreams.next_probe() == inf
    assert upstreams.due(1000.0) == []


def test_one_unanswered_query_starts_the_probes_and_more_than_two_fails_are_down() -> None:
    upstreams = Upstreams([A, B])
    a, b = upstreams
    upstreams.failed(a, 10.0)
    assert upstreams.next_probe() == 10.0
    assert upstreams.due(10.0) == [a]
    assert upstreams.due(10.2) == []
    assert upstreams.due(10.5) == [a]
    assert (a.fails, a.up) == (2, True)
    assert upstreams.due(11.0) == [a]
    assert (a.fails, a.up) == (MAX_FAILS + 1, False)
    assert upstreams.first is b
    assert repr(a) == "<Upstream 10.0.0.1:53 down, 3 fails>"


def test_down_is_seen_within_two_seconds_of_the_first_lost_query() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    first_try = 0.45 * 1.5
    assert silence(upstreams, a, first_try) <= 2.0


def test_many_unanswered_queries_are_one_fail() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    for _ in range(100):
        upstreams.failed(a, 10.0)
    assert (a.fails, a.up) == (1, True)


def test_any_reply_clears_the_suspicion() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    upstreams.failed(a, 10.0)
    upstreams.due(10.0)
    upstreams.answered(a)
    assert (a.fails, a.failing, upstreams.next_probe()) == (0, False, inf)


def test_a_reply_brings_an_upstream_back_at_once_and_in_its_place() -> None:
    upstreams = Upstreams([A, B])
    a, b = upstreams
    silence(upstreams, a, 0.0)
    assert upstreams.first is b
    upstreams.answered(a)
    assert upstreams.first is a


def test_probes_go_on_while_it_is_down() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    now = silence(upstreams, a, 0.0)
    for _ in range(5):
        assert upstreams.next_probe() == now + PROBE_INTERVAL
        now += PROBE_INTERVAL
        assert upstreams.due(now) == [a]
    assert not a.up


def test_never_more_than_two_probes_a_second() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    sent = []
    for step in range(100):
        now = step / 100
        upstreams.failed(a, now)
        if upstreams.due(now):
            sent.append(now)
            upstreams.answered(a)
    assert sent == [0.0, 0.5]


def test_a_probe_is_a_question_that_every_server_answers_itself() -> None:
    probe = dns.message.from_wire(probe_packet(0x1A2B))
    assert probe.id == 0x1A2B
    assert probe.question[0].to_text() == ". IN NS"
    assert (probe.edns, probe.payload, probe.ednsflags & 0xFFFF) == (1, 1232, dns.flags.DO)


def test_a_report_by_icmp_is_no_fail_but_a_reason_to_probe() -> None:
    upstreams = Upstreams([A])
    (a,) = upstreams
    for _ in range(10):
        upstreams.hinted(a, 5.0)
    assert (a.fails, a.up, upstreams.next_probe()) == (0, True, 5.0)
    upstreams.due(5.0)
    upstreams.answered(a)
    assert upstreams.next_probe() == inf


class TestAlternative:
    """After a reply that is a failure: somebody else who is up, or nobody."""

    def test_not_asked_yet_and_up(self) -> None:
        upstreams = Upstreams([A, B, C])
        a, b, c = upstreams
        assert upstreams.alternative((a,)) is b
        silence(upstreams, b, 0.0)
        assert upstreams.alternative((a,)) is c
        assert upstreams.alternative((a, c)) is None

    def test_there_is_only_one(self) -> None:
        upstreams = Upstreams([A])
        (a,) = upstreams
        assert upstreams.alternative((a,)) is None


class TestRetry:
    """After silence: somebody is asked in any case."""

    def test_the_other_one(self) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        assert upstreams.retry(a) is b
        assert upstreams.retry(b) is a

    def test_the_same_again_while_the_other_one_is_down(self) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        silence(upstreams, b, 0.0)
        assert upstreams.retry(a) is a

    def test_the_other_one_when_all_are_down(self) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        silence(upstreams, a, 0.0)
        silence(upstreams, b, 0.0)
        assert upstreams.retry(a) is b

    def test_there_is_only_one(self) -> None:
        upstreams = Upstreams([A])
        (a,) = upstreams
        assert upstreams.retry(a) is a
        silence(upstreams, a, 0.0)
        assert upstreams.retry(a) is a

    def test_all_were_taken_out_of_the_configuration(self) -> None:
        upstreams = Upstreams([A])
        (a,) = upstreams
        upstreams.replace([])
        assert upstreams.retry(a) is a


class TestAllDown:
    def test_there_is_no_first_and_the_trial_goes_round(self) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        silence(upstreams, a, 0.0)
        silence(upstreams, b, 0.0)
        assert upstreams.first is None
        assert {upstreams.trial(), upstreams.trial()} == {a, b}

    def test_without_upstreams_there_is_nobody_to_try(self) -> None:
        upstreams = Upstreams([])
        assert upstreams.first is None
        assert upstreams.trial() is None
        assert upstreams.next_probe() == inf


class TestReplace:
    def test_who_stays_keeps_his_health(self) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        silence(upstreams, a, 0.0)
        assert upstreams.replace([C, A]) == [b]
        c, kept = upstreams
        assert (c.endpoint, kept) == (C, a)
        assert not a.up
        assert upstreams.first is c

    def test_a_new_order_is_a_new_preference(self) -> None:
        upstreams = Upstreams([A, B])
        b = list(upstreams)[1]
        assert upstreams.replace([B, A]) == []
        assert upstreams.first is b

    @pytest.mark.parametrize("late", ["answered", "failed"])
    def test_news_of_one_that_is_gone_change_nothing(self, late: str) -> None:
        upstreams = Upstreams([A, B])
        a, b = upstreams
        silence(upstreams, a, 0.0)
        upstreams.replace([B])
        if late == "answered":
            upstreams.answered(a)
        else:
            upstreams.failed(a, 1.0)
        assert upstreams.first is b
        assert upstreams.next_probe() == inf


class TestLeadsBack:
    """One that would send a question back to us is not asked for that name, as if it were not there."""

    @pytest.fixture
    def upstreams(self) -> Upstreams:
        upstreams = Upstreams([A, B])
        next(iter(upstreams)).leads_back = lambda name: name == LOOPS
        return upstreams

    def test_alternative(self, upstreams: Upstreams) -> None:
        a, b = upstreams
        assert upstreams.alternative((), LOOPS) is b
        assert upstreams.alternative((b,), LOOPS) is None
        assert upstreams.alternative((), OTHER) is a

    def test_retry(self, upstreams: Upstreams) -> None:
        a, b = upstreams
        assert upstreams.retry(b, LOOPS) is b
        assert upstreams.retry(b, OTHER) is a
        silence(upstreams, b, 0.0)
        assert upstreams.retry(b, LOOPS) is b

    def test_trial(self, upstreams: Upstreams) -> None:
        a, b = upstreams
        assert {upstreams.trial(LOOPS), upstreams.trial(LOOPS)} == {b}
        assert {upstreams.trial(OTHER), upstreams.trial(OTHER)} == {a, b}
        b.leads_back = a.leads_back
        assert upstreams.trial(LOOPS) is None
