"""What canal-dns wrote itself and somebody else may have changed: the saved table, and messages between its processes.

An input of `snapshot`: an octet (odd: the head of the file is made to fit), then the file, or what is below its head; of
`link`: an octet that says in what pieces the others arrive, then what arrives.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any, cast

import msgspec

from canal_dns.app import snapshot
from canal_dns.dns import names
from canal_dns.dns.access import Gate
from canal_dns.dns.responder import Reply, decide
from canal_dns.dns.table import Addresses, AnswerTable
from canal_dns.errors import SnapshotError, TableError
from canal_dns.metrics import Counters
from canal_dns.server import link
from canal_dns.settings import AccessSettings, Settings, SourceSettings
from tests.dns.packets import VIP4, VIP6, packet
from tests.fuzz.queries import CLIENT, NOW
from tests.fuzz.targets import need, target
from tests.fuzz.valid import sound, udp_limit

GATEWAY = "istio-system/internalgateway"
ZONE = "cluster.local"
WRITTEN = 1_800_000_000.0
_WANTED = snapshot.Wanted("manifests: x", ZONE, frozenset({GATEWAY}), 86400.0)
_HEAD = f"{snapshot.MAGIC} {snapshot.FORMAT} ".encode()

_folder: list[tempfile.TemporaryDirectory[str]] = []


def _snapshot(entries: dict[str, snapshot.Entry]) -> bytes:
    one = snapshot.Snapshot(WRITTEN, "1.0", _WANTED.origin, ZONE, entries, ("10.1.1.1", "fd00::1"))
    return msgspec.json.encode(one)


def _whole(body: bytes) -> bytes:
    return _HEAD + f"{hashlib.sha256(body).hexdigest()} {len(body)}\n".encode() + body


def _entry(*addresses: str, ttl: int = 5) -> snapshot.Entry:
    v4 = tuple(one for one in addresses if "." in one)
    return snapshot.Entry(v4, tuple(one for one in addresses if ":" in one), ttl, GATEWAY)


def _snapshots() -> list[bytes]:
    bodies = [
        _snapshot({}),
        _snapshot({"web.shop.svc.cluster.local": _entry("10.96.9.9")}),
        _snapshot({f"s{at}.shop.svc.cluster.local": _entry("10.96.9.9", "fd00::9", ttl=at) for at in range(4)}),
        _snapshot({"web.shop.svc.cluster.local": _entry("127.0.0.1")}),
        _snapshot({r"a\.b\001.shop.svc.cluster.local": _entry("10.96.9.9")}),
        _snapshot({"web.shop.svc.cluster.local": _entry(*(f"10.96.9.{at}" for at in range(60)))}),
        b"{}", b"[]", b"null", b"",
    ]  # fmt: skip
    return [b"\1" + body for body in bodies] + [b"\0" + _whole(body) for body in bodies] + [b"\0canal-dns-table 2 x 0\n"]


def _many_names(octets: int) -> bytes:
    return b"\1" + _snapshot({f"s{at}.shop.svc.cluster.local": _entry("10.96.9.9") for at in range(octets // 80)})


def _many_addresses(octets: int) -> bytes:
    some = [f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}" for at in range(octets // 12)]
    return b"\1" + _snapshot({"web.shop.svc.cluster.local": _entry(*some)})


def _long_name(octets: int) -> bytes:
    return b"\1" + _snapshot({"a." * (octets // 2) + "svc.cluster.local": _entry("10.96.9.9")})


@target(
    "snapshot",
    "the saved table: read, found fit or not, answered from",
    seeds=_snapshots,
    families=(_many_names, _many_addresses, _long_name),
    fixed=2000,
    per_octet=60,
    words=(
        b'"written":', b'"version":', b'"origin":', b'"cluster_domain":', b'"names":', b'"exempt":', GATEWAY.encode(),
        b".svc.cluster.local", b'"10.96.9.9"', b'"fd00::9"', b"1800000000", b"\\\\000", b"\\u0041", b"\\ud800",
        b"::ffff:10.0.0.1",
        b"0.0.0.0", b"1e999", b"-1", b"2147483648", _HEAD,
    ),
)  # fmt: skip
def saved_table(data: bytes) -> None:
    if not data:
        return
    if not _folder:
        _folder.append(tempfile.TemporaryDirectory(prefix="canal-dns-fuzz-"))
    path = Path(_folder[0].name, "table")
    path.write_bytes(_whole(data[1:]) if data[0] & 1 else data[1:])
    try:
        found = snapshot.read(path)
        assert found is not None
        answers = snapshot.usable(found, path, _WANTED, WRITTEN + 60)
    except SnapshotError as problem:
        str(problem).encode("utf-8", "backslashreplace")
        return
    snapshot.age_text(found, WRITTEN)
    Gate(AccessSettings(), found.exempt)
    _answerable(answers)


def _answerable(answers: dict[str, Addresses]) -> None:
    """What fits is answered validly, or refused by the table as a whole."""
    table = AnswerTable(names.from_text(ZONE))
    try:
        table.apply({names.from_text(name): addresses for name, addresses in answers.items()}, 1, 1)
    except TableError:
        return
    gate = Gate(AccessSettings())
    for name in list(table.names)[:20]:
        for qtype in (1, 28, 65, 255):
            asked = packet(name, qtype)
            reply = decide(asked, CLIENT, 40_000, False, table, gate, NOW)
            need(isinstance(reply, Reply), "a name of the saved table is not answered")
            if isinstance(reply, Reply):
                sound(asked, reply.wire, udp_limit(asked))


# -- between processes ------------------------------------------------------------------------------------------------------


def _messages() -> list[bytes]:
    addresses = Addresses((VIP4,), (VIP6,), 5)
    counters = Counters()
    counters["canal_dns_requests_total"][("udp", "A")] += 3
    messages: list[link.Message] = [
        link.Configure(1, link.WorkerSettings.of(Settings(source=SourceSettings("x")))),
        link.Publish({names.from_text("web.shop.svc.cluster.local"): addresses, b"\1x\0": None}, 1, 2, True, 3.0),
        link.Exempt(frozenset({"10.1.1.1"})),
        link.Ask(7),
        link.Stop(),
        link.Listening(1),
        link.Refused(1, "127.0.0.1:53", "udp", "in use"),
        link.Report(0, 1, counters.to_plain()),
    ]
    return [bytes([pieces]) + link.pack(message) + link.pack(link.Ask(1)) for message in messages for pieces in range(4)]


def _packed(octets: int) -> bytes:
    return b"\3" + link.pack(link.Ask(1)) * (octets // 15)


@target(
    "link",
    "messages between the control process and its workers",
    seeds=_messages,
    families=(_packed,),
    fixed=1000,
    per_octet=10,
    words=(
        b"\0\0\0\x0a",
        b"\x81",
        b"\x92",
        b"\xa4type",
        b"\xa6Report",
        b"\xa7Publish",
        b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf",
    ),
)
def linked(data: bytes) -> None:
    if not data:
        return
    size = (1, 5, 100, 1 << 16)[data[0] & 3]
    told: list[Any] = []
    ended: list[bool] = []
    one = link.Link(told.append, lambda: ended.append(True))
    try:
        for at in range(1, len(data), size):
            one.data_received(data[at : at + size])
            need(len(one._received) < len(data), "more is kept than came")
    except (ValueError, msgspec.MsgspecError, RecursionError):
        # The loop closes the link for it, whatever it is; what counts is that it is an exception.
        return
    for message in told:
        need(link.pack(cast(link.Message, message)), "what was understood cannot be said")
