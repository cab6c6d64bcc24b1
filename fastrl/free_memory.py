"""How much memory there is left, which in a container is less than the machine has."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from fastrl import cgroups

# Limit, usage, and what of that is a cache of files, which gives way to whoever needs the memory;
# in the second version of cgroups and in the first.
_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process and its children may still take.

    Taking more does not fail: the kernel ends a process for it.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [_left_in(directory) for directory in cgroups.directories("memory", root)]
    return int(min([psutil.virtual_memory().available, *limits]))


def _left_in(directory: Path) -> float:
    """Return what a cgroup leaves of its limit, infinity where it has none."""
    for limit, usage, caches in _FILES:
        most, used = (cgroups.read(directory / name).strip() for name in (limit, usage))
        if most.isdecimal() and used.isdecimal():
            fields = map(str.split, cgroups.read(directory / "memory.stat").splitlines())
            cached = sum(int(value) for name, value in fields if name in caches)
            return max(0, int(most) - int(used) + cached)
    return math.inf
