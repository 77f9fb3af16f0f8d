"""The command line: flags become keys of the configuration, bad use ends with 2 and points to --help."""

import pytest

from canal_dns.cli import main, options


def parsed(*argv):
    return options.parser().parse_args(argv)


def test_flags_become_keys_of_the_file():
    given = parsed(
        "serve", "--listen", "127.0.0.1:1053", "--listen", "[::1]:1053", "--upstream", "10.96.0.10:53", "--manifests", "m",
        "--gateway", "ns/gw", "--cluster-domain", "k8s.example", "--ttl", "7", "--workers", "2", "--admin", "off",
    )  # fmt: skip
    settings = options.configuration(given).load()
    assert [str(address) for address in settings.listen.addresses] == ["127.0.0.1:1053", "[::1]:1053"]
    assert [str(address) for address in settings.forward.upstreams] == ["10.96.0.10:53"]
    assert settings.source.manifests == "m"
    assert [str(gateway) for gateway in settings.binding.gateways] == ["ns/gw"]
    assert settings.zone.cluster_domain == settings.binding.cluster_domain == "k8s.example"
    assert settings.zone.ttl == settings.binding.ttl == 7
    assert settings.listen.workers == 2
    assert settings.health.admin is None


@pytest.mark.parametrize(("text", "workers"), [("auto", None), ("0", 0), ("4", 4)])
def test_workers(text, workers):
    given = parsed("serve", "--upstream", "10.96.0.10", "--manifests", "m", "--workers", text)
    assert options.configuration(given).load().listen.workers == workers


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["serve", "--ttl", "soon"], "argument --ttl: invalid int value: 'soon'"),
        (["explain"], "the following arguments are required: NAME"),
        (["check"], "the following arguments are required: -c/--config"),
        (["table", "-o", "xml"], "argument -o/--output: invalid choice: 'xml'"),
    ],
)
def test_bad_use(capsys, argv, said):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--help" in error


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--manifests", "m"], "name at least one CoreDNS"),
        (["serve", "--upstream", "nonsense", "--manifests", "m"], "--upstream: upstreams[0]: 'nonsense' is not usable"),
        (["serve", "--upstream", "10.96.0.10"], "say where the objects come from"),
        (["table"], "say where to read"),
        (["check", "-c", "/nonexistent/canal-dns.yaml"], "it cannot be read"),
        (["table", "--manifests", "/nonexistent"], "/nonexistent"),
    ],
)
def test_bad_settings_are_bad_use(capsys, argv, said):
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("canal-dns 0.")


@pytest.mark.parametrize("command", ["serve", "demo", "table", "explain", "check"])
def test_every_command_explains_itself(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: canal-dns " + command)
    assert len(text.splitlines()) > 4
