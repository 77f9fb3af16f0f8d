"""Hysteresis of a gateway's readiness, with a clock that is only a number."""

from __future__ import annotations

from canal_dns.mesh.readiness import Readiness
from canal_dns.mesh.result import GatewayState

GATEWAY = "istio-system/gw"


def state(ready: bool, name: str = GATEWAY) -> GatewayState:
    return GatewayState(name, ("10.0.0.1",), (), ready, (), ())


def test_what_is_seen_first_counts_at_once() -> None:
    assert Readiness(3).observe([state(False)], 0) == {GATEWAY}
    assert Readiness(3).observe([state(True)], 0) == frozenset()


def test_unready_counts_after_the_hold_without_a_break() -> None:
    readiness = Readiness(3)
    readiness.observe([state(True)], 0)
    assert readiness.next_look() is None
    assert readiness.observe([state(False)], 10) == frozenset()
    assert readiness.next_look() == 13
    assert readiness.observe([state(True)], 12) == frozenset()
    assert readiness.next_look() is None
    assert readiness.observe([state(False)], 12.5) == frozenset()
    assert readiness.observe([state(False)], 15.4) == frozenset()
    assert readiness.observe([state(False)], 15.5) == {GATEWAY}
    assert readiness.next_look() is None


def test_ready_again_takes_as_long() -> None:
    readiness = Readiness(3)
    readiness.observe([state(False)], 0)
    assert readiness.observe([state(True)], 1) == {GATEWAY}
    assert readiness.observe([state(True)], 4) == frozenset()
    assert readiness.unready == frozenset()


def test_without_a_hold_it_follows_at_once() -> None:
    readiness = Readiness(0)
    readiness.observe([state(True)], 0)
    assert readiness.observe([state(False)], 0) == {GATEWAY}


def test_a_gateway_that_is_configured_no_more_is_forgotten() -> None:
    readiness = Readiness(3)
    readiness.observe([state(False), state(True, "x/y")], 0)
    assert readiness.observe([state(True, "x/y")], 1) == frozenset()
    assert readiness.observe([state(False), state(True, "x/y")], 2) == {GATEWAY}
