"""The pauses after failures: client-go's."""

from __future__ import annotations

import pytest

from canal_dns.kube.timing import Backoff, Pauses, Timing


def test_pauses_double_up_to_the_longest():
    backoff, now, found = Backoff(Pauses(), lambda: 0.0), 0.0, []
    for _ in range(9):
        found.append(backoff.pause(now))
        now += found[-1] + 1
    assert found == pytest.approx([0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30])


def test_the_jitter_adds_up_to_as_much_again():
    assert Backoff(Pauses(), lambda: 0.999999).pause(0.0) == pytest.approx(1.6, abs=0.001)


def test_two_good_minutes_and_it_begins_anew():
    backoff = Backoff(Pauses(), lambda: 0.0)
    assert [backoff.pause(0.0), backoff.pause(1.0)] == [0.8, 1.6]
    assert backoff.pause(2.6 + 119) == 3.2
    assert backoff.pause(124.8 + 121) == 0.8


def test_what_went_well_for_longer_than_the_pause_to_come_begins_anew():
    backoff = Backoff(Pauses(), lambda: 0.0)
    assert [backoff.pause(0.0), backoff.pause(1.0), backoff.pause(3.0)] == [0.8, 1.6, 3.2]
    backoff.went_well(6.0)
    assert backoff.pause(13.0) == 6.4
    backoff.went_well(13.0)
    assert backoff.pause(33.0) == 0.8


def test_a_failure_that_lasts_is_asked_about_every_45_seconds():
    """faults.md K6: at most 0.25 requests per second and replica."""
    backoff, now = Backoff(Pauses(), lambda: 0.5), 0.0
    for _ in range(50):
        now += backoff.pause(now)
    reflectors = 7
    assert reflectors * 50 / now < 0.25


def test_defaults():
    assert Timing() == Timing(
        page=500,
        page_octets=64 * 1024 * 1024,
        list_silence=60.0,
        watch=(300.0, 600.0),
        silence=90.0,
        silence_without_bookmarks=330.0,
        brief=1.0,
        failures=3,
        retry=30.0,
        longest_wish=120.0,
        attend=1.0,
        stretch=0.002,
        pauses=Pauses(first=0.8, longest=30.0, factor=2.0, jitter=1.0, reset=120.0),
    )
