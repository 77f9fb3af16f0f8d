"""One question to a DNS server, and what came back: the octets as well as the parsed message.

Rules of this file:
- built and read with dnspython, sent from the client's own address, without retries: a lost packet is a finding;
- `octets` are those of a whole section as they stood in the packet, compression pointers and TTLs included.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset

from tests.e2e import cluster

_SECTIONS = ("question", "answer", "authority", "additional")


@dataclass(frozen=True, slots=True)
class Answer:
    wire: bytes
    message: dns.message.Message
    seconds: float

    @property
    def rcode(self) -> str:
        return dns.rcode.to_text(self.message.rcode())

    @property
    def flags(self) -> str:
        return dns.flags.to_text(self.message.flags)

    def addresses(self) -> set[str]:
        """The addresses of the answer section."""
        return {record[3] for record in records(self.message.answer) if record[1] in ("A", "AAAA")}

    def octets(self, section: str) -> bytes:
        return _cut(self.wire)[_SECTIONS.index(section)]


Record = tuple[str, str, int, str]


def records(section: list[dns.rrset.RRset]) -> list[Record]:
    """(lower-cased owner, type, TTL, data in presentation form), sorted: the order and the compression do not count."""
    return sorted(
        (rrset.name.to_text().lower(), dns.rdatatype.to_text(rrset.rdtype), rrset.ttl, record.to_text())
        for rrset in section
        for record in rrset
    )


def ask(
    server: str, name: str, kind: str, *, tcp: bool = False, dnssec: bool = False, timeout: float = 5.0, client: str = ""
) -> Answer:
    """Asks once. `dnssec`: with EDNS and DO=1; otherwise without EDNS. `client`: another address to ask from.

    Raises TimeoutError, ConnectionRefusedError.
    """
    query = dns.message.make_query(dns.name.from_text(name), kind, want_dnssec=dnssec, use_edns=0 if dnssec else False)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    began = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as connection:
        connection.settimeout(timeout)
        connection.bind((client or cluster.CLIENT[family == socket.AF_INET6], 0))
        connection.connect((server, 53))
        packet = query.to_wire()
        if tcp:
            connection.sendall(struct.pack("!H", len(packet)) + packet)
            (length,) = struct.unpack("!H", _exactly(connection, 2))
            wire = _exactly(connection, length)
        else:
            connection.send(packet)
            wire = connection.recv(65535)
    seconds = time.monotonic() - began
    message = dns.message.from_wire(wire)
    assert query.is_response(message), f"not a reply to {name} {kind}: {message}"
    assert message.question[0].name.labels == query.question[0].name.labels, "the question came back in another case"
    return Answer(wire, message, seconds)


def _exactly(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise ConnectionResetError("the server closed the connection before the whole reply")
        data += part
    return data


def _cut(wire: bytes) -> list[bytes]:
    counts = struct.unpack_from("!4H", wire, 4)
    offset, sections = 12, []
    for index, count in enumerate(counts):
        start = offset
        for _ in range(count):
            offset = _after_name(wire, offset)
            offset += 4 if index == 0 else 10 + struct.unpack_from("!H", wire, offset + 8)[0]
        sections.append(wire[start:offset])
    return sections


def _after_name(wire: bytes, offset: int) -> int:
    while wire[offset]:
        if wire[offset] >= 0xC0:
            return offset + 2
        offset += 1 + wire[offset]
    return offset + 1
