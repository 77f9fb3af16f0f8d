"""One kind against the fake API server: every way in which lists and watches go wrong, and the view is right in the end."""

from __future__ import annotations

import asyncio
import time

import pytest

from canal_dns.kube import kinds
from canal_dns.kube.failures import ApiError
from canal_dns.kube.reflector import Outcome, Reflector
from canal_dns.mesh.records import Skip
from canal_dns.mesh.resources import parse
from tests.kube.apiserver import TOO_LARGE, Body, Hang, Refuse, Reset, status
from tests.kube.garbage import LINES
from tests.kube.world import QUICK, World, world
from tests.mesh import builders as make


@pytest.fixture
async def w(tmp_path):
    async with world(tmp_path) as made:
        yield made


async def synced(w: World, **changes):
    """A reflector of Services that is in step, with a watch open."""
    one = w.run(w.reflector(**changes))
    await w.server.watching("services")
    await w.until(lambda: one.outcome is Outcome.LISTED)
    return one


def lists(w: World) -> int:
    """How many parts of lists were asked for, looks at the version alone (limit=1) left out."""
    return sum(request.query["limit"] != "1" for request in w.server.asked("services", "list"))


def put(w: World, *names: str) -> None:
    for name in names:
        w.server.put(make.service(name))


# Lists


