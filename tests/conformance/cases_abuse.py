"""Checks of floods, loops, hostile names, and packets made by chance."""

import asyncio
import collections
import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.conformance import message as dns
from tests.conformance.fixture import CLOSED, Tcp, Udp, free_port, running
from tests.conformance.lab import WEB, Lab, dedicated, load, need

VIP4 = "10.96.0.200"
SEED = 20_260_101
MUTATIONS = 20_000


class NotRun(Exception):  # noqa: N818
    """The case cannot be run here; the text says why."""


@dedicated("last")
def amp_03(lab, case):
    """10,000 broken packets a second for 5 s from one socket; meanwhile another client asks 200 times a second."""
    lab.errors_again()
    stop = threading.Event()
    counts = {"sent": 0, "errors": 0}
    flood = threading.Thread(target=_flood, args=[lab, case.packets[0], 10_000, 5.0, counts, stop])
    asked = answered = 0
    with lab.udp(source="127.0.0.9") as client:
        flood.start()
        while flood.is_alive():
            begin = time.monotonic()
            asked += 1
            answered += client.ask(dns.query(WEB, ident=asked & 0xFFFF), 1.0) is not None
            time.sleep(max(0.0, 0.005 - (time.monotonic() - begin)))
        flood.join()
    rate = counts["errors"] / 5.0
    need(counts["sent"] > 20_000, f"the fixture: only {counts['sent']} packets were sent")
    limit = case.check["max_error_replies_per_s"]
    # A full bucket at the start is one second's worth.
    need(counts["errors"] <= limit * 6, f"{counts['errors']} error replies in 5 s, {rate:.0f}/s; {limit}/s are allowed")
    need(asked - answered <= max(1, asked * 0.001), f"{asked - answered} of {asked} valid queries were lost")
    lab.errors_again()


def _flood(lab, wire, per_second, seconds, counts, stop):
    with lab.udp() as client:
        client.socket.setblocking(False)
        begin, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - begin) < seconds and not stop.is_set():
            due = int(elapsed * per_second) - sent
            for _ in range(due):
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    client.socket.send(wire)
                sent += 1
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                while client.socket.recv(4096):
                    counts["errors"] += 1
            time.sleep(0.001)
        counts["sent"] = sent
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                while client.socket.recv(4096):
                    counts["errors"] += 1
            time.sleep(0.01)


@dedicated("alone")
def amp_04(workers, case):
    """1,000 queries a second for 3 s from one address, 100 are allowed; TCP and an exempt client go on."""
    limit = {"access": {"rateLimit": {"perSecond": 100, "slip": 2, "exempt": ["127.0.0.9/32"]}}}
    with running(workers=workers, changes=limit) as (server, upstream):
        lab = Lab(server, upstream, workers)
        kinds = collections.Counter()
        with Udp(server, source="127.0.0.7") as client, Udp(server, source="127.0.0.9") as exempt:
            begin, sent, exempt_lost = time.monotonic(), 0, 0
            while (elapsed := time.monotonic() - begin) < 3.0:
                while sent < elapsed * 1000:
                    client.send(case.packets[0])
                    sent += 1
                    if sent % 10 == 0:
                        exempt_lost += exempt.ask(lab.baseline, 1.0) is None
                while (wire := client.receive(0.0005)) is not None:
                    _count(kinds, wire)
            while (wire := client.receive(0.2)) is not None:
                _count(kinds, wire)
            with Tcp(server, source="127.0.0.7") as tcp:
                for _ in range(100):
                    got = tcp.ask(lab.baseline)
                    need(got not in (None, CLOSED) and dns.read(got).addresses() == [VIP4], "TCP is limited, too")
        need(250 <= kinds["full"] <= 450, f"{kinds['full']} full answers in 3 s, about 300 were expected")
        need(kinds["slipped"] + kinds["full"] < sent, f"{kinds}: nothing was dropped with slip 2")
        need(kinds["slipped"] > 0, "no slipped replies")
        need(not kinds["slipped without AA"], "AA=0 on slipped replies")
        need(not exempt_lost, f"an exempt client lost {exempt_lost} queries")
        lab.well()


def _count(kinds, wire):
    message = dns.read(wire)
    if message.bit("tc"):
        need(not message.answer, "a slipped reply has records")
        kinds["slipped"] += 1
        kinds["slipped without AA"] += not message.bit("aa")
    else:
        need(message.addresses() == [VIP4], f"{message.rcode}")
        kinds["full"] += 1


