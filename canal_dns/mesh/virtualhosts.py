"""A virtual host: the one route list of all VirtualServices of a domain, and which of its routes a request ever comes to.

Rules of this file:
- a route is reached if some path has a request that no earlier route takes (`reach`); the paths that can prove it are few and
  known beforehand (`PathTest.candidates`), so both the routes in the way and the routes affected are found by index;
- a change is told entry by entry and looks at those later routes only whose paths the changed route takes, up to the next route
  that takes them all: 5,000 VirtualServices on `*` are one list;
- tests of the authority are decided where the domain is one name; on a wildcard domain their routes stand aside (`special`) and
  are put in their places when a name is asked for;
- Envoy compares with the authority as it comes, which has the port that was asked unless it is the scheme's own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from canal_dns.mesh.hosts import is_wildcard
from canal_dns.mesh.matches import Condition, PathTest
from canal_dns.mesh.reach import leaves_something
from canal_dns.mesh.records import Uses
from canal_dns.mesh.routes import Entry, Place

Conditions = frozenset[Condition]

_LAST = "\U0010ffff"


class Bucket:
    """The routes with one path test: without conditions (the first takes all), and with."""

    __slots__ = ("conditional", "free")

    def __init__(self) -> None:
        self.free: list[Place] = []
        self.conditional: dict[Conditions, list[Place]] = {}

    def add(self, conditions: Conditions, place: Place) -> None:
        insort(self.conditional.setdefault(conditions, []) if conditions else self.free, place)

    def remove(self, conditions: Conditions, place: Place) -> None:
        places = self.conditional[conditions] if conditions else self.free
        del places[bisect_left(places, place)]
        if conditions and not places:
            del self.conditional[conditions]

    def end(self, place: Place) -> Place | None:
        """The first route without conditions other than the one at `place`: what comes after it never sees these paths."""
        return next((one for one in self.free[:2] if one != place), None)


class Paths:
    """The buckets, by path test; and which of them a path falls into."""

    def __init__(self) -> None:
        self.exact: dict[tuple[bool, str], Bucket] = {}
        self.prefix: dict[tuple[bool, str], Bucket] = {}
        self.regex: dict[PathTest, Bucket] = {}
        self.lengths: dict[tuple[bool, int], int] = {}

    def bucket(self, test: PathTest) -> Bucket:
        key = _key(test)
        if test.test.uses is Uses.EXACT:
            found = self.exact.get(key)
            if found is None:
                found = self.exact[key] = Bucket()
            return found
        if test.test.uses is Uses.PREFIX:
            found = self.prefix.get(key)
            if found is None:
                found = self.prefix[key] = Bucket()
                length = key[0], len(key[1])
                self.lengths[length] = self.lengths.get(length, 0) + 1
            return found
        return self.regex.setdefault(test, Bucket())

    def clean(self, test: PathTest) -> None:
        """Forget an empty bucket."""
        bucket = self.bucket(test)
        if bucket.free or bucket.conditional:
            return
        key = _key(test)
        if test.test.uses is Uses.EXACT:
            del self.exact[key]
        elif test.test.uses is Uses.PREFIX:
            del self.prefix[key]
            self.lengths[key[0], len(key[1])] -= 1
            if not self.lengths[key[0], len(key[1])]:
                del self.lengths[key[0], len(key[1])]
        else:
            del self.regex[test]

    def hit(self, path: str) -> Iterator[Bucket]:
        """The buckets whose test the path passes."""
        lowered = path.lower()
        for fold, text in ((False, path), (True, lowered)):
            bucket = self.exact.get((fold, text))
            if bucket is not None:
                yield bucket
        for fold, length in self.lengths:
            bucket = self.prefix.get((fold, (lowered if fold else path)[:length])) if length <= len(path) else None
            if bucket is not None:
                yield bucket
        for test, bucket in self.regex.items():
            if test.takes(path):
                yield bucket


def _key(test: PathTest) -> tuple[bool, str]:
    return test.fold, test.test.value.lower() if test.fold else test.test.value


class VirtualHost:
    """One domain of a route configuration. `ends`: what follows the name in the authority of requests that come to it: "" or
    `:5000`; several where several ports of the gateway's Service lead here."""

    def __init__(self, domain: str, ends: Collection[str] = ("",)) -> None:
        self.domain = domain
        self._ends = ends
        self.entries: dict[Place, Entry] = {}
        self.special: dict[Place, Entry] = {}
        """Routes that test the authority, on a wildcard domain."""
        self.by_host: dict[str, set[Place]] = {}
        """Destination host -> routes to it."""
        self.governing: dict[str, int] = {}
        """VirtualService -> its reached routes, tests of the authority aside."""
        self.namespaces: dict[str, int] = {}
        """Namespace -> reached routes of its VirtualServices."""
        self._were: dict[str, bool] = {}
        """Namespaces whose routes changed in this change -> were any of them reached before?"""
        self.redirecting = 0
        """Routes that came by a server with httpsRedirect."""
        self._paths = Paths()
        self._watchers: dict[str, list[Place]] = {}
        """Candidate path -> routes that it can prove to be reached, in order."""
        self._watched: list[str] = []
        """The candidate paths, sorted."""
        self._folded: dict[str, set[str]] = {}
        self._catch_alls: list[Place] = []

    def change(self, gone: Iterable[Entry], new: Iterable[Entry]) -> tuple[set[Entry], bool]:
        """Take routes out and put routes in. Returns all whose part changed: these, and those now reached or hidden; and
        whether other namespaces govern the domain now."""
        changed: set[Entry] = set()
        self._were.clear()
        doubtful: set[Place] = set()
        for entry in gone:
            changed.add(entry)
            del self.entries[entry.place]
            self._count(entry, -1)
            self._unlink(entry)
            if self._counts(entry):
                doubtful.update(self._affected(entry))
                self._paths.clean(entry.path)
        for entry in new:
            changed.add(entry)
            self.entries[entry.place] = entry
            self._count(entry, 1)
            if self._link(entry):
                doubtful.add(entry.place)
                doubtful.update(self._affected(entry))
        for place in doubtful:
            found = self.entries.get(place)
            if found is not None and self._update(found):
                changed.add(found)
        return changed, any((name in self.namespaces) != was for name, was in self._were.items())

    def passing(self, host: str) -> list[Entry]:
        """The routes that test the authority and let a request for this name through."""
        return [self.special[place] for place in sorted(self.special) if self._may_meet(self.special[place], host)]

    def meets(self, entry: Entry, host: str) -> bool:
        """Requests for this name pass the route's tests of the authority, whatever port they ask."""
        return all(entry.built.match.meets(host + end) for end in self._ends)

    def _may_meet(self, entry: Entry, host: str) -> bool:
        return any(entry.built.match.meets(host + end) for end in self._ends)

    def reached(self, entry: Entry, host: str, passing: list[Entry] | None = None) -> bool:
        """Some request for this name comes to the route. `passing`: as `passing(host)` gave it, if the caller has it."""
        if not self.special:
            return entry.reached
        extra = self.passing(host) if passing is None else passing
        if not extra:
            return entry.reached
        if entry.place in self.special and entry not in extra:
            return False
        return self._counts(entry, extra) and self.meets(entry, host) and self._leaves(entry, extra)

    def reached_by(self, host: str) -> Iterator[Entry]:
        """The routes to which some request for this name comes, in order."""
        extra = self.passing(host) if self.special else []
        for place in sorted(self.entries):
            entry = self.entries[place]
            if self.reached(entry, host, extra):
                yield entry

    def governors(self, host: str) -> Collection[str]:
        """The VirtualServices with a route to which some request for this name comes."""
        if self.special and self.passing(host):
            return {entry.virtual_service for entry in self.reached_by(host)}
        return self.governing.keys()

    def governing_namespaces(self, host: str) -> Collection[str]:
        """The namespaces of these VirtualServices."""
        if self.special and self.passing(host):
            return {one.partition("/")[0] for one in self.governors(host)}
        return self.namespaces.keys()

    def in_the_way(self, entry: Entry, host: str) -> list[Entry]:
        """Earlier routes that take what this one would, for messages: at best the one that takes it all."""
        extra = [one for one in (self.passing(host) if self.special else []) if one.place < entry.place]
        some: set[Place] = set()
        for path in entry.path.candidates():
            buckets = list(self._paths.hit(path))
            whole = [bucket.free[0] for bucket in buckets if bucket.free and bucket.free[0] < entry.place]
            if whole:
                return [self.entries[min(whole)]]
            some.update(places[0] for bucket in buckets for places in bucket.conditional.values() if places[0] < entry.place)
            some.update(one.place for one in extra if one.path.takes(path))
        return [self.entries[place] for place in sorted(some)]

    def _counts(self, entry: Entry, extra: Iterable[Entry] = ()) -> bool:
        """The route takes requests at all: its tests of the authority fit the domain (or stand aside)."""
        match = entry.built.match
        if entry.dead or not match.authority:
            return not entry.dead
        return self._may_meet(entry, self.domain) if not is_wildcard(self.domain) else entry in extra

    def _count(self, entry: Entry, by: int) -> None:
        self.redirecting += by * entry.redirects
        for target in entry.built.targets:
            if by > 0:
                self.by_host.setdefault(target.host, set()).add(entry.place)
            elif target.host in self.by_host:
                self.by_host[target.host].discard(entry.place)
                if not self.by_host[target.host]:
                    del self.by_host[target.host]

    def _link(self, entry: Entry) -> bool:
        """Put the route into the indexes; False if it stands aside or takes nothing."""
        if not self._counts(entry):
            if is_wildcard(self.domain) and not entry.dead:
                self.special[entry.place] = entry
            return False
        self._paths.bucket(entry.path).add(_conditions(entry), entry.place)
        if entry.catch_all:
            insort(self._catch_alls, entry.place)
            return True
        for path in entry.path.candidates():
            if path not in self._watchers:
                self._watchers[path] = []
                insort(self._watched, path)
                self._folded.setdefault(path.lower(), set()).add(path)
            insort(self._watchers[path], entry.place)
        return True

    def _unlink(self, entry: Entry) -> None:
        if entry.reached:
            self._govern(entry, -1)
        if self.special.pop(entry.place, None) is not None or not self._counts(entry):
            return
        self._paths.bucket(entry.path).remove(_conditions(entry), entry.place)
        if entry.catch_all:
            del self._catch_alls[bisect_left(self._catch_alls, entry.place)]
            return
        for path in entry.path.candidates():
            places = self._watchers[path]
            del places[bisect_left(places, entry.place)]
            if not places:
                del self._watchers[path]
                del self._watched[bisect_left(self._watched, path)]
                self._folded[path.lower()].discard(path)
                if not self._folded[path.lower()]:
                    del self._folded[path.lower()]

    def _affected(self, entry: Entry) -> Iterator[Place]:
        """Later routes that a change of this one may reveal or hide."""
        test = entry.path
        end = self._paths.bucket(test).end(entry.place)
        if end is not None and end < entry.place:
            return
        if entry.catch_all:
            lists = [self._catch_alls]
        else:
            lists = [self._catch_alls[:1], *(self._watchers[path] for path in self._watched_by(test))]
        for places in lists:
            stop = len(places) if end is None else bisect_right(places, end)
            yield from places[bisect_right(places, entry.place) : stop]

    def _watched_by(self, test: PathTest) -> Iterable[str]:
        value = test.test.value
        if test.test.uses is Uses.EXACT:
            return self._folded.get(value.lower(), ()) if test.fold else (value,) if value in self._watchers else ()
        if test.test.uses is Uses.PREFIX and not test.fold:
            return self._watched[bisect_left(self._watched, value) : bisect_left(self._watched, value + _LAST)]
        return [path for path in self._watched if test.takes(path)]

    def _update(self, entry: Entry) -> bool:
        reached = self._leaves(entry, ()) and (is_wildcard(self.domain) or self.meets(entry, self.domain))
        if reached == entry.reached:
            return False
        entry.reached = reached
        self._govern(entry, 1 if reached else -1)
        return True

    def _govern(self, entry: Entry, by: int) -> None:
        namespace = entry.virtual_service.partition("/")[0]
        self._were.setdefault(namespace, namespace in self.namespaces)
        for counter, name in ((self.governing, entry.virtual_service), (self.namespaces, namespace)):
            left = counter.get(name, 0) + by
            if left:
                counter[name] = left
            else:
                del counter[name]

    def _leaves(self, entry: Entry, extra: Iterable[Entry]) -> bool:
        """Some candidate path has a request that no earlier route takes."""
        place = entry.place
        own = _conditions(entry)
        for path in entry.path.candidates():
            buckets = list(self._paths.hit(path))
            if any(bucket.free and bucket.free[0] < place for bucket in buckets):
                continue
            ways = [way for bucket in buckets for way, places in bucket.conditional.items() if places[0] < place]
            ways += [_conditions(one) for one in extra if one.place < place and one.path.takes(path)]
            if leaves_something(own, ways):
                return True
        return False


def _conditions(entry: Entry) -> Conditions:
    return entry.built.match.conditions


class Domains:
    """Which virtual host Envoy picks for a name: the exact domain, else the longest `*suffix`, else `*`."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._lengths: Counter[int] = Counter()
        self._longest: tuple[int, ...] = ()
        """The lengths of what follows the `*`, the longest first."""

    def add(self, domain: str) -> None:
        if domain not in self._known:
            self._known.add(domain)
            if is_wildcard(domain):
                self._lengths[len(domain) - 1] += 1
                self._longest = tuple(sorted(self._lengths, reverse=True))

    def remove(self, domain: str) -> None:
        if domain in self._known:
            self._known.remove(domain)
            if is_wildcard(domain):
                self._lengths[len(domain) - 1] -= 1
                if not self._lengths[len(domain) - 1]:
                    del self._lengths[len(domain) - 1]
                self._longest = tuple(sorted(self._lengths, reverse=True))

    def pick(self, host: str) -> str | None:
        """The domain for a name in lower case, None: 404."""
        if host in self._known:
            return host
        for length in self._longest:
            domain = "*" + host[len(host) - length :]
            if length < len(host) and domain in self._known:
                return domain
        return None
