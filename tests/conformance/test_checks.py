"""The checks of the conformance run are tested themselves: each key has a reply that passes and one that must fail."""

import struct

import pytest

from tests.conformance import message as dns
from tests.conformance.cases_abuse import MUTATIONS, difference, mutations
from tests.conformance.cases_forward import unguessable
from tests.conformance.checks import KEYS, Exchange, always, faults, is_own_opt
from tests.conformance.lab import Fault, load
from tests.conformance.upstream import Seen

WEB = "web.shop.svc.cluster.local"
QUERY = dns.query(WEB)
VIP = dns.a(b"\xc0\x0c", "10.96.0.200", 5)
SOA = dns.soa("cluster.local")


def reply(query=QUERY, *, flags=0, clear=0, **parts):
    """A reply to the query with more flags set, or some cleared."""
    wire = bytearray(dns.reply(query, **({"answer": [VIP], "aa": True} | parts)))
    number = struct.unpack_from("!H", wire, 2)[0] | flags
    struct.pack_into("!H", wire, 2, number & ~clear)
    return bytes(wire)


def judged(check, wire, query=QUERY, transport="udp", upstream=()):
    return faults(check, Exchange(query, transport, [wire] if wire is not None else [], upstream=list(upstream)))


def seen(wire, name="a1.up.test"):
    return Seen(0.0, "udp", 1, wire, name, 1)


EDNS = dns.query(WEB, edns=dns.opt(4096))
DO = dns.query(WEB, edns=dns.opt(4096, do=True))
FORWARDED = dns.query("a1.up.test")

ROWS = {
    "rcode": (["NOERROR"], reply(), reply(rcode=2)),
    "qr": (1, reply(), None),
    "aa": (1, reply(), reply(clear=0x400)),
    "tc": (0, reply(), reply(flags=0x200)),
    "rd": (1, reply(), reply(clear=0x100)),
    "ra": (1, reply(), reply(clear=0x80)),
    "z": (0, reply(), reply(flags=0x40)),
    "ad": (0, reply(), reply(flags=0x20)),
    "cd": (0, reply(), reply(flags=0x10)),
    "opcode": (0, reply(), reply(flags=0x2000)),
    "id": (0x1A2B, reply(), reply(ident=7)),
    "qd": (1, reply(), dns.reply(QUERY, rcode=1, with_question=False)),
    "an": (1, reply(), reply(answer=[])),
    "ns": (0, reply(), reply(authority=[SOA])),
    "ar": (0, reply(), reply(additional=[dns.a("x", "192.0.2.1")])),
    "question": ("identical", reply(), reply(dns.query(WEB.upper()))),
    "len": (len(reply()), reply(), reply(answer=[VIP, VIP])),
    "max_len": (len(reply()), reply(), reply(answer=[VIP, VIP])),
    "rdata": ("VIP4", reply(), reply(answer=[dns.a(b"\xc0\x0c", "10.96.0.11")])),
    "must_not_contain": ("10.0.0.1", reply(), reply(additional=[dns.a("x", "10.0.0.1")])),
}
"""key: what it asks for, a reply that satisfies it, one that must not (None: no reply is malformed enough)."""


@pytest.mark.parametrize("key", ROWS)
def test_a_key_passes_what_is_right_and_fails_what_is_wrong(key):
    wanted, right, wrong = ROWS[key]
    assert judged({key: wanted}, right) == []
    if wrong is not None:
        exchange = Exchange(QUERY, "udp", [wrong])
        assert KEYS[key](wanted, exchange, dns.read(wrong)), f"{key} does not notice"


