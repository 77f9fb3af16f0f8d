"""A scripted stand-in for CoreDNS: it owns up.test. and cluster.local., each special name has a script, every packet is logged.

Rules of this file:
- it answers on UDP and TCP of one address (and the same port of ::1), in a thread with a loop of its own;
- what a name does stands in `SCRIPTS` (exact names) and `SUFFIXES`; everything else is answered from `zone`;
- like a real server it obeys the payload size of the query: what does not fit is TC=1 over UDP;
- 6.6.6.6 stands only in forged or smuggled records: a client that sees it has been poisoned.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading
import time

from tests.conformance import message as dns

QUESTION = b"\xc0\x0c"
"""A pointer to the name in the question."""
FORGED = "6.6.6.6"
UNRELATED = "6.6.6.7"
"""In a record that may be relayed, but must not be believed later."""
GOOD = "192.0.2.1"

CLUSTER_ADDRESSES = {
    "web.shop.svc.cluster.local": "10.96.0.11",
    "dual.shop.svc.cluster.local": "10.96.0.12",
    "api-0.shop.svc.cluster.local": "10.96.0.14",
    "late.shop.svc.cluster.local": "10.96.0.15",
}
"""The real ClusterIPs, which clients of bound names must never see."""
EMPTY = {
    "", "up.test", "cluster.local", "svc.cluster.local", "shop.svc.cluster.local", "v6.shop.svc.cluster.local", "ext.up.test",
}  # fmt: skip
ADDRESSES = {"a1.up.test": GOOD, "w\xe9b.up.test": "192.0.2.9", "probe.up.test": GOOD}


@dataclasses.dataclass(eq=False)
class Seen:
    """One packet that reached the upstream."""

    at: float
    proto: str
    port: int
    wire: bytes
    name: str
    qtype: int
    answered: float | None = None

    @property
    def id(self):
        return int.from_bytes(self.wire[:2], "big")


class Ask:
    """One query, and the ways to answer it."""

    def __init__(self, upstream, seen, message, send, forge):
        self.upstream, self.seen, self.message = upstream, seen, message
        self.wire, self.name, self.qtype, self.proto = seen.wire, seen.name, seen.qtype, seen.proto
        self._send, self._forge = send, forge

    def send(self, data):
        """These octets, from where the query went."""
        self._send(data)

    def forge(self, data, *, other):
        """These octets from another `port` or `address` (UDP)."""
        if self._forge is not None:
            self._forge(data, other)

    def reply(self, **parts):
        """A well-formed reply; over UDP within the size that the query allows."""
        wire = dns.reply(self.wire, **parts)
        if self.proto == "udp" and len(wire) > self.size:
            wire = dns.reply(self.wire, tc=True, rcode=parts.get("rcode", 0))
        self.send(wire)

    def good(self):
        self.reply(answer=[dns.a(QUESTION, GOOD)])

    @property
    def size(self):
        opt = self.message.opt
        return max(512, opt.rclass) if opt else 512


# --- scripts ----------------------------------------------------------------------------------------------------------------


def zone(ask):
    """up.test. and cluster.local. as their owner would answer."""
    name = ask.name
    owner = "up.test" if name == "up.test" or name.endswith(".up.test") else ""
    owner = "cluster.local" if name == "cluster.local" or name.endswith(".cluster.local") else owner
    soa = dns.soa(owner)
    address = ADDRESSES.get(name) or CLUSTER_ADDRESSES.get(name)
    if address and ask.qtype == dns.A:
        ask.reply(answer=[dns.a(QUESTION, address)])
    elif name == "" and ask.qtype == dns.NS:
        ask.reply(answer=[dns.rr(QUESTION, dns.NS, dns.wire_name("a.root-servers.net"))])
    elif name == "" and ask.qtype == dns.SOA:
        ask.reply(answer=[soa])
    else:
        known = address or name in EMPTY
        ask.reply(rcode=0 if known else 3, authority=[soa])


def _text(size):
    """RDATA of a TXT record of `size` octets."""
    rdata = b""
    while size - len(rdata) > 256:
        rdata += b"\xff" + b"x" * 255
    rest = size - len(rdata)
    return rdata + bytes([rest - 1]) + b"x" * (rest - 1)


def sized_text(size, *, with_opt):
    """A script whose reply has `size` octets, the OPT counted if `with_opt`."""

    def script(ask):
        room = size - 12 - len(ask.message.question) - 12 - (11 if with_opt else 0)
        ask.reply(answer=[dns.rr(QUESTION, dns.TXT, _text(room))])

    return script


def giant(ask):
    ask.reply(answer=[dns.a(QUESTION, f"192.0.2.{number}") for number in range(1, 65)])


def truncated(ask):
    """UDP: TC=1 and one record all the same; TCP: closed without a word."""
    if ask.proto == "udp":
        ask.send(dns.reply(ask.wire, tc=True, answer=[dns.a(QUESTION, GOOD)]))
    else:
        ask.send(None)


def only_tcp(build):
    """UDP: TC=1; TCP: what `build` gives for the query."""

    def script(ask):
        ask.send(dns.reply(ask.wire, tc=True) if ask.proto == "udp" else build(ask))

    return script


def text_of(size):
    """A reply of exactly `size` octets without an OPT, in TXT records of 255 octets and one of what is left."""

    def build(ask):
        left = size - 12 - len(ask.message.question)
        records = []
        while left > 268 + 64:
            records.append(dns.rr(QUESTION, dns.TXT, b"\xff" + b"y" * 255))
            left -= 268
        records.append(dns.rr(QUESTION, dns.TXT, _text(left - 12)))
        return _bare(ask, records)

    return build


def largest(ask):
    """65,535 octets: A records, and a TXT record for what 16 does not divide."""
    left = 0xFFFF - 12 - len(ask.message.question)
    count = (left - 32) // 16
    records = [dns.a(QUESTION, f"192.0.{number >> 8}.{number & 255}") for number in range(count)]
    records.append(dns.rr(QUESTION, dns.TXT, _text(left - 16 * count - 12)))
    return _bare(ask, records)


def compressed_names(ask):
    """64 KiB of 4,500 records whose owners would be 60 octets each if they were written out."""
    first = dns.rr("n" * 40 + ".long.name.up.test", dns.A, bytes((192, 0, 2, 1)))
    at = 12 + len(ask.message.question)
    pointer = struct.pack("!H", 0xC000 | at)
    count = (0xFFFF - at - len(first)) // 16
    assert count >= 4000
    return _bare(ask, [first, *(dns.rr(pointer, dns.A, bytes((192, 0, 2, number & 255))) for number in range(count))])


def _bare(ask, records):
    """A reply without an OPT, whatever the query had."""
    header = struct.pack("!6H", ask.message.id, 0x8180, 1, len(records), 0, 0)
    return header + ask.message.question + b"".join(records)


def compressed(ask):
    """450 octets with pointers, more than 1,000 without: a CNAME to a long name, and that name's addresses."""
    target = b"".join(bytes([30]) + bytes([97 + number]) * 30 for number in range(3)) + b"\xc0\x10"
    cname = dns.rr(QUESTION, dns.CNAME, target)
    at = 12 + len(ask.message.question) + 12
    owner = struct.pack("!H", 0xC000 | at)
    base = 12 + len(ask.message.question) + len(cname)
    count = (450 - base) // 16
    ask.reply(answer=[cname, *(dns.a(owner, f"192.0.2.{number}") for number in range(1, count + 1))])


