"""The answer table: every hit parses strictly, a change is whole or not at all."""

from __future__ import annotations

import dns.flags
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.codes import Type
from canal_dns.dns.responder import answer_from_table
from canal_dns.dns.table import ANSWERED, Addresses, AnswerTable, TableCell, check, negative_ttl
from canal_dns.errors import TableError
from tests.dns.packets import BOUND, VIP4, VIP6, WEB, ZONE, ask, bound_table, opt, packet, read, spelled, texts, wire

SOA = "cluster.local. {} IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 2026 7200 1800 86400 {}"


def state(table):
    return dict(table.exact), dict(table.names), table.generation, table.serial


def answer(name, qtype, table=None, **more):
    return read(answer_from_table(packet(name, qtype, **more), table or bound_table(), False))


@pytest.mark.parametrize(
    ("name", "qtype", "answers"),
    [
        ("web", Type.A, ["A 10.96.0.200"]),
        ("web", Type.AAAA, []),
        ("web", Type.HTTPS, []),
        ("web", Type.SVCB, []),
        ("web", Type.ANY, ["A 10.96.0.200"]),
        ("v6", Type.A, []),
        ("v6", Type.AAAA, ["AAAA fd00:10:96::c8"]),
        ("v6", Type.ANY, ["AAAA fd00:10:96::c8"]),
        ("dual", Type.A, ["A 10.96.0.200"]),
        ("dual", Type.AAAA, ["AAAA fd00:10:96::c8"]),
        ("dual", Type.ANY, ["A 10.96.0.200", "AAAA fd00:10:96::c8"]),
    ],
)
def test_what_a_bound_name_answers(name, qtype, answers):
    fqdn = f"{name}.shop.svc.cluster.local"
    message = answer(fqdn, qtype)
    assert texts(message.answer) == [f"{fqdn}. 5 IN {data}" for data in answers]
    assert texts(message.authority) == ([] if answers else [SOA.format(5, 5)])
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA


def test_every_answer_in_the_table_is_a_sound_message():
    """The slow path reads what was encoded once: each question, in each case, with its body."""
    table = bound_table()
    assert len(table.exact) == len(BOUND) * len(ANSWERED)
    for question, body in table.exact.items():
        counts = b"\0\1" + body[:4] + b"\0\0"
        for asked in (question, question[:-4].upper() + question[-4:]):
            message = read(b"\0\0\x84\0" + counts + asked + body[4:])
            assert message.section_count(1) + message.section_count(2) in (1, 2)
            for rrset in message.answer:
                assert rrset.name.to_wire() == asked[:-4], "the client's own spelling"


@given(spelled(WEB))
def test_the_soa_s_owner_points_into_the_question_in_every_case(name):
    message = answer(name, Type.AAAA)
    assert texts(message.authority)[0].lower() == SOA.format(5, 5).lower()


@pytest.mark.parametrize(("ttl", "expected"), [(1, 1), (5, 5), (30, 30), (31, 30), (3600, 30)])
def test_missing_types_are_remembered_for_half_a_minute_at_most(ttl, expected):
    table = AnswerTable(ZONE)
    table.apply({wire(WEB): Addresses((VIP4,), (), ttl)}, 1, 2026)
    assert negative_ttl(ttl) == expected
    assert texts(answer(WEB, Type.AAAA, table).authority) == [SOA.format(expected, expected)]
    assert answer(WEB, Type.A, table).answer[0].ttl == ttl


@pytest.mark.parametrize("length", [1, 63])
def test_an_answer_has_as_many_addresses_as_512_octets_hold(length):
    name = ".".join(["x" * length] * 3 + [WEB])
    many4 = tuple(bytes([10, 0, 0, n]) for n in range(100))
    many6 = tuple(VIP6[:-1] + bytes([n]) for n in range(100))
    table = AnswerTable(ZONE)
    table.apply({wire(name): Addresses(many4, many6, 5)}, 1, 1)
    for qtype, most in ((Type.A, 4), (Type.AAAA, 4), (Type.ANY, 2)):
        reply = answer_from_table(packet(name, qtype, additional=opt()), table, False)
        assert len(reply) <= 512
        assert most <= read(reply).section_count(1) < 40


def test_the_longest_names_have_room_for_an_answer():
    name = ".".join(["x" * 63] * 3 + ["x" * 47, "cluster.local"])
    assert len(wire(name)) == 255
    table = AnswerTable(ZONE)
    table.apply({wire(name): Addresses((VIP4,), (VIP6,), 5)}, 1, 1)
    for qtype in ANSWERED:
        assert len(answer_from_table(packet(name, qtype, additional=opt()), table, False)) <= 512


