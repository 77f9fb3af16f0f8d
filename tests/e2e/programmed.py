"""What the gateway is really programmed to do, read from Envoy's `/config_dump`: who gets a request for a Service's own name.

Rules of this file:
- nothing of canal-dns is used, and nothing of what was asked of istiod: only listeners, routes and clusters that Envoy has;
- a route counts when some request comes to it: requests are tried against the matches in Envoy's order, so what stands behind
  a route that takes everything is not served;
- every claim comes with its witness, a request that takes this way: whoever doubts it sends it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

DESTINATION, HOST = "destination", "host"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MOST_TRIES = 1500
"""Requests that are tried before a route counts as never reached."""
_EVERYWHERE = "0.0.0.0_"
"""How istiod begins the names of listeners: the port follows."""
_AUTHORITY = (":authority", "host")


@dataclass(frozen=True, slots=True)
class Request:
    """What decides beside the name that is asked for."""

    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How requests for a name get to existing clusters on one port."""

    port: int
    tls: bool
    """Of the client: to be terminated by the gateway, or by whoever the connection is passed to."""
    http: bool
    route: str
    """Envoy's name of the route; "" for a connection that is passed on."""
    clusters: tuple[str, ...]
    claims: frozenset[str]
    request: Request

    @property
    def hosts(self) -> frozenset[str]:
        """The Services behind it, by full name."""
        return frozenset(map(host_of, self.clusters))


@dataclass(slots=True)
class Served:
    """How a name is served."""

    ways: list[Way] = field(default_factory=list)

    @property
    def ports(self) -> list[int]:
        return sorted({way.port for way in self.ways})

    @property
    def claims(self) -> list[str]:
        return sorted({claim for way in self.ways for claim in way.claims})


def host_of(cluster: str) -> str:
    """outbound|80|v1|web.shop.svc.cluster.local -> web.shop.svc.cluster.local; "" for others."""
    parts = cluster.split("|")
    return parts[3] if len(parts) == 4 else ""


def authority(name: str, port: int, *, tls: bool) -> str:
    """What clients send as Host: the port is left out where it is the scheme's own."""
    return name if port == (443 if tls else 80) else f"{name}:{port}"