def cname_to_web(ask):
    web = "web.shop.svc.cluster.local"
    ask.reply(answer=[dns.rr(QUESTION, dns.CNAME, dns.wire_name(web)), dns.a(web, "10.0.0.1")])


def cname_to_nothing(ask):
    target = dns.rr(QUESTION, dns.CNAME, dns.wire_name("gone.up.test"))
    ask.reply(rcode=3, answer=[target], authority=[dns.soa("up.test")])


def rcode(number, *, header_only=False):
    return lambda ask: ask.reply(rcode=number, with_question=not header_only)


def rich(ask):
    """All three sections, AA and AD set."""
    flags = 0x8000 | ask.message.flags & 0x0110 | 0x80 | 0x400 | 0x20
    ask.reply(
        flags=flags,
        answer=[dns.a(QUESTION, GOOD, 77)],
        authority=[dns.rr("up.test", dns.NS, dns.wire_name("ns.up.test"), 88)],
        additional=[dns.a("ns.up.test", "192.0.2.53", 99)],
    )


def after(seconds, then=Ask.good):
    async def script(ask):
        await asyncio.sleep(seconds)
        then(ask)

    return script


def first(forgery, *, wait=0.02):
    """Something wrong, then the true reply. Over TCP the true reply only."""

    async def script(ask):
        if ask.proto == "udp":
            forgery(ask)
            await asyncio.sleep(wait)
        ask.good()

    return script


def _forged(ask, **parts):
    return dns.reply(ask.wire, answer=[dns.a(QUESTION, FORGED)], **parts)


def _wrong_type(ask):
    wrong = dns.query(ask.message.questions[0][0], dns.MX, ident=ask.message.id)
    ask.send(dns.reply(wrong, answer=[dns.a(QUESTION, FORGED)]))


def _cut_off(ask):
    wire = bytearray(_forged(ask))
    wire[6:8] = b"\0\5"
    end = 12 + len(ask.message.question) + 12 + 2
    ask.send(bytes(wire[:end]))


