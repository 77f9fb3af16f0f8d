"""After an outage: pauses that it has made long do not hold up what comes after it."""

from __future__ import annotations

import asyncio
import time

import pytest

from canal_dns.kube.cluster import ApiServer
from canal_dns.kube.failures import ApiError
from canal_dns.kube.timing import Pauses
from canal_dns.settings import ClusterSettings
from tests.kube.apiserver import Refuse
from tests.kube.test_reflector import put, synced
from tests.kube.world import EVERYTHING, world
from tests.mesh import builders as make

SHORT_THEN_FOR_EVER = Pauses(first=0.005, longest=1000.0, factor=1_000_000.0, jitter=0.0)
"""One failure costs nothing; whoever waits after the next one waits longer than any test."""


@pytest.fixture
async def w(tmp_path):
    async with world(tmp_path) as running:
        yield running


async def _server_away(w, one):
    await w.server.stop()
    await w.until(lambda: one.problem is not None and one.problem.code == "connect" and one._backoff._next > 100)


async def test_a_version_that_expired_in_an_outage_leads_to_a_list_at_once(w):
    """K3: though the last list is not old, nothing was heard since, and many attempts have failed."""
    put(w, "a")
    one = await synced(w, pauses=SHORT_THEN_FOR_EVER, brief=1.0)
    await _server_away(w, one)
    put(w, "b")
    w.server.compact()
    await w.server.start()
    one.wake()
    await w.until(w.agrees)
    await w.until(lambda: w.server.watches("services"))
    assert w.count("relists_total", "Service", "expired") == 1
    assert one.problem is None


async def test_a_failure_after_the_server_came_back_is_a_first_one(w):
    put(w, "a")
    one = await synced(w, pauses=SHORT_THEN_FOR_EVER)
    await _server_away(w, one)
    put(w, "b")
    w.server.next("services", "watch", Refuse(503))
    await w.server.start()
    one.wake()
    await w.until(w.agrees)


async def test_outages_far_from_each_other_do_not_add_up(w):
    """K11: control planes are replaced one server at a time, and every time the watches break."""
    put(w, "a")
    one = await synced(w, pauses=Pauses(first=0.05, longest=1000.0, factor=2.0, jitter=0.0), brief=10.0)
    for name in "bcdef":
        # It has lived longer than the pause to come.
        opened = time.monotonic()
        await w.until(lambda opened=opened: time.monotonic() - opened > 0.3)
        w.server.watches()[0].reset()
        put(w, name)
        await w.until(w.agrees)
        await w.server.watching("services")
        assert one._backoff._next == 0.1


async def test_an_etcd_that_was_restored_while_the_server_was_away(w):
    """K4: a watch from a version that the server will only reach some day would say nothing, or leave out what was undone."""
    put(w, "a")
    one = await synced(w)
    put(w, "undone", "undone-too")
    await w.until(w.agrees)
    await w.server.stop()
    await w.until(lambda: one.problem is not None and one.problem.code == "connect")
    for name in ("undone", "undone-too"):
        w.server.delete("Service", "default", name)
    w.server.rewind(2)
    await w.server.start()
    one.wake()
    await w.until(w.agrees)
    assert w.count("relists_total", "Service", "restored") == 1
    put(w, "later")
    await w.until(w.agrees)


async def test_an_etcd_that_was_restored_behind_a_server_that_is_back_at_once(w):
    """K4: nobody was told that the server was away; all that is seen of it is that the watch broke."""
    put(w, "a")
    await synced(w)
    put(w, "undone")
    await w.until(w.agrees)
    w.server.delete("Service", "default", "undone")
    w.server.rewind(2)
    for watch in w.server.watches():
        watch.muted = True
        watch.reset()
    await w.until(w.agrees)
    assert w.count("relists_total", "Service", "restored") == 1
    assert w.count("errors_total", "Service", "connect") == 0


async def test_a_server_that_was_away_is_asked_for_its_version_and_no_more(w):
    put(w, *"abcde")
    one = await synced(w)
    await w.server.stop()
    await w.until(lambda: one.problem is not None and one.problem.code == "connect")
    put(w, "f")
    await w.server.start()
    one.wake()
    await w.until(w.agrees)
    assert [request.query["limit"] for request in w.server.asked("services", "list")] == ["3", "3", "1"]
    assert w.count("relists_total", "Service", "restored") == 0


