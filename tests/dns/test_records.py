"""One strict pass over a whole message: what it finds, and everything it refuses."""

from __future__ import annotations

import struct
import time

import dns.exception
import dns.message
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from canal_dns.dns.codes import Type
from canal_dns.dns.records import ADDITIONAL, ANSWER, AUTHORITY, scan
from tests.dns.packets import ask, opt, packet, queries, question, read, texts, upstream_reply, wire

LINES = [
    ("a1.up.test.", 300, "A", "192.0.2.1"),
    ("a1.up.test.", 300, "AAAA", "2001:db8::1"),
    ("c.up.test.", 300, "CNAME", "a1.up.test."),
    ("up.test.", 300, "NS", "ns1.up.test."),
    ("up.test.", 30, "SOA", "ns1.up.test. root.up.test. 1 2 3 4 5"),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("up.test.", 30, "TXT", '"text" "more"'),
    ("1.up.test.", 30, "PTR", "a1.up.test."),
    ("_x._tcp.up.test.", 30, "SRV", "0 100 80 a1.up.test."),
    ("d.up.test.", 30, "DNAME", "e.up.test."),
    ("up.test.", 30, "RP", "root.up.test. a1.up.test."),
    ("up.test.", 30, "AFSDB", "1 a1.up.test."),
    ("up.test.", 30, "PX", "1 a1.up.test. b.up.test."),
    ("up.test.", 30, "NAPTR", '1 2 "u" "E2U+sip" "!^.*$!x!" a1.up.test.'),
    ("up.test.", 30, "RRSIG", "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"),
    ("up.test.", 30, "TYPE65280", r"\# 6 c00cc00c00ff"),
]


def raw(counts, body, *, name="a1.up.test"):
    """A reply of these counts (questions, answers, authorities, additionals); the body follows the question."""
    return struct.pack(">HHHHHH", 1, 0x8180, *counts) + (question(name) if counts[0] else b"") + body


def record(owner, rtype=Type.A, data=b"\1\2\3\4", *, rclass=1, length=None):
    return owner + struct.pack(">HHIH", rtype, rclass, 5, len(data) if length is None else length) + data


def test_records_are_where_they_stand():
    query = ask("a1.up.test")
    reply = upstream_reply(query, LINES[:3], LINES[3:5], LINES[5:])
    found = scan(reply)
    assert [record.section for record in found.records] == [ANSWER] * 3 + [AUTHORITY] * 2 + [ADDITIONAL] * (len(LINES) - 5)
    assert sorted(record.rtype for record in found.records) == sorted(dns.rdatatype.from_text(line[2]) for line in LINES)
    assert found.opt.end == len(reply)
    for one in found.records:
        assert one.owner.endswith(b"\2up\4test\0")
        expanded = b"".join(octets for octets, _ in found.data(one))
        oracle = dns.rdata.from_wire("IN", one.rtype, reply, one.data, one.end - one.data)
        assert expanded == oracle.to_wire(), "names in full"


def test_a_message_without_question_has_records_too():
    assert len(scan(raw((0, 1, 0, 0), record(b"\0"))).records) == 1
    assert scan(raw((0, 0, 0, 0), b"")).records == ()


def test_an_address_of_another_class_has_its_own_form():
    assert scan(raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.A, b"\1a\0\0\1", rclass=3))) is not None


LABEL_15, LABEL_63 = b"\x0f" + b"a" * 15, b"\x3f" + b"a" * 63
MALFORMED = {
    "shorter than a header": b"\0" * 11,
    "no question where one is counted": raw((0, 0, 0, 0), b"")[:4] + b"\0\1\0\0\0\0\0\0",
    "a pointer in the question": raw((0, 0, 0, 0), b"")[:4] + b"\0\1\0\0\0\0\0\0" + b"\1a\xc0\x0c\0\1\0\1",
    "fewer records than counted": raw((1, 2, 0, 0), record(b"\xc0\x0c")),
    "65535 records counted": raw((1, 65535, 65535, 65535), record(b"\xc0\x0c")),
    "octets left over": raw((1, 1, 0, 0), record(b"\xc0\x0c") + b"\0"),
    "RDATA beyond the end": raw((1, 1, 0, 0), record(b"\xc0\x0c", length=5)),
    "an address of 5 octets": raw((1, 1, 0, 0), record(b"\xc0\x0c", data=b"12345")),
    "an IPv6 address of 4 octets": raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.AAAA)),
    "a pointer to itself": raw((1, 1, 0, 0), record(b"\xc0\x1c")),
    "a pointer forwards": raw((1, 1, 0, 0), record(b"\xc0\x30")),
    "a pointer past the end": raw((1, 1, 0, 0), record(b"\xff\xff")),
    "a pointer cut in half": raw((1, 1, 0, 0), b"\xc0"),
    "a label of kind 01": raw((1, 1, 0, 0), record(b"\x40" + b"a" * 64 + b"\0")),
    "a label of kind 10": raw((1, 1, 0, 0), record(b"\x80" + b"a" * 128 + b"\0")),
    "a pointer to a label of kind 01": raw((1, 2, 0, 0), record(b"\0", 65280, b"\x41a") + record(b"\xc0\x27")),
    "a name of 256 octets": raw((1, 1, 0, 0), record(LABEL_15 * 15 + b"\x0e" + b"a" * 14 + b"\0")),
    "a name too long by its pointer": raw((1, 1, 0, 0), record(LABEL_63 * 3 + b"\x38" + b"a" * 56 + b"\xc0\x0c")),
    "a name that ends nowhere": raw((1, 1, 0, 0), b"\3abc"),
    "an OPT record in the answer": raw((1, 1, 0, 0), opt()),
    "two OPT records": raw((1, 0, 0, 2), opt() + opt()),
    "an OPT record that is not the root's": raw((1, 0, 0, 1), b"\xc0\x0c" + opt()[1:]),
    "a CNAME shorter than its name": raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.CNAME, b"\1a\0", length=2)),
    "a CNAME longer than its name": raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.CNAME, b"\1a\0b")),
    "an SOA without timers": raw((1, 0, 1, 0), record(b"\xc0\x0c", Type.SOA, b"\1a\0\1b\0")),
    "an MX without a name": raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.MX, b"\0\1")),
    "an NXT shorter than its name": raw((1, 1, 0, 0), record(b"\xc0\x0c", Type.NXT, b"\1a\0", length=2) + b"\0" * 20),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_has_no_records(data):
    assert scan(data) is None
    with pytest.raises((dns.exception.DNSException, struct.error)):
        dns.message.from_wire(data)


