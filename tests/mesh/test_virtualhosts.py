"""Which routes of a virtual host are reached: by hand for each kind of test, and against requests that are simply tried."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal_dns.mesh.matches import FRESH, RouteMatch, holds, translate
from canal_dns.mesh.resources import parse
from canal_dns.mesh.routes import Built, Entry, Target
from canal_dns.mesh.rules import Rule
from canal_dns.mesh.virtualhosts import Domains, VirtualHost
from tests.mesh.builders import HELLO, http, virtual_service

RULE = Rule("ns/owner", "spec.http[0]", (), (), "route", ())


def match(raw: dict[str, Any]) -> RouteMatch:
    """An HTTPMatchRequest as Envoy has it."""
    record = parse(virtual_service(http(HELLO, match=raw or {"port": 0})))
    return translate(record.http[0].matches[0])  # type: ignore[union-attr]


def entry(raw: dict[str, Any], number: int, source: str = "ns/vs", host: str = "") -> Entry:
    found = match(raw)
    place = (int(found.is_catch_all), 0, 0, 0.0, source, "ns", 0, number)
    return Entry(place, Built(RULE, found, (Target(host or f"to-{number}", None, "", 80),)), source, "ns/gateway")


def reached(*raws: dict[str, Any], domain: str = "*", ask: str = HELLO) -> list[int]:
    """The numbers of the routes that a request for a name may come to."""
    host = VirtualHost(domain)
    entries = [entry(raw, number) for number, raw in enumerate(raws)]
    host.change([], entries)
    return [number for number, one in enumerate(entries) if host.reached(one, ask)]


def uri(**test: str) -> dict[str, Any]:
    return {"uri": test}


def header(name: str = "x", **test: str) -> dict[str, Any]:
    return {"headers": {name: test}}


def without(name: str = "x", **test: str) -> dict[str, Any]:
    return {"withoutHeaders": {name: test}}


ANY: dict[str, Any] = {}
FOLD = {"ignoreUriCase": True}

CASES = {
    "catch-alls go to the end, the first counts": ([ANY, uri(prefix="/a"), uri(regex=".*")], [0, 1]),
    "a prefix hides what is below it": ([uri(prefix="/a"), uri(prefix="/a/b"), uri(exact="/a/c"), uri(exact="/b")], [0, 3]),
    "a longer prefix does not hide a shorter one": ([uri(prefix="/a/b"), uri(prefix="/a")], [0, 1]),
    "an exact path hides only itself": ([uri(exact="/a"), uri(exact="/a"), uri(prefix="/a"), uri(exact="/a/")], [0, 2]),
    "prefix / with a condition is no catch-all": ([{**uri(prefix="/"), **header(exact="1")}, ANY], [0, 1]),
    "regex that takes everything, but is no catch-all": ([uri(regex="/.*"), uri(prefix="/a"), uri(regex=".+")], [0]),
    "regex below a prefix": ([uri(prefix="/a"), uri(regex="/a/.*"), uri(regex="/(a|b)/.*")], [0, 2]),
    "prefix below a regex": ([uri(regex="/a.*"), uri(prefix="/a/b"), uri(exact="/ab"), uri(exact="/b")], [0, 3]),
    "a regex that leaves the prefix itself": ([uri(regex="/a/.+"), uri(prefix="/a/"), uri(prefix="/a")], [0, 1, 2]),
    "a regex that is not understood surely takes nothing": ([uri(regex=r"/\pL")], []),
    "but may take all that stands behind it": ([uri(regex=r"\b/.*"), uri(prefix="/a"), uri(exact="/b"), ANY], []),
    "as far as it begins like that": (
        [uri(regex=r"/a/\b.*"), uri(exact="/a/b"), uri(exact="/a"), uri(prefix="/a"), ANY],
        [2, 3, 4],
    ),
    "with a condition, it may where that holds": ([{**uri(regex=r"/\pL"), **header(exact="1")}, header(exact="1"), ANY], [2]),
    "anchors in alternatives": ([uri(regex="^/a$|^/b$"), uri(exact="/a"), uri(exact="/b"), uri(prefix="/a")], [0, 3]),
    "POSIX classes": ([uri(regex="/[[:alpha:]]+"), uri(exact="/abc"), uri(exact="/a1")], [0, 2]),
    "flags before a regex": ([uri(regex="(?s).*"), uri(prefix="/x")], [0]),
    "flags that ignore case": ([uri(regex="(?i)/a"), uri(exact="/A"), uri(exact="/a"), uri(exact="/b")], [0, 3]),
    "anchors in a header's alternatives": ([header(regex="^a$|^b$"), header(exact="a"), header(exact="c")], [0, 2]),
    "the header :path may be any": ([header(":path", exact="/a"), uri(prefix="/b"), ANY], []),
    "the header :path surely is none": ([{**uri(prefix="/a"), **header(":Path", exact="/a")}, ANY], [1]),
    "without a :path": ([without(":path", exact="/a"), ANY], []),
    "the header :path is there": ([header(":path", regex="*"), ANY], [0]),
    "an authority that is not understood": ([{"authority": {"regex": r"\bx"}}, ANY], []),
    "a scheme that is not understood": ([{"scheme": {"regex": r"\bx"}}, ANY], []),
    "an x-forwarded-proto that is not understood": ([without("x-forwarded-proto", regex=r"\bx"), ANY], []),
    "a regex without any path": ([uri(regex="a+")], []),
    "no path has a query": ([uri(exact="/a?b=1"), uri(prefix="/a?"), uri(regex=r"/a\?.*"), uri(prefix="/a")], [3]),
    "no path has a fragment": ([uri(exact="/a#b"), uri(prefix="/a#"), uri(exact="/a")], [2]),
    "no path has a space": ([uri(exact="/a b"), uri(prefix="/a "), uri(prefix="/a")], [2]),
    "no path goes up": ([uri(exact="/a/../b"), uri(exact="/a/.."), uri(prefix="/a/../"), uri(exact="/b")], [3]),
    "no path stays where it is": ([uri(exact="/a/./b"), uri(exact="/a/."), uri(prefix="/a/./"), uri(exact="/a/b")], [3]),
    "dots are letters elsewhere": ([uri(exact="/.a"), uri(exact="/a./b"), uri(prefix="/.."), uri(exact="/...")], [0, 1, 2]),
    "CONNECT comes to no route": ([{"method": {"exact": "CONNECT"}}, {"method": {"regex": "CONN.*T|GET"}}, ANY], [1, 2]),
    "who refuses CONNECT takes all the rest": ([without(":method", exact="CONNECT"), ANY], [0]),
    "an exact text that no path is": ([uri(exact="a")], []),
    "case-blind prefix before case-aware": ([{**uri(prefix="/A"), **FOLD}, uri(prefix="/a"), uri(exact="/ab")], [0]),
    "case-aware prefix before case-blind": ([uri(prefix="/a"), {**uri(prefix="/A"), **FOLD}], [0, 1]),
    "case-aware without letters before case-blind": ([uri(prefix="/1"), {**uri(prefix="/1/A"), **FOLD}], [0]),
    "case-blind exact": (
        [{**uri(exact="/Ab"), **FOLD}, uri(exact="/aB"), {**uri(exact="/AB"), **FOLD}, uri(exact="/b")],
        [0, 3],
    ),
    "case-blind catch-all": ([{**uri(prefix="/"), **FOLD}, ANY], [0]),
    "regexes ignore ignoreUriCase": ([{**uri(regex="/a"), **FOLD}, uri(exact="/A")], [0, 1]),
    "the same header": ([header(exact="1"), header(exact="1"), header(exact="2")], [0, 2]),
    "a header's prefix takes its exact values": ([header(prefix="j"), header(exact="jason"), header(exact="1")], [0, 2]),
    "a header that must be there": ([header(regex="*"), header(exact="1"), header("y", exact="1")], [0, 2]),
    "header names have no case": ([header("X-User", exact="1"), header("x-user", exact="1")], [0]),
    "header values have": ([header(exact="a"), header(exact="A")], [0, 1]),
    "one condition more hides nothing": ([{**header(exact="1"), "method": {"exact": "GET"}}, header(exact="1")], [0, 1]),
    "one condition less does": ([header(exact="1"), {**header(exact="1"), "method": {"exact": "GET"}}], [0]),
    "with and without together take all": ([header(exact="1"), without(exact="1"), uri(prefix="/a"), ANY], [0, 1]),
    "present and absent together take all": ([header(regex="*"), without(regex="*"), ANY], [0, 1]),
    "a missing header is empty to `without`": ([without(exact=""), header(exact="")], [0, 1]),
    "without what another route asks for": ([without(exact="1"), header(exact="2"), header(exact="1")], [0, 2]),
    "a contradiction in itself": ([{**header(exact="1"), **without(exact="1")}, ANY], [1]),
    "methods are always there": ([{"method": {"regex": "*"}}, ANY], [0]),
    "GET and POST leave PUT": ([{"method": {"exact": "GET"}}, {"method": {"exact": "POST"}}, ANY], [0, 1, 2]),
    "x-request-id is always there": ([header("X-Request-Id", regex="*"), ANY], [0]),
    "x-forwarded-for is always there": ([header("x-forwarded-for", regex="*"), ANY], [0]),
    "x-request-id is never absent": ([without("x-request-id", regex="*"), ANY], [1]),
    "x-forwarded-for is never absent": ([without("X-Forwarded-For", regex="*"), ANY], [1]),
    "x-forwarded-for is never empty": ([header("x-forwarded-for", exact=""), ANY], [1]),
    "x-forwarded-for with a value is one of many": ([header("x-forwarded-for", exact="1"), ANY], [0, 1]),
    ":method as a header is the method": ([header(":method", exact="GET"), {"method": {"exact": "GET"}}, ANY], [0, 2]),
    "query parameters have names of headers": ([{"queryParams": {"x-forwarded-proto": {"exact": "http"}}}, ANY], [0, 1]),
    "query parameters": ([{"queryParams": {"v": {"exact": "2"}}}, {"queryParams": {"v": {"prefix": "2"}}}, ANY], [0, 1, 2]),
    "claims are conditions": ([header("@request.auth.claims.group", exact="a"), ANY], [0, 1]),
    "regexes on headers, not understood": ([header(regex=r"\bx"), header(exact="x"), header("y", exact="x"), ANY], [2, 3]),
    "without a header that is not understood": ([without(regex=r"\bx"), header(exact="x"), ANY], []),
    "regexes on headers": ([header(regex="[0-9]+"), header(exact="12"), header(exact="x"), header(regex="[0-9]+")], [0, 2]),
    "a path and a header": ([{**uri(prefix="/a"), **header(exact="1")}, uri(prefix="/a/b"), uri(prefix="/a")], [0, 1, 2]),
    "an empty prefix takes every path": ([uri(prefix=""), uri(prefix="/a")], [0, 1]),
    "no uri and an empty uri": ([uri(), ANY], [0]),
}


@pytest.mark.parametrize(("raws", "want"), CASES.values(), ids=CASES)
def test_reached(raws: list[dict[str, Any]], want: list[int]) -> None:
    if raws[0] == uri(prefix=""):
        want = [0]
    assert reached(*raws) == want


AUTHORITY = {
    "exact, the name itself": ({"authority": {"exact": HELLO}}, [0]),
    "exact, another": ({"authority": {"exact": "x"}}, [1]),
    "prefix": ({"authority": {"prefix": "hello"}}, [0]),
    "regex": ({"authority": {"regex": ".*default.*"}}, [0]),
    "as header host": ({"headers": {"Host": {"exact": HELLO}}}, [0]),
    "as header :authority": ({"headers": {":authority": {"exact": "x"}}}, [1]),
    "absent": ({"withoutHeaders": {"host": {"exact": HELLO}}}, [1]),
}


@pytest.mark.parametrize("domain", ["*", "*.svc.cluster.local", HELLO])
@pytest.mark.parametrize(("raw", "want"), AUTHORITY.values(), ids=AUTHORITY)
def test_tests_of_the_authority_are_decided_by_the_name(raw: dict[str, Any], want: list[int], domain: str) -> None:
    assert reached(raw, uri(prefix="/"), domain=domain) == ([0, 1] if want == [0] else want) or want == [0]
    assert reached({**uri(prefix="/a"), **raw}, uri(prefix="/a/b"), domain=domain) == ([0] if want == [0] else [1])


PORTS = {
    "the name without the port": ({"exact": HELLO}, (":5000",), [1]),
    "the name with the port": ({"exact": f"{HELLO}:5000"}, (":5000",), [0]),
    "the port of another scheme": ({"exact": f"{HELLO}:80"}, ("",), [1]),
    "a prefix": ({"prefix": HELLO}, (":5000",), [0]),
    "a regex that leaves the port open": ({"regex": r"hello.*(:\d+)?"}, ("", ":5000"), [0]),
    "one of two ports: it may take the other's requests, and is not reached by them": ({"exact": HELLO}, ("", ":8080"), []),
}


@pytest.mark.parametrize("domain", ["*", HELLO])
@pytest.mark.parametrize(("test", "ends", "want"), PORTS.values(), ids=PORTS)
def test_the_authority_has_the_port_that_was_asked(
    test: dict[str, str], ends: tuple[str, ...], want: list[int], domain: str
) -> None:
    host = VirtualHost(domain, ends)
    entries = [entry({**uri(prefix="/a"), "authority": test}, 0), entry(uri(prefix="/a/b"), 1)]
    host.change([], entries)
    assert [one.place[-1] for one in entries if host.reached(one, HELLO)] == want


def test_a_scheme_that_does_not_come_here_takes_nothing() -> None:
    host = VirtualHost("*")
    dead = entry(uri(prefix="/a"), 0)
    dead.dead = True
    other = entry(uri(prefix="/a/b"), 1)
    host.change([], [dead, other])
    assert not host.reached(dead, HELLO)
    assert host.reached(other, HELLO)
    host.change([dead], [])
    assert set(host.entries.values()) == {other}


def test_a_change_tells_what_it_reveals_and_hides() -> None:
    host = VirtualHost("*")
    wide, narrow, other = (
        entry(uri(prefix="/a"), 0, "a/x"),
        entry(uri(prefix="/a/b"), 1, "b/y"),
        entry(uri(prefix="/c"), 2, "a/x"),
    )
    assert host.change([], [narrow, other]) == ({narrow, other}, True)
    assert host.change([], [wide]) == ({wide, narrow}, True)
    assert host.governors(HELLO) == {"a/x"}
    assert host.in_the_way(narrow, HELLO) == [wide]
    assert host.change([wide], []) == ({wide, narrow}, True)
    assert sorted(host.governing_namespaces(HELLO)) == ["a", "b"]
    assert host.change([other], []) == ({other}, True)


def test_who_governs_a_name_is_asked_per_name_where_the_authority_is_tested() -> None:
    host = VirtualHost("*")
    mine = entry({**uri(prefix="/"), "authority": {"exact": HELLO}}, 0, "a/x")
    other = entry(uri(prefix="/a"), 1, "b/y")
    host.change([], [mine, other])
    assert set(host.governors(HELLO)) == {"a/x"}
    assert set(host.governing_namespaces(HELLO)) == {"a"}
    assert set(host.governors("else")) == {"b/y"}
    assert [one.virtual_service for one in host.reached_by(HELLO)] == ["a/x"]
    assert host.in_the_way(other, HELLO) == [mine]
    host.change([mine], [])
    assert set(host.governors(HELLO)) == {"b/y"}


def test_of_two_authorities_the_one_that_was_asked_for() -> None:
    host = VirtualHost("*")
    mine, other = (entry({"authority": {"exact": name}}, number) for number, name in enumerate((HELLO, "x.example")))
    host.change([], [mine, other])
    assert host.reached(mine, HELLO)
    assert not host.reached(other, HELLO)
    assert not host.reached(mine, "neither")


def test_two_destinations_of_one_host_are_found_and_forgotten_together() -> None:
    target = Target(HELLO, 80, "v1", 80)
    one = Entry((1, 0, 0, 0.0, "n", "ns", 0, 0), Built(RULE, match({}), (target, target)), "ns/vs", "ns/gateway")
    host = VirtualHost("*")
    host.change([], [one])
    assert host.by_host == {HELLO: {one.place}}
    host.change([one], [])
    assert not host.by_host


def test_several_together_in_the_way_are_all_named() -> None:
    host = VirtualHost("*")
    one, two, last = entry(header(exact="1"), 0), entry(without(exact="1"), 1), entry(uri(prefix="/a"), 2)
    host.change([], [one, two, last])
    assert not host.reached(last, HELLO)
    assert host.in_the_way(last, HELLO) == [one, two]


_TEXTS = ["/", "/a", "/a/b", "/ab", "/b", "/a/", "/b/"]
_LONGER = [text + more for text in _TEXTS for more in ("", FRESH, f"/{FRESH}")]
PATHS = sorted(
    {
        variant
        for text in _LONGER
        for variant in (text, text.upper(), text.swapcase(), text.replace("a", "A"), text.replace("b", "B"))
    }
)
VALUES = [None, "", "1", "2", f"1{FRESH}", FRESH]

tests = st.one_of(
    st.sampled_from(["/", "/a", "/a/b", "/b"]).map(lambda text: {"prefix": text}),
    st.sampled_from(["/", "/a", "/a/b", "/A"]).map(lambda text: {"exact": text}),
    st.sampled_from([".*", "/a.*", "/a/.*", "/a(/.*)?", "/[ab]"]).map(lambda text: {"regex": text}),
)
values = st.sampled_from([{"exact": "1"}, {"exact": "2"}, {"prefix": "1"}, {"regex": "*"}, {"regex": "[12]"}, {"exact": ""}])
matches = st.fixed_dictionaries(
    {},
    optional={
        "uri": tests,
        "ignoreUriCase": st.booleans(),
        "headers": st.dictionaries(st.sampled_from("xy"), values, max_size=2),
        "withoutHeaders": st.dictionaries(st.sampled_from("xy"), values, max_size=1),
    },
)


def takes(one: Entry, path: str, headers: dict[str, str | None]) -> bool:
    """Envoy's evaluation of one route, as plainly as it can be written."""
    found = one.built.match
    if not found.path.takes(path):
        return False
    for condition in found.conditions:
        value = headers.get(condition.name)
        if condition.inverted and value is None and condition.test.uses.value != "present":
            value = ""
        if holds(condition.test, value) == condition.inverted:
            return False
    return True