async def test_a_list_comes_in_parts_and_the_watch_begins_where_it_ends(w):
    put(w, *"abcdefgh")
    one = await synced(w)
    assert w.names() == {f"default/{name}" for name in "abcdefgh"}
    lists, (watch, *_) = w.server.asked("services", "list"), w.server.asked("services", "watch")
    assert [request.query["limit"] for request in lists] == ["3", "3", "3"]
    assert [bool(request.query.get("continue")) for request in lists] == [False, True, True]
    assert all(request.query.get("resourceVersion", "") == "" for request in lists), "never older than what is known"
    assert watch.query["resourceVersion"] == str(w.server.version)
    assert watch.query["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
    assert w.told == [None]
    assert one.problem is None


async def test_an_empty_list_is_a_list(w):
    one = await synced(w)
    assert one.outcome is Outcome.LISTED
    assert w.told == [None]


async def test_a_list_that_is_compacted_between_two_parts_begins_again(w):
    put(w, *"abcdefgh")
    real = w.server._list

    async def compacting(request, writer):
        await real(request, writer)
        if request.query.get("continue") and w.server._oldest == 0:
            w.server.delete("Service", "default", "a")
            w.server.compact()

    w.server._list = compacting
    one = await synced(w)
    await w.until(w.agrees)
    assert one.problem is None
    assert w.names() == {f"default/{name}" for name in "bcdefgh"}


async def test_parts_that_are_too_large_are_asked_for_smaller(w):
    for name in "abcdefgh":
        w.server.put(make.service(name, annotations={"big": "x" * 50_000}))
    await synced(w, page=8, page_octets=120_000)
    assert w.agrees()
    assert [request.query["limit"] for request in w.server.asked("services", "list")][:2] == ["8", "1"]


async def test_a_relist_is_one_step_and_deletes_what_is_gone(w):
    """K11: deletions that were missed, and a name that came back as another object."""
    put(w, *"abcde")
    await synced(w)
    await w.server.stop()
    w.server.delete("Service", "default", "a")
    w.server.delete("Service", "default", "b")
    w.server.put(make.service("b", clusterIP="10.96.77.77"))
    put(w, "f")
    w.server.forget()
    w.seen.clear()
    await w.server.start()
    await w.until(w.agrees)
    assert w.names() == {"default/b", "default/c", "default/d", "default/e", "default/f"}
    assert w.seen == [w.names()], "nothing in between"
    assert w.count("relists_total", "Service", "expired") == 1


async def test_a_relist_without_news_tells_nobody(w):
    put(w, *"abcde")
    await synced(w)
    w.told.clear()
    w.server.compact()
    for watch in w.server.watches():
        watch.error(410)
    await w.until(lambda: w.count("relists_total", "Service", "expired"))
    await w.server.watching("services")
    assert w.told == []


async def test_a_list_that_breaks_leaves_the_view_as_it_was(w):
    put(w, *"abcdefgh")
    await synced(w)
    w.server.delete("Service", "default", "a")
    put(w, "new")
    await w.until(w.agrees)
    w.server.drip = (200, 0.001)
    w.server.forget()
    w.server.next("services", "list", *[Body(b'{"kind":"ServiceList","metadata":{"resourceVersion":"7"},"items":[')] * 3)
    for watch in w.server.watches():
        watch.error(410)
    await w.until(lambda: w.count("errors_total", "Service", "decode") >= 3)
    w.server.drip = None
    await w.server.watching("services")
    assert w.agrees()


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", {"kind": "Table"}, {"kind": "ServiceList", "metadata": {}}], ids=str)
async def test_a_list_that_is_none_is_asked_for_again(w, body):
    put(w, "a")
    w.server.next("services", "list", Body(body))
    await synced(w)
    assert w.agrees()
    assert w.count("errors_total", "Service", "decode") == 1


async def test_a_list_that_hangs_is_given_up(w):
    put(w, "a")
    w.server.next("services", "list", Hang())
    await synced(w, list_silence=0.05)
    assert w.agrees()
    assert w.count("errors_total", "Service", "timeout") == 1


# Watches


async def test_events_change_the_view(w):
    one = await synced(w)
    before = time.monotonic()
    put(w, "a", "b")
    await w.until(w.agrees)
    w.server.put(make.service("a", clusterIP="10.96.5.5"))
    w.server.delete("Service", "default", "b")
    await w.until(w.agrees)
    assert w.names() == {"default/a"}
    assert w.told[0] is None
    assert all(before <= arrived <= time.monotonic() for arrived in w.told[1:])
    assert w.count("events_total", "Service", "ADDED") == 2
    assert w.count("events_total", "Service", "MODIFIED") == 1
    assert w.count("events_total", "Service", "DELETED") == 1
    assert one.last_event == pytest.approx(time.time(), abs=5)


async def test_an_event_that_changes_nothing_tells_nobody(w):
    put(w, "a")
    await synced(w)
    w.told.clear()
    w.server.put(make.service("a", annotations={"other": "1"}))
    await w.until(lambda: w.count("events_total", "Service", "MODIFIED"))
    assert w.told == []


async def test_a_watch_that_ends_goes_on_from_the_last_version(w):
    """K5: timeoutSeconds; no list, and nothing that came meanwhile is missed."""
    await synced(w)
    put(w, "a")
    await w.until(w.agrees)
    version = w.server.version
    w.server.watches()[0].end()
    put(w, "b")
    await w.until(w.agrees)
    await w.until(lambda: len(w.server.asked("services", "watch")) == 2)
    watches = w.server.asked("services", "watch")
    assert watches[1].query["resourceVersion"] == str(version)
    assert len(w.server.asked("services", "list")) == 1


async def test_bookmarks_move_the_version(w):
    await synced(w)
    w.server.put(make.namespace("other"))
    w.server.watches()[0].bookmark()
    await w.until(lambda: w.count("events_total", "Service", "BOOKMARK"))
    w.server.compact()
    w.server._oldest -= 1
    w.server.watches()[0].end()
    await w.until(lambda: len(w.server.asked("services", "watch")) == 2)
    assert w.server.asked("services", "watch")[1].query["resourceVersion"] == str(w.server.version - 1)
    assert len(w.server.asked("services", "list")) == 1


def _gone_http(w):
    w.server.compact()
    w.server.watches()[0].end()


def _gone_event(w):
    w.server.watches()[0].error(410, "too old resource version")


def _gone_not_chunked(w):
    w.server.next("services", "watch", Body(status(410, "too old resource version")))
    w.server.watches()[0].end()


def _gone_by_reason(w):
    w.server.watches()[0].error(0, body=status(0, "The resourceVersion for the provided watch is too old", "Expired"))


def _too_large_event(w):
    w.server.watches()[0].error(504, body=TOO_LARGE)


def _too_large_http(w):
    w.server.next("services", "watch", Refuse(504, body=TOO_LARGE))
    w.server.watches()[0].end()


def _too_large_before_1_17(w):
    w.server.watches()[0].error(504, "Too large resource version: 7, current: 5")


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (_gone_http, "expired"),
        (_gone_event, "expired"),
        (_gone_not_chunked, "expired"),
        (_gone_by_reason, "expired"),
        (_too_large_event, "too_large"),
        (_too_large_http, "too_large"),
        (_too_large_before_1_17, "too_large"),
    ],
)
async def test_a_version_that_is_of_no_use_leads_to_a_list(w, happen, reason):
    """K3, K4: in every shape, at once, and nothing is lost."""
    put(w, "a", "b")
    one = await synced(w)
    put(w, "c")
    await w.until(w.agrees)
    happen(w)
    await w.until(lambda: w.count("relists_total", "Service", reason) == 1)
    put(w, "d")
    await w.until(w.agrees)
    await w.server.watching("services")
    assert one.problem is None


