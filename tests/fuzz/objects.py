"""Kubernetes objects as others write them: manifest files, what an API server sends, and the rule over what they say.

An input of `manifests`: an octet (odd: JSON), then the file; of `watch`: an octet that tells the kind, the pieces, and whether
it is a list, then what the server sends.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable

import yaml

from canal_dns.errors import ManifestError
from canal_dns.kube import decode, documents, kinds
from canal_dns.kube.failures import ApiError
from canal_dns.kube.reflector import Reflector
from canal_dns.kube.timing import Timing
from canal_dns.mesh import report
from canal_dns.mesh.binding import Binder
from canal_dns.mesh.records import Record, Skip
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters
from tests.fuzz.targets import need, target
from tests.kube.test_decode import EXAMPLES, full
from tests.mesh import builders as make

KINDS = (*kinds.EVERYWHERE, *kinds.BY_NAMESPACE)
_PIECES = (1, 3, 64, 1 << 16)
_LIST = 0x20

_WORLD = [record for record in map(parse, (*make.BASE, make.service(), make.gateway(), make.virtual_service())) if record]


def _ruled(records: Iterable[Record | Skip]) -> None:
    """The rule takes any objects, and what it says of them can be written down."""
    view = View(_WORLD)
    binder = Binder(view, make.SETTINGS)
    binder.refresh()
    for record in records:
        view.apply(record)
    binder.refresh()
    told = report.to_plain(binder.result, view, make.SETTINGS)
    json.dumps(told).encode()
    for bound in told["bound"]:
        need(bound["name"].isascii(), f"a name that is none: {bound}")


# -- files ----------------------------------------------------------------------------------------------------------------


def _files() -> list[bytes]:
    every = [full(item) for item in EXAMPLES]
    made = [b"\0" + yaml.safe_dump(item).encode() for item in every] + [b"\1" + json.dumps(item).encode() for item in every]
    made += [b"\0" + yaml.safe_dump_all([one, other]).encode() for one, other in itertools.pairwise(every)]
    made.append(b"\1" + json.dumps({"kind": "List", "apiVersion": "v1", "items": every[:2]}).encode())
    made.append(b"\0" + yaml.safe_dump({"kind": "ServiceList", "apiVersion": "v1", "items": every[:1]}).encode())
    made += [b"\0" + text.encode() for text in _ODD]
    return made


_ODD = (
    "a: &a [1, 2]\nkind: *a\n",
    "kind: &x {a: *x}\n",
    "%YAML 1.1\n---\nkind: List\nitems:\n- kind: Pod\n",
    "--- !!set {a, b}\n",
    "kind: !!python/object:os.system x\n",
    "kind: !!binary aGVsbG8=\n",
    "? [a, b]\n: c\n",
    "kind: |\n  text\n---\n...\n",
    "<<: {kind: Pod}\n",
    "<<: [{kind: Pod}, {apiVersion: v1}]\nmetadata: {name: x}\n",
    "x: 1:30\ny: 0x1f\nz: 1_000\nw: .inf\n",
    "!!omap [a: 1]\n",
    "!!pairs [a: 1]\n",
    "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {ports: [{port: 1e3}]}}\n",
    "\ufeffkind: Pod\n",
    "kind: 'a''b'\n",
    'kind: "\\x41\\u0042\\U00000043"\n',
    "!!timestamp 2001-01-01\n",
    "!!int '0b1'\n",
    "!!float x\n",
)


def _flat(octets: int) -> bytes:
    return b"\0kind: Service\nspec:\n  ports:\n" + b"  - {port: 80}\n" * (octets // 15)


def _nested(octets: int) -> bytes:
    return b"\0kind: " + b"[" * octets


def _deep_json(octets: int) -> bytes:
    return b"\1" + b'{"a":' * (octets // 5)


def _bomb(octets: int) -> bytes:
    """Each list is ten times the one before it."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    while sum(map(len, lines)) < octets:
        at = len(lines)
        lines.append(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]")
    return b"\0kind: X\n" + "\n".join(lines).encode()


def _merges(octets: int) -> bytes:
    """Each mapping takes in the one before it twice."""
    lines = ["a0: &a0 {k: v}"]
    while sum(map(len, lines)) < octets:
        at = len(lines)
        lines.append(f"a{at}: &a{at} {{<<: [*a{at - 1}, *a{at - 1}]}}")
    return b"\0kind: X\n" + "\n".join(lines).encode()


