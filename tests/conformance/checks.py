"""What `check` of a case demands, key by key, and what every reply owes its client whatever the case says.

Rules of this file:
- pure: an Exchange in, faults as sentences out; nothing here opens a socket or knows the server;
- an unknown key is an error of the run, never a pass; keys that need more than one exchange are in ELSEWHERE, and a case
  that has one must have a check of its own;
- times are for a machine that does nothing else: SHARED says by how much they are stretched.
"""

import dataclasses
import ipaddress
import struct

from tests.conformance import message as dns

SHARED = 4
"""max_ms is multiplied by this, and the best of five tries counts: the tests run on shared machines."""
SLACK = 1.0
"""Seconds added to within_s, which is about time-outs, for the same reason."""
VIPS = {"VIP4": "10.96.0.200", "VIP6": "fd00:10:96::c8"}
BOUND = {
    dns.wire_name(f"{name}.shop.svc.cluster.local"): vips
    for name, vips in {
        "web": {VIPS["VIP4"]},
        "dual": set(VIPS.values()),
        "v6": {VIPS["VIP6"]},
        "api-0": {VIPS["VIP4"]},
    }.items()
}
"""The bound names of the fixture, and the only addresses that they have."""
FORGED = bytes((6, 6, 6, 6))
"""What no client may ever see: the upstream's scripts use it in forged and smuggled records."""

ELSEWHERE = {
    "sweep", "alive_after", "count", "within_s", "max_ms", "upstream_outstanding_max", "upstream_ids", "upstream_packets_max",
    "max_error_replies_per_s", "rrl", "log_lines", "metrics_parse", "bound_ok", "max_burst", "diff", "genreport", "ttl",
}  # fmt: skip
"""Keys about several exchanges, times, logs or metrics: the run looks after `alive_after`, `within_s` and `max_ms`; the others
belong to checks that are named after their case."""


@dataclasses.dataclass
class Exchange:
    """One packet of a client, and what it led to."""

    sent: bytes
    transport: str
    replies: list
    """Messages that came, in order."""
    closed: bool = False
    """TCP: the server ended the connection."""
    seconds: float = 0.0
    """From the packet to the first reply, or to the close."""
    upstream: list = dataclasses.field(default_factory=list)
    """Packets that the upstream saw because of it."""


def faults(check, exchange):
    """Everything that is wrong with an exchange, as sentences; empty: it is as the case demands."""
    found = _result(check.get("result", "reply"), exchange)
    for key in check:
        if key not in KEYS and key not in ELSEWHERE and key != "result":
            raise ValueError(f"no check knows the key {key!r}")
    for wire in exchange.replies[:1]:
        try:
            message = dns.read(wire)
        except dns.MalformedError as problem:
            return [*found, f"the reply is malformed: {problem} ({wire[:60].hex()})"]
        found += always(exchange, message)
        for key, wanted in check.items():
            if key in KEYS:
                problem = KEYS[key](wanted, exchange, message)
                if problem:
                    found.append(problem)
    if not exchange.replies and "upstream_packets" in check:
        found += [problem for problem in [_upstream_packets(check["upstream_packets"], exchange, None)] if problem]
    return found


def _result(wanted, exchange):
    got = "reply" if exchange.replies else "close" if exchange.closed else "drop"
    found = []
    if got not in wanted.split("-or-"):
        found.append(f"{wanted} was expected, there was {'no answer' if got == 'drop' else f'a {got}'}")
    if len(exchange.replies) > 1:
        found.append(f"{len(exchange.replies)} replies to one packet")
    return found


def always(exchange, message):
    """What holds for every reply (RFC 1035, 6891; meta.policy): ID, opcode, question, RA, Z, size, OPT, TC, no other address
    than its VIPs for a bound name in any section, nothing forged."""
    sent, found = exchange.sent, []
    try:
        asked = dns.read(sent, reply=False)
    except dns.MalformedError:
        asked = None
    flags = struct.unpack_from("!H", sent, 2)[0]
    if message.id != struct.unpack_from("!H", sent)[0]:
        found.append(f"the ID is {message.id:#06x}, not the client's")
    if message.opcode != flags >> 11 & 15:
        found.append(f"opcode {message.opcode} instead of the client's")
    if message.bit("z"):
        found.append("Z=1")
    if message.opcode == 0 and not message.bit("ra"):
        found.append("RA=0 in a reply to a QUERY")
    if message.opcode == 0 and message.bit("rd") != flags >> 8 & 1:
        found.append("RD is not the client's")
    if message.questions and message.question != sent[12 : 12 + len(message.question)]:
        found.append("the question is not the client's, octet for octet")
    if not message.questions and message.rcode not in ("FORMERR", "NOTIMP"):
        found.append(f"{message.rcode} without a question")
    for record in message.records:
        if record.address and record.address not in BOUND.get(record.name.lower(), {record.address}):
            found.append(f"a bound name has the address {record.address}")
    if FORGED in message.wire:
        found.append("6.6.6.6 reached the client")
    if exchange.transport == "tcp":
        if message.bit("tc"):
            found.append("TC=1 over TCP")
    elif len(message.wire) > udp_limit(asked):
        found.append(f"{len(message.wire)} octets over UDP, {udp_limit(asked)} were allowed")
    if asked is not None and asked.opcode == 0 and len(asked.questions) == 1:
        if asked.opt is None and message.opt is not None:
            found.append("an OPT without one in the query")
        elif asked.opt is not None and message.opt is None:
            # What is wrong may be the OPT itself (RFC 6891 section 7).
            found += [] if message.rcode == "FORMERR" else ["no OPT although the query had one"]
        elif asked.opt is not None and message.rcode == "NOERROR" and (asked.opt.ttl ^ message.opt.ttl) & 0x8000:
            found.append("DO is not the client's")
    return found


