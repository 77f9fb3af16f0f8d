"""Checks of what canal-dns answers by itself, where the case says more than its `check`: headers, names, EDNS, types."""

import struct
import time

from tests.conformance import message as dns
from tests.conformance.checks import SHARED, Exchange, faults
from tests.conformance.fixture import CLOSED, answer
from tests.conformance.lab import WEB, dedicated, need
from tests.conformance.upstream import to_text

VIP4, VIP6 = "10.96.0.200", "fd00:10:96::c8"


def _soa(message):
    """The only record of the authority section, which must be a usable SOA (RFC 2308 section 2.2)."""
    need(len(message.authority) == 1, f"{len(message.authority)} records in authority, one SOA was expected")
    (record,) = message.authority
    need(record.rtype == dns.SOA and record.target not in (b"", b"\0"), "the authority record is no SOA with an MNAME")
    name = message.questions[0][0].lower()
    need(name.endswith(record.name.lower()), "the SOA's owner is neither the name nor an ancestor of it")
    return record


def _nodata(message):
    need(message.rcode == "NOERROR" and not message.answer, f"{message.rcode} with {len(message.answer)} answers, not NODATA")
    return _soa(message)


@dedicated()
def hdr_15(lab, case):
    short = [*case.packets, *(b"\xff" * length for length in range(12)), *(bytes(length) for length in range(12))]
    lab.generic(case, packets=short)


@dedicated()
def qd_06(lab, case):
    lab.generic(case)
    before = lab.server.memory()
    with lab.udp() as client:
        for _ in range(20):
            for _ in range(50):
                client.send(case.packets[0])
            need(client.ask(lab.baseline, 2.0) is not None, "HDR-01 was not answered between the packets")
            while client.receive(0.001) is not None:
                pass
    grown = lab.server.memory() - before
    need(grown < 1 << 20, f"1,000 packets cost {grown} octets of memory")
    lab.errors_again()


@dedicated()
def qd_14(lab, case):
    header = struct.pack("!6H", 0x1A2B, 0x0100, 1, 0, 0, 5450)
    wire = header + dns.question(WEB) + b"\xc0\x0c\xff\x00\0\1\0\0\0\0\0\0" * 5450
    wire = wire[:65535]
    before = lab.server.memory()
    best = float("inf")
    for _ in range(5):
        done = lab.exchange(wire, "tcp", result=case.check["result"])
        found = faults({key: value for key, value in case.check.items() if key != "max_ms"}, done)
        need(not found, "; ".join(found))
        best = min(best, done.seconds)
    limit = case.check["max_ms"] / 1000 * SHARED
    need(best <= limit, f"{best * 1000:.1f} ms at best, {limit * 1000:g} were allowed")
    need(lab.server.memory() - before < 10 << 20, "five such messages cost more than 10 MiB of memory")


@dedicated()
def qd_16(lab, case):
    for done in lab.generic(case):
        need(not any(record.rtype == 250 for record in dns.read(done.replies[0]).records), "a TSIG in the reply")


@dedicated()
def nam_11(lab, case):
    lab.generic(case)

    def fastest(wire):
        times = []
        with lab.udp() as client:
            for _ in range(30):
                begin = time.perf_counter()
                client.ask(wire)
                times.append(time.perf_counter() - begin)
        return min(times)

    flat, deep = fastest(dns.query("nx-flat.up.test")), fastest(case.packets[0])
    need(deep - flat < 0.001 * SHARED, f"127 labels take {(deep - flat) * 1000:.2f} ms more than three")


@dedicated()
def nam_16(lab, case):
    lab.generic(case)
    upper, lower = (dns.read(lab.exchange(wire).replies[0]) for wire in case.packets)
    need(upper.rcode == "NXDOMAIN", f"C9: {upper.rcode}, NXDOMAIN was expected")
    need(lower.addresses() == ["192.0.2.9"], f"E9: {lower.addresses()}, 192.0.2.9 was expected")


@dedicated()
def nam_19(lab, case):
    for done in lab.generic(case):
        need(done.upstream, "not forwarded")


