"""Queries on their way, in virtual time: what a reply means, what silence leads to, and that everybody gets one outcome."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from canal_dns.dns import names
from canal_dns.dns.flights import (
    CHANNEL_LIFE,
    CHANNEL_QUERIES,
    Channel,
    Done,
    Flight,
    Ignored,
    Overdue,
    Rejection,
    Send,
    Suspect,
)
from canal_dns.dns.inflight import EFFORT, FEW, FIRST_TRY, JOINABLE, JOSTLE, LAST_TRY, Inflight
from canal_dns.dns.upstreams import Upstream, Upstreams
from canal_dns.dns.wire import Ede, Mismatch, Query, Rcode, Type, parse_query
from canal_dns.settings import Endpoint

BUDGET = 1.5
SECOND = BUDGET * FIRST_TRY
THIRD = BUDGET * EFFORT
END = BUDGET * LAST_TRY


def question(text: str = "a1.up.test", qtype: int = Type.A, *, ident: int = 1, flags: int = 0x0100, do: bool = False) -> Query:
    name = names.from_text(text)
    wire = name + qtype.to_bytes(2) + b"\0\1"
    packet = ident.to_bytes(2) + flags.to_bytes(2) + b"\0\1\0\0\0\0\0\0" + wire
    if do:
        packet = packet[:11] + b"\1" + wire + bytes.fromhex("00 0029 04d0 00 00 8000 0000")
    query = parse_query(packet, stream=False)
    assert isinstance(query, Query)
    return query


def reply(query: Query, ident: int, rcode: int = 0, *, tc: bool = False, tail: bytes = b"") -> bytes:
    flags = 0x8180 | (0x0200 if tc else 0) | rcode
    return ident.to_bytes(2) + flags.to_bytes(2) + b"\0\1\0\0\0\0\0\0" + query.question + tail


class World:
    """Inflight with a shell that writes down what it is told. Packets are sent in no time and lost unless a test replies."""

    def __init__(self, count: int = 1, **limits: int) -> None:
        self.upstreams = Upstreams([Endpoint(f"10.0.0.{n + 1}", 53) for n in range(count)])
        self.inflight = Inflight(self.upstreams, os.urandom, lambda client: client == "peer")
        always_do = bool(limits.pop("always_do", True))
        defaults = {"max_waiting": 10_000, "max_per_client": 1000}
        self.inflight.configure(budget=BUDGET, always_do=always_do, **{**defaults, **limits})
        self.now = 100.0
        self.sent: list[tuple[Flight, Channel, int]] = []
        self.probes: list[tuple[Flight, Channel, int]] = []
        self.done: list[Flight] = []
        self.overdue: list[Upstream] = []
        self.deliver: Callable[[Flight], None] = lambda flight: None

    def ask(
        self, query: Query | None = None, client: str = "client", reply_to: Callable[[bytes | None], None] = print
    ) -> object:
        result = self.inflight.submit(query or question(), client, reply_to, self.now)
        if isinstance(result, Flight):
            self.send(result, result.upstream, stream=False)
        return result

    def flight(self, query: Query | None = None) -> Flight:
        flight = self.ask(query)
        assert isinstance(flight, Flight)
        return flight

    def send(self, flight: Flight, upstream: Upstream, *, stream: bool) -> None:
        channel = Channel(upstream, self.now, stream=stream)
        record = (flight, channel, self.inflight.assign(flight, channel))
        (self.probes if flight.probe else self.sent).append(record)

    def obey(self) -> None:
        while self.inflight.orders:
            match self.inflight.orders.pop(0):
                case Send(flight, upstream, stream):
                    self.send(flight, upstream, stream=stream)
                case Overdue(upstream):
                    self.overdue.append(upstream)
                case Done(flight):
                    assert flight.done
                    self.done.append(flight)
                    self.deliver(flight)

    def reply(self, at: int = -1, rcode: int = 0, *, tc: bool = False, probe: bool = False) -> object:
        flight, channel, ident = (self.probes if probe else self.sent)[at]
        return self.packet(channel, reply(flight.query, ident, rcode, tc=tc))

    def packet(self, channel: Channel, packet: bytes) -> object:
        result = self.inflight.received(channel, packet)
        self.obey()
        return result

    def lose(self, at: int = -1, *, connected: bool = False) -> None:
        channel = self.sent[at][1]
        channel.connected = connected
        self.inflight.lost(channel, self.now)
        self.obey()

    def wait(self, seconds: float) -> None:
        """Let time pass, waking up as often as the timer says."""
        end = self.now + seconds
        while (deadline := self.inflight.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.inflight.step(self.now)
            self.obey()
        self.now = end

    def to(self) -> list[str]:
        """Where the question went, in order: upstreams by number, `t` for TCP."""
        order = list(self.upstreams)
        return [f"{order.index(channel.upstream)}{'t' * channel.stream}" for _, channel, _ in self.sent]

    def silence_all(self) -> None:
        """Bring all upstreams down, and let what was on its way end."""
        for upstream in self.upstreams:
            self.upstreams.failed(upstream, self.now)
        while self.upstreams.first is not None:
            self.wait(0.1)
        self.wait(2.0)


class TestReply:
    def test_the_reply_ends_the_wait(self) -> None:
        world = World()
        flight = world.flight()
        assert world.inflight.next_deadline() == world.now + SECOND
        assert world.reply() is flight
        assert flight.done
        assert flight.reply == reply(flight.query, world.sent[0][2])
        assert (len(world.inflight), world.inflight.waiting, world.inflight.next_deadline()) == (0, 0, inf)

    def test_a_duplicate_is_unexpected_and_no_reason_for_suspicion(self) -> None:
        world = World()
        flight = world.flight()
        channel, ident = world.sent[0][1:]
        world.reply()
        world.inflight.assign(other := world.flight(question("b.up.test")), channel)
        for _ in range(5):
            assert world.packet(channel, reply(flight.query, ident)) is Ignored.UNEXPECTED
        assert not channel.retired
        assert not other.done

    def test_an_id_is_used_once_in_a_channels_life(self) -> None:
        world = World()
        channel = Channel(next(iter(world.upstreams)), 0.0, stream=False)
        drawn = []
        for n in range(CHANNEL_QUERIES):
            flight = world.inflight.submit(question(f"n{n}.up.test"), "peer", print, 0.0)
            assert isinstance(flight, Flight)
            drawn.append(world.inflight.assign(flight, channel))
            world.inflight.received(channel, reply(flight.query, drawn[-1]))
        assert len(set(drawn)) == CHANNEL_QUERIES

    def test_a_used_id_is_drawn_again_until_it_is_new(self) -> None:
        upstreams = Upstreams([Endpoint("10.0.0.1", 53)])
        inflight = Inflight(upstreams, lambda n: bytes([2, 2] + [1] * (n - 2)))
        channel = Channel(next(iter(upstreams)), 0.0, stream=False)
        first, second = (inflight.submit(question(name), "c", print, 0.0) for name in ("a", "b"))
        assert isinstance(first, Flight)
        assert isinstance(second, Flight)
        assert inflight.assign(first, channel) == 0x0101
        assert inflight.assign(second, channel) == 0x0202

    def test_the_reply_to_the_first_try_is_taken_after_the_second_was_sent(self) -> None:
        world = World(2)
        flight = world.flight()
        world.wait(SECOND)
        assert world.to() == ["0", "1"]
        assert world.reply(0) is flight
        assert flight.done
        assert world.reply(1) is Ignored.UNEXPECTED

    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (lambda query, ident: b"", Mismatch.SHORT),
            (lambda query, ident: reply(query, ident)[:11], Mismatch.SHORT),
            (lambda query, ident: reply(query, ident ^ 0xFFFF), Mismatch.ID),
            (lambda query, ident: reply(query, ident)[:2] + b"\1" + reply(query, ident)[3:], Mismatch.NOT_A_REPLY),
            (lambda query, ident: reply(question("other.up.test"), ident), Mismatch.QUESTION),
            (lambda query, ident: reply(query, ident, tail=b"\0"), Mismatch.MALFORMED),
        ],
        ids=["empty", "short", "id", "echo", "question", "trailing"],
    )
    def test_what_is_not_the_reply_never_ends_the_wait(self, make: Callable[[Query, int], bytes], expected: Mismatch) -> None:
        world = World()
        flight = world.flight()
        channel, ident = world.sent[0][1:]
        assert world.packet(channel, make(flight.query, ident)) is expected
        assert not flight.done
        assert channel.retired
        assert world.reply() is flight
        assert flight.done

    def test_a_late_reply_is_given_to_nobody(self) -> None:
        world = World()
        flight = world.flight()
        world.wait(BUDGET)
        assert world.done == [flight]
        again = world.flight()
        assert world.reply(0) is Ignored.UNEXPECTED
        assert not again.done


class TestMismatches:
    def test_after_three_the_question_goes_over_tcp_and_who_guesses_ids_is_not_listened_to(self) -> None:
        """A forger who knows the port would have the ID after some 65,536 packets, and a second is long enough for those."""
        world = World()
        flight = world.flight()
        channel, ident = world.sent[0][1:]
        for n in range(1, 3):
            world.packet(channel, reply(flight.query, ident ^ n))
        assert world.to() == ["0"]
        world.packet(channel, reply(flight.query, ident ^ 3))
        assert world.to() == ["0", "0t"]
        assert world.reply(0) is Ignored.UNEXPECTED
        assert not flight.done
        assert world.reply(1) is flight
        assert flight.done

    def test_two_wrong_ids_leave_the_true_reply_its_chance(self) -> None:
        world = World()
        flight = world.flight()
        for n in (1, 2):
            world.packet(world.sent[0][1], reply(flight.query, world.sent[0][2] ^ n))
        assert world.reply(0) is flight

    def test_what_is_malformed_does_not_end_the_wait_however_often(self) -> None:
        """Who has the ID need not guess: that is an upstream, or a box before it, that is broken."""
        world = World()
        flight = world.flight()
        channel, ident = world.sent[0][1:]
        for _ in range(20):
            world.packet(channel, reply(flight.query, ident, tail=b"\0"))
        assert world.to() == ["0", "0t"]
        assert world.reply(0) is flight

    def test_a_probe_is_listened_to_whatever_comes(self) -> None:
        """It only tells that somebody is there: a forger must not be able to keep an upstream down."""
        world = World()
        world.flight()
        world.wait(BUDGET)
        while not world.probes:
            world.wait(1.0)
        flight, channel, ident = world.probes[-1]
        for n in range(1, 20):
            world.packet(channel, reply(flight.query, ident ^ n))
        assert channel.flights[ident].probe

    def test_the_reply_over_tcp_counts_too(self) -> None:
        world = World()
        flight = world.flight()
        for _ in range(3):
            world.packet(world.sent[0][1], b"")
        assert world.reply(1) is flight
        assert flight.done

    def test_a_packet_without_a_known_id_may_have_been_meant_for_any_who_waits_there(self) -> None:
        world = World()
        world.flight()
        channel = world.sent[0][1]
        world.inflight.assign(world.flight(question("b.up.test")), channel)
        for _ in range(3):
            world.packet(channel, b"")
        assert world.to() == ["0", "0", "0t", "0t"]

    def test_one_is_enough_for_tcp_when_the_try_is_overdue(self) -> None:
        world = World(2)
        flight = world.flight()
        world.packet(world.sent[0][1], b"")
        world.wait(SECOND)
        assert world.to() == ["0", "0t", "1"]
        world.wait(BUDGET)
        assert world.done == [flight]

    def test_where_tcp_is_impossible_the_wait_goes_on(self) -> None:
        world = World()
        flight = world.flight()
        for _ in range(3):
            world.packet(world.sent[0][1], b"")
        world.lose(1, connected=False)
        assert not flight.done
        world.wait(SECOND)
        assert world.to() == ["0", "0t", "0"]
        assert world.reply(0) is flight


class TestTruncated:
    def test_the_same_upstream_is_asked_over_tcp(self) -> None:
        world = World(2)
        flight = world.flight()
        assert world.reply(tc=True) is flight
        assert not flight.done
        assert world.to() == ["0", "0t"]
        assert world.reply() is flight
        assert flight.done
        assert world.inflight.next_deadline() == inf

    def test_what_tcp_says_is_final_even_if_truncated(self) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.reply(tc=True)
        assert flight.done

    def test_without_anybody_else_tcp_may_take_its_time(self) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.wait(END - 0.01)
        assert world.to() == ["0", "0t"]
        assert world.overdue == []
        world.wait(0.01)
        assert world.done == [flight]
        assert flight.reply == flight.truncated
        assert flight.reply is not None
        assert world.sent[1][1].retired

    def test_a_refused_connection_leaves_the_truncated_reply(self) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.lose(1, connected=False)
        assert world.done == [flight]
        assert flight.reply == flight.truncated

    def test_a_broken_connection_is_tried_anew_once(self) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.lose(1, connected=True)
        assert world.to() == ["0", "0t", "0t"]
        assert not flight.done
        world.lose(2, connected=True)
        assert world.to() == ["0", "0t", "0t"]
        assert world.done == [flight]

    @pytest.mark.parametrize("connected", [False, True])
    def test_the_other_upstream_is_asked_over_tcp_where_the_first_ones_is_impossible(self, connected: bool) -> None:
        world = World(2)
        flight = world.flight()
        world.reply(tc=True)
        world.lose(connected=connected)
        if connected:
            world.lose(connected=connected)
        assert world.to() == (["0", "0t", "0t", "1t"] if connected else ["0", "0t", "1t"])
        assert world.done == []
        assert world.reply() is flight
        assert flight.done
        assert flight.reply == reply(flight.query, world.sent[-1][2])

    def test_the_other_upstream_is_asked_over_tcp_after_silence_and_the_first_may_still_answer(self) -> None:
        for answered in (1, 2):
            world = World(2)
            flight = world.flight()
            world.reply(tc=True)
            world.wait(SECOND)
            assert world.to() == ["0", "0t", "1t"]
            assert world.overdue == [next(iter(world.upstreams))]
            assert world.reply(answered) is flight
            assert flight.done
            assert flight.reply == reply(flight.query, world.sent[answered][2])

    def test_a_failure_of_the_other_one_does_not_end_the_wait_for_the_first(self) -> None:
        world = World(2)
        flight = world.flight()
        world.reply(tc=True)
        world.wait(SECOND)
        world.reply(2, Rcode.SERVFAIL)
        assert not flight.done
        world.reply(1)
        assert flight.reply == reply(flight.query, world.sent[1][2])

    def test_a_failure_over_tcp_is_bettered_over_tcp(self) -> None:
        world = World(2)
        flight = world.flight()
        world.reply(tc=True)
        world.reply(rcode=Rcode.SERVFAIL)
        assert world.to() == ["0", "0t", "1t"]
        world.reply()
        assert flight.reply == reply(flight.query, world.sent[2][2])

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_each_upstream_is_asked_over_tcp_once(self, count: int) -> None:
        world = World(count)
        flight = world.flight()
        world.reply(tc=True)
        for at in range(1, count + 1):
            world.lose(at)
        assert world.to() == ["0", *(f"{n}t" for n in range(count))]
        assert world.done == [flight]
        assert flight.reply == flight.truncated

    @pytest.mark.parametrize(("connected", "fails"), [(False, 0), (True, 1)])
    def test_a_stream_that_never_stood_is_only_a_hint(self, connected: bool, fails: int) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.sent[1][1].connected = connected
        world.now += END
        world.inflight.step(world.now)
        assert (flight.upstream.failing, flight.upstream.fails) == (True, fails)

    def test_a_refused_connection_is_only_a_hint(self) -> None:
        world = World()
        flight = world.flight()
        world.reply(tc=True)
        world.lose()
        assert (flight.upstream.failing, flight.upstream.fails) == (True, 0)

    def test_while_tcp_is_tried_already_it_is_not_tried_twice(self) -> None:
        world = World()
        flight = world.flight()
        for _ in range(3):
            world.packet(world.sent[0][1], b"")
        world.reply(0, tc=True)
        assert world.to() == ["0", "0t"]
        assert not flight.done

    def test_after_tcp_proved_impossible_it_is_the_reply(self) -> None:
        world = World()
        flight = world.flight()
        for _ in range(3):
            world.packet(world.sent[0][1], b"")
        world.lose(1, connected=False)
        world.reply(0, tc=True)
        assert flight.done
        assert flight.reply == flight.truncated


class TestFailureReplies:
    @pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTIMP, Rcode.FORMERR])
    def test_relayed_at_once_by_a_single_upstream(self, rcode: Rcode) -> None:
        world = World()
        flight = world.flight()
        world.reply(rcode=rcode)
        assert flight.done
        assert world.to() == ["0"]

    @pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTIMP, Rcode.FORMERR])
    def test_the_other_upstream_may_know_better(self, rcode: Rcode) -> None:
        world = World(2)
        flight = world.flight()
        assert world.reply(rcode=rcode) is flight
        assert not flight.done
        world.reply()
        assert flight.reply == reply(flight.query, world.sent[1][2])

    def test_one_extra_query_then_the_last_result(self) -> None:
        world = World(4)
        flight = world.flight()
        world.reply(rcode=Rcode.SERVFAIL)
        world.reply(rcode=Rcode.REFUSED)
        assert world.to() == ["0", "1"]
        assert flight.reply == reply(flight.query, world.sent[1][2], Rcode.REFUSED)

    def test_the_first_result_if_the_other_one_is_silent(self) -> None:
        world = World(2)
        flight = world.flight()
        world.reply(rcode=Rcode.SERVFAIL)
        world.wait(SECOND)
        assert world.done == [flight]
        assert flight.reply == reply(flight.query, world.sent[0][2], Rcode.SERVFAIL)
        assert world.overdue == [list(world.upstreams)[1]]

    @pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
    def test_anything_else_is_an_answer(self, rcode: Rcode) -> None:
        world = World(2)
        flight = world.flight()
        world.reply(rcode=rcode)
        assert flight.done

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_packets_for_one_query_are_bounded_when_every_reply_is_a_failure(self, count: int) -> None:
        world = World(count)
        world.flight()
        answered = 0
        while answered < len(world.sent):
            world.reply(answered, Rcode.FORMERR)
            answered += 1
        world.wait(2 * BUDGET)
        assert len(world.sent) == min(count, 2)


class TestSilence:
    def test_two_tries_and_one_over_tcp_then_nothing_more_to_wait_for(self) -> None:
        world = World()
        flight = world.flight()
        world.wait(SECOND - 0.01)
        assert world.to() == ["0"]
        world.wait(0.01)
        assert world.to() == ["0", "0"]
        assert world.sent[0][1].retired
        assert world.sent[0][1] is not world.sent[1][1]
        world.wait(THIRD - SECOND)
        assert world.to() == ["0", "0", "0t"]
        world.wait(END - THIRD)
        assert world.done == [flight]
        assert (flight.reply, flight.ede) == (None, Ede.NO_REACHABLE_AUTHORITY)
        assert all(channel.waiting == 0 for _, channel, _ in world.sent)
        assert world.overdue == [flight.upstream] * 3

    def test_the_second_try_goes_to_the_other_upstream(self) -> None:
        world = World(3)
        world.flight()
        world.wait(SECOND)
        assert world.to() == ["0", "1"]

    @pytest.mark.parametrize(
        ("count", "asked"), [(2, ["0", "1", "0", "1", "0t"]), (3, ["0", "1", "2", "0", "0t"]), (4, ["0", "1", "2", "3", "0t"])]
    )
    def test_u22_the_last_effort_is_everything_at_once(self, count: int, asked: list[str]) -> None:
        world = World(count)
        flight = world.flight()
        world.wait(THIRD)
        assert world.to() == asked
        assert world.reply(3) is flight and flight.done

    def test_u22_and_tcp_may_carry_what_udp_does_not(self) -> None:
        world = World()
        flight = world.flight()
        world.wait(THIRD)
        assert world.reply(2) is flight and flight.done

    def test_no_effort_is_made_for_what_is_answered(self) -> None:
        world = World(2)
        world.flight()
        world.wait(SECOND)
        world.reply(1)
        world.wait(BUDGET)
        assert world.to() == ["0", "1"]

    def test_no_effort_is_made_for_what_may_have_come_back(self) -> None:
        world = World(2)
        world.flight()
        world.ask()
        world.wait(BUDGET)
        assert world.to() == ["0", "1"]

    def test_no_effort_is_made_for_many_since_then_it_is_not_the_network(self) -> None:
        world = World(2)
        for number in range(FEW + 1):
            world.flight(question(f"n{number}"))
        world.wait(BUDGET)
        assert len(world.sent) == 2 * (FEW + 1)

    def test_whoever_is_down_is_left_in_peace(self) -> None:
        world = World(2)
        world.silence_all()
        first, second = world.upstreams
        world.upstreams.answered(first)
        before = len(world.sent)
        world.flight()
        world.wait(THIRD)
        assert not second.up
        assert "1" not in world.to()[before:] and world.to()[-1] == "0t"

    def test_after_a_long_pause_the_outcome_is_not_delayed(self) -> None:
        world = World()
        flight = world.flight()
        world.now += 10
        world.inflight.step(world.now)
        assert flight.done

    def test_a_longer_budget_holds_for_what_is_on_its_way(self) -> None:
        world = World()
        flight = world.flight()
        world.inflight.configure(budget=3.0, always_do=True, max_waiting=10, max_per_client=10)
        world.wait(BUDGET)
        assert not flight.done
        world.wait(BUDGET)
        assert flight.done


class TestRefusedByIcmp:
    def test_somebody_else_is_asked_at_once_and_the_first_one_may_still_answer(self) -> None:
        world = World(2)
        flight = world.flight()
        world.inflight.refused(world.sent[0][1], world.now)
        world.obey()
        assert world.to() == ["0", "1"]
        assert world.reply(0) is flight
        assert flight.done

    def test_without_anybody_else_it_is_only_a_hint(self) -> None:
        world = World()
        flight = world.flight()
        for _ in range(10):
            world.inflight.refused(world.sent[0][1], world.now)
        world.obey()
        assert world.to() == ["0"]
        assert flight.upstream.up
        assert flight.upstream.fails == 0
        world.wait(SECOND)
        assert world.to() == ["0", "0"]
        world.wait(BUDGET)
        assert world.done == [flight]
        assert flight.ede is Ede.NETWORK_ERROR

    def test_one_extra_query_for_any_number_of_reports(self) -> None:
        world = World(4)
        world.flight()
        for _ in range(10):
            world.inflight.refused(world.sent[0][1], world.now)
            world.obey()
        world.wait(SECOND)
        assert world.to() == ["0", "1", "0"]
        world.wait(BUDGET)
        assert world.to() == ["0", "1", "0", "2", "0t"]


class TestOneFlightPerQuestion:
    def test_all_waiters_get_the_reply(self) -> None:
        world = World()
        flight = world.flight(question("SLOW.up.test", ident=1))
        for ident in range(2, 101):
            assert world.ask(question("slow.UP.test", ident=ident), client=f"c{ident}") is None
        assert len(world.sent) == 1
        assert len(world.inflight) == 1
        assert world.inflight.waiting == 100
        world.reply()
        assert [waiter[0].id for waiter in flight.waiters] == list(range(1, 101))
        assert world.inflight.waiting == 0

    @pytest.mark.parametrize(
        "other",
        [
            question("b.up.test"),
            question(qtype=Type.AAAA),
            question(flags=0x0110),
            question(flags=0x0000),
        ],
        ids=["name", "type", "cd", "rd"],
    )
    def test_other_questions_fly_alone(self, other: Query) -> None:
        world = World()
        world.flight()
        assert isinstance(world.ask(other), Flight)

    def test_type_octets_are_not_folded(self) -> None:
        world = World()
        world.flight(question(qtype=0x41))
        assert isinstance(world.ask(question(qtype=0x61)), Flight)

    def test_do_splits_only_if_it_goes_upstream(self) -> None:
        for always_do, expected in ((True, 1), (False, 2)):
            world = World(always_do=always_do)
            assert world.flight(question()).do is always_do
            world.ask(question(do=True))
            assert len(world.inflight) == expected

    def test_who_comes_after_the_first_try_joins_as_well(self) -> None:
        world = World()
        world.flight()
        world.wait(SECOND)
        assert world.ask() is None
        assert world.to() == ["0", "0"]


class TestSuccessor:
    """Who asks when the flight's time is nearly over does not inherit its failure."""

    def test_who_comes_near_the_end_gets_a_flight_of_his_own(self) -> None:
        world = World()
        first = world.flight()
        world.wait(BUDGET * JOINABLE - 0.01)
        assert world.ask() is None
        world.wait(0.01)
        second = world.flight()
        assert world.ask() is None
        world.wait(BUDGET - BUDGET * JOINABLE)
        assert world.done == [first]
        assert first.reply is None
        assert world.reply(2) is second
        assert second.done
        assert (len(world.inflight), world.inflight.waiting) == (0, 0)

    def test_the_first_reply_is_the_first_ones(self) -> None:
        world = World()
        first = world.flight()
        world.wait(BUDGET * JOINABLE)
        second = world.flight()
        assert world.reply(0) is first
        assert not second.done
        assert world.reply() is second
        assert len(world.inflight) == 0

    @pytest.mark.parametrize(
        ("rcode", "tc", "shared"), [(0, False, True), (3, False, True), (2, False, False), (0, True, False)]
    )
    def test_the_answer_to_the_second_is_the_firsts_too(self, rcode: int, tc: bool, shared: bool) -> None:
        world = World()
        first = world.flight()
        world.wait(BUDGET * JOINABLE)
        second = world.flight()
        world.reply(rcode=rcode, tc=tc)
        if tc:
            world.reply(tc=True)
        assert second.done
        assert first.done is shared
        assert world.done == [first] * shared
        if shared:
            assert first.reply == second.reply

    def test_a_successor_is_not_succeeded(self) -> None:
        world = World()
        world.flight()
        world.wait(BUDGET * JOINABLE)
        second = world.flight()
        world.wait(BUDGET * JOINABLE)
        world.upstreams.answered(second.upstream)
        assert world.ask() is None
        world.wait(BUDGET - BUDGET * JOINABLE)
        assert world.done[-1] is second
        world.upstreams.answered(second.upstream)
        assert isinstance(world.ask(), Flight)

    @pytest.mark.parametrize("budget", [BUDGET, 2 * BUDGET])
    def test_each_gets_its_outcome_after_a_pause_or_with_another_budget(self, budget: float) -> None:
        world = World()
        first = world.flight()
        world.wait(BUDGET * JOINABLE)
        second = world.flight()
        world.inflight.configure(budget=budget, always_do=True, max_waiting=10, max_per_client=10)
        world.now += budget * FIRST_TRY + 0.01
        world.inflight.step(world.now)
        world.obey()
        assert world.done == [first]
        world.wait(budget)
        assert world.done == [first, second]
        assert (len(world.inflight), world.inflight.waiting) == (0, 0)


