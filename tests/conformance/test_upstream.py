"""The scripted upstream does what its scripts say, byte for byte where a case depends on it."""

import socket
import struct
import time

import pytest

from tests.conformance import message as dns
from tests.conformance.upstream import FORGED, GOOD, SCRIPTS, UNRELATED, Upstream


@pytest.fixture(scope="module")
def upstream():
    with Upstream() as running:
        yield running


def udp(upstream, wire, *, wait=1.0, count=1, host=None):
    """The datagrams that come back, from wherever, with their source ports."""
    host = host or upstream.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(wire, (host, upstream.port))
        client.settimeout(wait)
        found = []
        try:
            while len(found) < count:
                found.append(client.recvfrom(65535))
        except TimeoutError:
            pass
    return found


def tcp(upstream, wire, wait=2.0):
    with socket.create_connection((upstream.host, upstream.port), wait) as client:
        client.sendall(struct.pack("!H", len(wire)) + wire)
        stream = client.makefile("rb")
        head = stream.read(2)
        return stream.read(struct.unpack("!H", head)[0]) if head else None


def one(upstream, name, qtype=dns.A, **parts):
    (got,) = udp(upstream, dns.query(name, qtype, **parts))
    return dns.read(got[0])


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "addresses", "authority"),
    [
        ("a1.up.test", dns.A, "NOERROR", [GOOD], 0),
        ("A1.uP.test", dns.A, "NOERROR", [GOOD], 0),
        ("a1.up.test", dns.AAAA, "NOERROR", [], 1),
        ("nx.up.test", dns.A, "NXDOMAIN", [], 1),
        ("cluster.local", dns.A, "NOERROR", [], 1),
        ("web.shop.svc.cluster.local", dns.A, "NOERROR", ["10.96.0.11"], 0),
        ("web.shop.svc.cluster.local", 666, "NOERROR", [], 1),
        ("foo.web.shop.svc.cluster.local", dns.A, "NXDOMAIN", [], 1),
        ("w\xe9b.up.test", dns.A, "NOERROR", ["192.0.2.9"], 0),
        ("w\xc9b.up.test", dns.A, "NXDOMAIN", [], 1),
        (".", dns.A, "NOERROR", [], 1),
        ("evil", dns.A, "NXDOMAIN", [], 1),
        ("cnx.up.test", dns.A, "NXDOMAIN", [], 1),
        ("ref.up.test", dns.A, "REFUSED", [], 0),
        ("notimp.up.test", dns.A, "NOTIMP", [], 0),
        ("fe.up.test", dns.A, "FORMERR", [], 0),
    ],
)
def test_zones(upstream, name, qtype, rcode, addresses, authority):
    message = one(upstream, name, qtype)
    assert (message.rcode, message.addresses(), len(message.authority)) == (rcode, addresses, authority)


def test_both_families_and_both_transports(upstream):
    assert udp(upstream, dns.query("a1.up.test"), host="::1")
    assert dns.read(tcp(upstream, dns.query("a1.up.test"))).addresses() == [GOOD]


@pytest.mark.parametrize(
    ("name", "edns", "length", "tc"),
    [
        ("513resp.up.test", dns.opt(524), 524, 0),
        ("513resp.up.test", dns.opt(523), None, 1),
        ("1232resp.up.test", dns.opt(1232), 1232, 0),
        ("1233resp.up.test", dns.opt(1232), None, 1),
        ("1233resp.up.test", dns.opt(1233), 1233, 0),
        ("giant.up.test", dns.opt(1232), None, 0),
        ("giant.up.test", b"", None, 1),
        ("cmp.up.test", b"", None, 0),
        ("tcpbig.up.test", dns.opt(4096), None, 1),
    ],
)
def test_sizes_over_udp(upstream, name, edns, length, tc):
    message = one(upstream, name, dns.TXT if "resp" in name or "big" in name else dns.A, edns=edns)
    assert message.bit("tc") == tc
    assert length is None or len(message.wire) == length


@pytest.mark.parametrize(
    ("name", "length"),
    [("tcpbig.up.test", 30_000), ("max.up.test", 65_535), ("x.big.up.test", 32_000), ("1233resp.up.test", 1233 - 11)],
)
def test_sizes_over_tcp(upstream, name, length):
    assert len(dns.read(tcp(upstream, dns.query(name, dns.TXT))).wire) == length


def test_compressed(upstream):
    message = one(upstream, "cmp.up.test")
    assert 430 <= len(message.wire) <= 450
    assert sum(len(record.name) + 10 + len(record.rdata) for record in message.answer) > 1000


def test_many_compressed_names(upstream):
    assert len(dns.read(tcp(upstream, dns.query("s28.up.test"))).answer) >= 4000


def test_tc_with_a_record_and_no_tcp(upstream):
    message = one(upstream, "tc.up.test")
    assert message.bit("tc") and message.addresses() == [GOOD]
    assert tcp(upstream, dns.query("tc.up.test")) is None