@dedicated()
def nam_20(lab, case):
    exchanges = lab.generic(case)
    replies = [dns.read(done.replies[0]) for done in exchanges]
    need([reply.rcode for reply in replies] == ["NOERROR"] * 3, f"{[reply.rcode for reply in replies]}, 3 x NOERROR expected")
    mark = lab.upstream.mark()
    lab.exchange(case.packets[0])
    need(not [seen for seen in lab.upstream.log[mark:] if seen.qtype == dns.NS], "'. NS' went upstream")
    for wire, qtype in ((case.packets[1], dns.A), (case.packets[2], dns.SOA)):
        mark = lab.upstream.mark()
        lab.exchange(wire)
        need(
            [seen for seen in lab.upstream.log[mark:] if (seen.name, seen.qtype) == ("", qtype)], f"type {qtype}: not forwarded"
        )
    need(replies[2].answer and replies[2].answer[0].rtype == dns.SOA, "'. SOA' is not the upstream's")


@dedicated()
def nam_23(lab, case):
    for done in lab.generic(case):
        reply = dns.read(done.replies[0])
        need(reply.rcode == "FORMERR", f"{reply.rcode}; the policy is FORMERR")
        need(not done.upstream, "forwarded")
    forwarded = lab.exchange(dns.query("a1.up.test") + b"\0")
    need(dns.read(forwarded.replies[0]).rcode == "FORMERR" and not forwarded.upstream, "a forwarded name: not FORMERR")


@dedicated()
def edn_09(lab, case):
    for done in lab.generic(case):
        need(all(b"\xaa" * 8 not in seen.wire for seen in done.upstream), "the option went upstream")


@dedicated()
def edn_11(lab, case):
    for done in lab.generic(case):
        need(len(dns.read(done.replies[0]).answer) == 1, "more than the address")


@dedicated()
def edn_24(lab, case):
    for done in lab.generic(case):
        message = dns.read(done.replies[0])
        codes = [code for code, _ in message.options]
        need(codes.count(3) <= 1 and codes.count(10) <= 1, f"options {codes}")
        need(len(message.wire) <= 512, f"{len(message.wire)} octets")


@dedicated()
def optn_11(lab, case):
    """Either no keepalive option, or one whose promise the server keeps; the configured idle time is 8 s."""
    for done in lab.generic(case):
        for code, data in dns.read(done.replies[0]).options:
            need(code != 11 or (len(data) == 2 and int.from_bytes(data, "big") <= 80), f"keepalive {data.hex()}")
            need(code != 11, "a keepalive option is given: write the check that the connection lives that long")


@dedicated()
def optn_13(lab, case):
    for done in lab.generic(case):
        need(len(done.replies[0]) < len(done.sent), "the reply is not shorter than the query")
        need(not [code for code, _ in dns.read(done.replies[0]).options if code == 12], "padding over UDP")


@dedicated()
def typ_01(lab, case):
    replies = []
    for transport in ("udp", "tcp"):
        (done,) = lab.generic(case, transports=[transport])
        message = dns.read(done.replies[0])
        need(len(message.answer) <= 2, f"{len(message.answer)} records over {transport}")
        need(len(message.wire) <= 3 * len(done.sent), f"{len(message.wire)} octets for {len(done.sent)}: more than 3 times")
        need(set(message.addresses()) <= {VIP4}, f"addresses {message.addresses()}")
        replies.append([(record.rtype, record.rdata) for record in message.answer])
    need(replies[0] == replies[1], "UDP and TCP differ")


