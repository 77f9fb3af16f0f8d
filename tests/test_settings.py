"""The configuration: what each key becomes, and what is said about a key or value that cannot be used."""

import dataclasses
import ipaddress

import pytest

from canal_dns.errors import ConfigError
from canal_dns.settings import (
    AccessSettings,
    ClusterSettings,
    CrossNamespace,
    Endpoint,
    GatewayUnready,
    InternalGateway,
    LogFormat,
    PortGuard,
    Sentinel,
    Settings,
    User,
    parse,
)

MINIMAL = {
    "upstreams": ["10.96.0.10:53"],
    "gateways": [{"service": "istio-system/internalgateway"}],
    "source": {"manifests": "/etc/canal-dns/manifests"},
}


def nested(path, value):
    """{"a": {"b": value}} for "a.b"."""
    *outer, last = path.split(".")
    mapping = {last: value}
    for key in reversed(outer):
        mapping = {key: mapping}
    return mapping


def setting(settings, path):
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def net(*texts):
    return tuple(ipaddress.ip_network(text) for text in texts)


def test_what_must_be_said_is_enough():
    settings = parse(MINIMAL)
    assert settings.forward.upstreams == (Endpoint("10.96.0.10", 53),)
    assert settings.binding.gateways == (InternalGateway("istio-system", "internalgateway"),)
    assert settings.source.manifests == "/etc/canal-dns/manifests"
    assert [warning.partition(":")[0] for warning in settings.warnings] == ["access.peers"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("listen.addresses", (Endpoint("0.0.0.0", 1053),)),
        ("listen.workers", None),
        ("listen.lameduck", 15.0),
        ("listen.tcp.connections", 1000),
        ("listen.tcp.connections_per_client", 20),
        ("listen.tcp.queries_per_connection", 128),
        ("listen.tcp.in_flight", 10),
        ("listen.tcp.first_byte", 5.0),
        ("listen.tcp.message", 10.0),
        ("listen.tcp.write", 10.0),
        ("listen.tcp.idle", 15.0),
        ("zone.cluster_domain", "cluster.local"),
        ("zone.ttl", 5),
        ("forward.sentinel", Sentinel.DO),
        ("forward.budget", 1.5),
        ("forward.max_outstanding", 10_000),
        ("forward.max_outstanding_per_client", 1000),
        ("forward.discard_age", 1.9),
        ("access.peers", ()),
        ("access.error_replies_per_second", 100),
        ("access.rate_limit.per_second", 200),
        ("access.rate_limit.slip", 1),
        ("access.rate_limit.exempt", AccessSettings().allow),
        ("cache.size", 10_000),
        ("cache.serve_stale", 0.0),
        ("health.admin", Endpoint("0.0.0.0", 8080)),
        ("binding.port_guard", PortGuard.ENFORCE),
        ("binding.cross_namespace", CrossNamespace.DENY),
        ("binding.headless", False),
        ("binding.gateway_unready", GatewayUnready.FORWARD),
        ("binding.gateway_unready_after", 3.0),
        ("binding.settle", 2.0),
        ("binding.max_bindings", 20_000),
        ("binding.mesh.root_namespace", "istio-system"),
        ("binding.mesh.default_virtual_service_export_to", ("*",)),
        ("binding.mesh.revision", None),
        ("log.level", "info"),
        ("log.format", LogFormat.TEXT),
        ("log.queries", False),
        ("source.cluster", None),
        ("snapshot.path", ""),
        ("snapshot.max_age", 86400.0),
        ("snapshot.ready_after", 10.0),
    ],
)
def test_defaults_are_pinned(path, expected):
    assert setting(parse(MINIMAL), path) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ClusterSettings()),
        (None, ClusterSettings()),
        ({"kubeconfig": "f"}, ClusterSettings("f")),
        ({"kubeconfig": "f", "context": "prod"}, ClusterSettings("f", "prod")),
    ],
)
def test_a_cluster_as_the_source(given, expected):
    source = parse(MINIMAL | {"source": {"cluster": given}}).source
    assert (source.cluster, source.manifests) == (expected, "")


def test_where_the_table_is_saved():
    snapshot = parse(MINIMAL | {"snapshot": {"path": "/var/lib/canal-dns/table", "maxAge": "6h"}}).snapshot
    assert (snapshot.path, snapshot.max_age) == ("/var/lib/canal-dns/table", 21600.0)


@pytest.mark.parametrize(
    "client", ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.20.10", "::1", "fd00::1"]
)
def test_private_clients_may_ask_by_default(client):
    assert any(ipaddress.ip_address(client) in network for network in parse(MINIMAL).access.allow)


