"""`canal-dns demo`: what a newcomer runs first."""

import shutil
import signal
import socket

import dns.message
import dns.query
import pytest

from canal_dns.app import demo
from canal_dns.errors import ConfigError
from tests.process import DEMO, Process, wait_for


def test_once_asks_one_question_of_each_sort():
    with Process("demo", "--once") as process:
        assert process.wait() == 0, process.lines
        text = "\n".join(process.lines)
        assert "helloworld.default.svc.cluster.local. 5 IN A 10.96.9.9" in text
        assert "helloworld.default.svc.cluster.local. 5 IN AAAA fd00:10:96::9" in text
        assert "productpage.default.svc.cluster.local. 5 IN A 10.96.1.10" in text
        assert ";; NXDOMAIN, no answer" in text
        assert "WRONG" not in text
        assert process.errors == []


def test_it_answers_until_it_is_told_to_stop_and_follows_edits(tmp_path):
    manifests = shutil.copytree(DEMO, tmp_path / "manifests")
    with Process("demo", "--manifests", str(manifests), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0") as process:
        port = int(process.line_with("canal-dns listens on 127.0.0.1:").split()[3].rpartition(":")[2])
        process.line_with("Ctrl-C ends it.")

        def answer(name):
            reply = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=port, timeout=5)
            return [str(record) for rrset in reply.answer for record in rrset]

        assert answer("helloworld.default.svc.cluster.local") == ["10.96.9.9"]
        (manifests / "helloworld.yaml").write_text(
            (manifests / "helloworld.yaml").read_text().replace("gateways: [istio-system/internalgateway]", "gateways: [mesh]")
        )
        wait_for(lambda: answer("helloworld.default.svc.cluster.local") == ["10.96.1.1"])
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.errors == []


def test_a_terminal_that_goes_away_ends_it():
    with Process("demo", "--listen", "127.0.0.1:0", "--admin", "off") as process:
        process.line_with("Ctrl-C ends it.")
        process.signal(signal.SIGHUP)
        assert process.wait() == 0


def test_one_service_is_skipped_for_each_common_reason():
    with Process("demo", "--once") as process:
        process.wait()
        text = "\n".join(process.lines)
        for reason in (
            "PortNotServed", "HostNotServed", "TargetNotFound", "OptedOut", "CrossNamespace", "GatewayNotFound",
            "Headless", "Shadowed", "Protected",
        ):  # fmt: skip
            assert f" {reason} " in text


def test_a_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Process("demo", "--listen", f"127.0.0.1:{taken.getsockname()[1]}") as process,
    ):
        assert process.wait() == 1
        assert "Address already in use" in process.errors[0]


def test_the_manifests_of_an_installation_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site-packages" / "canal_dns" / "app" / "demo.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ConfigError, match="name a folder"):
        demo.shipped_manifests()
    (tmp_path / "share" / "canal-dns" / "demo").mkdir(parents=True)
    assert demo.shipped_manifests() == tmp_path / "share" / "canal-dns" / "demo"
