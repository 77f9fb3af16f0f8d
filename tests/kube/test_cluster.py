"""The API server as it is reached: configuration, credentials that change, TLS, and what the libraries must not do."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from canal_dns import __version__
from canal_dns.errors import ClusterError
from canal_dns.kube import cluster
from canal_dns.kube.cluster import ApiServer
from canal_dns.kube.failures import ApiError
from canal_dns.settings import ClusterSettings
from tests.e2e.certificates import Authority
from tests.kube.apiserver import FakeApiServer, Hang, Refuse, Reset


@pytest.fixture
async def server():
    async with FakeApiServer() as running:
        yield running


def authority(folder, name):
    (folder / name).mkdir()
    return Authority(folder / name)


@pytest.fixture
async def secure(tmp_path):
    async with FakeApiServer(authority(tmp_path, "first")) as running:
        yield running


async def ask(api, path="/api/v1/services", silence=5.0):
    """Status and body."""
    async with api.get(path, {}, silence=silence) as reply:
        return reply.status, b"".join([chunk async for chunk in reply.chunks()])


@pytest.fixture
async def opened():
    """Clients to be closed."""
    made = []
    yield lambda *arguments, **more: made.append(ApiServer(*arguments, **more)) or made[-1]
    for api in made:
        await api.close()


# Requests


async def test_a_get(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    status, body = await ask(api)
    assert status == 200
    assert json.loads(body)["kind"] == "ServiceList"
    assert api.place == server.url
    request = server.requests[0]
    assert request.headers["user-agent"] == f"canal-dns/{__version__}"
    assert request.headers["accept"] == "application/json"
    assert request.headers["authorization"] == "Bearer token"


async def test_connections_are_used_again(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    for _ in range(5):
        await ask(api)
    assert server.connections == 1


async def test_errors_are_replies(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    server.next("services", "list", Refuse(429, "slow", retry_after=7), Refuse(500))
    async with api.get("/api/v1/services", {}, silence=5.0) as reply:
        assert (reply.status, reply.retry_after) == (429, 7.0)
        assert json.loads(await reply.error())["message"] == "slow"
    async with api.get("/api/v1/services", {}, silence=5.0) as reply:
        assert (reply.status, reply.retry_after) == (500, None)


async def test_failures_are_ours(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    server.next("services", "list", *[Reset()] * 3)
    with pytest.raises(ApiError) as found:
        await ask(api)
    assert found.value.code == "cut"
    server._next.clear()
    server.next("services", "list", Hang())
    with pytest.raises(ApiError) as found:
        await ask(api, silence=0.05)
    assert found.value.code == "timeout"
    await server.stop()
    with pytest.raises(ApiError) as found:
        await ask(api)
    assert (found.value.code, found.value.text) == ("connect", "Connection refused")


async def test_a_body_that_is_cut(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    with pytest.raises(ApiError) as found:
        async with api.get("/api/v1/services", {"watch": "1", "resourceVersion": "100"}, silence=5.0) as reply:
            server.watches()[0].cut(b"half a li")
            async for _ in reply.chunks():
                pass
    assert found.value.code == "cut"


async def test_the_kernel_asks_whether_the_other_side_is_there(server, tmp_path, opened):
    api = opened(server.kubeconfig(tmp_path))
    async with api.get("/api/v1/services", {"watch": "1", "resourceVersion": "100"}, silence=5.0) as reply:
        raw = reply._response.connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [raw.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name, _ in cluster.KEEPALIVE]
        assert found == [30, 10, 3]


async def test_a_flood_waits_in_the_kernel_not_here(server, tmp_path, opened):
    """K10: what cannot be read yet is not held in our memory, which a flood would leave full of holes."""
    api = opened(server.kubeconfig(tmp_path))
    async with api.get("/api/v1/services", {"watch": "1", "resourceVersion": "100"}, silence=5.0) as reply:
        (watch,) = server.watches()
        for _ in range(64):
            watch.send(b"x" * 2**18)
        # Nobody reads: it stops when the kernel's buffers are full, too.
        await server.until(
            lambda: watch.writer.transport.get_write_buffer_size() and reply._response.content._protocol._reading_paused
        )
        held = reply._response.content._size
        assert held <= 2**19
        watch.end()
        assert sum([len(chunk) async for chunk in reply.chunks()]) == 64 * 2**18


async def test_proxies_of_the_environment_are_not_asked(server, tmp_path, opened, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    status, _ = await ask(opened(server.kubeconfig(tmp_path)))
    assert status == 200


async def test_redirects_are_not_followed(server, tmp_path, opened):
    server.next("services", "list", Refuse(302, body=b""))
    status, _ = await ask(opened(server.kubeconfig(tmp_path)))
    assert status == 302


# Credentials


async def test_tls(secure, tmp_path, opened):
    status, _ = await ask(opened(secure.kubeconfig(tmp_path)))
    assert status == 200


async def test_a_certificate_of_somebody_else_is_not_accepted(secure, tmp_path, opened):
    settings = secure.kubeconfig(tmp_path)
    other = await FakeApiServer(authority(tmp_path, "other")).__aenter__()
    api = opened(ClusterSettings(settings.kubeconfig))
    text = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "kubeconfig").write_text(text.replace(str(secure.port), str(other.port)))
    with pytest.raises(ApiError, match="certificate") as found:
        await ask(api)
    assert found.value.code == "connect"
    await other.stop()


async def test_a_cluster_whose_certificate_is_not_to_be_looked_at(secure, tmp_path, opened):
    settings = secure.kubeconfig(tmp_path)
    written = json.loads((tmp_path / "kubeconfig").read_text())
    written["clusters"][0]["cluster"] = {"server": secure.url, "insecure-skip-tls-verify": True}
    (tmp_path / "kubeconfig").write_text(json.dumps(written))
    assert (await ask(opened(settings)))[0] == 200


async def test_a_token_that_is_gone_for_a_while(secure, tmp_path, opened, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    account = secure.account(tmp_path / "account")
    api = opened(ClusterSettings(), account=account)
    await ask(api)
    (account / "token").unlink()
    assert api.outdated()
    with pytest.raises(ApiError, match="Service token file does not exist") as found:
        await ask(api)
    assert found.value.code == "config"
    secure.account(account)
    assert (await ask(api))[0] == 200


async def test_a_pod(secure, tmp_path, opened, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    secure.bearer = "abc\n"
    account = secure.account(tmp_path / "account")
    secure.bearer = "abc"
    api = opened(ClusterSettings(), account=account)
    assert api.place == secure.url
    assert (await ask(api))[0] == 200


async def test_a_token_that_is_rotated(secure, tmp_path, opened, monkeypatch):
    """K12: read again when the file changes, before anybody is refused."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    account = secure.account(tmp_path / "account")
    api = opened(ClusterSettings(), account=account)
    await ask(api)
    assert not api.outdated()
    secure.bearer = "second"
    assert (await ask(api))[0] == 401, "the file is not there yet"
    secure.account(account)
    assert api.outdated()
    before = len(secure.requests)
    assert (await ask(api))[0] == 200
    assert len(secure.requests) == before + 1
    assert secure.connections == 1, "a new token needs no new connection"


