"""The last answer table on disk: what a restart answers with while the API server is away.

Rules of this file:
- a file is whole or it is not there: written beside its place, synced, renamed; a reader checks length and SHA-256;
- a file that cannot be used is left aside with a reason, and everything is forwarded as if there were none;
- it holds names and addresses only, which any client may ask for anyway; no object, no token;
- the format has a number: a version that does not know it leaves the file aside.

The file: one line `canal-dns-table FORMAT SHA256 OCTETS`, then as many octets of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from canal_dns.dns import names
from canal_dns.dns.table import Addresses
from canal_dns.errors import SnapshotError, WireError
from canal_dns.mesh.resources import unusable

FORMAT = 1
MAGIC = "canal-dns-table"
MAX_SIZE = 64 << 20
"""Octets; 20,000 names take about 2 MiB."""
CLOCK_SKEW = 300.0
"""Seconds that a file may seem to come from the future: another node's clock wrote it, or ours was set."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One bound name."""

    v4: tuple[str, ...]
    v6: tuple[str, ...]
    ttl: int
    gateway: str
    """The Service of the internal gateway, `namespace/name`."""


class Snapshot(msgspec.Struct, frozen=True):
    """What was answered, by whom, when."""

    written: float
    """Seconds since 1970."""
    version: str
    """Of the canal-dns that wrote it; told, not compared."""
    origin: str
    """Which source it was made of, as the configuration says it: another cluster's table is of no use."""
    cluster_domain: str
    names: dict[str, Entry]
    exempt: tuple[str, ...]
    """Addresses of the gateways' pods, which get the real answers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a snapshot must fit."""

    origin: str
    cluster_domain: str
    gateways: frozenset[str]
    """`namespace/name` of the internal gateways that are configured now."""
    max_age: float
    """Seconds."""


_decoder = msgspec.json.Decoder(Snapshot)


def write(path: Path, snapshot: Snapshot) -> None:
    """Put the snapshot in the place of the one before, at one blow. Blocks. Raises SnapshotError."""
    body = msgspec.json.encode(snapshot)
    head = f"{MAGIC} {FORMAT} {hashlib.sha256(body).hexdigest()} {len(body)}\n".encode()
    draft = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            file.write(head + body)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as problem:
        # Where a file cannot be made, it may not be possible to take one away either: a read-only disk refuses before it looks.
        with contextlib.suppress(OSError):
            draft.unlink()
        raise SnapshotError(str(path), f"it cannot be written: {problem.strerror}") from None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Snapshot | None:
    """The snapshot as it was written; None: there is no file. Raises SnapshotError."""
    try:
        size = path.stat().st_size
        if size > MAX_SIZE:
            raise SnapshotError(str(path), f"it has {size} octets, at most {MAX_SIZE} are read")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise SnapshotError(str(path), f"it cannot be read: {problem.strerror}") from None
    head, _, body = data.partition(b"\n")
    match head.decode("ascii", "replace").split(" "):
        case [word, number, digest, octets] if word == MAGIC:
            if number != str(FORMAT):
                raise SnapshotError(str(path), f"its format is {number}, this version reads format {FORMAT}")
            if octets != str(len(body)):
                raise SnapshotError(str(path), f"it is cut: {len(body)} octets follow its first line, which says {octets}")
            if digest != hashlib.sha256(body).hexdigest():
                raise SnapshotError(str(path), "its contents do not fit its checksum")
        case _:
            raise SnapshotError(str(path), "it is no table of canal-dns")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError) as problem:
        raise SnapshotError(str(path), f"its contents are not understood: {problem}") from None


def usable(snapshot: Snapshot, path: Path, wanted: Wanted, now: float) -> dict[str, Addresses]:
    """The answers of a snapshot that fits. `now`: seconds since 1970. Raises SnapshotError where it must not be used.

    Names of gateways that are no longer configured are left out; a name or address that cannot be spoils the whole.
    """
    age = now - snapshot.written
    if not -CLOCK_SKEW <= age <= wanted.max_age:
        said = f"it is {age / 3600:.1f} h old" if age > 0 else "it comes from the future"
        raise SnapshotError(str(path), f"{said}, snapshot.maxAge is {wanted.max_age / 3600:g} h")
    for what, theirs, ours in (
        ("source", snapshot.origin, wanted.origin),
        ("cluster domain", snapshot.cluster_domain, wanted.cluster_domain),
    ):
        if theirs != ours:
            raise SnapshotError(str(path), f"its {what} is {theirs!r}, ours is {ours!r}")
    try:
        return {
            _checked_name(name, wanted.cluster_domain): _addresses(entry)
            for name, entry in snapshot.names.items()
            if entry.gateway in wanted.gateways
        }
    except (ValueError, WireError) as problem:
        raise SnapshotError(str(path), f"it holds what cannot be an answer: {problem}") from None


def _checked_name(name: str, cluster_domain: str) -> str:
    names.from_text(name)
    if not name.endswith(f".svc.{cluster_domain}"):
        raise ValueError(f"{name!r} is no Service of {cluster_domain}")
    return name


def _addresses(entry: Entry) -> Addresses:
    for address in (*entry.v4, *entry.v6):
        if why := unusable(address):
            raise ValueError(f"{address!r}: {why}")
    if not (entry.v4 or entry.v6) or not 0 <= entry.ttl < 2**31:
        raise ValueError("no address, or a TTL that is none")
    return Addresses(
        v4=tuple(ipaddress.IPv4Address(address).packed for address in entry.v4),
        v6=tuple(ipaddress.IPv6Address(address).packed for address in entry.v6),
        ttl=entry.ttl,
    )


def mapping_of(live: Mapping[str, Addresses], gateways: Mapping[str, str]) -> dict[str, Entry]:
    """What is answered now, as it is written. `gateways`: name -> Service of its gateway."""
    entries: dict[tuple[object, ...], Entry] = {}

    def entry(one: Addresses, gateway: str) -> Entry:
        # Thousands of names share an answer, and nobody else has the loop meanwhile.
        key = one.v4, one.v6, one.ttl, gateway
        known = entries.get(key)
        if known is None:
            known = entries[key] = Entry(
                v4=tuple(str(ipaddress.IPv4Address(packed)) for packed in one.v4),
                v6=tuple(str(ipaddress.IPv6Address(packed)) for packed in one.v6),
                ttl=one.ttl,
                gateway=gateway,
            )
        return known

    return {name: entry(one, gateways[name]) for name, one in live.items() if name in gateways}


def age_text(snapshot: Snapshot, now: float) -> str:
    """`written 3.2 h ago by canal-dns 0.3.0`, for the log."""
    seconds = max(0.0, now - snapshot.written)
    ago = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
    return f"written {ago} ago by canal-dns {snapshot.version}"
