"""Replies relayed: what a client gets of an upstream's answer, and what it never gets."""

from __future__ import annotations

import struct
import time

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.dns.codes import Rcode, Type
from canal_dns.dns.records import scan
from canal_dns.dns.relay import relay
from canal_dns.dns.wire import match_reply
from tests.dns.packets import WEB, ask, bound_table, opt, question, read, texts, upstream_reply

TABLE = bound_table()
ANSWER = ("a1.up.test.", 300, "A", "192.0.2.1")
SOA = ("up.test.", 30, "SOA", "ns.up.test. root.up.test. 1 2 3 4 30")
SIGNED = "A 8 2 300 20300101000000 20200101000000 1 up.test. AAAA"

LINES = [
    ANSWER,
    ("a1.up.test.", 300, "AAAA", "2001:db8::1"),
    ("www.up.test.", 300, "CNAME", "a1.up.test."),
    ("up.test.", 300, "NS", "ns.up.test."),
    ("up.test.", 30, "MX", "10 mail.up.test."),
    ("_x._tcp.up.test.", 30, "SRV", "0 100 80 www.up.test."),
    ("up.test.", 30, "TXT", '"text"'),
    ("up.test.", 30, "TYPE65280", r"\# 6 c00cc00c00ff"),
    ("up.test.", 30, "HTTPS", "1 www.up.test. ipv4hint=192.0.2.1"),
]


def relayed(query, reply, table=TABLE):
    result = relay(query, reply, table)
    message = read(result.wire)
    assert result.wire[:2] == struct.pack(">H", query.id)
    assert result.wire[12:].startswith(query.question)
    assert result.rcode == message.rcode()
    assert len(result.wire) <= query.limit
    return result, message


@given(
    st.lists(st.sampled_from(LINES), unique=True),
    st.lists(st.sampled_from([SOA, ("up.test.", 300, "NS", "ns.up.test.")]), unique=True),
    st.lists(st.sampled_from(LINES), unique=True),
    st.booleans(),
    st.sampled_from([b"", opt(), opt(flags=0x8000)]),
)
@settings(max_examples=100)
def test_where_nothing_must_change_the_records_are_relayed_as_octets(answer, authority, additional, edns, own):
    query = ask("A1.up.TEST", ident=7, stream=True, additional=own)
    reply = upstream_reply(ask("a1.up.test"), answer, authority, additional, edns=edns)
    result, message = relayed(query, reply)
    end = len(query.question) + 12
    records = reply[end : len(reply) - (11 if edns else 0)]
    assert result.wire[end:].removesuffix(own) == records
    assert (message.edns >= 0, bool(message.ednsflags & dns.flags.DO)) == (bool(own), query.do)
    assert message.options == ()
    assert not result.rewritten