def udp_limit(asked):
    """Octets that a reply over UDP may have: 512 without OPT, never more than 1232."""
    if asked is None or asked.opt is None:
        return 512
    return min(max(asked.opt.rclass, 512), 1232)


def _number(name, of):
    def check(wanted, exchange, message):
        got = of(message)
        return None if got == wanted else f"{name} is {got}, {wanted} was expected"

    return check


def _bit(name):
    return _number(name.upper(), lambda message: message.bit(name))


def _rcode(wanted, exchange, message):
    return None if message.rcode in wanted else f"{message.rcode}, {' or '.join(wanted)} was expected"


def _question(wanted, exchange, message):
    assert wanted == "identical"
    end = 12 + len(message.question)
    same = message.questions and message.question == exchange.sent[12:end]
    return None if same else "the question is not there octet for octet"


def _ednsver(wanted, exchange, message):
    if message.opt is None:
        return "no OPT, so no EDNS version"
    version = message.opt.ttl >> 16 & 0xFF
    return None if version == wanted else f"EDNS version {version}, {wanted} was expected"


def _do(wanted, exchange, message):
    if message.opt is None:
        return "no OPT, so no DO"
    got = message.opt.ttl >> 15 & 1
    return None if got == wanted else f"DO={got}, {wanted} was expected"


def _ednsopts(wanted, exchange, message):
    got = [code for code, _ in message.options]
    return None if got == wanted else f"EDNS options {got}, {wanted} were expected"


def _max_len(wanted, exchange, message):
    return None if len(message.wire) <= wanted else f"{len(message.wire)} octets, at most {wanted} were expected"


def _rdata(wanted, exchange, message):
    """An address of the answer section and no other, or the RDATA of its only record in hex."""
    wanted = VIPS.get(wanted, wanted)
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        got = [record.rdata.hex() for record in message.answer]
        return None if got == [wanted] else f"RDATA {got}, {wanted} was expected"
    got = {record.address for record in message.answer if record.address}
    return None if got == {str(address)} else f"addresses {sorted(got)}, {address} was expected"


def _must_not_contain(wanted, exchange, message):
    octets = ipaddress.ip_address(wanted).packed
    return f"{wanted} is in the reply" if octets in message.wire else None


def _upstream_packets(wanted, exchange, message):
    # A type that is refused here may be: then nothing goes upstream.
    if message is not None and wanted and message.rcode in ("FORMERR", "NOTIMP", "REFUSED"):
        wanted = 0
    got = len(exchange.upstream)
    names = sorted({seen.name for seen in exchange.upstream})
    return None if got == wanted else f"{got} packets went upstream {names}, {wanted} expected"


def _upstream_must_not_contain(wanted, exchange, message):
    assert wanted == "stray A"
    for seen in exchange.upstream:
        if bytes((1, 2, 3, 4)) in seen.wire or b"\x03web" in seen.wire:
            return "the stray record went upstream"
    return None


def _upstream_exact(wanted, exchange, message):
    assert wanted == "rebuilt"
    question = exchange.sent[12 : 12 + len(message.question)]
    for seen in exchange.upstream:
        rest = seen.wire[12 + len(question) :]
        if seen.wire[12 : 12 + len(question)].lower() != question.lower() or not is_own_opt(rest):
            return f"not rebuilt from the question alone: {seen.wire.hex()}"
    return None


def is_own_opt(octets):
    """True for nothing, and for an OPT of at most 1232 octets, version 0, without options."""
    if not octets:
        return True
    if len(octets) != 11:
        return False
    root, rtype, size, rcode, version, flags, length = struct.unpack("!BHHBBHH", octets)
    return (root, rtype, rcode, version, length) == (0, dns.OPT, 0, 0, 0) and size <= 1232 and flags in (0, 0x8000)


def _upstream_ednsopts(wanted, exchange, message):
    assert wanted == []
    if not exchange.upstream:
        return "nothing went upstream"
    for seen in exchange.upstream:
        asked = dns.read(seen.wire, reply=False)
        if asked.opt is None or not is_own_opt(seen.wire[-11:]):
            return f"upstream saw another OPT than ours: {seen.wire.hex()}"
        if not asked.opt.ttl & 0x8000:
            return "the sentinel is missing: DO=0 upstream"
    return None


KEYS = {
    "rcode": _rcode,
    "question": _question,
    "opt": _number("OPT present", lambda message: message.opt is not None),
    "do": _do,
    "ednsver": _ednsver,
    "ednsopts": _ednsopts,
    "opcode": _number("opcode", lambda message: message.opcode),
    "id": _number("ID", lambda message: message.id),
    "qd": _number("QDCOUNT", lambda message: len(message.questions)),
    "an": _number("ANCOUNT", lambda message: len(message.answer)),
    "ns": _number("NSCOUNT", lambda message: len(message.authority)),
    "ar": _number("ARCOUNT", lambda message: len(message.additional)),
    "len": _number("length", lambda message: len(message.wire)),
    "max_len": _max_len,
    "rdata": _rdata,
    "must_not_contain": _must_not_contain,
    "upstream_packets": _upstream_packets,
    "upstream_must_not_contain": _upstream_must_not_contain,
    "upstream_exact": _upstream_exact,
    "upstream_ednsopts": _upstream_ednsopts,
    **{bit: _bit(bit) for bit in ("qr", "aa", "tc", "rd", "ra", "z", "ad", "cd")},
}
