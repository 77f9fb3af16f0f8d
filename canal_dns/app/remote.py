"""Ask a running canal-dns for its bindings: `table` and `explain` with `--server URL`."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from canal_dns.errors import RemoteError

TIMEOUT = 5.0
"""Seconds; the admin endpoint gives up on a reader after as many."""
MAX_SIZE = 256 << 20


def bindings(url: str) -> dict[str, Any]:
    """The JSON of `/bindings`. `url` is the admin address, with or without the path. Raises RemoteError."""
    parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RemoteError(f"{url}: the admin address of a running server is needed, such as http://127.0.0.1:8080")
    address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, "/bindings", "", ""))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=TIMEOUT) as response:
            plain = json.loads(response.read(MAX_SIZE))
    except (OSError, ValueError) as problem:
        reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
        raise RemoteError(f"{address}: {reason}") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("bound"), list):
        raise RemoteError(f"{address}: this is not a canal-dns")
    return plain
