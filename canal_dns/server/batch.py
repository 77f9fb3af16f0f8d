"""The packet loop, chosen in one place: `drain`, which filling it is, and why.

Rules of this file:
- a filling offers `drain(sock, table, gate, budget, counters, now)` as `_batch_py` documents it, and nothing else;
- the fastest that this platform has runs; CANAL_DNS_NO_EXTENSIONS=1 leaves only the plain one.
"""

from __future__ import annotations

import os

from canal_dns.server.hits import Miss

__all__ = ["BUDGET", "IMPLEMENTATION", "REASON", "Miss", "drain"]

BUDGET = 64
"""Datagrams per readiness event: enough to spread its cost, and over before timers and TCP are late (0.5 ms of hits)."""

IMPLEMENTATION: str
"""Which filling runs: a label of `canal_dns_build_info`."""
REASON: str
"""Why it runs, in words."""

try:
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1":
        raise ImportError("CANAL_DNS_NO_EXTENSIONS forbids any other")
    from canal_dns.server._batch_mmsg import drain

    IMPLEMENTATION, REASON = "mmsg", "the kernel takes many datagrams in one call"
except (ImportError, AttributeError, OSError) as _problem:
    from canal_dns.server._batch_py import drain

    IMPLEMENTATION, REASON = "pure", str(_problem)
