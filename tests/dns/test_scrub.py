"""What a client learns of a bound name from others' replies: one row for each way an address could slip past the gateway."""

from __future__ import annotations

import dns.flags
import dns.rcode
import pytest

from canal_dns.dns.codes import Rcode, Type
from canal_dns.dns.records import scan
from canal_dns.dns.relay import relay
from canal_dns.dns.scrub import concerns, scrub
from tests.dns.packets import WEB, ask, bound_table, opt, packet, read, texts, upstream_reply

TABLE = bound_table()
WEB_ = WEB + "."
DUAL = "dual.shop.svc.cluster.local."
V6 = "v6.shop.svc.cluster.local."
EXT = "ext.shop.svc.cluster.local."
SOA = ("cluster.local.", 30, "SOA", "ns.dns.cluster.local. hostmaster.cluster.local. 1 2 3 4 30")
CHAIN = f"{EXT} 30 IN CNAME {WEB_}"
VIP = f"{WEB_} 5 IN A 10.96.0.200"
OUR_SOA = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 2026 7200 1800 86400 5"
SIGNED = "{} 8 2 300 20300101000000 20200101000000 1 cluster.local. AAAA"


def relayed(query, *sections, **more):
    result = relay(query, upstream_reply(query, *sections, **more), TABLE)
    return result, read(result.wire)