@dedicated()
def typ_02(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(done.upstream, "not asked upstream")
    need(message.bit("tc") or len(message.wire) <= 512, "neither TC=1 nor small")


@dedicated()
def typ_06(lab, case):
    """TYPE65535 belongs to the upstream; TYPE0 may be refused here (it is reserved), else it does, too."""
    first, _ = lab.generic(case)
    need(dns.read(first.replies[0]).rcode == "NOERROR", "TYPE65535 was not relayed")


@dedicated()
def typ_22(lab, case):
    for done in lab.generic(case):
        message = dns.read(done.replies[0])
        qtype = message.questions[0][1] if message.questions else 0
        need(message.rcode in ("FORMERR", "NOTIMP", "REFUSED"), f"type {qtype}: {message.rcode}")
        need(not done.upstream, f"type {qtype} went upstream")


@dedicated()
def typ_25(lab, case):
    """Every type of the sweep: local, NODATA, or the upstream's without an address of a bound name."""
    soas = set()
    lab.upstream.scripts[WEB] = _leaky
    try:
        for qtype in [*range(1, 41), *range(42, 249), 256, 257, 258, 32768, 32769]:
            if 128 <= qtype <= 248:
                # Meta types (RFC 6895 section 3.1): TYP-22 rules them out.
                continue
            done = lab.exchange(dns.query(WEB, qtype))
            found = faults({"result": "reply"}, done)
            need(not found, f"type {qtype}: {'; '.join(found)}")
            message = dns.read(done.replies[0])
            need((qtype == dns.A) == bool(message.addresses()), f"type {qtype}: answers {message.addresses()}")
            if qtype in (dns.AAAA, dns.HTTPS, dns.SVCB):
                need(not done.upstream, f"type {qtype} went upstream")
                soas.add((_nodata(message).name, _nodata(message).rdata, _nodata(message).ttl))
            elif qtype != dns.A:
                need(len(done.upstream) == 1, f"type {qtype}: {len(done.upstream)} packets upstream")
                need(message.rcode == "NOERROR", f"type {qtype}: {message.rcode}, the upstream said NOERROR")
            leaks = [record for record in message.records if record.address and record.name == dns.wire_name(WEB)]
            need({record.address for record in leaks} <= {VIP4}, f"type {qtype}: {[record.address for record in leaks]}")
    finally:
        del lab.upstream.scripts[WEB]
    need(len(soas) == 1, f"{len(soas)} different SOAs for AAAA, HTTPS and SVCB")


def _leaky(ask):
    """An upstream that adds the real address of web to whatever it is asked."""
    ask.reply(authority=[dns.soa("cluster.local")], additional=[dns.a(WEB, "10.96.0.11")])


@dedicated()
def cls_01(lab, case):
    for done in lab.generic(case):
        text = done.replies[0].lower()
        need(not any(word in text for word in (b"canal", b"python", b"uvloop")), "the version is disclosed")
        message = dns.read(done.replies[0])
        need(message.rcode == "REFUSED" or message.answer[0].rtype == dns.TXT, "neither REFUSED nor a text")


@dedicated()
def cls_04(lab, case):
    for done, allowed in zip(lab.generic(case), (("REFUSED", "NOERROR"), ("REFUSED", "FORMERR")), strict=True):
        message = dns.read(done.replies[0])
        need(message.rcode in allowed, f"class {message.questions}: {message.rcode}")
        need(all(record.rclass == 1 for record in message.answer), "an answer of another class than IN")


@dedicated()
def neg_02(lab, case):
    wire = dns.query(WEB, dns.AAAA)
    (done,) = lab.generic(case, packets=[wire])
    record = _nodata(dns.read(done.replies[0]))
    need(struct.unpack_from("!5I", record.rdata[-20:])[0] > 0, "the serial is 0")
    minimum = struct.unpack_from("!5I", record.rdata[-20:])[4]
    need(0 < record.ttl <= minimum, f"TTL {record.ttl} above MINIMUM {minimum}")


@dedicated()
def hdr_14(lab, case):
    lab.generic(case)
    message = lab.ask(WEB, transport="tcp")
    need(message.addresses() == [VIP4], "a new connection does not work")


@dedicated()
def bnd_01(lab, case):
    (done,) = lab.generic(case)
    (record,) = dns.read(done.replies[0]).answer
    need(record.rclass == 1 and record.ttl == 5, f"class {record.rclass}, TTL {record.ttl}; the configured TTL is 5")
    need(to_text(record.name) == WEB, "the answer is about another name")


@dedicated()
def bnd_03(lab, case):
    v4, v6 = (dns.read(done.replies[0]) for done in lab.generic(case))
    need([(record.rtype, record.address) for record in v4.answer] == [(dns.A, VIP4)], f"A: {v4.answer}")
    need([(record.rtype, record.address) for record in v6.answer] == [(dns.AAAA, VIP6)], f"AAAA: {v6.answer}")
    for name, qtype, expected in (("v6", dns.AAAA, [VIP6]), ("v6", dns.A, []), ("api-0", dns.A, [VIP4])):
        message = lab.ask(f"{name}.shop.svc.cluster.local", qtype)
        need(message.addresses(qtype) == expected and message.bit("aa"), f"{name}: {message.addresses(qtype)}")
    for host in ("::1", "127.0.0.2"):
        with lab.udp(host=host) as client:
            message = answer(client, "web.shop.svc.cluster.local")
        need(message is not None and message.addresses() == [VIP4], f"no answer on {host}")


@dedicated()
def hdr_09(lab, case):
    for done in lab.generic(case):
        need(done.replies[0] is not CLOSED and len(done.replies[0]) == 12, "more than a header")


def sample(sent, reply, transport="udp"):
    """An Exchange with one reply: for the tests of the checks."""
    return Exchange(sent, transport, [reply])
