"""The Binder against `bind` on random walks: after any changes the same result, and deltas that are the difference of results.

The worlds are made to bind: nearly all that a VirtualService names is there. Where Services and routes were drawn apart no walk
ever saw a name bound; so what is seen is counted, and too little of it is a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.result import CLAIM_HOST, Bound, Reason, Result, difference
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, CrossNamespace, InternalGateway, MeshSettings, PortGuard
from tests.mesh import builders as make
from tests.mesh.builders import SETTINGS, full

FIRST, SECOND = "istio-system/internalgateway", "shop/second"
TWO_GATEWAYS = (InternalGateway("istio-system", "internalgateway"), InternalGateway("shop", "second"))
ALL_SETTINGS = [
    SETTINGS,
    BindingSettings(gateways=TWO_GATEWAYS, port_guard=PortGuard.WARN, cross_namespace=CrossNamespace.WARN, headless=True),
    BindingSettings(gateways=TWO_GATEWAYS, port_guard=PortGuard.WARN, cross_namespace=CrossNamespace.ALLOW, max_bindings=2),
    BindingSettings(gateways=TWO_GATEWAYS[:1], port_guard=PortGuard.WARN, mesh=MeshSettings(scope_gateway_to_namespace=True)),
    BindingSettings(gateways=TWO_GATEWAYS),
    BindingSettings(gateways=TWO_GATEWAYS, port_guard=PortGuard.WARN),
]

SERVICES = [(name, namespace) for name in ("a", "b", "c") for namespace in ("default", "shop")]
FULL = [full(f"{name}.{namespace}") for name, namespace in SERVICES]
WILDCARDS = ["*.shop.svc.cluster.local", "*.default.svc.cluster.local", "*.svc.cluster.local"]
SECOND_BASE = (
    make.gateway_service("second", "shop", clusterIP="10.96.9.2"),
    make.pod("gw-1", "shop", {"istio": "second"}),
    make.endpoints("second", "shop", ("gw-1",), addresses=("10.244.0.3",)),
    make.gateway(make.server(), make.tls_server(), name="second", namespace="shop", selector={"istio": "second"}),
)


def mixed(*some: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, by weight. `one_of` forgets that it was given one several times."""
    return st.sampled_from([one for weight, one in some for _ in range(weight)]).flatmap(lambda one: one)


names = st.sampled_from(FULL)
nothing: st.SearchStrategy[list[Any]] = st.just([])


def _destination(*weights: int | None) -> st.SearchStrategy[Any]:
    usual = st.builds(make.to, names, weight=st.sampled_from(weights))
    odd = st.builds(
        make.to,
        mixed(
            (4, names), (1, st.sampled_from(["a", full("alias.default"), full("alias.default"), "b.shop", full("gone.shop")]))
        ),
        port=st.sampled_from([None, None, 80, 81]),
        subset=st.sampled_from(["", "v1"]),
        weight=st.sampled_from(weights),
    )
    return mixed((3, usual), (1, odd))


