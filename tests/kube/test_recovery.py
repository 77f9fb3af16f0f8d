"""After an outage: pauses that it has made long do not hold up what comes after it."""

from __future__ import annotations

import pytest

from canal_dns.kube.timing import Pauses
from tests.kube.apiserver import Refuse
from tests.kube.test_reflector import put, synced
from tests.kube.world import world

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
    await w.until(w.agrees, 5)
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
    await w.until(w.agrees, 5)
