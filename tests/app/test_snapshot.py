"""The saved table: whole or not there, checked before it is used, and left aside with a reason otherwise."""

import asyncio
import dataclasses
import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal_dns.app import snapshot
from canal_dns.app.saving import Saver
from canal_dns.app.snapshot import Entry, Snapshot, Wanted
from canal_dns.dns.table import Addresses
from canal_dns.errors import SnapshotError
from canal_dns.metrics import Counters
from canal_dns.settings import SnapshotSettings
from tests.process import wait_for

GATEWAY = "istio-system/internalgateway"
HELLO = "helloworld.default.svc.cluster.local"
SAVED = Snapshot(
    written=1_000_000.0,
    version="0.2.0",
    origin="the cluster of the pod",
    cluster_domain="cluster.local",
    names={HELLO: Entry(("10.96.9.9",), ("fd00::9",), 5, GATEWAY)},
    exempt=("10.244.9.9",),
)
WANTED = Wanted("the cluster of the pod", "cluster.local", frozenset({GATEWAY}), max_age=3600.0)
NOW = SAVED.written + 60
ANSWER = Addresses((bytes((10, 96, 9, 9)),), (b"\xfd" + bytes(14) + b"\x09",), 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table"


def changed(**fields):
    return Snapshot(**{field: getattr(SAVED, field) for field in SAVED.__struct_fields__} | fields)


def test_what_was_written_is_read_again(path):
    snapshot.write(path, SAVED)
    assert snapshot.read(path) == SAVED
    assert snapshot.usable(SAVED, path, WANTED, NOW) == {HELLO: ANSWER}
    assert [one.name for one in path.parent.iterdir()] == ["table"]  # no draft stays behind


def test_there_need_be_none(path):
    assert snapshot.read(path) is None


def test_what_is_answered_is_what_is_saved():
    assert snapshot.mapping_of({HELLO: ANSWER}, {HELLO: GATEWAY}) == SAVED.names


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "no table of canal-dns"),
        (lambda data: b"\x00\xff" + data, "no table of canal-dns"),
        (lambda data: data.replace(b"canal-dns-table 1", b"canal-dns-table 2"), "its format is 2, this version reads format 1"),
        (lambda data: data[:-10], "it is cut"),
        (lambda data: data + b"\n", "it is cut"),
        (lambda data: data.replace(b"10.96.9.9", b"10.96.9.8"), "checksum"),
    ],
)
def test_a_spoilt_file_is_left_aside(path, spoil, reason):
    snapshot.write(path, SAVED)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(SnapshotError, match=reason):
        snapshot.read(path)


@given(st.data())
def test_no_bit_can_be_turned_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bits") / "table"
    snapshot.write(path, SAVED)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with pytest.raises(SnapshotError):
        snapshot.read(path)


def test_contents_of_another_shape_are_left_aside(path):
    snapshot.write(path, {"names": []})
    with pytest.raises(SnapshotError, match="not understood"):
        snapshot.read(path)


def test_a_huge_file_is_not_even_read(path, monkeypatch):
    monkeypatch.setattr(snapshot, "MAX_SIZE", 10)
    snapshot.write(path, SAVED)
    with pytest.raises(SnapshotError, match="at most 10"):
        snapshot.read(path)


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (changed(written=SAVED.written - 7200), "2.0 h old, snapshot.maxAge is 1 h"),
        (changed(written=NOW + 3600), "comes from the future"),
        (changed(origin="kubeconfig /other"), "source is 'kubeconfig /other'"),
        (changed(cluster_domain="k8s.example"), "cluster domain is 'k8s.example'"),
        (changed(names={HELLO: Entry(("0.0.0.0",), (), 5, GATEWAY)}), "unspecified"),
        (changed(names={HELLO: Entry(("::1",), (), 5, GATEWAY)}), "loopback"),
        (changed(names={HELLO: Entry(("fd00::1",), (), 5, GATEWAY)}), "cannot be an answer"),
        (changed(names={HELLO: Entry((), (), 5, GATEWAY)}), "no address"),
        (changed(names={HELLO: Entry(("10.96.9.9",), (), -1, GATEWAY)}), "a TTL that is none"),
        (changed(names={"www.example.org": Entry(("10.96.9.9",), (), 5, GATEWAY)}), "no Service of cluster.local"),
        (changed(names={f"{'x' * 64}.default.svc.cluster.local": Entry(("10.96.9.9",), (), 5, GATEWAY)}), "64 octets"),
    ],
)
def test_what_does_not_fit_is_left_aside(path, saved, reason):
    with pytest.raises(SnapshotError, match=reason):
        snapshot.usable(saved, path, WANTED, NOW)


def test_names_of_a_gateway_that_is_not_configured_any_more_are_left_out(path):
    assert snapshot.usable(SAVED, path, dataclasses.replace(WANTED, gateways=frozenset({"a/b"})), NOW) == {}


