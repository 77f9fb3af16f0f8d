"""`canal-dns serve` as a process: what it prints, answers, follows, refuses, and how it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import dns.flags
import dns.rcode
import pytest

from tests.process import DEMO, Process, Server, wait_for

HELLO = "helloworld.default.svc.cluster.local"
CONFIG = "upstreams: [127.0.0.1:9]\nsource: {{manifests: {manifests}}}\nworkers: 0\nlameduck: {lameduck}\nttl: {ttl}\n"


@pytest.fixture
def manifests(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "manifests")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "canal-dns.yaml"

    def write(*, manifests=DEMO, lameduck="0s", ttl=5, more=""):
        fresh = tmp_path / "fresh"
        fresh.write_text(CONFIG.format(manifests=manifests, lameduck=lameduck, ttl=ttl) + more)
        fresh.rename(path)
        return path

    return write


def started(path):
    return Process("serve", "-c", str(path), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


class Configured(Server):
    """A server whose settings come from a file, but for its ports."""

    def __init__(self, path):
        Process.__init__(self, "serve", "-c", str(path), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


def test_it_says_what_it_does_and_answers():
    with Server() as server:
        server.ready()
        assert server.lines[0].startswith("canal-dns 0.")
        assert "listening on 127.0.0.1:" in server.lines[1] and server.lines[1].endswith(", UDP and TCP")
        assert "5 names bound, " in server.line_with("names bound")
        assert server.addresses(HELLO) == ["10.96.9.9"]
        assert server.addresses(HELLO, "AAAA") == ["fd00:10:96::9"]
        assert server.addresses(HELLO, tcp=True) == ["10.96.9.9"]
        reply = server.ask(HELLO)
        assert reply.flags & dns.flags.AA and reply.answer[0].ttl == 5


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_edit_reaches_the_answers_and_loses_no_query(manifests, workers):
    with Server("--ttl", "7", manifests=manifests, workers=workers) as server:
        server.ready()
        path = manifests / "gateway.yaml"
        fresh = path.with_suffix(".new")
        fresh.write_text(path.read_text().replace("10.96.9.9", "10.96.9.10"))
        fresh.rename(path)
        seen = []

        def moved():
            seen.append(server.addresses(HELLO))
            return seen[-1] == ["10.96.9.10"]

        wait_for(moved)
        assert {tuple(one) for one in seen} <= {("10.96.9.9",), ("10.96.9.10",)}


def test_a_broken_file_keeps_what_it_had_and_is_named(manifests):
    with Server(manifests=manifests) as server:
        server.ready()
        path = manifests / "helloworld.yaml"
        path.write_text("kind: [broken\n")
        wait_for(lambda: server.bindings()["source"]["problems"])
        assert "helloworld.yaml:" in server.bindings()["source"]["problems"][0]
        assert server.addresses(HELLO) == ["10.96.9.9"]
        assert "canal_dns_source_broken_files 1.0" in server.get("/metrics")[1]
        shutil.copy(DEMO / "helloworld.yaml", path)
        wait_for(lambda: not server.bindings()["source"]["problems"])


def test_before_the_manifests_are_there_everything_is_forwarded(tmp_path):
    with Server(manifests=tmp_path / "later") as server:
        server.line_with("listening on")
        assert server.ask(HELLO).rcode() == dns.rcode.SERVFAIL  # the upstream of this test answers nobody
        shutil.copytree(DEMO, tmp_path / "later")
        server.ready()
        assert server.addresses(HELLO) == ["10.96.9.9"]


def test_admin_endpoints():
    with Server() as server:
        server.ready()
        assert server.get("/health")[0] == 200
        assert server.get("/ready")[0] == 200
        plain = server.bindings()
        assert {one["name"] for one in plain["bound"]} >= {HELLO}
        assert plain["generation"] == 1
        server.ask(HELLO)
        metrics = server.get("/metrics")[1]
        assert 'canal_dns_requests_total{proto="udp",type="A"} ' in metrics
        assert 'canal_dns_skipped_names{reason="PortNotServed"} 1.0' in metrics
        assert "canal_dns_bound_names 5.0" in metrics
        assert "canal_dns_ready 1.0" in metrics


def test_sigterm_says_not_ready_answers_through_the_lameduck_and_ends(config):
    with Configured(config(lameduck="60s")) as server:
        server.ready()
        server.signal(signal.SIGTERM)
        wait_for(lambda: server.get("/ready") == (503, "stopping\n"))
        assert server.get("/health")[0] == 200
        assert server.addresses(HELLO) == ["10.96.9.9"]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(config, number):
    with Configured(config(lameduck="0s" if number == signal.SIGTERM else "60s")) as server:
        server.ready()
        server.signal(number)
        assert server.wait() == 0
        assert not [line for line in server.errors if "ERROR" in line or "Traceback" in line]


def test_sighup_and_a_changed_file_load_the_configuration(config):
    with Configured(config(ttl=5)) as server:
        server.ready()
        config(ttl=9)
        wait_for(lambda: server.ask(HELLO).answer[0].ttl == 9)
        server.signal(signal.SIGHUP)
        wait_for(lambda: 'canal_dns_config_reloads_total{result="ok"} 2.0' in server.get("/metrics")[1])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_p16_signals_that_mean_nothing_change_nothing(workers):
    with Server(workers=workers) as server:
        server.ready()
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            server.signal(number)
        server.signal(signal.SIGHUP)
        wait_for(lambda: 'canal_dns_config_reloads_total{result="ok"} 1.0' in server.get("/metrics")[1])
        assert server.ask(HELLO).answer


def test_a_bad_configuration_is_refused_and_the_old_one_stays(config):
    with Configured(config(ttl=5)) as server:
        server.ready()
        config(ttl=0)
        assert "ttl: 0 is not usable" in server.error_with("was not taken over")
        assert server.ask(HELLO).answer[0].ttl == 5
        assert 'canal_dns_config_reloads_total{result="error"} 1.0' in server.get("/metrics")[1]


def test_policies_change_live(config):
    accounts = "accounts.team-b.svc.cluster.local"
    with Configured(config()) as server:
        server.ready()
        assert accounts not in {one["name"] for one in server.bindings()["bound"]}
        config(more="binding: {crossNamespace: allow}\n")
        wait_for(lambda: accounts in {one["name"] for one in server.bindings()["bound"]})
        assert server.addresses(accounts) == ["10.96.9.9"]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_port_in_use_is_an_error_at_once(kind, workers):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with Process(
            "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off", "--workers", workers,
            "--upstream", "127.0.0.1:9", "--manifests", str(DEMO),
        ) as process:  # fmt: skip
            assert process.wait() == 1
            transport = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
            said = f"canal-dns: cannot listen on 127.0.0.1:{port} ({transport}): Address already in use"
            assert process.errors[-1] == said
            assert not [line for line in process.errors if "Traceback" in line]


def test_the_admin_port_in_use_is_an_error_too():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Process(
            "serve", "--listen", "127.0.0.1:0", "--admin", f"127.0.0.1:{port}", "--workers", "0",
            "--upstream", "127.0.0.1:9", "--manifests", str(DEMO),
        ) as process:  # fmt: skip
            assert process.wait() == 1
            assert "Address already in use" in process.errors[-1]


def test_an_upstream_that_is_canal_dns_itself_is_warned_of():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Process(
        "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off", "--workers", "0",
        "--upstream", f"127.0.0.1:{port}", "--manifests", str(DEMO),
    ) as process:  # fmt: skip
        assert "WARNING" in process.error_with("every forwarded query would loop")
        process.line_with("names bound")


def test_json_log(config):
    with Configured(config(more="log: {format: json}\n")) as server:
        line = json.loads(server.error_with("published generation 1"))
        assert line["level"] == "info"
        assert "listening on" in json.loads(server.error_with("listening on"))["msg"]
        assert server.lines == []
        assert all(json.loads(line) for line in server.errors)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_while_it_starts_leaves_nobody_behind(workers):
    """From the first line of its log on, whatever it is about to do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off", "--workers", workers, "--upstream", "127.0.0.1:9",
        "--manifests", str(DEMO),
    ]  # fmt: skip
    with Process(*arguments) as process:
        process.error_with("access.peers")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    with Process(*arguments) as process:
        process.line_with("names bound")


