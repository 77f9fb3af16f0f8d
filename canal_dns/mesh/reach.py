"""Does any request come to a route, given the routes before it in its virtual host?

Rules of this file:
- Envoy takes the first route that matches; so a route is reached if there is a request that it takes and no earlier one does;
- the request is looked for: a path that only this route foresees, then values for the headers and parameters that it and the
  routes in its way test; several routes may together leave nothing, e.g. one with a header and one without it;
- the search is bounded: where the bound is met, the route counts as hidden (a name is rather not bound than sent astray).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product

from canal_dns.mesh.matches import FRESH, Condition, examples
from canal_dns.mesh.records import Uses

_CONNECT = (("header", ":method"), "CONNECT")
"""Comes to no route by its path: Envoy matches it by `connect_matcher` alone, which istiod never writes."""

Conditions = frozenset[Condition]
Variable = tuple[str, str]

_MAX_WORK = 50_000
"""Comparisons of a request with an earlier route that are made for one route and path."""
_ALWAYS = frozenset(
    ("header", name)
    for name in (":method", ":path", ":scheme", ":authority", "x-forwarded-proto", "x-forwarded-for", "x-request-id")
)
"""Headers that every request has at the gateway, and never empty: it writes them where the client does not."""


def leaves_something(own: Conditions, blockers: Iterable[Conditions]) -> bool:
    """There is a request with all of `own` for which each blocker has a condition that fails.

    All are conditions of routes that take the same path, the blockers' before the own.
    """
    ways = set(blockers)
    if not (ways or own):
        return True
    if any(way <= own for way in ways):
        return False
    plain = next(_requests(_choices(own, own)), None)
    if plain is None:
        return False
    fixed = _fixed(own)
    ways = {way for way in ways if not _contradicts(way, fixed)}
    if not any(_passes(way, plain) for way in ways):
        return True
    values = _choices(own.union(*ways), own)
    budget = max(_MAX_WORK // (1 + len(ways)), 1)
    return any(not any(_passes(way, request) for way in ways) for request in islice(_requests(values), budget))


def _choices(conditions: Iterable[Condition], own: Conditions) -> dict[Variable, list[str | None]]:
    """For each header or parameter that is tested: the values worth trying, those that pass the route's own tests."""
    values: dict[Variable, list[str | None]] = {}
    for condition in sorted(
        conditions, key=lambda one: (one.where, one.name, one.test.uses.value, one.test.value, one.inverted)
    ):
        known = values.setdefault(condition.variable, [_default(condition.variable), FRESH, ""])
        known.extend(examples(condition.test))
    return {
        variable: [
            value
            for value in dict.fromkeys(known)
            if (value or variable not in _ALWAYS)
            and (variable, value) != _CONNECT
            and all(one.passes(value) for one in own if one.variable == variable)
        ]
        for variable, known in values.items()
    }


def _default(variable: Variable) -> str | None:
    """What a request has where nothing asks for more: no such header, but always some method."""
    return FRESH if variable in _ALWAYS else None


def _requests(values: Mapping[Variable, Sequence[str | None]]) -> Iterator[dict[Variable, str | None]]:
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _fixed(own: Conditions) -> dict[Variable, str]:
    return {one.variable: one.test.value for one in own if not one.inverted and one.test.uses is Uses.EXACT}


def _contradicts(way: Conditions, fixed: Mapping[Variable, str]) -> bool:
    """No request for the route can pass this blocker: the route itself fixes the value that the blocker tests."""
    return any(one.variable in fixed and not one.may_pass(fixed[one.variable]) for one in way)


def _passes(way: Conditions, request: Mapping[Variable, str | None]) -> bool:
    return all(one.may_pass(request.get(one.variable, _default(one.variable))) for one in way)
