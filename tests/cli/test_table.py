"""`canal-dns table` and `check`: for people and for other programs, from manifests and from a running server."""

import json

import pytest

from canal_dns.cli import main
from tests.process import DEMO, Server

HELLO = "helloworld.default.svc.cluster.local"


def test_json_is_what_the_design_says(capsys):
    assert main(["table", "-o", "json", "--manifests", str(DEMO)]) == 0
    plain = json.loads(capsys.readouterr().out)
    one = next(one for one in plain["bound"] if one["name"] == HELLO)
    assert one["vips"] == ["10.96.9.9", "fd00:10:96::9"]
    assert one["gateway"] == "istio-system/internalgateway"
    assert one["routes"] == ["default/helloworld"]
    assert isinstance(one["warnings"], list)
    for skipped in plain["skipped"]:
        assert {"name", "service", "route", "reason", "message"} <= skipped.keys()
    reasons = {skipped["name"]: skipped["reason"] for skipped in plain["skipped"]}
    assert reasons["productpage.default.svc.cluster.local"] == "NoRoute"
    assert reasons["orders.default.svc.cluster.local"] == "PortNotServed"


def test_every_service_is_bound_or_skipped(capsys):
    main(["table", "-o", "json", "--manifests", str(DEMO)])
    plain = json.loads(capsys.readouterr().out)
    names = [one["name"] for one in (*plain["bound"], *plain["skipped"])]
    assert len(names) == len(set(names))
    assert "internalgateway.istio-system.svc.cluster.local" in names


def test_text(capsys):
    assert main(["table", "--manifests", str(DEMO)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("GATEWAYS (1)\nSERVICE ")
    assert "\nBOUND (5)\nNAME " in text
    assert "\x1b" not in text


def test_a_running_server_says_the_same(capsys):
    main(["table", "-o", "json", "--manifests", str(DEMO)])
    offline = json.loads(capsys.readouterr().out)
    with Server() as server:
        server.ready()
        assert main(["table", "-o", "json", "--server", server.admin]) == 0
        live = json.loads(capsys.readouterr().out)
    assert {key: live[key] for key in offline} == offline
    assert live["generation"] == 1


def test_other_gateways_and_domains(capsys):
    main(["table", "-o", "json", "--manifests", str(DEMO), "--gateway", "ns/other", "--cluster-domain", "k8s.example"])
    plain = json.loads(capsys.readouterr().out)
    assert plain["bound"] == []
    assert "helloworld.default.svc.k8s.example" in {one["name"] for one in plain["skipped"]}


def test_a_broken_file_is_a_warning_and_the_rest_is_told(tmp_path, capsys):
    for path in DEMO.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "zz.yaml").write_text("a: [\n")
    assert main(["table", "--manifests", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "zz.yaml:" in output.err
    assert HELLO in output.out


@pytest.mark.parametrize("text", ["a: [\n", "\x00\x01", "just words\n"])
def test_nothing_but_a_broken_file_is_bad_use(tmp_path, capsys, text):
    (tmp_path / "broken.yaml").write_text(text)
    assert main(["table", "--manifests", str(tmp_path)]) == 2
    assert "broken.yaml" in capsys.readouterr().err


def test_a_server_that_has_read_nothing_yet_says_so(tmp_path, capsys):
    with Server(manifests=tmp_path / "later") as server:
        server.line_with("reading ")
        admin = server.line_with("admin endpoints: ").split()[-1]
        assert main(["table", "--server", admin]) == 0
        assert "it forwards everything" in capsys.readouterr().err


def test_a_server_stands_alone(capsys):
    assert main(["table", "--server", "http://127.0.0.1:9", "--manifests", str(DEMO)]) == 2
    assert "it stands alone" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://x", "nonsense", "http://127.0.0.1:99999"])
def test_a_server_that_does_not_answer(capsys, url):
    assert main(["table", "--server", url]) == 2
    assert capsys.readouterr().err.startswith("canal-dns: ")


def test_check(tmp_path, capsys):
    good = tmp_path / "good.yaml"
    good.write_text("upstreams: [10.96.0.10:53]\nsource: {manifests: m}\n")
    assert main(["check", "-c", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: valid\n"
    good.write_text("upstreams: [127.0.0.1:1053]\nsource: {manifests: m}\n")
    assert main(["check", "-c", str(good)]) == 0
    assert "every forwarded query would loop" in capsys.readouterr().err
    good.write_text("upstreams: [127.0.0.1:1053]\nsource: {manifests: m}\nwrokers: 1\n")
    assert main(["check", "-c", str(good)]) == 2
    assert "did you mean 'workers'?" in capsys.readouterr().err
