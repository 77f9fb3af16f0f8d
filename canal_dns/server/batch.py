"""The packet loop, chosen in one place: `drain`, which filling it is, and why.

Rules of this file:
- a filling offers `drain(sock, table, gate, budget, counters, now)` as `_batch_py` documents it, and nothing else;
- CANAL_DNS_NO_EXTENSIONS=1 forbids a native filling; this version has none, so it only shows in REASON.
"""

from __future__ import annotations

import os

from canal_dns.server._batch_py import Miss, drain

__all__ = ["BUDGET", "IMPLEMENTATION", "REASON", "Miss", "drain"]

BUDGET = 64
"""Datagrams per readiness event: enough to spread its cost, and over before timers and TCP are late (0.5 ms of hits)."""

IMPLEMENTATION = "pure"
"""Which filling runs: a label of `canal_dns_build_info`."""
REASON = (
    "CANAL_DNS_NO_EXTENSIONS forbids the native loop"
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1"
    else "this version has no native loop"
)
"""Why it runs, in words."""
