"""The API server: configuration, authentication, TLS, and one GET. The only importer of kubernetes_asyncio and aiohttp.

Rules of this file:
- nothing of the two libraries leaves it: failures are ApiError, or ClusterError where the configuration cannot work at all;
- kubernetes_asyncio configures and authenticates (kubeconfig, exec plugins, service accounts); the requests are aiohttp's own,
  because that library's client obeys proxies of the environment, has no time-outs and keeps no connection alive;
- credentials are read again when their files change, before an exec plugin's expire, and after a 401;
- a kubeconfig is never written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp

from canal_dns import __version__
from canal_dns.errors import ClusterError
from canal_dns.kube.failures import ApiError
from canal_dns.settings import ClusterSettings

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the cluster's CA."""
CONNECT = 5.0
"""Seconds for a connection, TLS included."""
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""Seconds of silence before the kernel asks, between its questions, and how many stay without answer before the end."""
EXPIRY_MARGIN = 60.0
"""Seconds before an exec plugin's token expires at which the plugin is run again."""
MAX_ERROR = 64 * 1024
"""Octets of an error's body that are read."""
_BUFFER = 128 * 1024

_HEADERS = {
    "Accept": "application/json",
    # The API server would spend more on packing a list than the cluster's network on carrying it.
    "Accept-Encoding": "identity",
    "User-Agent": f"canal-dns/{__version__}",
}


class Reply:
    """The answer to a GET, while it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks us to wait."""
        text = self._response.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else None

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        return self._response.content.iter_any()

    async def error(self) -> bytes:
        """The body of an error, or its beginning."""
        return await self._response.content.read(MAX_ERROR)


@dataclass(frozen=True, slots=True)
class _Access:
    """All that it takes to ask."""

    url: str
    authorization: str
    tls: tuple[object, ...]
    """Files' contents and switches: two that are equal make equal connections."""
    files: tuple[str, ...]
    """What to watch for changes."""
    state: tuple[object, ...]
    """Of these files, when they were read."""
    server_name: str | None
    proxy: str | None
    expires: float | None
    """Seconds since 1970."""


class ApiServer:
    """One API server, asked as one user."""

    def __init__(self, settings: ClusterSettings, *, account: Path = ACCOUNT) -> None:
        """Raises ClusterError for what can be seen without asking anybody: a file, context or environment that is not there."""
        self.place = "the API server"
        """Its URL, once that is known."""
        self._account = account
        self._config = _library()
        self.settings = settings
        if settings.kubeconfig:
            self.place = f"kubeconfig {settings.kubeconfig}"
            self._kubeconfig()
        else:
            self.place = _in_cluster(self._config, account).host
        self._access: _Access | None = None
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str], *, silence: float) -> AsyncIterator[Reply]:
        """Ask; the reply is there as soon as its status is, and must not be used after the block.

        `silence`: seconds without an octet after which the connection counts as dead.
        Raises ApiError (config, connect, timeout, cut), from the block too when it reads.
        """
        access = await self._credentials()
        with _translated():
            response = await self._send(access, path, query, silence)
            if response.status == 401 and await self.renew(access):
                response.close()
                response = await self._send(await self._credentials(), path, query, silence)
            try:
                yield Reply(response)
            finally:
                # What was read to its end has given its connection back already.
                response.close()

    async def renew(self, seen: _Access | None) -> bool:
        """Read the credentials again, unless somebody did since `seen` was in use. True if they are other ones now.

        Raises ApiError (config).
        """
        async with self._lock:
            before = self._access
            if before is not seen:
                return True
            access = await self._read()
            if self._session is None or before is None or (access.tls, access.url) != (before.tls, before.url):
                try:
                    made = _session(self._configuration)
                except (OSError, ValueError) as problem:
                    raise ApiError("config", f"the certificates cannot be used: {problem}") from None
                # Watches of the old connections end, and begin again with the new certificates.
                await self._close()
                self._session = made
            self._access = access
            self.place = access.url
            return before is None or (access.authorization, access.tls) != (before.authorization, before.tls)

    def outdated(self) -> bool:
        """True if a file of the credentials in use is not as it was read."""
        return self._access is not None and _state(self._access.files) != self._access.state

    async def close(self) -> None:
        """End all connections; the next request begins with new ones."""
        self._access = None
        await self._close()

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _credentials(self) -> _Access:
        access = self._access
        if access is None or (access.expires is not None and time.time() > access.expires) or self.outdated():
            await self.renew(access)
        assert self._access is not None  # noqa: S101
        return self._access

    async def _send(self, access: _Access, path: str, query: Mapping[str, str], silence: float) -> aiohttp.ClientResponse:
        if self._session is None:
            raise ApiError("cut", "the connections are being closed")
        return await self._session.get(
            access.url + path,
            params=query,
            headers={"Authorization": access.authorization} if access.authorization else None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=silence),
            allow_redirects=False,
            server_hostname=access.server_name,
            proxy=access.proxy,
        )

    async def _read(self) -> _Access:
        """The configuration as it is now. Raises ApiError."""
        expires = None
        try:
            if self.settings.kubeconfig:
                loader = self._kubeconfig()
                configuration = self._config.Configuration()
                await loader.load_and_set(configuration)
                expiry = getattr(loader, "exec_plugin_expiry", None)
                if expiry is not None:
                    expires = max(expiry.timestamp() - EXPIRY_MARGIN, time.time() + EXPIRY_MARGIN / 6)
                own = [*_at_home(self.settings.kubeconfig), *_token_file(loader)]
            else:
                configuration = _in_cluster(self._config, self._account)
                own = [str(self._account / "token")]
            files = [*own, configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file]
            named = tuple(file for file in files if file)
            state = _state(named)
            switches = configuration.verify_ssl, configuration.tls_server_name, configuration.proxy
            contents = [_contents(file) for file in files[len(own) :] if file]
        except ClusterError as problem:
            raise ApiError("config", problem.problem) from None
        except Exception as problem:  # The library raises whatever a plugin, a file or a provider makes it stumble over.
            raise ApiError("config", f"no credentials: {problem or type(problem).__name__}") from None
        self._configuration = configuration
        return _Access(
            url=configuration.host.rstrip("/"),
            authorization=configuration.api_key.get("BearerToken", "").strip(),
            tls=(*switches, *contents),
            files=named,
            state=state,
            server_name=configuration.tls_server_name,
            proxy=configuration.proxy,
            expires=expires,
        )

    def _kubeconfig(self) -> Any:
        """A loader of the kubeconfig as it is now. Raises ClusterError."""
        paths, context = self.settings.kubeconfig, self.settings.context
        for path in _at_home(paths):
            try:
                Path(path).read_bytes()
            except OSError as problem:
                raise ClusterError(f"kubeconfig {path}", (problem.strerror or str(problem)).lower()) from None
        try:
            merged = self._config.KubeConfigMerger(paths).config
            return self._config.KubeConfigLoader(config_dict=merged, active_context=context or None, config_base_path=None)
        except Exception as problem:  # Broken YAML, a list where a mapping belongs, an unknown context.
            asked = f"kubeconfig {paths}" + (f", context {context}" if context else "")
            raise ClusterError(asked, " ".join(str(problem).split()) or type(problem).__name__) from None