class Programmed:
    """One `/config_dump`. `samples`: texts that a regular expression takes, for all that may occur."""

    def __init__(self, dump: Json, samples: Mapping[str, Sequence[str]] | None = None) -> None:
        self._reach = _Reach(samples or {})
        self.listeners: list[Json] = []
        self.routes: dict[str, Json] = {}
        self.clusters: set[str] = set()
        self.warming: list[str] = []
        """Listeners and clusters that Envoy has got and does not use yet."""
        self.refused: dict[str, str] = {}
        """Listeners and clusters whose last version Envoy refused, and why: it goes on with the one before."""
        for config in dump.get("configs", []):
            getattr(self, f"_read_{config['@type'].rpartition('.')[2]}", lambda _: None)(config)

    def _read_RoutesConfigDump(self, config: Json) -> None:  # noqa: N802 - the type's name
        for one in config.get("dynamic_route_configs", []):
            self.routes[one["route_config"]["name"]] = one["route_config"]

    def _read_ListenersConfigDump(self, config: Json) -> None:  # noqa: N802
        for one in config.get("dynamic_listeners", []):
            if "error_state" in one:
                self.refused[str(one.get("name"))] = str(one["error_state"].get("details"))
            if "warming_state" in one:
                self.warming.append(str(one.get("name")))
            if "active_state" in one:
                self.listeners.append(one["active_state"]["listener"])

    def _read_ClustersConfigDump(self, config: Json) -> None:  # noqa: N802
        for one in config.get("dynamic_active_clusters", []):
            if "cluster" in one:
                self.clusters.add(one["cluster"]["name"])
            if "error_state" in one:
                self.refused[str(one.get("cluster", {}).get("name"))] = str(one["error_state"].get("details"))
        self.warming += [one["cluster"]["name"] for one in config.get("dynamic_warming_clusters", []) if "cluster" in one]

    @property
    def refused_ports(self) -> set[int]:
        """Where something else is in force than istiod wants."""
        return {int(name.removeprefix(_EVERYWHERE)) for name in self.refused if name.startswith(_EVERYWHERE)}

    # --- who gets what ---------------------------------------------------------------------------------------------------

    def served(self, names: Iterable[str], ports: Iterable[int]) -> dict[str, Served]:
        """Those of the names that some port serves: as their own destination, or as a host that leads somewhere."""
        wanted = set(ports)
        found: dict[str, Served] = {name: Served() for name in names}
        for listener in self.listeners:
            place = listener["address"]["socket_address"]
            if place["port_value"] in wanted and place["address"] == "0.0.0.0":
                for name, served in found.items():
                    served.ways += self._ways(listener, place["port_value"], name)
        return {name: served for name, served in found.items() if served.ways}

    def asked(self, port: int) -> list[bool]:
        """How clients may ask at a port: in plain text (False), by TLS (True)."""
        ways = set()
        for listener in self.listeners:
            if listener["address"]["socket_address"]["port_value"] == port:
                chains, inspects = _chains(listener), _inspects(listener)
                plain = _plain_chain(chains)
                if inspects or any("transport_socket" in one for one in chains):
                    ways.add(True)
                # a connection without a server name to where one decides is none of a client that asks for a name
                if plain is not None and "transport_socket" not in plain and not (inspects and _proxied(plain)):
                    ways.add(False)
        return sorted(ways)

    def _ways(self, listener: Json, port: int, name: str) -> Iterator[Way]:
        chains = _chains(listener)
        by_name = _chain_of(chains, name)
        plain = _plain_chain(chains)
        inspects = _inspects(listener)
        for tls, chain in ((False, plain), (True, by_name)):
            if chain is None:
                continue
            terminates = "transport_socket" in chain
            proxied = _proxied(chain)
            if proxied is not None:
                if terminates <= tls and (tls or not inspects):
                    yield from self._passed_on(chain, proxied, port, name, tls)
            elif tls == terminates:
                yield from self._routed(chain, port, name, tls)

    def _passed_on(self, chain: Json, clusters: list[str], port: int, name: str, tls: bool) -> Iterator[Way]:
        known = tuple(one for one in clusters if one in self.clusters)
        claims = set()
        if any(host_of(one) == name for one in known):
            claims.add(DESTINATION)
        if tls and known and name in _server_names(chain):
            claims.add(HOST)
        if claims:
            yield Way(port, tls, False, "", known, frozenset(claims), Request())

    def _routed(self, chain: Json, port: int, name: str, tls: bool) -> Iterator[Way]:
        manager = _filter(chain, "envoy.filters.network.http_connection_manager")
        if manager is None:
            return
        config = self.routes.get(manager["rds"]["route_config_name"]) if "rds" in manager else manager.get("route_config")
        host = _virtual_host(config.get("virtual_hosts", []) if config else [], name)
        if host is None or (host.get("require_tls") and not tls):
            return
        exact = name in [one.lower() for one in host["domains"]]
        routes = host.get("routes", [])
        for index, route in enumerate(routes):
            known = tuple(one for one in _clusters_of(route) if one in self.clusters)
            own = any(host_of(one) == name for one in known)
            if known and (own or exact):
                witness = self._reach.witness(routes, index, authority(name, port, tls=tls), tls)
                if witness is not None:
                    claims = {HOST} if exact else set()
                    claims |= {DESTINATION} if own else set()
                    yield Way(port, tls, True, route.get("name", ""), known, frozenset(claims), witness)


def _inspects(listener: Json) -> bool:
    """It looks for a TLS server name."""
    return any("tls_inspector" in one["name"] for one in listener.get("listener_filters", []))


def _chains(listener: Json) -> list[Json]:
    return [
        *listener.get("filter_chains", []),
        *([listener["default_filter_chain"]] if "default_filter_chain" in listener else []),
    ]


def _server_names(chain: Json) -> list[str]:
    return [one.lower() for one in chain.get("filter_chain_match", {}).get("server_names", [])]


def _plain_chain(chains: list[Json]) -> Json | None:
    """For a connection without a server name."""
    return next((one for one in chains if not _server_names(one)), None)


