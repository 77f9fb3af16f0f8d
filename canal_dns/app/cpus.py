"""How many CPUs this container may use: what `workers: auto` means.

Rules of this file:
- the least of what may be run on (affinity, which a cpuset shows in, too) and of every quota from this process's cgroup up to
  the root that is visible: a quota holds for all that is below it;
- a quota that cannot be read is no quota: cgroups are what a container has, not what canal-dns needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def usable(proc: Path = PROC) -> int:
    """CPUs in the affinity mask, or as many as the cgroups' quota amounts to, rounded up, if that is less; at least 1."""
    affinity = len(os.sched_getaffinity(0))
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas(proc))]))


def quotas(proc: Path = PROC) -> Iterator[float]:
    """Every quota of this process in CPUs, of cgroup v2 and of the v1 controller `cpu`, from the inside to the outside."""
    memberships = _memberships(proc)
    for kind, root, mounted in _mounts(proc):
        if (path := memberships.get(kind)) is None:
            continue
        folder = _folder(path, root, mounted)
        for level in (folder, *folder.parents):
            quota = _quota_v1(level) if kind else _quota_v2(level)
            if quota is not None:
                yield quota
            if level == mounted:
                break


def _folder(path: str, root: str, mounted: Path) -> Path:
    """Where a cgroup is seen: `mounted` shows `root` and what is below it. One that is elsewhere (a container that sees the
    paths of its host) is taken to be what is mounted: container runtimes mount a container's own."""
    if root != "/":
        path = path.removeprefix(root) if path == root or path.startswith(root + "/") else ""
    folder = mounted / path.strip("/")
    return folder if ".." not in folder.parts and folder.is_dir() else mounted


def _memberships(proc: Path) -> dict[str, str]:
    """Hierarchy -> path of this process in it: "" for cgroup v2, "cpu" for that controller of v1."""
    found = {}
    for line in _lines(proc / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[""] = path
        elif "cpu" in controllers.split(","):
            found["cpu"] = path
    return found


def _mounts(proc: Path) -> Iterator[tuple[str, str, Path]]:
    """Hierarchy as above, the cgroup that is its root here, and where that is (proc(5), mountinfo)."""
    for line in _lines(proc / "mountinfo"):
        mount, _, system = line.partition(" - ")
        fields, (kind, *_, options) = mount.split(" "), system.split(" ") or [""]
        if len(fields) < 5:
            continue
        if kind == "cgroup2":
            yield "", fields[3], Path(fields[4])
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield "cpu", fields[3], Path(fields[4])


def _quota_v2(folder: Path) -> float | None:
    """CPUs that `cpu.max` grants (`QUOTA PERIOD`, in microseconds); None: no limit there."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    """The same from `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
