"""Reads files of JSON lines, which may be incomplete if a process was killed."""

from __future__ import annotations

import json
from typing import Any

_MOST_STEPS = 2**62


def object_of(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is incomplete or not an object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the row of metrics in a line; None without ``steps``."""
    row = object_of(line)
    steps = None if row is None else row.get("steps")
    return row if type(steps) is int and 0 <= steps <= _MOST_STEPS else None
