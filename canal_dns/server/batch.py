"""The packet loop, chosen in one place: `drain`, `answer` and `answer_stream`, which filling they are, and why.

Rules of this file:
- a filling offers these as `_batch_py` documents them, and nothing else; `_batch_mmsg` has a `drain` of its own alone;
- the fastest that this platform has runs; CANAL_DNS_NO_EXTENSIONS=1 leaves only the plain one.
"""

from __future__ import annotations

import os

from canal_dns.server.hits import Miss

__all__ = ["BUDGET", "IMPLEMENTATION", "REASON", "Miss", "answer", "answer_stream", "drain"]

BUDGET = 64
"""Datagrams per readiness event: enough to spread its cost, and over before timers and TCP are late (0.5 ms of hits)."""

IMPLEMENTATION: str
"""Which filling runs: a label of `canal_dns_build_info`."""
REASON: str
"""Why it runs, in words."""

try:
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1":
        raise ImportError("CANAL_DNS_NO_EXTENSIONS forbids any other")
    try:
        from canal_dns.server._batch_c import answer, answer_stream, drain

        IMPLEMENTATION, REASON = "native", "the extension is there"
    except ImportError as _problem:
        from canal_dns.server._batch_mmsg import drain
        from canal_dns.server._batch_py import answer, answer_stream

        IMPLEMENTATION, REASON = "mmsg", f"the kernel takes many datagrams in one call, and {_problem}"
except (ImportError, AttributeError, OSError) as _problem:
    from canal_dns.server._batch_py import answer, answer_stream, drain

    IMPLEMENTATION, REASON = "pure", str(_problem)
