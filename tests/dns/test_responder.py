"""The order of section "one packet" is the contract: each check is tested for its verdict, and against every later one."""

from __future__ import annotations

import ipaddress
import json
from itertools import combinations
from pathlib import Path

import dns.flags
import dns.rcode
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from canal_dns.dns import names, responder
from canal_dns.dns.access import Gate
from canal_dns.dns.codes import Rcode, Type
from canal_dns.dns.responder import Drop, Forward, Reply, Source, answer_from_table, decide
from canal_dns.dns.table import Addresses, AnswerTable
from canal_dns.dns.wire import truncated_reply
from canal_dns.settings import AccessSettings, RateLimitSettings
from tests.dns.packets import (
    WEB,
    ask,
    bound_table,
    judge,
    labels,
    opt,
    packet,
    queries,
    question,
    read,
    spelled,
    texts,
    wire,
)  # fmt: skip

TABLE = bound_table()
CASES = json.loads((Path(__file__).parent.parent / "conformance" / "cases.json").read_text())["cases"]
GROUPS = ("HDR", "OPC", "QD", "NAM", "EDN", "OPTN", "TYP", "CLS", "BND", "NEG")


def test_a_bound_name_is_answered_from_the_table():
    reply = judge(packet(), table=TABLE)
    assert (reply.rcode, reply.source, reply.qtype) == (Rcode.NOERROR, Source.TABLE, Type.A)
    message = read(reply.wire)
    assert texts(message.answer) == [f"{WEB}. 5 IN A 10.96.0.200"]
    assert (message.id, message.edns) == (0x1A2B, -1)


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        (WEB, Type.TXT),
        (WEB, 0),
        (WEB, 65535),
        ("foo." + WEB, Type.A),
        ("shop.svc.cluster.local", Type.A),
        ("web", Type.A),
        ("*.shop.svc.cluster.local", Type.A),
        (WEB + ".shop.svc.cluster.local", Type.A),
        ("a1.up.test", Type.A),
        (".", Type.A),
        (".", Type.SOA),
    ],
)
@pytest.mark.parametrize("flags", [0x0000, 0x0100])
def test_everything_else_is_forwarded(name, qtype, flags):
    data = packet(name, qtype, flags=flags)
    assert judge(data, table=TABLE) == Forward(ask(name, qtype, flags=flags))
    assert answer_from_table(data, TABLE, False) is None


def test_before_the_first_sync_everything_is_forwarded():
    assert judge(packet()) == Forward(ask())


@pytest.mark.parametrize("address", ["10.244.1.7", "::ffff:10.244.1.7"])
@pytest.mark.parametrize("stream", [False, True])
def test_for_an_exempt_client_nothing_is_bound(address, stream):
    gate = Gate(AccessSettings(), ["10.244.1.7"])
    for qtype in (Type.A, Type.AAAA, Type.HTTPS, Type.ANY, Type.TXT):
        verdict = decide(packet(WEB, qtype), address, 4242, stream, TABLE, gate, 0.0)
        assert isinstance(verdict, Forward)
        assert (verdict.query.qtype, verdict.exempt) == (qtype, True)
        other = decide(packet(WEB, qtype), "10.244.1.8", 4242, stream, TABLE, gate, 0.0)
        assert isinstance(other, Forward if qtype == Type.TXT else Reply)
    assert decide(packet(".", Type.NS), address, 4242, stream, TABLE, gate, 0.0).source is Source.LOCAL
    # Before the first table too: there may be one when the reply comes.
    assert decide(packet(), address, 4242, stream, None, gate, 0.0).exempt


def test_an_exempt_client_over_its_limit_is_told_nothing_of_what_is_bound():
    for exempt, authoritative in ((), True), (["10.244.1.7"], False):
        gate = Gate(AccessSettings(rate_limit=RateLimitSettings(1, 1, ())), exempt)
        gate.verdict("10.244.1.7", stream=False, now=0.0)
        reply = read(decide(packet(), "10.244.1.7", 4242, False, TABLE, gate, 0.0).wire)
        assert bool(reply.flags & dns.flags.TC)
        assert bool(reply.flags & dns.flags.AA) is authoritative


