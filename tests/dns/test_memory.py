"""The memory gives what match_reply() and relay() give, for any order of questions, replies and tables."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from canal_dns.dns import memory as module
from canal_dns.dns import names
from canal_dns.dns.memory import LARGEST, Memory
from canal_dns.dns.relay import relay
from canal_dns.dns.table import Addresses, AnswerTable
from canal_dns.dns.wire import Mismatch, Query, Type, match_reply, parse_query

ZONE = names.from_text("cluster.local")
NAME = names.from_text("web.shop.svc.cluster.local")
A = b"\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\xc0\0\2\1"
LARGE = b"\xc0\x0c\0\x10\0\1\0\0\0\x1e\x05\x00" + (b"\xff" + b"x" * 255) * 5


def question(name: bytes = NAME, qtype: int = Type.TXT, *, ident: int = 1, flags: int = 0x0100, opt: str = "") -> Query:
    packet = ident.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\0\1\0\0\0\0" + (b"\0\1" if opt else b"\0\0")
    packet += name + qtype.to_bytes(2, "big") + b"\0\1" + bytes.fromhex(opt)
    query = parse_query(packet, stream=False)
    assert isinstance(query, Query)
    return query


def reply(query: Query, *records: bytes, ident: int = 7, flags: int = 0x81A0) -> bytes:
    head = ident.to_bytes(2, "big") + flags.to_bytes(2, "big") + b"\0\1" + len(records).to_bytes(2, "big") + b"\0\0\0\0"
    return head + query.question + b"".join(records)


def table(*addresses: bytes) -> AnswerTable:
    made = AnswerTable(ZONE)
    made.apply({NAME: Addresses(addresses, (), 5)} if addresses else {}, 1, 1)
    return made


OPT, DO = "00 0029 1000 00 00 0000 0000", "00 0029 1000 00 00 8000 0000"
QUERIES = [
    question(name, qtype, ident=ident, flags=flags, opt=opt)
    for name in (NAME, NAME.upper().replace(b"WEB", b"wEB"), names.from_text("other.test"))
    for qtype in (Type.A, Type.TXT)
    for ident, flags, opt in ((1, 0x0100, ""), (2, 0x0000, ""), (3, 0x0130, OPT), (4, 0x0100, DO), (5, 0x0110, ""))
]
TABLES = [None, table(), table(b"\x0a\0\0\1"), table(b"\x0a\0\0\2")]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(QUERIES),
            st.sampled_from(QUERIES),
            st.sampled_from([(), (A,), (A, A), (LARGE,), (b"broken",)]),
            st.sampled_from([0x8180, 0x81A0, 0x8583, 0x0180, 0x8380]),
            st.sampled_from(TABLES),
        ),
        max_size=60,
    )
)
def test_it_gives_what_would_be_found_out_anew(
    steps: list[tuple[Query, Query, tuple[bytes, ...], int, AnswerTable | None]],
) -> None:
    memory = Memory()
    for ident, (query, answered, records, flags, table) in enumerate(steps):
        packet = reply(answered, *records, ident=ident, flags=flags)
        expected = match_reply(query, ident, packet)
        assert memory.match(query, ident, packet) is expected
        if expected is None:
            relayed = relay(query, packet, table)
            assert memory.relay(query, packet, table) == (relayed.wire, relayed.rewritten)


def test_exempt_clients_do_not_make_it_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, bound, asked = Memory(), table(b"\x0a\0\0\1"), question(qtype=Type.A)
    packet = reply(asked, A)
    renderings = [memory.relay(asked, packet, one) for one in (bound, None)]
    assert renderings[0] != renderings[1]
    monkeypatch.setattr(module, "relay", None)
    assert [memory.relay(asked, packet, one) for one in (bound, None, None, bound)] == [*renderings, *reversed(renderings)]


def test_what_came_before_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    query = question()
    assert memory.match(query, 7, reply(query, A)) is None
    first, _ = memory.relay(query, reply(query, A), None)

    def never(*arguments: object) -> None:
        raise AssertionError("found out anew")

    monkeypatch.setattr(module, "match_reply", never)
    monkeypatch.setattr(module, "relay", never)
    assert memory.match(query, 8, reply(query, A, ident=8)) is None
    again = question(ident=0xABCD)
    assert memory.relay(again, reply(query, A, ident=8), None) == (b"\xab\xcd" + first[2:], False)


def test_a_reply_to_another_question_is_none_to_this_one() -> None:
    memory = Memory()
    query = question()
    assert memory.match(query, 7, reply(query)) is None
    assert memory.match(question(qtype=Type.MX), 7, reply(query)) is Mismatch.QUESTION
    assert memory.match(query, 7, reply(query)) is None


def test_a_change_of_the_table_empties_it() -> None:
    memory = Memory()
    query = question()
    rewritable = reply(query, A)
    current = table()
    assert memory.relay(query, rewritable, current)[1] is False
    current.apply({NAME: Addresses((b"\x0a\0\0\1",), (), 5)}, 2, 2)
    wire, rewritten = memory.relay(query, rewritable, current)
    assert rewritten
    assert b"\x0a\0\0\1" in wire
    assert memory.relay(query, rewritable, None) == (relay(query, rewritable, None).wire, False)


def text(query: Query, octets: int) -> bytes:
    """A reply of so many octets, with TXT records."""
    left = octets - len(reply(query))
    sizes = [200] * (left // 200 - 1) + [left % 200 + 200]
    records = [b"\xc0\x0c\0\x10\0\1\0\0\0\x1e" + (n - 12).to_bytes(2, "big") + strings(n - 12) for n in sizes]
    return reply(query, *records)


def strings(octets: int) -> bytes:
    """Character strings that are so long with their lengths."""
    return b"".join(bytes([min(200, octets - at) - 1]) + b"x" * (min(200, octets - at) - 1) for at in range(0, octets, 200))


@pytest.mark.parametrize(("octets", "kept"), [(LARGEST, 1), (LARGEST + 1, 0), (1233, 0)])
def test_large_replies_are_not_kept(octets: int, kept: int) -> None:
    memory = Memory()
    query = question()
    packet = text(query, octets)
    assert len(packet) == octets
    assert memory.match(query, 7, packet) is None
    memory.relay(query, packet, None)
    assert len(memory._matched.young) == kept
    assert len(memory._relayed.young) == kept


def test_it_holds_a_few_mebibytes_whatever_comes() -> None:
    memory = Memory()
    tracemalloc.start()
    try:
        for n in range(2700):
            query = question(names.from_text(f"n{n:05}.attacker.test"))
            packet = text(query, LARGEST)
            assert memory.match(query, 7, packet) is None
            memory.relay(query, packet, None)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_it_is_bounded_and_keeps_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 4000)
    memory = Memory()
    hot = question()
    for n in range(200):
        cold = question(names.from_text(f"n{n}.test"))
        assert memory.match(cold, 7, reply(cold)) is None
        assert memory.match(hot, 7, reply(hot)) is None
        memory.relay(cold, reply(cold), None)
        memory.relay(hot, reply(hot), None)
        for generations in (memory._matched, memory._relayed):
            assert len(generations.young) <= 4000 // module.OVERHEAD
            assert len(generations.old) <= 4000 // module.OVERHEAD
    assert memory._matched.young.get(reply(hot)[2:]) or memory._matched.old.get(reply(hot)[2:])