class TestLimits:
    def test_waiting_queries_in_all(self) -> None:
        world = World(max_waiting=2)
        world.flight()
        world.ask()
        assert world.ask(question("b.up.test")) is Rejection.OUTSTANDING
        assert world.ask() is Rejection.OUTSTANDING
        world.reply()
        assert isinstance(world.ask(), Flight)

    def test_when_too_many_wait_the_oldest_question_makes_room(self) -> None:
        """A flood of names that nobody answers: what is asked now still has its time (U3, A1)."""
        world = World(max_waiting=3)
        oldest = world.flight(question("a"))
        world.ask(question("a"))
        world.wait(JOSTLE / 2)
        younger = world.flight(question("b"))
        world.wait(JOSTLE / 2 - 0.001)
        assert world.ask(question("c")) is Rejection.OUTSTANDING, "none is old enough"
        world.wait(0.002)
        assert isinstance(world.ask(question("c")), Flight)
        assert world.inflight.orders == [Done(oldest, Rejection.DISPLACED)]
        assert oldest.done and oldest.reply is None and len(oldest.waiters) == 2
        assert (world.inflight.waiting, len(world.inflight)) == (2, 2)
        world.obey()
        assert isinstance(world.ask(question("d")), Flight), "two places were free"
        assert world.ask(question("e")) is Rejection.OUTSTANDING
        world.wait(BUDGET)
        assert younger in world.done and (world.inflight.waiting, world.inflight._clients) == (0, {})

    def test_those_that_had_their_second_try_go_first(self) -> None:
        world = World(max_waiting=2)
        late = world.flight(question("a"))
        world.wait(SECOND)
        fresh = world.flight(question("b"))
        world.wait(JOSTLE)
        assert isinstance(world.ask(question("c")), Flight)
        assert late.done and not fresh.done

    def test_who_asks_too_much_displaces_nobody(self) -> None:
        world = World(max_waiting=3, max_per_client=2)
        for name in "abc":
            world.ask(question(name), "other" if name == "a" else "greedy")
        world.wait(JOSTLE)
        assert world.ask(question("d"), "greedy") is Rejection.CLIENT
        assert world.inflight.waiting == 3 and not world.inflight.orders

    def test_an_upstream_whose_questions_are_displaced_has_to_prove_itself(self) -> None:
        """Without it a flood would hide that it is silent: nothing waits for long enough to be overdue."""
        world = World(2, max_waiting=20)
        first, second = world.upstreams
        numbers = itertools.count()
        while first.up and world.now < 105.0:
            world.ask(question(f"n{next(numbers)}"))
            world.obey()
            world.wait(JOSTLE / 20)
        assert not first.up and second.up and not world.overdue

    def test_waiting_queries_of_one_client(self) -> None:
        world = World(max_per_client=2)
        world.ask(question("a"), "one")
        world.ask(question("b"), "one")
        assert world.ask(question("c"), "one") is Rejection.CLIENT
        assert isinstance(world.ask(question("c"), "two"), Flight)
        world.reply(0)
        assert isinstance(world.ask(question("d"), "one"), Flight)

    def test_peers_have_no_limit_of_their_own(self) -> None:
        world = World(max_per_client=1)
        for name in "abc":
            assert isinstance(world.ask(question(name), "peer"), Flight)

    def test_after_close_everything_new_is_rejected_and_the_rest_ends_as_ever(self) -> None:
        world = World()
        flight = world.flight()
        world.inflight.close()
        assert world.ask() is Rejection.CLOSING
        world.wait(JOSTLE)
        assert not world.inflight.make_room(1, world.now)
        assert not flight.done
        world.inflight.configure(budget=BUDGET, always_do=True, max_waiting=10, max_per_client=10)
        assert world.ask() is Rejection.CLOSING
        world.reply()
        assert flight.done
        assert len(world.inflight) == 0


