"""What the fillings of the packet loop have in common: the form of a miss, and the counting of hits.

Rules of this file:
- counters are added to once per batch, never per packet.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import NamedTuple

from canal_dns.dns.wire import HEADER
from canal_dns.metrics import BUCKETS
from canal_dns.server.sockets import Control, Peer
from canal_dns.server.tally import ANSWERS, DURATION, DURATIONS, RESPONSES, TABLE

_FIRST = DURATIONS + DURATION * TABLE
_SUM = _FIRST + DURATION - 1


class Miss(NamedTuple):
    """A datagram that was not answered, with what it takes to reply."""

    packet: bytes
    peer: Peer
    control: Control


def count_hits(replies: list[bytes], words: memoryview, requests: int, now: float) -> None:
    """Count replies from the table that were sent; `requests`: the words of their transport, `now`: when their batch began.

    A bound name has no zero octet in it, and the types that it answers have all but zeros in their first octet.
    """
    count = len(replies)
    for reply in replies:
        words[requests + reply[reply.find(0, HEADER) + 2]] += 1
    words[RESPONSES] += count
    words[ANSWERS + TABLE] += count
    seconds = max(time.monotonic() - now, 0.0)
    words[_FIRST + bisect_left(BUCKETS, seconds)] += count
    words[_SUM] += int(seconds * 1e9) * count
