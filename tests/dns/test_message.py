"""dnslib behind its guards: what it must never see, and the stand-in CoreDNS it makes."""

from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_dns.dns.message import Answer, answer, make_query, parse, read_answer
from canal_dns.errors import WireError
from tests.dns.packets import ask, opt, packet, queries, question, read, upstream_reply

ZONE = {
    "web.shop.svc.cluster.local": [("A", "10.0.0.1"), ("AAAA", "fd00::1")],
    "_http._tcp.web.shop.svc.cluster.local": [("SRV", "0 100 80 web.shop.svc.cluster.local.")],
    "ext.shop.svc.cluster.local": [("CNAME", "Web.shop.svc.cluster.local.")],
    "loop.shop.svc.cluster.local": [("CNAME", "loop.shop.svc.cluster.local.")],
    "out.shop.svc.cluster.local": [("CNAME", "out.example.")],
    "1.0.0.10.in-addr.arpa": [("PTR", "web.shop.svc.cluster.local.")],
}


def asked(name, qtype):
    return read_answer(answer(make_query(name, qtype, 7), ZONE, "cluster.local"))


SHOP = "shop.svc.cluster.local"
SOA = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "records"),
    [
        (f"web.{SHOP}", "A", "NOERROR", [f"web.{SHOP}. 5 IN A 10.0.0.1"]),
        (f"WEB.{SHOP}.", "aaaa", "NOERROR", [f"web.{SHOP}. 5 IN AAAA fd00::1"]),
        (f"web.{SHOP}", "TXT", "NOERROR", []),
        (SHOP, "A", "NOERROR", []),
        ("cluster.local", "A", "NOERROR", []),
        ("nothing.svc.cluster.local", "A", "NXDOMAIN", []),
        ("example.com", "A", "REFUSED", []),
        ("1.0.0.10.in-addr.arpa", "PTR", "NOERROR", [f"1.0.0.10.in-addr.arpa. 5 IN PTR web.{SHOP}."]),
        (f"_http._tcp.web.{SHOP}", "SRV", "NOERROR", [f"_http._tcp.web.{SHOP}. 5 IN SRV 0 100 80 web.{SHOP}."]),
        (f"ext.{SHOP}", "A", "NOERROR", [f"ext.{SHOP}. 5 IN CNAME Web.{SHOP}.", f"web.{SHOP}. 5 IN A 10.0.0.1"]),
        (f"ext.{SHOP}", "CNAME", "NOERROR", [f"ext.{SHOP}. 5 IN CNAME Web.{SHOP}."]),
        (f"loop.{SHOP}", "A", "NOERROR", [f"loop.{SHOP}. 5 IN CNAME loop.{SHOP}."]),
        (f"out.{SHOP}", "A", "NOERROR", [f"out.{SHOP}. 5 IN CNAME out.example."]),
        ("cluster.local", "SOA", "NOERROR", [f"cluster.local. 5 IN SOA {SOA}"]),
    ],
)
def test_the_stand_in_answers_as_coredns_would(name, qtype, rcode, records):
    got = asked(name, qtype)
    assert got.rcode == rcode
    assert [line.lower() for line in got.records] == [line.lower() for line in records]


@pytest.mark.parametrize(("name", "rcode"), [("shop.svc.cluster.local", "NOERROR"), ("nothing.cluster.local", "NXDOMAIN")])
@pytest.mark.parametrize("additional", [b"", opt(), opt(flags=0x8000)])
def test_empty_answers_carry_the_soa(name, rcode, additional):
    reply = read(answer(packet(name, additional=additional), ZONE, "cluster.local"))
    assert dns.rcode.to_text(reply.rcode()) == rcode
    assert reply.authority[0].to_text() == f"cluster.local. 5 IN SOA {SOA}"
    assert reply.flags & ~15 == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert (reply.edns >= 0, reply.ednsflags) == (bool(additional), dns.flags.DO if additional[7:8] == b"\x80" else 0)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (packet(flags=0x8100), None),
        (b"", None),
        (packet(flags=0x2800), dns.rcode.NOTIMP),
        (packet(qclass=3), dns.rcode.REFUSED),
        (packet(b"\1\xe9\7cluster\5local\0"), dns.rcode.FORMERR),
    ],
)
def test_the_stand_in_turns_away_what_is_no_query(data, rcode):
    reply = answer(data, ZONE, "cluster.local")
    assert reply is None if rcode is None else read(reply).rcode() == rcode


@given(queries())
def test_the_stand_in_never_raises(data):
    reply = answer(data, ZONE, "cluster.local")
    assert reply is None or read(reply).id == int.from_bytes(data[:2])


def test_a_query_is_made():
    query = dns.message.from_wire(make_query("Web.shop.svc.cluster.local", "https", 0x1234))
    assert (query.id, query.flags, query.payload) == (0x1234, dns.flags.RD, 1232)
    assert query.question[0].to_text() == "Web.shop.svc.cluster.local. IN HTTPS"
    assert make_query(".", "NS", 1)[12:17] == b"\0\0\2\0\1"


@pytest.mark.parametrize(("name", "qtype"), [("a..b", "A"), ("a", "FOO"), ("a", "")])
def test_what_is_no_question_is_refused(name, qtype):
    with pytest.raises(WireError):
        make_query(name, qtype, 1)


def test_a_reply_is_read_as_text():
    query = ask("a1.up.test")
    reply = upstream_reply(query, [("a1.up.test.", 300, "A", "192.0.2.1"), ("a1.up.test.", 300, "TXT", '"x"')])
    assert read_answer(reply) == Answer("NOERROR", ("a1.up.test. 300 IN A 192.0.2.1", 'a1.up.test. 300 IN TXT "x"'))
    assert read_answer(upstream_reply(query, rcode="NXDOMAIN")) == Answer("NXDOMAIN", ())


def chained_pointers(count):
    """A message of records whose owners are pointers to pointers, one more for each record."""
    head = struct.pack(">HHHHHH", 1, 0x8180, 1, count, 0, 0) + question("a1.up.test")
    owners = [0xC00C] + [0xC000 | len(head) + 12 * (number - 1) for number in range(1, count)]
    return head + b"".join(struct.pack(">HHHIH", owner, 65280, 1, 5, 0) for owner in owners)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        packet()[:11],
        packet() + b"\0",
        packet(b"\x40" + b"a" * 64 + b"\0"),
        packet((b"\x3f" + b"a" * 63) * 4 + b"\0"),
        packet(counts=(1, 1, 0, 0)) + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 5) + b"12345",
        packet(additional=opt() + opt()),
        packet(b"\1\xff\0"),
        chained_pointers(1300),
        b"\0" * 65536,
    ],
)
def test_what_dnslib_would_stumble_over_is_a_wire_error(data):
    with pytest.raises(WireError):
        parse(data)


@given(st.one_of(queries(), st.binary(max_size=80)))
def test_reading_gives_a_message_or_a_wire_error(data):
    try:
        record = parse(data)
    except WireError:
        return
    assert record.header.id == int.from_bytes(data[:2])
