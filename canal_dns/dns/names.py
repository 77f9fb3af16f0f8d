"""Domain names in wire form (RFC 1035 section 3.1): the only form in which names are compared or used as keys.

Rules of this file:
- a name is `bytes`: length-prefixed labels and the root's zero octet, never compressed;
- comparison is on lower-cased bytes (RFC 4343): only A-Z fold, so `bytes.lower()` is right and `str.lower()` is not
  (octets of length are at most 63, so below `A`: they never change);
- text goes in through `from_text`, out through `to_text`, which escapes everything that is not printable ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from canal_dns.errors import WireError

MAX_NAME = 255
"""Octets of a name in wire form, the root's zero octet included (RFC 1035 section 2.3.4)."""
MAX_LABEL = 63
"""Octets of one label (RFC 1035 section 2.3.4)."""

ROOT = b"\0"

_ESCAPED = frozenset(b'"().;\\@$')
_DNS_1123_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


def is_label(text: str) -> bool:
    """True for a DNS-1123 label, which is what Kubernetes allows as the name of a namespace or Service."""
    return _DNS_1123_LABEL.match(text) is not None


def from_text(text: str) -> bytes:
    r"""Encode a name in presentation form (RFC 1035 section 5.1; `\.` and `\DDD` are understood, the final dot is optional).

    Raises WireError for an empty label, a label above 63 octets, a name above 255, or a character outside ASCII.
    """
    if text in ("", "."):
        return ROOT
    wire = bytearray()
    for label in _labels(text):
        if not label:
            raise WireError(f"{text[:80]!r}: empty label")
        if len(label) > MAX_LABEL:
            raise WireError(f"{text[:80]!r}: a label of {len(label)} octets, at most {MAX_LABEL} are allowed")
        wire.append(len(label))
        wire += label
    wire.append(0)
    if len(wire) > MAX_NAME:
        raise WireError(f"{text[:80]!r}: a name of {len(wire)} octets, at most {MAX_NAME} are allowed")
    return bytes(wire)


def _labels(text: str) -> Iterator[bytes]:
    label = bytearray()
    at = 0
    while at < len(text):
        char = text[at]
        if char == ".":
            yield bytes(label)
            label.clear()
        elif char == "\\":
            digits = text[at + 1 : at + 4]
            if len(digits) == 3 and digits.isascii() and digits.isdigit() and int(digits) < 256:
                label.append(int(digits))
                at += 3
            elif at + 1 < len(text) and text[at + 1].isascii():
                label.append(ord(text[at + 1]))
                at += 1
            else:
                raise WireError(f"{text[:80]!r}: a backslash with nothing to escape")
        elif char.isascii():
            label.append(ord(char))
        else:
            raise WireError(f"{text[:80]!r}: {char!r} is not ASCII")
        at += 1
    if label or not text.endswith("."):
        yield bytes(label)


def to_text(name: bytes) -> str:
    r"""Write a wire-form name for people and logs: unusual octets as `\DDD`, the final dot kept (RFC 4343 section 2.1)."""
    if name == ROOT:
        return "."
    text = []
    for label in labels(name):
        text.append(
            "".join(
                f"\\{octet:03d}" if not 0x21 <= octet <= 0x7E else f"\\{octet:c}" if octet in _ESCAPED else chr(octet)
                for octet in label
            )
        )
    return ".".join(text) + "."


def labels(name: bytes) -> Iterator[bytes]:
    """The labels of a well-formed wire-form name, the root's empty one excluded."""
    at = 0
    while (length := name[at]) != 0:
        yield name[at + 1 : at + 1 + length]
        at += 1 + length


def service_name(service: str, namespace: str, cluster_domain: str) -> str:
    """The fully qualified name of a Service, lower case and without the final dot: the form that `mesh` uses."""
    return f"{service}.{namespace}.svc.{cluster_domain}"
