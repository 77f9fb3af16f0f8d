"""A configuration file: read strictly, flags win, errors name the place, the value and what is allowed."""

from pathlib import Path

import pytest

from canal_dns.app.config import MAX_SIZE, Configuration
from canal_dns.errors import ConfigError

GOOD = "upstreams: [127.0.0.1:53]\nsource: {manifests: m}\n"


@pytest.fixture
def load(tmp_path):
    def loaded(text, flags=None, **options):
        path = tmp_path / "canal-dns.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Configuration(path, flags or {}, **options).load()

    return loaded


def test_the_shipped_file_is_good():
    config = Path(__file__).parents[2] / "config" / "canal-dns.yaml"
    assert Configuration(config, {}).load().zone.ttl == 5


def test_the_internal_gateway_has_a_default_name(load):
    assert str(load(GOOD).binding.gateways[0]) == "istio-system/internalgateway"


def test_flags_win(load):
    assert load(GOOD + "ttl: 9\n", {"ttl": 7}).zone.ttl == 7


def test_flags_are_enough():
    flags = {"upstreams": ["127.0.0.1"], "source": {"manifests": "m"}}
    assert Configuration(None, flags).load().forward.upstreams[0].port == 53


def test_offline_needs_no_upstream(load):
    assert load("source: {manifests: m}", offline=True).forward.upstreams == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lisen: []\n" + GOOD, "lisen: [] is not usable; unknown key; did you mean 'listen'?"),
        ("ttl: 0\n" + GOOD, "ttl: 0 is not usable; a whole number from 1 to 3600 is needed"),
        ("binding: {portGuard: maybe}\n" + GOOD, "binding.portGuard: 'maybe' is not usable; one of enforce, warn is needed"),
        ("cache: {size: all}\n" + GOOD, "cache.size: 'all' is not usable; a whole number from 0 to 10000000 is needed"),
        ("ttl: 5\nttl: 6\n", ":2: \"the key 'ttl' stands twice\" is not usable; YAML is needed"),
        ("a: [\n", "is not usable; YAML is needed"),
        (b"\xff\xfe\x00", "is not usable; YAML is needed"),
        ("- a\n", "'list' is not usable; a mapping of settings is needed"),
        ("source: {manifests: m}\n", "name at least one CoreDNS"),
        ("upstreams: [coredns.kube-system]\n", "an IP address and a port is needed, such as 10.96.0.10:53"),
    ],
)
def test_bad_files(load, text, problem):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert problem in str(caught.value)
    assert "canal-dns.yaml" in str(caught.value)


def test_an_empty_file_is_no_setting(load):
    with pytest.raises(ConfigError, match="say where the objects come from"):
        load("")


def test_a_bad_flag_is_named_as_a_flag(load):
    with pytest.raises(ConfigError, match=r"^--listen: listen"):
        load(GOOD, {"listen": ["nonsense"]})


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="it cannot be read: No such file"):
        Configuration(tmp_path / "absent", {}).load()


def test_a_file_that_is_no_configuration(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(b"#" * (MAX_SIZE + 1))
    with pytest.raises(ConfigError, match="octets"):
        Configuration(path, {}).load()


def test_the_signature_follows_a_configmap(tmp_path):
    """A ConfigMap volume is a symbolic link that is swapped."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text(GOOD)
    (tmp_path / "..data").symlink_to("one")
    path = tmp_path / "c.yaml"
    path.symlink_to("..data/c.yaml")
    config = Configuration(path, {})
    before = config.signature()
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "..data")
    assert config.signature() not in (before, None)
    path.unlink()
    assert config.signature() is None
    assert Configuration(None, {}).signature() is None