@pytest.mark.parametrize("additional", [b"", opt(4096, flags=0x8000)])
def test_coredns_s_probe_is_answered_at_once(additional):
    reply = judge(packet(".", Type.NS, additional=additional))
    assert (reply.rcode, reply.source, reply.qtype) == (Rcode.NOERROR, Source.LOCAL, Type.NS)
    message = read(reply.wire)
    assert message.section_count(1) == message.section_count(2) == 0
    assert message.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert (message.edns >= 0, bool(message.ednsflags & dns.flags.DO)) == (bool(additional), bool(additional))


ALLOWED, STRANGER, LIMITED = "10.0.0.1", "8.8.8.8", "10.0.0.2"

# One fault per step of the order, each as changes to a sound query for a bound name; a later change wins.
STEPS = {
    "short": ({"cut": 11}, Drop("short")),
    "response": ({"qr": 0x8000}, Drop("response")),
    "port": ({"port": 19}, Drop("source-port")),
    "acl": ({"address": STRANGER}, Rcode.REFUSED),
    "limit": ({"exhausted": True}, Drop("rate-limit")),
    "opcode": ({"opcode": 0x2800}, Rcode.NOTIMP),
    "counts": ({"answers": 1}, Rcode.FORMERR),
    "name": ({"name": b"\xc0\x0c"}, Rcode.FORMERR),
    "opt": ({"tail": b"\0"}, Rcode.FORMERR),
    "version": ({"version": 1}, Rcode.BADVERS),
    "class": ({"qclass": 3}, Rcode.REFUSED),
    "meta": ({"qtype": Type.OPT}, Rcode.FORMERR),
}
REASONS = {"counts": "counts", "name": "name", "opt": "opt", "meta": "meta-type"}


def judge_with(*faults):
    change = {key: value for fault in faults for key, value in STEPS[fault][0].items()}
    data = packet(
        change.get("name", WEB),
        change.get("qtype", Type.A),
        flags=0x0100 | change.get("qr", 0) | change.get("opcode", 0),
        qclass=change.get("qclass", 1),
        counts=(1, change.get("answers", 0), 0, 1),
        additional=opt(version=change.get("version", 0)) + change.get("tail", b""),
    )
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(1, 0, ()) if "exhausted" in change else RateLimitSettings()))
    address = change.get("address", ALLOWED)
    if "exhausted" in change:
        gate.verdict(address, stream=False, now=1.0)
    return decide(data[: change.get("cut", len(data))], address, change.get("port", 4000), False, TABLE, gate, 1.0), data


@pytest.mark.parametrize("fault", STEPS)
def test_each_check_gives_its_verdict(fault):
    verdict, _ = judge_with(fault)
    expected = STEPS[fault][1]
    assert verdict == expected if isinstance(expected, Drop) else verdict.rcode == expected
    assert isinstance(verdict, Drop) or read(verdict.wire).rcode() == expected


@pytest.mark.parametrize(("first", "second"), list(combinations(STEPS, 2)))
def test_of_two_faults_the_earlier_check_decides(first, second):
    """Verdicts that look alike (three FORMERRs) are told apart by what the reply can still echo, or by their reason."""
    alone, _ = judge_with(first)
    both, data = judge_with(first, second)
    if isinstance(alone, Drop):
        assert both == alone
        return
    assert both.rcode == alone.rcode
    if first in ("opcode", "counts", "name"):
        assert len(both.wire) == 12, "no more than a header"
    if first in REASONS:
        assert responder.parse_query(data, stream=False).reason == REASONS[first]


def test_the_order_is_that_of_the_steps_listed_here():
    assert list(STEPS) == [
        "short", "response", "port", "acl", "limit", "opcode", "counts", "name", "opt", "version", "class", "meta",
    ]  # fmt: skip


@pytest.mark.parametrize("port", [0, 7, 13, 19, 37])
def test_ports_that_answer_anything_get_no_answer(port):
    assert judge(packet(), table=TABLE, port=port) == Drop("source-port")


