"""A file or a folder of manifests as the source of objects: read once, then watched; every change becomes calls on the view.

Rules of this file:
- a file that cannot be read keeps its last good objects and is reported with its line; a deleted one takes its objects away;
- the view gets one `reset` per kind at first, then `apply` and `delete` by difference, all from the event loop's thread;
- reading and parsing happen in a thread, on `_Folder`, which nothing else touches meanwhile: DNS in this process goes on;
- changes are found by polling `stat` (no inotify: it sees neither ConfigMap volumes everywhere nor network file systems);
- the same object in two files: the first file in order of path has it, the other is reported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from canal_dns.errors import ManifestError
from canal_dns.kube import documents
from canal_dns.kube.source import OnChange
from canal_dns.mesh import resources
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters

log = logging.getLogger(__name__)

Key = tuple[str, str, str]
"""kind, namespace, name."""

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE = 16 * 1024 * 1024
"""Octets of one file: Kubernetes itself takes objects of 1.5 MiB."""
INTERVAL = 0.25
"""Seconds between two looks at the files."""
COMPLAINT_INTERVAL = 5.0
"""Seconds between two log lines about one broken file, however often it is written."""
LOG_LINES = 10
"""Changed files named in the log per look; more are summed up."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells one state of a file from another. `ctime` moves with `chmod`, after which a file may be readable."""

    mtime_ns: int
    ctime_ns: int
    size: int
    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class SkippedObject:
    """An object of a readable file that is not used: `place` is path:line, `reason` a bounded set, `message` a sentence."""

    place: str
    kind: str
    namespace: str
    name: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind} {self.namespace}/{self.name}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """An object, or why it is none, and its path:line."""

    record: resources.Record | resources.Skip
    place: str

    @property
    def key(self) -> Key:
        return self.record.kind, self.record.namespace, self.record.name


@dataclass(slots=True)
class _File:
    """A file as last seen: its last good objects, and what is wrong with it now."""

    signature: Signature | None = None
    data: bytes | None = None
    """Kept only between a young file's first and second reading."""
    entries: tuple[_Entry, ...] = ()
    problem: ManifestError | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What all files together ask for."""

    records: Mapping[Key, resources.Record | resources.Skip]
    skips: tuple[SkippedObject, ...]
    broken: tuple[ManifestError, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the folder found."""

    wanted: _Wanted
    files: int
    listed: bool = True
    changed: bool = False
    news: tuple[str, ...] = ()
    """Lines for the log: files read, files gone."""
    seconds: float = 0.0
    """How long it took to find the files, without reading them."""

    @property
    def usable(self) -> bool:
        """May the view be filled? Not from a path that is not there, nor when every single file is broken."""
        return self.listed and (self.files == 0 or len(self.wanted.broken) < self.files)


