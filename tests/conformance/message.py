"""DNS messages for the conformance run: a strict reader and a plain writer, on purpose not those of canal_dns.

Rules of this file:
- `read` accepts nothing that a careful client would not: counts that do not add up, octets left over, forward pointers;
- names are lower-case text without the final dot, or bytes in wire form where their octets matter;
- `write` compresses owners to the question only where told, so that sizes can be computed.
"""

import ipaddress
import struct
from dataclasses import dataclass, field

RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 16: "BADVERS", 23: "BADCOOKIE",
}  # fmt: skip
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, SVCB, HTTPS, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 64, 65, 255


class MalformedError(Exception):
    """Octets that are not one DNS message."""


@dataclass(frozen=True)
class Record:
    """`name` in wire form (not compressed), `rdata` as it stands in the message."""

    name: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes
    target: bytes = b""
    """The name in the RDATA of CNAME, NS and PTR, and the first of SOA."""

    @property
    def address(self):
        """The address as text, for A and AAAA."""
        return str(ipaddress.ip_address(self.rdata)) if self.rtype in (A, AAAA) else None


@dataclass
class Message:
    """A message that was read whole."""

    wire: bytes
    id: int
    flags: int
    questions: list
    """(name in wire form, type, class)."""
    question: bytes
    """The octets of the question section."""
    answer: list = field(default_factory=list)
    authority: list = field(default_factory=list)
    additional: list = field(default_factory=list)

    def bit(self, name):
        return self.flags >> {"qr": 15, "aa": 10, "tc": 9, "rd": 8, "ra": 7, "z": 6, "ad": 5, "cd": 4}[name] & 1

    @property
    def opcode(self):
        return self.flags >> 11 & 15

    @property
    def opt(self):
        """The OPT record; None: there is none."""
        found = [record for record in self.additional if record.rtype == OPT]
        return found[0] if found else None

    @property
    def rcode(self):
        number = self.flags & 15 | (self.opt.ttl >> 24 << 4 if self.opt else 0)
        return RCODES.get(number, str(number))

    @property
    def records(self):
        return [*self.answer, *self.authority, *self.additional]

    @property
    def options(self):
        """[(code, octets)] of the OPT."""
        found, at, data = [], 0, self.opt.rdata if self.opt else b""
        while at < len(data):
            if at + 4 > len(data):
                raise MalformedError("half an EDNS option")
            code, length = struct.unpack_from("!HH", data, at)
            if at + 4 + length > len(data):
                raise MalformedError("an EDNS option beyond its record")
            found.append((code, data[at + 4 : at + 4 + length]))
            at += 4 + length
        return found

    def addresses(self, rtype=A):
        return [record.address for record in self.answer if record.rtype == rtype]


def read(wire, *, reply=True):
    """Raises MalformedError. `reply=False`: queries, whose counts are as small as they should be."""
    if len(wire) < 12:
        raise MalformedError(f"{len(wire)} octets are no header")
    ident, flags, qd, *counts = struct.unpack_from("!6H", wire)
    at, questions = 12, []
    if qd > 1:
        raise MalformedError(f"{qd} questions")
    for _ in range(qd):
        name, at = _name(wire, at)
        if at + 4 > len(wire):
            raise MalformedError("half a question")
        questions.append((name, *struct.unpack_from("!HH", wire, at)))
        at += 4
    message = Message(wire, ident, flags, questions, wire[12:at])
    for count, section in zip(counts, (message.answer, message.authority, message.additional), strict=True):
        for _ in range(count):
            record, at = _record(wire, at)
            section.append(record)
    if at != len(wire):
        raise MalformedError(f"{len(wire) - at} octets are left over")
    opts = [record for record in message.records if record.rtype == OPT]
    if len(opts) > 1 or (opts and (opts[0] not in message.additional or opts[0].name != b"\0")):
        raise MalformedError("an OPT record out of its place")
    assert message.options is not None
    if reply and not message.bit("qr"):
        raise MalformedError("not a reply")
    return message


