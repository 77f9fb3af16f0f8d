"""A folder of manifests as a source: what the view is told, what is reported, and what survives a bad file."""

import asyncio
import contextlib
import json
import logging
import os
import random

import pytest

from canal_dns.errors import ManifestError
from canal_dns.kube import files
from canal_dns.kube.files import ManifestSource
from canal_dns.mesh.view import View
from tests.kube.garbage import anything


class World:
    """What a view would hold, and every call that made it so."""

    def __init__(self):
        self.objects = {}
        self.calls = []

    def reset(self, kind, records):
        self.calls.append(("reset", kind))
        new = {(r.kind, r.namespace, r.name): r for r in records}
        assert all(key[0] == kind for key in new)
        old = {key: record for key, record in self.objects.items() if key[0] == kind}
        for key in old:
            del self.objects[key]
        self.objects.update(new)
        return old != new

    def apply(self, record):
        key = (record.kind, record.namespace, record.name)
        self.calls.append(("apply", *key))
        changed = self.objects.get(key) != record
        self.objects[key] = record
        return changed

    def delete(self, kind, namespace, name):
        self.calls.append(("delete", kind, namespace, name))
        return self.objects.pop((kind, namespace, name), None) is not None

    @property
    def names(self):
        return sorted(f"{namespace}/{name}" for kind, namespace, name in self.objects if kind == "Service")

    def address(self, name, namespace="shop"):
        return self.objects["Service", namespace, name].v4


