"""The answer cache: what is kept and for how long, that a hit is what relay() would have said, who goes, what is purged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.dns import cache as module
from canal_dns.dns.cache import AnswerCache, key_of
from canal_dns.dns.codes import Type
from canal_dns.dns.relay import relay
from canal_dns.dns.table import Addresses, AnswerTable
from tests.dns.packets import VIP4, WEB, ZONE, ask, bound_table, opt, read, spelled, texts, upstream_reply, wire

NAME = "a1.up.test"
A = ("a1.up.test.", 300, "A", "192.0.2.1")
SOA = ("up.test.", 300, "SOA", "ns.up.test. root.up.test. 1 2 3 4 20")
DO = opt(flags=0x8000)
TABLE = bound_table()


def filled(*lines, name=NAME, qtype=Type.A, size=100, table=TABLE, now=100.0, asked=b"", rd=0x0100, stale=0.0, **reply):
    cache = AnswerCache(size, stale)
    query = ask(name, qtype, additional=asked, flags=rd)
    cache.put(query, upstream_reply(query, *lines, **reply), table, now)
    return cache


def ttls(cache, now, name=NAME, qtype=Type.A):
    hit = cache.look(ask(name, qtype), now)
    if hit is None:
        return None
    message = read(hit.wire)
    return sorted(rrset.ttl for section in (message.answer, message.authority, message.additional) for rrset in section)


# -- what is kept, and for how long ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "reply", "life"),
    [
        (([A],), {}, 300),
        (([A, ("a1.up.test.", 7, "TXT", '"x"')],), {}, 7),
        (([A], [("up.test.", 12, "NS", "ns.up.test.")]), {}, 12),
        (([A], [], [("ns.up.test.", 9, "A", "192.0.2.9")]), {}, 9),
        (([("a1.up.test.", 86400, "A", "192.0.2.1")],), {}, 3600),
        (([("a1.up.test.", 0, "A", "192.0.2.1")],), {}, 0),
        (([("a1.up.test.", 60, "CNAME", "x.test."), ("x.test.", 5, "A", "192.0.2.1")],), {}, 5),
        (([("a1.up.test.", 60, "CNAME", "x.test.")],), {}, 60),
        # Denials: RFC 2308 section 5.
        (([], [SOA]), {}, 20),
        (([], [SOA]), {"rcode": "NXDOMAIN"}, 20),
        (([], [("up.test.", 4, *SOA[2:])]), {}, 4),
        (([], [("up.test.", 300, "SOA", "ns.up.test. root.up.test. 1 2 3 4 300")]), {}, 30),
        (([], [("up.test.", 300, "SOA", "ns.up.test. root.up.test. 1 2 3 4 0")]), {}, 0),
        (([("a1.up.test.", 60, "CNAME", "x.up.test.")], [SOA]), {}, 20),
        (([("a1.up.test.", 60, "CNAME", "x.up.test.")], [SOA]), {"rcode": "NXDOMAIN"}, 20),
        (([], []), {}, 0),
        (([], []), {"rcode": "NXDOMAIN"}, 0),
        (([], [("up.test.", 300, "NS", "ns.up.test.")]), {}, 0),
        # Failures: RFC 9520 section 3.2.
        (([], []), {"rcode": "SERVFAIL"}, 1),
        (([A], [SOA]), {"rcode": "FORMERR"}, 0),
        (([A], [SOA]), {"rcode": "REFUSED"}, 0),
        (([A], [SOA]), {"rcode": "NOTIMP"}, 0),
        (([A], [SOA]), {"rcode": "YXDOMAIN"}, 0),
        (([A],), {"flags": "QR RD RA TC"}, 0),
    ],
)
def test_a_reply_lives_as_long_as_it_says(lines, reply, life):
    cache = filled(*lines, **reply)
    assert len(cache.entries) == (life > 0)
    if life:
        assert cache.look(ask(NAME), 100.0 + life - 0.001) is not None
        assert cache.look(ask(NAME), 100.0 + life) is None


@pytest.mark.parametrize("edns", [True, False])
def test_ttls_grow_shorter_by_the_second_and_are_never_0(edns):
    cache = filled([("a1.up.test.", 5, "A", "192.0.2.1"), ("a1.up.test.", 7, "TXT", '"x"')], [SOA], edns=edns)
    seen = [ttls(cache, 100.0 + age) for age in (0, 0.99, 1, 2.5, 4.99, 5)]
    assert seen == [[5, 7, 300], [5, 7, 300], [4, 6, 299], [3, 5, 298], [1, 3, 296], None]


def test_a_look_at_a_time_before_the_reply_came_is_one_at_its_coming():
    assert ttls(filled([A]), 99.5) == [300]


def test_a_ttl_beyond_31_bits_is_0():
    query = ask(NAME)
    reply = bytearray(upstream_reply(query, [A], edns=False))
    reply[-10] |= 0x80
    cache = AnswerCache(10)
    cache.put(query, bytes(reply), None, 0.0)
    assert not cache.entries


def test_what_was_not_asked_with_rd_is_not_kept_but_may_be_looked_up_so():
    assert not filled([A], rd=0).entries
    assert filled([A]).look(ask(NAME, flags=0), 100.0) is not None


def test_any_is_not_kept():
    assert not filled([A], qtype=Type.ANY).entries


def test_a_reply_without_a_question_is_not_kept():
    query = ask(NAME)
    cache = AnswerCache(10)
    cache.put(query, bytes.fromhex("4242 8182 0000 0000 0000 0000"), None, 0.0)
    assert not cache.entries


def test_an_extended_response_code_is_not_kept():
    query = ask(NAME)
    reply = bytearray(upstream_reply(query, [A]))
    reply[-6] = 1
    cache = AnswerCache(10)
    cache.put(query, bytes(reply), None, 0.0)
    assert not cache.entries


def test_a_large_reply_is_not_kept():
    text = ("a1.up.test.", 60, "TXT", " ".join(['"' + "x" * 250 + '"'] * 15))
    assert filled([text], qtype=Type.TXT).entries
    assert not filled([(*text[:3], text[3] + ' "' + "y" * 250 + '"' * 1 + ' "' + "z" * 250 + '"')], qtype=Type.TXT).entries


def test_type_do_and_cd_make_another_question_and_nothing_else_does():
    cache = filled([A])
    same = [ask("A1.up.TEST"), ask(NAME, additional=opt(4096)), ask(NAME, flags=0x0520), ask(NAME, stream=True)]
    assert all(cache.look(query, 100.0) for query in same)
    other = [ask(NAME, Type.AAAA), ask(NAME, additional=DO), ask(NAME, flags=0x0110), ask("a2.up.test")]
    assert not any(cache.look(query, 100.0) for query in other)
    assert len({key_of(query) for query in [ask(NAME), *other]}) == 5


def test_the_key_is_the_question_in_lower_case_and_one_octet():
    assert key_of(ask("A1.up.TEST", Type.HTTPS)) == wire(NAME) + b"\0\x41\0\1" + b"\0"
    assert key_of(ask(NAME, additional=DO))[-1] == 1
    assert key_of(ask(NAME, flags=0x0110))[-1] == 2
    assert key_of(ask(NAME, flags=0x0110, additional=DO))[-1] == 3


# -- a hit is what relay() would have said ------------------------------------------------------------------------------

RRSIG = "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"
LINES = [
    A,
    ("a1.up.test.", 300, "AAAA", "2001:db8::1"),
    ("www.up.test.", 300, "CNAME", "a1.up.test."),
    ("a1.up.test.", 300, "CNAME", WEB + "."),
    (WEB + ".", 300, "A", "192.0.2.7"),
    ("a1.up.test.", 300, "RRSIG", RRSIG),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("up.test.", 30, "HTTPS", f"1 {WEB}. ipv4hint=192.0.2.1"),
    ("up.test.", 30, "TXT", " ".join(['"' + "x" * 200 + '"'] * 3)),
    ("up.test.", 30, "TXT", " ".join(['"' + "y" * 200 + '"'] * 5)),
    ("up.test.", 300, "NS", "ns.up.test."),
]
EDNS = st.sampled_from([b"", opt(0), opt(512), opt(900), opt(1232), opt(4096), opt(options=b"\0\n\0\x08abcdefgh")])
FLAGS = st.sampled_from([0x0100, 0x0120, 0x0000, 0x0420])


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from([NAME, WEB]),
    st.sampled_from([Type.A, Type.AAAA, Type.TXT, Type.HTTPS, Type.RRSIG]),
    st.lists(st.sampled_from(LINES), max_size=5, unique=True),
    st.lists(st.sampled_from([SOA, LINES[-1], LINES[5]]), unique=True),
    st.lists(st.sampled_from(LINES), max_size=4, unique=True),
    st.sampled_from(["NOERROR", "NXDOMAIN", "SERVFAIL"]),
    st.sampled_from(["QR RD RA", "QR AA RD RA", "QR RD RA AD", "QR AA RD RA AD"]),
    st.sampled_from([None, TABLE]),
)
def test_a_hit_is_what_relay_makes_of_the_reply(data, name, qtype, answer, authority, additional, rcode, flags, table):
    cache = AnswerCache(10)
    cd, do = data.draw(st.sampled_from([0, 0x10])), data.draw(st.booleans())
    first = ask(name, qtype, flags=0x0100 | cd, additional=DO if do else b"")
    reply = upstream_reply(first, answer, authority, additional, rcode=rcode, flags=flags, edns=data.draw(st.booleans()))
    cache.put(first, reply, table, 100.0)
    for _ in range(3):
        own = data.draw(EDNS)
        if do:
            own = own[:7] + b"\x80" + own[8:] if own else DO
        query = ask(
            data.draw(spelled(name)),
            qtype,
            ident=data.draw(st.integers(0, 65535)),
            flags=data.draw(FLAGS) | cd,
            additional=own,
            stream=data.draw(st.booleans()),
        )
        hit = cache.look(query, 100.5)
        if hit is not None:
            expected = relay(query, reply, table)
            assert hit.wire == expected.wire
            assert hit.rcode == expected.rcode
            assert not hit.refresh
        else:
            assert not cache.entries


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=5, unique=True), st.integers(1, 29), st.booleans())
def test_later_only_the_ttls_are_others(lines, age, do):
    query = ask(NAME, Type.A, additional=DO if do else b"", stream=True)
    reply = upstream_reply(query, lines, [SOA])
    cache = AnswerCache(10)
    cache.put(query, reply, None, 0.0)
    young, old = cache.look(query, 0.0), cache.look(query, float(age))
    if young is None or old is None:
        return
    assert [(one.name, one.rdtype, one.to_rdataset().to_text()) for one in lowered(read(young.wire), age)] == [
        (one.name, one.rdtype, one.to_rdataset().to_text()) for one in lowered(read(old.wire), 0)
    ]
    assert old.wire[:12] == young.wire[:12]


def lowered(message, by):
    rrsets = [*message.answer, *message.authority, *message.additional]
    for rrset in rrsets:
        rrset.ttl -= by
    return rrsets


def test_who_has_little_room_goes_without_additional_records_or_comes_again_over_tcp():
    long = ("a1.up.test.", 60, "TXT", " ".join(['"' + "x" * 200 + '"'] * 2))
    cache = filled([long], [], [("up.test.", 60, "TXT", " ".join(['"' + "y" * 200 + '"'] * 2))], qtype=Type.TXT)
    query = ask(NAME, Type.TXT)
    message = read(cache.look(query, 100.0).wire)
    assert (len(message.answer), len(message.additional)) == (1, 0)
    assert len(read(cache.look(ask(NAME, Type.TXT, additional=opt()), 100.0).wire).additional) == 1
    cache = filled([(*long[:3], long[3] + ' "' + "z" * 200 + '"')], qtype=Type.TXT)
    assert cache.look(query, 100.0).wire[2] & 2


# -- who goes --------------------------------------------------------------------------------------------------------


def put(cache, name, now=0.0, ttl=300, table=None, **more):
    query = ask(name)
    cache.put(query, upstream_reply(query, [(name + ".", ttl, "A", "192.0.2.1")], **more), table, now)


def test_there_are_never_more_entries_than_size_nor_more_octets_than_room():
    cache = AnswerCache(20)
    for number in range(100):
        put(cache, f"n{number}.up.test", number)
        assert len(cache.entries) <= 20
    assert cache.evicted == 80
    assert cache.look(ask("n99.up.test"), 100.0) and not cache.look(ask("n0.up.test"), 100.0)
    cache.room = cache.octets // 2
    put(cache, "x.up.test", 100.0)
    assert cache.octets <= cache.room and 5 < len(cache.entries) < 11
    assert cache.look(ask("x.up.test"), 100.0)


def test_an_entry_that_grows_makes_others_go():
    cache = AnswerCache(100)
    for number in range(20):
        put(cache, f"n{number}.up.test")
    cache.room = cache.octets
    query = ask("n0.up.test")
    lines = [("n0.up.test.", 300, "A", f"192.0.2.{one}") for one in range(200)]
    cache.put(query, upstream_reply(query, lines), None, 1.0)
    assert cache.octets <= cache.room


def test_what_is_asked_for_survives_a_flood():
    cache = AnswerCache(100)
    hot = [f"hot{number}.up.test" for number in range(20)]
    hits = 0
    for number in range(1000):
        name = hot[number % 20]
        if cache.look(ask(name), 0.0):
            hits += 1
        else:
            put(cache, name)
        for other in range(3):
            put(cache, f"f{number}x{other}.up.test")
    assert hits / 1000 > 0.95


def check_books(cache):
    """Whatever happened, the index, the octets and the slots are those of the entries that are there."""
    entries = cache.entries
    assert {name: keys for name, keys in cache._index.items() if keys} == {
        name: {key for key, entry in entries.items() if name in entry.names}
        for name in {name for entry in entries.values() for name in entry.names}
    }
    assert len({entry.slot for entry in entries.values()}) == len(entries) == len(cache._sieve)
    assert all(cache._keys[entry.slot] == key for key, entry in entries.items())
    assert cache.octets == sum(module._cost(key, entry.body, entry.offsets, entry.names) for key, entry in entries.items())
    assert cache.denials == sum(map(module._denies, entries.values()))


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "deny", "chain", "look", "purge", "clear", "wait"]), st.integers(0, 12)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_books_are_right_whatever_happens(steps):
    cache, now = AnswerCache(6), 0.0
    for step, number in steps:
        name = f"n{number}.up.test"
        query = ask(name)
        if step == "put":
            put(cache, name, now, 1 + number)
        elif step == "deny":
            cache.put(query, upstream_reply(query, [], [SOA], rcode="NXDOMAIN"), None, now)
        elif step == "chain":
            lines = [(name + ".", 60, "CNAME", "n1.up.test."), ("n1.up.test.", 60, "A", "192.0.2.1")]
            cache.put(query, upstream_reply(query, lines), None, now)
        elif step == "look":
            cache.look(query, now)
        elif step == "purge":
            cache.purge([wire(name)])
            assert not any(wire(name) in entry.names for entry in cache.entries.values())
        elif step == "clear" and number == 0:
            cache.clear()
        else:
            now += number
        check_books(cache)


# -- bindings that change ------------------------------------------------------------------------------------------------

OTHER = "new.shop.svc.cluster.local"


@pytest.mark.parametrize(
    "lines",
    [
        [("a1.up.test.", 60, "CNAME", OTHER + "."), (OTHER + ".", 60, "A", "192.0.2.1")],
        [("a1.up.test.", 60, "CNAME", OTHER.upper() + ".")],
        [A, (OTHER + ".", 60, "A", "192.0.2.1")],
        [A, (OTHER + ".", 60, "RRSIG", RRSIG)],
        [("a1.up.test.", 60, "HTTPS", f"1 {OTHER}. ipv4hint=192.0.2.1")],
    ],
)
def test_what_mentions_a_name_is_purged_with_it(lines):
    cache = filled(lines, [SOA])
    put(cache, "a2.up.test", 100.0)
    assert len(cache.entries) == 2
    cache.purge([wire("unknown.test"), wire(OTHER)])
    assert list(cache.entries) == [key_of(ask("a2.up.test"))]


def test_what_asks_for_a_name_is_purged_with_it_in_every_kind():
    cache = AnswerCache(100)
    for qtype in (Type.TXT, Type.SRV, Type.A):
        for flags, additional in ((0x0100, b""), (0x0110, b""), (0x0100, DO)):
            query = ask(OTHER, qtype, flags=flags, additional=additional)
            cache.put(query, upstream_reply(query, [], [SOA]), TABLE, 0.0)
    assert len(cache.entries) == 9
    cache.purge([wire(OTHER)])
    assert not cache.entries and not cache.octets
    check_books(cache)


def test_what_was_removed_from_a_reply_is_remembered_as_mentioned():
    """A bound name's addresses in the additional section: after it is unbound the real ones are to be seen."""
    cache = filled([("a1.up.test.", 60, "HTTPS", f"1 {WEB}. ipv4hint=192.0.2.1"), ("a1.up.test.", 60, "TXT", '"x"')], [SOA])
    assert wire(WEB) not in next(iter(cache.entries.values())).body
    cache.purge([wire(WEB)])
    assert not cache.entries


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([NAME, WEB, OTHER]),
    st.sampled_from([Type.A, Type.AAAA, Type.TXT, Type.HTTPS]),
    st.lists(
        st.sampled_from([*LINES, ("a1.up.test.", 9, "CNAME", OTHER + "."), (OTHER + ".", 9, "A", "192.0.2.8")]), max_size=5
    ),
    st.lists(st.sampled_from([SOA, *LINES]), max_size=3),
    st.dictionaries(st.sampled_from([WEB, OTHER]), st.sampled_from([None, (b"\1\1\1\1",), (b"\2\2\2\2", b"\3\3\3\3")])),
)
def test_what_is_left_after_a_purge_is_what_relay_would_say_now(name, qtype, answer, authority, changes):
    query = ask(name, qtype, additional=opt())
    reply = upstream_reply(query, answer, authority)
    table = bound_table()
    cache = AnswerCache(10)
    cache.put(query, reply, table, 0.0)
    delta = {wire(text): v4 and Addresses(v4, (), 60) for text, v4 in changes.items()}
    table.apply(delta, 2, 2026)
    cache.purge(delta)
    hit = cache.look(query, 0.0)
    assert hit is None or hit.wire == relay(query, reply, table).wire


