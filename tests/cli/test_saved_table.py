"""The saved table of a real process: what a restart answers with while there is nothing to read."""

import shutil
import signal
import time

import msgspec
import pytest

from canal_dns.app import snapshot
from tests.app.test_upgrade import BOUND, versions
from tests.process import DEMO, Process, Server, wait_for

HELLO = "helloworld.default.svc.cluster.local"
CONFIG = """\
upstreams: [127.0.0.1:9]
source: {{manifests: {manifests}}}
workers: {workers}
lameduck: 0s
listen: ["127.0.0.1:0"]
admin: "127.0.0.1:0"
snapshot: {{path: {path}, readyAfter: {ready_after}}}
"""


@pytest.fixture(params=["0", "2"])
def start(request, tmp_path):
    """Starts a server with the manifests of `tmp_path/manifests`, whether they are there or not."""

    def start(ready_after="0s", manifests=tmp_path / "manifests"):
        config = tmp_path / "canal-dns.yaml"
        config.write_text(
            CONFIG.format(manifests=manifests, workers=request.param, path=tmp_path / "table", ready_after=ready_after)
        )
        server = Server.__new__(Server)
        Process.__init__(server, "serve", "-c", str(config), cwd=tmp_path)
        return server

    shutil.copytree(DEMO, tmp_path / "manifests")
    return start


@pytest.fixture
def saved(start, tmp_path):
    """A table was saved, and the manifests are away."""
    with start() as server:
        server.ready()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert (tmp_path / "table").read_bytes().startswith(b"canal-dns-table 1 ")
    (tmp_path / "manifests").rename(tmp_path / "away")


def test_a_restart_without_anything_to_read_answers_from_the_saved_table(start, saved, tmp_path):
    with start() as server:
        server.line_with("the saved table answers")
        assert server.addresses(HELLO) == ["10.96.9.9"]
        assert server.get("/ready")[0] == 200
        plain = server.bindings()
        assert plain["snapshot"] == {"inUse": True, "names": 5}
        assert not plain["source"]["synced"]
        assert "canal_dns_snapshot_in_use 1.0" in server.get("/metrics")[1]
        (tmp_path / "away" / "helloworld.yaml").unlink()
        (tmp_path / "away").rename(tmp_path / "manifests")
        server.ready()
        wait_for(lambda: server.ask(HELLO).rcode() != 0)  # no longer bound: forwarded, to an upstream that answers nobody
        assert server.addresses("reviews.default.svc.cluster.local") == ["10.96.9.9"]
        assert not server.bindings()["snapshot"]["inUse"]


def test_it_answers_at_once_but_is_not_ready_before_the_source_had_its_chance(start, saved, tmp_path):
    with start(ready_after="1h") as server:
        server.line_with("listening on")
        assert server.addresses(HELLO) == ["10.96.9.9"]
        status, text = server.get("/ready")
        assert status == 503
        assert f"source: manifests {tmp_path / 'manifests'} was not read yet; the saved table answers" in text


def test_a_saved_table_that_cannot_be_used_is_left_aside(start, saved, tmp_path):
    (tmp_path / "table").write_bytes((tmp_path / "table").read_bytes()[:-1])
    with start() as server:
        server.error_with("the saved answer table is not used")
        assert "it is cut" in server.error_with("not used")
        server.line_with("every query is forwarded")
        assert server.get("/ready")[0] == 503


def test_a_change_is_saved_while_running(start, tmp_path):
    with start() as server:
        server.ready()
        wait_for((tmp_path / "table").exists)
        before = (tmp_path / "table").read_bytes()
        (tmp_path / "manifests" / "helloworld.yaml").unlink()
        wait_for(lambda: (tmp_path / "table").read_bytes() != before)
        assert HELLO.encode() not in (tmp_path / "table").read_bytes()
        assert 'canal_dns_snapshot_writes_total{result="ok"}' in server.get("/metrics")[1]


@versions
def test_the_table_of_the_version_before_answers_after_an_upgrade_without_anything_to_read(start, path, tmp_path):
    # As it is after an upgrade: saved by the version before, a moment ago.
    snapshot.write(tmp_path / "table", msgspec.structs.replace(snapshot.read(path), written=time.time()))
    with start(manifests="config/demo") as server:
        server.line_with("the saved table answers")
        assert all(server.addresses(name) == ["10.96.9.9"] for name in BOUND)
        assert server.get("/ready")[0] == 200
