"""New names settle, lost ones go at once, and what was published always equals the bindings once nothing waits."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.app.publish import Pace, Publisher, addresses_of
from canal_dns.dns import names
from canal_dns.mesh.result import Bound, difference

A = Bound(
    name="a.default.svc.cluster.local", service="default/a", v4=("10.96.9.9",), v6=(), ttl=5, gateway="istio-system/gw",
    gateways=("istio-system/gw",), routes=("default/a",), ports=(80,), claims=("host",),
)  # fmt: skip
B = replace(A, name="b.default.svc.cluster.local", v6=("fd00::9",))


class Plane:
    """A data plane that only remembers: what a worker's table would hold."""

    def __init__(self):
        self.table = {}
        self.calls = []

    def publish(self, delta, generation, serial, *, full, since=None):
        self.calls.append((dict(delta), generation, serial, full))
        self.table = dict(delta) if full else {**self.table, **delta}
        self.table = {name: one for name, one in self.table.items() if one is not None}


@pytest.fixture
def plane():
    return Plane()


@pytest.fixture
def publisher(plane):
    return Publisher(plane, settle=2.0, serial=lambda: 7)


def wire(bound):
    return names.from_text(bound.name)


def test_the_first_table_is_whole_and_does_not_wait(plane, publisher):
    publisher.replace({A.name: A})
    assert plane.calls == [({wire(A): addresses_of(A)}, 1, 7, True)]
    assert list(publisher.live) == [A.name]


def test_an_empty_first_table_is_published_too(plane, publisher):
    """It says that the objects were read and nothing is bound: forwarding from here on is a decision."""
    publisher.replace({})
    assert plane.calls == [({}, 1, 7, True)]


def test_a_new_name_waits_for_istiod(plane, publisher):
    publisher.replace({})
    assert not publisher.update({A.name: A}, now=10.0)
    assert publisher.next_due() == 12.0
    assert publisher.settling(now=10.5) == {A.name: 1.5}
    assert not publisher.settled(now=11.9)
    assert plane.table == {}
    assert publisher.settled(now=12.0)
    assert plane.table == {wire(A): addresses_of(A)}
    assert publisher.next_due() is None


def test_a_lost_name_goes_at_once(plane, publisher):
    publisher.replace({A.name: A, B.name: B})
    assert publisher.update({A.name: None}, now=10.0)
    assert plane.calls[-1] == ({wire(A): None}, 2, 7, False)


def test_a_name_lost_while_it_settles_was_never_there(plane, publisher):
    publisher.replace({})
    publisher.update({A.name: A}, now=10.0)
    assert not publisher.update({A.name: None}, now=11.0)
    assert not publisher.settled(now=20.0)
    assert len(plane.calls) == 1


def test_a_lost_name_that_comes_back_settles_again(plane, publisher):
    publisher.replace({A.name: A})
    publisher.update({A.name: None}, now=10.0)
    publisher.update({A.name: A}, now=11.0)
    assert plane.table == {}
    assert publisher.next_due() == 13.0


def test_a_change_while_settling_does_not_start_anew_and_the_newest_wins(plane, publisher):
    publisher.replace({})
    publisher.update({A.name: A}, now=10.0)
    publisher.update({A.name: replace(A, ttl=30)}, now=11.0)
    assert publisher.settled(now=12.0)
    assert plane.table[wire(A)].ttl == 30


def test_other_addresses_of_a_live_name_are_published_at_once(plane, publisher):
    publisher.replace({A.name: A})
    assert publisher.update({A.name: replace(A, v4=("10.96.9.10",))}, now=1.0)
    assert plane.table[wire(A)].v4 == (bytes((10, 96, 9, 10)),)


def test_a_change_that_no_answer_shows_is_not_published(plane, publisher):
    publisher.replace({A.name: A})
    assert not publisher.update({A.name: replace(A, routes=("default/other",))}, now=1.0)
    assert len(plane.calls) == 1


def test_without_settle_nothing_waits(plane):
    publisher = Publisher(plane, settle=0.0, serial=lambda: 7)
    publisher.replace({})
    assert publisher.update({A.name: A}, now=10.0)
    assert plane.table == {wire(A): addresses_of(A)}


def test_other_rules_publish_a_whole_table_but_do_not_hurry_what_settles(plane, publisher):
    publisher.replace({})
    publisher.update({A.name: A}, now=10.0)
    publisher.replace({A.name: A, B.name: B})
    assert plane.table == {wire(B): addresses_of(B)}
    publisher.settled(now=12.0)
    assert plane.table == {wire(A): addresses_of(A), wire(B): addresses_of(B)}


def test_addresses_are_packed():
    assert addresses_of(B).v4 == (b"\x0a\x60\x09\x09",)
    assert addresses_of(B).v6 == (b"\xfd" + bytes(14) + b"\x09",)


WORLDS = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2), max_size=4), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(WORLDS)
def test_in_the_end_the_table_equals_the_bindings(worlds):
    plane = Plane()
    publisher = Publisher(plane, settle=2.0, serial=lambda: 7)
    before = {}
    for now, world in enumerate(worlds):
        names_now = {f"{key}.ns.svc.cluster.local": 1 + ttl for key, ttl in world.items()}
        bound = {name: replace(A, name=name, ttl=ttl) for name, ttl in names_now.items()}
        if now == 0:
            publisher.replace(bound)
        else:
            publisher.update(difference(before, bound), float(now))
            publisher.settled(float(now))
        assert set(plane.table) <= {names.from_text(name) for name in bound}
        before = bound
    publisher.settled(len(worlds) + 2.0)
    assert plane.table == {names.from_text(name): addresses_of(one) for name, one in before.items()}


def test_a_saved_table_answers_until_the_first_one_is_there(plane, publisher):
    """What is in both is never away, what is gone goes, and what is new does not settle: it was bound before we looked."""
    publisher.restore({A.name: addresses_of(A)})
    assert plane.table == {wire(A): addresses_of(A)}
    publisher.replace({B.name: B})
    assert plane.table == {wire(B): addresses_of(B)}
    assert [full for *_, full in plane.calls] == [True, True]


def test_when_the_event_came_goes_with_the_delta_but_not_with_what_waited_on_purpose():
    plane = Plane()
    seen = []
    publish = plane.publish
    plane.publish = lambda *args, since=None, **more: (seen.append(since), publish(*args, **more))
    publisher = Publisher(plane, settle=2.0, serial=lambda: 7)
    publisher.replace({A.name: A})
    publisher.update({A.name: None}, now=10.0, since=9.5)
    publisher.update({B.name: B}, now=11.0, since=10.5)
    publisher.settled(13.0)
    assert seen == [None, 9.5, None]


def test_the_first_changes_are_not_held_up_and_a_flood_is():
    pace = Pace(per_second=10.0, burst=3)
    assert [pace.pause(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]
    assert pace.pause(100.1) == pytest.approx(0.1)
    assert pace.pause(200.0) == 0.0


@given(st.lists(st.floats(0, 0.05), min_size=50, max_size=200))
def test_a_flood_makes_no_more_tables_than_allowed(gaps):
    pace, now, times = Pace(per_second=10.0, burst=5), 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        now += pace.pause(now)
    for first in range(len(times) - 1):
        within = [at for at in times[first:] if at < times[first] + 1.0]
        assert len(within) <= 5 + 10 + 1