# A server that is only starting refuses everybody: it has not read yet who may do what (kube-apiserver's RBAC).


def _starting(server):
    server.always["*"] = Refuse(403, "forbidden: clusterrole not found")


def _ready(server):
    del server.always["*"]


async def _in_step(w, **changes):
    w.server.put(*make.BASE, make.gateway(make.server(80)), make.pod(), make.endpoints(), make.namespace("default"))
    source = w.run(w.source(**changes))
    await w.until(lambda: source.synced)
    await w.server.watching(*EVERYTHING)
    return source


async def test_what_a_starting_server_refuses_is_asked_again_when_it_is_ready(w):
    source = await _in_step(w, retry=1000.0)
    await w.server.stop()
    await w.until(source.problems)
    _starting(w.server)
    put(w, "later")
    await w.server.start()
    await w.until(lambda: str(source.problems()).count("clusterrole not found") == len(EVERYTHING))
    assert w.view.count("Service") > 0, "the last objects stay"
    _ready(w.server)
    await w.until(w.agrees)
    await w.until(lambda: source.problems() == [])


async def test_a_server_that_starts_again_unseen_is_asked_again_too(w):
    """Behind a load balancer no connection is refused: watches break, and the next server is one that has just begun."""
    source = await _in_step(w, retry=1000.0)
    _starting(w.server)
    for watch in w.server.watches():
        watch.end()
    put(w, "later")
    await w.until(lambda: str(source.problems()).count("clusterrole not found") == len(EVERYTHING))
    assert str(source.problems()).count("cannot be reached") == 0
    _ready(w.server)
    await w.until(w.agrees)
    await w.until(lambda: source.problems() == [])


async def test_a_starting_server_is_not_believed_that_a_kind_may_not_be_read(w):
    """Namespaces and EndpointSlices can be done without: half of what there is would be published."""
    w.server.put(*make.BASE, make.namespace("default"), make.endpoints())
    w.server.always["readyz"] = Refuse(500)
    for kind in ("namespaces", "endpointslices"):
        w.server.always[kind] = Refuse(403, "clusterrole not found")
    source = w.run(w.source(retry=1000.0))
    await w.until(lambda: len(source.problems()) == 2)
    await w.until(lambda: len([one for one in w.server.requests if one.path == "/readyz"]) > 3)
    assert not source.synced
    assert w.told == []
    w.server.always.clear()
    await w.until(lambda: source.synced)
    assert w.view.unavailable == set()
    assert w.agrees()


async def test_where_nobody_may_ask_whether_it_is_ready_refusals_count_after_a_while(w):
    w.server.put(*make.BASE)
    w.server.always["readyz"] = Refuse(403)
    w.server.always["namespaces"] = Refuse(403)
    source = w.run(w.source(retry=1000.0, doubt=0.2))
    await w.until(source.problems)
    assert not source.synced
    await w.until(lambda: source.synced)
    assert w.view.unavailable == {"Namespace"}


async def test_a_ready_server_is_not_asked_again_and_again(w):
    w.server.always["namespaces"] = Refuse(403)
    source = await _in_step_without(w, "namespaces")
    for number in range(20):
        put(w, f"a{number}")
        await w.until(lambda number=number: f"default/a{number}" in w.names())
        await asyncio.sleep(0.01)
    assert source.problems()
    assert len([one for one in w.server.requests if one.path == "/readyz"]) <= 2


async def _in_step_without(w, *resources):
    source = w.run(w.source(retry=1000.0))
    await w.until(lambda: source.synced)
    await w.server.watching(*(one for one in EVERYTHING if one not in (*resources, "pods")))
    return source


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_hangs_up_in_a_handshake_is_told_of_in_words(tmp_path, loop):
    """A load balancer that still takes connections: the error has neither number nor text."""
    module = pytest.importorskip(loop)
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        problem = runner.run(_hung_up(tmp_path / "kubeconfig"))
    assert problem.code == "connect"
    assert problem.text


async def _hung_up(kubeconfig):
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    kubeconfig.write_text(
        f"apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}'}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
    )
    api = ApiServer(ClusterSettings(str(kubeconfig)))
    try:
        with pytest.raises(ApiError) as problem:
            async with api.get("/api/v1/services", {}, silence=5):
                pass
        return problem.value
    finally:
        await api.close()
        listener.close()
        await listener.wait_closed()