destinations = _destination(None, None, 0)
weighted = _destination(50, 50, 50, 0)
uris = st.sampled_from(
    [{"exact": "/a"}, {"exact": "/b"}, {"exact": "/c"}, {"prefix": "/a"}, {"prefix": "/"}, {"regex": "/a.*"}]
)
matches = st.fixed_dictionaries(
    {"uri": uris},
    optional={
        "headers": st.sampled_from([{"x": {"exact": "1"}}, {"x": {"regex": "*"}}]),
        "authority": st.sampled_from([{"prefix": "a"}, {"exact": full("b.shop")}]),
    },
)
odd_matches = st.sampled_from(
    [{"port": 80}, {"port": 8080}, {"gateways": ["mesh"]}, {"gateways": [FIRST]}, {"ignoreUriCase": True}]
)
match_lists = mixed(
    (1, nothing),
    (3, uris.map(lambda uri: [{"uri": uri}])),
    (2, st.lists(mixed((3, matches), (1, odd_matches)), min_size=1, max_size=2)),
)
delegations = st.builds(
    make.http,
    match=st.sampled_from([[], [{"uri": {"prefix": "/a"}}]]),
    delegate=st.sampled_from([{"name": "d"}, {"name": "d", "namespace": "shop"}]),
)
routes = mixed(
    (6, st.builds(make.http, destinations, match=match_lists)),
    (2, st.builds(make.http, weighted, weighted, match=match_lists)),
    (3, delegations),
    (1, st.builds(make.http, match=match_lists, redirect=st.just({"uri": "/x"}))),
)
l4_routes = st.builds(make.l4, destinations, match=st.sampled_from([(), (), {"port": 9000}]))
odd_sni = st.sampled_from([*WILDCARDS, "*", "A.default.svc.cluster.local", "x.example"])
tls_routes = st.builds(
    lambda sni, one, port: make.l4(one, match={"sniHosts": sni, **port}),
    st.lists(mixed((3, names), (1, odd_sni)), min_size=1, max_size=2),
    destinations,
    st.sampled_from([{}, {}, {}, {"port": 8443}, {"port": 443}]),
)
host_lists = mixed(
    (3, st.just(["*"])),
    (3, st.lists(names, min_size=1, max_size=2)),
    (2, st.sampled_from(WILDCARDS).map(lambda one: [one])),
    (1, st.sampled_from([["a"], ["A.default", full("a.default")], ["x.example"], ["*.cluster.local", "b.shop"]])),
)
usual_gateways = st.sampled_from([[FIRST], [FIRST], [FIRST, SECOND], [SECOND]])
odd_gateways = st.sampled_from([["internalgateway", "mesh"], ["shop/other", FIRST], ["shop/nosuch"]])


def _virtual_service(http: list[Any], tcp: list[Any], tls: list[Any], **more: Any) -> Any:
    l4: dict[str, Any] = {kind: some for kind, some in (("tcp", tcp), ("tls", tls)) if some}
    return make.virtual_service(*http, **more, **l4)


def _virtual_services(http: Any, tcp: Any, tls: Any, **more: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        _virtual_service,
        http,
        tcp,
        tls,
        name=st.sampled_from(["u", "v", "w", "x"]),
        namespace=st.sampled_from(["istio-system", "istio-system", "default", "shop"]),
        hosts=host_lists,
        created=st.integers(0, 3),
        **more,
    )


http_lists, l4_lists = st.lists(routes, min_size=1, max_size=2), st.lists(l4_routes, min_size=1, max_size=1)
tls_lists = st.lists(tls_routes, min_size=1, max_size=2)
virtual_services = mixed(
    (4, _virtual_services(http_lists, nothing, nothing, gateways=usual_gateways)),
    (2, _virtual_services(nothing, mixed((2, nothing), (1, l4_lists)), tls_lists, gateways=usual_gateways)),
    (
        1,
        _virtual_services(
            http_lists,
            mixed((1, nothing), (1, l4_lists)),
            mixed((1, nothing), (1, tls_lists)),
            gateways=mixed((2, usual_gateways), (1, odd_gateways)),
            annotations=st.sampled_from([None] * 4 + [{"canal-dns.io/bind": "false"}, {"canal-dns.io/bind": "maybe"}]),
            exportTo=st.sampled_from([["*"]] * 4 + [["."], ["istio-system"]]),
        ),
    ),
)
delegates = st.builds(
    lambda http, namespace, export: make.delegate(*http, namespace=namespace, exportTo=export),
    st.lists(st.builds(make.http, destinations, match=match_lists), min_size=1, max_size=2),
    st.sampled_from(["istio-system", "istio-system", "shop"]),
    st.sampled_from([["*"], ["*"], ["*"], ["."]]),
)
CONSENT = {"canal-dns.io/allow-from": "*"}