def test_addresses_of_bound_names_are_kept_as_relayed():
    cache = filled([("a1.up.test.", 60, "CNAME", WEB + "."), (WEB + ".", 60, "A", "192.0.2.7")])
    assert texts(read(cache.look(ask(NAME), 100.0).wire).answer)[-1] == f"{WEB}. 5 IN A 10.96.0.200"
    assert next(iter(cache.entries.values())).expires == 105.0
    table = AnswerTable(ZONE)
    table.apply({wire(OTHER): Addresses((VIP4,), (), 5)}, 1, 1)


# -- what is fetched anew, and what is served although it has expired ---------------------------------------------------


def test_who_is_asked_for_again_and_again_is_fetched_anew_once_and_shortly_before_its_end():
    cache = filled([A])
    hits = [cache.look(ask(NAME), 100.0 + age).refresh for age in (1, 2, 269.9, 270.1, 270.2, 299.9)]
    assert hits == [False, False, False, True, False, False]
    put(cache, NAME, 399.0)
    assert [cache.look(ask(NAME), 399.0 + age).refresh for age in (270.1, 270.2)] == [False, True]


def test_who_was_asked_for_once_is_not_fetched_anew():
    cache = filled([A])
    assert not cache.look(ask(NAME), 399.0).refresh
    assert cache.look(ask(NAME), 399.5).refresh


