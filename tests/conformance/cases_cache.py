"""Checks of the cache: what is a hit and what is another question, how long an answer lives, who has to go.

Rules of this file:
- each check has a server of its own with its cache on; all others run without one, since they count what goes upstream;
- a client is one socket: with several workers it is always the same one that answers it, out of one cache;
- what should be a hit is told from a question of the upstream by the upstream's log, never by the time it took.
"""

import contextlib
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path

from tests.conformance import message as dns
from tests.conformance.fixture import VIP4, Udp, answer, running
from tests.conformance.lab import WEB, Lab, dedicated, need
from tests.conformance.upstream import FORGED, GOOD, QUESTION, Ask, rcode

FLOOD, SIZE, HOT = 20_000, 200, 20
"""Names that are asked for once, the entries that there is room for, and names that are asked for all the time: a hundred
names for each entry, as with 1,000,000 names and the default of 10,000 entries."""
STEP = """
import os, time
def _stepped(clock, unit):
    def stepped():
        with open(os.environ["CANAL_DNS_TEST_STEP"]) as file:
            return clock() + int(file.read() or 0) * unit
    return stepped
time.time, time.time_ns = _stepped(time.time, 1), _stepped(time.time_ns, 1_000_000_000)
"""
"""A wall clock that can be set: what Python runs before anything else. (Setting the machine's would harm others.)"""


@contextlib.contextmanager
def cached(workers, *, size=10_000, environment=None, **cache):
    """A lab whose server has a cache."""
    changes = {"cache": {"size": size, **cache}}
    with running(workers=workers, changes=changes, environment=environment) as (server, upstream):
        lab = Lab(server, upstream, workers)
        _settled(lab)
        yield lab
        lab.well()


def _settled(lab):
    """Every worker has the table: its coming empties the cache."""
    deadline = time.monotonic() + 5
    while True:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(lab.udp()) for _ in range(16)]
            if all(ask(client, WEB).addresses() == [VIP4] for client in clients):
                return
        need(time.monotonic() < deadline, "5 s after it was ready a worker has no table")


@contextlib.contextmanager
def stepping(workers):
    """(lab, step): `step(seconds)` sets the wall clock of all its processes so much off."""
    with tempfile.TemporaryDirectory(prefix="canal-dns-") as folder:
        (Path(folder) / "sitecustomize.py").write_text(STEP)
        file = Path(folder) / "step"

        def step(seconds):
            new = file.with_name("new")
            new.write_text(str(seconds))
            new.replace(file)

        step(0)
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "CANAL_DNS_TEST_STEP": str(file)}
        with cached(workers, environment=environment) as lab:
            yield lab, step


def ask(client, name, qtype=dns.A, **parts):
    message = answer(client, name, qtype, **parts)
    need(message is not None, f"no answer to {name}")
    return message


def asked(lab, name):
    """How often the upstream was asked for a name."""
    return len(lab.upstream.seen(name))


def ttl_of(seconds):
    return lambda one: one.reply(answer=[dns.a(QUESTION, GOOD, seconds)])


@dedicated("cached")
def neg_06(workers, case):
    with cached(workers) as lab, lab.udp() as client:
        ttls = []
        for _ in range(2):
            message = ask(client, "nx.up.test")
            need(message.rcode == "NXDOMAIN", f"{message.rcode}, NXDOMAIN was expected")
            need([record.rtype for record in message.authority] == [dns.SOA], "no SOA")
            ttls.append(message.authority[0].ttl)
            time.sleep(3 * (len(ttls) == 1))
        need(ttls[0] == 30 and 26 <= ttls[1] <= 28, f"TTLs of {ttls}")
        need(asked(lab, "nx.up.test") == 1, "the second was no hit")


@dedicated("cached")
def cch_01(workers, case):
    with cached(workers) as lab, lab.udp() as client:
        counts = []
        for qtype, parts in ((dns.A, {}), (dns.AAAA, {}), (dns.A, {"edns": dns.opt(do=True)}), (dns.A, {"cd": True})):
            ask(client, "a1.up.test", qtype, **parts)
            counts.append(asked(lab, "a1.up.test"))
        wire = bytearray(dns.query("a1.up.test"))
        wire[2] |= 4
        reply = client.ask(bytes(wire))
        need(reply is not None and dns.read(reply).addresses() == [GOOD], "AA=1 in the query: no answer")
        for qtype, parts in ((dns.A, {}), (dns.AAAA, {}), (dns.A, {"edns": dns.opt(do=True)}), (dns.A, {"cd": True})):
            ask(client, "a1.up.test", qtype, **parts)
        need([*counts, asked(lab, "a1.up.test")] == [1, 2, 3, 4, 4], f"the upstream was asked {counts} times")
        need(lab.server.metric("canal_dns_answers_total", source="cache") == 5, "hits are not counted")