@pytest.mark.parametrize(
    ("check", "query", "wire"),
    [
        ({"opt": True}, QUERY, reply()),
        ({"opt": False}, EDNS, reply(EDNS)),
        ({"do": 1}, EDNS, reply(EDNS)),
        ({"do": 1}, QUERY, reply()),
        ({"ednsver": 0}, QUERY, reply()),
        ({"ednsver": 0}, EDNS, dns.reply(QUERY, answer=[VIP], additional=[dns.opt(version=1)])),
        ({"ednsopts": []}, EDNS, dns.reply(QUERY, answer=[VIP], additional=[dns.opt(options=[(3, b"x")])])),
        ({"rdata": "192.0.2.1"}, QUERY, reply(answer=[VIP, dns.a(b"\xc0\x0c", "192.0.2.1")])),
        ({"rdata": "c00c"}, QUERY, reply(answer=[dns.rr(b"\xc0\x0c", 65280, b"\xc0\x0d")])),
        ({"rdata": "VIP6"}, QUERY, reply()),
    ],
)
def test_further_replies_that_must_fail(check, query, wire):
    assert judged(check, wire, query)


def test_edns_of_a_right_reply():
    assert judged({"opt": True, "do": 1, "ednsver": 0, "ednsopts": []}, reply(DO), DO) == []


@pytest.mark.parametrize(
    ("result", "right", "wrong"),
    [
        ("reply", ("reply",), ("drop", "close")),
        ("drop", ("drop",), ("reply", "close")),
        ("close", ("close",), ("reply", "drop")),
        ("close-or-drop", ("close", "drop"), ("reply",)),
        ("reply-or-drop", ("reply", "drop"), ("close",)),
        ("reply-or-close", ("reply", "close"), ("drop",)),
    ],
)
def test_results(result, right, wrong):
    exchanges = {
        "reply": Exchange(QUERY, "tcp", [reply()]),
        "close": Exchange(QUERY, "tcp", [], closed=True),
        "drop": Exchange(QUERY, "tcp", []),
    }
    assert all(not faults({"result": result}, exchanges[kind]) for kind in right)
    assert all(faults({"result": result}, exchanges[kind]) for kind in wrong)


def test_two_replies_are_one_too_many():
    assert faults({}, Exchange(QUERY, "udp", [reply(), reply()]))


@pytest.mark.parametrize(
    ("query", "wire", "transport"),
    [
        (QUERY, reply(ident=1), "udp"),
        (QUERY, reply(flags=0x40), "udp"),
        (QUERY, reply(clear=0x80), "udp"),
        (QUERY, reply(clear=0x100), "udp"),
        (QUERY, reply(dns.query(WEB.upper())), "udp"),
        (QUERY, dns.reply(QUERY, rcode=0, with_question=False), "udp"),
        (QUERY, reply(flags=0x200), "tcp"),
        (QUERY, reply(answer=[VIP] * 40), "udp"),
        (EDNS, dns.reply(EDNS, answer=[VIP] * 100), "udp"),
        (QUERY, reply(EDNS), "udp"),
        (EDNS, reply(), "udp"),
        (DO, reply(EDNS), "udp"),
        (QUERY, reply(flags=0x2000), "udp"),
    ],
)
def test_what_every_reply_owes(query, wire, transport):
    assert always(Exchange(query, transport, [wire]), dns.read(wire))


def test_large_replies_are_right_where_they_are_allowed():
    assert always(Exchange(EDNS, "udp", []), dns.read(dns.reply(EDNS, answer=[VIP] * 60))) == []
    assert always(Exchange(QUERY, "tcp", []), dns.read(dns.reply(QUERY, answer=[VIP] * 60))) == []


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        reply()[:-1],
        reply() + b"\0",
        QUERY,
        reply()[:6] + b"\0\2" + reply()[8:],
        reply()[:4] + b"\0\2" + reply()[6:],
        dns.reply(QUERY, answer=[dns.rr(b"\xc0\xff", 1, b"1234")]),
        dns.reply(QUERY, answer=[dns.rr(b"\xc0\x0c", 1, b"12345")]),
        dns.reply(QUERY, answer=[dns.rr(b"\xc0\x0c", dns.CNAME, b"\x05abc")]),
        dns.reply(QUERY, answer=[dns.opt()]),
        dns.reply(QUERY, additional=[dns.opt(), dns.opt()]),
        dns.reply(QUERY, additional=[dns.rr(b"\0", dns.OPT, b"\0\1\0\5x")]),
        dns.reply(QUERY, authority=[dns.rr("x", dns.SOA, b"\0\0" + b"1" * 19)]),
    ],
)
def test_malformed_replies_never_pass(wire):
    assert judged({}, wire)