async def test_a_version_that_is_always_too_old_is_not_a_hot_loop(w):
    w.server.always["services/watch"] = Refuse(410)
    one = w.run(w.reflector())
    await w.until(lambda: w.count("relists_total", "Service", "expired") >= 2 and one.problem is not None)
    assert one.problem.code == "410"
    assert one._backoff._next > 0.005
    del w.server.always["services/watch"]
    put(w, "a")
    await w.until(w.agrees)


async def test_after_a_restore_of_etcd_the_list_counts(w):
    """K4: versions go back; the store is the server's, not a mixture."""
    put(w, *"abcd")
    await synced(w)
    w.server._objects["services"].clear()
    w.server.rewind(3)
    put(w, "x", "y")
    for watch in w.server.watches():
        watch.error(504, body=TOO_LARGE)
    await w.until(w.agrees)
    assert w.names() == {"default/x", "default/y"}


async def test_a_watch_of_a_version_that_is_still_to_come_is_noticed(w):
    """K4 without any error: the restored server waits for a version that it will reach some day."""
    put(w, "a")
    await synced(w, silence=0.1)
    w.server._objects["services"].clear()
    w.server.rewind(3)
    w.server.watches()[0].end()
    await w.until(lambda: len(w.server.asked("services", "watch")) == 2 and w.server.watches())
    put(w, "x")
    await w.until(w.agrees)
    assert w.count("relists_total", "Service", "silence") == 1


@pytest.mark.parametrize("half", [b"", b'{"type":"MODIFIED","object":{"kind":"Serv'], ids=["between", "within"])
async def test_a_cut_line_goes_on_from_the_last_version(w, half):
    put(w, "a")
    one = await synced(w)
    put(w, "b")
    await w.until(w.agrees)
    w.server.watches()[0].cut(half)
    put(w, "c")
    await w.until(w.agrees)
    await w.server.watching("services")
    assert lists(w) == 1
    assert w.count("errors_total", "Service", "cut") == 1
    assert one.problem is None


async def test_rst_in_a_watch(w):
    await synced(w)
    w.server.watches()[0].reset()
    put(w, "a")
    await w.until(w.agrees)
    assert lists(w) == 1


async def test_silence_ends_a_watch(w):
    """K5: a connection that is dead without saying so."""
    await synced(w, silence=0.1, silence_without_bookmarks=0.1)
    w.server.watches()[0].bookmark()
    await w.until(lambda: w.count("events_total", "Service", "BOOKMARK"))
    w.server.watches()[0].mute()
    put(w, "a")
    await w.until(w.agrees)
    assert w.count("errors_total", "Service", "timeout") >= 1
    assert w.server.asked("services", "watch")[1].query["resourceVersion"] == "100", "no list was needed"


