"""The model in the words of the data sets, to hold it against what istiod and Envoy really programmed.

An entry is what one cluster of one domain is: (port, route, domain, cluster) -> (known, reachable), as the field `http` has it;
(port, server names, cluster) -> (known, reachable) for `tcp`.
"""

from __future__ import annotations

from typing import Any

from canal_dns.mesh.binding import Binder
from canal_dns.mesh.hosts import service_of
from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.resources import parse
from canal_dns.mesh.routes import Target
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings

DOMAIN = "cluster.local"


def view_of(world: list[Any], objects: list[Any]) -> View:
    return View(record for record in map(parse, [*world, *objects]) if record is not None)


def binder_of(view: View, settings: BindingSettings) -> Binder:
    binder = Binder(view, settings)
    binder.start()
    return binder


def cluster(view: View, target: Target) -> str:
    """istiod's name of a destination's cluster (GetDestinationCluster)."""
    key = service_of(target.host, DOMAIN)
    service = view.services.get(key) if key else None
    port = target.port
    if port is None:
        port = service.ports[0].port if service and len(service.ports) == 1 else target.listener_port
    host = service.external_name if service and service.external_name else target.host
    return f"outbound|{port}|{target.subset}|{host}"


def http_entries(binder: Binder, hosts: list[str]) -> dict[tuple[int, str, str, str], tuple[bool, bool]]:
    """Every cluster in every virtual host. `hosts`: names to ask for where a route tests the authority."""
    model = binder.cluster.models[0]
    find = binder.cluster.finder(model)
    found: dict[tuple[int, str, str, str], tuple[bool, bool]] = {}
    for listener in model.layout.listeners:
        for chain in listener.chains:
            if chain.kind != "http":
                continue
            table = model.tables[chain.route_name]
            for domain, host in table.hosts.items():
                asked = [one for one in (domain, *hosts) if table.domains.pick(one) == domain or one == domain]
                for entry in host.entries.values():
                    comes = any(host.reached(entry, one) for one in asked)
                    reachable = comes and listener.reachable and not table.only_redirects(domain)
                    for target in entry.built.targets:
                        key = (listener.port, table.name, domain, cluster(binder.view, target))
                        known, before = found.get(key, (False, False))
                        found[key] = (known or find(target).exists, before or reachable)
    return found


def tcp_entries(binder: Binder) -> dict[tuple[int, tuple[str, ...], str], tuple[bool, bool]]:
    """Every cluster of every tcp_proxy."""
    model = binder.cluster.models[0]
    find = binder.cluster.finder(model)
    found = {}
    for listener in model.layout.listeners:
        chains = model.chains(listener)
        for one in () if isinstance(chains, str) else chains:
            for target in one.offer.targets if one.offer else ():
                key = (listener.port, tuple(sorted(one.names or ())), cluster(binder.view, target))
                found[key] = (find(target).exists, listener.reachable)
    return found


def routed(model: GatewayModel, http: dict[Any, Any], tcp: dict[Any, Any], names: set[str]) -> dict[str, list[int]]:
    """Services that some request reaches, with the ports of the gateway's Service."""
    ports: dict[str, set[int]] = {}
    for key, (_, reachable) in [*http.items(), *tcp.items()]:
        host = key[-1].split("|")[-1]
        if reachable and host in names:
            ports.setdefault(host, set()).update(one for one, pod in model.frame.ports.items() if pod == key[0])
    return {name: sorted(some) for name, some in ports.items() if some}