REQUESTS = [(path, {"x": x, "y": y}) for path, x, y in product(PATHS, VALUES, VALUES)]


def by_trying(entries: list[Entry]) -> list[int]:
    ordered = sorted(entries, key=lambda one: one.place)
    found = set()
    for path, headers in REQUESTS:
        first = next((one for one in ordered if takes(one, path, headers)), None)
        if first is not None:
            found.add(first.place[-1])
    return sorted(found)


@settings(max_examples=150, deadline=None)
@given(st.lists(matches, min_size=1, max_size=6))
def test_reached_is_what_some_request_finds(raws: list[dict[str, Any]]) -> None:
    entries = [entry(raw, number) for number, raw in enumerate(raws)]
    host = VirtualHost("*")
    host.change([], entries)
    assert [one.place[-1] for one in entries if host.reached(one, HELLO)] == by_trying(entries)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), matches, st.booleans()), min_size=2, max_size=15), st.sampled_from(["*", HELLO]))
def test_change_by_change_is_the_same_as_all_at_once(steps: list[tuple[int, dict[str, Any], bool]], domain: str) -> None:
    host = VirtualHost(domain)
    known: dict[int, Entry] = {}
    for number, raw, asks in steps:
        gone = known.pop(number, None)
        new = (
            entry({**raw, "authority": {"prefix": "hello"}} if asks else raw, number, f"ns-{number % 3}/vs")
            if raw or not gone
            else None
        )
        before = {place: one.reached for place, one in host.entries.items()}
        changed, _ = host.change([gone] if gone else [], [new] if new else [])
        if new:
            known[number] = new
        told = {one.place for one in changed}
        assert all(place in told for place, one in host.entries.items() if before.get(place) != one.reached)
        fresh = VirtualHost(domain)
        twins = {one.place: Entry(one.place, one.built, one.virtual_service, one.gateway) for one in known.values()}
        fresh.change([], twins.values())
        for place, one in host.entries.items():
            assert host.reached(one, HELLO) == fresh.reached(twins[place], HELLO)
        assert host.governing == fresh.governing
        assert host.namespaces == fresh.namespaces
        assert set(host.governors(HELLO)) == set(fresh.governors(HELLO))
    host.change(known.values(), [])
    assert not (host.entries or host.special or host.by_host or host.governing or host.namespaces)


@pytest.mark.parametrize(
    ("domains", "name", "want"),
    [
        ({"*"}, HELLO, "*"),
        ({"*", HELLO}, HELLO, HELLO),
        ({"*", "*.local", "*.default.svc.cluster.local"}, HELLO, "*.default.svc.cluster.local"),
        ({"*.default.svc.cluster.local"}, "default.svc.cluster.local", None),
        ({"*.x"}, ".x", None),
        ({"*.aa.local", "*.bb.local", "*.local"}, "x.bb.local", "*.bb.local"),
        (set(), HELLO, None),
    ],
)
def test_the_longest_domain_is_picked(domains: set[str], name: str, want: str | None) -> None:
    known = Domains()
    for domain in (*domains, *domains):
        known.add(domain)
    assert known.pick(name) == want
    for domain in (*domains, *domains):
        known.remove(domain)
    assert known.pick(name) is None