def service(name, namespace="shop", address="10.96.0.1", port=80):
    lines = [
        "apiVersion: v1",
        "kind: Service",
        "metadata:",
        f"  name: {name}",
        *([f"  namespace: {namespace}"] if namespace else []),
        "spec:",
        f"  clusterIP: {address}",
        f"  clusterIPs: [{address}]",
        "  ports:",
        f"  - {{name: http, port: {port}, protocol: TCP}}",
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def world():
    return World()


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@contextlib.asynccontextmanager
async def watching(path, world, interval=0.02):
    """A source that runs; gives `until(condition)`, which fails after 10 s."""
    source = ManifestSource(path, world, interval=interval)
    changes = []
    task = asyncio.create_task(source.run(lambda _: changes.append(len(changes))))
    source.changes = changes

    async def until(condition):
        async with asyncio.timeout(10):
            while not condition():
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)

    try:
        yield source, until
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def write(path, text):
    """As an editor does: a new file takes the old one's place."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


# --- what is read ---------------------------------------------------------------------------------------------------------


def load(path, world):
    source = ManifestSource(path, world)
    source.load()
    return source


def test_a_folder_is_read_recursively(folder, world):
    (folder / "a.yaml").write_text(service("a"))
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "b.yml").write_text(service("b"))
    (folder / "deep" / "deeper" / "C.YAML").write_text(service("c"))
    (folder / "d.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "d", "namespace": "shop"}})
    )
    (folder / "README.md").write_text("kind: [")
    (folder / "e.yaml~").write_text(service("e"))
    source = load(folder, world)
    assert {"shop/a", "shop/b", "shop/c"} <= set(world.names)
    assert "shop/e" not in world.names
    assert source.synced and source.broken == ()


def test_one_file_is_enough(folder, world):
    (folder / "objects").write_text(service("a") + "---\n" + service("b"))
    load(folder / "objects", world)
    assert world.names == ["shop/a", "shop/b"]


def test_hidden_files_and_folders_are_left_out(folder, world):
    (folder / "a.yaml").write_text(service("a"))
    (folder / ".b.yaml").write_text(service("b"))
    (folder / ".git").mkdir()
    (folder / ".git" / "c.yaml").write_text(service("c"))
    load(folder, world)
    assert world.names == ["shop/a"]


def test_each_kind_is_reset_once_even_when_empty(folder, world):
    (folder / "a.yaml").write_text(service("a"))
    load(folder, world)
    kinds = [call[1] for call in world.calls]
    assert {call[0] for call in world.calls} == {"reset"}
    assert len(kinds) == len(set(kinds))
    assert {"Service", "EndpointSlice", "Pod", "Namespace", "Gateway", "VirtualService", "DestinationRule"} <= set(kinds)


def test_objects_without_a_namespace_are_in_default(folder, world):
    (folder / "a.yaml").write_text(
        service("a", namespace=None) + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    )
    load(folder, world)
    assert world.names == ["default/a"]
    assert [(kind, name) for kind, _, name in world.objects if kind == "Namespace"] == [("Namespace", "shop")]


def test_kinds_that_nobody_watches_are_passed_over(folder, world):
    (folder / "a.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n" + service("a"))
    source = load(folder, world)
    assert world.names == ["shop/a"]
    assert source.skips == ()


def test_objects_that_are_not_understood_are_reported_and_the_others_served(folder, world):
    (folder / "a.yaml").write_text(service("a") + "---\napiVersion: v1\nkind: Service\nmetadata: {name: 7, namespace: [x]}\n")
    source = load(folder, world)
    assert world.names == ["shop/a"]
    (skip,) = source.skips
    assert skip.place == f"{folder}/a.yaml:12"
    assert skip.kind == "Service" and skip.reason and skip.message
    assert source.skipped_total == {("Service", skip.reason): 1}
    assert source.counts == {"Service": 1}


BAD_PORTS = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: 7}\n"


async def test_an_object_that_became_unusable_is_not_served_from_memory(folder):
    view = View()
    (folder / "a.yaml").write_text(service("a"))
    source = ManifestSource(folder, view)
    source.load()
    assert view.services
    (folder / "a.yaml").write_text(BAD_PORTS)
    await source.poll(lambda _: None)
    assert not view.services
    assert [(skip.namespace, skip.name) for skip in view.skips()] == [("shop", "a")]
    assert source.counts == {}
    assert "spec.ports" in str(source.skips[0])


def test_objects_without_a_name_do_not_take_each_others_place(folder, world):
    (folder / "a.yaml").write_text("apiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: Service\n")
    source = load(folder, world)
    assert [skip.reason for skip in source.skips] == ["Invalid", "Invalid"]
    assert world.objects == {}


def test_the_first_file_has_an_object_that_stands_in_two(folder, world):
    (folder / "b.yaml").write_text(service("a", address="10.96.0.2"))
    (folder / "a.yaml").write_text(service("a", address="10.96.0.1") + "---\n" + service("a", address="10.96.0.3"))
    source = load(folder, world)
    assert world.address("a") == ("10.96.0.1",)
    assert [(skip.place, skip.reason) for skip in source.skips] == [
        (f"{folder}/a.yaml:12", "Duplicate"),
        (f"{folder}/b.yaml:1", "Duplicate"),
    ]
    assert f"{folder}/a.yaml:1" in source.skips[0].message


def test_links_are_followed_and_each_real_file_is_read_once(folder, world):
    real = folder / "real"
    real.mkdir()
    (real / "a.yaml").write_text(service("a"))
    (folder / "link.yaml").symlink_to(real / "a.yaml")
    (folder / "again").symlink_to(real)
    (real / "loop").symlink_to(folder)
    source = load(folder, world)
    assert world.names == ["shop/a"]
    assert source.skips == () and source.broken == ()


def test_a_mounted_configmap(folder, world):
    version = folder / "..2026_01_01"
    version.mkdir()
    (version / "a.yaml").write_text(service("a"))
    (folder / "..data").symlink_to("..2026_01_01")
    (folder / "a.yaml").symlink_to("..data/a.yaml")
    source = load(folder, world)
    assert world.names == ["shop/a"]
    assert source.skips == ()


# --- what cannot be read --------------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there(folder, world):
    with pytest.raises(ManifestError, match="no such file"):
        load(folder / "nothing", world)
    assert world.calls == []


def test_a_folder_without_manifests(folder, world):
    with pytest.raises(ManifestError, match="no manifests here"):
        load(folder, world)


def test_nothing_but_broken_files(folder, world):
    (folder / "a.yaml").write_text("kind: [")
    with pytest.raises(ManifestError, match=r"a\.yaml"):
        load(folder, world)
    assert world.calls == []


def test_a_broken_file_beside_a_good_one(folder, world):
    (folder / "a.yaml").write_text(service("a") + "---\nkind: {\n---\n")
    (folder / "b.yaml").write_text(service("b"))
    source = load(folder, world)
    assert world.names == ["shop/b"]
    (error,) = source.broken
    assert (error.path, error.line) == (f"{folder}/a.yaml", 13)


def test_files_that_are_no_files(folder, world):
    (folder / "b.yaml").write_text(service("b"))
    os.mkfifo(folder / "a.yaml")
    (folder / "c.yaml").symlink_to("nowhere")
    (folder / "d").symlink_to("nowhere")
    source = load(folder, world)
    assert world.names == ["shop/b"]
    assert [(error.path, error.problem) for error in source.broken] == [
        (f"{folder}/a.yaml", "not a file"),
        (f"{folder}/c.yaml", "no such file or directory"),
    ]


def test_a_file_above_the_limit_is_not_read(folder, world):
    (folder / "b.yaml").write_text(service("b"))
    with (folder / "a.yaml").open("wb") as big:
        big.truncate(files.MAX_FILE + 1)
    source = load(folder, world)
    assert world.names == ["shop/b"]
    assert "at most 16777216" in source.broken[0].problem


def test_a_big_object_is_read(folder, world):
    note = "x" * 1_500_000
    (folder / "a.yaml").write_text(service("a").replace("metadata:", f"metadata:\n  annotations: {{note: {note}}}"))
    load(folder, world)
    assert world.names == ["shop/a"]


def test_ten_thousand_random_objects_raise_nothing(folder, world):
    chance = random.Random(7)
    (folder / "a.json").write_text(json.dumps({"kind": "List", "items": [anything(chance) for _ in range(10_000)]}))
    source = ManifestSource(folder, world)
    source.load()
    assert source.broken == ()
    assert source.skips, "some of these were not understood"
    assert sum(source.counts.values()) > 0, "and some were"


# --- what is watched ------------------------------------------------------------------------------------------------------


async def test_changes_reach_the_view_by_difference(folder, world):
    for name in "abc":
        (folder / f"{name}.yaml").write_text(service(name))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        world.calls.clear()
        write(folder / "b.yaml", service("b", address="10.96.0.9"))
        await until(lambda: world.address("b") == ("10.96.0.9",))
        (folder / "c.yaml").unlink()
        await until(lambda: world.names == ["shop/a", "shop/b"])
        write(folder / "d.yaml", service("d"))
        await until(lambda: world.names == ["shop/a", "shop/b", "shop/d"])
        assert world.calls == [
            ("apply", "Service", "shop", "b"),
            ("delete", "Service", "shop", "c"),
            ("apply", "Service", "shop", "d"),
        ]
        assert len(source.changes) == 4


async def test_a_change_that_changes_nothing_is_not_told(folder, world):
    (folder / "a.yaml").write_text(service("a"))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        write(folder / "a.yaml", "# a comment\n" + service("a"))
        write(folder / "b.yaml", service("b"))
        await until(lambda: "shop/b" in world.names)
        assert [call[0] for call in world.calls if call[0] != "reset"] == ["apply"]


async def test_load_then_run_resets_once(folder, world):
    (folder / "a.yaml").write_text(service("a"))
    source = load(folder, world)
    changes = []
    resets = list(world.calls)
    await source.poll(lambda _: changes.append(1))
    write(folder / "a.yaml", service("a", address="10.96.0.2"))
    await source.poll(lambda _: changes.append(1))
    assert world.calls == [*resets, ("apply", "Service", "shop", "a")]
    assert changes == [1]


async def test_a_broken_file_keeps_its_last_good_objects(folder, world):
    write(folder / "a.yaml", service("a"))
    write(folder / "b.yaml", service("b"))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        write(folder / "a.yaml", service("a", address="10.96.0.2")[:-20] + "\n{{{")
        await until(lambda: source.broken)
        assert source.broken[0].path == f"{folder}/a.yaml"
        write(folder / "b.yaml", service("b", address="10.96.0.9"))
        await until(lambda: world.address("b") == ("10.96.0.9",))
        assert world.address("a") == ("10.96.0.1",), "kept"
        write(folder / "a.yaml", service("a", address="10.96.0.2"))
        await until(lambda: world.address("a") == ("10.96.0.2",))
        assert source.broken == ()


async def test_a_file_that_is_written_in_two_halves(folder, world):
    text = service("a") + "---\n" + service("b")
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        with (folder / "a.yaml").open("w") as file:
            file.write(text[: len(text) - 30] + "[")
            file.flush()
            await until(lambda: source.broken)
            assert world.names == []
            file.seek(len(text) - 30)
            file.write(text[len(text) - 30 :])
        await until(lambda: world.names == ["shop/a", "shop/b"])
        assert source.broken == ()


async def test_a_deleted_broken_file_takes_its_objects_away(folder, world):
    write(folder / "a.yaml", service("a"))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        write(folder / "a.yaml", "kind: [")
        await until(lambda: source.broken)
        (folder / "a.yaml").unlink()
        await until(lambda: not world.names)
        assert source.broken == ()


async def test_a_write_within_one_tick_of_the_clock_is_seen(folder, world, monkeypatch):
    """The second write leaves size and times as they were: only reading again finds it."""
    path = folder / "a.yaml"
    path.write_text(service("a", address="10.96.0.1"))
    source = load(folder, world)
    frozen = files.Signature.of(path.stat())
    monkeypatch.setattr(files.Signature, "of", lambda status: frozen)
    path.write_text(service("a", address="10.96.0.2"))
    await source.poll(lambda _: None)
    assert world.address("a") == ("10.96.0.2",)
    path.write_text(service("a", address="10.96.0.3"))
    await source.poll(lambda _: None)
    assert world.address("a") == ("10.96.0.2",), "once is enough: by now the clock has moved"


async def test_the_earlier_file_gives_an_object_back(folder, world):
    write(folder / "a.yaml", service("x", address="10.96.0.1"))
    write(folder / "b.yaml", service("x", address="10.96.0.2"))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        assert [skip.reason for skip in source.skips] == ["Duplicate"]
        (folder / "a.yaml").unlink()
        await until(lambda: world.address("x") == ("10.96.0.2",))
        assert source.skips == ()
        assert source.skipped_total == {("Service", "Duplicate"): 1}


async def test_a_configmap_update_swaps_a_link(folder, world):
    for number in (1, 2):
        version = folder / f"..version_{number}"
        version.mkdir()
        (version / "a.yaml").write_text(service("a", address=f"10.96.0.{number}"))
        os.utime(version / "a.yaml", (1, 1))
    (folder / "..data").symlink_to("..version_1")
    (folder / "a.yaml").symlink_to("..data/a.yaml")
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        assert world.address("a") == ("10.96.0.1",)
        (folder / "..new").symlink_to("..version_2")
        (folder / "..new").rename(folder / "..data")
        await until(lambda: world.address("a") == ("10.96.0.2",))
        assert all(call[0] != "delete" for call in world.calls), "no gap"


async def test_a_folder_that_is_replaced_is_followed(folder, world):
    (folder / "now").mkdir()
    (folder / "now" / "a.yaml").write_text(service("a"))
    (folder / "next").mkdir()
    (folder / "next" / "b.yaml").write_text(service("b"))
    async with watching(folder / "now", world) as (source, until):
        await until(lambda: source.synced)
        (folder / "now").rename(folder / "before")
        await until(lambda: source.broken)
        assert world.names == ["shop/a"], "kept"
        assert "its last objects are kept" in source.broken[0].problem
        (folder / "next").rename(folder / "now")
        await until(lambda: world.names == ["shop/b"])
        assert source.broken == ()


async def test_a_folder_below_that_cannot_be_listed_keeps_its_objects(folder, world, monkeypatch):
    (folder / "below").mkdir()
    (folder / "below" / "a.yaml").write_text(service("a"))
    (folder / "b.yaml").write_text(service("b"))
    async with watching(folder, world) as (source, until):
        await until(lambda: source.synced)
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("below"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refuse)
            await until(lambda: source.broken)
            write(folder / "b.yaml", service("b", address="10.96.0.2"))
            await until(lambda: world.address("b") == ("10.96.0.2",))
            assert world.names == ["shop/a", "shop/b"]
        await until(lambda: not source.broken)
        assert world.names == ["shop/a", "shop/b"]


async def test_a_path_that_appears_later(folder, world):
    async with watching(folder / "later", world) as (source, until):
        await until(lambda: source.broken)
        assert not source.synced and world.calls == []
        (folder / "later").mkdir()
        await until(lambda: source.synced)
        assert source.changes == [0] and world.names == [], "an empty folder is an answer, too"
        write(folder / "later" / "a.yaml", service("a"))
        await until(lambda: world.names == ["shop/a"])


async def test_nothing_is_published_while_every_file_is_broken(folder, world):
    write(folder / "a.yaml", "kind: [")
    async with watching(folder, world) as (source, until):
        await until(lambda: source.broken)
        assert not source.synced
        write(folder / "a.yaml", service("a"))
        await until(lambda: world.names == ["shop/a"])


async def test_edits_all_the_time_end_in_the_last_state(folder, world):
    chance = random.Random(3)
    async with watching(folder, world, interval=0.001) as (source, until):
        await until(lambda: source.synced)
        state = {}
        for _ in range(300):
            name = chance.choice("abcdef")
            if chance.random() < 0.2:
                (folder / f"{name}.yaml").unlink(missing_ok=True)
                state.pop(name, None)
            else:
                state[name] = f"10.96.0.{chance.randrange(1, 250)}"
                (folder / f"{name}.yaml").write_text(service(name, address=state[name]))
            await asyncio.sleep(0)
        await until(lambda: {name: world.address(name) for _, _, name in world.objects} == {n: (a,) for n, a in state.items()})
        assert source.broken == ()


async def test_the_loop_is_not_held_up_by_parsing(folder, world):
    (folder / "a.yaml").write_text("---\n".join(service(f"s{number}") for number in range(2000)))
    source = ManifestSource(folder, world)
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    task = asyncio.create_task(beat())
    await source.poll(lambda _: None)
    task.cancel()
    assert len(world.names) == 2000
    assert beats >= 10


# --- what is told ---------------------------------------------------------------------------------------------------------


async def test_the_log_has_one_line_per_change_and_repeats_nothing(folder, world, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger=files.__name__)
    (folder / "a.yaml").write_text(service("a"))
    source = load(folder, world)
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: 1 files, 1 objects read"]
    caplog.clear()

    write(folder / "a.yaml", "kind: [")
    for _ in range(5):
        await source.poll(lambda _: None)
    write(folder / "a.yaml", "\n\nkind: [")
    await source.poll(lambda _: None)
    assert len(caplog.records) == 1, "another problem of the same file waits for its turn"
    monkeypatch.setattr(files, "COMPLAINT_INTERVAL", 0.0)
    await source.poll(lambda _: None)
    await source.poll(lambda _: None)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    caplog.clear()

    write(folder / "a.yaml", service("a") + "---\n" + service("b"))
    await source.poll(lambda _: None)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{folder}/a.yaml: 2 objects read in ")
    caplog.clear()

    (folder / "a.yaml").unlink()
    await source.poll(lambda _: None)
    assert [record.getMessage() for record in caplog.records] == [f"{folder}/a.yaml: gone"]
    caplog.clear()

    for number in range(30):
        (folder / f"{number}.yaml").write_text(service(f"s{number}"))
    await source.poll(lambda _: None)
    assert len(caplog.records) == files.LOG_LINES + 1
    assert caplog.records[-1].getMessage() == f"{folder}: 20 more like these"


async def test_names_cannot_forge_log_lines(folder, world, caplog):
    caplog.set_level(logging.INFO, logger=files.__name__)
    (folder / "a\nb.yaml").write_text("kind: [")
    (folder / "b.yaml").write_text('apiVersion: v1\nkind: Service\nmetadata: {name: "x\\ny", namespace: shop}\n')
    load(folder, world)
    assert len(caplog.records) >= 2
    assert all("\n" not in record.getMessage() for record in caplog.records)