@dedicated("alone")
def amp_06(workers, case):
    with running(workers=workers, upstreams=["SELF"]) as (server, upstream):
        lab = Lab(server, upstream, workers)
        before = server.metric("canal_dns_requests_total")
        with lab.udp() as client:
            wire = client.ask(case.packets[0], 6.0)
            need(wire is not None, "silence")
            need(dns.read(wire).rcode == "SERVFAIL", f"{dns.read(wire).rcode}, SERVFAIL was expected")
            need(client.receive(0.5) is None, "a second reply")
        packets = server.metric("canal_dns_requests_total") - before
        need(packets <= case.check["upstream_packets_max"], f"{packets:g} packets in all")
        # A worker knows its own queries only: with several it is the question already on its way that ends the loop.
        need(workers or server.metric("canal_dns_loops_total") > 0, "the loop is not counted")
        lab.well()


@dedicated("alone")
def amp_07(workers, case):
    """Hostile names: one line of the log each, and metrics that still parse. Through the upstream's IPv6 address."""
    changes = {"log": {"queries": True}}
    with running(workers=workers, changes=changes, upstreams=["V6"]) as (server, upstream):
        lab = Lab(server, upstream, workers)
        before = len(server.log.read_bytes().splitlines())
        for wire in case.packets:
            done = lab.exchange(wire)
            need(len(done.replies) == 1 and done.upstream, "not answered by the upstream")
        deadline = time.monotonic() + 5
        lines = []
        while time.monotonic() < deadline:
            written = server.log.read_bytes()
            lines = [line for line in written.splitlines()[before:] if b"up.test" in line]
            if len(lines) >= case.check["log_lines"]:
                break
            time.sleep(0.05)
        need(len(lines) == case.check["log_lines"], f"{len(lines)} lines of the log, {case.check['log_lines']} were expected")
        raw = re.findall(rb"[^\x20-\x7e\n]", written)
        need(not raw, f"octets in the log that are not printable: {raw[:5]}")
        for escaped in (rb"\010", rb"\255\254", rb"\027"):
            need(any(escaped in line for line in lines), f"{escaped.decode()} is not in the log")
        status, text = server.get("/metrics")
        families = list(text_string_to_metric_families(text.decode()))
        need(status == 200 and families, "/metrics does not parse")
        values = {value for family in families for sample in family.samples for value in sample.labels.values()}
        odd = [value for value in values if "up.test" in value or "script" in value or "%s" in value]
        need(not odd, f"names in labels: {odd}")
        lab.well()


@dedicated("alone")
def amp_08(workers, case):
    """60 may wait; the others are turned away at once; bound names are answered all the time."""
    outstanding = 60
    with running(workers=workers, changes={"limits": {"maxOutstanding": outstanding}}) as (server, upstream):
        lab = Lab(server, upstream, workers)
        with lab.udp() as crowd, lab.udp() as client:
            begin = time.monotonic()
            for number in range(2 * outstanding):
                crowd.send(dns.query(f"d{number}.dead.up.test", ident=number))
            at_once = []
            while (wire := crowd.receive(0.4)) is not None and time.monotonic() - begin < 0.9:
                at_once.append(dns.read(wire).rcode)
            good = sum(client.ask(lab.baseline, 1.0) is not None for _ in range(100))
            rejected = server.metric("canal_dns_forward_rejected_total")
            need(good == 100 * case.check["bound_ok"], f"{good} of 100 bound answers")
            need(set(at_once) <= {"SERVFAIL", "REFUSED"}, f"{set(at_once)} at once")
            need(rejected >= outstanding, f"{rejected:g} counted as rejected, {outstanding} were too many")
            need(upstream.outstanding(suffix=".dead.up.test") <= 2 * outstanding, "more waited than may")
        lab.well()


@dedicated("last")
def amp_09(lab, case):
    """5,000 queries from one address, answers held back for 4 s and let go at once: no pulse reaches the client."""
    gate = time.monotonic() + 4.0

    async def hold(ask):
        await asyncio.sleep(max(0.0, gate - time.monotonic()))
        ask.good()

    arrivals = []
    lab.upstream.scripts["slow.up.test"], old = hold, lab.upstream.scripts["slow.up.test"]
    lab.upstream.suffixes[".slow.up.test"] = hold
    try:
        with lab.udp(source="127.0.0.33") as client:
            begin, sent = time.monotonic(), 0
            while time.monotonic() < gate + 2.0:
                # 2,500 a second: replies that turn a query away at once are no pulse.
                while sent < min(5000, (time.monotonic() - begin) * 2500):
                    name = "slow.up.test" if sent % 2 else f"n{sent}.slow.up.test"
                    client.send(dns.query(name, ident=sent))
                    sent += 1
                while client.receive(0.0005) is not None:
                    arrivals.append(time.monotonic())
    finally:
        lab.upstream.scripts["slow.up.test"] = old
        del lab.upstream.suffixes[".slow.up.test"]
    need(sent == 5000, f"the fixture: {sent} queries were sent")
    most = max(
        (sum(1 for other in arrivals[at:] if other - arrivals[at] < 0.1) for at in range(0, len(arrivals), 10)), default=0
    )
    need(most <= case.check["max_burst"], f"{most} replies within 100 ms")
    late = [at for at in arrivals if at > gate]
    need(not late, f"{len(late)} replies after the release: the queries were older than the limit")
    lab.recovered()


