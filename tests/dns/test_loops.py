"""Probes that come back, what they prove, and which names are kept from an upstream then. Time is a number here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.loops import (
    CLEAN,
    CONFIRM,
    MAX_ZONES,
    PERIOD,
    PROBE_LABEL,
    SOON,
    Loops,
    answer_to,
    came_back,
    mark_of,
    probe,
)
from canal_dns.dns.responder import Forward, Reply, Source, decide
from canal_dns.dns.upstreams import Upstream
from canal_dns.dns.wire import Query, Type, match_reply, parse_query, upstream_query
from canal_dns.settings import AccessSettings, Endpoint
from tests.dns.packets import bound_table, read

A, B = Endpoint("10.96.0.10", 53), Endpoint("10.96.0.54", 53)
DOMAIN = names.from_text("cluster.local")
NONCE = bytes(range(0xA0, 0xA8))
MARK = mark_of("10.96.0.10:53", True)
PROBE = probe(MARK, NONCE, DOMAIN)
GATE, TABLE = Gate(AccessSettings()), bound_table()


def arrived(query: Query, **change: object) -> bytes:
    """The packet that is sent for a query."""
    return upstream_query(query._replace(**change), 0x1A2B, do=True)


def decided(
    packet: bytes, *marks: bytes, exempt: bool = False, stream: bool = False, cache: AnswerCache | None = None
) -> object:
    gate = Gate(AccessSettings(), ["10.244.1.7"]) if exempt else GATE
    return decide(packet, "10.244.1.7", 4242, stream, TABLE, gate, 0.0, cache, frozenset(marks))


def marker(query: Query = PROBE, ident: int = 0x1A2B) -> bytes:
    """The reply of whoever knows the mark of this probe."""
    reply = decided(upstream_query(query, ident, do=True), query.name[16:32])
    assert isinstance(reply, Reply)
    return reply.wire


def test_a_probe_is_a_question_for_an_address_below_the_zone() -> None:
    assert names.to_text(PROBE.name) == f"canal-dns-loop-{MARK.decode()}-a0a1a2a3a4a5a6a7.cluster.local."
    assert (PROBE.name[0], PROBE.qtype) == (PROBE_LABEL, Type.A)
    assert parse_query(arrived(PROBE), stream=False).name == PROBE.name


@pytest.mark.parametrize(
    ("upstream", "always_do"), [("10.96.0.11:53", True), ("10.96.0.10:54", True), ("10.96.0.10:53", False), ("[::1]:53", True)]
)
def test_a_mark_says_whom_we_ask_and_how(upstream: str, always_do: bool) -> None:
    assert mark_of(upstream, always_do) != MARK
    assert len(mark_of(upstream, always_do)) == 16


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("exempt", [False, True], ids=["client", "exempt"])
def test_a_probe_with_our_mark_is_answered_at_once_whoever_sent_it(stream: bool, exempt: bool) -> None:
    reply = decided(arrived(PROBE), b"0123456789abcdef", MARK, exempt=exempt, stream=stream)
    assert isinstance(reply, Reply)
    assert reply.source is Source.LOCAL
    message = read(reply.wire)
    assert [rrset.to_text() for rrset in message.answer] == [f"{names.to_text(PROBE.name)} 0 IN A 240.160.161.162"]
    assert match_reply(PROBE, 0x1A2B, reply.wire) is None


@pytest.mark.parametrize(
    "packet",
    [
        arrived(PROBE, question=PROBE.name + b"\0\x1c\0\1"),
        arrived(PROBE, question=PROBE.name.replace(b"canal-dns-loop", b"canal-dns-l00p") + b"\0\1\0\1"),
        arrived(PROBE, question=PROBE.name.replace(b"a0a1", b"xyz!") + b"\0\1\0\1"),
        arrived(PROBE, question=b"\x30" + b"x" * 48 + DOMAIN + b"\0\1\0\1"),
        arrived(PROBE, question=b"\x2f" + PROBE.name[1:48] + DOMAIN + b"\0\1\0\1"),
        arrived(probe(mark_of("10.96.0.11:53", True), NONCE, DOMAIN)),
    ],
    ids=["other type", "other word", "no nonce", "other name", "shorter", "other mark"],
)
def test_everything_else_is_forwarded_like_any_name(packet: bytes) -> None:
    assert isinstance(decided(packet, MARK), Forward)


def test_without_marks_nothing_is_a_probe() -> None:
    assert isinstance(decided(arrived(PROBE)), Forward)


def test_case_is_the_askers() -> None:
    packet = arrived(PROBE, question=PROBE.name.upper() + b"\0\1\0\1")
    reply = decided(packet, MARK)
    assert isinstance(reply, Reply)
    assert reply.wire[12 : 12 + len(PROBE.question)] == packet[12 : 12 + len(PROBE.question)]


def test_the_answer_is_never_kept() -> None:
    cache = AnswerCache(10)
    cache.put(PROBE, marker(), TABLE, 0.0)
    assert not cache.entries


def changed(reply: bytes, *, flags: int | None = None, address: bytes | None = None) -> bytes:
    if flags is not None:
        reply = reply[:2] + flags.to_bytes(2) + reply[4:]
    if address is not None:
        assert reply.count(b"\xf0\xa0\xa1\xa2") == 1
        reply = reply.replace(b"\xf0\xa0\xa1\xa2", address)
    return reply


@pytest.mark.parametrize(
    ("reply", "back"),
    [
        (marker(), True),
        (marker(probe(MARK, bytes(8), DOMAIN)), False),
        (changed(marker(), address=b"\x0a\x60\x09\x09"), False),
        (marker()[:6] + b"\0\0\0\0\0\0" + PROBE.question, False),
        (marker()[:2] + b"\x81\x83\0\1\0\0\0\0\0\0" + PROBE.question, False),
        (marker()[:2] + b"\x81\x82\0\1\0\0\0\0\0\0" + PROBE.question, None),
        (marker()[:2] + b"\x81\x85" + bytes(8), None),
        (changed(marker(), flags=0x8380), None),
        (changed(marker(), flags=0x8182), None),
    ],
    ids=[
        "marker",
        "marker of another",
        "a wildcard",
        "no data",
        "nxdomain",
        "servfail",
        "bare refused",
        "truncated",
        "failure",
    ],
)
def test_what_a_reply_proves(reply: bytes, back: bool | None) -> None:
    assert came_back(PROBE, reply) is back


def test_answer_to_gives_counts_and_record() -> None:
    assert answer_to(PROBE, {MARK}) == bytes.fromhex("00010000 c00c 0001 0001 00000000 0004 f0a0a1a2")


class World:
    """One upstream, of which some zones lead back: the probes that are sent, and what is known in the end."""

    def __init__(self, *looping: str, unless: str = "", domain: str = "cluster.local") -> None:
        self.looping = list(looping)
        self.unless = unless
        self.silent = False
        self.fails = False
        self.now = 100.0
        self.upstream = Upstream(A)
        counter = itertools.count()
        self.loops = Loops(lambda n: next(counter).to_bytes(n))
        self.domain = domain
        self.loops.configure([self.upstream], names.from_text(domain), True, self.now)
        self.sent: list[tuple[float, str]] = []

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.loops.next_probe()) <= end:
            self.now = max(self.now, due)
            for upstream, query in self.loops.due(self.now):
                self.reply(upstream, query)
        self.now = end

    def reply(self, upstream: Upstream, query: Query) -> None:
        zone = names.to_text(query.name[1 + PROBE_LABEL :]).rstrip(".")
        self.sent.append((self.now, zone))
        reply: bytes | None = marker(query)
        if self.silent:
            reply = None
        elif self.fails:
            reply = query.id.to_bytes(2) + b"\x81\x82\0\1\0\0\0\0\0\0" + query.question
        elif not self.leads_back(zone):
            reply = query.id.to_bytes(2) + b"\x81\x83\0\1\0\0\0\0\0\0" + query.question
        self.loops.answered(upstream, query, reply, self.now)

    def leads_back(self, zone: str) -> bool:
        dotted = f".{zone}"
        if self.unless and dotted.endswith(f".{self.unless}"):
            return False
        return any(not one or dotted.endswith(f".{one}") for one in self.looping)

    def zones(self) -> list[str]:
        return [names.to_text(zone).rstrip(".") for zone in self.loops.zones(self.upstream)]

    def suspect(self, name: str) -> bool:
        return self.loops.suspect(self.upstream, names.from_text(name), self.now)

    def kept(self, *texts: str) -> list[bool]:
        back: Callable[[bytes], bool] = self.upstream.leads_back or (lambda name: False)
        return [back(names.from_text(text)) for text in texts]

    def probed(self) -> list[str]:
        """The zones since it was asked last."""
        found, self.sent = [zone for _, zone in self.sent], []
        return found


def test_an_upstream_that_does_not_lead_back_is_probed_at_once_and_every_so_often() -> None:
    world = World()
    world.wait(0)
    assert world.sent == [(100.0, "cluster.local")]
    world.wait(3 * PERIOD)
    assert [at for at, _ in world.sent] == [100.0 + n * PERIOD for n in range(4)]
    assert world.upstream.leads_back is None
    assert world.zones() == []


@pytest.mark.parametrize("how", ["silent", "fails"])
def test_what_proves_nothing_changes_nothing_and_is_tried_again_soon(how: str) -> None:
    world = World()
    setattr(world, how, True)
    world.wait(SOON)
    assert [at for at, _ in world.sent] == [100.0, 100.0 + SOON]
    assert world.upstream.leads_back is None


def test_the_widest_zone_is_found_with_few_probes() -> None:
    world = World("cluster.local")
    world.wait(0)
    assert world.probed() == ["cluster.local", "", "local"]
    assert world.zones() == ["cluster.local"]
    assert world.kept("a.b.cluster.local", "cluster.local", "local", "www.example.org") == [True, True, False, False]


def test_a_narrow_zone_is_found_by_suspicion_alone() -> None:
    world = World("shop.svc.cluster.local")
    world.wait(0)
    assert world.zones() == []
    assert world.suspect("cart.shop.svc.cluster.local")
    world.wait(0)
    assert world.probed() == ["cluster.local", "cart.shop.svc.cluster.local", "svc.cluster.local", "shop.svc.cluster.local"]
    assert world.kept("cart.shop.svc.cluster.local", "plain.default.svc.cluster.local") == [True, False]


def test_all_but_the_cluster_domain() -> None:
    world = World("", unless="cluster.local")
    world.wait(0)
    world.suspect("www.example.org")
    world.wait(0)
    assert world.zones() == [""]
    assert world.kept("www.example.org", "org", "a.b.svc.cluster.local", "cluster.local") == [True, True, False, False]


def test_several_zones() -> None:
    world = World("shop.svc.cluster.local", "pay.svc.cluster.local")
    for name in ("cart.shop.svc.cluster.local", "a.pay.svc.cluster.local"):
        world.wait(SOON)
        world.suspect(name)
    world.wait(0)
    assert world.zones() == ["pay.svc.cluster.local", "shop.svc.cluster.local"]


def test_more_zones_than_are_kept() -> None:
    zones = [f"ns{n}.svc.cluster.local" for n in range(MAX_ZONES + 2)]
    world = World(*zones)
    for zone in zones:
        world.wait(SOON)
        world.suspect(zone)
    world.wait(SOON)
    assert len(world.zones()) == MAX_ZONES
    world.sent.clear()
    world.wait(2 * PERIOD)
    assert len(world.sent) <= (MAX_ZONES + 1) * (2 * PERIOD / SOON + 1), "probes are bounded"


def test_a_zone_takes_in_those_below_it() -> None:
    world = World("shop.svc.cluster.local")
    world.wait(0)
    world.suspect("cart.shop.svc.cluster.local")
    world.wait(0)
    world.looping = ["cluster.local"]
    world.wait(PERIOD)
    assert world.zones() == ["cluster.local"]


def test_while_it_loops_it_is_probed_soon_and_used_again_after_some_that_do_not_come_back() -> None:
    world = World("cluster.local")
    world.wait(0)
    world.sent.clear()
    world.wait(2 * SOON)
    assert [at for at, _ in world.sent] == [100.0 + SOON, 100.0 + 2 * SOON]
    world.looping.clear()
    world.sent.clear()
    world.wait(SOON)
    assert world.zones() == ["cluster.local"]
    world.wait((CLEAN - 1) * CONFIRM)
    assert len(world.sent) == CLEAN
    assert (world.zones(), world.upstream.leads_back) == ([], None)


def test_one_that_comes_back_begins_the_count_anew() -> None:
    world = World("cluster.local")
    world.wait(0)
    world.looping.clear()
    world.wait(SOON)
    world.looping.append("cluster.local")
    world.wait(CONFIRM)
    world.looping.clear()
    world.sent.clear()
    world.wait(SOON + (CLEAN - 1) * CONFIRM)
    assert len(world.sent) == CLEAN
    assert world.zones() == []


@pytest.mark.parametrize("how", ["silent", "fails"])
def test_silence_and_failures_do_not_end_it(how: str) -> None:
    world = World("cluster.local")
    world.wait(0)
    setattr(world, how, True)
    world.wait(10 * SOON)
    assert world.zones() == ["cluster.local"]


def test_suspicions_are_followed_by_one_probe_each_five_seconds() -> None:
    world = World()
    world.wait(0)
    world.sent.clear()
    for step in range(40):
        world.suspect(f"n{step}.example.org")
        world.wait(0.25)
    assert [zone for _, zone in world.sent] == ["n0.example.org", "n20.example.org"]


def test_what_is_known_to_loop_is_not_suspected() -> None:
    world = World("cluster.local")
    assert world.suspect("cart.shop.svc.cluster.local")
    world.wait(0)
    assert not world.suspect("other.shop.svc.cluster.local")
    assert world.zones() == ["cluster.local"]


def test_a_suspicion_does_not_wait_for_a_probe_that_may_be_lost() -> None:
    world = World("cluster.local")
    [(upstream, lost)] = world.loops.due(world.now)
    world.suspect("cart.shop.svc.cluster.local")
    world.wait(0)
    assert world.zones() == ["cluster.local"]
    assert not world.loops.answered(upstream, lost, marker(lost), world.now)


def test_a_name_without_room_for_the_label_is_probed_in_the_cluster_domain() -> None:
    world = World()
    world.wait(0)
    long = ".".join(["x" * 60, "y" * 60, "z" * 60, "shop.svc.cluster.local"])
    world.suspect(long)
    world.wait(0)
    world.now += SOON
    fits = ".".join(["x" * 60, "y" * 60, "z" * 59, "cluster.local"])
    world.suspect(fits)
    world.wait(0)
    assert world.probed() == ["cluster.local", "cluster.local", fits]


def test_nobody_is_probed_who_is_down() -> None:
    world = World()
    world.upstream.up = False
    world.suspect("a.example.org")
    world.wait(2 * SOON)
    assert world.sent == []
    world.upstream.up = True
    world.wait(SOON)
    assert world.probed() == ["cluster.local"]


def test_silence_ends_the_search_and_what_is_proved_stays() -> None:
    world = World("cluster.local")
    ((upstream, query),) = world.loops.due(world.now)
    world.reply(upstream, query)
    assert world.loops.searching(upstream)
    world.silent = True
    world.wait(SOON - 1)
    assert not world.loops.searching(upstream)
    assert world.zones() == ["cluster.local"]


class TestConfigure:
    def test_who_stays_is_known_and_who_is_new_is_probed_at_once(self) -> None:
        world = World("cluster.local")
        world.wait(1)
        world.sent.clear()
        world.loops.configure([Upstream(B), world.upstream], DOMAIN, True, world.now)
        assert world.zones() == ["cluster.local"]
        assert world.loops.marks == {MARK, mark_of("10.96.0.54:53", True)}
        world.wait(0)
        assert world.probed()[0] == "cluster.local"

    @pytest.mark.parametrize(("domain", "always_do"), [("other.local", True), ("cluster.local", False)])
    def test_another_domain_or_another_way_of_asking_begins_anew(self, domain: str, always_do: bool) -> None:
        world = World("cluster.local")
        world.wait(1)
        world.sent.clear()
        world.loops.configure([world.upstream], names.from_text(domain), always_do, world.now)
        assert (world.zones(), world.upstream.leads_back) == ([], None)
        (probed,) = world.loops.due(world.now)
        assert names.to_text(probed[1].name).endswith(f".{domain}.")

    def test_what_comes_too_late_is_nobodys(self) -> None:
        world = World("cluster.local")
        ((upstream, query),) = world.loops.due(world.now)
        world.loops.configure([], DOMAIN, True, world.now)
        assert not world.loops.answered(upstream, query, marker(query), world.now)
        world.loops.configure([upstream], DOMAIN, True, world.now)
        assert not world.loops.answered(upstream, query, marker(query), world.now)
        assert upstream.leads_back is None

    def test_after_the_end_nobody_is_probed(self) -> None:
        world = World()
        world.loops.close()
        assert world.loops.next_probe() == float("inf")
        assert not world.suspect("a.example.org")


def below(*depths: int) -> Iterator[str]:
    for depth in depths:
        yield ".".join(f"l{n}" for n in range(depth)) + ".cluster.local"


@pytest.mark.parametrize("zone", ["", "local", "cluster.local", *below(1, 2, 7, 30)])
def test_any_depth_takes_few_probes(zone: str) -> None:
    """A PTR question of IPv6 has 34 labels."""
    world = World(zone)
    world.wait(0)
    world.suspect(f"a.b.{zone}".strip("."))
    world.wait(0)
    assert world.zones() == [zone]
    assert len(world.sent) <= 9
