"""What is said only once, whichever process of a run finds it."""

from __future__ import annotations

import os
from functools import cache

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "FASTRL_SAID"
"""Environment variable by which the processes of a run get `place`."""

_said: set[str] = set()


@cache
def place() -> str:
    """Return the path of a nameless file of the run's first process; empty where there is none."""
    found = os.environ.get(VARIABLE, "")
    if found or fcntl is None or not hasattr(os, "memfd_create"):
        return found
    try:
        # Stays open until the process ends.
        return f"/proc/{os.getpid()}/fd/{os.memfd_create(VARIABLE, os.MFD_CLOEXEC)}"
    except OSError:
        return ""


def is_first(what: str) -> bool:
    """Return True to the first caller in all processes of a run, False to later ones.

    Where processes cannot share a nameless file (outside Linux), each of them is a run.

    Args:
        what: Names what is said, without line breaks.
    """
    if what in _said:
        return False
    _said.add(what)
    try:
        with open(place(), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            line = f"{what}\n".encode()
            is_new = line not in file.readall().splitlines(keepends=True)
            if is_new:
                file.write(line)
            return is_new
    except OSError:
        return True
