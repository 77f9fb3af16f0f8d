"""The numbers of DNS and their names: record types, response codes, extended errors (IANA "DNS Parameters").

Rules of this file:
- only numbers that a rule of canal-dns or a person reading a log needs; any other number has a text all the same;
- texts for logs may be unbounded (`TYPE666`), labels of metrics are not: every unlisted type is `other`.
"""

from __future__ import annotations

from enum import IntEnum

IN = 1
"""Class IN, the only one that is answered or forwarded."""


class Rcode(IntEnum):
    """Response codes (RFC 6895 section 2.3); those above 15 need an OPT record."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    YXDOMAIN = 6
    YXRRSET = 7
    NXRRSET = 8
    NOTAUTH = 9
    NOTZONE = 10
    BADVERS = 16
    BADCOOKIE = 23


FAILURES = frozenset({Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})
"""Codes with which a server says nothing of the name, only that it does not answer: another may (CoreDNS's `failover`)."""


class Type(IntEnum):
    """Record and question types (RFC 6895 section 3.1)."""

    A = 1
    NS = 2
    MD = 3
    MF = 4
    CNAME = 5
    SOA = 6
    MB = 7
    MG = 8
    MR = 9
    PTR = 12
    HINFO = 13
    MINFO = 14
    MX = 15
    TXT = 16
    RP = 17
    AFSDB = 18
    RT = 21
    SIG = 24
    PX = 26
    AAAA = 28
    NXT = 30
    SRV = 33
    NAPTR = 35
    DNAME = 39
    OPT = 41
    DS = 43
    RRSIG = 46
    NSEC = 47
    DNSKEY = 48
    NSEC3 = 50
    NSEC3PARAM = 51
    TLSA = 52
    SVCB = 64
    HTTPS = 65
    SPF = 99
    NXNAME = 128
    TKEY = 249
    TSIG = 250
    IXFR = 251
    AXFR = 252
    MAILB = 253
    MAILA = 254
    ANY = 255
    CAA = 257


class Ede(IntEnum):
    """Why a SERVFAIL of our own was sent (extended DNS errors, RFC 8914 section 5.2)."""

    OTHER = 0
    NOT_READY = 14
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23


_TYPE_TEXT = {int(member): member.name for member in Type}
_RCODE_TEXT = {int(member): member.name for member in Rcode}


def type_text(qtype: int) -> str:
    """The mnemonic, or `TYPE666` (RFC 3597 section 5): for logs, not for labels of metrics."""
    return _TYPE_TEXT.get(qtype) or f"TYPE{qtype}"


def type_label(qtype: int) -> str:
    """The mnemonic, or `other`: a bounded set, since clients choose the number."""
    return _TYPE_TEXT.get(qtype, "other")


def rcode_text(rcode: int) -> str:
    """The mnemonic, or `RCODE11` for one without."""
    return _RCODE_TEXT.get(rcode) or f"RCODE{rcode}"