class TestHealth:
    def test_a_lost_query_starts_probes_that_bring_the_upstream_down(self) -> None:
        world = World(2)
        world.flight()
        world.wait(2.0)
        assert [upstream.up for upstream in world.upstreams] == [False, True]
        assert world.flight(question("b")).upstream is list(world.upstreams)[1]

    def test_a_slow_name_brings_nobody_down(self) -> None:
        world = World()
        for n in range(20):
            world.ask(question(f"dead{n}.up.test"))
            world.wait(0.2)
            if world.probes and not world.probes[-1][0].done:
                world.reply(probe=True, rcode=Rcode.REFUSED)
        assert world.upstreams.first is not None
        assert world.probes

    def test_a_reply_to_a_query_is_as_good_as_one_to_a_probe(self) -> None:
        world = World()
        world.flight(question("lost"))
        world.wait(SECOND)
        world.flight(question("found"))
        assert world.upstreams.first is not None
        assert world.upstreams.first.failing
        world.reply()
        assert not world.upstreams.first.failing

    def test_a_probe_waits_on_until_the_next_one_and_counts_for_no_client(self) -> None:
        world = World()
        world.flight()
        world.wait(SECOND)
        (flight, channel, _) = world.probes[0]
        assert len(world.inflight) == 1
        world.wait(0.5)
        assert flight.done
        assert channel.waiting == 0
        assert len(world.probes) == 2

    @pytest.mark.parametrize("tc", [False, True])
    def test_any_reply_to_a_probe_will_do(self, tc: bool) -> None:
        world = World()
        world.silence_all()
        assert world.reply(probe=True, rcode=0 if tc else Rcode.SERVFAIL, tc=tc) is world.probes[-1][0]
        assert world.upstreams.first is not None
        assert world.inflight.next_deadline() == inf

    def test_what_is_not_the_reply_to_a_probe_leads_nowhere(self) -> None:
        world = World(2)
        world.upstreams.hinted(next(iter(world.upstreams)), world.now)
        world.wait(0)
        channel = world.probes[0][1]
        for _ in range(5):
            world.packet(channel, b"")
        world.inflight.refused(channel, world.now)
        world.obey()
        assert world.sent == []

    def test_the_probe_of_an_upstream_that_is_gone_ends_too(self) -> None:
        world = World()
        world.upstreams.hinted(next(iter(world.upstreams)), world.now)
        world.wait(0)
        world.upstreams.replace([])
        world.now += 1
        world.inflight.step(world.now)
        assert world.probes[0][1].waiting == 0

    def test_all_down_one_flight_tries_and_the_others_are_told_at_once(self) -> None:
        world = World(2)
        world.silence_all()
        trial = world.flight()
        assert world.ask(question("b")) is Rejection.DOWN
        assert world.ask() is Rejection.DOWN
        world.wait(BUDGET)
        assert world.done[-1] is trial
        assert sorted(world.to()) == ["0", "1"]
        again = world.flight()
        assert world.reply() is again
        assert world.upstreams.first is not None
        assert isinstance(world.ask(question("b")), Flight)

    def test_without_upstreams_everything_is_rejected(self) -> None:
        assert World(0).ask() is Rejection.DOWN


