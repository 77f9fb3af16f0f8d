"""Figures for the size that the rule is built for; run by hand: `python -m tests.mesh.scale`.

20,000 Services, 5,000 VirtualServices, 2,000 namespaces; every VirtualService in the shape of the original's users: hosts `*`,
one exact path, one destination. `same`: all ask for `/hello`, so all but one are hidden; `own`: each has its own path; `hosts`:
each has its Service's name as host; `subsets`: that too, and each names a subset that a DestinationRule of its own defines, all
of them in one namespace.
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


def _route(number: int, shape: str, destination: str = "") -> Any:
    path = "/hello" if shape == "same" else f"/hello/{number}"
    aim = make.to(destination or _name(number), subset="v1" if shape == "subsets" else None)
    return parse(
        make.virtual_service(
            make.http(aim, match={"uri": {"exact": path}}),
            name=f"vs-{number}",
            hosts=[_name(number)] if shape in ("hosts", "subsets") else ["*"],
            created=number % 3000,
        )
    )


def _view(shape: str) -> View:
    view = View(filter(None, map(parse, (*make.BASE, make.gateway(make.server(80))))))
    for number in range(NAMESPACES):
        view.apply(parse(make.namespace(f"ns-{number}")))  # type: ignore[arg-type]
    for number in range(SERVICES):
        view.apply(parse(make.service(f"svc-{number}", f"ns-{number % NAMESPACES}")))  # type: ignore[arg-type]
    for number in range(ROUTES):
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


def main(shapes: list[str]) -> None:
    for shape in shapes:
        print(shape)
        view = _timed("read 27,000 objects", lambda _, shape=shape: _view(shape))
        settings = replace(make.SETTINGS, max_bindings=100_000)
        result = _timed("bind, reasons included", lambda _, view=view, settings=settings: bind(view, settings))
        print(f"  bound {len(result.bound)}, skipped {len(result.skipped)}")
        binder = Binder(view, settings)
        _timed("Binder, first refresh", lambda _, binder=binder: binder.refresh())

        def change(record: Any, binder: Binder = binder, view: View = view) -> None:
            view.apply(record)
            binder.refresh()

        def drop(kind: str, namespace: str, name: str, binder: Binder = binder, view: View = view) -> None:
            view.delete(kind, namespace, name)
            binder.refresh()

        _timed("VirtualService: other destination", lambda n, s=shape: change(_route(n * 7, s, _name(9000 + n))), 200)
        _timed("VirtualService: back", lambda n, s=shape: change(_route(n * 7, s)), 200)
        _timed("VirtualService: deleted (the oldest)", lambda n: drop("VirtualService", "istio-system", f"vs-{n * 3000}"), 2)
        _timed("VirtualService: created (the oldest)", lambda n, s=shape: change(_route(n * 3000, s)), 2)
        _timed("VirtualService: of a new namespace", lambda n, s=shape: change(_foreign(n, s)), 20)
        _timed("Service: another port", lambda n: change(parse(make.service(f"svc-{n}", f"ns-{n}", (80, 81)))), 200)
        _timed("Service: deleted", lambda n: drop("Service", f"ns-{n}", f"svc-{n}"), 200)
        _timed("Service: created", lambda n: change(parse(make.service(f"svc-{n}", f"ns-{n}"))), 200)
        _timed("Service that nobody routes to", lambda n: change(parse(make.service(f"new-{n}", "ns-1"))), 200)
        _timed("DestinationRule: another subset", lambda n: change(_rule(n, "v2")), 200)
        _timed("Namespace: new", lambda n: change(parse(make.namespace(f"new-{n}"))), 20)
        _timed("Namespace: opted out", lambda n: change(parse(make.namespace(f"ns-{n}", bind="false"))), 20)
        _timed("Gateway: another server", lambda n: change(parse(make.gateway(make.server(80), make.tcp_server()))))


def _foreign(number: int, shape: str) -> Any:
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
    main(sys.argv[1:] or ["same", "own", "hosts", "subsets"])