@pytest.mark.parametrize(
    "data",
    [raw((2, 0, 0, 0), question("a")), raw((1, 1, 0, 0), record(b"\xc0\x0b"))],
    ids=["more than one question", "a pointer into the header"],
)
def test_what_dnspython_lets_pass_may_be_malformed_all_the_same(data):
    assert scan(data) is None
    dns.message.from_wire(data)


def test_names_share_their_tails_in_every_legal_way():
    body = (
        record(b"\1b\xc0\x0c")  # in front of the question's name
        + record(b"\xc0\x0f")  # in the middle of it
        + record(b"\xc0\x1c")  # at a name that ends in a pointer
        + record(b"\2ab\xc0\x1c")
        + record(b"\0")
    )
    owners = [one.owner for one in scan(raw((1, 5, 0, 0), body)).records]
    assert owners == [wire(name) for name in ("b.a1.up.test", "up.test", "b.a1.up.test", "ab.b.a1.up.test", ".")]


def test_pointers_may_lead_to_pointers_but_not_for_ever():
    """RDATA of an unknown type is not walked, so that only a pointer leads to the names in it."""
    at = 12 + len(question("a1.up.test")) + 11
    pointers = [struct.pack(">H", 0xC000 | at)] + [struct.pack(">H", 0xC000 | at + 3 + 2 * hop) for hop in range(150)]
    body = record(b"\0", 65280, b"\1x\0" + b"".join(pointers))
    for hops, good in ((0, True), (100, True), (140, False)):
        found = scan(raw((1, 2, 0, 0), body + record(struct.pack(">H", 0xC000 | at + 3 + 2 * hops))))
        assert (found is not None) is good
        assert not good or found.records[1].owner == b"\1x\0"


@pytest.mark.parametrize(
    "run", [(b"\x3f" + b"a" * 63) * 4 + b"\0", (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\xc0\x0c"]
)
def test_a_tail_may_be_too_long_for_any_name(run):
    body = record(b"\0", 65280, run) + record(b"\xc0\x27")
    assert scan(raw((1, 2, 0, 0), body)) is None


def test_work_is_linear_in_the_size_of_the_message():
    """The worst that fits: 5000 owners, each another pointer into a run of one-octet labels (CVE-2024-8508)."""
    base = 12 + len(question("a1.up.test"))
    body = bytearray(record(b"\1a" * 120 + b"\0", 65280, b""))
    for number in range(4999):
        body += record(struct.pack(">H", 0xC000 | base + 2 * (number % 120)), 65280, b"")
    data = raw((1, 5000, 0, 0), bytes(body))
    before = time.process_time()
    assert len(scan(data).records) == 5000
    assert time.process_time() - before < 0.5


@given(queries())
@example(packet(additional=opt(options=b"\0\1\0")))
def test_nothing_raises(data):
    scan(data)


@given(st.binary(max_size=80), st.integers(0, 3), st.integers(0, 3))
def test_what_the_pass_accepts_dnspython_can_walk(body, answers, additionals):
    data = raw((1, answers, 0, additionals), body)
    found = scan(data)
    if found is not None:
        for one in found.records:
            assert dns.name.from_wire(data, one.start)[0].to_wire() == one.owner


@given(st.lists(st.sampled_from(LINES), max_size=12), st.data())
def test_sound_messages_are_accepted_and_damage_is_survived(lines, data):
    reply = upstream_reply(ask("a1.up.test"), lines)
    found = scan(reply)
    assert len(found.records) == len(texts(read(reply).answer))
    at = data.draw(st.integers(0, len(reply) - 1))
    damaged = reply[:at] + bytes([data.draw(st.integers(0, 255))]) + reply[at + 1 :]
    scan(damaged)
    scan(reply[:at])
