"""What no API server should say, and one day will: lines of a watch, and objects of random fields and values."""

from __future__ import annotations

import random
from typing import Any

LINES = [
    b"garbage\n",
    b"[1, 2]\n",
    b'"text"\n',
    b"null\n",
    b"{}\n",
    b'{"type": 5, "object": {}}\n',
    b'{"type": "ADDED"}\n',
    b'{"type": "ADDED", "object": null}\n',
    b'{"type": "ADDED", "object": 7}\n',
    b'{"type": "DELETED", "object": {"kind": "Service", "metadata": {}}}\n',
    b'{"type": "DELETED", "object": {"kind": "Secret", "metadata": {"name": "a", "namespace": "default"}}}\n',
    b'{"type": "BOOKMARK", "object": []}\n',
    b'{"type": "ADDED", "object": {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}}\n',
    b'{"type": "ADDED", "object": {"kind": "Service", "apiVersion": "v1", "metadata": {"name": ""}}}\n',
    b'{"type": "INVENTED", "object": {"kind": "Service"}}\n',
    b'{"type": "ADDED", "object": {"kind": "Service", "metadata": {"name": "\xff\xfe"}}}\n',
    b"[" * 100_000 + b"\n",
    b'{"type": "ADDED", "object": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}\n",
    b"\n\n\n",
]
"""Of a watch of Services; none of them is an event that counts."""

KINDS = ("Service", "EndpointSlice", "Pod", "Namespace", "Gateway", "VirtualService", "DestinationRule", "Secret")
ODD = (
    None, True, 0, -1, 2**70, 1.5, "", "a", "A.b", "x" * 300, "ü", "\n", "\ud800", "*", "10.96.0.1", "10.0.0.0/8",
    "::ffff:1.2.3.4", "0.0.0.0", "fd00::1", "None", "shop", "web", "web.shop.svc.cluster.local", "true", [], {},
)  # fmt: skip
FIELDS = (
    "metadata", "spec", "name", "namespace", "labels", "annotations", "creationTimestamp", "uid", "clusterIP", "clusterIPs",
    "type", "ports", "port", "number", "protocol", "targetPort", "selector", "externalName", "hosts", "gateways", "exportTo",
    "http", "tcp", "tls", "route", "match", "destination", "host", "subset", "weight", "servers", "subsets", "endpoints",
    "conditions", "ready", "addresses", "canal-dns.io/bind", "canal-dns.io/ttl", "canal-dns.io/allow-from", "uri", "prefix",
    "delegate", "status", "phase",
)  # fmt: skip


def _value(chance, depth=0):
    pick = chance.random()
    if depth > 4 or pick < 0.4:
        return chance.choice(ODD)
    if pick < 0.6:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    return {chance.choice(FIELDS): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def anything(chance: random.Random) -> Any:
    """An object that a kind of ours may be, or nothing of the sort."""
    raw = {"kind": chance.choice(KINDS), "apiVersion": chance.choice(("v1", "networking.istio.io/v1", "x", 7, None))}
    for key in chance.sample(("metadata", "spec", "endpoints", "status", "items"), chance.randrange(4)):
        raw[key] = _value(chance)
    if chance.random() < 0.7:
        raw["metadata"] = {
            "name": chance.choice(("web", "api", *ODD)),
            "namespace": chance.choice(("shop", *ODD)),
            **_map(chance),
        }
    return raw


def _map(chance):
    value = _value(chance)
    return value if isinstance(value, dict) else {}
