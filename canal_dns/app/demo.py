"""The whole thing on one machine: a stand-in CoreDNS that knows the Services' own addresses, and canal-dns in front of it.

`canal-dns demo` runs until Ctrl-C and follows edits of the manifests; `--once` asks one question of each sort and stops.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from canal_dns.app.config import Configuration
from canal_dns.app.control import Control
from canal_dns.app.feed import Feed, offline
from canal_dns.app.logs import Logs
from canal_dns.dns import message
from canal_dns.dns.names import service_name
from canal_dns.errors import ConfigError
from canal_dns.mesh.view import View
from canal_dns.server.standin import StandIn, ask
from canal_dns.settings import Endpoint

LISTEN, ADMIN = "127.0.0.1:1053", "127.0.0.1:8080"
MISSING = "no-such-service"
EXIT_OK, EXIT_FAILED = 0, 1


class Show(Protocol):
    """Where the demo writes: `cli` brings it."""

    def line(self, text: str = "") -> None: ...

    def table(self, plain: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A name to ask, and what the answer should be."""

    name: str
    qtype: str
    why: str
    rcode: str
    expected: tuple[str, ...]
    """Addresses of the answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo runs with."""

    manifests: Path
    listen: str
    admin: str
    once: bool


def plan(manifests: Path | None, listen: str | None, admin: str | None, *, once: bool) -> Plan:
    """The defaults; `--once` takes a free port and no admin endpoint, since nobody else needs to find them."""
    folder = manifests or shipped_manifests()
    return Plan(folder, listen or ("127.0.0.1:0" if once else LISTEN), admin or ("off" if once else ADMIN), once)


def shipped_manifests() -> Path:
    """`config/demo` of a checkout, or where an installation put it. Raises ConfigError."""
    checkout = Path(__file__).parents[2] / "config" / "demo"
    installed = Path(sys.prefix) / "share" / "canal-dns" / "demo"
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    raise ConfigError("--manifests", None, f"the demo's manifests are in neither {checkout} nor {installed}: name a folder")


async def run(chosen: Plan, show: Show) -> int:
    """Run the demo. Gives the exit status. Raises ListenError, ConfigError, ManifestError."""
    controls: list[Control] = []
    standin = StandIn(
        lambda query: message.answer(query, zone_of(controls[0].bindings.feed.view, "cluster.local"), "cluster.local")
    )
    upstream = await standin.start()
    config = Configuration(None, _flags(chosen, upstream))
    settings = config.load()
    await offline(settings.source, settings.binding)
    logs = Logs()
    logs.start(settings.log)
    first_table = asyncio.Event()
    control = Control(settings, config, announce=lambda _: None, on_first_table=first_table.set, daemon=False)
    controls.append(control)
    running = asyncio.create_task(control.run())
    published = asyncio.create_task(first_table.wait())
    try:
        await asyncio.wait({running, published}, return_when=asyncio.FIRST_COMPLETED)
        good = True
        if published.done():
            good = await _present(control, chosen, upstream, show)
        status = await running
    finally:
        published.cancel()
        await standin.stop()
        logs.stop()
    return status or (EXIT_OK if good else EXIT_FAILED)


