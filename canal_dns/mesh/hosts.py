"""Host names as Istio compares and completes them (istio pkg/config/host, pilot/pkg/model/config.go).

Rules of this file:
- a host is text; `*` in front makes it a wildcard for every name that ends with the rest;
- comparison is exact, case included: istiod lower-cases only when it writes a virtual host's domain.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

MESH = "mesh"
"""The reserved gateway name of all sidecars."""


def complete(host: str, namespace: str, cluster_domain: str) -> str:
    """A short name made full in the namespace of its owner; anything with a dot is literal (ResolveShortnameToFQDN)."""
    if host == "*" or "." in host:
        return host
    if ":" in host:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return host
    return f"{host}.{namespace}.svc.{cluster_domain}"


def gateway_name(name: str, namespace: str) -> str:
    """`namespace/name` of the Gateway that a VirtualService of `namespace` means, or `mesh` (resolveGatewayName)."""
    if name == MESH:
        return MESH
    before, slash, after = name.partition("/")
    if slash:
        return f"{namespace}/{after}" if before == "." else name
    first, dot, rest = name.partition(".")
    if not dot:
        return f"{namespace}/{name}"
    return f"{rest.partition('.')[0]}/{first}"


def is_wildcard(host: str) -> bool:
    return host.startswith("*")


def subset_of(narrow: str, wide: str) -> bool:
    """Every name that `narrow` stands for is one of `wide` (Name.SubsetOf)."""
    if not is_wildcard(wide):
        return narrow == wide
    if is_wildcard(narrow):
        return len(narrow) >= len(wide) and narrow[1:].endswith(wide[1:])
    return narrow.endswith(wide[1:])


def overlaps(one: str, other: str) -> bool:
    """Some name is meant by both (Name.Matches)."""
    return subset_of(one, other) or subset_of(other, one)


def intersection(hosts: Iterable[str], others: Iterable[str]) -> list[str]:
    """The more specific one of each pair that overlaps, in order, without repetition (Names.Intersection)."""
    seconds = list(others)
    found: dict[str, None] = {}
    for one in hosts:
        for other in seconds:
            if subset_of(one, other):
                found.setdefault(one)
            elif subset_of(other, one):
                found.setdefault(other)
    return list(found)


def names_for_namespace(hosts: Iterable[str], namespace: str) -> list[str]:
    """A server's hosts that VirtualServices of `namespace` may use, their `namespace/` removed (NamesForNamespace)."""
    names = []
    for host in hosts:
        before, slash, after = host.partition("/")
        if not slash:
            names.append(host)
        elif before in (namespace, "*"):
            names.append(after)
    return names


def sanitized(hosts: Iterable[str], namespace: str) -> tuple[str, ...] | None:
    """A server's hosts with `./x` as `namespace/x`, `*/x` as `x`, and `*/*` alone (sanitizeServerHostNamespace).

    None: istiod itself fails, because `*/*` cut the list short and a later host needs writing to its place.
    """
    written = list(hosts)
    for index, host in enumerate(list(written)):
        if "/" not in host:
            continue
        before, after = host.split("/")[:2]
        if (before, after) == ("*", "*"):
            written = ["*"]
        elif before in (".", "*"):
            if index >= len(written):
                return None
            written[index] = f"{namespace}/{after}" if before == "." else after
    return tuple(written)


def service_of(host: str, cluster_domain: str) -> tuple[str, str] | None:
    """(namespace, name) of the Service whose full name this is, letter for letter; None for any other host."""
    suffix = f".svc.{cluster_domain}"
    if not host.endswith(suffix):
        return None
    name, dot, namespace = host[: -len(suffix)].partition(".")
    return (namespace, name) if dot and name and namespace and "." not in namespace else None


def meant_service(host: str, cluster_domain: str) -> tuple[str, str] | None:
    """(namespace, name) of the Service that a person means by a host, though Istio takes it literally: capitals, a final
    dot, or a name cut short (`helloworld.default`, `helloworld.default.svc`)."""
    text = host.lower().removesuffix(".")
    parts = text.split(".")
    if len(parts) == 2 or (len(parts) == 3 and parts[2] == "svc"):
        text = f"{parts[0]}.{parts[1]}.svc.{cluster_domain}"
    return service_of(text, cluster_domain)
