"""The query log: one line per query while `log.queries` is on, at most RATE a second.

Rules of this file:
- a client's bytes reach the line only through `names.to_text`, cut at MAX_TEXT: no control character, no second line;
- nothing here waits: the handler of the `canal_dns` loggers puts the record into a bounded queue;
- while it is off there is no QueryLog, and the packet path does nothing for it.
"""

from __future__ import annotations

import logging

from canal_dns.dns import names
from canal_dns.dns.wire import Query, parse_query, type_text

RATE = 100
"""Lines per second and process (AMP-07: a log is not to be filled by a flood)."""
MAX_TEXT = 255
"""Characters of a name in a line."""

log = logging.getLogger("canal_dns.queries")


class QueryLog:
    """Writes the lines of one process."""

    def __init__(self) -> None:
        # Asked for by a setting of its own: it does not depend on the level of everything else.
        log.setLevel(logging.INFO)
        self._second = -1
        self._lines = 0
        self._left_out = 0

    def record(self, packet: bytes, proto: str, host: str, port: int, outcome: str, now: float) -> None:
        """One query and what became of it; `now` in seconds of the monotonic clock."""
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
            if self._left_out:
                log.info("%d queries more were not logged", self._left_out)
                self._left_out = 0
        if self._lines >= RATE:
            self._left_out += 1
            return
        self._lines += 1
        log.info("%s %s port %d: %s: %s", proto, host, port, _question(packet), outcome)


def _question(packet: bytes) -> str:
    parsed = parse_query(packet, stream=True)
    query = parsed if isinstance(parsed, Query) else parsed.query
    if query is None:
        return f"no question in {len(packet)} octets"
    return f"{type_text(query.qtype)} {names.to_text(query.name)[:MAX_TEXT]}"