class ManifestSource:
    """Objects of `path` for `sink`: a Source.

    `load` reads once and insists; `run` goes on from there (or from nothing) for ever and never gives up.
    """

    def __init__(self, path: Path, sink: View, *, interval: float = INTERVAL) -> None:
        self.path = str(path)
        self.synced = False
        """True once the view was filled."""
        self.broken: tuple[ManifestError, ...] = ()
        """Files (or the path itself) that cannot be read now; their last good objects are kept."""
        self.skips: tuple[SkippedObject, ...] = ()
        """Objects of readable files that are not used."""
        self.skipped_total: Counter[tuple[str, str]] = Counter()
        """How many objects were ever skipped, by (kind, reason)."""
        self._sink = sink
        self._interval = interval
        self._folder = _Folder(path)
        self._records: Mapping[Key, resources.Record | resources.Skip] = {}
        self._complaints: dict[str, tuple[str, float]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """Objects in use, by kind."""
        return Counter(record.kind for record in self._records.values() if not isinstance(record, resources.Skip))

    @property
    def place(self) -> str:
        return f"manifests {self.path}"

    def waiting(self) -> list[str]:
        """Why nothing is known yet."""
        return [] if self.synced else [f"{self.path} was not read yet", *map(str, self.broken)]

    def problems(self) -> list[str]:
        """The files that cannot be read now."""
        kept = " (its last good objects are kept)" if self.synced else ""
        return [f"{problem}{kept}" for problem in self.broken]

    def is_current(self) -> bool:
        return self.synced and not self.broken

    def to_plain(self) -> dict[str, Any]:
        return {"objects": dict(self.counts)}

    def observe(self, counters: Counters) -> None:
        counters["canal_dns_source_synced"][("manifests",)] = int(self.synced)
        counters["canal_dns_source_broken_files"][()] = len(self.broken)
        objects = counters["canal_dns_source_objects"]
        objects.clear()
        for kind, count in self.counts.items():
            objects[(kind,)] = count
        for labels, total in self.skipped_total.items():
            counters["canal_dns_source_skipped_objects_total"][labels] = total

    async def read(self) -> None:
        self.load()

    def load(self) -> None:
        """Read everything now and fill the view. Blocks. Raises ManifestError if there is nothing that can be read."""
        look = self._folder.look()
        if not look.usable:
            raise look.wanted.broken[0]
        if not look.files:
            raise ManifestError(self.path, None, f"no manifests here ({', '.join('*' + suffix for suffix in SUFFIXES)})")
        self._publish(look)

    async def run(self, on_change: OnChange) -> NoReturn:
        """Follow the files until cancelled; `on_change` is called after the view was filled and after each change of it."""
        while True:
            seconds = await self.poll(on_change)
            # A folder of very many files is not looked at all the time.
            await asyncio.sleep(max(self._interval, 10 * seconds))

    async def poll(self, on_change: OnChange) -> float:
        """One look at the files, in a thread, and its consequences. Returns the seconds that finding them took."""
        look = await asyncio.to_thread(self._folder.look)
        found = time.monotonic()
        if self._publish(look):
            on_change(found)
        return look.seconds

    def _publish(self, look: _Look) -> bool:
        """Hand the difference to the view; True if there was one, or if this is the first time."""
        first = not self.synced
        self.broken = look.wanted.broken
        self._complain(look.wanted.broken)
        if (first and not look.usable) or not (first or look.changed):
            return False
        records, skips = look.wanted.records, look.wanted.skips
        new = set(skips) - set(self.skips)
        self.skipped_total.update((skip.kind, skip.reason) for skip in new)
        self.skips = skips
        changed = self._reset(records) if first else self._difference(records)
        self._records = records
        self.synced = True
        self._tell([f"{self.path}: {look.files} files, {len(records)} objects read"] if first else look.news)
        self._tell([f"not used: {skip}" for skip in skips if skip in new])
        return changed or first

    def _reset(self, records: Mapping[Key, resources.Record | resources.Skip]) -> bool:
        by_kind: dict[str, list[resources.Record | resources.Skip]] = {kind: [] for kind in resources.KINDS}
        for (kind, _, _), record in records.items():
            by_kind[kind].append(record)
        changed = False
        for kind, of_kind in by_kind.items():
            changed |= self._sink.reset(kind, of_kind)
        return changed

    def _difference(self, records: Mapping[Key, resources.Record | resources.Skip]) -> bool:
        changed = False
        for key in self._records.keys() - records.keys():
            changed |= self._sink.delete(*key)
        for key, record in records.items():
            known = self._records.get(key)
            if known is not record and known != record:
                changed |= self._sink.apply(record)
        return changed

    def _tell(self, lines: Sequence[str]) -> None:
        for line in lines[:LOG_LINES]:
            log.info("%s", _printable(line))
        if len(lines) > LOG_LINES:
            log.info("%s: %d more like these", self.path, len(lines) - LOG_LINES)

    def _complain(self, broken: Iterable[ManifestError]) -> None:
        """Log each new problem once, and each file's not more often than COMPLAINT_INTERVAL; a cured file starts afresh."""
        now = time.monotonic()
        problems = {error.path: str(error) for error in broken}
        for path in self._complaints.keys() - problems.keys():
            del self._complaints[path]
        for path, text in problems.items():
            last, at = self._complaints.get(path, ("", -COMPLAINT_INTERVAL))
            if text != last and now - at >= COMPLAINT_INTERVAL:
                log.warning("%s", _printable(text))
                self._complaints[path] = (text, now)


class _Folder:
    """The files on disk as last seen. Blocking; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, _File] = {}
        self._wanted: _Wanted | None = None

    def look(self) -> _Look:
        """Read what changed since the last look."""
        start = time.perf_counter()
        found: dict[str, Signature | ManifestError] = {}
        try:
            _find(self._path, found, set())
        except OSError as problem:
            return self._unlisted(problem)
        seconds = time.perf_counter() - start
        news: list[str] = []
        changed = self._wanted is None
        for path, state in found.items():
            file = self._files.setdefault(path, _File())
            before = file.entries, str(file.problem)
            started = time.perf_counter()
            self._refresh(path, file, state)
            if (file.entries, str(file.problem)) != before:
                changed = True
                if file.problem is None:
                    news.append(f"{path}: {len(file.entries)} objects read in {(time.perf_counter() - started) * 1000:.0f} ms")
        # What stood below a folder that cannot be listed now is not gone, only out of sight.
        hidden = tuple(path + os.sep for path, state in found.items() if isinstance(state, ManifestError))
        for path in sorted(self._files.keys() - found.keys()):
            if not path.startswith(hidden):
                changed = True
                del self._files[path]
                news.append(f"{path}: gone")
        if self._wanted is None or changed:
            self._wanted = self._merge()
        return _Look(self._wanted, len(self._files), changed=changed, news=tuple(news), seconds=seconds)

    def _unlisted(self, problem: OSError) -> _Look:
        """The path itself is not there: nothing is known, so nothing is taken away."""
        text = _trouble(problem)
        if self._wanted is None:
            return _Look(_Wanted({}, (), (ManifestError(str(self._path), None, text),)), 0, listed=False)
        error = ManifestError(str(self._path), None, f"{text}; its last objects are kept")
        return _Look(_Wanted(self._wanted.records, self._wanted.skips, (error,)), len(self._files), listed=False)

    def _refresh(self, path: str, file: _File, state: Signature | ManifestError) -> None:
        """Read the file if it is not as it was."""
        if isinstance(state, ManifestError):
            file.problem, file.signature, file.data = state, None, None
            return
        again = file.signature == state
        if again and file.data is None:
            return
        # Clocks of file systems tick in milliseconds: what was written in the tick of the last look has the same signature,
        # so a file that is hardly older than the look is read once more.
        young = not again and abs(time.time_ns() - state.ctime_ns) < 2 * INTERVAL * 1e9
        known, file.data, file.signature = file.data, None, state
        try:
            data = _bytes(path)
            if again and data == known:
                return
            file.data = data if young else None
            entries = _entries(documents.read(data, path), path)
        except OSError as problem:
            file.problem = ManifestError(path, None, _trouble(problem))
        except ManifestError as problem:
            file.problem = problem
        else:
            file.entries, file.problem = entries, None

    def _merge(self) -> _Wanted:
        records: dict[Key, resources.Record | resources.Skip] = {}
        places: dict[Key, str] = {}
        skips: list[SkippedObject] = []
        for entry in (entry for _, file in sorted(self._files.items()) for entry in file.entries):
            record, key = entry.record, entry.key
            if key in records:
                message = f"the same object stands in {places[key]}, which comes first"
                skips.append(SkippedObject(entry.place, *key, "Duplicate", message))
                continue
            if isinstance(record, resources.Skip):
                skips.append(SkippedObject(entry.place, *key, record.reason, f"{record.field}: {record.message}"))
            # What has no name cannot take another one's place.
            if record.name:
                records[key] = record
                places[key] = entry.place
        broken = tuple(file.problem for _, file in sorted(self._files.items()) if file.problem is not None)
        return _Wanted(records, tuple(skips), broken)


def listing(path: Path) -> list[str]:
    """Every manifest file under `path`, as it would be read now. Raises OSError for `path` itself."""
    found: dict[str, Signature | ManifestError] = {}
    _find(path, found, set())
    return list(found)


def _find(path: Path, found: dict[str, Signature | ManifestError], seen: set[tuple[int, int]]) -> None:
    """All manifest files under `path`, in order of path, each real file once. Raises OSError for `path` itself."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        found[str(path)] = _regular(path, status)
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        # `..data` and `..2026_08_20` hold what the links beside them point to (ConfigMap volumes).
        if name.startswith("."):
            continue
        child = path / name
        try:
            status = child.stat()
            identity = status.st_dev, status.st_ino
            if identity in seen:
                continue
            if stat.S_ISDIR(status.st_mode):
                _find(child, found, seen)
            elif name.lower().endswith(SUFFIXES):
                seen.add(identity)
                found[str(child)] = _regular(child, status)
        except OSError as problem:
            if name.lower().endswith(SUFFIXES) or not isinstance(problem, FileNotFoundError):
                found[str(child)] = ManifestError(str(child), None, _trouble(problem))


def _regular(path: Path, status: os.stat_result) -> Signature | ManifestError:
    if not stat.S_ISREG(status.st_mode):
        return ManifestError(str(path), None, "not a file")
    if status.st_size > MAX_FILE:
        return ManifestError(str(path), None, f"{status.st_size} octets, at most {MAX_FILE} are read")
    return Signature.of(status)


def _bytes(path: str) -> bytes:
    # Without O_NONBLOCK a file that was swapped for a pipe would hold the thread for ever.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ManifestError(path, None, f"more than {MAX_FILE} octets")
    return data


def _entries(objects: Iterable[documents.Document], path: str) -> tuple[_Entry, ...]:
    entries = []
    for document in objects:
        record = resources.parse(document.raw)
        if record is not None:
            entries.append(_Entry(record, path if document.line is None else f"{path}:{document.line}"))
    return tuple(entries)


def _trouble(problem: OSError) -> str:
    return (problem.strerror or str(problem)).lower()


def _printable(text: str) -> str:
    """Paths and object names are anybody's: in the log they stay on one line."""
    return text.encode("unicode_escape").decode("ascii")
