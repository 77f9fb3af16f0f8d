"""The table of a source: what is saved of it, and what happens while another source is to replace it."""

import asyncio
import contextlib
import dataclasses
import gc
import shutil
import weakref

import pytest

from canal_dns.app import snapshot
from canal_dns.app.bindings import Bindings
from canal_dns.mesh.binding import Binder
from canal_dns.metrics import Counters
from canal_dns.settings import InternalGateway, SnapshotSettings, SourceSettings, parse
from tests.kube.apiserver import FakeApiServer, Hang
from tests.mesh import builders as make
from tests.process import DEMO

HELLO = "helloworld.default.svc.cluster.local"


class Plane:
    """A data plane that takes everything."""

    def publish(self, delta, generation, serial, *, full, since=None):
        pass

    def exempt(self, addresses):
        pass


@pytest.fixture
def settings(tmp_path):
    shutil.copytree(DEMO, tmp_path / "manifests")
    return parse(
        {
            "upstreams": ["127.0.0.1:9"],
            "gateways": [{"service": "istio-system/internalgateway"}],
            "source": {"manifests": str(tmp_path / "manifests")},
            "snapshot": {"path": str(tmp_path / "table")},
        }
    )


@contextlib.asynccontextmanager
async def running(settings):
    bindings = Bindings(settings, Plane(), Counters(), lambda: None)
    tasks = [asyncio.create_task(bindings.follow()), asyncio.create_task(bindings.publish())]
    try:
        yield bindings
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def of(settings, **source):
    return dataclasses.replace(settings, source=SourceSettings(**source))


async def reconfigured(bindings, settings):
    bindings.reconfigure(settings, bindings.feed_for(settings))


async def test_a_saved_table_is_not_overwritten_before_anything_was_read(settings, tmp_path):
    async with running(settings) as bindings:
        await until(lambda: bindings.synced)
        assert await bindings.saver.save()
    saved = (tmp_path / "table").read_bytes()
    # It comes to a server that cannot read its objects by a reload, too.
    away = dataclasses.replace(of(settings, manifests=str(tmp_path / "away")), snapshot=SnapshotSettings())
    async with running(away) as bindings:
        await reconfigured(bindings, dataclasses.replace(away, snapshot=settings.snapshot))
        assert await bindings.saver.save()
    assert (tmp_path / "table").read_bytes() == saved


async def test_what_the_rule_cannot_cope_with_ends_nothing(settings, tmp_path, monkeypatch):
    """One tenant's expression with a superscript digit ended the process, at every start."""
    monkeypatch.setattr("canal_dns.app.bindings.RETRY", 0.01)
    real = Binder.refresh

    def refresh(self, *arguments):
        changes = real(self, *arguments)
        if any(route.namespace == "odd" for route in self.view.virtual_services.values()):
            raise ValueError("a mistake")
        return changes

    monkeypatch.setattr(Binder, "refresh", refresh)
    odd = tmp_path / "manifests" / "odd.yaml"
    async with running(settings) as bindings:
        await until(lambda: bindings.synced)
        before = dict(bindings.publisher.live)
        assert before
        odd.write_text(f"apiVersion: {make.ISTIO}\nkind: VirtualService\nmetadata: {{name: x, namespace: odd}}\nspec: {{}}\n")
        await until(lambda: bindings._counters["canal_dns_rule_failures_total"][()])
        assert bindings.publisher.live == before
        odd.unlink()
        await until(lambda: not bindings._whole)
        assert bindings.publisher.live == before


async def test_what_is_saved_goes_by_the_source_that_it_was_made_of(settings, tmp_path):
    async with running(settings) as bindings:
        await until(lambda: bindings.synced)
        before = bindings.saver
        await reconfigured(bindings, of(settings, manifests=str(tmp_path / "away")))
        bindings.saver.changed()
        assert await before.save()
        saved = snapshot.read(tmp_path / "table")
        assert (saved.origin, HELLO in saved.names) == (f"manifests {tmp_path / 'manifests'}", True)


async def test_what_was_replaced_takes_no_memory_and_leaves_no_gauges(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("canal_dns.app.bindings.LEFT_BEHIND", 0.2)
    async with FakeApiServer() as server, running(of(settings, cluster=server.kubeconfig(tmp_path))) as bindings:
        await until(lambda: bindings.synced)
        view, binder = weakref.ref(bindings.feed.view), weakref.ref(bindings.feed._binder)
        other_rules = dataclasses.replace(bindings._settings.binding, headless=True)
        await reconfigured(bindings, dataclasses.replace(bindings._settings, binding=other_rules))
        await until(lambda: binder() is None)
        bindings.observe(bindings._counters)
        await reconfigured(bindings, settings)
        await until(lambda: view() is None)
        bindings.observe(bindings._counters)
        assert dict(bindings._counters["canal_dns_source_synced"]) == {("manifests",): 1}
        assert not bindings._counters["canal_dns_source_last_event_timestamp_seconds"]
    gc.unfreeze()


async def test_a_cluster_keeps_its_own_gateways_until_another_one_was_read(settings, tmp_path):
    async with FakeApiServer() as server:
        here = of(settings, cluster=server.kubeconfig(tmp_path))
        async with running(here) as bindings:
            await until(lambda: bindings.synced)
            server.always["services"] = Hang()
            others = dataclasses.replace(here.binding, gateways=(InternalGateway("elsewhere", "gateway"),))
            await reconfigured(bindings, dataclasses.replace(here, binding=others))
            stricter = dataclasses.replace(others, headless=True)
            await reconfigured(bindings, dataclasses.replace(here, binding=stricter))
            assert bindings.feed.settings == here.binding
            assert bindings._incoming.settings == stricter


async def test_objects_that_are_of_no_use_are_counted_by_reason(settings, tmp_path):
    broken = tmp_path / "manifests" / "broken.json"
    broken.write_text('{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "b"}, "spec": 7}')
    async with running(settings) as bindings:
        await until(lambda: bindings.synced)
        bindings.observe(bindings._counters)
        assert dict(bindings._counters["canal_dns_problems"]) == {("Invalid",): 1}
        broken.unlink()
        await until(lambda: not bindings.feed.result.problems)
        bindings.observe(bindings._counters)
        assert not bindings._counters["canal_dns_problems"]
