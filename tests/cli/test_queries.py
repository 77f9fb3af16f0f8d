"""`canal-dns queries`: what a cluster's pods ask, in exact shares, for any source that `table` reads."""

from collections import Counter

import pytest

from canal_dns.app import queries
from canal_dns.cli import main
from canal_dns.errors import ConfigError
from tests.process import DEMO, Server

NAMES = queries.Names(
    tuple(f"bound-{number}.shop.svc.k8s.example" for number in range(50)),
    tuple(f"plain-{number}.web.svc.k8s.example" for number in range(50)),
    "k8s.example",
)


def asked(mix, count, seed=1, names=NAMES):
    return [tuple(line.split()) for line in queries.lines(names, queries.read_mix(mix), count, seed)]


def kind(name, names=NAMES):
    if name in names.bound:
        return "bound"
    if name in names.unbound:
        return "unbound"
    return "missing" if name.startswith("no-such-service") and name.count(".") == 4 else "search"


def printed(capsys, *arguments):
    assert main(["queries", "--manifests", str(DEMO), *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "mix", [queries.DEFAULT_MIX, "bound=1", "search=100", "unbound=50,search=50", "missing=1,bound=1", "bound=3,search=97"]
)
def test_shares_are_exact(mix):
    lines = asked(mix, 4000)
    shares = {kind: round(share * 4000) for kind, share in queries.read_mix(mix).items()}
    assert Counter(kind(name) for name, _ in lines) == shares


def test_every_name_is_asked_for_both_families():
    lines = asked(queries.DEFAULT_MIX, 2000)
    for (name, first), (same, second) in zip(lines[::2], lines[1::2], strict=True):
        assert (name, first, second) == (same, "A", "AAAA")


def test_a_walk_of_the_search_list_stands_before_its_name():
    names = [name for name, _ in asked("bound=25,search=75", 400)[::2]]
    walks = 0
    for at, name in enumerate(names):
        if kind(name) == "search" and name.endswith(".svc.k8s.example.k8s.example"):
            target = name.removesuffix(".k8s.example")
            assert names[at - 1] == f"{target}.svc.k8s.example"
            assert names[at - 2] in {f"{target}.{space}.svc.k8s.example" for space in NAMES.namespaces}
            assert target in names[at + 1 :]
            walks += 1
    assert walks == 50


def test_the_seed_decides():
    assert asked(queries.DEFAULT_MIX, 500) == asked(queries.DEFAULT_MIX, 500)
    assert asked(queries.DEFAULT_MIX, 500, seed=2) != asked(queries.DEFAULT_MIX, 500)


def test_what_is_missing_does_not_exist():
    taken = queries.Names(("no-such-service-0001.shop.svc.cluster.local",), (), "cluster.local")
    lines = {name for name, _ in asked("missing=1", 4000, names=taken)}
    assert len(lines) > 500
    assert not lines & set(taken.bound)


def test_names_that_are_too_long_for_a_suffix_are_not_tried():
    long = f"{'a' * 63}.{'b' * 63}.svc.{'c' * 60}.{'d' * 30}"
    names = queries.Names((long,), (), f"{'c' * 60}.{'d' * 30}")
    lines = asked("search=100", 100, names=names)
    assert all(len(name) <= 253 for name, _ in lines)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("mix", [queries.DEFAULT_MIX, "search=1", "bound=1,unbound=1"])
def test_count_is_kept(mix, count):
    assert len(asked(mix, count)) == count


@pytest.mark.parametrize("text", ["", "bound", "bound=x", "bound=-1", "bound=nan", "bund=1", "bound=1,bound=2", "bound=0"])
def test_a_mix_that_is_none(text):
    with pytest.raises(ConfigError, match="--mix"):
        queries.read_mix(text)


def test_of_a_table():
    plain = {
        "bound": [{"name": "b.ns.svc.k8s.example"}, {"name": "new.ns.svc.k8s.example"}],
        "skipped": [
            {"name": "s.ns.svc.k8s.example", "service": "ns/s"},
            {"name": "gone.ns.svc.k8s.example", "service": ""},
            {"name": "www.example.com", "service": "ns/x"},
        ],
        "settling": {"new.ns.svc.k8s.example": 1.5},
    }
    found = queries.names_of(plain)
    assert found.bound == ("b.ns.svc.k8s.example",)
    assert found.unbound == ("new.ns.svc.k8s.example", "s.ns.svc.k8s.example")
    assert found.cluster_domain == "k8s.example"
    assert queries.names_of({"bound": [], "skipped": []}).cluster_domain == "cluster.local"


def test_of_the_demo(capsys):
    lines = printed(capsys, "--count", "1000")
    assert len(lines) == 1000
    assert {line.split()[1] for line in lines} == {"A", "AAAA"}
    bound = {"helloworld", "reviews", "details", "ratings", "welcome", "promo"}
    assert sum(line.count(".") == 4 and line.split(".")[0] in bound for line in lines) >= 600


def test_other_domains(capsys):
    assert all("k8s.example" in line for line in printed(capsys, "--cluster-domain", "k8s.example", "--mix", "missing=1"))


def test_a_running_server_gives_the_same(capsys):
    offline = printed(capsys, "--count", "200")
    with Server() as server:
        server.ready()
        assert main(["queries", "--server", server.admin, "--count", "200"]) == 0
        assert capsys.readouterr().out.splitlines() == offline


def test_a_kind_that_nothing_can_give_is_a_warning_and_the_rest_shares(capsys):
    arguments = ["queries", "--manifests", str(DEMO), "--gateway", "ns/other", "--count", "100"]
    assert main([*arguments, "--mix", "bound=60,unbound=40"]) == 0
    output = capsys.readouterr()
    assert "no queries of kind bound: no name is bound" in output.err
    assert len(output.out.splitlines()) == 100
    assert main([*arguments, "--mix", "bound=60"]) == 2
    assert "no name is bound" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mix", "bund=1"], "--mix"),
        (["--count", "0"], "--count"),
        (["--count", "many"], "--count"),
        (["--server", "http://127.0.0.1:9"], "it stands alone"),
    ],
)
def test_bad_use(capsys, arguments, text):
    assert main(["queries", "--manifests", str(DEMO), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_source_is_needed(capsys):
    assert main(["queries"]) == 2
    assert "--manifests" in capsys.readouterr().err
