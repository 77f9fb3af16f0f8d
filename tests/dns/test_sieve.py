"""Who goes: what was not asked for again, oldest first; what is marked is passed over once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_dns.dns import sieve as module
from canal_dns.dns.sieve import Sieve


def filled(size: int) -> Sieve:
    sieve = Sieve(size)
    assert [sieve.take() for _ in range(size)] == list(range(size))
    return sieve


def evict(sieve: Sieve) -> int:
    place = sieve.victim()
    sieve.give_back(place)
    return place


def test_there_are_so_many_places():
    sieve = filled(3)
    assert len(sieve) == 3
    with pytest.raises(IndexError):
        sieve.take()
    sieve.give_back(1)
    assert (len(sieve), sieve.take(), len(sieve)) == (2, 1, 3)


def test_without_a_place_taken_nobody_can_go():
    with pytest.raises(IndexError):
        Sieve(2).victim()


def test_the_oldest_goes_first():
    sieve = filled(4)
    assert [evict(sieve) for _ in range(4)] == [0, 1, 2, 3]


def test_who_is_marked_is_passed_over_and_loses_the_mark():
    sieve = filled(4)
    sieve.visited[0] = sieve.visited[2] = 1
    assert [evict(sieve) for _ in range(2)] == [1, 3]
    assert not any(sieve.visited)
    assert [evict(sieve) for _ in range(2)] == [0, 2]


def test_the_hand_goes_on_towards_the_newest_and_then_begins_anew():
    sieve = filled(4)
    sieve.visited[0] = 1
    assert evict(sieve) == 1
    assert sieve.take() == 1, "the newest now, behind 3"
    assert [evict(sieve) for _ in range(4)] == [2, 3, 1, 0]


def test_a_new_one_is_not_marked():
    sieve = filled(2)
    sieve.visited[0] = 1
    sieve.give_back(0)
    assert sieve.take() == 0 and sieve.visited[0] == 0


def test_the_hand_passes_a_bounded_number_of_marks(monkeypatch):
    monkeypatch.setattr(module, "REACH", 10)
    sieve = filled(100)
    sieve.visited[:] = b"\1" * 100
    assert evict(sieve) == 10
    assert sieve.visited.count(0) == 10


def test_after_a_clear_it_is_as_new_and_the_marks_are_where_they_were():
    sieve = filled(3)
    marks = sieve.visited
    marks[1] = 1
    evict(sieve)
    sieve.clear()
    assert len(sieve) == 0 and sieve.visited is marks and not any(marks)
    assert [sieve.take() for _ in range(3)] == [0, 1, 2]


@given(st.lists(st.tuples(st.sampled_from("teu"), st.integers(0, 7)), max_size=200))
def test_whatever_happens_it_is_a_line_of_those_who_are_there(steps):
    """Against a list, oldest first, with the hand as an index into it."""
    sieve, line, hand, marks = Sieve(8), [], None, set()
    for step, number in steps:
        if step == "t" and len(line) < 8:
            line.append(sieve.take())
            marks.discard(line[-1])
        elif step == "u" and line:
            place = line[number % len(line)]
            sieve.visited[place] = 1
            marks.add(place)
        elif step == "e" and line:
            at = 0 if hand is None else line.index(hand)
            while line[at] in marks:
                marks.discard(line[at])
                at = (at + 1) % len(line)
            assert evict(sieve) == line[at]
            hand = line[at + 1] if at + 1 < len(line) else None
            del line[at]
        assert len(sieve) == len(line)


def test_what_is_asked_for_again_survives_a_flood():
    sieve, held, hot = Sieve(1000), {}, {}
    rng = random.Random(5)
    hits = asked = 0
    for turn in range(50_000):
        for name in (rng.randrange(200), 1000 + turn) if turn % 4 == 0 else (1000 + turn,):
            asked += name < 200
            if name in hot:
                hits += 1
                sieve.visited[hot[name]] = 1
                continue
            if len(sieve) == 1000:
                gone = evict(sieve)
                hot.pop(held[gone], None)
            place = sieve.take()
            held[place] = name
            if name < 200:
                hot[name] = place
    assert hits / asked > 0.95, (hits, asked)