@pytest.mark.parametrize(
    ("data", "rcode", "echo"),
    [
        (packet("A1.up.test", additional=opt()), Rcode.REFUSED, True),
        (packet("A1.up.test") + b"\0", Rcode.REFUSED, True),
        (packet(b"\xc0\x0c"), Rcode.REFUSED, False),
        (packet(flags=0x2800), Rcode.REFUSED, False),
    ],
)
def test_strangers_are_refused_in_a_form_that_stub_resolvers_take(data, rcode, echo):
    reply = judge(data, table=TABLE, address=STRANGER)
    assert (reply.rcode, reply.source) == (rcode, Source.LOCAL)
    assert reply.qtype == (Type.A if echo else 0)
    assert (reply.wire[12:24] == wire("A1.up.test")) is echo


def test_strangers_and_faults_share_one_limit_of_error_replies():
    gate = Gate(AccessSettings(error_replies_per_second=2))
    bad, good = packet() + b"\0", packet()
    assert isinstance(judge(bad, gate=gate, table=TABLE), Reply)
    assert isinstance(judge(good, gate=gate, table=TABLE, address=STRANGER), Reply)
    assert judge(bad, gate=gate, table=TABLE) == Drop("error-limit")
    assert judge(good, gate=gate, table=TABLE, address=STRANGER) == Drop("error-limit")
    assert isinstance(judge(good, gate=gate, table=TABLE), Reply), "sound queries are not counted"
    assert isinstance(judge(bad, gate=gate, table=TABLE, stream=True), Reply), "a stream's address is proven"
    assert isinstance(judge(bad, gate=gate, table=TABLE, now=101.0), Reply)


def test_no_error_replies_at_all():
    gate = Gate(AccessSettings(error_replies_per_second=0))
    assert judge(packet() + b"\0", gate=gate) == Drop("error-limit")


@pytest.mark.parametrize(("name", "authoritative"), [(WEB, True), ("a1.up.test", False)])
def test_above_the_rate_a_client_is_sent_to_tcp(name, authoritative):
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(1, 1, ())))
    judge(packet(name), gate=gate, table=TABLE)
    reply = judge(packet(name, additional=opt()), gate=gate, table=TABLE)
    message = read(reply.wire)
    assert message.flags & dns.flags.TC
    assert bool(message.flags & dns.flags.AA) is authoritative
    assert (message.section_count(1), message.edns) == (0, 0)
    assert isinstance(judge(packet(name), gate=gate, table=TABLE, stream=True), Reply | Forward)
    assert not read(judge(packet(name), gate=gate).wire).flags & dns.flags.AA, "nothing is bound yet"


def test_above_the_rate_what_is_no_query_gets_nothing():
    gate = Gate(AccessSettings(rate_limit=RateLimitSettings(1, 1, ())))
    judge(packet(), gate=gate)
    assert judge(packet(flags=0x2800), gate=gate) == Drop("rate-limit")


MANY = AnswerTable(names.from_text("cluster.local"))
MANY.apply({wire(WEB): Addresses(tuple(bytes([10, 96, 0, last]) for last in range(20)), (), 5)}, 1, 1)


@pytest.mark.parametrize("additional", [b"", opt(), opt(4096, flags=0x8000)])
def test_whoever_may_be_somebody_else_gets_no_more_than_three_times_his_query(additional):
    gate = Gate(AccessSettings(allow=(ipaddress.ip_network("0.0.0.0/0"),)))
    data = packet(additional=additional)
    reply = judge(data, table=MANY, gate=gate, address="198.51.100.7").wire
    assert reply == truncated_reply(ask(additional=additional), authoritative=True)
    assert len(judge(data, table=MANY, gate=gate, address=ALLOWED).wire) > 3 * len(data), "a private network's clients get all"
    assert len(judge(data, table=MANY, gate=gate, address="198.51.100.7", stream=True).wire) > 3 * len(data)
    padded = packet(additional=opt(options=b"\0\x0c\0\xff" + bytes(255)))
    assert not judge(padded, table=MANY, gate=gate, address="198.51.100.7").wire[2] & 2


