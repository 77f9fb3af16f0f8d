"""The counters that change with every query, as one array in memory that another process may read.

Rules of this file:
- the layout below is the only one; native code is given these numbers, a test compares;
- one writer per array and no lock: each count is one aligned word; a reader may see a batch half counted;
- the memory outlives its writer: what a killed worker counted is still there for whoever holds the descriptor;
- seen from outside nothing is special about these series: `add_to` turns them into what `metrics` describes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Iterator

from canal_dns.dns.codes import Type, rcode_text, type_label
from canal_dns.metrics import BUCKETS, Counters, Histogram

TYPES = 257
"""Words of REQUESTS: a type each, and one for all above 255 that have no word of their own."""
REQUESTS_UDP = 0
REQUESTS_TCP = TYPES
RCODES = 24
RESPONSES = 2 * TYPES
"""+ response code, below RCODES."""
SOURCES = ("table", "upstream", "local", "cache")
"""Values of `dns.responder.Source`, by their place in ANSWERS and DURATIONS."""
TABLE, UPSTREAM, LOCAL, CACHE = range(len(SOURCES))
ANSWERS = RESPONSES + RCODES
"""+ source."""
DURATIONS = ANSWERS + len(SOURCES)
"""+ DURATION * source."""
DURATION = len(BUCKETS) + 2
"""Words per source: the buckets with +Inf, none of which counts what is in another, then the sum in nanoseconds."""
REQUESTS_ABOVE = DURATIONS + DURATION * len(SOURCES)
"""+ 2 * place in ABOVE, + 1 over TCP: types above 255 that have a label; native code leaves such queries to Python."""
SIZE = 640
"""Words in all; those beyond are reserved."""

ABOVE = tuple(sorted(member for member in Type if member > 255))

_PLACE = {int(qtype): REQUESTS_ABOVE + 2 * place for place, qtype in enumerate(ABOVE)}
_SECOND = 1_000_000_000
_NOEXEC_SEAL = 0x0008
"""MFD_NOEXEC_SEAL, Linux's number: the os module has no name for it."""


class Tally:
    """One array. `words`: SIZE unsigned integers of 64 bits, which wrap around never."""

    __slots__ = ("words",)

    def __init__(self, descriptor: int = -1) -> None:
        """Over the file of `memory`, which may be closed then; without one, over memory of this process."""
        self.words = memoryview(mmap.mmap(descriptor, 8 * SIZE)).cast("Q")

    def request(self, qtype: int, *, stream: bool) -> None:
        """Count a query that was received."""
        if qtype < 256:
            place = qtype + (REQUESTS_TCP if stream else REQUESTS_UDP)
        elif (above := _PLACE.get(qtype)) is not None:
            place = above + stream
        else:
            place = REQUESTS_TCP + 256 if stream else REQUESTS_UDP + 256
        self.words[place] += 1

    def reply(self, source: int, rcode: int, since: float) -> None:
        """Count a reply that was sent; `since`: when its query came, on the monotonic clock."""
        words = self.words
        seconds = time.monotonic() - since
        first = DURATIONS + DURATION * source
        words[RESPONSES + rcode] += 1
        words[ANSWERS + source] += 1
        words[first + bisect_left(BUCKETS, seconds)] += 1
        if seconds > 0:
            words[first + DURATION - 1] += int(seconds * _SECOND)

    def add_to(self, counters: Counters) -> None:
        """Add everything that was counted to the series that it belongs to. Those of a count of 0 are not touched."""
        words = self.words.tolist()
        requests = counters["canal_dns_requests_total"]
        for proto, first in (("udp", REQUESTS_UDP), ("tcp", REQUESTS_TCP)):
            for qtype, count in enumerate(words[first : first + TYPES]):
                if count:
                    requests[(proto, type_label(qtype) if qtype < 256 else "other")] += count
        for qtype, place in _PLACE.items():
            for proto, count in (("udp", words[place]), ("tcp", words[place + 1])):
                if count:
                    requests[(proto, type_label(qtype))] += count
        for rcode, count in enumerate(words[RESPONSES : RESPONSES + RCODES]):
            if count:
                counters["canal_dns_responses_total"][(rcode_text(rcode),)] += count
        for source, name in enumerate(SOURCES):
            if count := words[ANSWERS + source]:
                counters["canal_dns_answers_total"][(name,)] += count
            first = DURATIONS + DURATION * source
            counts = words[first : first + DURATION - 1]
            if any(counts):
                histogram = counters.histograms["canal_dns_request_duration_seconds"][(name,)]
                histogram.add(Histogram(counts, words[first + DURATION - 1] / _SECOND))


@contextlib.contextmanager
def memory() -> Iterator[int]:
    """The descriptor of an array of zeros, for another process to inherit; closed at the end. Raises OSError."""
    descriptor = _memory_file()
    try:
        os.ftruncate(descriptor, 8 * SIZE)
        yield descriptor
    finally:
        os.close(descriptor)


def _memory_file() -> int:
    """A node that allows no executable memory files (sysctl vm.memfd_noexec=2) wants to be told that this is none; kernels
    before 6.3 do not know the flag."""
    try:
        return os.memfd_create("canal-dns-tally", os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("canal-dns-tally", os.MFD_CLOEXEC)
