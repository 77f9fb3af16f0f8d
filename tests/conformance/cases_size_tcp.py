"""Checks of sizes, truncation and TCP behaviour."""

import contextlib
import select
import struct
import threading
import time

from tests.conformance import message as dns
from tests.conformance.checks import SHARED, SLACK
from tests.conformance.fixture import CLOSED, answer, running
from tests.conformance.lab import WEB, Lab, dedicated, need

VIP4 = "10.96.0.200"
LIMIT = 20
"""Connections of one client in one worker: the default, and what the fixture runs with."""
IDLE = 8.0


@dedicated()
def siz_02(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(len(message.answer) == 1 and len(message.wire) == 524, f"{len(message.wire)} octets, {len(message.answer)} records")


@dedicated()
def siz_03(lab, case):
    """1232 octets fit, 1233 do not; over IPv4 and IPv6."""
    for host in ("127.0.0.1", "::1"):
        fits, does_not = lab.generic(case, transports=["udp"], hosts=[host])
        message = dns.read(fits.replies[0])
        need(
            not message.bit("tc") and len(message.wire) == 1232,
            f"{host}: 1232resp: TC={message.bit('tc')}, {len(message.wire)}",
        )
        need(dns.read(does_not.replies[0]).bit("tc"), f"{host}: 1233resp: TC=0")


@dedicated()
def siz_04(lab, case):
    (done,) = lab.generic(case, transports=["udp"])
    small = dns.read(done.replies[0])
    need(small.bit("tc") and len(small.wire) <= 512, f"(a) TC={small.bit('tc')}, {len(small.wire)} octets")
    whole = lab.ask("giant.up.test", transport="tcp")
    need(len(whole.addresses()) == 64, f"(b) {len(whole.addresses())} records over TCP")
    large = lab.ask("giant.up.test", edns=dns.opt(65535))
    need(len(large.addresses()) == 64 and not large.bit("tc"), f"(c) {len(large.addresses())} records, TC={large.bit('tc')}")


@dedicated()
def siz_05(lab, case):
    """TC=1 with none or all of what came, NOERROR; or SERVFAIL, if TCP was tried."""
    for wire in (case.packets[0], dns.query("tc.up.test", edns=dns.opt())):
        done = lab.exchange(wire)
        need(len(done.replies) == 1, "no reply")
        message = dns.read(done.replies[0])
        tried = any(seen.proto == "tcp" for seen in done.upstream)
        truncated = message.rcode == "NOERROR" and message.bit("tc") and len(message.answer) <= 1
        need(truncated or (message.rcode == "SERVFAIL" and tried), f"{message.rcode} TC={message.bit('tc')} TCP tried: {tried}")
        need((message.opt is not None) == (wire is not case.packets[0]), "OPT not as in the query")


@dedicated()
def siz_08(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(len(message.wire) == 30_000, f"{len(message.wire)} octets, 30,000 were expected")
    need(any(seen.proto == "tcp" for seen in done.upstream), "not asked over TCP")


@dedicated()
def siz_11(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(all(record.rtype == dns.A for record in message.answer), "half a record set of another kind")


@dedicated()
def siz_12(lab, case):
    (done,) = lab.generic(case)
    message = dns.read(done.replies[0])
    need(len(message.answer) > 10 and message.answer[0].rtype == dns.CNAME, f"{len(message.answer)} records")
    plain = sum(len(record.name) + 10 + len(record.rdata) for record in message.answer)
    need(plain > 1000, f"the fixture is too small: {plain} octets without compression")


@dedicated()
def tcp_03(lab, case):
    with lab.tcp() as client:
        begin = time.monotonic()
        client.send(dns.query("slow.up.test", ident=1), *(dns.query(WEB, ident=100 + number) for number in range(24)))
        arrived = []
        while len(arrived) < case.check["count"]:
            wire = client.receive(5.0)
            need(wire not in (None, CLOSED), f"only {len(arrived)} of 25 replies")
            arrived.append((dns.read(wire).id, time.monotonic() - begin))
    need([ident for ident, _ in arrived][-1] == 1, "the slow one did not come last")
    need(sorted(ident for ident, _ in arrived[:-1]) == list(range(100, 124)), "not each of the 24 once")
    need(arrived[-2][1] < 0.05 * SHARED, f"the 24 bound ones took {arrived[-2][1] * 1000:.0f} ms")


@dedicated()
def tcp_05(lab, case):
    before = lab.server.descriptors()
    with lab.tcp() as client:
        client.send_raw(case.packets[0])
        client.socket.shutdown(1)
        need(client.receive(6.0) is CLOSED, "not closed, or answered")
    _until(lambda: lab.server.descriptors() <= before, 2.0, "descriptors are left over")


@dedicated()
def tcp_06(lab, case):
    before = lab.server.cpu()
    with lab.tcp() as client:
        client.send_raw(case.packets[0])
        client.send(lab.baseline)
        got = client.receive(6.0)
        need(got is CLOSED or (got is not None and dns.read(got).addresses() == [VIP4]), "neither closed nor answered")
    need(lab.server.cpu() - before < 1.0, "the server spins")


@dedicated()
def tcp_07(lab, case):
    with lab.tcp() as client:
        need(client.ask(lab.baseline) not in (None, CLOSED), "the valid query was not answered")
        client.send_raw(case.packets[0])
        need(client.receive(6.0) is CLOSED, "not closed")


def _until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        need(time.monotonic() < deadline, f"{what} after {seconds:g} s")
        time.sleep(0.02)


def _closed_after(client, seconds):
    """Seconds until the server closes; a Fault when it does not, or says something."""
    begin = time.monotonic()
    got = client.receive(seconds)
    need(got is CLOSED, "still open" if got is None else "an answer to nothing")
    return time.monotonic() - begin


@dedicated("beside")
def tcp_09(lab, case):
    with lab.tcp(source="127.0.1.9") as client:
        took = _closed_after(client, 8.0)
    need(4.0 <= took <= case.check["within_s"] + SLACK, f"closed after {took:.1f} s, 5 +/- 1 were expected")


@dedicated("beside")
def tcp_10(lab, case):
    with lab.tcp(source="127.0.1.10") as client:
        need(client.ask(lab.baseline) not in (None, CLOSED), "the first query was not answered")
        need(client.receive(2.0) is None, "closed, or an answer to nothing, within 2 s")
        need(client.ask(lab.baseline) not in (None, CLOSED), "the second query was not answered")
        took = _closed_after(client, IDLE + 4)
    need(IDLE - 1 <= took <= case.check["within_s"] + SLACK, f"closed {took:.1f} s after the last reply, 8 +/- 1 were expected")


@dedicated("beside")
def tcp_11(lab, case):
    with lab.tcp(source="127.0.1.11") as client, lab.udp() as other:
        begin = time.monotonic()
        client.send_raw(case.packets[0])
        while client.receive(0.1) is None:
            took = time.monotonic() - begin
            need(took < case.check["within_s"] + SLACK, f"still open after {took:.1f} s")
            client.send_raw(b"x")
            need(other.ask(lab.baseline, 1.0) is not None, "another client was not answered meanwhile")


@dedicated()
def tcp_12(lab, case):
    with lab.tcp() as client:
        client.send(case.packets[0])
        client.socket.shutdown(1)
        wire = client.receive(4.0)
        need(wire not in (None, CLOSED), "no reply after the half-close")
        need(dns.read(wire).addresses() == ["192.0.2.1"], "not the upstream's reply")
        need(client.receive(4.0) is CLOSED, "not closed afterwards")


@dedicated()
def tcp_13(lab, case):
    """1,000 times: ten forwarded queries, then RST."""
    before = lab.server.descriptors()
    queries = [dns.query(f"r{number}.pipe.up.test", ident=number) for number in range(10)]
    for _ in range(1000):
        client = lab.tcp()
        client.send(*queries)
        client.reset()
    lab.recovered()
    # The forwarder keeps a pool of upstream sockets, which is allowed to be warmer than before: 64 per process.
    processes = max(1, lab.workers)
    _until(lambda: lab.server.metric("canal_dns_tcp_connections") == 0, 5.0, "client connections are left over")
    _until(lambda: lab.server.metric("canal_dns_forward_in_flight") == 0, 5.0, "upstream queries are left over")
    _until(lambda: lab.server.descriptors() <= before + 70 * processes, 5.0, "descriptors are left over")


@dedicated()
def tcp_14(lab, case):
    """Exactly the limit; it is one of each worker, so that with several only its sum is exact."""
    workers = max(1, lab.workers)
    wanted = LIMIT * workers + 1
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(lab.tcp(source="127.0.1.14")) for _ in range(wanted)]
        for client in clients:
            client.send(lab.baseline)
        got = [client.receive(3.0) for client in clients]
        answered = sum(1 for wire in got if wire not in (None, CLOSED))
        closed = sum(1 for wire in got if wire is CLOSED)
        if workers == 1:
            need((answered, closed) == (LIMIT, 1), f"{answered} answered and {closed} closed of {wanted}")
        else:
            need(answered <= LIMIT * workers and closed >= 1, f"{answered} answered and {closed} closed of {wanted}")
            need(answered + closed == wanted, "some connections hang")
        with lab.udp() as udp:
            need(udp.ask(lab.baseline, 1.0) is not None, "UDP is affected")
    deadline = time.monotonic() + 2.0
    while True:
        with lab.tcp(source="127.0.1.14") as client:
            if client.ask(lab.baseline, 1.0) not in (None, CLOSED):
                return
        need(time.monotonic() < deadline, "no recovery within 2 s after closing")
        time.sleep(0.05)


@dedicated("alone")
def tcp_17(workers, case):
    """Queries whose replies nobody reads; on a server of its own, because its memory is measured."""
    with running(workers=workers) as (server, upstream):
        lab = Lab(server, upstream, workers)
        with lab.udp() as other:
            for number in range(20):
                answer(other, f"warm{number}.pipe.up.test")
            before = server.memory()
            with lab.tcp(receive_buffer=4096) as client:
                begin = time.monotonic()
                client.send(*(dns.query(f"q{number}.big.up.test", dns.TXT, ident=number) for number in range(28)))
                peak = closed = 0
                while not closed and time.monotonic() - begin < case.check["within_s"] + 2 + SLACK:
                    time.sleep(0.05)
                    peak = max(peak, server.memory() - before)
                    need(other.ask(lab.baseline, 1.0) is not None, "another client was not answered meanwhile")
                    if time.monotonic() - begin > 6:
                        closed = _refused(client, lab.baseline, server)
                took = time.monotonic() - begin
        need(closed, f"still open after {took:.1f} s")
        need(took <= case.check["within_s"] + SLACK, f"closed after {took:.1f} s")
        need(peak < 2 << 20, f"memory grew by {peak} octets")
        lab.well()


def _refused(client, wire, server):
    """Send one more query; True when the server has closed the connection, or counts it no more."""
    client.socket.settimeout(0.05)
    try:
        client.socket.sendall(struct.pack("!H", len(wire)) + wire)
    except TimeoutError:
        # Back-pressure: the server does not read any more. A reset shows without sending.
        poll = select.poll()
        poll.register(client.socket, 0)
        return bool(poll.poll(0)) or server.metric("canal_dns_tcp_connections") == 0
    except OSError:
        return True
    return False


@dedicated()
def tcp_21(lab, case):
    mark = lab.upstream.mark()
    names = [f"p{number}.pipe.up.test" for number in range(case.check["count"])]
    with lab.tcp() as client:
        sender = threading.Thread(target=client.send, args=[dns.query(name, ident=number) for number, name in enumerate(names)])
        sender.start()
        got = set()
        for _ in names:
            wire = client.receive(6.0)
            need(wire not in (None, CLOSED), f"{len(got)} of 100 replies")
            message = dns.read(wire)
            need(message.rcode == "NXDOMAIN", f"{message.rcode}")
            got.add(message.id)
        sender.join()
    need(got == set(range(100)), "not each of the 100 once")
    most = lab.upstream.outstanding(since=mark, suffix=".pipe.up.test")
    need(most <= 10, f"{most} outstanding upstream, 10 were allowed")