@dedicated("cached")
def cch_02(workers, case):
    with cached(workers) as lab, lab.udp() as client:
        failure = rcode(2)
        lab.upstream.scripts["dnssec-failed.up.test"] = lambda one: one.good() if one.message.bit("cd") else failure(one)
        need(ask(client, "dnssec-failed.up.test", cd=True).addresses() == [GOOD], "CD=1 is not answered")
        for _ in range(2):
            need(ask(client, "dnssec-failed.up.test").rcode == "SERVFAIL", "CD=0 got what was for CD=1")
        need(ask(client, "dnssec-failed.up.test", cd=True).addresses() == [GOOD], "CD=1 got what was for CD=0")


@dedicated("cached")
def cch_06(workers, case):
    with cached(workers) as lab, lab.udp() as client:
        lab.upstream.scripts["sf.up.test"] = rcode(2)
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < 10:
            need(ask(client, "sf.up.test").rcode == "SERVFAIL", f"no SERVFAIL after {elapsed:.1f} s")
            time.sleep(0.1)
        times = [seen.at for seen in lab.upstream.seen("sf.up.test")]
        need(1 <= len(times) <= 11, f"the upstream was asked {len(times)} times in 10 s")
        gaps = [second - first for first, second in itertools.pairwise(times)]
        need(all(1 <= gap <= 5 for gap in gaps), f"a failure lives for {min(gaps):.2f} to {max(gaps):.2f} s")
        lab.upstream.scripts["sf.up.test"] = Ask.good
        healed = time.monotonic()
        while ask(client, "sf.up.test").rcode == "SERVFAIL":
            need(time.monotonic() - healed <= 5, "5 s after the upstream was well again it is SERVFAIL still")
            time.sleep(0.1)


