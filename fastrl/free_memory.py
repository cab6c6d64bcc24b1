"""How much memory there is left, which in a container is less than the machine has."""

from __future__ import annotations

import errno
import math
import re
from pathlib import Path

import psutil

from fastrl import cgroups
from fastrl.errors import cause

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

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
    "failed to map segment from shared object",
)
"""Words of torch and of the loader, whose errors of a lack of memory have no class of their own."""
_TORCH_SIZE = re.compile(r"tried to allocate (\d+) bytes")


def lack_of_memory(error: BaseException) -> str:
    """Return one line with the sizes if memory is lacking; an empty text for all other errors."""
    text = cause(error)
    is_lack = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        is_lack = any(words in text for words in _LACKS)
    if not is_lack:
        return ""
    size = _TORCH_SIZE.search(text)
    wanted = f"{_amount(int(size[1]))} are asked for at once" if size else text
    limit = "" if math.isinf(_left_to_process()) else "raise the limit (ulimit -v), or "
    return (
        f"not enough memory: {wanted}, and {_amount(free_bytes())} are free; {limit}lower "
        "sampler.envs_per_worker, sampler.num_env_workers, sampler.rollout_length or the sizes "
        "of the model"
    )


def _amount(num_bytes: int) -> str:
    """Return a size as people write it."""
    exponent = next(each for each in (30, 20, 10) if num_bytes >= 2**each or each == 10)
    return f"{num_bytes / 2**exponent:,.1f} {'KMG'[exponent // 10 - 1]}iB"


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process and its children may still take.

    Taking more fails only where a process has a limit on its address space; elsewhere the kernel
    ends a process for it.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [_left_in(directory) for directory in cgroups.directories("memory", root)]
    return int(min([psutil.virtual_memory().available, _left_to_process(), *limits]))


def _left_to_process() -> float:
    """Return what a limit on the address space (``ulimit -v``) leaves, infinity without one."""
    if resource is None or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0:
        return math.inf
    return max(0, limit - psutil.Process().memory_info().vms)


def _left_in(directory: Path) -> float:
    """Return what a cgroup leaves of its limit, infinity where it has none."""
    for limit, usage, caches in _FILES:
        most, used = (cgroups.read(directory / name).strip() for name in (limit, usage))
        if most.isdecimal() and used.isdecimal():
            fields = map(str.split, cgroups.read(directory / "memory.stat").splitlines())
            cached = sum(int(value) for name, value in fields if name in caches)
            return max(0, int(most) - int(used) + cached)
    return math.inf