@pytest.mark.parametrize("client", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1"])
def test_public_clients_may_not(client):
    assert not any(ipaddress.ip_address(client) in network for network in parse(MINIMAL).access.allow)


@pytest.mark.parametrize(
    ("key", "value", "path", "expected"),
    [
        ("listen", ["127.0.0.1:53", "[::1]:53"], "listen.addresses", (Endpoint("127.0.0.1", 53), Endpoint("::1", 53))),
        ("listen", ["[0:0::1]:53"], "listen.addresses", (Endpoint("::1", 53),)),
        ("upstreams", ["10.96.0.10", "[fd00::10]", "10.0.0.1:54"], "forward.upstreams",
         (Endpoint("10.96.0.10", 53), Endpoint("fd00::10", 53), Endpoint("10.0.0.1", 54))),
        ("upstreamSentinel", "none", "forward.sentinel", Sentinel.NONE),
        ("clusterDomain", "Example.ORG.", "zone.cluster_domain", "example.org"),
        ("clusterDomain", "example.org", "binding.cluster_domain", "example.org"),
        ("ttl", 30, "zone.ttl", 30),
        ("ttl", 30, "binding.ttl", 30),
        ("workers", "auto", "listen.workers", None),
        ("workers", 0, "listen.workers", 0),
        ("workers", 4, "listen.workers", 4),
        ("lameduck", "500ms", "listen.lameduck", 0.5),
        ("lameduck", "2m", "listen.lameduck", 120.0),
        ("lameduck", 0, "listen.lameduck", 0.0),
        ("admin", "off", "health.admin", None),
        ("admin", False, "health.admin", None),
        ("admin", "[::]:8080", "health.admin", Endpoint("::", 8080)),
        ("gateways", [{"service": "a/b", "podLabels": {"y": "2", "x": "1"}}], "binding.gateways",
         (InternalGateway("a", "b", (("x", "1"), ("y", "2"))),)),
        ("binding.portGuard", "warn", "binding.port_guard", PortGuard.WARN),
        ("binding.crossNamespace", "allow", "binding.cross_namespace", CrossNamespace.ALLOW),
        ("binding.headless", True, "binding.headless", True),
        ("binding.gatewayUnready", "keep", "binding.gateway_unready", GatewayUnready.KEEP),
        ("binding.settle", "0s", "binding.settle", 0.0),
        ("binding.protected", ["a/b", "c/*", "*/d"], "binding.protected", (("a", "b"), ("c", "*"), ("*", "d"))),
        ("binding.maxBindings", 7, "binding.max_bindings", 7),
        ("mesh.rootNamespace", "istio", "binding.mesh.root_namespace", "istio"),
        ("mesh.scopeGatewayToNamespace", True, "binding.mesh.scope_gateway_to_namespace", True),
        ("mesh.revision", "canary", "binding.mesh.revision", "canary"),
        ("access.allow", ["10.0.0.0/8", "fd00::/8"], "access.allow", net("10.0.0.0/8", "fd00::/8")),
        ("access.peers", ["10.244.0.7"], "access.peers", net("10.244.0.7/32")),
        ("access.rateLimit.perSecond", 100, "access.rate_limit.per_second", 100),
        ("access.rateLimit.exempt", ["10.244.0.0/16"], "access.rate_limit.exempt", net("10.244.0.0/16")),
        ("cache.size", 0, "cache.size", 0),
        ("cache.serveStale", "1h", "cache.serve_stale", 3600.0),
        ("cache.serveStale", "off", "cache.serve_stale", 0.0),
        ("cache.serveStale", False, "cache.serve_stale", 0.0),
        ("limits.tcpIdle", "8s", "listen.tcp.idle", 8.0),
        ("limits.tcpConnectionsPerClient", 5, "listen.tcp.connections_per_client", 5),
        ("limits.forwardBudget", "4.5s", "forward.budget", 4.5),
        ("limits.forwardBudget", "4.5s", "forward.discard_age", 4.5),
        ("limits.discardAge", "1.5s", "forward.discard_age", 1.5),
        ("limits.maxOutstanding", 60, "forward.max_outstanding", 60),
        ("user", "auto", "process.user", None),
        ("user", "1000", "process.user", User(1000, 1000)),
        ("user", "1000:50", "process.user", User(1000, 50)),
        ("user", "0", "process.user", User(0, 0)),
        ("log.level", "debug", "log.level", "debug"),
        ("log.format", "json", "log.format", LogFormat.JSON),
        ("log.queries", True, "log.queries", True),
        ("binding", None, "binding.headless", False),
        ("ttl", None, "zone.ttl", 5),
    ],
)  # fmt: skip
def test_values(key, value, path, expected):
    assert setting(parse(MINIMAL | nested(key, value)), path) == expected


@pytest.mark.parametrize(
    ("key", "value", "where", "allowed"),
    [
        ("lissten", [], "lissten", "did you mean 'listen'?"),
        ("binding.portguard", "warn", "binding.portguard", "did you mean 'portGuard'?"),
        ("zzz", 1, "zzz", "known are"),
        ("access.rateLimit.x", 1, "access.rateLimit.x", "known are exempt, perSecond, slip"),
        ("listen", "0.0.0.0:53", "listen", "a list is needed"),
        ("listen", ["53"], "listen[0]", "an IP address and a port"),
        ("listen", ["0.0.0.0:53", "0.0.0.0"], "listen[1]", "an IP address and a port"),
        ("listen", ["0.0.0.0:65536"], "listen[0]", "an IP address and a port"),
        ("listen", ["0.0.0.0:65536"], "listen[0]", "an IP address and a port"),
        ("listen", ["::1:53"], "listen[0]", "an IP address and a port"),
        ("listen", ["[127.0.0.1]:53"], "listen[0]", "an IP address and a port"),
        ("upstreams", ["coredns:53"], "upstreams[0]", "an IP address and a port"),
        ("upstreams", ["0.0.0.0:53"], "upstreams[0]", "address of a CoreDNS"),
        ("upstreams", ["224.0.0.1:53"], "upstreams[0]", "address of a CoreDNS"),
        ("upstreams", [], "upstreams", "name at least one CoreDNS"),
        ("upstreamSentinel", "DO", "upstreamSentinel", "one of do, none"),
        ("clusterDomain", "cluster..local", "clusterDomain", "a DNS domain"),
        ("clusterDomain", "-a.b", "clusterDomain", "a DNS domain"),
        ("gateways", [], "gateways", "name at least one internal gateway"),
        ("gateways", [{"service": "a/b"}, {"service": "a/b"}], "gateways", "once"),
        ("gateways", [{}], "gateways[0].service", "NAMESPACE/NAME"),
        ("gateways", [{"service": "internalgateway"}], "gateways[0].service", "NAMESPACE/NAME"),
        ("gateways", [{"service": "*/x"}], "gateways[0].service", "NAMESPACE/NAME"),
        ("gateways", ["a/b"], "gateways[0]", "a mapping"),
        ("gateways", [{"service": "a/b", "podLabels": {"x": 1}}], "gateways[0].podLabels", "a mapping of label names"),
        ("source", {}, "source", "say where the objects come from"),
        ("source", {"cluster": {}, "manifests": "m"}, "source", "one of the two"),
        ("source", {"cluster": {"context": "prod"}}, "source.cluster.context", "name `kubeconfig` too"),
        ("source", {"cluster": {"kubeconfg": "f"}}, "source.cluster.kubeconfg", "did you mean 'kubeconfig'"),
        ("source", {"cluster": "in"}, "source.cluster", "a mapping"),
        ("snapshot", {"path": 7}, "snapshot.path", "a text"),
        ("snapshot", {"maxAge": "1s"}, "snapshot.maxAge", "from 60s"),
        ("source", {"manifests": 7}, "source.manifests", "a text"),
        ("ttl", 0, "ttl", "from 1 to 3600"),
        ("ttl", 3601, "ttl", "from 1 to 3600"),
        ("ttl", True, "ttl", "a whole number"),
        ("ttl", "5", "ttl", "a whole number"),
        ("workers", -1, "workers", "`auto`, 0"),
        ("workers", True, "workers", "`auto`, 0"),
        ("workers", 2000, "workers", "`auto`, 0"),
        ("lameduck", 15, "lameduck", "a time such as"),
        ("lameduck", "15", "lameduck", "a time such as"),
        ("lameduck", False, "lameduck", "a time such as"),
        ("lameduck", "11m", "lameduck", "from 0s to 600s"),
        ("lameduck", "-1s", "lameduck", "a time such as"),
        ("admin", "8080", "admin", "an IP address and a port"),
        ("admin", True, "admin", "an IP address and a port"),
        ("binding", [], "binding", "a mapping of keys"),
        ("binding.headless", "yes", "binding.headless", "true or false"),
        ("binding.portGuard", True, "binding.portGuard", "enforce, warn"),
        ("binding.protected", ["web"], "binding.protected[0]", "NAMESPACE/NAME"),
        ("cache.size", -1, "cache.size", "from 0 to 10000000"),
        ("cache.serveStale", "8d", "cache.serveStale", "a time such as"),
        ("cache.serveStale", "500ms", "cache.serveStale", "from 1s to 604800s"),
        ("cache.serveStale", True, "cache.serveStale", "a time such as"),
        ("cache.stale", "1h", "cache.stale", "unknown key"),
        ("access.allow", ["10.0.0.1/8"], "access.allow[0]", "a network"),
        ("access.allow", ["anywhere"], "access.allow[0]", "a network"),
        ("limits.forwardBudget", "6s", "limits.forwardBudget", "to 5s"),
        ("limits.discardAge", "1s", "limits.discardAge", "at least limits.forwardBudget (1.5s)"),
        ("limits.maxOutstanding", 70_000, "limits.maxOutstanding", "to 60000"),
        ("user", 60050, "user", "numbers in quotes"),
        ("user", "nobody", "user", "numbers in quotes"),
        ("user", "0:50", "user", '"0" stays root'),
        ("user", "4294967295", "user", "numbers in quotes"),
        ("log.level", "trace", "log.level", "debug, info, warning, error"),
        ("log.format", "xml", "log.format", "text, json"),
        ("listen", [], "listen", "name at least one address"),
        ("listen", ["127.0.0.1:53", "127.0.0.1:53"], "listen[1]", "has that address already"),
        ("listen", ["0.0.0.0:53", "127.0.0.1:53"], "listen[1]", "has that address already"),
        ("listen", ["0.0.0.0:8080"], "admin", "listen[0] (0.0.0.0:8080) has that address already"),
        ("gateways", [{"service": "*/gateway"}], "gateways[0].service", "as NAMESPACE/NAME"),
    ],
)
def test_what_cannot_be_used_names_key_value_and_what_is_allowed(key, value, where, allowed):
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL | nested(key, value))
    assert caught.value.where == where
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("mapping", [[], "text", 7])
def test_a_configuration_is_a_mapping(mapping):
    with pytest.raises(ConfigError, match="configuration"):
        parse(mapping)


