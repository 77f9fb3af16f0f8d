"""Ask a running canal-dns for its bindings: `table` and `explain` with `--server URL`."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from canal_dns.errors import RemoteError
from canal_dns.mesh.explain import Explanation, Step

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
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
        raise RemoteError(f"{address}: {text}; is a server running there?") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("bound"), list):
        raise RemoteError(f"{address}: this is not a canal-dns")
    return plain


def explain(plain: Mapping[str, Any], name: str) -> Explanation:
    """What the bindings of a running server say about a name, in full or as people write it (`web`, `web.shop`)."""
    text = name.strip().lower().removesuffix(".")
    known = {one["name"]: one for one in (*plain["skipped"], *plain["bound"])}
    meant = [text] if text in known else sorted(full for full in known if full.startswith(f"{text}.") and ".svc." in full)
    if not meant:
        step = Step("", "", "the server knows no such Service, and no VirtualService that means one", False)
        return Explanation(name, False, (step,), "not bound: its queries are forwarded")
    if len(meant) > 1:
        return Explanation(name, False, (), f"it may be {', '.join(meant)}: say which")
    one = known[meant[0]]
    if "reason" in one:
        step = Step(one["object"], one["field"], one["message"], False)
        return Explanation(one["name"], False, (step,), f"not bound: {one['reason']}: {one['message']}")
    wait = plain.get("settling", {}).get(one["name"])
    ports = ", ".join(map(str, one["ports"]))
    steps = [Step(f"Service {one['service']}", "", f"the gateway serves it on its ports {ports}", True)]
    steps += [Step(f"VirtualService {route}", "", "routes it", True) for route in one["routes"]]
    steps += [Step(f"Gateway {gateway}", "", "is attached to the gateway's pods", True) for gateway in one["gateways"]]
    steps += [Step(f"Service {one['gateway']}", "spec.clusterIPs", f"the VIP: {', '.join(one['vips'])}", True)]
    steps += [Step(f"Service {one['service']}", "", f"note: {warning}", True) for warning in one["warnings"]]
    verdict = f"bound: {one['name']} is {', '.join(one['vips'])}, the address of {one['gateway']}"
    if wait is not None:
        verdict += f"; it settles for another {wait:g} s and is forwarded until then"
    return Explanation(one["name"], True, tuple(steps), verdict)


def warnings(plain: Mapping[str, Any]) -> list[str]:
    """What keeps the bindings of a running server from being the whole truth."""
    source = plain.get("source", {})
    told = list(source.get("problems", ()))
    if not source.get("synced", True):
        saved = plain.get("snapshot", {})
        meanwhile = f"answers {saved['names']} names from its saved table" if saved.get("inUse") else "forwards everything"
        told.append(f"the server has not read {source.get('place')} yet: it {meanwhile}")
        told += source.get("waiting", ())
    told += [
        f"{name} settles for another {left:g} s and is forwarded until then" for name, left in plain.get("settling", {}).items()
    ]
    return told
