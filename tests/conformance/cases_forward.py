"""Checks of forwarding: transparency, failures of the upstream, forged replies, negative answers."""

import collections
import contextlib
import itertools
import time

from tests.conformance import message as dns
from tests.conformance.checks import SHARED, Exchange, faults
from tests.conformance.fixture import CLOSED, answer
from tests.conformance.lab import WEB, dedicated, need
from tests.conformance.upstream import FORGED, GOOD, after

FORGED_OCTETS = bytes((6, 6, 6, 6))


@dedicated()
def optn_06(lab, case):
    """50 clients, each with another ECS, one name: one query upstream (of each worker), without ECS."""
    mark = lab.upstream.mark()
    with contextlib.ExitStack() as stack:
        # Slow, but faster than the forwarder's second try.
        lab.upstream.scripts["slow.up.test"], slow = after(0.4), lab.upstream.scripts["slow.up.test"]
        stack.callback(lab.upstream.scripts.__setitem__, "slow.up.test", slow)
        clients = [stack.enter_context(lab.udp()) for _ in range(50)]
        for number, client in enumerate(clients):
            ecs = b"\0\1\x18\0" + bytes((198, 51, number))
            client.send(dns.query("slow.up.test", ident=number, edns=dns.opt(options=[(8, ecs)])))
        for number, client in enumerate(clients):
            wire = client.receive(4.0)
            need(wire is not None, f"client {number} got nothing")
            message = dns.read(wire)
            need((message.id, message.addresses()) == (number, [GOOD]), f"client {number}: {message.rcode}")
    most = lab.upstream.outstanding("slow.up.test", since=mark)
    need(1 <= most <= case.check["upstream_outstanding_max"] * max(1, lab.workers), f"{most} outstanding upstream")
    for seen in lab.upstream.seen("slow.up.test", since=mark):
        need(dns.read(seen.wire, reply=False).options == [], "an option went upstream")


@dedicated()
def neg_03(lab, case):
    for done in lab.generic(case):
        message = dns.read(done.replies[0])
        (record,) = message.authority
        need(record.rtype == dns.SOA and record.ttl == 30 and not message.answer, f"SOA TTL {record.ttl}, 30 was expected")


