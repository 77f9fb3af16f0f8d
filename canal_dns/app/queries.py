"""A file of queries from the live table, as dnsperf reads it: what a cluster's pods ask, in chosen shares.

Rules of this file:
- names come from the bindings as `table -o json` tells them; what must not exist is invented, and is none of them;
- every name is asked for A, then AAAA, as stub resolvers do; a share is a share of these pairs, kept exactly;
- a walk of the search list (ndots:5) stands before the name that it is tried for, as a pod's resolver sends it;
- the same bindings, shares, count and seed give the same lines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from canal_dns.errors import ConfigError

KINDS = {
    "bound": "names that the table answers",
    "unbound": "names of other Services, skipped ones among them",
    "missing": "names of Services that do not exist",
    "search": "misses of the search list: a name with .NAMESPACE.svc.DOMAIN, .svc.DOMAIN and .DOMAIN behind it",
}
"""What can be asked for, and what it means."""
DEFAULT_MIX = "bound=60,unbound=15,missing=5,search=20"
MOST = 50_000_000
"""Queries of one file at most: more than any generator needs, and some GiB."""
_INVENTED = 1000
"""So many different names that do not exist: clients repeat their mistakes, and a negative cache may show what it does."""


@dataclass(frozen=True, slots=True)
class Names:
    """What there is to ask for: names without the final dot, in order."""

    bound: tuple[str, ...]
    unbound: tuple[str, ...]
    cluster_domain: str

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Where the Services are; `default` where there are none."""
        return tuple(sorted({name.split(".")[1] for name in (*self.bound, *self.unbound)})) or ("default",)


def names_of(plain: Mapping[str, Any], cluster_domain: str | None = None) -> Names:
    """The names of `table -o json`. `cluster_domain`: where it is known; else it is seen from the names.

    A name that is skipped because there is no such Service is none that exists, and left out; one that still settles is
    forwarded, and so not bound yet.
    """
    settling = plain.get("settling", {})
    bound = tuple(sorted(one["name"] for one in plain["bound"] if one["name"] not in settling))
    skipped = (one["name"] for one in plain["skipped"] if one["service"] and ".svc." in one["name"])
    unbound = tuple(sorted({*skipped, *settling}))
    if cluster_domain is None:
        some = next(iter((*bound, *unbound)), "")
        cluster_domain = some.partition(".svc.")[2] or "cluster.local"
    return Names(bound, unbound, cluster_domain)


def read_mix(text: str) -> dict[str, float]:
    """`bound=60,search=40` -> shares that add up to 1. Raises ConfigError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        kind, _, figure = (piece.strip() for piece in part.partition("="))
        try:
            share = float(figure)
        except ValueError:
            share = -1.0
        if kind not in KINDS or kind in shares or not 0 <= share < float("inf"):
            raise ConfigError("--mix", text, f"KIND=SHARE[,...] with each of {', '.join(KINDS)} once at most")
        shares[kind] = share
    whole = sum(shares.values())
    if whole == 0:
        raise ConfigError("--mix", text, "one of the shares is above 0")
    return {kind: share / whole for kind, share in shares.items() if share}


def impossible(names: Names, mix: Mapping[str, float]) -> dict[str, str]:
    """The kinds of a mix that these names cannot give, and why; the others then share what is left."""
    reasons = {}
    if "bound" in mix and not names.bound:
        reasons["bound"] = "no name is bound"
    if "unbound" in mix and not names.unbound:
        reasons["unbound"] = "every Service is bound" if names.bound else "there is no Service"
    return reasons


def lines(names: Names, mix: Mapping[str, float], count: int, seed: int) -> Iterator[str]:
    """`count` lines "NAME TYPE". `mix`: kind -> share of the queries; the kinds that are `impossible` are left out."""
    possible = {kind: share for kind, share in mix.items() if kind not in impossible(names, mix)}
    return islice(_pairs(names, possible, -(-count // 2), random.Random(seed)), count)  # noqa: S311 - not a secret


def _pairs(names: Names, mix: Mapping[str, float], pairs: int, chance: random.Random) -> Iterator[str]:
    numbers = _numbers(mix, pairs)
    invented = _invented(names)
    sources: dict[str, Sequence[str]] = {"bound": names.bound, "unbound": names.unbound, "missing": invented}
    targets = [name for kind, pool in sources.items() for name in chance.choices(pool, k=numbers.get(kind, 0)) if pool]
    chance.shuffle(targets)
    walks = _walks(names, targets, numbers.get("search", 0), chance)
    for at, target in enumerate(targets or [""]):
        for name in (*walks.get(at, ()), target):
            if name:
                yield f"{name} A"
                yield f"{name} AAAA"


def _numbers(mix: Mapping[str, float], pairs: int) -> dict[str, int]:
    """How many pairs each kind gets: its share, the rest to those that were rounded down most."""
    whole = sum(mix.values())
    exact = {kind: pairs * share / whole for kind, share in mix.items()}
    numbers = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(exact, key=lambda kind: numbers[kind] - exact[kind])[: pairs - sum(numbers.values())]:
        numbers[kind] += 1
    return numbers


def _invented(names: Names) -> list[str]:
    """Names of Services as they might be, but are not."""
    known, spaces = {*names.bound, *names.unbound}, names.namespaces
    numbers = range(10 * _INVENTED)
    made = (f"no-such-service-{at:04d}.{spaces[at % len(spaces)]}.svc.{names.cluster_domain}" for at in numbers)
    return list(islice((name for name in made if name not in known), _INVENTED))


def _walks(names: Names, targets: Sequence[str], misses: int, chance: random.Random) -> dict[int, list[str]]:
    """Position of a target -> the misses before it: the name with every suffix of a pod's search list behind it.

    An absolute name has four dots at most (`web.shop.svc.cluster.local`), fewer than ndots:5: the search list comes first.
    """
    some = targets or names.bound or names.unbound or _invented(names)
    suffixes = (f"svc.{names.cluster_domain}", names.cluster_domain)
    walks: dict[int, list[str]] = {}
    while misses > 0:
        at = chance.randrange(len(some))
        home = chance.choice(names.namespaces)
        tried = [f"{some[at]}.{suffix}" for suffix in (f"{home}.svc.{names.cluster_domain}", *suffixes)]
        fitting = [name for name in tried if len(name) <= 253][:misses]
        walks.setdefault(at if targets else 0, []).extend(fitting)
        misses -= len(fitting) or 1
    return walks
