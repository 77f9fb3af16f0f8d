"""One HTTP match as Envoy evaluates it, and questions about it: which paths, under which conditions, is it a catch-all?
(istio route.TranslateRouteMatch, route.IsCatchAllRoute)

Rules of this file:
- a match is a path test and a set of conditions on things that a client may choose freely: headers, method, query parameters;
- the authority is none of these: the client asks for one name, so such a test is kept apart and decided per name;
- neither is the scheme: the gateway writes `x-forwarded-proto` itself, whatever the client sends;
- what a regular expression takes that is not understood, nobody knows: it may take all that stands behind it, and surely takes
  nothing itself (a name is rather not bound than sent astray);
- header names have no case; `host` and `:authority` are one header to Envoy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from canal_dns.mesh.patterns import Pattern, beginning, pattern
from canal_dns.mesh.records import HttpMatch, StringMatch, Uses, frozen

FRESH = "~canal-dns~"
"""A text that no configuration contains: what a client may send that no test has foreseen."""

_MAX_REGEX_PATHS = 24
_AUTHORITY = (":authority", "host")
_SCHEME = (":scheme", "x-forwarded-proto")
_NO_PATH = re.compile(r"[^/]|.*(?:[\x00-\x20?#\x7f]|/\.\.?(?:/|\Z))", re.DOTALL)
"""A path that no request has when its route is looked for: the query is cut off, and istiod lets Envoy resolve `.` and `..`
(normalize_path)."""
_ALL_PATHS = StringMatch(Uses.PREFIX, "/")


def holds(test: StringMatch, value: str | None) -> bool:
    """A test surely takes a value; None: the header or parameter is not there."""
    if value is None:
        return False
    if test.uses is Uses.EXACT:
        return value == test.value
    if test.uses is Uses.PREFIX:
        return value.startswith(test.value)
    if test.uses is Uses.PRESENT:
        return True
    known = pattern(test.value)
    return known is not None and known.takes(value)


def examples(test: StringMatch) -> list[str]:
    """Values that pass the test, the least foreseen one first."""
    if test.uses is Uses.EXACT:
        return [test.value]
    if test.uses is Uses.PREFIX:
        return [test.value + FRESH, test.value]
    if test.uses is Uses.PRESENT:
        return [FRESH]
    known = pattern(test.value)
    if known is None:
        return []
    shortest = known.examples(limit=4)
    return [text for text in (FRESH, *(short + FRESH for short in shortest), *shortest) if known.takes(text)]


@frozen
class Condition:
    """A test on one header or query parameter."""

    where: str
    """`header`, `query`, or `claim` (a JWT claim, by Istio's `@request.auth.claims`)."""
    name: str
    test: StringMatch
    inverted: bool = False

    @property
    def variable(self) -> tuple[str, str]:
        return self.where, self.name

    @property
    def understood(self) -> bool:
        """What passes is known. `:path` is that of the request with its query, and is nobody's choice apart from these."""
        if self.test.uses is Uses.REGEX and pattern(self.test.value) is None:
            return False
        return self.name != ":path" or self.where != "header" or self.test.uses is Uses.PRESENT

    def may_pass(self, value: str | None) -> bool:
        """It passes, or nobody knows. A header that is missing passes no test that is not inverted."""
        return self.passes(value) if self.understood else value is not None or self.inverted

    def passes(self, value: str | None) -> bool:
        """It surely passes. Envoy reads a missing header as "" in an inverted test, unless that asks for presence
        (TreatMissingHeaderAsEmpty)."""
        if not self.understood:
            return False
        if not self.inverted:
            return holds(self.test, value)
        if value is None and self.test.uses is not Uses.PRESENT:
            value = ""
        return not holds(self.test, value)


@frozen
class PathTest:
    """A test on the path, without query string. `fold`: letters of either case (regular expressions ignore it)."""

    test: StringMatch
    fold: bool = False
    opaque: bool = False
    """A regular expression that is not looked into: one of too many."""

    def takes(self, path: str) -> bool:
        """It takes the path, or may take it, for all that is known."""
        wanted = self.test.value
        if self.fold and self.test.uses is not Uses.REGEX:
            path, wanted = path.lower(), wanted.lower()
        if self.test.uses is Uses.PREFIX:
            return path.startswith(wanted)
        if self.test.uses is Uses.REGEX and (self.opaque or pattern(wanted) is None):
            return path.startswith(beginning(wanted))
        return path == wanted if self.test.uses is Uses.EXACT else holds(self.test, path)

    def candidates(self) -> tuple[str, ...]:
        """Paths that arrive and pass, such that a request for this route alone has one of them: the least foreseen first."""
        return _candidates(self)


@lru_cache(maxsize=16_384)
def _candidates(test: PathTest) -> tuple[str, ...]:
    value = test.test.value
    if test.opaque:
        return ()
    if test.test.uses is Uses.REGEX:
        paths = list(dict.fromkeys(path for path in _regex_paths(value) if not _NO_PATH.match(path)))[:_MAX_REGEX_PATHS]
    elif test.test.uses is Uses.EXACT:
        paths = [value]
    else:
        paths = [value + FRESH, f"{value.removesuffix('/')}/{FRESH}", value]
    if test.fold:
        paths += [variant for path in paths for variant in (path.lower(), path.upper(), path.swapcase())]
    return tuple(dict.fromkeys(path for path in paths if path and not _NO_PATH.match(path) and test.takes(path)))


def _regex_paths(regex: str) -> Iterator[str]:
    known = pattern(regex)
    if known is None:
        return
    shortest = known.examples("/")
    for at in range(len(shortest[0]) if shortest else 0, 0, -1):
        yield from _filled(known, shortest[0], at)
    yield from shortest
    for short in shortest[1:]:
        yield from _filled(known, short, len(short))


def _filled(known: Pattern, short: str, at: int) -> Iterator[str]:
    texts = (short[:at] + filling + short[at:] for filling in (FRESH, f"/{FRESH}"))
    return (text for text in texts if known.takes(text))


@frozen
class RouteMatch:
    """All of one match."""

    path: PathTest
    conditions: frozenset[Condition] = frozenset()
    authority: tuple[Condition, ...] = ()
    scheme: tuple[Condition, ...] = ()
    """Tests of the listener's scheme, by whichever header. Those that are not understood are among the conditions, as those of
    the authority."""

    @property
    def is_catch_all(self) -> bool:
        """Moved to the end of its virtual host, where only the first counts: prefix `/` or regex `.*`, nothing else."""
        if self.conditions or self.authority or self.scheme:
            return False
        test = self.path.test
        return test.value == "/" if test.uses is Uses.PREFIX else test.uses is Uses.REGEX and test.value == ".*"

    def meets(self, host: str) -> bool:
        """A request for this name passes the authority tests."""
        return all(condition.passes(host) for condition in self.authority)


EVERYTHING = RouteMatch(PathTest(_ALL_PATHS))


def translate(match: HttpMatch | None) -> RouteMatch:
    """The Envoy match of an HTTPMatchRequest; None: a route without matches."""
    if match is None:
        return EVERYTHING
    path = match.uri if match.uri is not None and match.uri.uses is not Uses.PRESENT else _ALL_PATHS
    conditions = [_header(name, test) for name, test in match.headers]
    conditions += [_header(name, test, inverted=True) for name, test in match.without_headers]
    conditions += [Condition("query", name, test) for name, test in match.query_params]
    for name, pseudo in ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme)):
        if pseudo is not None:
            conditions.append(Condition("header", name, pseudo))
    headers = [one for one in conditions if one.where == "header" and one.understood]
    authority = tuple(one for one in headers if one.name == ":authority")
    scheme = tuple(one for one in headers if one.name in _SCHEME)
    return RouteMatch(
        PathTest(path, match.ignore_uri_case),
        frozenset(one for one in conditions if one not in (*authority, *scheme)),
        authority,
        scheme,
    )


def _header(name: str, test: StringMatch, *, inverted: bool = False) -> Condition:
    if name.startswith("@request.auth.claims"):
        return Condition("claim", name, test, inverted)
    lowered = name.lower()
    return Condition("header", ":authority" if lowered in _AUTHORITY else lowered, test, inverted)