def test_a_reader_that_goes_away_does_not_end_the_server():
    """`canal-dns serve | head -1`"""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "canal_dns", "serve", "--listen", "127.0.0.1:0", "--admin", "off", "--workers", "0",
         "--upstream", "127.0.0.1:9", "--manifests", str(DEMO)],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(writer)
        os.close(reader)
        errors = []
        for line in process.stderr:
            errors.append(line)
            if "published generation 1" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "Traceback" not in "".join(errors)


def test_a_change_of_the_file_while_it_starts_is_seen(config):
    path = config(ttl=5)
    with Configured(path) as server:
        server.error_with("access.peers")
        config(ttl=9)
        server.ready()
        wait_for(lambda: server.ask(HELLO).answer[0].ttl == 9)


def test_another_source_replaces_the_old_one_once_it_is_read(config, tmp_path):
    later = tmp_path / "later"
    with Configured(config()) as server:
        server.ready()
        config(manifests=later)
        server.error_with("changed: source")
        assert HELLO in {one["name"] for one in server.bindings()["bound"]}
        assert server.get("/ready")[0] == 200
        shutil.copytree(DEMO, tmp_path / "moved")
        gateway = tmp_path / "moved" / "gateway.yaml"
        gateway.write_text(gateway.read_text().replace("10.96.9.9", "10.96.9.10"))
        (tmp_path / "moved").rename(later)
        wait_for(lambda: server.addresses(HELLO) == ["10.96.9.10"])
        (later / "gateway.yaml").write_text(gateway_with(later, "10.96.9.11"))
        wait_for(lambda: server.addresses(HELLO) == ["10.96.9.11"])


def gateway_with(folder, address):
    return (folder / "gateway.yaml").read_text().replace("10.96.9.10", address)


def test_what_cannot_change_live_says_so(config):
    with Configured(config()) as server:
        server.ready()
        config(more="clusterDomain: other.example\n", manifests="/nonexistent")
        assert "it cannot change together with `source`" in server.error_with("was not taken over")
        assert server.addresses(HELLO) == ["10.96.9.9"]


def test_a_cluster_that_cannot_be_configured_is_refused_and_nothing_changes(config, tmp_path):
    path = config()
    with Configured(path) as server:
        server.ready()
        fresh = tmp_path / "fresh"
        fresh.write_text(path.read_text().replace(f"manifests: {DEMO}", "cluster: {kubeconfig: /nonexistent}") + "ttl: 9\n")
        fresh.write_text(fresh.read_text().replace("ttl: 5\n", ""))
        fresh.replace(path)
        assert "kubeconfig /nonexistent: no such file" in server.error_with("was not taken over")
        assert server.ask(HELLO).answer[0].ttl == 5
        assert server.get("/ready")[0] == 200