class TestLoops:
    """An upstream that sends our own questions back to us (dns/loops)."""

    @staticmethod
    def back(world: World, *loops: int, name: str = "a1.up.test") -> None:
        looping = names.from_text(name)
        for number in loops:
            upstream = list(world.upstreams)[number]
            upstream.leads_back = lambda name: name == looping
            world.inflight.leave(upstream)
        world.obey()

    def test_it_is_not_asked_for_what_loops(self) -> None:
        world = World(2)
        self.back(world, 0)
        world.ask(question("a1.up.test"))
        world.ask(question("b1.up.test"))
        assert world.to() == ["1", "0"]

    def test_nobody_is_left_to_ask(self) -> None:
        world = World(2)
        self.back(world, 0, 1)
        assert world.ask(question("a1.up.test")) is Rejection.LOOP
        assert isinstance(world.ask(question("b1.up.test")), Flight)
        assert (world.inflight.waiting, len(world.inflight)) == (1, 1)

    def test_who_waits_for_it_is_told_at_once(self) -> None:
        world = World()
        flight, other = world.flight(question("a1.up.test")), world.flight(question("b1.up.test"))
        world.wait(SECOND)
        self.back(world, 0)
        assert world.done == [flight]
        assert (flight.reply, flight.ede, other.done) == (None, Ede.NO_REACHABLE_AUTHORITY, False)

    def test_who_waits_for_it_asks_another_one_if_there_is_one(self) -> None:
        world = World(2)
        flight = world.flight()
        self.back(world, 0)
        assert (world.to(), flight.done) == (["0", "1"], False)
        world.reply(1)
        assert flight.done

    def test_neither_the_second_try_nor_a_better_reply_is_looked_for_there(self) -> None:
        world = World(2)
        self.back(world, 1)
        world.ask()
        world.wait(SECOND)
        assert world.to() == ["0", "0"]
        world.reply(1, rcode=2)
        assert world.to() == ["0", "0"]

    def test_it_is_no_trial_either(self) -> None:
        world = World(2)
        self.back(world, 0)
        world.silence_all()
        world.ask()
        assert world.to() == ["1"]
        self.back(world, 1)
        world.wait(BUDGET)
        assert world.ask() is Rejection.DOWN

    def test_a_question_that_others_joined_and_nobody_answers_is_suspect(self) -> None:
        world = World()
        world.ask()
        world.ask(question("b1.up.test"))
        world.ask(client="other")
        world.now += SECOND
        world.inflight.step(world.now)
        suspects = [order for order in world.inflight.orders if isinstance(order, Suspect)]
        assert suspects == [Suspect(next(iter(world.upstreams)), names.from_text("a1.up.test"))]

    @pytest.mark.parametrize("rcode", [0, 2, 3])
    def test_a_probe_goes_to_one_upstream_and_ends_with_its_reply(self, rcode: int) -> None:
        world = World(2)
        first = next(iter(world.upstreams))
        world.inflight.probe(question("p.up.test"), first, world.now)
        world.obey()
        [(flight, channel, ident)] = world.probes
        assert (flight.do, channel.upstream) == (True, first)
        world.reply(rcode=rcode, probe=True)
        assert flight.done
        assert flight.reply == reply(flight.query, ident, rcode)
        assert (len(world.probes), len(world.inflight), world.inflight.waiting, world.inflight.next_deadline()) == (
            1,
            0,
            0,
            inf,
        )

    def test_a_probe_takes_the_place_of_the_one_before(self) -> None:
        world = World()
        first = next(iter(world.upstreams))
        for name in ("p.up.test", "q.up.test"):
            world.inflight.probe(question(name), first, world.now)
            world.obey()
        assert world.reply(0, probe=True) is Ignored.UNEXPECTED
        world.reply(1, probe=True)
        assert [flight.reply is None for flight, _, _ in world.probes] == [True, False]
        assert [channel.waiting for _, channel, _ in world.probes] == [0, 0]

    def test_a_probe_that_is_not_answered_ends_in_an_order_and_leads_to_nothing(self) -> None:
        world = World(2)
        first = next(iter(world.upstreams))
        world.inflight.probe(question("p.up.test"), first, world.now)
        world.obey()
        world.wait(END)
        [(flight, channel, _)] = world.probes
        assert world.done == [flight]
        assert (flight.reply, channel.waiting, first.fails, world.overdue, world.sent) == (None, 0, 0, [], [])


