"""What the fillings of the packet loop have in common: the form of a miss, and the counting of hits.

Rules of this file:
- counters are added to once per batch, never per packet.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from canal_dns.dns.responder import Source
from canal_dns.dns.wire import HEADER, rcode_text, type_label
from canal_dns.metrics import Counters
from canal_dns.server.sockets import Control, Peer

_TABLE = (Source.TABLE.value,)
_NOERROR = (rcode_text(0),)
_UDP_TYPES = [("udp", type_label(qtype)) for qtype in range(256)]


class Miss(NamedTuple):
    """A datagram that the table did not answer, with what it takes to reply."""

    packet: bytes
    peer: Peer
    control: Control


def count_hits(replies: list[bytes], counters: Counters, now: float) -> None:
    """Count replies from the table that were sent; `now`: when their batch began.

    A bound name has no zero octet in it, and the types that it answers have all but zeros in their first octet.
    """
    types = [reply[reply.find(0, HEADER) + 2] for reply in replies]
    requests = counters["canal_dns_requests_total"]
    for qtype in set(types):
        requests[_UDP_TYPES[qtype]] += types.count(qtype)
    counters["canal_dns_responses_total"][_NOERROR] += len(types)
    counters["canal_dns_answers_total"][_TABLE] += len(types)
    counters.histograms["canal_dns_request_duration_seconds"][_TABLE].observe(time.monotonic() - now, len(types))
