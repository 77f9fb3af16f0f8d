"""Who may ask: the ACL, the verdicts it remembers, and the limits per client."""

from __future__ import annotations

import ipaddress

import pytest

from canal_dns.dns import access
from canal_dns.dns.access import Gate, Verdict
from canal_dns.settings import AccessSettings, RateLimitSettings


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def verdict(gate, address, *, stream=False, now=0.0):
    return gate.verdict(address, stream=stream, now=now)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", Verdict.PASS),
        ("10.244.1.7", Verdict.PASS),
        ("::1", Verdict.PASS),
        ("fd00::7", Verdict.PASS),
        ("fe80::1%eth0", Verdict.PASS),
        ("::ffff:10.0.0.1", Verdict.PASS),
        ("8.8.8.8", Verdict.REFUSE),
        ("::ffff:8.8.8.8", Verdict.REFUSE),
        ("2001:db8::1", Verdict.REFUSE),
        ("", Verdict.REFUSE),
        ("/run/socket", Verdict.REFUSE),
    ],
)
def test_by_default_private_networks_may_ask(address, expected):
    gate = Gate(AccessSettings())
    assert [verdict(gate, address), verdict(gate, address)] == [expected] * 2
    assert (address in gate.free) is (expected is Verdict.PASS)


def test_an_ipv4_mapped_address_is_judged_as_the_ipv4_address_in_it():
    gate = Gate(AccessSettings(allow=networks("::/0")))
    assert verdict(gate, "::ffff:10.0.0.1") is Verdict.REFUSE
    gate = Gate(AccessSettings(allow=networks("10.0.0.0/8")))
    assert verdict(gate, "::ffff:10.0.0.1") is Verdict.PASS


def test_a_peer_may_ask_and_has_no_limit():
    settings = AccessSettings(allow=networks("10.0.0.0/8"), peers=networks("192.0.2.1/32"), rate_limit=RateLimitSettings(1))
    gate = Gate(settings)
    assert [verdict(gate, "192.0.2.1") for _ in range(5)] == [Verdict.PASS] * 5
    assert gate.is_peer("192.0.2.1")
    assert not gate.is_peer("10.0.0.1")


@pytest.mark.parametrize(
    ("slip", "after"),
    [
        (0, [Verdict.DROP] * 4),
        (1, [Verdict.SLIP] * 4),
        (2, [Verdict.DROP, Verdict.SLIP, Verdict.DROP, Verdict.SLIP]),
    ],
)
def test_above_the_rate_every_nth_query_slips(slip, after):
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(per_second=3, slip=slip)))
    assert [verdict(gate, "10.0.0.1") for _ in range(7)] == [Verdict.PASS] * 3 + after
    assert "10.0.0.1" not in gate.free, "the packet loop must not pass it by"


def test_the_limit_is_per_prefix():
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(per_second=1)))
    assert verdict(gate, "10.0.0.1") is Verdict.PASS
    assert verdict(gate, "10.0.0.2") is Verdict.PASS
    assert verdict(gate, "fd00::1") is Verdict.PASS
    assert verdict(gate, "fd00::2") is Verdict.SLIP, "one /64"
    assert verdict(gate, "fd00:0:0:1::2") is Verdict.PASS


def test_streams_and_exempt_networks_have_no_limit():
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(per_second=1, exempt=networks("10.244.0.0/16"))))
    assert [verdict(gate, "10.244.0.1") for _ in range(5)] == [Verdict.PASS] * 5
    assert [verdict(gate, "10.0.0.1", stream=True) for _ in range(5)] == [Verdict.PASS] * 5
    assert "10.244.0.1" in gate.free


def test_error_replies_are_counted():
    gate = Gate(AccessSettings(error_replies_per_second=2))
    assert [gate.error_allowed(1.0) for _ in range(3)] == [True, True, False]
    assert gate.error_allowed(2.0)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(access, "REMEMBERED", 8)
    gate = Gate(AccessSettings())
    for number in range(100):
        assert verdict(gate, f"10.0.0.{number}") is Verdict.PASS
        assert len(gate.free) <= 8


def test_ports_that_are_never_answered():
    assert sorted(access.DROPPED_PORTS) == [0, 7, 13, 19, 37]
    assert access.LAST_DROPPED_PORT == 37