def _record(wire, at):
    name, at = _name(wire, at)
    if at + 10 > len(wire):
        raise MalformedError("half a record")
    rtype, rclass, ttl, length = struct.unpack_from("!HHIH", wire, at)
    at += 10
    if at + length > len(wire):
        raise MalformedError("RDATA beyond the message")
    rdata, target = wire[at : at + length], b""
    if rclass == 1 and ((rtype == A and length != 4) or (rtype == AAAA and length != 16)):
        raise MalformedError("an address of the wrong length")
    if rtype in (CNAME, NS, PTR, SOA):
        target, end = _name(wire, at)
        if end > at + length or (rtype != SOA and end != at + length):
            raise MalformedError("a name beyond its RDATA")
        if rtype == SOA:
            _, end = _name(wire, end)
            if end + 20 != at + length:
                raise MalformedError("an SOA of the wrong length")
    return Record(name, rtype, rclass, ttl, rdata, target), at + length


def _name(wire, at):
    labels, end, limit, length = [], None, at, 1
    while True:
        if at >= len(wire):
            raise MalformedError("a name beyond the message")
        octet = wire[at]
        if octet == 0:
            return b"".join(labels) + b"\0", (at + 1 if end is None else end)
        if octet >= 0xC0:
            if at + 2 > len(wire):
                raise MalformedError("half a pointer")
            if end is None:
                end = at + 2
            at = struct.unpack_from("!H", wire, at)[0] & 0x3FFF
            if at >= limit or at < 12:
                raise MalformedError("a pointer that does not lead back")
            limit = at
            continue
        if octet >= 0x40 or at + 1 + octet > len(wire):
            raise MalformedError("no label")
        labels.append(wire[at : at + 1 + octet])
        length += 1 + octet
        if length > 255:
            raise MalformedError("a name of more than 255 octets")
        at += 1 + octet


def wire_name(text):
    """`a1.up.test` (final dot allowed; latin-1) as octets."""
    labels = [label.encode("latin-1") for label in text.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(name, qtype=A, qclass=1):
    """The octets of a question; `name` is text or in wire form."""
    return (name if isinstance(name, bytes) else wire_name(name)) + struct.pack("!HH", qtype, qclass)


def opt(size=1232, *, do=False, version=0, options=()):
    """The octets of an OPT record."""
    rdata = b"".join(struct.pack("!HH", code, len(data)) + data for code, data in options)
    return struct.pack("!BHHBBHH", 0, OPT, size, 0, version, 0x8000 if do else 0, len(rdata)) + rdata


def query(name, qtype=A, *, ident=0x1A2B, rd=True, cd=False, ad=False, qclass=1, edns=b""):
    """The octets of a query; `edns` is what `opt` gives."""
    flags = (0x0100 if rd else 0) | (0x10 if cd else 0) | (0x20 if ad else 0)
    return struct.pack("!6H", ident, flags, 1, 0, 0, 1 if edns else 0) + question(name, qtype, qclass) + edns


def rr(name, rtype, rdata, ttl=300, rclass=1):
    """The octets of a record; `name` may be a pointer such as b"\\xc0\\x0c"."""
    owner = name if isinstance(name, bytes) else wire_name(name)
    return owner + struct.pack("!HHIH", rtype, rclass, ttl, len(rdata)) + rdata


def a(name, address, ttl=300):
    """An A or AAAA record."""
    packed = ipaddress.ip_address(address).packed
    return rr(name, A if len(packed) == 4 else AAAA, packed, ttl)


def soa(owner, ttl=30, minimum=30):
    """An SOA record as CoreDNS makes it."""
    rdata = (
        wire_name(f"ns.dns.{owner}") + wire_name(f"hostmaster.{owner}") + struct.pack("!5I", 2026, 7200, 1800, 86400, minimum)
    )
    return rr(owner, SOA, rdata, ttl)


def reply(
    asked, *, rcode=0, answer=(), authority=(), additional=(), tc=False, aa=False, ident=None, flags=None, with_question=True
):
    """The octets of a reply to the query octets `asked`: its ID, question, RD and CD; an OPT if it had one."""
    message = read(asked, reply=False)
    if flags is None:
        flags = 0x8000 | message.flags & 0x0110 | 0x80 | (0x400 if aa else 0) | (0x200 if tc else 0) | rcode
    extra = [*additional, *([opt(do=bool(message.opt.ttl & 0x8000))] if message.opt and with_question else [])]
    counts = (1 if with_question else 0, len(answer), len(authority), len(extra))
    header = struct.pack("!6H", message.id if ident is None else ident, flags, *counts)
    return header + (message.question if with_question else b"") + b"".join([*answer, *authority, *extra])
