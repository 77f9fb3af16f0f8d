"""Containerfile: what it says, held against the chart, and the whole of it carried out without a container runtime."""

import os
import re
import signal
import subprocess
import sys

import dns.message
import dns.query
import pytest
import yaml

from canal_dns import __version__
from canal_dns.cli import options
from manifests.tools.places import ROOT
from tests.manifests import rehearsal
from tests.manifests.containerfile import CONTAINERFILE, is_sent, pairs, stages, words
from tests.manifests.objects import only
from tests.process import DEMO, wait_for

TEXT = CONTAINERFILE.read_text()


@pytest.fixture(scope="module")
def last():
    return stages(TEXT)[-1]


def test_both_stages_have_one_base_image_and_no_name_names_a_registry():
    assert [stage.base for stage in stages(TEXT)] == ["python:3.13-slim"] * 2
    assert not re.search(r"\b(?:gcr|ghcr|quay|docker)\.io\b", TEXT)


def test_it_runs_as_the_user_of_the_pod(last):
    pod = only("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert last.last("USER") == f"{pod['runAsUser']}:{pod['runAsGroup']}"


def test_it_exposes_the_ports_of_the_pod(last):
    (container,) = only("Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {f"{port['containerPort']}/{port['protocol'].lower()}" for port in container["ports"]}
    assert set(last.last("EXPOSE").split()) == ports


def test_it_starts_what_the_pod_starts(last):
    (container,) = only("Deployment")["spec"]["template"]["spec"]["containers"]
    assert words(last.last("ENTRYPOINT")) == ["canal-dns"]
    assert words(last.last("CMD")) == container["args"]
    assert options.parser().parse_args(container["args"]).command == "serve"
    assert last.last("STOPSIGNAL") == "SIGTERM"


def test_labels_are_of_this_version(last):
    labels = pairs(last.last("LABEL"))
    assert {label.rpartition(".")[2] for label in labels} == {"title", "description", "licenses", "version", "revision"}
    assert f"VERSION={__version__}" in last.all("ARG")


def test_every_file_that_is_copied_is_there_and_is_sent():
    for text in (text for stage in stages(TEXT) for text in stage.all("COPY") if not text.startswith("--from")):
        for name in text.split()[:-1]:
            assert (ROOT / name).exists() and is_sent(name), name


@pytest.mark.parametrize(
    "path", [".git/config", "tests/process.py", ".venv/bin/python", "canal_dns/__pycache__/x.pyc", "manifests"]
)
def test_nothing_else_is_sent(path):
    assert not is_sent(path)


@pytest.mark.parametrize("text", ["FROM a\nADD x y", "FROM a\nSHELL x"])
def test_what_is_not_understood_is_an_error(text):
    with pytest.raises(ValueError, match="is not understood"):
        stages(text)


def test_the_shell_form_is_an_error():
    with pytest.raises(ValueError):
        words("canal-dns serve")


# -- carried out -------------------------------------------------------------------------------------------------------

PROBE = """
import os, sys
import canal_dns, dnslib
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
wrong = [key for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[key], 16)]
wrong += [] if os.getuid() == os.getgid() == 65532 and not os.getgroups()[1:] else ["user"]
wrong += [] if status["NoNewPrivs"].strip() == "1" else ["NoNewPrivs"]
for folder in ("/", "/etc/canal-dns", "/opt/canal-dns", os.path.dirname(canal_dns.__file__), os.path.dirname(os.__file__)):
    try:
        open(os.path.join(folder, "written"), "w").close()
        wrong.append("can write " + folder)
    except OSError:
        pass
open("/var/lib/canal-dns/written", "w").close()
wrong += [] if canal_dns.__file__.startswith("/opt/canal-dns/") else [canal_dns.__file__]
for module in list(sys.modules.values()):
    if getattr(module, "__cached__", None) and not os.path.exists(module.__cached__):
        wrong.append("not compiled: " + module.__name__)
print("probe:", wrong)
sys.exit(bool(wrong))
"""


@pytest.mark.timeout(600)
def test_its_steps_build_something_that_serves_without_rights(tmp_path):
    """What is not shown here: the base image itself, another architecture, a registry."""
    if why := rehearsal.unable():
        reason = f"Containerfile was not carried out: {why}"
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    config = tmp_path / "config"
    (config / "manifests").mkdir(parents=True)
    for path in DEMO.glob("*.yaml"):
        (config / "manifests" / path.name).write_text(path.read_text())
    settings = {
        "listen": ["127.0.0.1:0"],
        "admin": "127.0.0.1:0",
        "upstreams": ["127.0.0.1:9"],
        "source": {"manifests": "/etc/canal-dns/manifests"},
        "snapshot": {"path": "/var/lib/canal-dns/table"},
        "workers": 1,
        "lameduck": 0,
        "binding": {"settle": 0},
    }
    (config / "canal-dns.yaml").write_text(yaml.safe_dump(settings))
    (config / "probe.py").write_text(PROBE)
    config.chmod(0o755)
    log = tmp_path / "log"
    command = [
        sys.executable, "-m", "tests.manifests.rehearsal",
        "--volume", f"{config}:/etc/canal-dns", "--volume", ":/var/lib/canal-dns",
        "--before", "python -I /etc/canal-dns/probe.py",
    ]  # fmt: skip
    with log.open("w") as sink, subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT) as process:

        def said(pattern):
            assert process.poll() is None, log.read_text()
            return re.search(pattern, log.read_text())

        try:
            port = wait_for(lambda: said(r"listening on 127\.0\.0\.1:(\d+)"), 500, "listening")[1]
            wait_for(lambda: said("bindings and reasons: "), 30, "the first table")
            assert "probe: []" in log.read_text()
            query = dns.message.make_query("helloworld.default.svc.cluster.local", "A")
            assert "10.96.9.9" in str(dns.query.udp(query, "127.0.0.1", 5, int(port)).answer)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
