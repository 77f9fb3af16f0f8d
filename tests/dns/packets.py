"""What the tests of dns/ are made of: the bound names of tests/conformance, queries in octets, replies by dnspython."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import dns.flags
import dns.message
import dns.rrset
from hypothesis import strategies as st

from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.codes import Type
from canal_dns.dns.responder import Drop, Forward, Reply, decide
from canal_dns.dns.table import Addresses, AnswerTable
from canal_dns.dns.wire import Query, parse_query
from canal_dns.settings import AccessSettings

VIP4 = bytes([10, 96, 0, 200])
VIP6 = bytes.fromhex("fd0000100096000000000000000000c8")
ZONE = names.from_text("cluster.local")
WEB = "web.shop.svc.cluster.local"
BOUND = {
    WEB: Addresses((VIP4,), (), 5),
    "dual.shop.svc.cluster.local": Addresses((VIP4,), (VIP6,), 5),
    "v6.shop.svc.cluster.local": Addresses((), (VIP6,), 5),
    "api-0.shop.svc.cluster.local": Addresses((VIP4,), (), 5),
}


def bound_table() -> AnswerTable:
    table = AnswerTable(ZONE)
    table.apply({names.from_text(name): addresses for name, addresses in BOUND.items()}, 1, 2026)
    return table


def opt(payload: int = 1232, *, version: int = 0, flags: int = 0, rcode: int = 0, options: bytes = b"") -> bytes:
    return struct.pack(">BHHBBHH", 0, 41, payload, rcode, version, flags, len(options)) + options


def question(name: str | bytes, qtype: int = Type.A, qclass: int = 1) -> bytes:
    return (name if isinstance(name, bytes) else wire(name)) + struct.pack(">HH", qtype, qclass)


def wire(text: str) -> bytes:
    """A name as it is written, its case kept."""
    return names.from_text(text)


def packet(
    name: str | bytes = WEB,
    qtype: int = Type.A,
    *,
    ident: int = 0x1A2B,
    flags: int = 0x0100,
    qclass: int = 1,
    additional: bytes = b"",
    counts: tuple[int, int, int, int] | None = None,
) -> bytes:
    """A query; `additional` is one record, an OPT as a rule."""
    counts = counts or (1, 0, 0, 1 if additional else 0)
    return struct.pack(">HHHHHH", ident, flags, *counts) + question(name, qtype, qclass) + additional


def ask(name: str | bytes = WEB, qtype: int = Type.A, *, stream: bool = False, **more: object) -> Query:
    """The same, read."""
    query = parse_query(packet(name, qtype, **more), stream=stream)  # type: ignore[arg-type]
    assert isinstance(query, Query)
    return query


def judge(
    data: bytes,
    *,
    table: AnswerTable | None = None,
    gate: Gate | None = None,
    address: str = "127.0.0.1",
    port: int = 40_000,
    stream: bool = False,
    now: float = 100.0,
) -> Reply | Forward | Drop:
    return decide(data, address, port, stream, table, gate or Gate(AccessSettings()), now)


Line = tuple[str, int, str, str]


def upstream_reply(
    query: Query,
    answer: Iterable[Line] = (),
    authority: Iterable[Line] = (),
    additional: Iterable[Line] = (),
    *,
    rcode: str = "NOERROR",
    flags: str = "QR RD RA",
    edns: bool = True,
) -> bytes:
    """What an upstream sends back, in dnspython's encoding: lines are (name, ttl, type, data)."""
    message = dns.message.Message(id=0x4242)
    message.flags = dns.flags.from_text(flags)
    message.question.append(
        dns.rrset.RRset(dns.name.from_wire(query.question, 0)[0], dns.rdataclass.IN, dns.rdatatype.RdataType.make(query.qtype))
    )
    for section, lines in ((message.answer, answer), (message.authority, authority), (message.additional, additional)):
        for name, ttl, rtype, data in lines:
            rrset = dns.rrset.from_text(name, ttl, "IN", rtype, data)
            known = message.find_rrset(section, rrset.name, rrset.rdclass, rrset.rdtype, rrset.covers, create=True)
            known.ttl = ttl
            known.update(rrset)
    if edns:
        message.use_edns(0, 0, 1232)
    message.set_rcode(dns.rcode.from_text(rcode))
    return message.to_wire(max_size=65535)


def texts(section: list[dns.rrset.RRset]) -> list[str]:
    """The records of a section, sorted, one line each."""
    return sorted(line for rrset in section for line in rrset.to_text().splitlines())


def read(data: bytes) -> dns.message.Message:
    """By dnspython, which is strict: no octet left over, every record of its type's form."""
    return dns.message.from_wire(data, one_rr_per_rrset=True)


labels = st.binary(min_size=1, max_size=63)
"""Any octets may stand in a label (RFC 2181 section 11)."""


@st.composite
def wire_names(draw: st.DrawFn) -> bytes:
    name = b""
    for label in draw(st.lists(labels, max_size=6)):
        if len(name) + len(label) + 2 <= 255:
            name += bytes([len(label)]) + label
    return name + b"\0"


@st.composite
def spelled(draw: st.DrawFn, text: str) -> bytes:
    """A name in any mixture of cases."""
    lower = wire(text)
    upper = draw(st.lists(st.booleans(), min_size=len(lower), max_size=len(lower)))
    return bytes(octet - 32 if up and 0x61 <= octet <= 0x7A else octet for octet, up in zip(lower, upper, strict=True))


options = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=4).map(
    lambda pairs: b"".join(struct.pack(">HH", code, len(data)) + data for code, data in pairs)
)

opts = st.builds(
    opt,
    st.integers(0, 65535),
    version=st.sampled_from([0, 0, 0, 1, 255]),
    flags=st.sampled_from([0, 0x8000, 0xFFFF, 0x4000]),
    rcode=st.sampled_from([0, 255]),
    options=st.one_of(st.just(b""), options, st.binary(max_size=8)),
)


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """Queries, sound ones mostly: bound and other names in any case, any flags, with and without OPT, sometimes damaged."""
    name = draw(st.one_of(*(spelled(text) for text in BOUND), spelled("foo." + WEB), spelled("a1.up.test"), wire_names()))
    qtype = draw(st.one_of(st.sampled_from([1, 28, 65, 97, 64, 255, 16, 41, 252, 0]), st.integers(0, 65535)))
    data = packet(
        name,
        qtype,
        ident=draw(st.integers(0, 65535)),
        flags=draw(st.one_of(st.sampled_from([0x0000, 0x0100, 0x0110, 0x0120, 0x0130]), st.integers(0, 65535))),
        qclass=draw(st.sampled_from([1, 1, 1, 1, 3, 255])),
        additional=draw(st.one_of(st.just(b""), opts)),
    )
    damage = draw(st.sampled_from(["none"] * 6 + ["cut", "longer", "octet"]))
    at = draw(st.integers(0, len(data) - 1))
    if damage == "cut":
        return data[:at]
    if damage == "longer":
        return data + draw(st.binary(min_size=1, max_size=12))
    if damage == "octet":
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data
