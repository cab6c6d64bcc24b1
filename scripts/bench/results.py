"""The JSON files of results, which all have one format.

A file holds ``results``, a list of rows, and the circumstances of what was measured last. A row
says what was measured (``env``, ``method``, ``num_envs`` and the like), and for every quantity x
``x_median``, ``x_min``, ``x_max`` and, as ``x``, the values of the rounds. Rows that came to a file
at different times keep their own ``date`` and ``command``. ``notes`` are paragraphs of Markdown
about measurements whose scripts are gone, each beside its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fastrl.errors import ConfigError
from fastrl.system import circumstances, machine

Row = dict[str, Any]
Found = dict[str, Any]
"""Content of a file."""


def quantity(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a row's entries for a quantity that was measured in several rounds."""
    return {
        f"{name}_median": median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
        name: list(values),
    }


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def distinct(rows: Iterable[Row], key: str) -> list[Any]:
    """Return the distinct values of a key, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def when() -> dict[str, Any]:
    """Return the date and command, which a row keeps when later measurements join its file."""
    here = circumstances()
    return {key: here[key] for key in ("date", "command")}


def load(path: Path, same_machine: Sequence[str] = ()) -> Found:
    """Return the content of a file; no rows if it does not exist.

    Args:
        path: Path of the JSON file.
        same_machine: Keys of the machine that must be equal to add rows, such as ``cores``.

    Raises:
        ConfigError: The rows were measured on another machine.
    """
    if not path.exists():
        return {"results": []}
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    here = machine()
    for key in same_machine:
        if here[key] != found["machine"][key]:
            raise ConfigError(
                f"{path} was measured on another machine ({key} {found['machine'][key]}, here "
                f"{here[key]}): drop it with --new, or write to another --json"
            )
    return found


def replaced(rows: Sequence[Row], new: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Return all rows, without the old ones that a new one replaces: those equal in ``keys``."""
    measured = {tuple(row.get(key) for key in keys) for row in new}
    kept = [row for row in rows if tuple(row.get(key) for key in keys) not in measured]
    return [*kept, *new]


def write(
    found: Mapping[str, Any],
    path: Path,
    markdown: Callable[[Mapping[str, Any]], str] | None = None,
    peers: Sequence[str] = (),
) -> Found:
    """Write a JSON file with date, command and machine, and its tables beside it; return it.

    Args:
        found: ``results`` and other content of the file.
        path: Path of the JSON file.
        markdown: Returns the tables of the whole file.
        peers: Compared packages whose versions are recorded.
    """
    whole = {**found, **circumstances(*peers)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        path.with_suffix(".md").write_text(markdown(whole), encoding="utf-8")
    return whole
