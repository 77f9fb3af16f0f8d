"""Who may ask: the ACL, the verdicts it remembers, and the limits per client."""

from __future__ import annotations

import ipaddress

import pytest

from canal_dns.dns import access
from canal_dns.dns.access import Gate, Verdict
from canal_dns.settings import AccessSettings, RateLimitSettings


def networks(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def limited(per_second, slip=1, exempt=()):
    """A limit on everybody else."""
    return RateLimitSettings(per_second, slip, networks(*exempt))


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
    settings = AccessSettings(allow=networks("10.0.0.0/8"), peers=networks("192.0.2.1/32"), rate_limit=limited(1))
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
    gate = Gate(AccessSettings(rate_limit=limited(3, slip)))
    assert [verdict(gate, "10.0.0.1") for _ in range(7)] == [Verdict.PASS] * 3 + after
    assert "10.0.0.1" not in gate.free, "the packet loop must not pass it by"


def test_the_limit_is_per_prefix():
    gate = Gate(AccessSettings(rate_limit=limited(1)))
    assert verdict(gate, "10.0.0.1") is Verdict.PASS
    assert verdict(gate, "10.0.0.2") is Verdict.PASS
    assert verdict(gate, "fd00::1") is Verdict.PASS
    assert verdict(gate, "fd00::2") is Verdict.SLIP, "one /64"
    assert verdict(gate, "fd00:0:0:1::2") is Verdict.PASS
    assert verdict(gate, "::ffff:10.0.0.1") is Verdict.SLIP, "an IPv4-mapped address is that IPv4 address, not one /64"
    assert verdict(gate, "::ffff:10.0.0.3") is Verdict.PASS


def test_whoever_allows_public_networks_has_the_limit_and_the_others_have_none():
    """NSD's 200 a second, without a word about it."""
    gate = Gate(AccessSettings(allow=networks("0.0.0.0/0", "::/0")))
    for address in ("198.51.100.7", "2001:db8::7"):
        assert [verdict(gate, address) for _ in range(202)] == [Verdict.PASS] * 200 + [Verdict.SLIP] * 2
        assert gate.is_limited(address)
        assert address not in gate.free
    for address in ("127.0.0.1", "10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "fd00::1", "fe80::1"):
        assert verdict(gate, address) is Verdict.PASS
        assert not gate.is_limited(address)
        assert address in gate.free


def test_what_counts_as_one_client_of_streams():
    gate = Gate(AccessSettings(allow=networks("0.0.0.0/0", "::/0"), peers=networks("2001:db8:1::/48")))
    assert gate.group("2001:db8::1") == gate.group("2001:db8::2") != gate.group("2001:db8:0:1::1"), "limited: by prefix"
    assert gate.group("198.51.100.7") != gate.group("198.51.100.8")
    assert len({gate.group(address) for address in ("fd00::1", "fd00::2", "2001:db8:1::1", "2001:db8:1::2")}) == 4


def test_whoever_forges_many_prefixes_has_no_more_answers_for_it(monkeypatch):
    """As many prefixes as packets in a second, in the worst order: still no prefix gets more than its rate."""
    monkeypatch.setattr(access, "REMEMBERED", 50)
    gate = Gate(AccessSettings(allow=networks("0.0.0.0/0"), rate_limit=limited(10)))
    passed = dict.fromkeys(range(50), 0)
    for tick in range(50 * 40):
        prefix = tick % 50
        passed[prefix] += verdict(gate, f"198.51.100.{prefix}", now=tick / 4000) is Verdict.PASS
    assert set(passed.values()) == {14}, "10 at once and 10 a second for the half second that it takes"


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.1.0.0/16", ["10.1.0.0", "10.1.255.255", "10.1.2.3"], ["10.0.255.255", "10.2.0.0", "a01::", "::a01:0"]),
        ("192.0.2.1/32", ["192.0.2.1"], ["192.0.2.0", "192.0.2.2"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], ["::", "::1"]),
        (
            "2001:db8::/32",
            ["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"],
            ["2001:db7::", "2001:db9::", "32.1.13.1"],
        ),
    ],
)
def test_a_network_begins_and_ends_where_it_says(network, inside, outside):
    gate = Gate(AccessSettings(allow=networks("10.8.0.0/16", "10.9.0.0/16", "2001:db8:5::/48", network)))
    assert {verdict(gate, address) for address in inside} == {Verdict.PASS}
    assert {verdict(gate, address) for address in outside} == {Verdict.REFUSE}