def test_a_clock_that_is_a_little_behind_does_no_harm(path):
    assert snapshot.usable(SAVED, path, WANTED, SAVED.written - 60) == {HELLO: ANSWER}


def test_where_it_cannot_be_written_is_told(tmp_path):
    with pytest.raises(SnapshotError, match="it cannot be written: No such file or directory"):
        snapshot.write(tmp_path / "nowhere" / "table", SAVED)


def test_a_disk_that_refuses_everything_is_told(path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(SnapshotError, match="Read-only file system"):
        snapshot.write(path, SAVED)


@pytest.mark.parametrize("path", ["/", "/dev/null/table"])
def test_a_path_that_is_no_place_for_a_file_is_told(path):
    with pytest.raises(SnapshotError, match="it cannot be written"):
        snapshot.write(Path(path), SAVED)


def test_a_failed_write_leaves_the_file_before_as_it_was(path, monkeypatch):
    snapshot.write(path, SAVED)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.os, "fsync", full)
    with pytest.raises(SnapshotError, match="No space left"):
        snapshot.write(path, changed(version="9"))
    assert snapshot.read(path) == SAVED
    assert [one.name for one in path.parent.iterdir()] == ["table"]


# -- saving while running ------------------------------------------------------------------------------------------------


@pytest.fixture
def counters():
    return Counters()


def saver(path, counters, taken=lambda: SAVED, max_age=86400.0, is_current=lambda: True):
    return Saver(SnapshotSettings(path=str(path), max_age=max_age), taken, counters, is_current)


async def test_nothing_is_written_before_anything_has_changed(path, counters):
    assert await saver(path, counters).save()
    assert not path.exists()


async def test_a_change_is_written_and_counted(path, counters):
    keeper = saver(path, counters)
    running = asyncio.create_task(keeper.run())
    keeper.changed()
    await asyncio.to_thread(wait_for, lambda: counters["canal_dns_snapshot_writes_total"][("ok",)])
    assert snapshot.read(path) == SAVED
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_failure_is_counted_told_once_and_tried_again(tmp_path, counters, caplog):
    path = tmp_path / "later" / "table"
    keeper = saver(path, counters)
    keeper.changed()
    assert not await keeper.save()
    assert not await keeper.save()
    assert counters["canal_dns_snapshot_writes_total"][("error",)] == 2
    assert [record.message for record in caplog.records if "not saved" in record.message] == [
        f"the answer table was not saved: {path}: it cannot be written: No such file or directory"
    ]
    path.parent.mkdir()
    assert await keeper.save()
    assert snapshot.read(path) == SAVED


async def test_another_path_gets_what_holds_now(tmp_path, counters):
    keeper = saver(tmp_path / "one", counters)
    keeper.reconfigure(SnapshotSettings(path=str(tmp_path / "two")))
    assert await keeper.save()
    assert snapshot.read(tmp_path / "two") == SAVED


async def test_a_file_stays_as_it_is_while_there_is_nothing_to_put_in_its_place(path, counters):
    snapshot.write(path, SAVED)
    keeper = saver(path, counters, lambda: None)
    keeper.changed()
    assert await keeper.save()
    assert snapshot.read(path) == SAVED
    assert counters["canal_dns_snapshot_writes_total"][("ok",)] == 0


@pytest.mark.parametrize("current", [True, False])
async def test_a_table_that_does_not_change_is_as_old_as_it_was_last_known_to_be_true(path, counters, current):
    asked = asyncio.Event()
    keeper = saver(path, counters, max_age=0.24, is_current=lambda: asked.set() or current)
    running = asyncio.create_task(keeper.run())
    await asyncio.wait_for(asked.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await keeper.save()
    assert path.exists() == current


async def test_without_a_path_nothing_happens(counters):
    keeper = Saver(SnapshotSettings(), lambda: SAVED, counters, lambda: True)
    keeper.changed()
    assert await keeper.save()
    assert keeper.restore(WANTED) is None


async def test_answers_come_with_those_whom_they_are_not_for(path, counters, monkeypatch):
    monkeypatch.setattr("canal_dns.app.saving.time.time", lambda: NOW)
    snapshot.write(path, SAVED)
    assert saver(path, counters).restore(WANTED) == ({HELLO: ANSWER}, frozenset({"10.244.9.9"}))


async def test_a_file_that_cannot_be_used_is_told_with_the_reason(path, counters, caplog):
    path.write_text("something else")
    assert saver(path, counters).restore(WANTED) is None
    assert "the saved answer table is not used" in caplog.text
    assert "no table of canal-dns" in caplog.text


async def test_the_mode_of_the_file_lets_nobody_else_write(path):
    snapshot.write(path, SAVED)
    assert not stat.S_IMODE(path.stat().st_mode) & 0o022