async def flipped(ask):
    """Every UDP reply has a wrong ID; TCP is honest."""
    if ask.proto == "udp":
        ask.send(_forged(ask, ident=ask.message.id ^ 0xFFFF))
    else:
        ask.good()


def thrice(ask):
    for _ in range(3 if ask.proto == "udp" else 1):
        ask.good()


def smuggled(ask):
    ask.reply(
        answer=[dns.a(QUESTION, GOOD)],
        authority=[dns.rr("test", dns.NS, dns.wire_name("evil"))],
        additional=[dns.a("web.shop.svc.cluster.local", FORGED), dns.a("evil", UNRELATED)],
    )


def unrelated(ask):
    ask.reply(answer=[dns.a(QUESTION, GOOD), dns.a("bank.test", UNRELATED)])


def huge_ttl(ask):
    ask.reply(answer=[dns.a(QUESTION, GOOD, 0x80000001), dns.a(QUESTION, GOOD, 0xFFFFFFFF)])


def no_dns(ask):
    """Two packets with our ID and, in place of the rest, parts of an IP packet (the shape of Unbound's fwd_malformed)."""
    ident = ask.wire[:2]
    ip = b"\x08\x00" + b"\x45\x00\x00\x42\xb4\x0d\x00\x00\x72\x11\x00\x00" + bytes((10, 0, 0, 1, 10, 0, 0, 2))
    ask.send(ident + ip[:14] + b"\x1b\x93\x08\x00\x45\x00")
    ask.send(ident + ip + b"\x00\x35\x6b\x80\x00\x2e\x00\x00" + ask.wire[2:20] + b"\x1b\x93\x08\x00\x45\x00")


def unknown_type(ask):
    ask.reply(answer=[dns.rr(QUESTION, 65280, b"\xc0\x0c\xc0\x0c\x00\xff")])


def any_type(ask):
    sized_text(1200, with_opt=True)(ask)


def silent(ask):
    """Nothing, ever."""


SCRIPTS = {
    "513resp.up.test": sized_text(513, with_opt=False),
    "1232resp.up.test": sized_text(1232, with_opt=True),
    "1233resp.up.test": sized_text(1233, with_opt=True),
    "giant.up.test": giant,
    "tc.up.test": truncated,
    "tcpbig.up.test": only_tcp(text_of(30_000)),
    "max.up.test": only_tcp(largest),
    "cmp.up.test": compressed,
    "any.up.test": any_type,
    "unk.up.test": unknown_type,
    "cnx.up.test": cname_to_nothing,
    "ext.shop.svc.cluster.local": cname_to_web,
    "ref.up.test": rcode(5),
    "notimp.up.test": rcode(4),
    "fe.up.test": rcode(1),
    "ho-ref.up.test": rcode(5, header_only=True),
    "ho-ok.up.test": rcode(0, header_only=True),
    "ho-nx.up.test": rcode(3, header_only=True),
    "rich.up.test": rich,
    "slow.up.test": after(1.0),
    "dead.up.test": silent,
    "s1.up.test": first(lambda ask: ask.send(_forged(ask, ident=ask.message.id ^ 0xFFFF)), wait=0.05),
    "s2.up.test": flipped,
    "s4.up.test": first(_wrong_type),
    "s6.up.test": first(lambda ask: ask.send(ask.wire)),
    "s8.up.test": first(lambda ask: ask.forge(_forged(ask), other="port")),
    "s9.up.test": first(lambda ask: ask.forge(_forged(ask), other="address")),
    "s11.up.test": first(lambda ask: ask.send(struct.pack("!6HB", ask.message.id ^ 0xFFFF, 0x8180, 1, 0, 0, 0, 1))),
    "s12.up.test": first(_cut_off, wait=0.1),
    "s13.up.test": first(lambda ask: ask.send(b"")),
    "s14.up.test": thrice,
    "s15.up.test": after(3.0),
    "s16.up.test": smuggled,
    "s17.up.test": unrelated,
    "s20.up.test": huge_ttl,
    "s21.up.test": after(0.5),
    "s25.up.test": no_dns,
    "s28.up.test": only_tcp(compressed_names),
}
SUFFIXES = {
    ".big.up.test": only_tcp(text_of(32_000)),
    ".pipe.up.test": after(0.1, zone),
    ".dead.up.test": silent,
}


# --- the server -------------------------------------------------------------------------------------------------------------


