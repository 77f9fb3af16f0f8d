"""Is this a reply that may leave? Judged by dnspython and by the reader of tests/conformance, not by canal-dns itself.

Rules of this file:
- strict: every count, name and length is right, every record has its type's form, and no octet is left over;
- what an upstream put into RDATA is passed on as it came (RFC 3597): where dnspython cannot read the upstream's own message,
  only the form of ours is judged.
"""

from __future__ import annotations

import dns.exception
import dns.message

from tests.conformance import message as strict
from tests.fuzz.targets import Finding, need

HEADER = 12
QR, OPCODE = 0x80, 0x78


def question_of(packet: bytes) -> bytes | None:
    """The question of a query with a usual header, as it stands there; None: there is none that could be echoed."""
    if len(packet) < HEADER or packet[2] & OPCODE or packet[4:10] != b"\0\1\0\0\0\0" or packet[10] or packet[11] > 1:
        return None
    at = HEADER
    while at < len(packet) and packet[at]:
        if packet[at] > 63:
            return None
        at += 1 + packet[at]
    whole = at - HEADER + 1 <= 255 and at + 5 <= len(packet)
    return packet[HEADER : at + 5] if whole else None


def readable(message: bytes) -> bool:
    """True where dnspython takes it, which is strict about the data of every type that it knows."""
    try:
        dns.message.from_wire(message, one_rr_per_rrset=True)
    except (dns.exception.DNSException, ValueError):
        return False
    return True


def sound(query: bytes, reply: bytes, limit: int, *, source: bytes | None = None) -> strict.Message:
    """Raise Finding unless this is a valid reply to these octets within so many. `source`: the upstream's message in it."""
    need(len(reply) <= limit, f"{len(reply)} octets, at most {limit} may be sent: {reply.hex()}")
    try:
        message = strict.read(reply)
    except strict.MalformedError as problem:
        raise Finding(f"not a valid message, {problem}: {reply.hex()}") from None
    need(reply[:2] == query[:2], f"another ID: {reply.hex()}")
    need((reply[2] ^ query[2]) & OPCODE == 0, f"another opcode: {reply.hex()}")
    question = question_of(query)
    if question is not None:
        need(message.question == question, f"the question is not echoed: {reply.hex()}")
    else:
        need(query[HEADER:].startswith(message.question), f"a question that was not asked: {reply.hex()}")
    if not readable(reply) and (source is None or readable(source)):
        raise Finding(f"dnspython cannot read it: {reply.hex()}")
    return message


def udp_limit(query: bytes) -> int:
    """Octets that a reply may have over UDP, at most."""
    question = question_of(query)
    opt = query[HEADER + len(question) :] if question is not None and query[11] else b""
    if opt[:3] != b"\0\0\x29" or len(opt) < 11:
        return 512
    return min(max(int.from_bytes(opt[3:5]), 512), 1232)