async def _present(control: Control, chosen: Plan, upstream: Endpoint, show: Show) -> bool:
    """Print what is bound and what to ask; with `--once` ask it, and say whether every answer is as it should be."""
    listen = control.plane.listeners[0]
    show.table(control.bindings.to_plain())
    show.line()
    show.line(
        f"canal-dns listens on {listen} (UDP and TCP); a stand-in CoreDNS on {upstream} knows the Services' own addresses."
    )
    good = True
    for question in questions(control.bindings.feed):
        show.line()
        show.line(f"$ dig @{listen.host} -p {listen.port} +noall +answer {question.name} {question.qtype}    # {question.why}")
        if chosen.once:
            reply = message.read_answer(
                await ask(listen, message.make_query(question.name, question.qtype, secrets.randbits(16)))
            )
            right = reply.rcode == question.rcode and tuple(line.split()[-1] for line in reply.records) == question.expected
            good = good and right
            for line in reply.records or (f";; {reply.rcode}, no answer",):
                show.line(line)
            if not right:
                show.line(f";; WRONG: expected {question.rcode} {' '.join(question.expected)}")
    if chosen.once:
        control.stop()
        return good
    show.line()
    show.line(f"Edit {chosen.manifests} and ask again: the answers follow within a second. Why a name is (not) bound:")
    for name in [*sorted(control.bindings.feed.result.bound)[:1], *sorted(control.bindings.feed.result.skipped)[:1]]:
        show.line(f"$ canal-dns explain {name} --manifests {chosen.manifests}")
    if control.admin_address is not None:
        show.line(f"$ curl http://{control.admin_address}/bindings")
    show.line()
    show.line("Ctrl-C ends it.")
    return True


def questions(feed: Feed) -> list[Question]:
    """One of each sort: a bound name, its other family, a Service that keeps its own address, a name that does not exist."""
    domain = feed.settings.cluster_domain
    result, services = feed.result, feed.view.services
    asked = []
    bound = sorted(result.bound, key=lambda name: (not name.startswith("helloworld."), name))
    for name in bound[:1]:
        one = result.bound[name]
        asked.append(Question(name, "A", f"bound: the VIP of {one.gateway}", "NOERROR", one.v4))
        asked.append(Question(name, "AAAA", "and its IPv6 address" if one.v6 else "no IPv6 VIP: no answer", "NOERROR", one.v6))
    plain = {service_name(one.name, one.namespace, domain): one for one in services.values() if one.v4}
    untouched = [name for name in sorted(plain) if name not in result.bound and name not in result.skipped]
    for name in [name for name in untouched if not _is_gateway(feed, plain[name].namespace, plain[name].name)][:1]:
        asked.append(Question(name, "A", "no VirtualService mentions it: its own address", "NOERROR", plain[name].v4))
    for name in [name for name in sorted(result.skipped) if name in plain][:1]:
        why = f"skipped ({result.skipped[name].reason.value}): its own address"
        asked.append(Question(name, "A", why, "NOERROR", plain[name].v4))
    asked.append(Question(service_name(MISSING, "default", domain), "A", "no such Service", "NXDOMAIN", ()))
    return asked


def _is_gateway(feed: Feed, namespace: str, name: str) -> bool:
    return any((gateway.namespace, gateway.name) == (namespace, name) for gateway in feed.settings.gateways)


def zone_of(view: View, domain: str) -> message.Zone:
    """What CoreDNS's kubernetes plugin would say of these Services: A, AAAA and SRV, or the CNAME of an ExternalName."""
    zone: dict[str, list[tuple[str, str]]] = {}
    for service in view.services.values():
        name = service_name(service.name, service.namespace, domain)
        if service.external_name:
            zone[name] = [("CNAME", service.external_name.removesuffix(".") + ".")]
            continue
        zone[name] = [("A", address) for address in service.v4] + [("AAAA", address) for address in service.v6]
        for port in service.ports:
            if port.name:
                zone[f"_{port.name}._{port.protocol.lower()}.{name}"] = [("SRV", f"0 100 {port.port} {name}.")]
    return zone


def _flags(chosen: Plan, upstream: Endpoint) -> dict[str, Any]:
    return {
        "listen": [chosen.listen],
        "upstreams": [str(upstream)],
        "upstreamSentinel": "none",
        "source": {"manifests": str(chosen.manifests)},
        "workers": 0,
        "admin": chosen.admin,
        "lameduck": 0,
        # There is no istiod here that would need time to program a gateway.
        "binding": {"settle": 0, "gatewayUnreadyAfter": 0},
        "log": {"level": "warning"},
    }