@pytest.mark.parametrize("table", [TABLE, None])
@pytest.mark.parametrize("rcode", ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"])
def test_response_codes_are_relayed(rcode, table):
    result, message = relayed(ask("a1.up.test"), upstream_reply(ask("a1.up.test"), [], [SOA], rcode=rcode), table)
    assert dns.rcode.to_text(message.rcode()) == rcode
    assert texts(message.authority) == [" ".join(["up.test. 30 IN", *SOA[2:]])]
    assert not result.rewritten


@pytest.mark.parametrize(
    ("asked", "upstream", "expected"),
    [
        (0x0100, "QR RD RA", "QR RD RA"),
        (0x0100, "QR AA RD", "QR AA RD RA"),
        (0x0000, "QR RD RA", "QR RA"),
        (0x0110, "QR RD RA", "QR RD RA CD"),
        (0x0100, "QR RD RA CD", "QR RD RA"),
        (0x0100, "QR RD RA AD", "QR RD RA"),
        (0x0120, "QR RD RA AD", "QR RD RA AD"),
        (0x0120, "QR RD RA", "QR RD RA"),
    ],
)
def test_flags_are_the_upstream_s_answer_and_the_client_s_question(asked, upstream, expected):
    reply = upstream_reply(ask("a1.up.test"), [ANSWER], flags=upstream)
    reply = reply[:3] + bytes([reply[3] | 0x40]) + reply[4:]
    _, message = relayed(ask("a1.up.test", flags=asked), reply)
    assert message.flags == dns.flags.from_text(expected)


def test_ad_is_for_clients_that_said_do_too():
    reply = upstream_reply(ask("a1.up.test"), [ANSWER], flags="QR RD RA AD")
    assert relayed(ask("a1.up.test", additional=opt(flags=0x8000)), reply)[1].flags & dns.flags.AD
    assert not relayed(ask("a1.up.test", additional=opt()), reply)[1].flags & dns.flags.AD


DNSSEC = [
    ("a1.up.test.", 300, "RRSIG", SIGNED),
    ("a1.up.test.", 300, "NSEC", "b.up.test. A RRSIG"),
    ("a1.up.test.", 300, "DNSKEY", "256 3 8 AAAA"),
    ("a1.up.test.", 300, "DS", "1 8 2 " + "00" * 32),
    ("x.up.test.", 300, "NSEC3", "1 0 1 AA 00 A"),
]


@pytest.mark.parametrize("section", [0, 1, 2])
@pytest.mark.parametrize(
    ("qtype", "do", "left"),
    [
        (Type.A, False, 1),
        (Type.A, True, 6),
        (Type.ANY, False, 6),
        (Type.DNSKEY, False, 2),
        (Type.RRSIG, False, 2),
    ],
)
def test_dnssec_records_are_for_clients_that_want_them(section, qtype, do, left):
    query = ask("a1.up.test", qtype, stream=True, additional=opt(flags=0x8000 if do else 0))
    sections = [[], [], []]
    sections[section] = [*DNSSEC[:2], ANSWER, *DNSSEC[2:]]
    result, message = relayed(query, upstream_reply(query, *sections))
    assert len(message.sections[section + 1]) == left
    assert not result.rewritten


def test_a_reply_that_was_changed_has_no_dnssec_records_either():
    query = ask(WEB)
    reply = upstream_reply(query, [(WEB + ".", 30, "A", "10.0.0.1")], [], [("a1.up.test.", 300, "RRSIG", SIGNED)])
    result, message = relayed(query, reply)
    assert result.rewritten
    assert message.additional == []


def test_an_opt_record_in_front_of_others_goes_all_the_same():
    query = ask("a1.up.test", additional=opt())
    body = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + b"\1\2\3\4"
    reply = struct.pack(">HHHHHH", 1, 0x8180, 1, 1, 0, 2) + query.question + body + opt(4096, options=b"\0\3\0\0") + body
    _, message = relayed(query, reply)
    assert texts(message.answer) == texts(message.additional) == ["a1.up.test. 5 IN A 1.2.3.4"]
    assert (message.payload, message.options) == (1232, ())


@pytest.mark.parametrize("additional", [b"", opt()])
def test_extended_response_codes_are_about_our_own_hop(additional):
    query = ask("a1.up.test", additional=additional)
    reply = upstream_reply(query, rcode="BADVERS")
    result, _ = relayed(query, reply)
    assert result.rcode == Rcode.SERVFAIL


def test_what_was_not_accepted_cannot_be_relayed():
    assert relayed(ask("a1.up.test"), b"garbage")[0].rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("rcode", [1, 2, 4, 5])
@pytest.mark.parametrize("additional", [b"", opt(flags=0x8000)])
def test_a_header_gets_the_client_s_question_again(rcode, additional):
    query = ask("A1.up.test", additional=additional)
    reply = struct.pack(">HHHHHH", 9, 0x8180 | rcode, 0, 0, 0, 0)
    assert match_reply(query, 9, reply) is None
    result, message = relayed(query, reply)
    assert (result.rcode, message.edns >= 0) == (rcode, bool(additional))


@pytest.mark.parametrize("additional", [b"", opt(flags=0x8000)])
def test_a_truncated_reply_is_relayed_without_records(additional):
    query = ask("a1.up.test", additional=additional)
    _, message = relayed(query, upstream_reply(query, [ANSWER], flags="QR TC RD RA AA"))
    assert message.flags == dns.flags.QR | dns.flags.TC | dns.flags.RD | dns.flags.RA | dns.flags.AA
    assert (message.answer, message.edns >= 0) == ([], bool(additional))


GIANT = [("giant.up.test.", 300, "A", f"192.0.2.{number}") for number in range(64)]


def texts_of(size):
    """A TXT record that makes the reply of TXT_QUERY, without OPT record, as long as this."""
    room = size - 12 - len(question("513resp.up.test")) - 12
    strings = []
    while room > 0:
        take = min(room, 256)
        take = take - 1 if room - take == 1 else take
        strings.append('"' + "x" * (take - 1) + '"')
        room -= take
    return [("513resp.up.test.", 300, "TXT", " ".join(strings))]


@pytest.mark.parametrize(
    ("size", "additional", "stream", "truncated"),
    [
        (512, b"", False, False),
        (513, b"", False, True),
        (513, opt(524), False, False),
        (513, opt(523), False, True),
        (1221, opt(4096), False, False),
        (1222, opt(4096), False, True),
        (65535, b"", True, False),
        (65524, opt(), True, False),
    ],
)
def test_a_reply_too_long_for_its_client_is_truncated(size, additional, stream, truncated):
    query = ask("513resp.up.test", Type.TXT, stream=stream, additional=additional)
    reply = upstream_reply(query, texts_of(size), edns=False)
    assert len(reply) == size
    result, message = relayed(query, reply)
    assert bool(message.flags & dns.flags.TC) is truncated
    assert len(message.answer) == (0 if truncated else 1)
    assert (message.edns >= 0) is bool(additional)
    assert truncated or len(result.wire) == size + len(additional)


def test_on_a_stream_the_opt_record_gives_way_to_a_whole_answer():
    query = ask("513resp.up.test", Type.TXT, stream=True, additional=opt())
    reply = upstream_reply(query, texts_of(65535), edns=False)
    result, message = relayed(query, reply)
    assert (len(result.wire), message.edns) == (65535, -1)


@pytest.mark.parametrize(
    ("additional", "octets"), [(b"", 12 + len(question("giant.up.test"))), (opt(512), 12 + len(question("giant.up.test")) + 11)]
)
def test_a_truncated_reply_has_no_part_of_a_set(additional, octets):
    query = ask("giant.up.test", additional=additional)
    result, message = relayed(query, upstream_reply(query, GIANT))
    assert message.flags & dns.flags.TC
    assert len(result.wire) == octets


def test_additional_records_are_left_out_without_a_word():
    query = ask("a1.up.test", additional=opt(512))
    for answer in ([ANSWER], [ANSWER, ("a1.up.test.", 300, "RRSIG", SIGNED)]):
        _, message = relayed(query, upstream_reply(query, answer, [SOA], GIANT))
        assert not message.flags & dns.flags.TC
        assert (len(message.answer), len(message.authority), len(message.additional)) == (1, 1, 0)


def test_compression_is_kept():
    query = ask("cmp.up.test")
    reply = upstream_reply(query, [("cmp.up.test.", 300, "MX", f"{n} {'m' * 20}{n}.cmp.up.test.") for n in range(8)])
    result, message = relayed(query, reply)
    assert not message.flags & dns.flags.TC
    assert len(result.wire) == len(reply) - 11


def test_octets_of_unknown_types_are_never_taken_for_pointers():
    query = ask("unk.up.test", 65280)
    reply = upstream_reply(
        query, [("unk.up.test.", 300, "TYPE65280", r"\# 6 c00cc00c00ff"), ("unk.up.test.", 300, "RRSIG", SIGNED)]
    )
    assert relay(query, reply, TABLE).wire.endswith(b"\0\6\xc0\x0c\xc0\x0c\0\xff"), "encoded anew, since a signature goes"


def test_a_message_that_grew_beyond_65535_octets_is_a_failure():
    """Encoded anew, because of a signature in front, names beyond the reach of a pointer are longer than they were."""
    query = ask("a1.up.test", stream=True)
    long = (b"\x3f" + b"a" * 63) * 3 + b"\x20" + b"b" * 32 + b"\0"
    head = struct.pack(">HHHHHH", 1, 0x8180, 1, 303, 0, 0) + query.question
    name_at = 0xC000 | len(head)
    signature = long + struct.pack(">HHIH", Type.RRSIG, 1, 5, 0)
    filler = (b"\xc0\x0c" + struct.pack(">HHIH", 65280, 1, 5, 8192) + b"x" * 8192) * 2
    pointing = (
        struct.pack(">H", name_at) + struct.pack(">HHIH", Type.SRV, 1, 5, 6 + 2) + b"\0" * 6 + struct.pack(">H", name_at)
    ) * 300
    reply = head + signature + filler + pointing
    assert len(reply) < 65535
    assert scan(reply) is not None
    assert relay(query, reply, TABLE).rcode == Rcode.SERVFAIL


def test_the_worst_reply_is_relayed_within_its_share():
    """5000 records in 64 KiB that all need name compression (SPF-28); unchanged, and with one record to remove."""
    query = ask("s28.up.test", stream=True)
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 65280, 1, 5, 0) for _ in range(4998))
    signature = b"\xc0\x0c" + struct.pack(">HHIH", Type.RRSIG, 1, 5, 0)
    for body in (records + records[:24], records + signature + records[:12]):
        reply = struct.pack(">HHHHHH", 1, 0x8180, 1, 5000, 0, 0) + query.question + body
        before = time.process_time()
        result = relay(query, reply, TABLE)
        assert time.process_time() - before < 0.5
        assert result.rcode == 0


