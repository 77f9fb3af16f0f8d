"""Ask a running canal-dns for its bindings: `table` and `explain` with `--server URL`."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from canal_dns.errors import RemoteError

if TYPE_CHECKING:
    from canal_dns.mesh.explain import Explanation

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


def explain(plain: Mapping[str, Any], name: str) -> Explanation:
    """What the bindings of a running server say about a whole name."""
    from canal_dns.mesh.explain import Explanation, Step

    for one in plain["bound"]:
        if one["name"] == name:
            left = plain.get("settling", {}).get(name)
            wait = "" if left is None else f", but it settles for another {left:g} s and is forwarded until then"
            steps = [Step(f"Service {one['service']}", "", f"ports {', '.join(map(str, one['ports']))} are served", True)]
            steps += [Step(f"VirtualService {route}", "", "routes it", True) for route in one["routes"]]
            steps += [Step(f"Gateway {gateway}", "", "is attached to the gateway's pods", True) for gateway in one["gateways"]]
            steps += [Step(f"Service {one['gateway']}", "", f"VIP {', '.join(one['vips'])}", True)]
            steps += [Step("", "", f"warning: {warning}", True) for warning in one["warnings"]]
            return Explanation(name, True, tuple(steps), f"bound to {', '.join(one['vips'])}{wait}")
    for one in plain["skipped"]:
        if one["name"] == name:
            step = Step(one["object"], one["field"], f"{one['message']} ({one['reason']})", False)
            return Explanation(name, False, (step,), f"skipped: {one['reason']}; its queries are forwarded")
    step = Step("", "", "the server knows no Service of this name, and no VirtualService that routes it", False)
    return Explanation(name, False, (step,), "not a name of a Service; its queries are forwarded")
