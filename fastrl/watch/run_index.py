"""The index of all watched runs, with the data of the page and the text."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import file_path
from fastrl.curves import (
    curve_name,
    differences,
    is_number,
    labels_of,
    leaves_of,
    mean_curve,
    shown,
)
from fastrl.errors import ConfigError, printable
from fastrl.runs import BESIDE_CONFIG, RUNS
from fastrl.watch.run_files import directory_below, open_below
from fastrl.watch.watched_run import VIDEOS, WatchedRun

_MOST_RUNS = 500
_DEEPEST = 4
"""Levels of directories in which runs are searched."""
_EVERY_S, _SELDOM_S = 1.0, 10.0
"""Shortest time between two reads of running runs, and of others."""
_FIND_S = 5.0
"""Shortest time between two searches for new runs."""
_POINTS, _FAINT_POINTS = 400, 150
"""Most points of a curve, and of each seed's curve behind a mean."""
_MOST_CURVES = 1000
"""Most curves of groups in the cache."""
_DIGITS = 6
_FAULTS_SHOWN = 50
_KEYS_HIDDEN = {"run_dir"}


class RunIndex:
    """The runs below some directories, which are searched and read again as they change.

    Its methods may be called in several threads.

    Args:
        places: Directories of runs, or of directories of runs; or names under ``runs/``.

    Raises:
        ConfigError: A place is not a directory.
    """

    def __init__(self, places: Sequence[str | Path]) -> None:
        self._places = list(dict.fromkeys(_directory(place) for place in places))
        self._runs: dict[tuple[Path, tuple[str, ...]], WatchedRun] = {}
        self._read_s: dict[str, float] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, int] = {}
        self._families: list[str] = []
        self._compared: list[tuple[str, float]] = []
        self._different: dict[str, list[str | None]] = {}
        self._curves: dict[tuple[int, str, str, str], tuple[Any, dict[str, Any]]] = {}
        self._labels: dict[int, str] = {}
        self._title = ""
        self._hidden = 0
        self._lock = threading.RLock()
        self._looked_s = self._found_s = -math.inf
        self._version = 0

    def refresh(self) -> None:
        """Find new runs and read changed ones, at most once a second."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s < _EVERY_S:
                return
            has_changed = False
            if now_s - self._found_s >= _FIND_S:
                has_changed, self._found_s = self._find(), now_s
            for run in self._runs.values():
                age_s = now_s - self._read_s.get(run.name, -math.inf)
                if age_s >= (_EVERY_S if run.state == "running" else _SELDOM_S):
                    self._read_s[run.name] = now_s
                    if run.refresh():
                        self._rows.pop(run.name, None)
                        has_changed = True
            if has_changed:
                self._label()
                self._version += 1
            self._looked_s = time.monotonic()

    def overview(self) -> dict[str, Any]:
        """Return the list of all runs, the latest first.

        ``version`` changes with everything that can be shown; ``hidden`` is the number of older
        runs that are not shown.
        """
        with self._lock:
            self.refresh()
            runs = [self._row(run) for run in self._ordered()]
            metrics: dict[str, dict[str, None]] = {}
            for run in self._runs.values():
                for kind, rows in run.rows.items():
                    known = metrics.setdefault(kind, {})
                    known |= dict.fromkeys(key for row in rows[-1:] for key in row)
            return {
                "version": self._version,
                "places": [str(place) for place in self._places],
                "title": self._title,
                "groups": [{"group": key, "label": text} for key, text in self._labels.items()],
                "runs": runs,
                "hidden": self._hidden,
                "metrics": {
                    kind: sorted(known.keys() - {"kind", "steps"})
                    for kind, known in metrics.items()
                },
            }

    def curves(
        self, metric: str, kind: str, over: str = "steps", groups: set[int] | None = None
    ) -> dict[str, Any]:
        """Return a metric of all runs, by group: their mean, its spread, and each run.

        Args:
            metric: Name of the metric, such as ``return_mean``.
            kind: Kind of rows, such as ``training``.
            over: The horizontal axis: ``steps`` or ``wall_s``.
            groups: Numbers of the groups; None for all.
        """
        with self._lock:
            self.refresh()
            members: dict[int, list[WatchedRun]] = {}
            for run in self._ordered():
                if groups is None or self._group(run) in groups:
                    members.setdefault(self._group(run), []).append(run)
            found = [
                self._curve(group, runs, (metric, kind, over))
                for group, runs in sorted(members.items())
            ]
            return {"version": self._version, "groups": [each for each in found if each]}

    def details(self, name: str) -> dict[str, Any]:
        """Return the details of one run.

        Raises:
            KeyError: There is no such run.
        """
        with self._lock:
            self.refresh()
            run = self._named(name)
            latest = run.latest()
            return {
                **self._row(run),
                "version": self._version,
                "activities": run.workers.get("activities", []),
                "workers": run.workers.get("workers", {}),
                "shares": {
                    key: _number(latest.get(f"{key}_share")) for key in ("sampling", "learning")
                },
                "speeds": {
                    key: _number(latest.get(f"{key}_fps")) for key in ("sampling", "learning")
                },
                "config": {key: shown(value) for key, value in leaves_of(run.tree)},
            }

    def faults(self) -> dict[str, Any]:
        """Return the latest failures of workers of all runs, the latest first."""
        with self._lock:
            self.refresh()
            found = [
                {"run": run.name, **{key: str(fault.get(key, "")) for key in _FAULT_KEYS}}
                for run in self._runs.values()
                for fault in run.faults
            ]
            found.sort(key=lambda fault: fault["at"], reverse=True)
            total = sum(run.num_faults for run in self._runs.values())
            return {"version": self._version, "total": total, "faults": found[:_FAULTS_SHOWN]}

    def differences(self) -> dict[str, Any]:
        """Return the keys in which the configurations of runs differ, with their values."""
        with self._lock:
            self.refresh()
            runs = [run for run in self._ordered() if run.tree]
            state = [(run.name, run.began_s) for run in runs]
            if state != self._compared:
                trees = [dict(leaves_of(run.tree)) for run in runs]
                self._different, self._compared = differences(trees), state
            keys = {k: v for k, v in self._different.items() if k not in _KEYS_HIDDEN}
            return {
                "version": self._version,
                "runs": [run.name for run in runs],
                "keys": [{"key": key, "values": values} for key, values in keys.items()],
            }

    def everything(self) -> dict[str, Any]:
        """Return all of the above at once, with the details of each run, and no curves."""
        with self._lock:
            found = self.overview()
            details = [self.details(run["name"]) for run in found["runs"]]
            known = {"runs": details, "faults": self.faults(), "differences": self.differences()}
            return found | known

    def open_video(self, name: str, video: str) -> tuple[Any, str]:
        """Return a context manager that opens a video of a run, and its content type.

        Raises:
            KeyError: There is no such video.
        """
        with self._lock:
            self.refresh()
            root, parts = self._named(name).path_of_video(video)
            return open_below(root, *parts), VIDEOS[Path(video).suffix]

    def _curve(
        self, group: int, runs: Sequence[WatchedRun], what: tuple[str, str, str]
    ) -> dict[str, Any]:
        """Return the curve of a group, which is cached until one of its runs changes."""
        metric, kind, over = what
        state = tuple((run.name, run.changes) for run in runs)
        known = self._curves.get((group, *what))
        if known is None or known[0] != state:
            curves = [(run.name, run.curve(metric, kind, over)) for run in runs]
            known = state, _drawn(group, [each for each in curves if len(each[1][0])])
            if len(self._curves) >= _MOST_CURVES:
                self._curves.clear()
            self._curves[group, *what] = known
        return known[1]

    def _named(self, name: str) -> WatchedRun:
        for run in self._runs.values():
            if run.name == name:
                return run
        raise KeyError(name)

    def _ordered(self) -> list[WatchedRun]:
        return sorted(self._runs.values(), key=lambda run: (-run.began_s, run.name))

    def _group(self, run: WatchedRun) -> int:
        return self._groups[run.family]

    def _find(self) -> bool:
        """Add new runs and drop removed ones; return whether there are any runs."""
        found: dict[tuple[Path, tuple[str, ...]], None] = {}
        for place in self._places:
            found |= dict.fromkeys((place, parts) for parts in _runs_below(place))
        kept, self._hidden = list(found), max(0, len(found) - _MOST_RUNS)
        if self._hidden:
            kept = sorted(found, key=_written_s, reverse=True)[:_MOST_RUNS]
        gone = self._runs.keys() - set(kept)
        for key in gone:
            name = self._runs.pop(key).name
            self._rows.pop(name, None)
            self._read_s.pop(name, None)
            self._curves.clear()
        names = {run.name for run in self._runs.values()}
        new = [key for key in kept if key not in self._runs]
        for place, parts in new:
            name = _free_name(place, parts, len(self._places) > 1, names)
            names.add(name)
            self._runs[place, parts] = WatchedRun(place, parts, name)
        return bool(gone or new)

    def _label(self) -> None:
        """Number the groups of runs, and label them by the keys that differ."""
        families: dict[str, WatchedRun] = {}
        for run in reversed(self._ordered()):
            families.setdefault(run.family, run)
        if list(families) == self._families:
            return
        self._families = list(families)
        names = [_curve_name(run) for run in families.values()]
        self._title, labels = labels_of(names, [run.shared for run in families.values()])
        self._labels = {}
        for family, label in zip(families, labels, strict=True):
            number = self._groups.setdefault(family, len(self._groups))
            self._labels[number] = label or self._title or "runs"

    def _row(self, run: WatchedRun) -> dict[str, Any]:
        """Return the row of a run in the list, which is cached until the run changes."""
        if run.name not in self._rows:
            self._rows[run.name] = self._new_row(run)
        return self._rows[run.name]

    def _new_row(self, run: WatchedRun) -> dict[str, Any]:
        latest, evaluated = run.latest(), run.latest("final_evaluation") or run.latest("evaluation")
        curve = run.curve("return_mean", "training", "steps")
        return {
            "name": run.name,
            "group": self._group(run),
            "env": str(run.section("env").get("id")),
            "algorithm": _algorithm(run),
            "seed": _number(run.tree.get("seed")),
            "state": run.state,
            "problem": run.problem,
            "steps": latest.get("steps", 0),
            "total_steps": _number(run.tree.get("total_steps")),
            "wall_s": _number(latest.get("wall_s")),
            "return_mean": _number(latest.get("return_mean")),
            "evaluation": _number(evaluated.get("return_mean")),
            "fps": _number(latest.get("fps")),
            "sampling_fps": _number(latest.get("sampling_fps")),
            "limit_fps": _number(run.workers.get("limit_fps")),
            "limits_fps": _limits(run.workers.get("limits_fps")),
            "faults": run.num_faults,
            "videos": list(run.videos),
            "trend": _numbers(_thinned(curve[1], 40)),
        }


_FAULT_KEYS = ("at", "worker", "cause", "remote_traceback")


def _directory(place: str | Path) -> Path:
    """Return a directory, given by its path or by its name under ``runs/``.

    Raises:
        ConfigError: There is no such directory.
    """
    path = file_path("a directory of runs", place)
    for candidate in (path, RUNS / path):
        with suppress(OSError, ValueError):
            if candidate.is_dir():
                return candidate
    hint = "; train one first, or name another directory" if path == RUNS else ""
    raise ConfigError(f"'{place}' is not a directory of runs{hint}")


def _runs_below(root: Path, parts: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each run below a directory, without following links."""
    directories: list[str] = []
    names: set[str] = set()
    with (
        suppress(OSError),
        directory_below(root, *parts) as directory,
        os.scandir(directory) as entries,
    ):
        for entry in entries:
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory or entry.is_file(follow_symlinks=False):
                names.add(entry.name)
            if is_directory and not entry.name.startswith("."):
                directories.append(entry.name)
    if "config.yaml" in names and not names.isdisjoint(BESIDE_CONFIG):
        yield parts
        return
    if len(parts) < _DEEPEST:
        for name in sorted(directories):
            yield from _runs_below(root, (*parts, name))


