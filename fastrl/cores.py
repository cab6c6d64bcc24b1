"""How many cores this process may really use, which in a container is less than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

from fastrl import cgroups


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that the affinity mask and the cgroup's CPU quota leave, at least 1.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    directories = cgroups.directories("cpu", root)
    quotas = [quota for each in directories if (quota := _quota(each)) is not None]
    # A quota of 1.5 cores keeps two workers busier than one; half a core more is not lost.
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _quota(directory: Path) -> float | None:
    """Return a cgroup's quota in cores, None where it has none."""
    quota, _, period = cgroups.read(directory / "cpu.max").strip().partition(" ")
    if not period:
        quota = cgroups.read(directory / "cpu.cfs_quota_us").strip()
        period = cgroups.read(directory / "cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)