def test_a_failure_is_not_fetched_anew():
    cache = filled([], rcode="SERVFAIL")
    assert not any(cache.look(ask(NAME), 100.0 + age).refresh for age in (0.1, 0.95, 0.97, 0.99))


def test_a_failure_does_not_take_the_place_of_an_answer_that_is_fetched_anew_before_its_end():
    cache = filled([A])
    assert [cache.look(ask(NAME), now).refresh for now in (101.0, 371.0)] == [False, True]
    cache.put(ask(NAME), upstream_reply(ask(NAME), rcode="SERVFAIL"), TABLE, 371.1)
    assert [(hit.rcode, hit.refresh) for hit in (cache.look(ask(NAME), now) for now in (371.2, 399.9))] == [(0, False)] * 2
    cache.put(ask(NAME), upstream_reply(ask(NAME), rcode="SERVFAIL"), TABLE, 400.0)
    assert cache.look(ask(NAME), 400.5).rcode == 2
    put(cache, NAME, 400.6)
    assert cache.look(ask(NAME), 400.7).rcode == 0


def test_readers_may_answer_until_there_is_more_to_decide():
    entry = next(iter(filled([A]).entries.values()))
    assert (entry.stored, entry.usable_until, entry.expires) == (100.0, 370.0, 400.0)


