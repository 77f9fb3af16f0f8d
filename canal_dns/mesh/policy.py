"""What canal-dns itself forbids, or allows with a warning, once the gateway serves a name.

Rules of this file:
- each policy is one function that gives the Refusal or None; their order in `refusal_of_name` and `refusal_on_gateway` is the
  order in which they are told to people;
- DNS moves every port of a name at once, so a port that the gateway does not serve is lost to all clients;
- who may take a name's traffic: VirtualServices of its own namespace, of the gateway's, and those that the Service consents to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from canal_dns.mesh.model import GatewayModel
from canal_dns.mesh.records import Namespace, Service, ServicePort, Skip, key_text
from canal_dns.mesh.resources import ANNOTATION_ALLOW_FROM, ANNOTATION_BIND
from canal_dns.mesh.result import Reason, joined
from canal_dns.mesh.serving import Served, ways
from canal_dns.settings import BindingSettings, CrossNamespace, GatewayUnready, PortGuard

PROTECTED = (("default", "kubernetes"), ("kube-system", "*"), ("*", "canal-dns"))
"""(namespace, name) that are never bound: the cluster itself, its DNS, ourselves; beside them istiod and the gateways."""

MIN_TTL, MAX_TTL = 1, 3600
"""Seconds: a binding must be forgotten again, and an answer of 0 s would be asked for at every connection."""

_SPEAKS_HTTP = frozenset({"http", "http2", "grpc", "grpc-web", "http_proxy", "h2c", "ws"})
_SPEAKS_TLS = frozenset({"https", "tls", "wss"})
_SPEAKS_OTHER = frozenset({"tcp", "mongo", "mysql", "redis", "postgresql", "postgres", "amqp", "kafka", "udp"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first rule that fails, and where."""

    reason: Reason
    message: str
    object: str
    field: str = ""
    route: str = ""
    """The VirtualService at issue, `namespace/name`, if there is one."""


def unusable(skip: Skip, route: str = "") -> Refusal:
    """An object that is there and cannot be used is the one at fault."""
    thing = f"{skip.kind} {key_text(skip.namespace, skip.name)}"
    return Refusal(Reason.INVALID, f"{thing} is there but not usable: {skip.message}", thing, skip.field, route)


def refusal_of_name(service: Service, namespace: Namespace | None, settings: BindingSettings) -> Refusal | None:
    """What forbids a Service's name whatever serves it."""
    this = f"Service {service.namespace}/{service.name}"
    if _is_protected(service, settings):
        message = f"{service.namespace}/{service.name} is protected: it is never bound"
        return Refusal(Reason.PROTECTED, message, this, "metadata.name")
    if service.bind is False:
        return Refusal(
            Reason.OPTED_OUT, f"the Service's annotation {ANNOTATION_BIND} says no", this, _annotation(ANNOTATION_BIND)
        )
    if namespace is not None and namespace.bind is False:
        message = f"the annotation {ANNOTATION_BIND} of namespace {namespace.name} says no"
        return Refusal(Reason.OPTED_OUT, message, f"Namespace {namespace.name}", _annotation(ANNOTATION_BIND))
    if service.external_name:
        message = f"an ExternalName Service is a CNAME to {service.external_name}: its query is forwarded"
        return Refusal(Reason.EXTERNAL_NAME, message, this, "spec.externalName")
    if service.headless and not settings.headless and service.bind is not True:
        message = f'a headless Service is bound only with the annotation {ANNOTATION_BIND}: "true", or binding.headless'
        return Refusal(Reason.HEADLESS, message, this, "spec.clusterIP")
    return None


def no_route(service: Service) -> Refusal:
    """Nothing forbids the Service's name, and nothing means it."""
    message = "no VirtualService names the Service, as destination or as host"
    return Refusal(Reason.NO_ROUTE, message, f"Service {service.namespace}/{service.name}")


def _is_protected(service: Service, settings: BindingSettings) -> bool:
    if service.namespace == settings.mesh.root_namespace and service.name.partition("-")[0] == "istiod":
        return True
    for namespace, name in (*PROTECTED, *settings.protected):
        if namespace in ("*", service.namespace) and name in ("*", service.name):
            return True
    return any(one.name == service.name and one.namespace == service.namespace for one in settings.gateways)


def _annotation(name: str) -> str:
    return f"metadata.annotations[{name}]"


def objection(
    service: Service, model: GatewayModel, served: Mapping[int, Served], settings: BindingSettings, unready: frozenset[str]
) -> Reason | None:
    """What forbids the name on a gateway that serves it on some port; `refusal_on_gateway` says it in words."""
    if model.frame.unusable:
        return Reason.GATEWAY_NOT_USABLE
    if settings.port_guard is PortGuard.ENFORCE and next(_missing_ports(service, served), None) is not None:
        return Reason.PORT_NOT_SERVED
    if settings.cross_namespace is CrossNamespace.DENY and _is_foreign(service, model, served):
        return Reason.CROSS_NAMESPACE
    if settings.gateway_unready is GatewayUnready.FORWARD and model.frame.name in unready:
        return Reason.GATEWAY_NOT_READY
    return None


def refusal_on_gateway(reason: Reason, service: Service, model: GatewayModel, served: Mapping[int, Served]) -> Refusal:
    """An objection, with object, field and a sentence."""
    name = model.frame.name
    if reason is Reason.GATEWAY_NOT_USABLE:
        return Refusal(reason, model.frame.unusable, f"Service {name}", "spec.clusterIPs")
    if reason is Reason.PORT_NOT_SERVED:
        return _port_refusal(service, model, next(_missing_ports(service, served)))
    if reason is Reason.CROSS_NAMESPACE:
        foreign = _first_foreign(service, model, served)
        message = (
            f"VirtualService {foreign} governs the name too, which is neither of namespace {service.namespace} nor of the "
            f"gateway's; the Service can consent with the annotation {ANNOTATION_ALLOW_FROM}"
        )
        return Refusal(reason, message, f"VirtualService {foreign}", "metadata.namespace", foreign)
    return Refusal(reason, f"the gateway {name} has no ready endpoint: its names are forwarded", f"Service {name}")


