"""What figures depend on besides the code: the machine, and the versions of packages."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastrl.cores import usable_cores

_PACKAGES = ("fastrl", "torch", "numpy", "gymnasium", "mujoco", "crafter", "numba", "ale-py")


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
    """Return the versions of those packages that figures depend on and that are installed.

    Args:
        *others: Packages that count besides, such as those of peers that were measured.
    """
    found = {}
    for package in (*_PACKAGES, *others):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def circumstances(*others: str) -> dict[str, Any]:
    """Return what belongs to every figure: machine, versions, date (UTC) and command line.

    Args:
        *others: See `versions`.
    """
    return {
        "machine": machine(),
        "versions": versions(*others),
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
