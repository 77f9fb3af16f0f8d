"""Tables that other versions saved: each in snapshots/ under the name of the version that wrote it, and read for ever.

A release adds its own file if its `snapshot.FORMAT` or what is in it differs; none is ever changed or taken away:

    canal-dns serve --manifests config/demo --upstream 127.0.0.1:9 with `snapshot.path`, then SIGTERM
"""

import hashlib
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from canal_dns import __version__
from canal_dns.app import snapshot
from canal_dns.app.snapshot import Wanted
from canal_dns.dns.table import Addresses
from canal_dns.errors import SnapshotError

FOLDER = Path(__file__).with_name("snapshots")
SAVED = sorted(FOLDER.iterdir())
WANTED = Wanted("manifests config/demo", "cluster.local", frozenset({"istio-system/internalgateway"}), max_age=86400.0)
VIP = Addresses((socket.inet_aton("10.96.9.9"),), (socket.inet_pton(socket.AF_INET6, "fd00:10:96::9"),), 5)
BOUND = {f"{name}.default.svc.cluster.local" for name in ("helloworld", "details", "welcome", "ratings", "reviews")}

versions = pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)


def file_of(body: bytes, number: str = str(snapshot.FORMAT)) -> bytes:
    """A whole file: whatever is wrong with it, it is not cut and its checksum is right."""
    return f"{snapshot.MAGIC} {number} {hashlib.sha256(body).hexdigest()} {len(body)}\n".encode() + body


def body_of(path: Path) -> bytes:
    return path.read_bytes().partition(b"\n")[2]


@versions
def test_what_any_version_saved_is_answered(path):
    saved = snapshot.read(path)
    assert saved.version == path.name
    assert snapshot.usable(saved, path, WANTED, saved.written + 60) == dict.fromkeys(BOUND, VIP)
    assert saved.exempt == ("10.244.9.9",)


@versions
def test_what_any_version_saved_is_checked_as_ever(path):
    saved = snapshot.read(path)
    with pytest.raises(SnapshotError, match="h old"):
        snapshot.usable(saved, path, WANTED, saved.written + 2 * WANTED.max_age)
    with pytest.raises(SnapshotError, match="its source is"):
        snapshot.usable(saved, path, replace(WANTED, origin="the cluster of the pod"), saved.written + 60)


def test_this_version_writes_what_is_kept_of_it(tmp_path):
    """Another form needs a file of its own; this one fails when it is forgotten."""
    kept = FOLDER / __version__ if (FOLDER / __version__).exists() else SAVED[-1]
    snapshot.write(tmp_path / "table", snapshot.read(kept))
    assert (tmp_path / "table").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("number", ["0", str(snapshot.FORMAT + 1), "1.1", "one", ""])
def test_a_format_of_another_time_is_left_aside_with_the_reason(tmp_path, number):
    (tmp_path / "table").write_bytes(file_of(body_of(SAVED[-1]), number))
    with pytest.raises(SnapshotError, match=rf"its format is {number}, this version reads format {snapshot.FORMAT}"):
        snapshot.read(tmp_path / "table")


def test_what_a_newer_version_of_the_same_format_says_besides_is_not_heard(tmp_path):
    """The way back: a table of N+1 that only says more than N knows is a table for N."""
    plain = json.loads(body_of(SAVED[-1]))
    plain["later"] = {"anything": [1]}
    for entry in plain["names"].values():
        entry.append("more")
    (tmp_path / "table").write_bytes(file_of(json.dumps(plain).encode()))
    saved = snapshot.read(tmp_path / "table")
    assert snapshot.usable(saved, tmp_path / "table", WANTED, saved.written + 60) == dict.fromkeys(BOUND, VIP)


@pytest.mark.parametrize("key", ["written", "version", "origin", "cluster_domain", "names", "exempt"])
def test_one_that_says_less_is_left_aside(tmp_path, key):
    plain = json.loads(body_of(SAVED[-1]))
    del plain[key]
    (tmp_path / "table").write_bytes(file_of(json.dumps(plain).encode()))
    with pytest.raises(SnapshotError, match=f"not understood.*{key}"):
        snapshot.read(tmp_path / "table")
