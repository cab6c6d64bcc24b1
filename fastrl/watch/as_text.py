"""Runs as text: what the page shows, within the width of a terminal."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastrl.errors import printable
from fastrl.live_display import LiveDisplay
from fastrl.watch.run_index import RunIndex

_EVERY_S = 1.0
_WIDE = 90
"""Columns from which the curve of each run is drawn."""
_RUNS_SHOWN, _FAULTS_SHOWN, _KEYS_SHOWN = 20, 3, 4
_LEVELS = "▁▂▃▄▅▆▇█"
_STYLES = {"running": "green", "finished": "dim", "stopped": "red"}


def show(index: RunIndex, console: Console) -> None:
    """Print the runs; on a terminal again and again, until none is being trained.

    Args:
        index: The runs.
        console: Console for the text.
    """
    if console.is_terminal and _is_any_running(index):
        with LiveDisplay(console, lambda: as_text(index, console.width), 1 / _EVERY_S):
            pause = threading.Event()
            try:
                while _is_any_running(index):
                    pause.wait(_EVERY_S)
            except KeyboardInterrupt:
                pass  # ends the display, as it is meant to
    console.print(as_text(index, console.width))


def as_text(index: RunIndex, width: int) -> Group:
    """Return a table of all runs, and details of the latest one that is being trained.

    Args:
        index: The runs.
        width: Columns of the terminal.
    """
    overview = index.overview()
    runs = overview["runs"]
    if not runs:
        places = ", ".join(overview["places"])
        return Group(Text(f"no run in {places} yet"))
    parts: list[RenderableType] = []
    if overview["title"]:
        parts.append(Text(printable(overview["title"]), style="bold"))
    parts.append(_table_of_runs(runs, width))
    older = max(0, len(runs) - _RUNS_SHOWN) + overview["hidden"]
    if older:
        parts.append(Text(f"and {older} older ones", style="dim"))
    latest = next((run for run in runs if run["state"] == "running"), runs[0])
    parts += _one_run(index.details(latest["name"]))
    parts += _differences(index.differences())
    parts += _faults(index.faults())
    return Group(*parts)


def _is_any_running(index: RunIndex) -> bool:
    return any(run["state"] == "running" for run in index.overview()["runs"])


def _table_of_runs(runs: Sequence[dict[str, Any]], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("steps", "return", "steps/s", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("curve", no_wrap=True)
    for run in runs[:_RUNS_SHOWN]:
        cells: list[RenderableType] = [
            Text("●", style=_STYLES[run["state"]]),
            Text(run["name"]),
            _share(run["steps"], run["total_steps"]),
            _number(run["return_mean"] if run["evaluation"] is None else run["evaluation"]),
            _number(run["fps"]),
            _share(run["fps"], run["limit_fps"]),
        ]
        if width >= _WIDE:
            cells.append(_curve(run["trend"]))
        table.add_row(*cells)
    return table


def _one_run(run: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if run["workers"]:
        parts.append(Text(f"\nwhere the time goes: {run['name']}", style="bold"))
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("worker", no_wrap=True, overflow="ellipsis")
        for activity in run["activities"]:
            table.add_column(activity, justify="right", no_wrap=True)
        for worker, shares in run["workers"].items():
            table.add_row(worker, *(f"{share:.0%}" for share in shares))
        parts.append(table)
    parts += _speeds(run)
    shares = run["shares"]
    if shares["learning"] is not None and shares["sampling"] is not None:
        parts.append(
            Text(f"learner: {shares['learning']:.0%} learning, {shares['sampling']:.0%} waiting")
        )
    if run["videos"]:
        parts.append(Text(f"video: {run['name']}/videos/{run['videos'][0]}"))
    return parts


def _speeds(run: dict[str, Any]) -> list[RenderableType]:
    """Return the speeds of a run with their limits; nothing if there are none."""
    limits = run["limits_fps"]
    if not limits:
        return []
    reached = {"environment": None, "policy": run["sampling_fps"], "training": run["fps"]}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("steps/s", no_wrap=True)
    for name in ("environment", "with policy", "with training"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("limit", *map(_number, limits.values()))
    table.add_row("reached", *(_number(reached[name]) for name in limits))
    table.add_row("share", *(_share(reached[name], limits[name]) for name in limits))
    return [table]


def _differences(found: dict[str, Any]) -> list[RenderableType]:
    keys = found["keys"]
    if not keys:
        return []
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    for key in keys[:_KEYS_SHOWN]:
        table.add_column(key["key"].rpartition(".")[2], no_wrap=True, overflow="ellipsis")
    for number, run in enumerate(found["runs"][:_RUNS_SHOWN]):
        values = (key["values"][number] for key in keys[:_KEYS_SHOWN])
        table.add_row(run, *("–" if value is None else Text(printable(value)) for value in values))
    parts: list[RenderableType] = [Text("\nconfiguration", style="bold"), table]
    if len(keys) > _KEYS_SHOWN:
        others = ", ".join(key["key"] for key in keys[_KEYS_SHOWN:])
        parts.append(Text(f"and {others}", style="dim"))
    return parts


def _faults(found: dict[str, Any]) -> list[RenderableType]:
    if not found["total"]:
        return []
    parts: list[RenderableType] = [Text(f"\nfaults: {found['total']}", style="bold")]
    parts += [
        Text(printable(f"{fault['at'][:19]} {fault['run']}: {fault['cause']}"))
        for fault in found["faults"][:_FAULTS_SHOWN]
    ]
    return parts


def _curve(values: Sequence[float]) -> str:
    """Return a curve in one line of characters."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    most = len(_LEVELS) - 1
    return "".join(_LEVELS[round(most * (value - low) / ((high - low) or 1))] for value in values)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:,.4g}"


def _share(part: float | None, whole: float | None) -> str:
    return f"{min(1.0, part / whole):.0%}" if part is not None and whole else "–"