async def test_a_ca_that_is_rotated(secure, tmp_path, opened, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    account = secure.account(tmp_path / "account")
    api = opened(ClusterSettings(), account=account)
    await ask(api)
    await secure.stop()
    secure.authority = authority(tmp_path, "second")
    await secure.start()
    with pytest.raises(ApiError, match="certificate"):
        await ask(api)
    secure.account(account)
    assert (await ask(api))[0] == 200


async def test_a_ca_that_is_no_certificate_is_our_configuration(secure, tmp_path, opened, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    account = secure.account(tmp_path / "account")
    api = opened(ClusterSettings(), account=account)
    await ask(api)
    (account / "ca.crt").write_text("-----BEGIN CERTI")
    for _ in range(2):
        with pytest.raises(ApiError, match="the certificates cannot be used") as found:
            await ask(api)
        assert found.value.code == "config"
    secure.account(account)
    assert (await ask(api))[0] == 200


async def test_a_kubeconfig_at_home_that_changes_is_read_again(server, tmp_path, opened, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = Path(server.kubeconfig(tmp_path).kubeconfig)
    api = opened(ClusterSettings(kubeconfig=f"~/{file.name}"))
    await ask(api)
    assert not api.outdated()
    os.utime(file, (1, 1))
    assert api.outdated()


@pytest.mark.parametrize("told", ["a-token", "{folder}/a-token"])
async def test_a_token_file_that_a_kubeconfig_names_is_watched(server, tmp_path, opened, told):
    """K12: relative to the kubeconfig, or not; gone for a while, too."""
    file = tmp_path / "a-token"
    file.write_text("token")
    api = opened(server.kubeconfig(tmp_path, tokenFile=told.format(folder=tmp_path)))
    assert (await ask(api))[0] == 200
    assert not api.outdated()
    server.bearer = "second"
    file.unlink()
    assert api.outdated()
    with pytest.raises(ApiError) as found:
        await ask(api)
    assert found.value.code == "config"
    file.write_text("second")
    assert (await ask(api))[0] == 200
    assert [request.headers["authorization"] for request in server.requests[1:]] == ["Bearer second"]


async def test_after_a_401_the_credentials_are_read_again(server, tmp_path, opened):
    """Nothing has changed in the files that are watched: a plugin has another token."""
    api = opened(server.kubeconfig(tmp_path, **plugin(tmp_path, credential("token"))))
    assert (await ask(api))[0] == 200
    server.bearer = "second"
    plugin(tmp_path, credential("second"))
    assert (await ask(api))[0] == 200
    assert [request.headers["authorization"] for request in server.requests[1:]] == ["Bearer token", "Bearer second"]


def plugin(folder, output, name="plugin"):
    """An exec plugin that prints this, and counts how often it is run."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\ncat <<'EOF'\n{output}\nEOF\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(path), "args": ["a"], "env": [{"name": "B", "value": "c"}]}}


def credential(bearer, **more):
    return json.dumps(
        {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": bearer, **more}}
    )


async def test_an_exec_plugin_is_run_once(server, tmp_path, opened):
    user = plugin(tmp_path, credential("token", expirationTimestamp="2099-01-01T00:00:00Z"))
    api = opened(server.kubeconfig(tmp_path, **user))
    for _ in range(3):
        assert (await ask(api))[0] == 200
    assert (tmp_path / "runs").read_text().count("run") == 1


async def test_an_exec_plugin_is_run_again_before_its_token_expires(server, tmp_path, opened, monkeypatch):
    monkeypatch.setattr(cluster, "EXPIRY_MARGIN", -1.0)
    user = plugin(tmp_path, credential("token", expirationTimestamp="2000-01-01T00:00:00Z"))
    api = opened(server.kubeconfig(tmp_path, **user))
    for _ in range(3):
        assert (await ask(api))[0] == 200
    assert (tmp_path / "runs").read_text().count("run") == 3


async def test_an_exec_plugin_that_fails(server, tmp_path, opened):
    user = plugin(tmp_path, "not json")
    api = opened(server.kubeconfig(tmp_path, **user))
    with pytest.raises(ApiError, match="no credentials: exec: failed to decode") as found:
        await ask(api)
    assert found.value.code == "config"
    plugin(tmp_path, credential("token"))
    assert (await ask(api))[0] == 200


async def test_a_client_certificate(secure, tmp_path, opened):
    secure.bearer = None
    secure.authority.sign("me", "me")
    folder = secure.authority.folder
    api = opened(secure.kubeconfig(tmp_path, **{"client-certificate": f"{folder}/me.crt", "client-key": f"{folder}/me.key"}))
    assert (await ask(api))[0] == 200
    assert "authorization" not in secure.requests[0].headers


# What can be said before anybody is asked


def test_no_kubeconfig(tmp_path):
    with pytest.raises(ClusterError, match="no such file") as found:
        ApiServer(ClusterSettings(str(tmp_path / "none")))
    assert found.value.place == f"kubeconfig {tmp_path}/none"


@pytest.mark.parametrize("text", ["", "7", "[]", "{", "clusters: 5", "contexts: [{}]\ncurrent-context: x"])
def test_a_kubeconfig_that_is_none(tmp_path, text):
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(ClusterError, match="kubeconfig"):
        ApiServer(ClusterSettings(str(tmp_path / "kubeconfig")))


async def test_contexts(server, tmp_path, opened):
    settings = server.kubeconfig(tmp_path)
    with pytest.raises(ClusterError, match="other") as found:
        ApiServer(ClusterSettings(settings.kubeconfig, "other"))
    assert "context other" in found.value.place
    assert (await ask(opened(ClusterSettings(settings.kubeconfig, "x"))))[0] == 200


@pytest.mark.parametrize("missing", ["environment", "token", "ca.crt", "empty"])
def test_no_pod(tmp_path, monkeypatch, missing):
    for name in ("HOST", "PORT"):
        monkeypatch.setenv(f"KUBERNETES_SERVICE_{name}", "1")
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    if missing == "environment":
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    elif missing == "empty":
        (tmp_path / "token").write_text("")
    else:
        (tmp_path / missing).unlink()
    with pytest.raises(ClusterError, match="is this a pod with a service account"):
        ApiServer(ClusterSettings(), account=tmp_path)


# The import


def fresh(code, **environment):
    """What a new Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT = """
import sys
from canal_dns.kube import cluster
found = cluster._library()
left = sum(name.startswith("kubernetes_asyncio") for name in sys.modules)
print(left, found.KubeConfigLoader.__name__, found.Configuration.__name__)
"""


def test_the_library_is_imported_without_its_models():
    assert fresh("import time\n" + COUNT + "print('yaml' in sys.modules, 'dateutil' in sys.modules)") == (
        "0 KubeConfigLoader Configuration\nTrue False\n"
    )


def test_a_library_that_was_imported_before_is_taken_as_it_is():
    out = fresh("import kubernetes_asyncio\n" + COUNT + "print(found.Configuration is kubernetes_asyncio.client.Configuration)")
    assert out.endswith("True\n")


def test_a_library_of_another_layout_is_imported_in_the_ordinary_way(tmp_path):
    """Its `client` needs what the placeholder does not have."""
    root = tmp_path / "kubernetes_asyncio"
    for folder in ("", "client", "config"):
        (root / folder).mkdir()
        (root / folder / "__init__.py").write_text("")
    (root / "client" / "__init__.py").write_text("class Configuration: pass\nclass Elsewhere: pass")
    (root / "config" / "config_exception.py").write_text("class ConfigException(Exception): pass")
    (root / "config" / "incluster_config.py").write_text("def load_incluster_config(): pass")
    (root / "config" / "kube_config.py").write_text(
        "from kubernetes_asyncio.client import Configuration, Elsewhere\nclass KubeConfigLoader: pass"
    )
    assert fresh(COUNT, PYTHONPATH=str(tmp_path)).endswith(" KubeConfigLoader Configuration\n")


def test_the_real_library_works_after_us():
    fresh(COUNT + "import kubernetes_asyncio as k; k.client.ApiClient, k.config.load_kube_config, k.client.V1Pod()")
