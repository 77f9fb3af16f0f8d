"""Figures for the size that the rule is built for; run by hand: `python -m tests.mesh.scale`.

20,000 Services, 5,000 VirtualServices, 2,000 namespaces; every VirtualService in the shape of the original's users: hosts `*`,
one exact path, one destination. `same`: all ask for `/hello`, so all but one are hidden; `own`: each has its own path; `hosts`:
each has its Service's name as host; `subsets`: that too, and each names a subset that a DestinationRule of its own defines, all
of them in one namespace; `tls`: each has a tls route instead, with its Service's name as server name, on a passthrough server.
`tls=400` takes 400 VirtualServices.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from canal_dns.mesh.binding import Binder, bind
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import View
from tests.mesh import builders as make

SERVICES, ROUTES, NAMESPACES = 20_000, 5_000, 2_000


def _name(number: int) -> str:
    return make.full(f"svc-{number}.ns-{number % NAMESPACES}")


def _gateway(shape: str, *more: Any) -> Any:
    return parse(make.gateway(make.tls_server() if shape == "tls" else make.server(80), *more))


def _service(number: int, shape: str, namespace: str = "", name: str = "", *more: int) -> Any:
    ports = (8443 if shape == "tls" else 80, *more)
    return parse(make.service(name or f"svc-{number}", namespace or f"ns-{number % NAMESPACES}", ports))


def _route(number: int, shape: str, destination: str = "") -> Any:
    if shape == "tls":
        route = make.sni(_name(number), to_host=destination or _name(number))
        own = [_name(number)]
        return parse(make.virtual_service(tls=[route], name=f"vs-{number}", hosts=own, created=number % 3000))
    path = "/hello" if shape == "same" else f"/hello/{number}"
    aim = make.to(destination or _name(number), subset="v1" if shape == "subsets" else "")
    return parse(
        make.virtual_service(
            make.http(aim, match={"uri": {"exact": path}}),
            name=f"vs-{number}",
            hosts=[_name(number)] if shape in ("hosts", "subsets") else ["*"],
            created=number % 3000,
        )
    )


def _view(shape: str, routes: int) -> View:
    view = View(filter(None, map(parse, make.BASE)))
    view.apply(_gateway(shape))
    for number in range(NAMESPACES):
        view.apply(parse(make.namespace(f"ns-{number}")))  # type: ignore[arg-type]
    for number in range(SERVICES):
        view.apply(_service(number, shape))
    for number in range(routes):
        view.apply(_route(number, shape))
        if shape == "subsets":
            view.apply(_rule(number, "v1"))
    return view


def _rule(number: int, subset: str) -> Any:
    return parse(make.destination_rule(_name(number), subset, name=f"rule-{number}", namespace="istio-system"))


def _timed(label: str, work: Any, times: int = 1) -> Any:
    start = time.perf_counter()
    for number in range(times):
        found = work(number)
    spent = (time.perf_counter() - start) / times
    print(f"  {label:46} {spent * 1000:10.3f} ms")
    return found


def _measure(shape: str, routes: int) -> None:
    view = _timed("read the objects", lambda _: _view(shape, routes))
    settings = replace(make.SETTINGS, max_bindings=100_000)
    result = _timed("bind, reasons included", lambda _: bind(view, settings))
    print(f"  bound {len(result.bound)}, skipped {len(result.skipped)}")
    binder = Binder(view, settings)
    _timed("Binder, first refresh", lambda _: binder.refresh())

    def change(record: Any) -> None:
        view.apply(record)
        binder.refresh()

    def drop(kind: str, namespace: str, name: str) -> None:
        view.delete(kind, namespace, name)
        binder.refresh()

    def edit(number: int, destination: str = "") -> None:
        change(_route(number % routes, shape, destination))

    oldest = [0, 3000 % routes]
    _timed("VirtualService: other destination", lambda n: edit(n * 7, _name(9000 + n)), 200)
    _timed("VirtualService: back", lambda n: edit(n * 7), 200)
    _timed("VirtualService: deleted (the oldest)", lambda n: drop("VirtualService", "istio-system", f"vs-{oldest[n]}"), 2)
    _timed("VirtualService: created (the oldest)", lambda n: edit(oldest[n]), 2)
    _timed("VirtualService: of a new namespace", lambda n: change(_foreign(n, shape)), 20)
    _timed("Service: another port", lambda n: change(_service(n, shape, "", "", 81)), 200)
    _timed("Service: deleted", lambda n: drop("Service", f"ns-{n}", f"svc-{n}"), 200)
    _timed("Service: created", lambda n: change(_service(n, shape)), 200)
    _timed("Service that nobody routes to", lambda n: change(_service(0, shape, "ns-1", f"new-{n}")), 200)
    _timed("DestinationRule: another subset", lambda n: change(_rule(n, "v2")), 200)
    _timed("Namespace: new", lambda n: change(parse(make.namespace(f"new-{n}"))), 20)
    _timed("Namespace: opted out", lambda n: change(parse(make.namespace(f"ns-{n}", bind="false"))), 20)
    _timed("Gateway: another server", lambda n: change(_gateway(shape, make.tcp_server())))


def main(asked: list[str]) -> None:
    for one in asked:
        shape, _, count = one.partition("=")
        print(one)
        _measure(shape, int(count or ROUTES))


def _foreign(number: int, shape: str) -> Any:
    if shape == "tls":
        foreign = make.sni(f"foreign-{number}.example", to_host=_name(number))
        return parse(make.virtual_service(tls=[foreign], name="foreign", namespace=f"ns-{number}", created=3000))
    return parse(
        make.virtual_service(
            make.http(_name(number), match={"uri": {"prefix": f"/foreign/{number}"}}),
            name="foreign",
            namespace=f"ns-{number}",
            hosts=[_name(number)] if shape in ("hosts", "subsets") else ["*"],
            created=3000,
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["same", "own", "hosts", "subsets", "tls=2000"])