def _in_cluster(config: Any, account: Path) -> Any:
    """The configuration of a pod. Raises ClusterError."""
    configuration = config.Configuration()
    try:
        config.load_incluster_config(
            configuration,
            try_refresh_token=False,
            token_filename=str(account / "token"),
            cert_filename=str(account / "ca.crt"),
        )
    except (config.ConfigException, OSError, ValueError) as problem:
        raise ClusterError(
            "in-cluster configuration", f"{str(problem).rstrip('.')} (is this a pod with a service account?)"
        ) from None
    return configuration


def _at_home(paths: str) -> list[str]:
    return [str(Path(path).expanduser()) for path in paths.split(os.pathsep) if path]


def _token_file(loader: Any) -> list[str]:
    """Where the kubeconfig's user has a token, if that is a file; the library tells nobody."""
    user = getattr(loader, "_user", None)
    if user is None or user.value.get("token") or not isinstance(user.value.get("tokenFile"), str):
        return []
    return [str(Path(user.path or ".").absolute().parent / user.value["tokenFile"])]


def _contents(file: str) -> bytes:
    return Path(file).read_bytes()


def _state(files: tuple[str, ...]) -> tuple[object, ...]:
    found: list[object] = []
    for file in files:
        try:
            status = Path(file).stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def _session(configuration: Any) -> aiohttp.ClientSession:
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Many a cluster's CA lacks extensions that Python 3.13 asks for.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    connector = aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=_socket, keepalive_timeout=60.0)
    return aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=_BUFFER,
    )


def _socket(address: Any) -> socket.socket:
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as problem:
        raise ApiError("connect", f"its certificate is not accepted: {problem.certificate_error}") from None
    except aiohttp.ClientConnectorError as problem:
        raise ApiError("connect", _why(problem.os_error)) from None
    except aiohttp.ConnectionTimeoutError:
        raise ApiError("connect", f"no connection within {CONNECT:.0f} s") from None
    except TimeoutError:
        raise ApiError("timeout", "nothing arrives any more") from None
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        why = (
            _why(cause)
            if isinstance(cause, OSError)
            else ""
            if isinstance(problem, aiohttp.ClientPayloadError)
            else str(problem)
        )
        raise ApiError("cut", f"the connection broke: {why}" if why else "the connection broke") from None


def _why(problem: OSError) -> str:
    # asyncio puts the address into the text, and a resolver's errors have numbers of their own.
    return (
        os.strerror(problem.errno) if problem.errno and problem.errno > 0 else problem.strerror or str(problem) or "it hung up"
    )


@functools.cache
def _library() -> ModuleType:
    """kubernetes_asyncio.config.kube_config, with Configuration and load_incluster_config in it, and hardly anything else.

    `import kubernetes_asyncio` loads 1,600 modules of API models: 35 MB and 0.3 s for nothing, since only configuration and
    authentication are used here. So the package and its `client` are empty modules while the rest is loaded. Should the
    library's layout change, it is imported in the ordinary way.
    """
    wanted = ("kube_config", "incluster_config", "config_exception")

    def load() -> ModuleType:
        main, account, errors = (importlib.import_module(f"kubernetes_asyncio.config.{name}") for name in wanted)
        joined = ModuleType("kubernetes_asyncio.config")
        joined.__dict__.update(vars(errors) | vars(account) | vars(main))
        return joined

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes_asyncio"]:
            del sys.modules[name]

    spec = None if "kubernetes_asyncio" in sys.modules else importlib.util.find_spec("kubernetes_asyncio")
    if spec is None or not spec.submodule_search_locations:
        return load()
    try:
        folder = Path(spec.submodule_search_locations[0])
        for name, path in (("kubernetes_asyncio", folder), ("kubernetes_asyncio.client", folder / "client")):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
        client: Any = sys.modules["kubernetes_asyncio.client"]
        client.Configuration = importlib.import_module("kubernetes_asyncio.client.configuration").Configuration
        client.ApiClient = object
        return load()
    except (ImportError, AttributeError):
        forget()
        return load()
    finally:
        forget()
