"""Queries read, replies and upstream queries built, streams framed: octet for octet."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from canal_dns.dns.codes import Ede, Rcode, Type
from canal_dns.dns.wire import (
    Fault,
    Framer,
    Mismatch,
    Query,
    error_reply,
    frame,
    match_reply,
    parse_query,
    servfail,
    truncated_reply,
    upstream_query,
)
from tests.dns.packets import WEB, ask, opt, packet, queries, question, read, upstream_reply, wire

OPTION = b"\xfd\xea\0\0"


def test_a_query_is_read():
    data = packet("A1.Up.TeSt", Type.AAAA, flags=0x0130, additional=opt(4096, flags=0x8000))
    query = parse_query(data, stream=False)
    assert query == Query(
        id=0x1A2B,
        flags=0x0130,
        question=question("A1.Up.TeSt", Type.AAAA),
        name=wire("a1.up.test"),
        qtype=28,
        qclass=1,
        payload=4096,
        do=True,
        limit=1232,
    )
    assert (query.rd, query.ad, query.cd) == (True, True, True)


@pytest.mark.parametrize(
    ("additional", "stream", "limit"),
    [
        (b"", False, 512),
        (opt(0), False, 512),
        (opt(511), False, 512),
        (opt(1000), False, 1000),
        (opt(65535), False, 1232),
        (b"", True, 65535),
        (opt(512), True, 65535),
    ],
)
def test_how_long_a_reply_may_be(additional, stream, limit):
    assert ask(stream=stream, additional=additional).limit == limit


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (b"\0", True),
        (b"\x3f" + b"a" * 63 + b"\0", True),
        ((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0", True),
        ((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0", False),
        (b"\1a" * 127 + b"\0", True),
        (b"\3a\0b\0", True),
        (b"\x40" + b"a" * 64 + b"\0", False),
        (b"\x80" + b"a" * 128 + b"\0", False),
        (b"\xc0\x0c", False),
        (b"\3web\xc0\x0c", False),
        (b"\3we", False),
        (b"", False),
    ],
)
def test_names_of_questions(name, good):
    result = parse_query(packet(name), stream=False)
    assert isinstance(result, Query) is good
    assert good or result == Fault(Rcode.FORMERR, "name")


def test_a_question_needs_type_and_class():
    assert parse_query(packet()[:-1], stream=False) == Fault(Rcode.FORMERR, "name")


@pytest.mark.parametrize(
    ("additional", "good"),
    [
        (opt(options=b"\0\3\0\0"), True),
        (opt(options=b"\0\x0a\0\x08abcdefgh" + OPTION), True),
        (opt(options=OPTION * 100), True),
        (opt(options=OPTION * 101), False),
        (opt(options=b"\0"), False),
        (opt(options=b"\0\0\0"), False),
        (opt(options=b"\0\3\0\1"), False),
        (opt(rcode=255, flags=0x7FFF), True),
        (opt()[:-1], False),
        (opt()[:-2] + b"\0\x08", False),
        (opt() + b"\0", False),
        (b"\1a" + opt(), False),
        (b"\xc0\x0c" + opt()[1:], False),
        (b"\0" + struct.pack(">HHIH", Type.A, 1, 0, 4) + b"\1\2\3\4", False),
    ],
)
def test_the_opt_record_of_a_query(additional, good):
    result = parse_query(packet(additional=additional), stream=False)
    assert isinstance(result, Query) is good
    if not good:
        assert (result.rcode, result.reason) == (Rcode.FORMERR, "opt")
        assert result.query.payload is None, "what was not understood is not answered in kind"


@pytest.mark.parametrize(
    ("data", "rcode", "reason", "echo"),
    [
        (packet()[:11], None, "short", False),
        (packet(flags=0x8100), None, "response", False),
        (packet(flags=0x0900), Rcode.NOTIMP, "opcode", False),
        (packet(counts=(0, 0, 0, 0)), Rcode.FORMERR, "counts", False),
        (packet(counts=(2, 0, 0, 0)), Rcode.FORMERR, "counts", False),
        (packet(counts=(1, 1, 0, 0)), Rcode.FORMERR, "counts", False),
        (packet(counts=(1, 0, 1, 0)), Rcode.FORMERR, "counts", False),
        (packet(counts=(1, 0, 0, 2)), Rcode.FORMERR, "counts", False),
        (packet() + b"\0", Rcode.FORMERR, "trailing", True),
        (packet(counts=(1, 0, 0, 0)) + opt(), Rcode.FORMERR, "trailing", True),
        (packet(additional=opt(version=1)), Rcode.BADVERS, "edns-version", True),
        (packet(qclass=3), Rcode.REFUSED, "class", True),
        (packet(qtype=Type.OPT), Rcode.FORMERR, "meta-type", True),
    ],
)
def test_faults_say_what_the_client_is_told(data, rcode, reason, echo):
    fault = parse_query(data, stream=False)
    assert (fault.rcode, fault.reason, fault.query is not None) == (rcode, reason, echo)


@pytest.mark.parametrize("qtype", range(260))
def test_types_that_no_record_answers(qtype):
    result = parse_query(packet(qtype=qtype), stream=False)
    meta = qtype == 41 or 128 <= qtype <= 254
    assert isinstance(result, Fault) is meta
    assert not meta or result.rcode is (Rcode.FORMERR if qtype in (41, 128) else Rcode.REFUSED)


@given(queries(), st.booleans())
def test_parse_agrees_with_dnspython(data, stream):
    query = parse_query(data, stream=stream)
    if isinstance(query, Query):
        oracle = dns.message.from_wire(data)
        assert query.name == oracle.question[0].name.canonicalize().to_wire()
        assert (query.id, query.qtype, query.qclass) == (oracle.id, oracle.question[0].rdtype, oracle.question[0].rdclass)
        assert query.payload == (oracle.payload if oracle.edns >= 0 else None)
        assert query.do is bool(oracle.ednsflags & dns.flags.DO)
        assert data[12:].startswith(query.question)


@given(st.binary(max_size=60))
def test_garbage_is_a_value(data):
    assert isinstance(parse_query(data, stream=False), Query | Fault)


@pytest.mark.parametrize("additional", [b"", opt(), opt(flags=0x8000)])
@pytest.mark.parametrize("flags", [0x0000, 0x0100, 0x0110, 0x07F0])
def test_an_error_reply_echoes_what_was_understood(flags, additional):
    query = ask("A1.up.test", flags=flags, additional=additional)
    reply = error_reply(query, Rcode.REFUSED)
    message = read(reply)
    assert reply[12 : 12 + len(query.question)] == query.question
    assert (message.id, message.rcode(), len(message.sections[1] + message.sections[2])) == (0x1A2B, dns.rcode.REFUSED, 0)
    assert message.flags & ~15 == dns.flags.QR | dns.flags.RA | flags & (dns.flags.RD | dns.flags.CD)
    assert (message.edns, message.payload) == ((0, 1232) if additional else (-1, 0))
    assert bool(message.ednsflags & dns.flags.DO) is query.do


def test_badvers_needs_the_opt_record():
    fault = parse_query(packet(additional=opt(version=1, options=OPTION)), stream=False)
    message = read(error_reply(fault.query, fault.rcode))
    assert (message.rcode(), message.edns, message.options) == (dns.rcode.BADVERS, 0, ())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0x7FF0, 0xF804),
        (0x2900, 0xA804),
        (0x0000, 0x8084),
        (0x07F0, 0x8194),
    ],
)
def test_without_a_question_only_a_header_is_sent(flags, expected):
    reply = error_reply(packet(flags=flags), Rcode.NOTIMP)
    assert reply == struct.pack(">HHHHHH", 0x1A2B, expected, 0, 0, 0, 0)


def test_servfail_gives_its_reason_to_those_who_speak_edns():
    message = read(servfail(ask(additional=opt()), Ede.NETWORK_ERROR))
    assert message.rcode() == dns.rcode.SERVFAIL
    assert [option.code for option in message.options if option.otype == dns.edns.EDE] == [23]
    assert read(servfail(ask(), Ede.NETWORK_ERROR)).edns == -1


@pytest.mark.parametrize("authoritative", [False, True])
@pytest.mark.parametrize("additional", [b"", opt(flags=0x8000)])
def test_a_truncated_reply_has_nothing_but_the_question(authoritative, additional):
    message = read(truncated_reply(ask(additional=additional), authoritative=authoritative))
    assert message.flags & dns.flags.TC
    assert bool(message.flags & dns.flags.AA) is authoritative
    assert (message.edns >= 0, message.section_count(1)) == (bool(additional), 0)


@pytest.mark.parametrize("do", [False, True])
@pytest.mark.parametrize("flags", [0x0000, 0x0100, 0x0120, 0x0010, 0x07F0])
def test_an_upstream_query_is_built_anew(flags, do):
    query = ask("A1.up.test", flags=flags, additional=opt(512, flags=0xFFFF, options=b"\0\x08\0\7\0\1\x18\0\1\2\3"))
    message = dns.message.from_wire(upstream_query(query, 0x0102, do=do))
    assert message.id == 0x0102
    assert message.flags == flags & (dns.flags.RD | dns.flags.AD | dns.flags.CD)
    assert message.question[0].to_text() == "A1.up.test. IN A"
    assert (message.edns, message.payload, message.options) == (0, 1232, ())
    assert message.ednsflags == (dns.flags.DO if do else 0)


ANSWER = [("a1.up.test.", 300, "A", "192.0.2.1")]


def reply_to(name="a1.up.test", qtype=Type.A, ident=0x4242):
    data = upstream_reply(ask(name, qtype), ANSWER)
    return struct.pack(">H", ident) + data[2:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (reply_to(), None),
        (reply_to("A1.UP.test"), None),
        (b"", Mismatch.SHORT),
        (reply_to()[:11], Mismatch.SHORT),
        (reply_to(ident=0x4243), Mismatch.ID),
        (upstream_query(ask("a1.up.test"), 0x4242, do=True), Mismatch.NOT_A_REPLY),
        (reply_to()[:2] + b"\xa8" + reply_to()[3:], Mismatch.OPCODE),
        (reply_to("a2.up.test"), Mismatch.QUESTION),
        (reply_to("a1.up.testing"), Mismatch.QUESTION),
        (reply_to("up.test"), Mismatch.QUESTION),
        (reply_to(qtype=Type.MX), Mismatch.QUESTION),
        (reply_to()[:26] + b"\0\3" + reply_to()[28:], Mismatch.QUESTION),
        (reply_to()[:4] + b"\0\2" + reply_to()[6:], Mismatch.QUESTION),
        (reply_to()[:-1], Mismatch.MALFORMED),
        (reply_to() + b"\0", Mismatch.MALFORMED),
        (reply_to()[:6] + b"\0\5" + reply_to()[8:], Mismatch.MALFORMED),
        (b"\x42\x42\x81\x85" + b"\0" * 8, None),
        (b"\x42\x42\x81\x81" + b"\0" * 7 + b"\1" + opt(), None),
        (b"\x42\x42\x81\x80" + b"\0" * 8, Mismatch.QUESTION),
        (b"\x42\x42\x81\x83" + b"\0" * 8, Mismatch.QUESTION),
        (b"\x42\x42\x81\x85" + b"\0\0\0\1\0\0\0\0", Mismatch.QUESTION),
        (b"\x42\x42\x81\x85" + b"\0\0\0\0\0\1\0\0", Mismatch.QUESTION),
        (b"\x42\x42\x81\x85" + b"\0" * 9, Mismatch.MALFORMED),
    ],
)
def test_only_the_reply_to_this_very_query_is_accepted(data, expected):
    assert match_reply(ask("A1.up.TEST", ident=7), 0x4242, data) is expected


@given(st.integers(0, 200), st.integers(0, 255))
@example(0, 0)
def test_one_octet_changed_in_what_identifies_a_reply_is_noticed(at, octet):
    good = reply_to()
    at %= 12 + len(question("a1.up.test"))
    data = good[:at] + bytes([octet]) + good[at + 1 :]
    assert match_reply(ask("a1.up.test"), 0x4242, data) is not None or at in (2, 3) or data.lower() == good.lower()


def test_a_frame_is_its_length_and_the_message():
    assert frame(b"abc") == b"\0\3abc"
    assert frame(b"a" * 65535)[:2] == b"\xff\xff"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_a_stream_is_cut_where_it_was_framed_however_it_arrives(messages, data):
    stream = b"".join(map(frame, messages))
    framer = Framer()
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += framer.feed(stream[:size])
        stream = stream[size:]
    assert got == messages
    assert (framer.pending, framer.empty_frame) == (0, False)


def test_only_what_arrived_is_buffered():
    framer = Framer()
    assert framer.feed(b"\xff\xffabc") == []
    assert framer.pending == 5
    assert framer.feed(b"a" * 65532) == [b"abc" + b"a" * 65532]
    assert framer.pending == 0


def test_an_empty_frame_is_noticed_and_what_follows_still_read():
    framer = Framer()
    assert framer.feed(b"\0\0" + frame(packet(WEB)) + b"\0") == [packet(WEB)]
    assert (framer.empty_frame, framer.pending) == (True, 1)