async def test_a_server_without_bookmarks_is_given_more_time(w):
    """Missing bookmarks: its silence is no sign of death; the watch is asked to end before it counts as such."""
    await synced(w, silence=0.05, silence_without_bookmarks=330.0)
    await w.until(lambda: len(w.server.asked("services", "watch")) == 2)
    assert 300 <= int(w.server.asked("services", "watch")[1].query["timeoutSeconds"]) <= 315
    put(w, "a")
    await w.until(w.agrees)
    assert w.count("errors_total", "Service", "timeout") == 1


async def test_429_in_every_place_is_waited_for_without_a_list(w):
    """K6: Retry-After is honoured."""
    put(w, "a")
    w.server.next("services", "list", Refuse(429, retry_after=0))
    one = await synced(w)
    assert len(w.server.asked("services", "list")) == 2
    w.server.next("services", "watch", Refuse(429, "slow down", retry_after=1))
    began = time.monotonic()
    w.server.watches()[0].end()
    await w.until(lambda: one.problem is not None)
    put(w, "b")
    await w.until(w.agrees)
    assert time.monotonic() - began >= 1.0
    w.server.watches()[0].error(429)
    await w.until(lambda: len(w.server.asked("services", "watch")) == 4)
    assert len(w.server.asked("services", "list")) == 2
    assert w.count("errors_total", "Service", "429") == 3


@pytest.mark.parametrize("code", [500, 502, 503, 504])
async def test_5xx_is_tried_again(w, code):
    put(w, "a")
    w.server.next("services", "list", Refuse(code), Refuse(code, body=b"<html>bad gateway</html>"))
    await synced(w)
    w.server.next("services", "watch", Refuse(code))
    w.server.watches()[0].end()
    put(w, "b")
    await w.until(w.agrees)
    assert w.count("errors_total", "Service", str(code)) == 3
    assert len(w.server.asked("services", "list")) == 3


@pytest.mark.parametrize("code", [500, 400, 422])
async def test_a_watch_that_keeps_failing_leads_to_a_list(w, code):
    """Its version may be what is wrong, in a way that the server has other words for."""
    put(w, "a")
    await synced(w)
    w.server.next("services", "watch", *[Refuse(code)] * 3)
    w.server.watches()[0].end()
    await w.until(lambda: w.count("relists_total", "Service", "errors") == 1)
    await w.server.watching("services")


async def test_a_problem_keeps_nothing_of_what_was_read(w):
    w.server.always["services"] = Refuse(500, "broken")
    one = w.run(w.reflector())
    await w.until(lambda: one.problem is not None)
    assert one.problem.__traceback__ is one.problem.__context__ is None


async def test_500_inside_a_stream(w):
    put(w, "a")
    await synced(w)
    w.server.watches()[0].error(500, "internal error")
    put(w, "b")
    await w.until(w.agrees)
    assert len(w.server.asked("services", "list")) == 1


async def test_an_etcd_that_cannot_do_bookmarks(w):
    """cozystack#3080: every watch with bookmarks fails inside of the stream."""
    await synced(w)
    w.server.watches()[0].error(500, "etcd server: RequestWatchProgress is disabled")
    await w.until(lambda: len(w.server.asked("services", "watch")) == 2)
    put(w, "a")
    await w.until(w.agrees)
    assert "allowWatchBookmarks" not in w.server.asked("services", "watch")[1].query


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:60]))
async def test_lines_that_say_nothing_are_skipped(w, line):
    """K7: no task dies, no watch ends, nothing is taken away; each is counted once."""
    put(w, "a")
    one = await synced(w)
    w.server.watches()[0].send(line)
    put(w, "b")
    await w.until(w.agrees)
    skipped = sum(w.counters["canal_dns_source_skipped_objects_total"].values())
    assert skipped + w.count("errors_total", "Service", "decode") + w.count("events_total", "Service", "other") == bool(
        line.strip()
    )
    assert w.names() == {"default/a", "default/b"}
    assert len(w.server.asked("services")) == 2
    assert one.problem is None