@dedicated()
def neg_05(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(message.answer[0].rtype == dns.CNAME and message.answer[0].target == dns.wire_name("gone.up.test"), "not the CNAME")
    need([record.rtype for record in message.authority] == [dns.SOA], "the SOA is missing")


@dedicated()
def fwd_01(lab, case):
    for done in lab.generic(case):
        need(dns.read(done.replies[0]).addresses() == [GOOD], "not the upstream's answer")
    for transport in ("udp", "tcp"):
        for edns in (b"", dns.opt(), dns.opt(do=True)):
            message = lab.ask("rich.up.test", transport=transport, ad=True, edns=edns)
            where = f"rich.up.test over {transport}, {'with' if edns else 'without'} OPT"
            got = [
                [(record.rtype, record.ttl, record.rdata[-4:]) for record in section if record.rtype != dns.OPT]
                for section in (message.answer, message.authority, message.additional)
            ]
            need([len(section) for section in got] == [1, 1, 1], f"{where}: sections of {[len(section) for section in got]}")
            need([section[0][1] for section in got] == [77, 88, 99], f"{where}: TTLs changed")
            need(message.bit("aa") == 1 and message.bit("ad") == 1, f"{where}: AA={message.bit('aa')} AD={message.bit('ad')}")
            need((message.opt is None) == (edns == b""), f"{where}: OPT")
            if edns:
                need((message.opt.ttl >> 15 & 1) == (edns == dns.opt(do=True)), f"{where}: DO is not the client's")
    plain = lab.ask("rich.up.test")
    need(plain.bit("ad") == 0, "AD=1 for a client that asked for neither AD nor DO (RFC 6840 section 5.8)")


@dedicated()
def fwd_02(lab, case):
    """100 queries: the client sees its own ID, the upstream sees IDs that nobody can guess."""
    mark = lab.upstream.mark()
    with lab.udp() as client:
        for _ in range(100):
            wire = client.ask(case.packets[0])
            need(wire is not None and wire[:2] == b"\x1a\x2b", "no reply with the client's ID")
    ids = [seen.id for seen in lab.upstream.seen("a1.up.test", since=mark)]
    need(len(ids) >= 100, f"{len(ids)} packets upstream for 100 queries")
    unguessable(ids)


def unguessable(ids):
    """A Fault when IDs repeat, follow each other, keep their distance, or leave bits unused."""
    need(ids.count(0x1A2B) <= 1, "the client's ID went upstream")
    need(len(set(ids)) >= len(ids) - 2, f"{len(ids) - len(set(ids))} of {len(ids)} IDs are repeated")
    steps = collections.Counter((second - first) % 65536 for first, second in itertools.pairwise(ids))
    need(steps.most_common(1)[0][1] <= 3, f"the step {steps.most_common(1)[0][0]} is repeated")
    for bit in range(16):
        ones = sum(ident >> bit & 1 for ident in ids)
        need(0.2 * len(ids) < ones < 0.8 * len(ids), f"bit {bit} is 1 in {ones} of {len(ids)} IDs")
    low = sum(1 for ident in ids if ident < 32768)
    need(sorted(ids) != ids and 0.2 * len(ids) < low < 0.8 * len(ids), "the IDs are not spread")


@dedicated()
def fwd_03(lab, case):
    lab.upstream.scripts["a1.up.test"] = _lower_case
    try:
        for transport in ("udp", "tcp"):
            (done,) = lab.generic(case, transports=[transport])
            need(dns.read(done.replies[0]).addresses() == [GOOD], "not the upstream's answer")
    finally:
        del lab.upstream.scripts["a1.up.test"]


def _lower_case(ask):
    wire = ask.wire[:12] + ask.message.question.lower() + ask.wire[12 + len(ask.message.question) :]
    ask.send(dns.reply(wire, answer=[dns.a(b"\xc0\x0c", GOOD)]))


@dedicated()
def fwd_04(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    if message.rcode == "NOERROR":
        need([dns.read(seen.wire, reply=False).bit("rd") for seen in done.upstream] == [0], "RD=1 upstream")
        need(message.addresses() == [GOOD], "not the upstream's answer")


@dedicated()
def fwd_07(lab, case):
    exchanges = lab.generic(case)
    for done, wanted in zip(exchanges, ("REFUSED", "NOTIMP", "FORMERR"), strict=True):
        message = dns.read(done.replies[0])
        need(message.rcode == wanted, f"{message.rcode}, the upstream said {wanted}")
        need(message.questions, "no question")
        need(len(done.upstream) <= 3, f"{len(done.upstream)} packets upstream")


@dedicated()
def fwd_10(lab, case):
    for done in lab.generic(case):
        need(len(done.upstream) >= 2, "not tried again")
    lab.recovered()


@dedicated()
def fwd_11(lab, case):
    """Also when the client's TCP port has the number of a UDP port from which we ask upstream: it is not us."""
    (done,) = lab.generic(case)
    need(dns.read(done.replies[0]).addresses() == [GOOD], "not the upstream's answer")
    port = next(seen.port for seen in reversed(lab.upstream.log) if seen.proto == "udp")
    with lab.tcp(source="127.0.0.1", port=port) as client:
        message = answer(client, "a1.up.test")
    need(message is not None and message.addresses() == [GOOD], f"from TCP port {port}: {message and message.rcode}")


@dedicated()
def fwd_13(lab, case):
    (done,) = lab.generic(case)
    for seen in done.upstream:
        for octets in (b"\x01\x02\x03\x04\x05\x06\x07\x08", b"\xfd\xe9", b"\x00\x08\x00\x07"):
            need(octets not in seen.wire, "a part of the client's options went upstream")


@dedicated()
def fwd_14(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(message.bit("ra") and message.bit("rd") and message.questions, "SERVFAIL without RA, RD or question")
    extended = lab.ask("x.dead.up.test", edns=dns.opt())
    need(extended.rcode == "SERVFAIL" and 15 in [code for code, _ in extended.options], "no extended error in the SERVFAIL")
    lab.recovered()


@dedicated()
def fwd_16(lab, case):
    lab.generic(case)
    need(lab.ask("a1.up.test").rcode == "NOERROR", "forwarding does not work right afterwards")


def _scripted(lab, case):
    """The generic run, and nothing forged in the reply. Returns the reply."""
    exchanges = lab.generic(case, transports=["udp"])
    need(all(FORGED_OCTETS not in wire for done in exchanges for wire in done.replies), f"{FORGED} reached the client")
    return exchanges[0]


@dedicated()
def spf_01(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_02(lab, case):
    before = lab.server.metric("canal_dns_forward_ignored_replies_total")
    begin = time.monotonic()
    done = _scripted(lab, case)
    need(time.monotonic() - begin < 5, "later than 5 s")
    need(any(seen.proto == "tcp" for seen in done.upstream), "TCP was not tried")
    need(lab.server.metric("canal_dns_forward_ignored_replies_total") > before, "the mismatch is not counted")


@dedicated()
def spf_04(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_06(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_08(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_09(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_11(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_12(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_13(lab, case):
    _scripted(lab, case)


@dedicated()
def spf_14(lab, case):
    before = lab.server.metric("canal_dns_forward_ignored_replies_total")
    with lab.udp() as client:
        wire = client.ask(case.packets[0])
        need(wire is not None and dns.read(wire).addresses() == [GOOD], "not the true reply")
        need(client.receive(0.3) is None, "more than one reply")
    counted = lab.server.metric("canal_dns_forward_ignored_replies_total") - before
    need(counted >= 2, f"{counted:g} counted as unexpected, 2 were expected")


@dedicated()
def spf_15(lab, case):
    """The late reply comes when its client has SERVFAIL and thousands of other queries are on their way."""
    others = [f"c{number}.late-others.up.test" for number in range(5000)]
    lab.upstream.suffixes[".late-others.up.test"] = _own_address
    with contextlib.ExitStack() as stack:
        stack.callback(lab.upstream.suffixes.pop, ".late-others.up.test")
        client = stack.enter_context(lab.udp())
        wire = client.ask(case.packets[0], 5.0)
        need(wire is not None, "no reply at all")
        problems = faults(case.check, Exchange(case.packets[0], "udp", [wire]))
        need(not problems, "; ".join(problems))
        crowd = [stack.enter_context(lab.udp(source=f"127.0.2.{number + 1}")) for number in range(10)]
        deadline, at, answered, wrong = time.monotonic() + 4.0, 0, 0, []
        while (time.monotonic() < deadline or at < len(others)) and answered < len(others):
            for one in crowd:
                for name in others[at : at + 5]:
                    one.send(dns.query(name, ident=int(name[1:].split(".")[0])))
                at += 5
                while (wire := one.receive(0.0005)) is not None:
                    answered += 1
                    message = dns.read(wire)
                    if message.rcode == "NOERROR" and message.addresses() != [_address(message.id)]:
                        wrong.append(message.addresses())
        need(not wrong, f"{len(wrong)} replies carried another query's answer: {wrong[:3]}")
        need(answered > 4000, f"only {answered} of {len(others)} other queries were answered")
        need(client.receive(0.5) is None, "the client got the late reply, too")
    lab.recovered()


def _address(number):
    return f"198.18.{number >> 8}.{number & 255}"


def _own_address(ask):
    ask.reply(answer=[dns.a(b"\xc0\x0c", _address(int(ask.name[1:].split(".")[0])))])


@dedicated()
def spf_16(lab, case):
    (done,) = lab.generic(case, transports=["udp"])
    message = dns.read(done.replies[0])
    web = [record.address for record in message.records if record.name.lower() == dns.wire_name(WEB)]
    need(set(web) <= {"10.96.0.200"}, f"the reply says that {WEB} is {web}")
    need(lab.ask(WEB).addresses() == ["10.96.0.200"], "the bound name is poisoned")
    mark = lab.upstream.mark()
    evil = lab.ask("evil")
    need(evil.rcode == "NXDOMAIN" and lab.upstream.seen("evil", since=mark), "'evil.' was not asked upstream")


@dedicated()
def spf_17(lab, case):
    """The unrelated record may be relayed, since nobody believes it; `check` is about the addresses of the name itself."""
    done = lab.exchange(case.packets[0])
    problems = faults({key: value for key, value in case.check.items() if key != "rdata"}, done)
    need(not problems, "; ".join(problems))
    message = dns.read(done.replies[0])
    own = [record.address for record in message.answer if record.name.lower() == dns.wire_name("s17.up.test")]
    need(own == [GOOD], f"s17.up.test is {own}")
    mark = lab.upstream.mark()
    lab.ask("bank.test")
    need(lab.upstream.seen("bank.test", since=mark), "'bank.test.' was not asked upstream")


@dedicated()
def spf_20(lab, case):
    """Not cached: the second query goes upstream as well."""
    for _ in range(2):
        (done,) = lab.generic(case, transports=["udp"])
        need(len(done.upstream) == 1, f"{len(done.upstream)} packets upstream")


@dedicated()
def spf_21(lab, case):
    mark = lab.upstream.mark()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(lab.udp()) for _ in range(case.check["count"])]
        sent = []
        for number, client in enumerate(clients):
            name = "".join(letter.upper() if number >> at & 1 else letter for at, letter in enumerate("s21.up.test"))
            sent.append(dns.query(name, ident=0x2000 + number))
            client.send(sent[-1])
        for number, client in enumerate(clients):
            wire = client.receive(4.0)
            need(wire is not None, f"client {number} got nothing")
            problems = faults({"result": "reply", "rcode": ["NOERROR"], "rdata": GOOD}, Exchange(sent[number], "udp", [wire]))
            need(not problems, f"client {number}: {'; '.join(problems)}")
    packets = lab.upstream.seen("s21.up.test", since=mark)
    # With several workers each one aggregates for itself: sockets of one SO_REUSEPORT group share nothing.
    allowed = max(1, lab.workers)
    need(len(packets) <= allowed, f"{len(packets)} packets upstream")
    need(lab.upstream.outstanding("s21.up.test", since=mark) <= allowed, "more than one outstanding upstream")


@dedicated()
def spf_25(lab, case):
    (done,) = lab.generic(case, transports=["udp"])
    need(dns.read(done.replies[0]).questions, "no question")
    lab.recovered()


@dedicated()
def spf_28(lab, case):
    """A reply of 64 KiB: little work, and nobody else waits for it."""
    with lab.udp() as other:
        before = lab.server.cpu()
        best = float("inf")
        for transport in ("udp", "tcp", "udp", "tcp"):
            start = lab.server.cpu()
            with lab.udp() if transport == "udp" else lab.tcp() as client:
                wire = client.ask(case.packets[0], 5.0)
            need(wire not in (None, CLOSED), f"no reply over {transport}")
            message = dns.read(wire)
            need(message.rcode in ("NOERROR", "SERVFAIL"), f"{message.rcode}")
            if transport == "tcp" and message.rcode == "NOERROR":
                need(len(message.answer) >= 4000, f"{len(message.answer)} records over TCP")
            best = min(best, lab.server.cpu() - start)
            need(answer(other, WEB, seconds=1.0) is not None, "another client waits")
        limit = case.check["max_ms"] / 1000 * SHARED
        need(best <= limit, f"{best * 1000:.0f} ms of CPU, {limit * 1000:g} were allowed")
        need(lab.server.cpu() - before < 4 * limit + 1, "too much CPU in all")