def test_a_stale_answer_has_a_ttl_of_30_seconds():
    cache = filled([A, ("a1.up.test.", 7, "TXT", '"x"')], [SOA], stale=3600.0)
    assert cache.look(ask(NAME), 200.0) is None
    message = read(cache.look_stale(ask("A1.UP.test", additional=opt()), 3706.9))
    assert {rrset.ttl for rrset in [*message.answer, *message.authority]} == {30}
    assert message.question[0].name.to_text() == "A1.UP.test."
    assert cache.look_stale(ask(NAME), 3707.0) is None


def test_without_a_time_for_it_nothing_is_served_stale():
    cache = filled([A])
    assert cache.look_stale(ask(NAME), 400.0) is None


def test_a_failure_is_never_served_stale():
    assert filled([], rcode="SERVFAIL", stale=3600.0).look_stale(ask(NAME), 102.0) is None


@settings(max_examples=100, deadline=None)
@given(
    st.data(),
    st.lists(st.sampled_from(LINES), max_size=5),
    st.lists(st.sampled_from([SOA, *LINES]), max_size=3),
    st.floats(0, 8000),
    EDNS,
    st.booleans(),
)
def test_whatever_is_served_stale_is_a_message(data, answer, authority, age, own, stream):
    cache = filled(answer, authority, stale=3600.0)
    query = ask(data.draw(spelled(NAME)), additional=own, stream=stream)
    served = cache.look_stale(query, 100.0 + age)
    if served is not None:
        message = read(served)
        assert len(served) <= query.limit
        assert {rrset.ttl for rrset in [*message.answer, *message.authority, *message.additional]} <= {30}