# --- chance -----------------------------------------------------------------------------------------------------------------


def mutations(count, seed=SEED):
    """`count` packets made from those of all cases: bits flipped, parts cut out, doubled, swapped, replaced. Reproducible."""
    chance = random.Random(seed)
    seeds = [wire for case in load().values() for wire in case.packets if len(wire) >= 12]
    for _ in range(count):
        wire = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            _mutate(wire, chance, seeds)
        yield bytes(wire[:4096])


def _mutate(wire, chance, seeds):
    at = chance.randrange(len(wire)) if wire else 0
    kind = chance.randrange(8)
    if kind == 0 and wire:
        wire[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and wire:
        wire[at] = chance.choice((0, 1, 0x3F, 0x40, 0x80, 0xC0, 0xFF, chance.randrange(256)))
    elif kind == 2:
        del wire[at : at + chance.randrange(1, 20)]
    elif kind == 3:
        wire[at:at] = chance.randbytes(chance.randrange(1, 20))
    elif kind == 4:
        wire[at:at] = wire[at : at + chance.randrange(1, 40)]
    elif kind == 5:
        other = chance.choice(seeds)
        cut = chance.randrange(len(other))
        wire[at:] = other[cut:]
    elif kind == 6 and len(wire) >= 12:
        field = chance.choice((2, 4, 6, 8, 10))
        wire[field : field + 2] = chance.choice((0, 1, 2, 255, 65535)).to_bytes(2, "big")
    else:
        del wire[at:]


@dedicated("last")
def fuz_03(lab, case):
    """A corpus of our own in place of PowerDNS's: 20,000 seeded mutations of every packet of cases.json."""
    sent = 0
    with lab.udp() as client:
        for wire in mutations(MUTATIONS):
            client.send(wire)
            sent += 1
            if sent % 100 == 0:
                _fence(lab, client)
    with contextlib.ExitStack() as stack:
        for wire in mutations(500, SEED + 1):
            tcp = stack.enter_context(lab.tcp(source=f"127.0.3.{sent % 50 + 1}"))
            tcp.send(wire)
            sent += 1
            if sent % 50 == 0:
                stack.pop_all().close()
    lab.recovered()
    lab.errors_again()


def _fence(lab, client):
    """Read what has come, up to the fence; each reply must be a DNS message."""
    client.send(lab.baseline)
    deadline = time.monotonic() + 5.0
    fenced = False
    while not fenced:
        wire = client.receive(max(0.0, deadline - time.monotonic()))
        need(wire is not None, "HDR-01 was not answered among random packets")
        fenced = wire[:2] == lab.baseline[:2]
        try:
            dns.read(wire)
        except dns.MalformedError as problem:
            need(False, f"a malformed reply to a random packet: {problem} ({wire.hex()})")


ZONE = """\
$ORIGIN up.test.
$TTL 300
@ IN SOA ns.up.test. hostmaster.up.test. 1 7200 1800 86400 30
@ IN NS ns
ns IN A 192.0.2.53
a1 IN A 192.0.2.1
a1 IN AAAA 2001:db8::1
a1 IN TXT "some text" "and more"
mx IN MX 10 a1
mx IN MX 20 elsewhere.example.
srv IN SRV 0 5 80 a1
alias IN CNAME a1
chain IN CNAME alias
dangling IN CNAME nothing
*.wild IN A 192.0.2.7
deep.er.still IN A 192.0.2.8
caa IN CAA 0 issue "example.org"
"""


@dedicated("alone")
def fuz_06(workers, case):
    """10,000 questions to CoreDNS directly and through canal-dns: what differs beside RA and AA is ours."""
    binary = os.environ.get("CANAL_DNS_COREDNS") or shutil.which("coredns") or Path.home() / ".cache/canal-dns/bin/coredns"
    if not Path(binary).exists():
        raise NotRun("no CoreDNS: set CANAL_DNS_COREDNS, or build it with `python -m tests.e2e.binaries coredns`")
    with tempfile.TemporaryDirectory(prefix="canal-dns-") as folder, contextlib.ExitStack() as stack:
        port = free_port("127.0.0.1")
        (Path(folder) / "zone").write_text(ZONE)
        (Path(folder) / "Corefile").write_text(f".:{port} {{\n bind 127.0.0.1\n file {folder}/zone up.test\n}}\n")
        coredns = subprocess.Popen(
            [binary, "-conf", f"{folder}/Corefile"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        stack.callback(coredns.wait)
        stack.callback(coredns.terminate)
        direct = stack.enter_context(_connected(port))
        _answering(direct)
        server, _ = stack.enter_context(running(workers=workers, upstreams=[f"127.0.0.1:{port}"]))
        through = stack.enter_context(_connected(server.port))
        different = []
        for batch in _batches(list(_questions(10_000)), 50):
            for wire, one, two in zip(batch, _ask_all(direct, batch), _ask_all(through, batch), strict=True):
                problem = difference(one, two)
                if problem:
                    different.append(f"{wire[12:].hex()}: {problem}")
        need(len(different) <= case.check["diff"], f"{len(different)} differences: {different[:3]}")


def _connected(port):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    client.connect(("127.0.0.1", port))
    return client


def _answering(client):
    deadline = time.monotonic() + 10
    client.settimeout(0.2)
    while True:
        need(time.monotonic() < deadline, "CoreDNS does not answer")
        with contextlib.suppress(OSError):
            client.send(dns.query("a1.up.test"))
            client.recv(4096)
            return


def _questions(count):
    chance = random.Random(SEED)
    names = [
        "a1",
        "mx",
        "srv",
        "alias",
        "chain",
        "dangling",
        "x.wild",
        "y.z.wild",
        "er.still",
        "deep.er.still",
        "caa",
        "@",
        "ns",
    ]
    types = [dns.A, dns.AAAA, dns.TXT, dns.MX, dns.SRV, dns.CNAME, dns.NS, dns.SOA, dns.ANY, dns.HTTPS, 257, 65280, 43, 48]
    for number in range(count):
        label = chance.choice([*names, f"nx{number}"])
        name = "up.test" if label == "@" else f"{label}.up.test"
        name = "".join(letter.upper() if chance.random() < 0.2 else letter for letter in name)
        edns = dns.opt(chance.choice((512, 1232, 4096)), do=chance.random() < 0.3) if chance.random() < 0.5 else b""
        flags = {key: chance.random() < 0.3 for key in ("cd", "ad")}
        yield dns.query(name, chance.choice(types), ident=number & 0xFFFF, rd=chance.random() < 0.8, edns=edns, **flags)


def _batches(items, size):
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _ask_all(client, batch):
    """The replies to a batch in its order; None for one that did not come."""
    for wire in batch:
        client.send(wire)
    got = {}
    client.settimeout(3.0)
    with contextlib.suppress(TimeoutError):
        while len(got) < len(batch):
            wire = client.recv(65535)
            got[wire[:2]] = wire
    return [got.get(wire[:2]) for wire in batch]


def difference(one, two):
    """What respdiff would report: opcode, rcode, question, TC, answer types, answer."""
    if one is None or two is None:
        return None if one is two else "only one of them answers"
    direct, through = dns.read(one), dns.read(two)
    for what, of in (
        ("opcode", lambda message: message.opcode),
        ("rcode", lambda message: message.rcode),
        ("question", lambda message: message.question),
        ("RD", lambda message: message.bit("rd")),
        ("CD", lambda message: message.bit("cd")),
        ("TC", lambda message: message.bit("tc")),
        ("answer types", lambda message: sorted(record.rtype for record in message.answer)),
        (
            "answer",
            lambda message: sorted((r.name.lower(), r.rtype, r.rdata if not r.target else r.target) for r in message.answer),
        ),
        ("authority types", lambda message: sorted(record.rtype for record in message.authority)),
    ):
        if of(direct) != of(through):
            return f"{what}: {of(direct)} directly, {of(through)} through canal-dns"
    return None


@dedicated("alone")
def fuz_04(workers, case):
    raise NotRun("needs the captures of DNS-OARC/bad-packets and a raw socket in a network namespace")


@dedicated("alone")
def fuz_07(workers, case):
    raise NotRun("needs ISC's genreport")