async def test_an_object_that_cannot_be_used_takes_the_place_of_its_former_self(w):
    """K8."""
    put(w, "a", "b")
    await synced(w)
    broken = make.service("a")
    broken["spec"]["ports"] = "80"
    w.server.put(broken)
    await w.until(w.agrees)
    found = w.view.find("Service", ("default", "a"))
    assert isinstance(found, Skip) and found.field == "spec.ports"
    assert w.count("skipped_objects_total", "Service", "Invalid") == 1


async def test_huge_objects(w):
    """K9: 1.5 MiB in a list and in an event, in pieces."""
    w.server.put(make.service("listed", annotations={"big": "x" * 1_500_000}))
    await synced(w)
    w.server.put(make.service("seen", annotations={"big": "y" * 1_500_000, "canal-dns.io/ttl": "9"}))
    await w.until(w.agrees)
    assert len(w.server.asked("services")) == 2


async def test_a_line_beyond_all_measure_leads_to_a_list(w):
    """K9."""
    put(w, "a")
    await synced(w)
    w.server.watches()[0].send(b'{"type":"ADDED","object":{"x":"' + b"x" * (17 * 1024 * 1024))
    await w.until(lambda: w.count("relists_total", "Service", "line_too_long") == 1)
    put(w, "b")
    await w.until(w.agrees)


async def test_gzip(w):
    put(w, *"abcdefgh")
    w.server.gzip = True
    await synced(w)
    put(w, "later")
    await w.until(w.agrees)
    assert w.server.asked("services")[0].headers["accept-encoding"] == "identity"


async def test_slow_streams(w):
    put(w, *"abcd")
    w.server.drip = (7, 0.0)
    await synced(w)
    put(w, "e", "f")
    await w.until(w.agrees)


@pytest.mark.parametrize("stretch", [0.0, 60.0])
async def test_a_flood_of_events_is_told_in_few_calls_and_lets_others_work(w, stretch):
    """K10: what arrives together is told together, but for nobody to wait longer than a stretch."""
    await synced(w, stretch=stretch)
    w.told.clear()
    watch = w.server.watches()[0]
    lines = []
    watch.send = lines.append
    for number in range(2000):
        w.server.put(make.service(f"s{number % 200}", clusterIP=f"10.97.{number // 250}.{number % 250}"))
    del watch.send
    turns = 0

    def turn():
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    asyncio.get_running_loop().call_soon(turn)
    watch.send(b"".join(lines))
    await w.until(lambda: w.count("events_total", "Service", "MODIFIED") == 1800)
    await w.until(w.agrees)
    if stretch:
        assert len(w.told) < 20, "calls follow the chunks that arrive"
    else:
        assert len(w.told) > 1000
        assert turns > 1000


# Kinds that are not there


async def test_denied_at_the_start(w):
    put(w, "a")
    w.server.always["services"] = Refuse(403, "services is forbidden: User x cannot list resource")
    one = w.run(w.reflector())
    await w.until(lambda: one.outcome is Outcome.DENIED)
    assert w.told == [None]
    await w.until(lambda: len(w.server.asked("services")) > 3)
    assert w.told == [None], "once"
    assert one.problem is not None and "cannot list" in one.problem.text
    del w.server.always["services"]
    await w.until(w.agrees)
    assert one.outcome is Outcome.LISTED
    assert one.problem is None
    assert w.told == [None, None]


async def test_denied_later(w):
    """K13: the last objects stay."""
    put(w, "a")
    one = await synced(w)
    w.server.always["services"] = Refuse(403)
    w.server.watches()[0].end()
    await w.until(lambda: one.problem is not None and one.problem.code == "403")
    assert one.outcome is Outcome.LISTED
    assert w.names() == {"default/a"}
    w.server.delete("Service", "default", "a")
    del w.server.always["services"]
    await w.until(w.agrees)
    assert one.problem is None
    assert w.count("relists_total", "Service", "available") == 1