@given(st.lists(st.sampled_from([*LINES, *DNSSEC]), unique=True), st.data())
@settings(max_examples=100)
def test_whatever_is_relayed_can_be_read_and_echoes_id_and_question(lines, data):
    names = st.sampled_from(["a1.up.test", WEB, "ext.shop.svc.cluster.local"])
    query = ask(
        data.draw(names),
        data.draw(st.sampled_from([1, 28, 65, 16, 46, 255])),
        additional=data.draw(st.sampled_from([b"", opt(), opt(4096, flags=0x8000)])),
    )
    bound = [(WEB + ".", 30, "A", "10.0.0.1"), ("ext.shop.svc.cluster.local.", 30, "CNAME", WEB + ".")]
    reply = upstream_reply(
        query,
        lines,
        data.draw(st.sampled_from([[], [SOA]])),
        data.draw(st.sampled_from([[], bound])),
        edns=data.draw(st.booleans()),
    )
    result, _ = relayed(query, reply)
    assert bytes([10, 0, 0, 1]) not in result.wire


@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_reply_raises(garbage, at):
    query = ask(WEB)
    reply = upstream_reply(query, [(WEB + ".", 30, "A", "10.0.0.1"), ANSWER])
    relayed(query, reply[:at] + garbage + reply[at + len(garbage) :])
    relayed(query, garbage)