def test_an_unknown_key_is_an_error():
    with pytest.raises(ValueError, match="no check knows"):
        judged({"nonsense": 1}, reply())


REBUILT = dns.query("a1.up.test", ident=7, edns=dns.opt(1232, do=True))


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"upstream_packets": 1}, [REBUILT], []),
        ({"upstream_packets": 0}, [], [REBUILT]),
        ({"upstream_packets": 1}, [REBUILT], [REBUILT, REBUILT]),
        ({"upstream_exact": "rebuilt"}, [REBUILT], [FORWARDED + dns.opt(options=[(8, b"x")])]),
        ({"upstream_exact": "rebuilt"}, [FORWARDED], [FORWARDED + b"\0"]),
        ({"upstream_must_not_contain": "stray A"}, [REBUILT], [REBUILT + dns.a(WEB, "1.2.3.4")]),
        ({"upstream_ednsopts": []}, [REBUILT], []),
        ({"upstream_ednsopts": []}, [REBUILT], [FORWARDED]),
        ({"upstream_ednsopts": []}, [REBUILT], [dns.query("a1.up.test", edns=dns.opt(1232))]),
        ({"upstream_ednsopts": []}, [REBUILT], [dns.query("a1.up.test", edns=dns.opt(4096, do=True))]),
        (
            {"upstream_ednsopts": []},
            [REBUILT],
            [dns.query("a1.up.test", edns=dns.opt(1232, do=True, options=[(10, b"12345678")]))],
        ),
    ],
)
def test_what_the_upstream_saw(check, right, wrong):
    wire = dns.reply(FORWARDED, answer=[dns.a(b"\xc0\x0c", "192.0.2.1")])
    assert judged(check, wire, FORWARDED, upstream=map(seen, right)) == []
    assert judged(check, wire, FORWARDED, upstream=map(seen, wrong))


def test_packets_upstream_count_without_a_reply_too():
    assert faults({"result": "drop", "upstream_packets": 0}, Exchange(QUERY, "udp", [], upstream=[seen(QUERY)]))


def test_own_opt():
    assert is_own_opt(b"") and is_own_opt(dns.opt(1232, do=True)) and is_own_opt(dns.opt(512))
    assert not is_own_opt(dns.opt(1233)) and not is_own_opt(dns.opt(version=1)) and not is_own_opt(dns.opt() + b"\0")


def test_every_key_of_every_case_is_known():
    for case in load().values():
        if case.check:
            faults(case.check, Exchange(QUERY, "udp", []))


@pytest.mark.parametrize(
    "ids",
    [
        list(range(1000, 1100)),
        [0x1A2B] * 100,
        [7 * number % 65536 for number in range(100)],
        [number * 2 for number in range(3000, 3100)],
        [n ^ 0x5555 for n in range(100)],
    ],
)
def test_guessable_ids_are_noticed(ids):
    with pytest.raises(Fault):
        unguessable(ids)


def test_random_ids_are_not():
    import secrets

    for _ in range(20):
        unguessable([secrets.randbits(16) for _ in range(100)])


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (reply(), reply(clear=0x400), True),
        (reply(), reply(clear=0x80), True),
        (reply(), reply(rcode=3), False),
        (reply(), reply(answer=[]), False),
        (reply(), reply(answer=[dns.a(b"\xc0\x0c", "10.96.0.201")]), False),
        (reply(), reply(dns.query(WEB.upper())), False),
        (reply(), reply(flags=0x10), False),
        (reply(), None, False),
        (None, None, True),
    ],
)
def test_differences(one, two, same):
    assert (difference(one, two) is None) == same


def test_the_corpus_is_reproducible_and_varied():
    first, second = (list(mutations(300)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 250
    assert MUTATIONS == 20_000