async def test_not_installed_and_installed_later(w):
    w.server.versions["networking.istio.io"] = []
    one = w.run(w.reflector(kinds.GATEWAY))
    await w.until(lambda: one.outcome is Outcome.MISSING)
    asked = {request.version for request in w.server.asked("gateways")}
    assert asked == {"v1", "v1beta1", "v1alpha3"}
    w.server.put(make.gateway(make.server(80)))
    w.server.versions["networking.istio.io"] = ["v1", "v1beta1"]
    await w.until(w.agrees)
    assert one.outcome is Outcome.LISTED


async def test_uninstalled_later(w):
    """K13: the last objects stay; other versions are tried first."""
    w.server.put(make.gateway(make.server(80)))
    w.server.versions["networking.istio.io"] = ["v1", "v1beta1"]
    one = w.run(w.reflector(kinds.GATEWAY))
    await w.server.watching("gateways")
    w.server.versions["networking.istio.io"] = ["v1beta1"]
    w.server.watches()[0].end()
    await w.until(lambda: [watch.request.version for watch in w.server.watches("gateways")] == ["v1beta1"])
    assert one.problem is None
    w.server.versions["networking.istio.io"] = []
    w.server.watches()[0].end()
    await w.until(lambda: one.problem is not None and one.problem.code == "404")
    assert one.outcome is Outcome.LISTED
    assert w.view.count("Gateway") == 1
    w.server.versions["networking.istio.io"] = ["v1alpha3"]
    await w.until(lambda: one.problem is None)
    assert w.agrees()


async def test_a_mistake_of_ours_does_not_end_the_watch(w, caplog):
    put(w, "a")
    one = await synced(w)
    real, one._told = one._told, lambda _: 1 / 0
    put(w, "b")
    await w.until(lambda: "ZeroDivisionError" in caplog.text)
    one._told = real
    put(w, "c")
    await w.until(w.agrees)


# By itself


async def test_list_raises_what_went_wrong(w):
    w.server.next("services", "list", Refuse(500, "broken"))
    with pytest.raises(ApiError, match="500: broken"):
        await w.reflector().list()


async def test_connection_refused(w):
    one = await synced(w)
    await w.server.stop()
    await w.until(lambda: one.problem is not None and one.problem.code == "connect")
    await w.server.start()
    put(w, "a")
    await w.until(w.agrees)
    lists = [request for request in w.server.asked("services", "list") if request.query["limit"] != "1"]
    assert len(lists) == 1, "K2: the watch goes on from where it was"


async def test_rst_instead_of_an_answer(w):
    put(w, "a")
    w.server.next("services", "list", *[Reset()] * 4)
    await synced(w)
    assert w.count("errors_total", "Service", "cut") >= 2


async def test_a_pause_ends_when_somebody_knows_better(w):
    w.server.next("services", "list", Refuse(429, retry_after=100))
    one = w.run(w.reflector())
    await w.until(lambda: one.problem is not None)
    await asyncio.sleep(0)
    one.wake()
    await w.server.watching("services")


async def test_objects_of_other_namespaces_are_left_alone(w):
    """Two reflectors share a kind: each one's list speaks for its own namespace."""
    w.view.apply(parse(make.pod("stranger", "elsewhere")))
    w.server.put(make.pod("mine", "istio-system"), make.pod("other", "third"))
    one = Reflector(w.api, kinds.POD, w.view, w.counters, w.tell, namespace="istio-system", timing=QUICK)
    await one.list()
    assert w.names("Pod") == {"elsewhere/stranger", "istio-system/mine"}
    w.server.delete("Pod", "istio-system", "mine")
    await one.list()
    assert w.names("Pod") == {"elsewhere/stranger"}
