"""The machine or container: cores, memory, devices and versions of packages."""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.errors import ConfigError, cause, one_line
from fastrl.imports import installed_version

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_WITHOUT = {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}
_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "crafter", "numba", "ale-py")

# Limit, usage, and file caches, which the kernel frees on demand, in versions 2 and 1
# of cgroups.
_MEMORY_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "failed to map segment from shared object",
)
"""Messages of torch and of the loader, which have no exception class for a lack of memory."""
_TORCH_SIZE = re.compile(r"tried to allocate (\d+) bytes")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
_LARGEST_MMAP_THRESHOLD = 2**25
"""Largest value that glibc accepts."""


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores within the affinity mask and the cgroup's CPU quota, at least 1.

    The processes that ``torchrun`` has started on this machine share them.

    Args:
        root: Directory in which ``proc`` and ``sys`` are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quotas = [quota for each in _cgroups("cpu", root) if (quota := _quota(each)) is not None]
    # Rounded up, as two workers use a quota of 1.5 cores better than one.
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    available = min([cores, *(math.ceil(quota) for quota in quotas)])
    return max(1, available // (int(sharing) if sharing.isdecimal() and int(sharing) else 1))


def free_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process and its children may still allocate.

    An allocation beyond it fails only where the address space is limited (``ulimit -v``);
    elsewhere the kernel kills a process.

    Args:
        root: Directory in which ``proc`` and ``sys`` are mounted.
    """
    import psutil

    limits = [_left_in(directory) for directory in _cgroups("memory", root)]
    return int(min([psutil.virtual_memory().available, _left_to_process(), *limits]))


def lack_of_memory(error: BaseException) -> str:
    """Return one line with the sizes for an error for lack of memory; empty for other errors."""
    text = cause(error)
    is_lack = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        is_lack = any(words in text for words in _OUT_OF_MEMORY)
    if not is_lack:
        return ""
    size = _TORCH_SIZE.search(text)
    wanted = f"{_amount(int(size[1]))} are asked for at once" if size else text
    limit = "" if math.isinf(_left_to_process()) else "raise the limit (ulimit -v), or "
    return (
        f"not enough memory: {wanted}, and {_amount(free_bytes())} are free; {limit}lower "
        "the number of environments (sampler.num_envs), sampler.rollout_length or the sizes "
        "of the model"
    )


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the kernel.

    A network's activations are freed and allocated at every step. If the kernel provides them each
    time, they cost a page fault per 4 KiB: a third of a conv net's forward pass at batch 64, and a
    fifth of forward and backward at 512. With another C library this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads in the block, and restore it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def existing_device(device: torch.device | str, key: str = "") -> torch.device:
    """Return a device, after a check that torch finds it on this machine.

    Args:
        device: The device, or its name.
        key: The configuration key that names it, for errors.

    Raises:
        ConfigError: It is not a device, or this machine does not have it.
    """
    import torch

    where = f"{key}: " if key else ""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(
            f"{where}no device {one_line(device, text_of=repr)}: write 'cpu', 'cuda' or 'cuda:0'"
        ) from None
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(
            f"{where}no device '{found}': torch finds {count} CUDA devices; use 'cpu'"
        )
    return found


def machine() -> dict[str, Any]:
    """Return processor, usable cores, memory, GPU, system and Python."""
    import psutil
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(*others: str) -> dict[str, str]:
    """Return the versions of the installed packages that affect measurements.

    Args:
        *others: Further packages, such as other libraries that were measured.
    """
    own = installed_version()
    found = {} if own is None else {"fastrl": own}
    for package in (*_PACKAGES, *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def circumstances(*others: str, command: str | None = None) -> dict[str, Any]:
    """Return machine, versions, date (UTC) and command line, saved with every measurement."""
    return {
        "machine": machine(),
        "versions": versions(*others),
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command() if command is None else command,
    }


def _command() -> str:
    """Return the command line of this process; ``-m`` and the name of a module that it runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[:1] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _cgroups(controller: str, root: Path) -> list[Path]:
    """Return the directories of this process's cgroup and of its ancestors, which limit it, too.

    Args:
        controller: ``cpu`` or ``memory``; each has its own tree in version 1 of cgroups.
        root: Directory in which ``proc`` and ``sys`` are mounted.
    """
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = Path(path.lstrip("/"))
        found += [mount / ancestor for ancestor in (own, *own.parents)]
    return found


def _read(path: Path) -> str:
    """Return the text of a kernel file, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _quota(directory: Path) -> float | None:
    """Return a cgroup's quota in cores, None if it has none."""
    quota, _, period = _read(directory / "cpu.max").strip().partition(" ")
    if not period:
        quota = _read(directory / "cpu.cfs_quota_us").strip()
        period = _read(directory / "cpu.cfs_period_us").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _left_in(directory: Path) -> float:
    """Return the unused part of a cgroup's memory limit; infinity if it has none."""
    for limit, usage, caches in _MEMORY_FILES:
        most, used = (_read(directory / name).strip() for name in (limit, usage))
        if most.isdecimal() and used.isdecimal():
            fields = map(str.split, _read(directory / "memory.stat").splitlines())
            cached = sum(int(value) for name, value in fields if name in caches)
            return max(0, int(most) - int(used) + cached)
    return math.inf


def _left_to_process() -> float:
    """Return the unused part of the limit on the address space (``ulimit -v``), or infinity."""
    if resource is None or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0:
        return math.inf
    import psutil

    return max(0, limit - psutil.Process().memory_info().vms)


def _amount(num_bytes: int) -> str:
    """Return a size with a binary unit."""
    exponent = next(each for each in (30, 20, 10) if num_bytes >= 2**each or each == 10)
    return f"{num_bytes / 2**exponent:,.1f} {'KMG'[exponent // 10 - 1]}iB"


def _cpu_name() -> str:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def sync(path: Path) -> None:
    """Return once a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_screen() -> bool:
    """Return whether windows can be opened here, by the environment variables."""
    return not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def draw_without_screen() -> None:
    """Make MuJoCo and pygame, which try a window first, draw without a screen.

    Existing values of ``MUJOCO_GL`` and ``SDL_VIDEODRIVER`` stay.
    """
    # Otherwise pygame turns SIGTERM into an event, which nothing reads.
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
    if not has_screen():
        for name, value in _WITHOUT.items():
            os.environ.setdefault(name, value)