class TestChannel:
    upstream = Upstream(Endpoint("10.0.0.1", 53))

    def test_ages(self) -> None:
        channel = Channel(self.upstream, 5.0, stream=False)
        assert channel.usable(5.0 + CHANNEL_LIFE - 0.01)
        assert not channel.usable(5.0 + CHANNEL_LIFE)
        assert Channel(self.upstream, 5.0, stream=True).usable(1e9)

    def test_takes_so_many_queries(self) -> None:
        channel = Channel(self.upstream, 0.0, stream=True)
        channel.left = CHANNEL_QUERIES - 1
        assert channel.usable(0.0)
        channel.left += 1
        assert not channel.usable(0.0)

    def test_takes_none_once_retired(self) -> None:
        channel = Channel(self.upstream, 0.0, stream=False)
        channel.retired = True
        assert not channel.usable(0.0)


class Traffic(RuleBasedStateMachine):
    """Anything may happen in any order: every waiter gets one outcome, and never one for another question."""

    flights = Bundle("flights")
    names = st.sampled_from(["a", "b", "c.up.test"])

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, max_waiting=30, max_per_client=10, always_do=False)
        self.ids = itertools.count()
        self.pending: dict[int, tuple[Query, float]] = {}
        self.world.deliver = self.deliver

    def deliver(self, flight: Flight) -> None:
        for query, _, reply_to, _, _ in flight.waiters:
            sent = flight.query
            assert query.name == sent.name
            assert (query.qtype, query.do, query.flags & 0x0110) == (sent.qtype, sent.do, sent.flags & 0x0110)
            reply_to(flight.reply)

    def settle(self, result: object) -> None:
        if isinstance(result, Flight) and result.done:
            self.deliver(result)

    @rule(
        name=names,
        qtype=st.sampled_from([1, 28]),
        flags=st.sampled_from([0x0100, 0x0110, 0]),
        do=st.booleans(),
        client=st.sampled_from(["one", "two", "peer"]),
    )
    def ask(self, name: str, qtype: int, flags: int, do: bool, client: str) -> None:
        number = next(self.ids)
        query = question(name, qtype, ident=number & 0xFFFF, flags=flags, do=do)

        def outcome(reply: bytes | None) -> None:
            asked, since = self.pending.pop(number)
            assert self.world.now - since <= BUDGET
            if reply is not None:
                assert reply[12:].lower() == asked.question.lower()

        if not isinstance(self.world.ask(query, client, outcome), Rejection):
            self.pending[number] = (query, self.world.now)

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data(), rcode=st.sampled_from([0, 0, 3, 2, 5]), tc=st.booleans())
    def answer(self, data: st.DataObject, rcode: int, tc: bool) -> None:
        at = data.draw(st.integers(0, len(self.world.sent) - 1))
        self.settle(self.world.reply(at, rcode, tc=tc and rcode == 0))

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data(), kind=st.sampled_from(["empty", "id", "question", "malformed"]))
    def disturb(self, data: st.DataObject, kind: str) -> None:
        flight, channel, ident = data.draw(st.sampled_from(self.world.sent))
        query = question("b" if flight.query.name == b"\1a\0" else "a") if kind == "question" else flight.query
        packet = b"" if kind == "empty" else reply(query, ident ^ (kind == "id"), tail=b"x" * (kind == "malformed"))
        result = self.world.packet(channel, packet)
        assert not isinstance(result, Flight) or kind == "id"
        self.settle(result)

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data(), connected=st.booleans())
    def break_off(self, data: st.DataObject, connected: bool) -> None:
        channel = data.draw(st.sampled_from(self.world.sent))[1]
        if channel.stream:
            channel.connected = connected
            self.world.inflight.lost(channel, self.world.now)
        else:
            self.world.inflight.refused(channel, self.world.now)
        self.world.obey()

    @rule(data=st.data(), loops=st.sampled_from([None, b"\1a\0", b"\1b\0"]))
    def lead_back(self, data: st.DataObject, loops: bytes | None) -> None:
        upstream = data.draw(st.sampled_from(list(self.world.upstreams)))
        upstream.leads_back = None if loops is None else lambda name: name == loops
        self.world.inflight.leave(upstream)
        self.world.obey()

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.7, 1.5]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def books_balance(self) -> None:
        assert self.world.inflight.waiting == len(self.pending) <= 30
        assert len(self.world.inflight) <= len(self.pending)
        waiting = sum(channel.waiting for _, channel, _ in self.world.sent)
        assert waiting == sum(len(channel.flights) for _, channel, _ in self.world.sent)
        for flight, _, _ in self.world.sent:
            tries = [stream for sent, channel, _ in self.world.sent if sent is flight for stream in [channel.stream]]
            assert tries.count(False) <= 4
            assert tries.count(True) <= 4

    def teardown(self) -> None:
        self.world.wait(2 * BUDGET)
        assert self.pending == {}
        assert len(self.world.inflight) == self.world.inflight.waiting == 0
        assert all(channel.waiting == 0 for _, channel, _ in self.world.sent)


TestTraffic = Traffic.TestCase
TestTraffic.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