@dedicated("cached")
def cch_08(workers, case):
    """Once as it is, once with the wall clock an hour ahead, then an hour behind."""
    with stepping(workers) as (lab, step):
        faults = []
        threads = [
            threading.Thread(target=_ttl_5, args=(lab, step if stepped else lambda seconds: None, stepped * 0.2, faults))
            for stepped in (False, True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        need(not faults, "; ".join(faults))


def _ttl_5(lab, step, delay, faults):
    name = f"ttl5-{delay}.up.test"
    lab.upstream.scripts[name] = ttl_of(5)
    time.sleep(delay)
    with lab.udp() as client:
        seen = []
        for jump in (0, 3600, -3600, 0):
            message = answer(client, name)
            seen.append((message.answer[0].ttl if message and message.answer else None, asked(lab, name)))
            step(jump)
            time.sleep(2)
        if seen != [(5, 1), (3, 1), (1, 1), (5, 2)]:
            faults.append(f"(TTL, packets upstream) at 0, 2, 4 and 6 s: {seen}")


@dedicated("cached")
def cch_09(workers, case):
    with cached(workers) as lab, lab.udp() as client:
        for name in ("A1.UP.test", "a1.up.test", "a1.Up.tESt"):
            wire = client.ask(dns.query(name))
            need(wire is not None, f"no answer to {name}")
            need(wire[12:].startswith(dns.question(name)), f"{name}: the question comes back in another case")
            need(dns.read(wire).addresses() == [GOOD], f"{name}: not the answer")
        need(asked(lab, "a1.up.test") == 1, "the case makes another question")


@dedicated("cached")
def cch_10(workers, case):
    """Names of one length, many at a time, most of them twice: each with the address that its name says."""
    with cached(workers) as lab, lab.udp() as client:
        lab.upstream.suffixes[".own.up.test"] = lambda one: one.reply(answer=[dns.a(QUESTION, _own(one.name))])
        names = [f"{number * 2_654_435_761 % 2**32:08x}.own.up.test" for number in range(3000)]
        for _ in range(2):
            for first in range(0, len(names), 50):
                batch = names[first : first + 50]
                for number, name in enumerate(batch):
                    client.send(dns.query(name, ident=number))
                for _ in batch:
                    wire = client.receive(5)
                    need(wire is not None, "a query is not answered")
                    message = dns.read(wire)
                    name = batch[message.id]
                    need(message.question == dns.question(name), f"{name}: another question comes back")
                    need(message.addresses() == [_own(name)], f"{name}: the answer of another")
        asked_for = len(lab.upstream.seen())
        need(asked_for < 1.1 * len(names), f"{asked_for} packets upstream: the second round was no hit")


def _own(name):
    return ".".join(str(octet) for octet in bytes.fromhex(name[:8]))


@dedicated("cached")
def cch_12(workers, case):
    """What is no reply, or one that is about us and not about the name, is asked for again each time."""
    forged = [dns.a(QUESTION, FORGED)]

    def another_question(one):
        other = dns.query("other.up.test", ident=one.message.id)
        one.send(dns.reply(other, answer=forged) if one.proto == "udp" else None)

    def no_reply(one):
        wire = bytearray(dns.reply(one.wire, answer=forged))
        wire[2] &= 0x7F
        one.send(bytes(wire) if one.proto == "udp" else None)

    scripts = {
        "c1.up.test": (another_question, "SERVFAIL"),
        "c2.up.test": (no_reply, "SERVFAIL"),
        "c3.up.test": (rcode(1), "FORMERR"),
    }
    with cached(workers) as lab, lab.udp() as client:
        lab.upstream.scripts |= {name: script for name, (script, _) in scripts.items()}
        for name, (_, expected) in scripts.items():
            before = 0
            for turn in range(2):
                message = ask(client, name)
                need(message.rcode == expected and not message.addresses(), f"{name}: {message.rcode} {message.addresses()}")
                need(asked(lab, name) > before, f"{name}: turn {turn + 1} did not reach the upstream")
                before = asked(lab, name)
            lab.upstream.scripts[name] = Ask.good
            need(ask(client, name).addresses() == [GOOD], f"{name}: the true reply is not believed")
        need(ask(client, "other.up.test").rcode == "NXDOMAIN", "the forged answer is believed for the name that it was about")


@dedicated("cached")
def cch_14(workers, case):
    with stepping(workers) as (lab, step), lab.udp() as client:
        for name, seconds in (("long.up.test", 300), ("short.up.test", 3)):
            lab.upstream.scripts[name] = ttl_of(seconds)
        ask(client, "long.up.test")
        for days in (1, -1):
            step(days * 86_400)
            before = time.monotonic()
            ask(client, "short.up.test")
            message = ask(client, "long.up.test")
            need(asked(lab, "long.up.test") == 1, f"{days:+} days: it is asked for anew")
            need(250 < message.answer[0].ttl <= 300, f"{days:+} days: a TTL of {message.answer[0].ttl}")
            known = asked(lab, "short.up.test")
            step(-days * 86_400)
            ask(client, "short.up.test")
            need(asked(lab, "short.up.test") == known or time.monotonic() - before > 2.5, "3 s are over at once")
            time.sleep(3.1)
            ask(client, "short.up.test")
            need(asked(lab, "short.up.test") == known + 1, f"{days:+} days: 3 s are not over after 3.1 s")


@dedicated("cached")
def cch_15(workers, case):
    with cached(workers, size=SIZE) as lab, Udp(lab.server) as client:
        hot = [f"hot{number}.up.test" for number in range(HOT)]
        lab.upstream.scripts |= dict.fromkeys(hot, Ask.good)
        before = lab.server.memory()
        turns = 0
        for first in range(0, FLOOD, 20):
            batch = [f"x{number}.flood.up.test" for number in range(first, first + 20)] + [
                hot[turns % HOT],
                hot[-1 - turns % HOT],
            ]
            turns += 1
            for number, name in enumerate(batch):
                client.send(dns.query(name, ident=number))
            for _ in batch:
                need(client.receive(5) is not None, "a query is not answered")
        missed = sum(asked(lab, name) for name in hot)
        need(missed < 0.05 * 2 * turns, f"{missed} of {2 * turns} questions for hot names went upstream")
        entries = lab.server.metric("canal_dns_cache_entries")
        need(SIZE / 2 < entries <= SIZE * max(1, workers), f"{entries:g} entries, {SIZE} are allowed")
        need(lab.server.metric("canal_dns_cache_evictions_total") > 0.9 * (FLOOD - SIZE), "evictions are not counted")
        grown = lab.server.memory() - before
        need(grown < 24 << 20, f"{grown >> 20} MiB more after {FLOOD} names, {SIZE} of which may be kept")


@dedicated("cached")
def cch_16(workers, case):
    with cached(workers) as lab:
        need(_when_dead(lab).rcode == "SERVFAIL", "by default something stale is served")
    with cached(workers, serveStale="1h") as lab:
        begin = time.monotonic()
        message = _when_dead(lab)
        need([record.ttl for record in message.answer] == [30], f"{message.rcode}, TTLs {[one.ttl for one in message.answer]}")
        need(message.addresses() == [GOOD], "not what was known")
        need(lab.server.metric("canal_dns_cache_served_stale_total") >= 1, "not counted")
        lab.upstream.silent = False
        with lab.udp() as client:
            while ask(client, "short.up.test").answer[0].ttl != 1:
                need(time.monotonic() - begin < 30, "the upstream is back, and is not asked")
                time.sleep(0.1)


def _when_dead(lab):
    """The answer for a name whose TTL of 1 s is over, from a server that knows its upstream to be down; within 2 s."""
    lab.upstream.scripts["short.up.test"] = ttl_of(1)
    with lab.udp() as client:
        ask(client, "short.up.test")
        lab.upstream.silent = True
        deadline = time.monotonic() + 15
        while lab.server.metric("canal_dns_forward_upstream_up") >= max(1, lab.workers):
            need(time.monotonic() < deadline, "nobody notices that the upstream is dead")
            ask(client, "unknown.up.test")
        begin = time.monotonic()
        message = ask(client, "short.up.test")
        need(time.monotonic() - begin < 2, "it took 2 s")
        return message