def _chain_of(chains: list[Json], name: str) -> Json | None:
    """For a TLS server name: the name itself, then *.suffix label by label, then the chain without names."""
    labels = name.split(".")
    for wanted in (name, *(f"*.{'.'.join(labels[start:])}" for start in range(1, len(labels)))):
        for one in chains:
            if wanted in _server_names(one):
                return one
    return _plain_chain(chains)


def _filter(chain: Json, name: str) -> Json | None:
    return next((one["typed_config"] for one in chain.get("filters", []) if one["name"] == name), None)


def _proxied(chain: Json) -> list[str] | None:
    """Clusters of a tcp_proxy; None: it is none."""
    proxy = _filter(chain, "envoy.filters.network.tcp_proxy")
    if proxy is None:
        return None
    if "cluster" in proxy:
        return [proxy["cluster"]]
    return [one["name"] for one in proxy["weighted_clusters"]["clusters"] if one.get("weight", 0) > 0]


def _virtual_host(hosts: list[Json], name: str) -> Json | None:
    """Envoy's choice: the exact domain, the longest *suffix, the longest prefix*, *."""
    best: tuple[tuple[int, int], Json] | None = None
    for host in hosts:
        for domain in map(str.lower, host["domains"]):
            if domain == name:
                rank = (4, 0)
            elif domain == "*":
                rank = (1, 0)
            elif domain.startswith("*") and name.endswith(domain[1:]) and len(name) >= len(domain):
                rank = (3, len(domain))
            elif domain.endswith("*") and name.startswith(domain[:-1]):
                rank = (2, len(domain))
            else:
                continue
            if best is None or rank > best[0]:
                best = (rank, host)
    return best[1] if best else None


def _clusters_of(route: Json) -> list[str]:
    action = route.get("route", {})
    if "cluster" in action:
        return [action["cluster"]]
    return [one["name"] for one in action.get("weighted_clusters", {}).get("clusters", []) if one.get("weight", 0) > 0]


# --- which route a request takes ------------------------------------------------------------------------------------------


class _Reach:
    """Looks for a request that comes to a route past all that stand before it."""

    def __init__(self, samples: Mapping[str, Sequence[str]]) -> None:
        self._samples = samples

    def witness(self, routes: list[Json], index: int, asked: str, tls: bool) -> Request | None:
        """The same lists of routes come again and again, so what was found for them is kept."""
        text = json.dumps([one["match"] for one in routes[: index + 1]], sort_keys=True)
        key = (text, asked if any(f'"{one}"' in text for one in _AUTHORITY) else "", tls)
        if key not in _WITNESSES:
            _WITNESSES[key] = self._find([one["match"] for one in routes[: index + 1]], asked, tls)
        return _WITNESSES[key]

    def _find(self, matches: list[Json], authority: str, tls: bool) -> Request | None:
        *before, wanted = matches
        for request in self._requests(matches, wanted):
            asked = _Asked(request, authority, tls)
            if asked.meets(wanted) and not any(map(asked.meets, before)):
                return request
        return None

    def _requests(self, matches: list[Json], wanted: Json) -> Iterator[Request]:
        """Every combination of the values that occur in the matches, cut down to what `wanted` takes one by one."""
        paths: dict[str, None] = dict.fromkeys(("/zz", "/"))
        headers: dict[str, dict[str | None, None]] = {}
        query: dict[str, dict[str | None, None]] = {}
        for match in matches:
            paths.update(dict.fromkeys(self._paths(match)))
            for one in match.get("headers", []):
                if one["name"].lower() not in (*_AUTHORITY, ":scheme", ":method"):
                    values = headers.setdefault(one["name"].lower(), dict.fromkeys((None, "zz", "")))
                    values.update(dict.fromkeys(self._values(one)))
            for one in match.get("query_parameters", []):
                values = query.setdefault(one["name"], dict.fromkeys((None, "zz", "")))
                values.update(dict.fromkeys(self._values(one)))
        tests = wanted.get("headers", [])
        choices: list[list[Any]] = [
            [one for one in paths if one.startswith("/") and _path_meets(wanted, one)],
            [one for one in METHODS if all(_header_meets(test, one) for test in tests if test["name"] == ":method")],
        ]
        for header, values in headers.items():
            of_it = [test for test in tests if test["name"].lower() == header]
            choices.append([one for one in values if all(_header_meets(test, one) for test in of_it)])
        for parameter, values in query.items():
            of_it = [test for test in wanted.get("query_parameters", []) if test["name"] == parameter]
            choices.append([one for one in values if all(_parameter_meets(test, one) for test in of_it)])
        for path, method, *rest in _combinations(choices):
            given = list(zip((*headers, *query), rest, strict=True))
            yield Request(
                path,
                method,
                tuple((key, value) for key, value in given[: len(headers)] if value is not None),
                tuple((key, value) for key, value in given[len(headers) :] if value is not None),
            )

    def _paths(self, match: Json) -> list[str]:
        if "safe_regex" in match:
            found = list(self._samples.get(match["safe_regex"]["regex"], ()))
        else:
            text = match.get("path") or match.get("prefix") or match.get("path_separated_prefix") or "/"
            found = [text] if "path" in match else [text, text.rstrip("/") + "/zz", text + "zz"]
        if match.get("case_sensitive") is False:
            found += [one.swapcase() for one in found]
        return found

    def _values(self, test: Json) -> list[str]:
        test = test.get("string_match", {})
        if "safe_regex" in test:
            return list(self._samples.get(test["safe_regex"]["regex"], ()))
        texts = [test[how] for how in ("exact", "prefix", "suffix", "contains") if how in test]
        return [*texts, *(f"{one}zz" for one in texts if "prefix" in test)]


