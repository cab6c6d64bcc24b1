"""The JSON files of measurements, all of one form.

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
"""A whole file."""


def quantity(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return what a row says of a quantity that was measured in several rounds."""
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
    """Return the values that rows have for a key, in the order of their appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def when() -> dict[str, Any]:
    """Return what a row keeps that may stay in its file longer than others: date and command."""
    here = circumstances()
    return {key: here[key] for key in ("date", "command")}


def load(path: Path, same_machine: Sequence[str] = ()) -> Found:
    """Return what a file holds; without one, no rows.

    Args:
        path: Of the JSON file.
        same_machine: What must be as here if rows are added, such as ``cores``.

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
    """Return rows and new rows, without the old ones that agree with a new one in ``keys``."""
    measured = {tuple(row.get(key) for key in keys) for row in new}
    kept = [row for row in rows if tuple(row.get(key) for key in keys) not in measured]
    return [*kept, *new]


def write(
    found: Mapping[str, Any],
    path: Path,
    markdown: Callable[[Mapping[str, Any]], str] | None = None,
    peers: Sequence[str] = (),
) -> Found:
    """Write a JSON file with the circumstances, and its tables beside it; return the whole file.

    Args:
        found: ``results``, and the other content of the file.
        path: Of the JSON file.
        markdown: Returns the tables of the whole file.
        peers: Packages of others whose versions count.
    """
    whole = {**found, **circumstances(*peers)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if markdown is not None:
        path.with_suffix(".md").write_text(markdown(whole), encoding="utf-8")
    return whole