def _written_s(key: tuple[Path, tuple[str, ...]]) -> float:
    """Return when the configuration of a run was written; 0 for a run that is gone."""
    place, parts = key
    with suppress(OSError):
        return place.joinpath(*parts, "config.yaml").lstat().st_mtime
    return 0.0


def _free_name(place: Path, parts: tuple[str, ...], is_one_of_several: bool, used: set[str]) -> str:
    """Return the name of a run, which no other run has, in characters that can be shown."""
    own = place.resolve().name
    name = printable("/".join(((own,) if is_one_of_several or not parts else ()) + parts))
    found, number = name, 1
    while found in used:
        number += 1
        found = f"{name} ({number})"
    return found


def _curve_name(run: WatchedRun) -> str:
    return curve_name(str(run.section("env").get("id", run.name)), _algorithm(run))


def _algorithm(run: WatchedRun) -> str:
    section = run.section("algorithm")
    return str(section.get("name") or section.get("class_path") or "?")


def _drawn(group: int, members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the curve of a group of runs, and of each of its runs if there are several.

    It is empty if no run has a value.
    """
    if not members:
        return {}
    steps, mean, spread = mean_curve([curve for _, curve in members])
    return {
        "group": group,
        "x": _numbers(_thinned(steps, _POINTS)),
        "mean": _numbers(_thinned(mean, _POINTS)),
        "spread": _numbers(_thinned(spread, _POINTS)) if len(members) > 1 else [],
        "runs": [
            {
                "name": name,
                "x": _numbers(_thinned(x, _FAINT_POINTS)),
                "y": _numbers(_thinned(y, _FAINT_POINTS)),
            }
            for name, (x, y) in (members if len(members) > 1 else ())
        ],
    }


def _thinned(values: NDArray[np.float64], at_most: int) -> NDArray[np.float64]:
    """Return about ``at_most`` evenly spaced values, including the first and the last."""
    if len(values) <= at_most:
        return values
    return values[np.linspace(0, len(values) - 1, at_most).round().astype(np.int64)]


def _numbers(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _limits(value: object) -> dict[str, float]:
    """Return the three limits of ``workers.json``; none if one is missing or not a number."""
    given = value if isinstance(value, dict) else {}
    names = ("environment", "policy", "training")
    found = {name: given[name] for name in names if is_number(given.get(name))}
    return found if len(found) == len(names) else {}


def _number(value: object) -> float | None:
    return value if is_number(value) else None