def test_a_change_touches_what_it_names_and_nothing_else():
    table = bound_table()
    before = dict(table.exact)
    other = Addresses((b"\x0a\0\0\1",), (), 9)
    table.apply({wire(WEB): other, wire("new.shop.svc.cluster.local"): other, wire("v6.shop.svc.cluster.local"): None}, 2, 2027)
    assert answer(WEB, Type.A, table).answer[0][0].address == "10.0.0.1"
    assert answer("new.shop.svc.cluster.local", Type.A, table).answer[0].ttl == 9
    assert wire("v6.shop.svc.cluster.local") not in table.names
    assert answer_from_table(packet("v6.shop.svc.cluster.local", Type.AAAA), table, False) is None
    for question, body in before.items():
        if question.startswith(wire("dual.shop.svc.cluster.local")):
            assert table.exact[question] is body
    assert (table.generation, table.serial) == (2, 2027)


def test_a_change_is_seen_by_the_very_next_query():
    table = bound_table()
    query = packet(WEB)
    assert answer_from_table(query, table, False) == answer_from_table(query, table, False)
    table.apply({wire(WEB): Addresses((b"\x0a\0\0\1",), (), 5)}, 2, 2)
    assert read(answer_from_table(query, table, False)).answer[0][0].address == "10.0.0.1"
    table.apply({wire(WEB): None}, 3, 3)
    assert answer_from_table(query, table, False) is None


def test_what_was_not_bound_can_be_unbound():
    table = bound_table()
    table.apply({wire("nothing.shop.svc.cluster.local"): None}, 2, 2)
    assert len(table.names) == len(BOUND)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([None, Addresses((VIP4,), (), 5), Addresses((), (VIP6,), 7)]))
)
def test_applying_changes_gives_the_table_of_what_remains(delta):
    start = {wire(f"{letter}.ns.svc.cluster.local"): Addresses((VIP4, VIP4), (), 3) for letter in "abc"}
    change = {wire(f"{letter}.ns.svc.cluster.local"): one for letter, one in delta.items()}
    table = AnswerTable(ZONE)
    table.apply(start, 1, 1)
    table.apply(change, 2, 1)
    whole = AnswerTable(ZONE)
    whole.apply({name: one for name, one in {**start, **change}.items() if one is not None}, 2, 1)
    assert state(table) == state(whole)


GOOD = Addresses((VIP4,), (), 5)


@pytest.mark.parametrize(
    ("name", "addresses", "problem"),
    [
        (b"", GOOD, "wire form"),
        (b"\3web", GOOD, "wire form"),
        (b"\3web\0\0", GOOD, "wire form"),
        (b"\x40" + b"a" * 64 + ZONE, GOOD, "wire form"),
        (wire("Web.cluster.local"), GOOD, "lower-cased"),
        ((b"\x3f" + b"a" * 63) * 4 + ZONE, GOOD, "wire form"),
        (wire("cluster.local"), GOOD, "not below"),
        (wire("web.example.com"), GOOD, "not below"),
        (b"\x14abc\7cluster\5local\0abc" + b"\0", GOOD, "wire form"),
        (b"\x0bxxx" + ZONE[:8] + b"\5local\0", GOOD, "not below"),
        (wire(WEB), Addresses((), (), 5), "no address"),
        (wire(WEB), Addresses((b"123",), (), 5), "4 .v4. or 16"),
        (wire(WEB), Addresses((), (VIP4,), 5), "4 .v4. or 16"),
        (wire(WEB), Addresses((VIP4,), (), 0), "TTL of 0"),
        (wire(WEB), Addresses((VIP4,), (), 2**31), "TTL of 2147483648"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_table_stays(name, addresses, problem):
    table = bound_table()
    before = state(table)
    with pytest.raises(TableError, match=problem):
        table.apply({wire(WEB): None, wire("new.svc.cluster.local"): GOOD, name: addresses}, 2, 2)
    assert state(table) == before
    with pytest.raises(TableError, match=problem):
        check({wire(WEB): None, wire("new.svc.cluster.local"): GOOD, name: addresses}, table.zone, 2)


def test_what_passes_the_check_is_taken():
    table = bound_table()
    delta = {wire(WEB): None, wire("new.svc.cluster.local"): GOOD}
    check(delta, table.zone, 2)
    table.apply(delta, 2, 2)


@pytest.mark.parametrize("serial", [-1, 2**32])
def test_a_serial_has_32_bits(serial):
    with pytest.raises(TableError, match="32 bits"):
        bound_table().apply({}, 2, serial)


def test_a_cluster_domain_leaves_room_for_names():
    with pytest.raises(TableError, match="200 octets"):
        AnswerTable((b"\x3f" + b"a" * 63) * 3 + b"\x0a" + b"a" * 10 + b"\0")


def test_the_soa_in_full():
    owner, data = bound_table().soa(5)
    assert owner == ZONE
    assert data == dns.rdata.from_text("IN", "SOA", SOA.format(5, 5).partition("SOA ")[2]).to_wire()


def test_a_cell_is_empty_until_the_first_sync():
    assert TableCell().current is None
    table = bound_table()
    assert TableCell(table).current is table


def test_names_are_octets_so_that_no_other_spelling_matches():
    table = bound_table()
    for name in (b"\4web\0\4shop\3svc\7cluster\5local\0", b"\x08web.shop\3svc\7cluster\5local\0"):
        assert names.to_text(name) != WEB
        assert answer_from_table(packet(name), table, False) is None
        assert ask(name).name not in table.names