@pytest.mark.parametrize(
    ("qtype", "tail", "answers"),
    [
        (Type.A, [(WEB_, 30, "A", "10.0.0.1")], [CHAIN, VIP]),
        (Type.A, [(WEB_, 2, "A", "10.0.0.1")], [CHAIN, f"{WEB_} 2 IN A 10.96.0.200"]),
        (Type.A, [(WEB_, 0x80000001, "A", "10.0.0.1")], [CHAIN, f"{WEB_} 0 IN A 10.96.0.200"]),
        (Type.A, [(WEB_, 30, "A", "10.0.0.1"), (WEB_, 30, "A", "10.0.0.2")], [CHAIN, VIP]),
        (Type.A, [], [CHAIN, VIP]),
        (Type.A, [("other.test.", 30, "A", "10.0.0.1")], [CHAIN, VIP]),
        (Type.A, [(WEB_, 30, "CNAME", "else.test."), ("else.test.", 9, "A", "10.0.0.1")], [CHAIN, VIP]),
        (Type.AAAA, [(WEB_, 30, "AAAA", "fd00::1")], [CHAIN]),
        (Type.AAAA, [], [CHAIN]),
        (Type.HTTPS, [(WEB_, 30, "HTTPS", "1 . ipv4hint=10.0.0.1")], [CHAIN]),
        (Type.SVCB, [(WEB_, 30, "SVCB", "1 . ipv4hint=10.0.0.1")], [CHAIN]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rcode", ["NOERROR", "NXDOMAIN", "SERVFAIL"])
def test_a_chain_that_ends_at_a_bound_name_ends_at_its_vip(qtype, tail, answers, rcode):
    result, message = relayed(ask(EXT, qtype), [(EXT, 30, "CNAME", WEB_), *tail], rcode=rcode)
    assert texts(message.answer) == sorted(answers)
    assert (result.rcode, message.rcode(), result.rewritten) == (Rcode.NOERROR, dns.rcode.NOERROR, True)
    assert texts(message.authority) == ([] if len(answers) > 1 else [OUR_SOA]), "an empty answer says how long it is empty"


def test_the_chain_is_found_whatever_its_length_order_and_case():
    chain = [
        ("a.test.", 30, "CNAME", "B.test."),
        (WEB_, 30, "A", "10.0.0.1"),
        ("c.TEST.", 30, "CNAME", WEB_.upper()),
        ("b.TEST.", 30, "CNAME", "C.test."),
    ]
    _, message = relayed(ask("A.test"), chain)
    assert [line.partition(" ")[2].lower() for line in map(str, message.answer)] == [
        "30 in cname b.test.",
        f"30 in cname {WEB_}",
        "30 in cname c.test.",
        "5 in a 10.96.0.200",
    ]


def test_a_dname_and_the_signatures_of_the_chain_stay_with_clients_that_want_them():
    answer = [
        ("test.", 30, "DNAME", "shop.svc.cluster.local."),
        ("test.", 30, "RRSIG", SIGNED.format("DNAME")),
        ("web.test.", 30, "CNAME", WEB_),
        ("web.test.", 30, "RRSIG", SIGNED.format("CNAME")),
        (WEB_, 30, "A", "10.0.0.1"),
        (WEB_, 30, "RRSIG", SIGNED.format("A")),
    ]
    query = ask("web.test", additional=opt(flags=0x8000))
    _, message = relayed(query, answer, flags="QR RD RA AD")
    assert [(str(one.name), one.rdtype.name) for one in message.answer] == [
        ("test.", "DNAME"),
        ("test.", "RRSIG"),
        ("web.test.", "CNAME"),
        ("web.test.", "RRSIG"),
        (WEB_, "A"),
    ]
    assert not message.flags & dns.flags.AD, "what was changed is not what was signed"


def test_a_chain_of_another_family_keeps_the_upstream_s_soa():
    _, message = relayed(ask(EXT, Type.AAAA), [(EXT, 30, "CNAME", WEB_)], [SOA], rcode="NXDOMAIN")
    assert texts(message.authority) == [" ".join([SOA[0], str(SOA[1]), "IN", *SOA[2:]])]
    assert message.rcode() == dns.rcode.NOERROR


def test_with_an_address_the_negative_part_of_the_reply_goes():
    _, message = relayed(ask(EXT), [(EXT, 30, "CNAME", WEB_)], [SOA], rcode="NXDOMAIN")
    assert message.authority == []
    assert len(message.answer) == 2


def test_a_name_bound_while_its_reply_was_on_the_way_answers_as_bound():
    _, message = relayed(ask(WEB), [(WEB_, 30, "A", "10.0.0.1")], [], [(DUAL, 30, "AAAA", "fd00::1")])
    assert texts(message.answer) == [VIP]
    assert texts(message.additional) == [f"{DUAL} 5 IN AAAA fd00:10:96::c8"]
    _, message = relayed(ask(WEB), [], [SOA], rcode="NXDOMAIN")
    assert texts(message.answer) == [VIP]


@pytest.mark.parametrize(
    ("rtype", "data", "left"),
    [
        ("A", "10.0.0.1", [VIP]),
        ("AAAA", "fd00::1", []),
        ("HTTPS", "1 . ipv4hint=10.0.0.1", []),
        ("SVCB", "0 else.test.", []),
        ("RRSIG", SIGNED.format("A"), []),
        ("RRSIG", SIGNED.format("HTTPS"), []),
        ("RRSIG", SIGNED.format("TXT"), [f"{WEB_} 30 IN RRSIG " + SIGNED.format("TXT")]),
        ("TXT", '"text"', [f'{WEB_} 30 IN TXT "text"']),
        ("CNAME", "else.test.", [f"{WEB_} 30 IN CNAME else.test."]),
    ],
)
@pytest.mark.parametrize("section", [0, 1, 2])
def test_records_of_a_bound_name_in_any_section(section, rtype, data, left):
    sections = [[], [], []]
    sections[section].append((WEB_, 30, rtype, data))
    query = ask("_http._tcp." + WEB, Type.SRV, additional=opt(flags=0x8000))
    result, message = relayed(query, *sections)
    assert texts(message.sections[section + 1]) == left
    assert result.rewritten is (left != [" ".join([WEB_, "30", "IN", rtype, data])])


def test_srv_targets_get_the_vip_once_per_family():
    srv = [("_http._tcp.x.test.", 30, "SRV", f"0 50 80 {DUAL}"), ("_http._tcp.x.test.", 30, "SRV", f"0 50 80 {V6}")]
    more = [
        (DUAL, 30, "A", "10.0.0.1"),
        (DUAL, 30, "A", "10.0.0.2"),
        (DUAL, 3, "AAAA", "fd00::1"),
        (V6, 30, "A", "10.0.0.3"),
        ("real.test.", 30, "A", "192.0.2.1"),
    ]
    _, message = relayed(ask("_http._tcp.x.test", Type.SRV), srv, [], more)
    assert texts(message.additional) == sorted([
        f"{DUAL} 5 IN A 10.96.0.200",
        f"{DUAL} 3 IN AAAA fd00:10:96::c8",
        "real.test. 30 IN A 192.0.2.1",
    ])  # fmt: skip
    assert len(message.answer) == 2


@pytest.mark.parametrize(
    ("data", "stays"),
    [
        (f"1 {WEB_} ipv4hint=10.0.0.1", False),
        (f"1 {WEB_.upper()} ipv4hint=10.0.0.1", False),
        (f"0 {WEB_}", True),
        ("1 else.test. ipv4hint=192.0.2.1", True),
        ("1 . ipv4hint=192.0.2.1", True),
        (r"\# 0", True),
        (r"\# 1 00", True),
        (r"\# 4 0001ff00", True),
    ],
)
def test_service_records_of_others_may_carry_a_bound_name_s_addresses(data, stays):
    query = ask("svc.test", Type.HTTPS)
    reply = upstream_reply(query, [("svc.test.", 30, "TYPE65280" if data[0] == "\\" else "HTTPS", data)])
    reply = reply.replace(b"\xff\x00\0\1\0\0\0\x1e", b"\0\x41\0\1\0\0\0\x1e")
    found = scan(reply)
    changed = scrub(query, found, TABLE, 0)
    assert (changed is None) is stays
    assert stays or (concerns(query, found, TABLE) and changed.entries == [])


def test_addresses_of_another_class_are_not_addresses():
    query = ask("x.test")
    reply = upstream_reply(query, [], [], [(WEB_, 30, "A", "10.0.0.1")], edns=False)
    reply = reply[:-12] + b"\0\3" + reply[-10:]
    found = scan(reply[:-14] + b"\0\1" + reply[-12:])
    assert found.records[0].rclass == 3
    assert concerns(query, found, TABLE)
    assert scrub(query, found, TABLE, 0) is None


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (ask("a1.up.test"), [("a1.up.test.", 30, "A", "10.0.0.1")]),
        (ask("foo." + WEB), [("foo." + WEB_, 30, "A", "10.0.0.1")]),
        (ask("a.test"), [("a.test.", 30, "CNAME", "b.test."), ("b.test.", 30, "CNAME", "a.test.")]),
        (ask("a.test"), [("b.test.", 30, "CNAME", WEB_)]),
        (ask("a.test", Type.TXT), [("a.test.", 30, "CNAME", WEB_), (WEB_, 30, "TXT", "text")]),
        (ask(WEB, Type.TXT), [(WEB_, 30, "TXT", "text")]),
        (ask("1.0.0.10.in-addr.arpa", Type.PTR), [("1.0.0.10.in-addr.arpa.", 30, "PTR", WEB_)]),
    ],
)
def test_nothing_changes_where_nobody_is_led_past_the_gateway(query, answer):
    result, message = relayed(query, answer)
    assert not result.rewritten
    assert texts(message.answer) == texts(read(upstream_reply(query, answer)).answer)


def test_packets_of_conformance_case_bnd_12():
    query = ask(EXT)
    reply = upstream_reply(query, [(EXT, 30, "CNAME", WEB_), (WEB_, 30, "A", "10.0.0.1")])
    assert bytes([10, 0, 0, 1]) not in relay(query, reply, TABLE).wire
    assert bytes([10, 0, 0, 1]) in relay(query, reply, None).wire, "before the first sync"
    assert packet(EXT)[12:] == query.question