def _service(place: tuple[str, str]) -> st.SearchStrategy[Any]:
    name, namespace = map(st.just, place)
    usual = st.builds(
        make.service,
        name,
        namespace,
        st.sampled_from([(80,)] * 4 + [(8443,), (80, 8443)]),
        annotations=st.sampled_from([None, CONSENT]),
    )
    odd = st.builds(
        make.service,
        name,
        namespace,
        st.sampled_from([(80,), (80,), (80,), (9000,), ()]),
        annotations=st.sampled_from(
            [
                None,
                {"canal-dns.io/allow-from": "shop, default"},
                {"canal-dns.io/bind": "true"},
                {"canal-dns.io/bind": "false"},
                {"canal-dns.io/ttl": "x"},
                {"networking.istio.io/exportTo": "."},
            ]
        ),
        clusterIP=st.sampled_from(["10.96.1.1", "10.96.1.1", "None"]),
    )
    return mixed((6, usual), (1, odd))


services = st.sampled_from(SERVICES).flatmap(_service)
aliases = st.builds(
    make.service,
    st.just("alias"),
    st.just("default"),
    type=st.just("ExternalName"),
    externalName=mixed((5, names), (1, st.just("x.y"))),
)
rules = st.builds(
    make.destination_rule,
    st.sampled_from(["*.cluster.local", *WILDCARDS, full("a.default"), full("b.shop"), "a", full("alias.default")]),
    st.sampled_from(["v1", "v1", "v2"]),
    name=st.sampled_from(["r", "s"]),
    namespace=st.sampled_from(["default", "shop", "istio-system"]),
)
tls_servers = st.builds(
    make.tls_server,
    st.just(8443),
    st.sampled_from(["PASSTHROUGH", "PASSTHROUGH", "SIMPLE"]),
    st.sampled_from(["TLS", "HTTPS", "HTTPS"]),
    hosts=st.sampled_from([["*"], ["*"], *([one] for one in WILDCARDS), [full("a.default"), full("b.shop")]]),
)
odd_servers = st.builds(
    make.server,
    st.sampled_from([80, 8080]),
    hosts=st.lists(mixed((1, names), (1, st.sampled_from([*WILDCARDS, "*", "A.default"]))), min_size=1, max_size=2),
    tls=st.sampled_from([None, None, {"httpsRedirect": True}]),
)
server_lists = mixed(
    (5, st.just([make.server(), make.tls_server()])),
    (1, st.just([make.server(), make.tcp_server()])),
    (1, st.just([make.server(hosts=["*.cluster.local"]), make.server(hosts=[full("a.default"), "./*"])])),
    (2, st.builds(lambda one: [make.server(), one, make.tcp_server()], tls_servers)),
    (1, st.builds(lambda one, other: [make.server(), one, other], tls_servers, tls_servers)),
    (1, st.lists(mixed((1, odd_servers), (1, tls_servers)), min_size=1, max_size=3)),
)
first_gateways = st.builds(lambda some, created: make.gateway(*some, created=created), server_lists, st.integers(0, 2))
other_gateways = st.builds(
    lambda some, **more: make.gateway(*some, name="other", namespace="shop", **more),
    server_lists,
    selector=st.sampled_from([{"istio": "internalgateway"}, {}, {"istio": "second"}]),
    created=st.integers(0, 2),
)


@st.composite
def worlds(draw: st.DrawFn) -> list[Any]:
    """What is likely to be bound, beside the base."""
    found = [draw(first_gateways)]
    if not draw(st.booleans()):
        found += SECOND_BASE
    for place in SERVICES:
        if draw(st.integers(0, 5)) < 5:
            found.append(draw(_service(place)))
    for some, most in ((virtual_services, 6), (delegates, 2), (aliases, 1), (rules, 3)):
        found += draw(st.lists(some, min_size=2 if some is virtual_services else 1 if some is rules else 0, max_size=most))
    return [*found, *draw(mixed((5, nothing), (1, st.lists(other_gateways, min_size=1, max_size=1))))]