def test_those_without_a_limit_share_what_is_remembered_of_them():
    gate = Gate(AccessSettings(rate_limit=limited(1, exempt=["10.0.0.0/8"])))
    for number in range(100):
        verdict(gate, f"10.0.0.{number}")
        verdict(gate, f"198.51.100.{number}")
    assert len(set(map(id, gate._clients.values()))) == 2


EXEMPT = frozenset({"10.244.1.7", "fd00::7", "::ffff:10.244.1.8"})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.244.1.7", True),
        ("::ffff:10.244.1.7", True),
        ("10.244.1.8", True),
        ("::ffff:10.244.1.8", True),
        ("fd00::7", True),
        ("fd00:0:0::7", True),
        ("fd00::7%eth0", True),
        ("10.244.1.9", False),
        ("::ffff:10.244.1.9", False),
        ("fd00::8", False),
        ("", False),
        ("/run/socket", False),
    ],
)
def test_exempt_clients_are_known_by_their_address_however_it_is_written(address, expected):
    gate = Gate(AccessSettings(), EXEMPT)
    assert gate.is_exempt(address) is expected
    assert not Gate(AccessSettings()).is_exempt(address)


def test_an_exempt_client_may_ask_as_others_but_the_packet_loop_never_answers_it():
    gate = Gate(AccessSettings(), EXEMPT)
    assert verdict(gate, "10.244.1.7") is verdict(gate, "10.244.1.9") is Verdict.PASS
    assert gate.free == {"10.244.1.9"}
    assert verdict(Gate(AccessSettings(allow=networks("10.0.0.0/8")), EXEMPT), "fd00::7") is Verdict.REFUSE


def test_who_is_exempt_changes_at_once_and_the_limits_go_on():
    gate = Gate(AccessSettings(rate_limit=limited(2, exempt=["10.244.1.0/30"])))
    assert [verdict(gate, address) for address in ("10.244.1.1", "10.244.1.2")] == [Verdict.PASS] * 2
    assert [verdict(gate, "10.244.1.9") for _ in range(2)] == [Verdict.PASS] * 2
    free = gate.free
    gate.exempt(frozenset({"10.244.1.1", "10.244.1.9", "nobody", ""}))
    # Who looks into the set remembers what was in it for as long as it is the same.
    assert free == {"10.244.1.1", "10.244.1.2"}
    assert gate.free is not free
    assert not gate.free
    assert [verdict(gate, address) for address in ("10.244.1.1", "10.244.1.2")] == [Verdict.PASS] * 2
    assert gate.free == {"10.244.1.2"}
    assert verdict(gate, "10.244.1.9") is not Verdict.PASS
    assert [gate.is_exempt(f"10.244.1.{number}") for number in (1, 2, 9)] == [True, False, True]
    free = gate.free
    gate.exempt(["10.244.1.9", "10.244.1.1"])
    assert gate.free is free
    assert free == {"10.244.1.2"}
    gate.exempt(())
    assert verdict(gate, "10.244.1.1") is Verdict.PASS
    assert gate.free == {"10.244.1.1"}


def test_a_named_peer_is_never_exempt_for_others_stand_behind_it():
    gate = Gate(AccessSettings(peers=networks("10.244.1.7/32")), EXEMPT)
    assert not gate.is_exempt("10.244.1.7")
    assert gate.is_exempt("10.244.1.8")


def test_a_gateway_pod_in_the_peers_network_is_exempt():
    """The network of CoreDNS's pods is that of all pods: what the manifests set."""
    gate = Gate(AccessSettings(peers=networks("10.244.0.0/16")), EXEMPT)
    assert gate.is_exempt("10.244.1.7")
    assert gate.is_peer("10.244.1.7")
    assert not gate.is_exempt("10.244.1.9")


def test_streams_and_exempt_networks_have_no_limit():
    gate = Gate(AccessSettings(rate_limit=limited(1, exempt=["10.244.0.0/16"])))
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
