"""Checks of what changes: bindings that come and go, an upstream that is gone, the time before the first sync."""

import contextlib
import time

from tests.conformance import fixture
from tests.conformance import message as dns
from tests.conformance.checks import SLACK, faults
from tests.conformance.fixture import answer, running
from tests.conformance.lab import WEB, Lab, dedicated, need

VIP4 = "10.96.0.200"
RATIO = 2.0
"""p99 with a dead upstream against p99 with a living one; 5 ms are added, the grain of a shared machine."""


@dedicated()
def bnd_05(lab, case):
    for done in lab.generic(case):
        need(VIP4 not in dns.read(done.replies[0]).addresses(), "the VIP below a bound name")
        need(done.upstream, "not forwarded")


@dedicated()
def bnd_06(lab, case):
    for done in lab.generic(case):
        message = dns.read(done.replies[0])
        need(len(done.upstream) == 1, f"{len(done.upstream)} packets upstream")
        need([record.rtype for record in message.authority] == [dns.SOA], "not the upstream's NODATA")
        need(message.authority[0].ttl == 30, "the SOA is not the upstream's")


@dedicated("alone")
def bnd_09(workers, case):
    """The VIP changes: 1 s later nobody gets the old one any more, from whatever port he asks."""
    new = "10.96.0.201"
    with running(workers=max(workers, 2)) as (server, upstream):
        lab = Lab(server, upstream, workers)
        need(lab.ask(WEB).addresses() == [VIP4], "not bound at first")
        for current, before in ((new, VIP4), (VIP4, new)):
            begin = time.monotonic()
            fixture.write(server.manifests / "gw-v4.yaml", fixture.gateway("gw-v4", (current,)))
            while time.monotonic() - begin < case.check["within_s"]:
                lab.ask(WEB)
            late = _addresses(server, 1000)
            need(set(late) == {current}, f"{late.count(before)} of {len(late)} still got {before} after 1 s")


def _addresses(server, count):
    """What `count` clients get, each from a port of its own."""
    found = []
    for _ in range(count // 50):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(fixture.Udp(server)) for _ in range(50)]
            for client in clients:
                client.send(dns.query(WEB))
            for client in clients:
                wire = client.receive(2.0)
                need(wire is not None, "no answer")
                found += dns.read(wire).addresses()
    return found


@dedicated("alone")
def bnd_10(workers, case):
    with running(workers=workers) as (server, upstream):
        normal = _p99(Lab(server, upstream, workers), None)
    with running(workers=workers, silent=True) as (server, upstream):
        lab = Lab(server, upstream, workers)
        with lab.udp() as crowd:
            dead = _p99(lab, crowd)
        done = lab.exchange(case.packets[0])
        done.upstream = []
        problems = faults(case.check, done)
        need(not problems, "; ".join(problems))
        need(not upstream.seen(WEB), "the bound name went upstream")
        need(len(upstream.log) >= 100, "the fixture: hardly anything went upstream, so nothing was tested")
    need(dead <= RATIO * normal + 0.005, f"p99 {dead * 1000:.1f} ms with a dead upstream, {normal * 1000:.1f} ms without")


def _p99(lab, crowd):
    """99 % of 1,000 answers are faster; all must come. `crowd` sends a query to be forwarded before each."""
    times = []
    with lab.udp() as client:
        for number in range(1000):
            if crowd is not None:
                crowd.send(dns.query(f"x{number}.up.test", ident=number))
            begin = time.perf_counter()
            wire = client.ask(dns.query(WEB, ident=number), 2.0)
            times.append(time.perf_counter() - begin)
            need(wire is not None and dns.read(wire).addresses() == [VIP4], f"query {number} was not answered")
    return sorted(times)[989]


@dedicated()
def bnd_12(lab, case):
    """The chain ends at the VIP, over both transports, with and without EDNS; and AAAA does not slip through."""
    lab.generic(case)
    for transport in ("udp", "tcp"):
        for edns in (b"", dns.opt(do=True)):
            message = lab.ask("ext.shop.svc.cluster.local", transport=transport, edns=edns)
            addresses = [(record.name, record.address) for record in message.records if record.address]
            need(addresses == [(dns.wire_name(WEB), VIP4)], f"{transport}: {addresses}")
            need([record.rtype for record in message.answer] == [dns.CNAME, dns.A], f"{transport}: the CNAME is gone")


@dedicated("alone")
def bnd_13(workers, case):
    """Before the manifests are there: forwarded, not ready; when they come: bound."""
    with running(workers=workers, manifests=False, wait=False) as (server, upstream):
        lab = Lab(server, upstream, workers)
        mark = upstream.mark()
        (done,) = [lab_once(lab, case.packets[0])]
        message = dns.read(done)
        need(message.rcode in case.check["rcode"], f"{message.rcode}")
        need(message.addresses() == ["10.96.0.11"], f"{message.rcode} {message.addresses()}, not the upstream's answer")
        need(upstream.seen(WEB, since=mark), "not forwarded")
        need(server.get("/ready")[0] == 503, f"/ready says {server.get('/ready')[0]}")
        need(server.get("/health")[0] == 200, "/health is not OK")
        fixture.write_manifests(server.manifests)
        server.until(lambda: server.get("/ready")[0] == 200, 5.0, "ready")
        server.until(lambda: lab.ask(WEB).addresses() == [VIP4], 2.0, "bound")


def lab_once(lab, wire):
    """One query without a fence: HDR-01 itself is forwarded here."""
    with lab.udp() as client:
        got = client.ask(wire)
    need(got is not None, "no reply")
    return got


@dedicated("beside")
def bnd_15(lab, case):
    """Ten times over 30 s."""
    ttls = set()
    for number in range(10):
        if number:
            time.sleep(3.3)
        (done,) = lab.generic(case)
        ttls |= {record.ttl for record in dns.read(done.replies[0]).answer}
    need(len(ttls) == 1 and 0 < min(ttls) <= 5, f"TTLs {sorted(ttls)}; the configured one is 5")


@dedicated()
def bnd_17(lab, case):
    """Asked while unbound, then bound, then unbound again."""
    name, file = "late.shop.svc.cluster.local", lab.server.manifests / "late.yaml"
    lab.upstream.scripts[name] = lambda ask: ask.reply(answer=[dns.a(b"\xc0\x0c", "10.96.0.15", 300)])
    try:
        for _ in range(3):
            need(dns.read(lab.exchange(case.packets[0]).replies[0]).addresses() == ["10.96.0.15"], "not the upstream's")
        fixture.write(file, [fixture.virtual_service("late", "gw-v4")])
        _within(lab, name, VIP4, case.check["within_s"] + SLACK)
        time.sleep(0.05)
        need(set(_many(lab, name)) == {VIP4}, "some still get the upstream's answer")
    finally:
        file.unlink(missing_ok=True)
        lab.upstream.scripts.pop(name)
    _within(lab, name, "10.96.0.15", case.check["within_s"] + SLACK)


def _within(lab, name, address, seconds):
    begin = time.monotonic()
    while set(_many(lab, name)) != {address}:
        need(time.monotonic() - begin < seconds, f"not everybody gets {address} after {seconds:g} s")


def _many(lab, name):
    """What ten clients on ten ports get."""
    found = []
    for _ in range(10):
        with lab.udp() as client:
            message = answer(client, name, seconds=2.0)
        need(message is not None, "no answer")
        found += message.addresses()
    return found