def test_what_is_forwarded_for_somebody_who_may_be_another_may_not_be_longer_either():
    gate = Gate(AccessSettings(allow=(ipaddress.ip_network("0.0.0.0/0"),)))
    for additional in (b"", opt(), opt(4096)):
        data = packet("a1.up.test", additional=additional)
        verdict = judge(data, gate=gate, address="198.51.100.7")
        assert verdict.query.limit == 3 * len(data)
        assert judge(data, gate=gate, address="198.51.100.7", stream=True).query.limit == 65_535
        assert judge(data, gate=gate).query.limit == (512 if additional in (b"", opt(512)) else 1232)


@given(queries(), st.booleans())
@example(packet(qtype=Type.HTTPS), False)
@example(packet(qtype=Type.HTTPS + 32), False)
@example(packet(additional=opt(options=opt())), False)
@example(packet(additional=opt(version=1)), False)
@settings(max_examples=300)
def test_the_short_cut_gives_the_very_bytes_of_the_whole_way(data, stream):
    table = bound_table()
    short = answer_from_table(data, table, stream)
    long = judge(data, table=table, stream=stream)
    if short is not None:
        assert isinstance(long, Reply)
        assert short == long.wire
        assert long.source is Source.TABLE
        assert answer_from_table(data, table, stream) == short, "from memory"
    elif isinstance(long, Reply) and long.source is Source.TABLE:
        assert data[3] & 15, "only a query with a response code takes the long way to the table"


@given(spelled(WEB), st.sampled_from([Type.A, Type.AAAA, Type.HTTPS, Type.SVCB, Type.ANY]), st.integers(0, 255))
def test_every_usual_query_for_a_bound_name_takes_the_short_cut(name, qtype, bits):
    flags = (bits & 0xF0) | (bits & 7) << 8
    for additional in (b"", opt(), opt(65535, flags=0x8000), opt(options=b"\0\x0a\0\x08abcdefgh")):
        data = packet(name, qtype, flags=flags, additional=additional)
        reply = answer_from_table(data, TABLE, False)
        assert reply == judge(data, table=TABLE).wire
        message = read(reply)
        assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | flags & (dns.flags.RD | dns.flags.CD)
        assert reply[12:].startswith(question(name, qtype))
        assert (message.edns, message.payload) == ((0, 1232) if additional else (-1, 0))
        assert len(reply) <= 512


@pytest.mark.parametrize(("upper", "lower"), [(0x41, 0x61), (0x5A, 0x7A)])
def test_the_octets_of_a_type_have_no_case(upper, lower):
    """HTTPS is 65, `A`; folding the whole question would make it 97, or 97 into HTTPS."""
    assert (answer_from_table(packet(qtype=upper), TABLE, False) is None) is (upper != Type.HTTPS)
    assert answer_from_table(packet(qtype=lower), TABLE, False) is None
    assert answer_from_table(packet(WEB.upper(), qtype=lower), TABLE, False) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        packet()[:11],
        packet(flags=0x8100),
        packet(flags=0x0101),
        packet(flags=0x2800),
        packet(counts=(1, 0, 0, 2)) + opt() + opt(),
        packet() + b"\0",
        packet(additional=opt() + b"\0"),
        packet(additional=opt(version=1)),
        packet(additional=opt(version=1, options=b"\0\1\0\0")),
        packet(additional=opt(options=b"\0\1\0")),
        packet(additional=opt(options=b"\0\1\0\0" * 101)),
        packet(additional=opt(options=b"\0\1\0\0") + b"\0"),
        packet("a1.up.test", additional=opt(options=b"\0\1\0\0")),
        packet(b"\xc0\x0c", additional=opt(options=b"\0\1\0\0")),
        packet(b"\3abc", additional=opt(options=b"\0\1\0\0")),
        packet(counts=(1, 0, 0, 1)),
        packet(counts=(1, 0, 0, 1)) + b"\0" + opt()[2:],
        packet(qclass=3),
        packet(qtype=Type.TXT),
        packet("foo." + WEB),
    ],
)
def test_the_unusual_takes_the_long_way(data):
    assert answer_from_table(data, TABLE, False) is None