gateway_changes = st.sampled_from(
    [
        *make.BASE,
        *SECOND_BASE,
        make.gateway_service(ports=(80, {"port": 9000, "targetPort": "tcp"})),
        make.gateway_service(clusterIP="None"),
        make.gateway_service(clusterIP="10.96.9.8"),
        make.pod(labels={"istio": "second"}),
        make.endpoints(ready=False),
        make.endpoints(addresses=("10.244.0.2", "fd00::2"), name="internalgateway-2", ready=False),
        make.endpoints(ports=({"name": "", "port": 15000},)),
        {"apiVersion": make.ISTIO, "kind": "Gateway", "metadata": {"name": "internalgateway", "namespace": "istio-system"}},
    ]
)
others = st.sampled_from(
    [
        make.namespace("default"),
        make.namespace("default", bind="false"),
        make.namespace("shop", bind="false"),
        make.namespace("shop", bind="perhaps"),
        {
            "apiVersion": make.ISTIO,
            "kind": "VirtualService",
            "metadata": {"name": "v", "namespace": "shop"},
            "spec": {"hosts": 3},
        },
    ]
)
changes = mixed(
    (6, virtual_services),
    (3, services),
    (1, delegates),
    (1, aliases),
    (2, rules),
    (1, first_gateways),
    (1, other_gateways),
    (1, gateway_changes),
    (1, others),
)
kinds = st.sampled_from(
    ["VirtualService"] * 4 + ["Service"] * 3 + ["DestinationRule"] * 2 + ["Gateway", "EndpointSlice", "Pod", "Namespace"]
)


def view_of(some: Iterable[Any]) -> View:
    return View(filter(None, map(parse, (*make.BASE, *some))))


def plain(result: Result) -> tuple[Any, ...]:
    return dict(result.bound), dict(result.skipped), result.problems, result.gateways


def features(binder: Binder, result: Result) -> Iterator[str]:
    """What there is to get wrong in a result."""
    cluster = binder.cluster
    bound = result.bound.values()
    if len(bound) > 1:
        yield "several names"
    if len({one.gateway for one in bound}) > 1:
        yield "two gateways"
    for one in bound:
        yield "bound"
        sources = [cluster.resolved[key] for key in one.routes]
        yield from _protocols(binder, one)
        if one.claims == (CLAIM_HOST,):
            yield "host of another's route"
        if any(rule.owner != source.key for source in sources for rule in source.http):
            yield "delegate"
        if any(host.startswith("*.") for source in sources for host in source.hosts):
            yield "wildcard host"
        if len(cluster.aliases(one.name)) > 1:
            yield "alias"
        if any(to.subset and to.host == one.name for source in sources for rule in source.http for to in rule.written):
            yield "subset"
        entitled = {one.service.partition("/")[0], one.gateway.partition("/")[0]}
        if binder.settings.cross_namespace is CrossNamespace.DENY and not {s.record.namespace for s in sources} <= entitled:
            yield "consent"
    for skip in result.skipped.values():
        if skip.reason in (Reason.CROSS_NAMESPACE, Reason.LIMIT_EXCEEDED, Reason.SHADOWED, Reason.PORT_NOT_SERVED):
            yield skip.reason.name
    for problem in result.problems:
        if problem.reason is Reason.CONFLICTED:
            yield "conflict"
        elif "Envoy refuses" in problem.message:
            yield "refused by Envoy"


def _protocols(binder: Binder, bound: Bound) -> Iterator[str]:
    service = binder.service(bound.name)
    assert service is not None
    for model, served, _ in binder.offers(bound.name, service):
        if model.frame.name == bound.gateway:
            yield from (part.protocol for part in served.values())


def count(seen: Counter[str], found: Iterable[str]) -> None:
    """Once per feature."""
    seen["looks"] += 1
    for one in set(found):
        seen[one] += 1
        event(one)