@pytest.mark.parametrize(("name", "rcode"), [("ho-ref", "REFUSED"), ("ho-ok", "NOERROR"), ("ho-nx", "NXDOMAIN")])
def test_header_only(upstream, name, rcode):
    message = one(upstream, f"{name}.up.test")
    assert (len(message.wire), message.rcode) == (12, rcode)


def test_an_unknown_type_keeps_its_octets(upstream):
    assert one(upstream, "unk.up.test", 65280).answer[0].rdata.hex() == "c00cc00c00ff"


def _is_true(wire):
    try:
        message = dns.read(wire)
    except dns.MalformedError:
        return False
    return message.id == 0x1A2B and message.addresses() == [GOOD] and message.questions[0][1] == dns.A


@pytest.mark.parametrize("number", [1, 4, 6, 8, 9, 11, 12, 13])
def test_something_wrong_comes_before_the_true_reply(upstream, number):
    got = udp(upstream, dns.query(f"s{number}.up.test"), count=2)
    assert len(got) == 2
    (wrong, where), (true, origin) = got
    assert _is_true(true) and origin == (upstream.host, upstream.port)
    if number in (8, 9):
        assert (where != origin) and FORGED in dns.read(wrong).addresses()
        assert (where[0] == origin[0]) == (number == 8)
    else:
        assert not _is_true(wrong) and where == origin
    assert _is_true(tcp(upstream, dns.query(f"s{number}.up.test")))


def test_exact_forgeries(upstream):
    first = {number: udp(upstream, dns.query(f"s{number}.up.test"), count=2)[0][0] for number in (1, 4, 6, 11, 12, 13)}
    assert first[1][:2] == bytes((0x1A ^ 0xFF, 0x2B ^ 0xFF))
    assert dns.read(first[4]).questions[0][1] == dns.MX
    assert first[6] == dns.query("s6.up.test")
    assert len(first[11]) == 13
    assert first[12][6:8] == b"\0\5"
    assert first[13] == b""


def test_every_udp_reply_wrong_but_tcp_honest(upstream):
    assert not _is_true(udp(upstream, dns.query("s2.up.test"))[0][0])
    assert _is_true(tcp(upstream, dns.query("s2.up.test")))


def test_three_times_the_same(upstream):
    assert len(udp(upstream, dns.query("s14.up.test"), count=4, wait=0.3)) == 3


def test_no_dns_at_all(upstream):
    got = udp(upstream, dns.query("s25.up.test"), count=3, wait=0.3)
    assert len(got) == 2
    for wire, _ in got:
        assert wire[:2] == b"\x1a\x2b"
        with pytest.raises(dns.MalformedError):
            dns.read(wire)


def test_smuggled_records(upstream):
    message = one(upstream, "s16.up.test")
    assert message.addresses() == [GOOD]
    assert [record.address for record in message.additional if record.address] == [FORGED, UNRELATED]


@pytest.mark.parametrize(("name", "seconds"), [("slow.up.test", 1.0), ("s21.up.test", 0.5), ("x.pipe.up.test", 0.1)])
def test_delays(upstream, name, seconds):
    begin = time.monotonic()
    assert udp(upstream, dns.query(name), wait=3)
    assert seconds - 0.01 <= time.monotonic() - begin < seconds + 1


def test_silence(upstream):
    assert udp(upstream, dns.query("dead.up.test"), wait=0.2) == []


def test_the_log(upstream):
    mark = upstream.mark()
    for _ in range(3):
        udp(upstream, dns.query("A1.up.test", ident=77))
    udp(upstream, dns.query(".", dns.NS))
    udp(upstream, b"\0" * 5, wait=0.05)
    assert [(seen.id, seen.name, seen.proto) for seen in upstream.seen("a1.up.test", since=mark)] == [
        (77, "a1.up.test", "udp")
    ] * 3
    assert [seen.name for seen in upstream.seen(since=mark)] == ["a1.up.test"] * 3 + ["(malformed)"]
    assert upstream.seen("", since=mark)[0].qtype == dns.NS


def test_outstanding(upstream):
    mark = upstream.mark()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        for number in range(5):
            client.sendto(dns.query(f"q{number}.pipe.up.test"), (upstream.host, upstream.port))
        for _ in range(5):
            client.recv(4096)
    assert upstream.outstanding(since=mark, suffix=".pipe.up.test") == 5
    assert upstream.outstanding("q0.pipe.up.test", since=mark) == 1


def test_a_script_can_be_changed_while_it_runs(upstream):
    upstream.scripts["new.up.test"] = SCRIPTS["ref.up.test"]
    assert one(upstream, "new.up.test").rcode == "REFUSED"
    del upstream.scripts["new.up.test"]
    assert one(upstream, "new.up.test").rcode == "NXDOMAIN"


def test_a_silent_upstream_still_logs():
    with Upstream(silent=True) as upstream:
        assert udp(upstream, dns.query("a1.up.test"), wait=0.1) == []
        assert len(upstream.seen("a1.up.test")) == 1