def _many_anchors(octets: int) -> bytes:
    return b"\0kind: X\n" + b"".join(b"k%d: &k%d [1]\n" % (at, at) for at in range(octets // 16))


def _sixties(octets: int) -> bytes:
    return b"\0kind: X\nx: 1" + b":59" * (octets // 3) + b"\n"


_FILE_WORDS = """kind: |apiVersion: |metadata: |name: |namespace: |spec: |items: |- |&a |*a|<<: |!!int |!!float |!!binary |
!!set |!!omap |!!timestamp |? |{|}|[|]|Service|VirtualService|Gateway|List|v1|networking.istio.io/v1|\\u0000|"|'|0x|0b|:59|1_0|
.inf|null|~|%YAML 1.1"""
FILE_WORDS = (*_FILE_WORDS.replace("\n", "").encode().split(b"|"), b"---\n", b"|\n", b"\n  ", b"\xef\xbb\xbf", b"\n")


@target(
    "manifests",
    "a manifest file, YAML or JSON, from its octets to the bindings that come of it",
    seeds=_files,
    families=(_flat, _nested, _deep_json, _bomb, _merges, _many_anchors, _sixties),
    fixed=20_000,
    per_octet=400,
    words=FILE_WORDS,
    largest=4096,
)
def manifests(data: bytes) -> None:
    if not data:
        return
    try:
        found = documents.read(data[1:], "x.json" if data[0] & 1 else "x.yaml")
    except ManifestError as problem:
        str(problem).encode()
        return
    _ruled(record for record in (parse(one.raw) for one in found) if record is not None)


# -- an API server ---------------------------------------------------------------------------------------------------------


def _streams() -> list[bytes]:
    every = [full(item) for item in EXAMPLES]
    made = []
    for at, kind in enumerate(KINDS):
        fitting = [item for item in every if item["kind"] == kind.name]
        events = [{"type": one, "object": item} for one in ("ADDED", "MODIFIED", "DELETED") for item in fitting]
        events.append({"type": "BOOKMARK", "object": {"kind": kind.name, "metadata": {"resourceVersion": "9"}}})
        lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        made += [bytes([at | pieces << 3]) + lines for pieces in range(4)]
        made += [bytes([at | 0x18]) + json.dumps(event).encode() + b"\n" for event in events]
        told = {"kind": f"{kind.name}List", "metadata": {"resourceVersion": "5", "continue": "x"}, "items": fitting}
        made.append(bytes([at | _LIST]) + json.dumps(told).encode())
    status = {
        "kind": "Status",
        "code": 410,
        "reason": "Expired",
        "details": {"causes": [{"reason": "x"}], "retryAfterSeconds": 3},
    }
    made.append(b"\x18" + json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
    made.append(b"\x18" + json.dumps(status).encode() + b"\n")
    return made


def _of(kind: str, many: Callable[[int], bytes]) -> Callable[[int], bytes]:
    place = [one.name for one in KINDS].index(kind)

    def family(octets: int) -> bytes:
        return bytes([place | _LIST]) + many(octets)

    family.__name__ = many.__name__
    return family


def _list(kind: str, items: bytes) -> bytes:
    return b'{"kind":"%sList","metadata":{"resourceVersion":"5"},"items":[%s]}' % (kind.encode(), items)


def _object(kind: str, spec: bytes) -> bytes:
    return _list(kind, b'{"metadata":{"name":"n","namespace":"istio-system"},"spec":%s}' % spec)


def _small_services(octets: int) -> bytes:
    return _list("Service", b",".join(b'{"metadata":{"name":"s%d"}}' % at for at in range(octets // 30)))


def _ports(octets: int) -> bytes:
    return _object("Service", b'{"ports":[%s]}' % b",".join(b'{"port":%d}' % (at % 65535 + 1) for at in range(octets // 12)))


def _hosts(octets: int) -> bytes:
    hosts = b",".join(b'"h%d.x"' % at for at in range(octets // 9))
    return _object("VirtualService", b'{"gateways":["internalgateway"],"hosts":[%s],"http":[{"route":[]}]}' % hosts)


def _routes(octets: int) -> bytes:
    route = b'{"match":[{"uri":{"prefix":"/%d"}}],"route":[{"destination":{"host":"helloworld.default.svc.cluster.local"}}]}'
    routes = b",".join(route % at for at in range(octets // 100))
    return _object("VirtualService", b'{"gateways":["internalgateway"],"hosts":["*"],"http":[%s]}' % routes)


def _regex(text: bytes) -> bytes:
    destination = b'{"route":[{"destination":{"host":"helloworld.default.svc.cluster.local"}}]}'
    matched = b'{"match":[{"uri":{"regex":"%s"}}],"route":[]}' % text
    return _object("VirtualService", b'{"gateways":["internalgateway"],"hosts":["*"],"http":[%s,%s]}' % (matched, destination))


def _parentheses(octets: int) -> bytes:
    return _regex(b"(" * (octets // 2) + b"a" + b")" * (octets // 2))


def _alternatives(octets: int) -> bytes:
    return _regex(b"(a|b)" * (octets // 5))


def _stars(octets: int) -> bytes:
    return _regex(b"(a*)*" * (octets // 5) + b"b")


def _servers(octets: int) -> bytes:
    one = b'{"port":{"number":%d,"protocol":"HTTP","name":"h"},"hosts":["*"]}'
    servers = b",".join(one % (at % 60_000 + 1) for at in range(octets // 64))
    return _object("Gateway", b'{"selector":{"istio":"internalgateway"},"servers":[%s]}' % servers)


def _lines(octets: int) -> bytes:
    """Lines of no use, in small pieces."""
    return b"\x08" + b"{}\n" * (octets // 3)


def _one_line(octets: int) -> bytes:
    return b"\x08" + b"x" * octets


def _deep(octets: int) -> bytes:
    return b"\x18" + b'{"type":"ADDED","object":' + b'{"a":' * (octets // 5) + b"\n"


_WATCH_WORDS = """type object kind metadata name namespace resourceVersion spec items ADDED MODIFIED DELETED BOOKMARK ERROR
Service VirtualService Gateway Pod EndpointSlice hosts gateways http match uri regex prefix exact route destination host ports
port number subsets delegate redirect tcp tls sniHosts * servers selector clusterIP clusterIPs annotations labels headers
canal-dns.io/bind canal-dns.io/allow-from canal-dns.io/ttl exportTo status Status code internalgateway istio-system a{2} (a|b)*
helloworld.default.svc.cluster.local 2026-01-01T00:00:00Z"""
WATCH_WORDS = (
    *(f'"{word}"'.encode() for word in _WATCH_WORDS.split()),
    *b"\n|{|}|[|]|:|,|null|\\ud800|1e999|-1|{}|[]".split(b"|"),
)


@target(
    "watch",
    "what an API server sends, lists and watches in any pieces, from its octets to the bindings that come of it",
    seeds=_streams,
    families=(
        _of("Service", _small_services),
        _of("Service", _ports),
        _of("VirtualService", _hosts),
        _of("VirtualService", _routes),
        _of("VirtualService", _parentheses),
        _of("VirtualService", _alternatives),
        _of("VirtualService", _stars),
        _of("Gateway", _servers),
        _lines,
        _one_line,
        _deep,
    ),
    fixed=300_000,
    per_octet=500,
    words=WATCH_WORDS,
    largest=4096,
)
def watch(data: bytes) -> None:
    if not data:
        return
    kind = KINDS[min(data[0] & 7, len(KINDS) - 1)]
    if data[0] & _LIST:
        _listed(kind, data[1:])
        return
    view = View(_WORLD)
    told: list[float | None] = []
    reflector = Reflector(None, kind, view, Counters(), told.append, timing=Timing())  # type: ignore[arg-type]
    lines = decode.Lines()
    size = _PIECES[data[0] >> 3 & 3]
    pieces = [data[at : at + size] for at in range(1, len(data), size)]
    try:
        for piece in (*pieces, b"\n"):
            for line in lines.feed(piece):
                reflector._event(line)
    except (ApiError, decode.MalformedError) as problem:
        str(problem).encode()
    records = [view.find(one.name, key) for one in KINDS for key in view.keys(one.name)]
    _ruled(record for record in records if record is not None)


def _listed(kind: kinds.Kind, body: bytes) -> None:
    objects = decode.Objects(kind, kind.versions[0])
    records = []
    try:
        for item in decode.page(body).items:
            _, record = objects.read(item)
            if record is not None and record.name:
                records.append(record)
    except decode.MalformedError as problem:
        str(problem).encode()
    _ruled(records)