def short_of(seen: Counter[str], wanted: Mapping[str, float]) -> dict[str, str]:
    """Features that too small a share of the looks had."""
    looks = seen["looks"]
    return {one: f"{seen[one]} of {looks}" for one, share in wanted.items() if seen[one] < share * looks}


class Following(RuleBasedStateMachine):
    """Changes of any kind, in bursts, with a refresh after each."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(chosen=st.sampled_from(ALL_SETTINGS), some=worlds())
    def start(self, chosen: BindingSettings, some: list[Any]) -> None:
        self.settings = chosen
        self.view = view_of(some)
        self.binder = Binder(self.view, chosen)
        self.known: dict[str, Bound] = {}
        self.unready: frozenset[str] = frozenset()

    @rule(some=st.lists(changes, min_size=1, max_size=4))
    def apply(self, some: list[Any]) -> None:
        for one in some:
            record = parse(one)
            assert record is not None
            self.view.apply(record)

    @rule()
    def mend(self) -> None:
        """A gateway that is gone, and with it every bound name, comes back."""
        self.apply([*make.BASE, make.gateway()])

    @rule(kind=kinds, number=st.integers(0, 30))
    def delete(self, kind: str, number: int) -> None:
        known = sorted(self.view._records[kind])
        if known:
            self.view.delete(kind, *known[number % len(known)])

    @rule(kind=kinds, keep=st.integers(0, 3))
    def reset(self, kind: str, keep: int) -> None:
        records = self.view._records[kind]
        self.view.reset(kind, [records[key] for number, key in enumerate(sorted(records)) if number % 3 != keep])

    @rule(unready=st.sampled_from([frozenset(), frozenset(), frozenset({FIRST})]))
    def readiness(self, unready: frozenset[str]) -> None:
        self.unready = unready

    @rule(kinds=st.sets(st.sampled_from(["DestinationRule", "EndpointSlice", "Namespace", "Pod"]), max_size=2))
    def rights(self, kinds: set[str]) -> None:
        self.view.set_unavailable(kinds)

    @invariant()
    def the_same_as_bind(self) -> None:
        if not hasattr(self, "binder"):
            return
        changed = self.binder.refresh(self.unready)
        whole = bind(self.view, self.settings, self.unready)
        assert plain(self.binder.result) == plain(whole)
        assert dict(changed) == difference(self.known, whole.bound)
        news = {"unbound" if one is None else "otherwise" if name in self.known else "new" for name, one in changed.items()}
        count(self.seen, (*features(self.binder, whole), *news))
        self.known = dict(whole.bound)


@pytest.mark.timeout(300)  # To make a failing walk short takes its time.
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # Now and then hypothesis writes down what it draws from.
def test_following() -> None:
    Following.seen.clear()
    run_state_machine_as_test(
        Following,
        settings=settings(
            max_examples=60,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    assert not short_of(Following.seen, {"bound": 0.1, "new": 0.01, "unbound": 0.01}), Following.seen


@pytest.mark.timeout(300)
def test_the_worlds_bind() -> None:
    """The same ones each time: `derandomize`."""
    seen: Counter[str] = Counter()

    @given(worlds(), st.sampled_from(ALL_SETTINGS))
    @settings(
        max_examples=300,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def draw(some: list[Any], chosen: BindingSettings) -> None:
        binder = Binder(view_of(some), chosen)
        binder.start()
        count(seen, features(binder, binder.result))

    draw()
    routes_of = ["http", "https", "tls", "tcp", "host of another's route", "delegate", "wildcard host", "alias", "subset"]
    others_of = ["CROSS_NAMESPACE", "SHADOWED", "PORT_NOT_SERVED", "conflict", "refused by Envoy"]
    now_and_then = ["several names", "two gateways", "consent", *routes_of, *others_of]
    assert not short_of(seen, {"bound": 0.25, **dict.fromkeys(now_and_then, 1 / 300)}), seen