_WITNESSES: dict[tuple[str, str, bool], Request | None] = {}


def _combinations(choices: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    size = 1
    for one in choices:
        size *= len(one)
    if size <= _MOST_TRIES:
        yield from itertools.product(*choices)
        return
    chance = random.Random(size)
    for _ in range(_MOST_TRIES):
        yield tuple(map(chance.choice, choices))


@dataclass(frozen=True, slots=True)
class _Asked:
    request: Request
    authority: str
    tls: bool

    def meets(self, match: Json) -> bool:
        request = self.request
        fields = dict(request.headers) | dict.fromkeys(_AUTHORITY, self.authority)
        fields |= {":method": request.method, ":scheme": "https" if self.tls else "http"}
        query = dict(request.query)
        return (
            _path_meets(match, request.path)
            and all(_header_meets(one, fields.get(one["name"].lower())) for one in match.get("headers", []))
            and all(_parameter_meets(one, query.get(one["name"])) for one in match.get("query_parameters", []))
        )


def _path_meets(match: Json, path: str) -> bool:
    if "safe_regex" in match:
        return re.fullmatch(match["safe_regex"]["regex"], path) is not None
    fold = str.lower if match.get("case_sensitive") is False else str
    asked = fold(path)
    if "path" in match:
        return asked == fold(match["path"])
    if "path_separated_prefix" in match:
        prefix = fold(match["path_separated_prefix"])
        return asked == prefix or asked.startswith(f"{prefix}/")
    return asked.startswith(fold(match.get("prefix", "")))


def _header_meets(test: Json, value: str | None) -> bool:
    inverted = bool(test.get("invert_match"))
    if "string_match" not in test:
        return (value is not None) is (bool(test.get("present_match", True)) != inverted)
    if value is None:
        if not test.get("treat_missing_header_as_empty"):
            return False
        value = ""
    return _text_meets(test["string_match"], value) != inverted


def _parameter_meets(test: Json, value: str | None) -> bool:
    if "string_match" not in test:
        return (value is not None) is bool(test.get("present_match", True))
    return value is not None and _text_meets(test["string_match"], value)


def _text_meets(test: Json, value: str) -> bool:
    if "safe_regex" in test:
        return re.fullmatch(test["safe_regex"]["regex"], value) is not None
    fold = str.lower if test.get("ignore_case") else str
    value = fold(value)
    if "prefix" in test:
        return value.startswith(fold(test["prefix"]))
    if "suffix" in test:
        return value.endswith(fold(test["suffix"]))
    if "contains" in test:
        return fold(test["contains"]) in value
    return value == fold(test.get("exact", ""))
