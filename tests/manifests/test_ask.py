"""The script of the helm test, against a running server: it passes where answers come, and says what is missing."""

import subprocess
import sys

import pytest

from manifests.tools.places import CHART
from tests.process import Server

BOUND = "helloworld.default.svc.cluster.local"


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server.ready()


def ask(server, name, path="/ready"):
    host, port = server.address
    script = (CHART / "files" / "ask.py").read_text()
    command = [sys.executable, "-I", "-c", script, host, str(port), name, server.admin + path]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_it_passes_where_the_name_is_answered_over_both_transports(server):
    said = ask(server, BOUND)
    assert (said.returncode, said.stderr) == (0, "")
    udp, tcp, ready = said.stdout.splitlines()
    assert "over UDP" in udp and "10.96.9.9" in udp
    assert "over TCP" in tcp and "10.96.9.9" in tcp
    assert ready.endswith("/ready: 200")


def test_it_fails_where_the_name_has_no_answer(server):
    """The upstream refuses: what is not bound cannot be answered."""
    said = ask(server, "no-such-service.default.svc.cluster.local")
    assert said.returncode == 1
    assert "rcode 2 and no answer" in said.stdout


def test_it_fails_where_the_server_is_not_ready(server):
    said = ask(server, BOUND, path="/no-such-path")
    assert said.returncode == 1
    assert "404" in said.stdout.splitlines()[-1]
