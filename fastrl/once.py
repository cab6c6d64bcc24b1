"""Messages that are logged once per run, by the first of its processes."""

from __future__ import annotations

import os
from functools import cache

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "FASTRL_SAID"
"""Environment variable that passes `place` to the processes of a run."""

_said: set[str] = set()


@cache
def place() -> str:
    """Return the path of an unnamed file of the run's first process, empty if there is none."""
    found = os.environ.get(VARIABLE, "")
    if found or fcntl is None or not hasattr(os, "memfd_create"):
        return found
    try:
        # Stays open until the process ends.
        return f"/proc/{os.getpid()}/fd/{os.memfd_create(VARIABLE, os.MFD_CLOEXEC)}"
    except OSError:
        return ""


def is_first(what: str) -> bool:
    """Return True for the first call in all processes of a run, False for later ones.

    Outside Linux, where processes cannot share an unnamed file, each process is a run.

    Args:
        what: Identifies the message, without line breaks.
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
