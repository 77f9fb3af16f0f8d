"""Forwarding in batches, chosen in one place: `QUICK`, the native part of a forwarder's work, or None.

Rules of this file:
- what the extension does not take, and everything where it is absent, is the forwarder's: that is complete on its own;
- CANAL_DNS_NO_EXTENSIONS=1 forbids it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from canal_dns.server._forward_c import Quick

__all__ = ["IMPLEMENTATION", "QUICK", "REASON"]

QUICK: type[Quick] | None
IMPLEMENTATION: str
"""Which filling runs: a label of `canal_dns_build_info`."""
REASON: str
"""Why it is there or not, in words."""

try:
    if os.environ.get("CANAL_DNS_NO_EXTENSIONS") == "1":
        raise ImportError("CANAL_DNS_NO_EXTENSIONS forbids it")
    from canal_dns.server import _forward_c

    QUICK, IMPLEMENTATION, REASON = _forward_c.Quick, "native", "the extension is built"
except ImportError as _problem:
    QUICK, IMPLEMENTATION, REASON = None, "pure", str(_problem)
