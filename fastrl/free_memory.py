"""How much memory there is left, which in a container is less than the machine has."""

from __future__ import annotations

import errno
import math
import re
from pathlib import Path

import psutil

from fastrl import cgroups
from fastrl.errors import cause

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

_LACKS = (
    "can't allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "Invalid buffer size",
)
"""Words of torch, whose errors of a lack of memory are `RuntimeError`."""
_TORCH_SIZE = re.compile(r"tried to allocate (\d+) bytes")


def lack_of_memory(error: BaseException) -> str:
    """Return in one line that and how much memory lacks; an empty text for all other errors."""
    text = cause(error)
    is_lack = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    if not is_lack and not (
        isinstance(error, RuntimeError) and any(words in text for words in _LACKS)
    ):
        return ""
    size = _TORCH_SIZE.search(text)
    wanted = f"{int(size[1]) / 2**30:,.1f} GiB are asked for at once" if size else text
    return (
        f"not enough memory: {wanted}, and {free_bytes() / 2**30:,.1f} GiB are free; lower "
        "sampler.envs_per_worker, sampler.num_env_workers, sampler.rollout_length or the sizes "
        "of the model"
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
