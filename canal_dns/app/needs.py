"""What a running canal-dns needs of its machine: files that it reads again later, folders that it writes, ports below 1024.

Rules of this file:
- asked as root before it becomes somebody else: what root cannot do either is no need, and told by whoever wants it;
- each need is one path that can be tried by any user (`Need.lack`).
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from canal_dns.kube.files import listing
from canal_dns.settings import Endpoint, Settings

_LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Act(Enum):
    """What is done with a path: how it is called, and as access(2) asks for it."""

    READ = "read", os.R_OK
    LIST = "list", os.R_OK | os.X_OK
    PASS = "pass", os.X_OK
    RUN = "run", os.X_OK
    FILL = "write into", os.W_OK | os.X_OK
    REPLACE = "replace", os.W_OK


@dataclass(frozen=True, slots=True)
class Need:
    """A path, and what must be possible with it."""

    path: str
    act: Act

    def is_met(self) -> bool:
        return os.access(self.path, self.act.value[1])

    def lack(self) -> str:
        """What the user of this process cannot do, with the first path that is in the way; "": it can."""
        if self.is_met():
            return ""
        text = f"cannot {self.act.value[0]} {self.path}"
        for path in dict.fromkeys((self.path, os.path.realpath(self.path))):
            for folder in reversed(Path(path).parents):
                if not os.access(folder, os.X_OK):
                    return f"{text} ({folder} does not let it through)"
        return text


def low_ports(settings: Settings) -> list[Endpoint]:
    """The addresses whose ports only a privileged process may bind."""
    try:
        first = int(_LOW_PORTS.read_text())
    except (OSError, ValueError):
        first = 1024
    addresses = [*settings.listen.addresses, *([settings.health.admin] if settings.health.admin else [])]
    return [address for address in addresses if 0 < address.port < first]


def files(settings: Settings, config: Path | None) -> list[Need]:
    """Everything, the likeliest to be in the way first."""
    named = [*_configuration(config), *_objects(settings), *_snapshot(settings.snapshot.path)]
    wanted = [*map(_as_of_now, named), *_python()]
    return list(dict.fromkeys(need for need in wanted if need.is_met()))


def _as_of_now(need: Need) -> Need:
    """What is not there yet may come: what is there of the way to it must be open."""
    path = Path(need.path)
    if os.path.lexists(path):
        return need
    return Need(str(next(parent for parent in path.parents if parent.exists())), Act.PASS)


def _configuration(config: Path | None) -> Iterator[Need]:
    if config is not None:
        yield Need(str(config.absolute()), Act.READ)


def _objects(settings: Settings) -> Iterator[Need]:
    if settings.source.manifests:
        yield from _tree(Path(settings.source.manifests).absolute())
    cluster = settings.source.cluster
    if cluster is not None and cluster.kubeconfig:
        for path in filter(None, cluster.kubeconfig.split(os.pathsep)):
            yield from _kubeconfig(Path(path).expanduser().absolute())
    elif cluster is not None:
        # What only clusters need is heavy: others do not load it.
        from canal_dns.kube.cluster import ACCOUNT

        for name in ("token", "ca.crt"):
            yield Need(str(ACCOUNT / name), Act.READ)


def _tree(root: Path) -> Iterator[Need]:
    """A file, or a folder with all that is read of it."""
    try:
        found = listing(root)
    except OSError:
        found = [str(root)]
    if root.is_dir():
        folders = {root, *(folder for file in found for folder in Path(file).parents if folder.is_relative_to(root))}
        yield from (Need(str(folder), Act.LIST) for folder in sorted(folders))
    yield from (Need(file, Act.READ) for file in found)


def _kubeconfig(path: Path) -> Iterator[Need]:
    """The file, the files that it names beside it, and the programs that log in. What cannot be read says so elsewhere."""
    yield Need(str(path), Act.READ)
    try:
        config = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError, ValueError):
        return
    for entry in _entries(config, "clusters", "cluster") + _entries(config, "users", "user"):
        for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
            if isinstance(entry.get(key), str) and entry[key]:
                yield Need(str(path.parent / entry[key]), Act.READ)
        program = entry.get("exec")
        command = program.get("command") if isinstance(program, dict) else None
        found = shutil.which(command) if isinstance(command, str) else None
        if found:
            yield Need(found, Act.RUN)


def _entries(config: Any, plural: str, singular: str) -> list[dict[str, Any]]:
    listed = config.get(plural) if isinstance(config, dict) else None
    items = [item.get(singular) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    return [item for item in items if isinstance(item, dict)]


def _snapshot(path: str) -> Iterator[Need]:
    """Its folder, since a new file takes the place of the old one; and the old one, where a new owner could not replace it."""
    if not path:
        return
    file = Path(path).absolute()
    yield Need(str(file.parent), Act.FILL)
    yield Need(str(file), Act.READ)
    if file.parent.is_dir() and file.parent.stat().st_mode & stat.S_ISVTX:
        yield Need(str(file), Act.REPLACE)


def _python() -> Iterator[Need]:
    """What a worker process starts with is what is loaded here: the interpreter, modules, and the libraries of both."""
    yield Need(sys.executable, Act.RUN)
    yield Need(str(Path(sys.prefix) / "pyvenv.cfg"), Act.READ)
    loaded = {file for module in list(sys.modules.values()) if isinstance(file := getattr(module, "__file__", None), str)}
    yield from (Need(folder, Act.LIST) for folder in sorted({os.path.dirname(file) for file in loaded}))  # noqa: PTH120
    yield from (Need(file, Act.READ) for file in sorted(loaded | set(_mapped())))


def _mapped() -> Iterable[str]:
    """Libraries in this process's memory (proc(5), maps)."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    return {path for line in lines if (path := line.partition("/")[1] + line.partition("/")[2]).startswith("/")}
