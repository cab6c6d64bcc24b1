"""The control groups of this process, whose limits hold in a container instead of the machine's."""

from __future__ import annotations

from pathlib import Path


def directories(controller: str, root: Path = Path("/")) -> list[Path]:
    """Return the directories of this process's cgroup and of its ancestors, which limit it too.

    Args:
        controller: What is limited, ``cpu`` or ``memory``; of the first version of cgroups, each
            has a tree of its own.
        root: Where ``proc`` and ``sys`` are mounted.
    """
    found: list[Path] = []
    for line in read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = Path(path.lstrip("/"))
        found += [mount / ancestor for ancestor in (own, *own.parents)]
    return found


def read(path: Path) -> str:
    """Return what a file of the kernel says; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