def test_what_is_remembered_of_replies_is_bounded(monkeypatch):
    monkeypatch.setattr(responder, "MAX_READY", 8)
    table = bound_table()
    for size in range(100):
        assert answer_from_table(packet(additional=opt(size)), table, False) is not None
        assert len(table.ready) <= 8


def test_queries_with_options_are_not_remembered():
    table = bound_table()
    answer_from_table(packet(additional=opt(options=b"\0\x0a\0\x08abcdefgh")), table, False)
    assert not table.ready


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=12, max_size=60).map(lambda body: b"\0\0\1\0\0\1\0\0\0\0" + body)))
@settings(max_examples=300)
def test_no_packet_raises(data):
    assert isinstance(judge(data, table=TABLE), Reply | Forward | Drop)
    answer_from_table(data, TABLE, False)


@given(labels, st.data())
def test_every_reply_of_ours_can_be_read_and_echoes_id_and_question(label, data):
    sent = data.draw(queries())
    reply = judge(sent, table=TABLE, address=data.draw(st.sampled_from([ALLOWED, STRANGER])))
    if isinstance(reply, Reply):
        message = read(reply.wire)
        assert reply.wire[:2] == sent[:2]
        assert message.rcode() == reply.rcode
        assert len(reply.wire) <= 512
        if message.question:
            assert sent[12:].startswith(reply.wire[12 : len(sent)][: len(message.question[0].name.to_wire()) + 4])


def check(case, data, reply):
    """The machine-readable part of a case, as far as one decision can show it."""
    wanted = case["check"]
    message = read(reply.wire)
    assert dns.rcode.to_text(message.rcode()) in wanted["rcode"]
    assert message.id == int.from_bytes(data[:2])
    flags = {
        "qr": dns.flags.QR,
        "aa": dns.flags.AA,
        "tc": dns.flags.TC,
        "rd": dns.flags.RD,
        "ra": dns.flags.RA,
        "ad": dns.flags.AD,
        "cd": dns.flags.CD,
        "z": 0x40,
    }
    for name, bit in flags.items():
        assert name not in wanted or bool(message.flags & bit) is bool(wanted[name]), name
    for name, section in (("qd", 0), ("an", 1), ("ns", 2)):
        assert name not in wanted or len(message.sections[section]) == wanted[name], name
    assert "opcode" not in wanted or message.opcode() == wanted["opcode"]
    assert "opt" not in wanted or (message.edns >= 0) is wanted["opt"]
    assert "ednsver" not in wanted or message.edns == wanted["ednsver"]
    assert "ednsopts" not in wanted or message.options == ()
    assert "do" not in wanted or message.ednsflags == dns.flags.DO
    assert "max_len" not in wanted or len(reply.wire) <= wanted["max_len"]
    if wanted.get("question") == "identical":
        assert reply.wire[12:].startswith(data[12 : 12 + 4 + len(message.question[0].name.to_wire())])


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.get("hex") and case["id"].split("-")[0] in GROUPS],
    ids=lambda case: case["id"],
)
def test_conformance_cases_that_one_decision_settles(case):
    wanted = case["check"]
    for data in [case["hex"]] if isinstance(case["hex"], str) else case["hex"]:
        sent = bytes.fromhex(data)
        verdict = judge(sent, table=TABLE, stream="tcp" in case["transport"])
        if wanted.get("result") in ("drop", "close-or-drop"):
            assert isinstance(verdict, Drop)
        elif isinstance(verdict, Forward):
            assert wanted.get("upstream_packets", 1) != 0, "not to be forwarded"
            assert "VIP" not in str(wanted)
        elif "rcode" in wanted:
            check(case, sent, verdict)
        assert wanted.get("result") != "reply" or not isinstance(verdict, Drop)