def test_offline_needs_no_upstreams():
    settings = parse({key: value for key, value in MINIMAL.items() if key != "upstreams"}, offline=True)
    assert settings.forward.upstreams == ()


PEERS = {"peers": ["10.244.0.0/16"]}


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"listen": ["10.96.0.10:53"]}, "would loop"),
        ({"upstreams": ["127.0.0.1:1053"]}, "would loop"),
        ({"limits": {"forwardBudget": "2s"}}, "CoreDNS gives up"),
        ({"limits": {"forwardBudget": "2s"}, "upstreamSentinel": "none"}, None),
        ({"upstreams": ["127.0.0.1:53"]}, None),
        ({"access": {}}, "access.peers: empty"),
        ({"access": {}, "upstreamSentinel": "none"}, None),
        ({"access": PEERS | {"allow": ["10.0.0.0/8", "0.0.0.0/0"]}}, "access.allow: 0.0.0.0/0: over UDP 200 answers"),
        ({"access": PEERS | {"allow": ["2001:db8::/56", "::1/128"]}}, "access.allow: 2001:db8::/56: over UDP 200 answers"),
        ({"access": PEERS | {"allow": ["2001:db8::/56"], "rateLimit": {"exempt": ["2001:db8::/56"]}}}, None),
        ({"access": PEERS | {"allow": ["0.0.0.0/0"], "rateLimit": {"perSecond": 0}}}, None),
        ({"access": {"peers": ["2001:db8::/56"], "allow": ["10.1.0.0/16", "2001:db8:0:1::/64"]}}, None),
    ],
)
def test_what_is_hardly_meant_is_a_warning(mapping, text):
    warnings = parse(MINIMAL | {"access": PEERS} | mapping).warnings
    assert [text in warning for warning in warnings] == ([True] if text else [])


def test_settings_cannot_be_changed():
    settings = parse(MINIMAL)
    for part in (
        settings,
        *(getattr(settings, field.name) for field in dataclasses.fields(Settings) if field.name != "warnings"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


@pytest.mark.parametrize(
    ("endpoint", "text", "is_ipv6", "is_wildcard"),
    [
        (Endpoint("127.0.0.1", 53), "127.0.0.1:53", False, False),
        (Endpoint("::", 53), "[::]:53", True, True),
        (Endpoint("0.0.0.0", 1), "0.0.0.0:1", False, True),
    ],
)
def test_endpoint(endpoint, text, is_ipv6, is_wildcard):
    assert (str(endpoint), endpoint.is_ipv6, endpoint.is_wildcard) == (text, is_ipv6, is_wildcard)


def test_an_internal_gateway_is_written_as_namespace_and_name():
    assert str(InternalGateway("istio-system", "internalgateway")) == "istio-system/internalgateway"
