"""How many cores this process may really use, which in a container is less than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that the affinity mask and the cgroup's CPU quota leave, at least 1.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quotas = [quota for directory in _cgroups(root) if (quota := _quota(directory)) is not None]
    # A quota of 1.5 cores keeps two workers busier than one; half a core more is not lost.
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _cgroups(root: Path) -> list[Path]:
    """Return the directories of this process's cgroup and of its ancestors, v2 and v1."""
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = Path(path.lstrip("/"))
        found += [mount / ancestor for ancestor in (own, *own.parents)]
    return found


def _quota(directory: Path) -> float | None:
    """Return a cgroup's quota in cores, None where it has none."""
    quota, _, period = _read(directory / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(directory / "cpu.cfs_quota_us").strip()
        period = _read(directory / "cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
