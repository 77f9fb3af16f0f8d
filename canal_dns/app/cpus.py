"""How many CPUs this container may use: what `workers: auto` means."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable() -> int:
    """The smaller of the CPUs in the affinity mask and the cgroup's CPU quota, rounded up; at least 1."""
    quota = quota_v2(CGROUP_V2) or quota_v1(CGROUP_V1)
    affinity = len(os.sched_getaffinity(0))
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def quota_v2(path: Path) -> float | None:
    """CPUs that `cpu.max` grants (`QUOTA PERIOD`, in microseconds); None: no limit, or not cgroup v2."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError):
        return None


def quota_v1(folder: Path) -> float | None:
    """The same from `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
