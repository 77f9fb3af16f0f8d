"""Invented Gateways, VirtualServices, DestinationRules and Services: objects of a cluster that nobody has thought of.

Rules of this file:
- everything comes from one seed: the same seed and the same objects before give the same objects;
- odd, but such as Envoy takes: what it refuses keeps a port's old state, and nothing can be compared there. Some of it comes
  about all the same when objects meet;
- the values in matches are few, so that routes hide each other; `SAMPLES` says what the regular expressions take.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from tests.e2e import objects
from tests.e2e.cluster import DOMAIN, fqdn

T = TypeVar("T")
Object = objects.Object
Key = tuple[str, str, str]

SYSTEM = "istio-system"
GATEWAY_LABELS = {"istio": "internalgateway"}
CERTIFICATE = "invented-cert"
"""A Secret in istio-system that terminating servers name."""

SAMPLES: dict[str, tuple[str, ...]] = {
    "/a.*": ("/a", "/azz", "/a/zz", "/a/b/c"), ".*": ("/zz", "zz"), "/(a|b)": ("/a", "/b"), "/a/[0-9]+": ("/a/1", "/a/23"),
    "^/a$": ("/a",), "(?i)/A": ("/a", "/A"), "/.*": ("/zz", "/a"), ".+": ("/zz", "zz"), "/a(/.*)?": ("/a", "/a/zz"),
    "/[^a].*": ("/b", "/zz"), "/b|/a/b": ("/b", "/a/b"), r"/\w+": ("/a", "/zz", "/b"), "j.*": ("jason", "jzz", "j"),
    "^jason$": ("jason",), "[a-m].*": ("a", "jason", "jzz"), "jason|bob": ("jason", "bob"), ".*on": ("jason", "on"),
    "1|2": ("1", "2"), r"\d+": ("1", "23"),
}  # fmt: skip
_PATHS = {
    "prefix": ("/", "/a", "/a/", "/a/b", "/b", "/A", "/ab"),
    "exact": ("/a", "/", "/a/b", "/b", "/A"),
    "regex": tuple(one for one in SAMPLES if "/" in one or one in (".*", ".+")),
}
_HEADER = {"exact": ("jason", "1"), "prefix": ("j", "jas", "1"),
           "regex": ("j.*", "^jason$", "[a-m].*", "jason|bob", ".*on", ".*")}  # fmt: skip
_PARAMETER = {"exact": ("1", "2"), "prefix": ("1",), "regex": ("1|2", r"\d+", ".*")}

PORT_NAMES = {80: "http", 5000: "http-canal", 8080: "http-alt", 9000: "tcp"}
_SIMPLE = {"mode": "SIMPLE", "credentialName": CERTIFICATE}
_ODD_SERVERS: tuple[tuple[str, int, Object | None], ...] = (
    ("HTTP", 80, _SIMPLE), ("HTTP", 8443, _SIMPLE), ("HTTPS", 8443, None), ("TLS", 8443, None), ("TLS", 9000, None),
    ("TCP", 9000, _SIMPLE), ("TCP", 8443, {"mode": "PASSTHROUGH"}), ("MONGO", 9000, {"mode": "PASSTHROUGH"}),
    ("HTTPS", 9000, _SIMPLE), ("HTTP", 80, {"mode": "PASSTHROUGH"}), ("HTTPS", 8443, {"httpsRedirect": True}),
    ("HTTPS", 8443, {**_SIMPLE, "httpsRedirect": True}), ("REDIS", 9000, None), ("MYSQL", 9000, None),
    ("GRPC", 8443, _SIMPLE), ("tls", 8443, {"mode": "PASSTHROUGH"}), ("UDP", 9000, None), ("HTTP3", 80, None),
    ("Http2", 80, None), ("HTTP_PROXY", 80, None), ("TLS", 8443, {}),
)  # fmt: skip
"""What nobody should write."""
_SERVERS = (
    (("HTTP", 80, None), 44), (("HTTP2", 80, None), 3), (("GRPC", 80, None), 3), (("HTTP", 5000, None), 8),
    (("HTTP", 8443, None), 3), (("HTTP", 9000, None), 6), (("HTTP", 8080, None), 1), (("TCP", 9000, None), 11),
    (("TCP", 80, None), 2), (("TCP", 8443, None), 2), (("MONGO", 9000, None), 1),
    (("TLS", 8443, {"mode": "PASSTHROUGH"}), 11), (("HTTPS", 8443, {"mode": "PASSTHROUGH"}), 2),
    (("TLS", 9000, {"mode": "PASSTHROUGH"}), 1), (("TLS", 8443, {"mode": "AUTO_PASSTHROUGH"}), 1),
    (("HTTPS", 8443, _SIMPLE), 6),
    (("TLS", 8443, _SIMPLE), 4), (("HTTP", 80, {"httpsRedirect": True}), 2),
    (("http", 80, None), 1), (("GRPC-Web", 80, None), 1),
)  # fmt: skip
"""(protocol, port, tls), and how often. 443 is left alone: there stand the marks of the test."""


def key_of(thing: Object) -> Key:
    return thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"]


class Invention:
    """`shop`, `prod`: two namespaces beside `default` and istio-system that nobody else uses."""

    def __init__(self, seed: int, shop: str, prod: str) -> None:
        self.chance = random.Random(seed)
        self.namespaces = (SYSTEM, "default", shop, prod)
        self.shapes: dict[tuple[str, str], tuple[int, ...]] = {
            ("helloworld", "default"): (80,), ("plain", "default"): (80, 9000), ("web", "default"): (5000,),
            ("web", shop): (80, 8080), ("cart", shop): (80,), ("db", shop): (9000,),
            ("web", prod): (80,), ("api", prod): (5000, 9000), ("helloworld", prod): (80,),
        }  # fmt: skip
        self.peers = f"peers.{prod}"
        self.full = [fqdn(f"{name}.{namespace}") for name, namespace in self.shapes]
        self.names = (*self.full, fqdn("alias.default"), fqdn(self.peers))
        """All Services, the names to compare."""
        self.objects: dict[Key, Object] = {}
        """What there is: new ones refer to it."""
        self.focus: list[str] = list(self.full)
        self._count = 0

    # --- chance ----------------------------------------------------------------------------------------------------------

    def pick(self, some: Sequence[T]) -> T:
        return self.chance.choice(some)

    def odds(self, probability: float) -> bool:
        return self.chance.random() < probability

    def weighed(self, pairs: Sequence[tuple[T, float]]) -> T:
        return self.chance.choices([one for one, _ in pairs], [weight for _, weight in pairs])[0]

    def _times(self, *weights: int) -> range:
        """Of these chances: once, twice, ..."""
        return range(self.chance.choices(range(1, len(weights) + 1), weights)[0])

    def of(self, *kinds: str) -> list[Object]:
        return [thing for key, thing in self.objects.items() if key[0] in kinds]

    # --- objects ---------------------------------------------------------------------------------------------------------

    def service(self, name: str, namespace: str) -> Object:
        thing = objects.service(name, namespace)
        thing["spec"]["ports"] = ports(self.shapes[name, namespace])
        return thing

    def _some_name(self) -> str:
        """The full name of a Service that this chapter is about."""
        return self.pick(self.focus)

    def _made(self, kind: str, namespace: str, name: str, spec: Object) -> Object:
        return objects.made("networking.istio.io/v1", kind, name, namespace, spec=spec)

    def gateway(self, namespace: str = "") -> Object:
        first = not self.of("Gateway")
        name = "internalgateway" if first else self.pick(("internalgateway", "edge", "alpha", "zeta"))
        place = namespace or (SYSTEM if first and self.odds(0.75) else self.pick(self.namespaces))
        selector = self.weighed(
            (
                (GATEWAY_LABELS, 90), ({**GATEWAY_LABELS, "app": "canal-gateway"}, 8), ({}, 3), (None, 2),
                ({"istio": "ingressgateway"}, 3), ({**GATEWAY_LABELS, "version": "v1"}, 2), ({"app": "canal-gateway"}, 3),
            )
        )  # fmt: skip
        spec: Object = {"servers": [self._server() for _ in self._times(60, 28, 12)]}
        return self._made("Gateway", place, name, spec | ({} if selector is None else {"selector": dict(selector)}))

    def _server(self) -> Object:
        protocol, port, tls = self.pick(_ODD_SERVERS) if self.odds(0.06) else self.weighed(_SERVERS)
        self._count += 1
        name = f"x-{self._count}" if self.odds(0.9) else "same"
        hosts = list(dict.fromkeys(self._server_host() for _ in self._times(75, 20, 5)))
        server: Object = {
            "port": {"number": port, "name": name, "protocol": protocol},
            "hosts": ["*/*"] if "*/*" in hosts else hosts,  # istiod panics at */* beside another one
        }
        if tls is not None:
            server["tls"] = dict(tls)
        if self.odds(0.02):
            server["bind"] = self.pick(("127.0.0.1", "0.0.0.0"))
        return server

    def _server_host(self) -> str:
        some = self._some_name()
        zone = f"*.{self.pick(self.namespaces[1:])}.svc.{DOMAIN}"
        host = self.weighed(
            (
                ("*", 60), (some, 12), (f"*.svc.{DOMAIN}", 8), (zone, 9), (f"*.{DOMAIN}", 2), ("shop.example", 3),
                ("*.shop.example", 2), (some.capitalize(), 1), (f"*.Svc.{DOMAIN}", 0.5), ("*.local", 1),
            )
        )  # fmt: skip
        return self.weighed((("", 80), ("./", 5), ("*/", 4), (f"{self.pick(self.namespaces)}/", 8))) + host

    def _gateway_name(self, namespace: str) -> str:
        """How a VirtualService of this namespace may name a Gateway."""
        gateways = self.of("Gateway")
        home, name = key_of(self.pick(gateways))[1:] if gateways else (SYSTEM, "internalgateway")
        return self.weighed(
            (
                (f"{home}/{name}", 120), (name, 30 if home == namespace else 8), (f"{name}.{home}", 4),
                (f"{name}.{home}.svc.{DOMAIN}", 4), ("mesh", 3), (f"{SYSTEM}/nosuch", 3), (f"{name}.{home}.foo.bar", 1),
            )
        )  # fmt: skip

    def _host(self) -> str:
        some = self._some_name()
        bare, namespace, _ = some.split(".", 2)
        return self.weighed(
            (
                ("*", 36), (some, 40), (bare, 6), (f"*.{some.split('.', 1)[1]}", 10), (f"*.svc.{DOMAIN}", 6),
                (f"*.{DOMAIN}", 2), ("*.local", 1.5), (some.upper(), 2), ("shop.example", 4), ("a.shop.example", 2),
                ("*.shop.example", 1), (f"{bare}.{namespace}", 3), ("*.Svc.Cluster.Local", 0.7),
            )
        )  # fmt: skip

    def _destination(self) -> Object:
        full = self._some_name() if self.odds(0.75) else self.pick(self.full)
        bare, namespace, _ = full.split(".", 2)
        host = self.weighed(
            (
                (full, 72), (bare, 12), (f"{bare}.{namespace}", 2), (full.upper(), 1.5), (f"{full}.", 0.7),
                (fqdn("alias.default"), 5), ("alias", 1.5), (fqdn(self.peers), 2), (fqdn("nosuch.default"), 1.5),
                ("10.96.1.1", 1), ("example.com", 1),
            )
        )  # fmt: skip
        made: Object = {"host": host}
        if self.odds(0.55):
            own = self.shapes[bare, namespace]
            made["port"] = {"number": self.pick(own) if self.odds(0.85) else self.pick((80, 8080, 9000, 12345))}
        if self.odds(0.03):
            made["subset"] = self.pick(("v1", "v2", "v3"))
        # a rule about the Service is most likely there for its subsets
        rules = [rule["spec"] for rule in self.of("DestinationRule") if rule["spec"]["host"].split(".")[0] in (bare, "*")]
        if rules and self.odds(0.6):
            made["subset"] = self.pick([*(one["name"] for one in self.pick(rules).get("subsets", ())), "v1", "v3"])
        return made

    def _destinations(self) -> list[Object]:
        number = len(self._times(62, 28, 10))
        if number == 1:
            weight = {"weight": self.pick((0, 100))} if self.odds(0.15) else {}
            return [{"destination": self._destination()} | weight]
        weights = self.pick(((80, 20), (100, 0), (50, 50), (0, 100)) if number == 2 else ((80, 20, 0), (33, 33, 34)))
        return [{"destination": self._destination(), "weight": weight} for weight in weights]

    def _text(self, values: dict[str, tuple[str, ...]]) -> Object:
        how = self.weighed((("exact", 45), ("prefix", 25), ("regex", 22), ("", 8)))
        return {how: self.pick(values[how])} if how else {}

    def _headers(self) -> Object:
        keys = (("x-user", 60), ("X-User", 6), ("x-canary", 30), ("cookie", 3))
        return {self.weighed(keys): self._text(_HEADER) for _ in self._times(75, 25)}

    def _match(self, name: str, namespace: str) -> Object:
        kinds = (("uri", 50), ("headers", 22), ("method", 8), ("authority", 9), ("port", 8), ("gateways", 8),
                 ("sourceLabels", 5), ("sourceNamespace", 5), ("ignoreUriCase", 6), ("queryParams", 7),
                 ("withoutHeaders", 8), ("scheme", 3))  # fmt: skip
        match: Object = {}
        for kind in sorted({self.weighed(kinds) for _ in self._times(60, 30, 10)}):
            match[kind] = self._test(kind, namespace)
        if not set(match) - {"ignoreUriCase"}:
            match["uri"] = {"prefix": "/a"}
        return match | {"name": name}

    def _test(self, kind: str, namespace: str) -> Any:
        some = self._some_name()
        if kind == "uri":
            how = self.weighed((("prefix", 45), ("exact", 25), ("regex", 30)))
            return {how: self.pick(_PATHS[how])}
        if kind in ("headers", "withoutHeaders"):
            return self._headers() | ({self.pick(("host", ":authority")): {"exact": some}} if self.odds(0.05) else {})
        if kind == "gateways":
            return [self.pick(("mesh",)) if self.odds(0.2) else self._gateway_name(namespace) for _ in self._times(75, 25)]
        if kind == "queryParams":
            return {self.pick(("v", "v", "w")): self._text(_PARAMETER)}
        choices: dict[str, tuple[Any, ...]] = {
            "method": ({"exact": "GET"}, {"exact": "POST"}, {"prefix": "P"}, {"regex": "GET|POST"}, {"regex": "P.*"}),
            "authority": ({"exact": some}, {"exact": some}, {"prefix": "web."}, {"prefix": some[:8]},
                          {"regex": ".*default.*"}, {"regex": r"(web|api)\..*"}, {"exact": some.upper()}),
            "port": (80, 80, 80, 5000, 8443, 9000, 81),
            "sourceLabels": (GATEWAY_LABELS, {"app": "client"}, {**GATEWAY_LABELS, "app": "canal-gateway"}),
            "sourceNamespace": self.namespaces,
            "ignoreUriCase": (True,),
            "scheme": ({"exact": "http"}, {"exact": "https"}, {"prefix": "http"}, {"exact": "HTTP"}),
        }  # fmt: skip
        return copy.deepcopy(self.pick(choices[kind]))

    def _http(self, namespace: str, *, delegate: bool = False) -> list[Object]:
        routes = []
        for _ in self._times(35, 35, 20, 10):
            self._count += 1
            route: Object = {"name": f"r{self._count}"}
            if self.odds(0.55):
                route["match"] = [self._match(f"m{number}", namespace) for number in self._times(70, 25, 5)]
            action = self.weighed((("route", 78), ("redirect", 6), ("directResponse", 5), ("delegate", 0 if delegate else 11)))
            if action == "route":
                route["route"] = self._destinations()
                route |= self._extras()
            elif action == "redirect":
                route["redirect"] = self.pick(({"uri": "/moved"}, {"authority": "x.example", "redirectCode": 302}))
            elif action == "directResponse":
                route["directResponse"] = {"status": 418}
            else:
                route["delegate"] = {"name": self.pick(("d1", "d2"))}
                if self.odds(0.7):
                    route["delegate"]["namespace"] = self.pick(self.namespaces)
                if self.odds(0.06):
                    route["directResponse"] = {"status": 418}
            routes.append(route)
        return routes

    def _extras(self) -> Object:
        """What stands beside a route and does not change where requests go."""
        return {
            **({"mirror": self._destination()} if self.odds(0.08) else {}),
            **({"fault": {"abort": {"httpStatus": 503, "percentage": {"value": 100}}}} if self.odds(0.04) else {}),
            **({"rewrite": self.pick(({"uri": "/"}, {"authority": self._some_name()}))} if self.odds(0.04) else {}),
            **({"timeout": "3s"} if self.odds(0.03) else {}),
        }

    def _connections(self, namespace: str, *, tls: bool) -> list[Object]:
        routes = []
        for _ in self._times(65, 28, 7):
            route: Object = {"route": self._destinations()}
            if tls or self.odds(0.4):
                route["match"] = [self._connection_match(namespace, tls=tls) for _ in self._times(75, 25)]
            routes.append(route)
        return routes

    def _connection_match(self, namespace: str, *, tls: bool) -> Object:
        match: Object = {"sniHosts": [self._server_name() for _ in self._times(70, 30)]} if tls else {}
        if self.odds(0.35):
            match["port"] = self.pick((8443, 8443, 9000, 443) if tls else (9000, 9000, 9000, 80, 8443))
        if self.odds(0.12):
            match["gateways"] = [self._gateway_name(namespace)]
        if self.odds(0.1):
            match["sourceNamespace"] = self.pick(self.namespaces)
        if self.odds(0.08):
            match["destinationSubnets"] = ["10.1.0.0/16"]
        return match or {"port": 9000}

    def _server_name(self) -> str:
        some = self._some_name()
        return self.weighed(
            (
                (some, 60), ("*", 8), ("shop.example", 8), (f"*.{some.split('.', 1)[1]}", 12), (some.split(".")[0], 3),
                (some.upper(), 2), (f"*.svc.{DOMAIN}", 4),
            )
        )  # fmt: skip

    def _export(self, chance: float) -> Object:
        if not self.odds(chance):
            return {}
        choices = ((["*"], 5), (["."], 9), ([SYSTEM], 7), ([SYSTEM, "default"], 3), ([self.namespaces[3]], 3),
                   ([".", SYSTEM], 2), (["~"], 0.5))  # fmt: skip
        return {"exportTo": list(self.weighed(choices))}

    def virtual_service(self, namespace: str = "") -> Object:
        place = namespace or self.weighed([*zip(self.namespaces, (40, 20, 20, 20), strict=True)])
        spec: Object = {"hosts": list(dict.fromkeys(self._host() for _ in self._times(68, 24, 8)))} | self._export(0.28)
        if self.odds(0.95):
            spec["gateways"] = list(dict.fromkeys(self._gateway_name(place) for _ in self._times(75, 20, 5)))
        wanted = {kind for kind in self._spoken() if self.odds(0.8)} or {self.pick(("http", "tcp", "tls"))}
        if "http" in wanted:
            spec["http"] = self._http(place)
        for kind in sorted(wanted - {"http"}):
            spec[kind] = self._connections(place, tls=kind == "tls")
        return self._made("VirtualService", place, self.pick(("a", "b", "c", "v", "main", "web", "zz")), spec)

    def _spoken(self) -> list[str]:
        """The kinds of route that the servers have use for."""
        kinds = set()
        for server in (server for gateway in self.of("Gateway") for server in gateway["spec"]["servers"]):
            passes = server.get("tls", {}).get("mode") == "PASSTHROUGH"
            kinds.add("tls" if passes else "tcp" if server["port"]["protocol"] in ("TCP", "TLS", "MONGO") else "http")
        return sorted(kinds)

    def delegate(self, namespace: str, name: str) -> Object:
        return self._made("VirtualService", namespace, name, {"http": self._http(namespace, delegate=True)} | self._export(0.2))

    def rule(self, namespace: str = "") -> Object:
        place = namespace or self.pick(self.namespaces)
        some = self._some_name()
        host = self.weighed(
            (
                (some, 60), (some.split(".")[0], 14), (f"*.{some.split('.', 1)[1]}", 10), (f"*.svc.{DOMAIN}", 3), ("*", 3),
                (some.upper(), 2), (fqdn("alias.default"), 3),
            )
        )  # fmt: skip
        subsets = self.pick((["v1"], ["v1", "v2"], ["v1", "v3"], ["v2"], [], ["v1"]))
        spec: Object = {"host": host, "subsets": [{"name": one, "labels": {"version": one}} for one in subsets]}
        if not subsets:
            spec = {"host": host, "trafficPolicy": {"connectionPool": {"http": {"http1MaxPendingRequests": 100}}}}
        if self.odds(0.12):
            spec["workloadSelector"] = {"matchLabels": self.pick((GATEWAY_LABELS, {"app": "client"}))}
        return self._made("DestinationRule", place, self.pick(("r", "q", "x", "b")), spec | self._export(0.45))


def ports(numbers: Sequence[int], *, udp: bool = False) -> list[Object]:
    made = [{"name": PORT_NAMES[one], "port": one, "targetPort": 10000 + one, "protocol": "TCP"} for one in numbers]
    return [*made, *([{"name": "udp", "port": 5353, "targetPort": 15353, "protocol": "UDP"}] if udp else [])]