class Upstream:
    """The server; `start` returns when it answers. `scripts` and `suffixes` may be changed while it runs."""

    def __init__(self, host="127.0.53.1", *, silent=False):
        self.host, self.port = host, 0
        self.silent = silent
        self.log = []
        self.scripts = dict(SCRIPTS)
        self.suffixes = dict(SUFFIXES)
        self._others = {}
        self._sockets = []
        self._tasks = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)

    def start(self):
        self._listen()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def stop(self):
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    @property
    def v4(self):
        return f"{self.host}:{self.port}"

    @property
    def v6(self):
        return f"[::1]:{self.port}"

    def mark(self):
        """Where the log ends now: for `seen(since=...)`."""
        return len(self.log)

    def seen(self, name=None, *, since=0):
        """Packets after the mark, of one name if one is given; the forwarder's probes (`. NS`) are left out unless named."""
        if name is None:
            return [seen for seen in self.log[since:] if seen.name]
        return [seen for seen in self.log[since:] if seen.name == name]

    def outstanding(self, name=None, *, since=0, suffix=None):
        """The largest number of queries that waited for an answer at one moment."""
        moments = []
        for seen in self.log[since:]:
            if (suffix and not seen.name.endswith(suffix)) or (name is not None and seen.name != name):
                continue
            moments += [(seen.at, 1), (seen.answered if seen.answered is not None else float("inf"), -1)]
        most = now = 0
        for _, step in sorted(moments, key=lambda moment: (moment[0], moment[1])):
            now += step
            most = max(most, now)
        return most

    # -- inside the thread

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _listen(self):
        """One port that is free for UDP and TCP on both addresses."""
        for _ in range(50):
            with contextlib.ExitStack() as stack:
                opened = []
                port = 0
                try:
                    for family, host in ((socket.AF_INET, self.host), (socket.AF_INET6, "::1")):
                        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                            one = stack.enter_context(socket.socket(family, kind))
                            if kind == socket.SOCK_STREAM:
                                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                            else:
                                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                            one.bind((host, port))
                            port = one.getsockname()[1]
                            one.setblocking(False)
                            opened.append(one)
                except OSError:
                    continue
                stack.pop_all()
            self.port, self._sockets = port, opened
            break
        else:
            raise OSError("no port is free for UDP and TCP")
        self._others["port"] = self._other(self.host, 5353)
        self._others["address"] = self._other("127.0.53.99", self.port)

    def _other(self, host, port):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            one.bind((host, port))
        except OSError:
            one.bind((host, 0))
        self._sockets.append(one)
        return one

    async def _serve(self):
        self._servers = []
        for one in self._sockets[:4]:
            if one.type == socket.SOCK_DGRAM:
                self._loop.add_reader(one, self._readable, one)
            else:
                self._servers.append(await asyncio.start_server(self._connected, sock=one, backlog=256))

    async def _close(self):
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._sockets:
            if one.type == socket.SOCK_DGRAM:
                self._loop.remove_reader(one)
                one.close()

    def _readable(self, one):
        for _ in range(64):
            try:
                wire, peer = one.recvfrom(65535)
            except OSError:
                return

            def send(data, peer=peer):
                with contextlib.suppress(OSError):
                    one.sendto(data, peer)

            def forge(data, other, peer=peer):
                with contextlib.suppress(OSError):
                    self._others[other].sendto(data, peer)

            self._handle("udp", peer[1], wire, send, forge if one.family == socket.AF_INET else None)

    async def _connected(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        port = writer.get_extra_info("peername")[1]

        def send(data):
            if data is None:
                writer.close()
            elif not writer.is_closing():
                writer.write(struct.pack("!H", len(data)) + data)

        try:
            while True:
                length = struct.unpack("!H", await reader.readexactly(2))[0]
                self._handle("tcp", port, await reader.readexactly(length), send, None)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def _handle(self, proto, port, wire, send, forge):
        seen = Seen(time.monotonic(), proto, port, wire, "", 0)
        try:
            message = dns.read(wire, reply=False)
            name, seen.qtype, _ = message.questions[0]
            seen.name = to_text(name)
        except (dns.MalformedError, IndexError):
            seen.name = "(malformed)"
            self.log.append(seen)
            return
        self.log.append(seen)
        if self.silent:
            return

        def answered(data):
            send(data)
            if seen.answered is None:
                seen.answered = time.monotonic()

        script = self.scripts.get(seen.name)
        if script is None:
            script = next((found for suffix, found in self.suffixes.items() if seen.name.endswith(suffix)), zone)
        going = script(Ask(self, seen, message, answered, forge))
        if going is not None:
            task = self._loop.create_task(going)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def to_text(name):
    """A name in wire form as lower-case latin-1 text; dots and backslashes inside a label are escaped."""
    labels, at = [], 0
    while name[at]:
        label = name[at + 1 : at + 1 + name[at]].lower().decode("latin-1")
        labels.append(label.replace("\\", "\\\\").replace(".", "\\."))
        at += 1 + name[at]
    return ".".join(labels)
