"""Messages written anew parse strictly, stay small by compression, and take work linear in their size."""

from __future__ import annotations

import struct
import time

import dns.message
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.dns import encoder
from canal_dns.dns.codes import Type
from canal_dns.dns.encoder import Entry, encode, kept, made
from canal_dns.dns.records import ADDITIONAL, ANSWER, AUTHORITY, scan
from tests.dns.packets import VIP4, ask, question, read, texts, upstream_reply, wire

QUESTION = question("a1.Up.test")

LINES = [
    ("a1.up.test.", 300, "A", "192.0.2.1"),
    ("www.up.test.", 300, "CNAME", "A1.up.test."),
    ("up.test.", 300, "NS", "ns1.up.test."),
    ("up.test.", 30, "SOA", "ns1.up.test. root.up.test. 1 2 3 4 5"),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("mail.up.test.", 30, "AAAA", "2001:db8::1"),
    ("_x._tcp.up.test.", 30, "SRV", "0 100 80 www.up.test."),
    ("up.test.", 30, "NAPTR", '1 2 "u" "E2U+sip" "!^.*$!x!" a1.up.test.'),
    ("up.test.", 30, "RP", "root.up.test. a1.up.test."),
    (".", 30, "NS", "."),
    ("up.test.", 30, "TXT", '"text"'),
    ("up.test.", 30, "TYPE65280", r"\# 6 c00cc00c00ff"),
    ("other.example.", 30, "HTTPS", "1 www.up.test. ipv4hint=192.0.2.1"),
    ("up.test.", 30, "RRSIG", "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"),
]


def message(body, asked=QUESTION):
    return struct.pack(">HHHHHH", 1, 0x8180, 1, *body.counts) + asked + body.octets


@given(st.lists(st.sampled_from(LINES), unique=True), st.lists(st.sampled_from(LINES), unique=True), st.integers(0, 2**20))
@settings(max_examples=100)
def test_records_encoded_anew_say_the_same(answer, additional, dropped):
    reply = upstream_reply(ask("a1.up.test"), answer, [], additional, edns=False)
    found = scan(reply)
    records = [record for index, record in enumerate(found.records) if not dropped >> index & 1]
    again = message(encode(QUESTION, [kept(found, record) for record in records]))
    assert len(again) <= len(reply)
    expected = [dns.rdata.from_wire("IN", record.rtype, reply, record.data, record.end - record.data) for record in records]
    got = [rrset[0] for section in (1, 2, 3) for rrset in read(again).sections[section]]
    assert got == expected
    assert [(one.owner.lower(), one.ttl, one.section) for one in scan(again).records] == [
        (one.owner.lower(), one.ttl, one.section) for one in records
    ]


def test_names_are_compressed_whatever_their_case_and_keep_it_where_they_are_written():
    entries = [
        Entry(ANSWER, wire("A1.up.test"), Type.CNAME, 1, 5, [(b"", False), (wire("WwW.up.TEST"), True), (b"", False)]),
        made(ANSWER, wire("www.up.test"), Type.A, 5, VIP4),
    ]
    body = encode(QUESTION, entries)
    assert body.octets == (b"\xc0\x0c\0\5\0\1\0\0\0\5\0\6\3WwW\xc0\x0f" + b"\xc0\x28\0\1\0\1\0\0\0\5\0\4" + VIP4)
    assert body.counts == (2, 0, 0)


def test_only_the_data_of_rfc_1035_s_types_is_compressed():
    target = wire("a1.up.test")
    for rtype, compressed in ((Type.NS, True), (Type.SRV, False), (Type.RP, False), (Type.DNAME, False)):
        octets = encode(QUESTION, [Entry(ANSWER, target, rtype, 1, 5, [(target, True)])]).octets
        assert octets.endswith(b"\xc0\x0c" if compressed else target)


def test_the_root_is_never_a_pointer():
    assert encode(b"\0\0\2\0\1", [made(ANSWER, b"\0", Type.A, 5, VIP4)]).octets[:1] == b"\0"


def test_it_is_known_where_the_additional_section_begins():
    answer = made(ANSWER, wire("a1.up.test"), Type.A, 5, VIP4)
    more = made(ADDITIONAL, wire("a1.up.test"), Type.A, 5, VIP4)
    body = encode(QUESTION, [answer, made(AUTHORITY, wire("up.test"), Type.NS, 5, b"\0"), more, more])
    assert body.counts == (1, 1, 2)
    assert body.octets[body.additional :] == encode(QUESTION, [more, more]).octets
    assert encode(QUESTION, [answer]).additional == len(encode(QUESTION, [answer]).octets)


def test_no_pointer_leads_beyond_its_14_bits():
    filler = [made(ANSWER, wire("a1.up.test"), Type.TXT, 5, b"\xff" + b"x" * 255) for _ in range(62)]
    late = [made(ANSWER, wire("late.example"), Type.A, 5, VIP4)] * 3
    result = read(message(encode(QUESTION, filler + late + late)))
    assert texts(result.answer).count("late.example. 5 IN A 10.96.0.200") == 6


def test_work_on_compression_is_bounded(monkeypatch):
    monkeypatch.setattr(encoder, "MAX_STEPS", 3)
    entries = [made(ANSWER, wire("x.up.test"), Type.A, 5, VIP4) for _ in range(4)]
    data = message(encode(QUESTION, entries))
    assert texts(read(data).answer) == ["x.Up.test. 5 IN A 10.96.0.200"] * 2 + ["x.up.test. 5 IN A 10.96.0.200"] * 2, (
        "two steps for the first, one for the second"
    )
    assert data.endswith(wire("x.up.test") + b"\0\1\0\1\0\0\0\5\0\4" + VIP4)


def test_the_worst_message_takes_no_more_than_its_share():
    """5000 owners of 120 labels each, no two alike (CVE-2024-8508): what the stack of labels would cost unbounded."""
    owners = [b"\5%05d" % number + b"\1a" * 120 + b"\0" for number in range(5000)]
    before = time.process_time()
    encode(QUESTION, [made(ANSWER, owner, 65280, 5, b"") for owner in owners])
    different = [b"".join(b"\1%c" % (97 + (number >> bit & 1)) for bit in range(120)) + b"\0" for number in range(5000)]
    encode(QUESTION, [made(ANSWER, owner, 65280, 5, b"") for owner in different])
    assert time.process_time() - before < 1.0