def _missing_ports(service: Service, served: Mapping[int, Served]) -> Iterator[tuple[int, ServicePort]]:
    for index, port in enumerate(service.ports):
        if port.protocol != "TCP" or port.port not in served:
            yield index, port


def _port_refusal(service: Service, model: GatewayModel, missing: tuple[int, ServicePort]) -> Refusal:
    index, port = missing
    if port.protocol != "TCP":
        why = f"no gateway can carry {port.protocol}"
    elif port.port not in model.frame.ports:
        why = f"the gateway's Service {model.frame.name} has no port {port.port}"
    elif model.listener(port.port) is None:
        why = f"no server of an attached Gateway listens on port {port.port} of {model.frame.name}"
    else:
        why = f"what listens on port {port.port} of {model.frame.name} does not serve this name"
    return Refusal(
        Reason.PORT_NOT_SERVED,
        f"the Service has port {port.port}/{port.protocol}, and {why}; DNS would move that port too",
        f"Service {service.namespace}/{service.name}",
        f"spec.ports[{index}]",
    )


def _asked(service: Service, served: Mapping[int, Served]) -> list[Served]:
    """What serves the ports at which clients of the Service ask; if it is none of them, all that serves the name."""
    own = [served[port.port] for port in service.ports if port.port in served]
    return own or list(served.values())


def _entitled(service: Service, model: GatewayModel) -> frozenset[str]:
    """Namespaces whose VirtualServices may see the requests for the Service's name."""
    return service.allow_from | {service.namespace, model.frame.workload.namespace}


def _is_foreign(service: Service, model: GatewayModel, served: Mapping[int, Served]) -> bool:
    """A VirtualService sees the name's requests without being entitled to."""
    entitled = _entitled(service, model)
    if "*" in service.allow_from:
        return False
    return any(one not in entitled for part in _asked(service, served) for some in part.namespaces for one in some)


def _first_foreign(service: Service, model: GatewayModel, served: Mapping[int, Served]) -> str:
    """The first such VirtualService by name."""
    entitled = _entitled(service, model)
    sources = {one for part in _asked(service, served) for some in part.governors for one in some}
    return min(one for one in sources if one.partition("/")[0] not in entitled)


def time_to_live(service: Service, settings: BindingSettings) -> int:
    """Seconds: the Service's annotation, within bounds, or the setting."""
    return settings.ttl if service.ttl is None else min(max(service.ttl, MIN_TTL), MAX_TTL)


def warnings(service: Service, model: GatewayModel, served: Mapping[int, Served], settings: BindingSettings) -> list[str]:
    """What a person should know about a name that is bound all the same."""
    told: set[str] = set()
    for _, port in _missing_ports(service, served):
        told.add(f"port {port.port}/{port.protocol} of the Service is not served by the gateway, and clients lose it")
    if settings.cross_namespace is CrossNamespace.WARN and _is_foreign(service, model, served):
        told.add("VirtualServices of other namespaces govern the name without the Service's consent")
    for one in model.frame.attached:
        name = f"{one.namespace}/{one.name}"
        if not one.selector and any(name in part.gateways for part in served.values()):
            told.add(f"Gateway {name} has no selector: it attaches to every gateway of the mesh")
    for part in served.values():
        told |= part.warnings
    told.update(_contradictions(service, served))
    if service.ttl is not None and not MIN_TTL <= service.ttl <= MAX_TTL:
        told.add(f"the annotated TTL of {service.ttl} s is out of bounds: {MIN_TTL} to {MAX_TTL} s are allowed")
    return sorted(told)


def _contradictions(service: Service, served: Mapping[int, Served]) -> Iterable[str]:
    """The declared protocol of a port (appProtocol, or the prefix of its name) against the server that serves it."""
    for port in service.ports:
        part = served.get(port.port)
        declared = (port.app_protocol.rpartition("/")[2] or port.name.partition("-")[0]).lower()
        if port.protocol != "TCP" or part is None or declared not in _SPEAKS_HTTP | _SPEAKS_TLS | _SPEAKS_OTHER:
            continue
        spoken = {"http": _SPEAKS_HTTP, "https": _SPEAKS_TLS, "tls": _SPEAKS_TLS}.get(part.protocol)
        if spoken is not None and declared not in spoken:
            yield f"port {port.port} is declared as {declared}, but the gateway serves it as {part.protocol}"


def short_form_warnings(service: Service, model: GatewayModel, served: Mapping[int, Served], domain: str) -> list[str]:
    """Clients may write `svc.ns`; the gateway sees that as the host, and knows it only if some domain covers it."""
    lost: set[str] = set()
    own = {port.port for port in service.ports}
    for port, part in served.items():
        listener = model.listener(port)
        if part.protocol not in ("http", "https") or listener is None or (own & set(served) and port not in own):
            continue
        for form in (service.name, f"{service.name}.{service.namespace}", f"{service.name}.{service.namespace}.svc"):
            hosts = [way.host for way in ways(model, listener, form) if way.host is not None]
            if not any(route in host.governors(form) for host in hosts for route in part.routes):
                lost.add(form)
    if not lost:
        return []
    full = f"{service.name}.{service.namespace}.svc.{domain}"
    return [f"requests for {joined(sorted(lost))} do not come to its routes: clients must write {full}"]
