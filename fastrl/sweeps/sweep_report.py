"""The report of a sweep, as a table, a picture and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from fastrl.curves import is_number, shown
from fastrl.durable import read_object
from fastrl.errors import ConfigError
from fastrl.system import circumstances
from fastrl.training.evaluation import INFO, RETURN_MEAN
from fastrl.training.metrics import read_rows
from fastrl.training.plotting import plot_runs, read_curve

State = Literal["finished", "pruned", "failed", "stopped"]

_LISTED = 30
"""Most rows of the table; the JSON file has all trials."""
_DRAWN = 8
"""Number of the best groups of trials that are drawn."""


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial.

    Attributes:
        number: Number of the trial, from 0.
        values: Values of the trial by dotted key.
        path: Directory of its run.
        state: State at its end.
        error: Reason of a failure, in one line.
        score: ``evaluation.metric`` of the final evaluation; without evaluations, the last value
            of training. None without one.
        steps: Number of environment steps that it has learnt from.
        wall_s: Wall time; 0 if it did not finish.
    """

    number: int
    values: Mapping[str, Any]
    path: Path
    state: State
    error: str = ""
    score: float | None = None
    steps: int = 0
    wall_s: float = 0.0

    @property
    def label(self) -> str:
        """The values in one line."""
        return " ".join(f"{key}={_shown(value)}" for key, value in self.values.items())

    def __str__(self) -> str:
        """Return the result in one line."""
        said = f"trial {self.number} ({self.label}) {self.state}"
        if self.error:
            return f"{said}: {self.error}"
        score = "" if self.score is None else f": {self.score:,.4g}"
        time = f" in {self.wall_s:,.0f} s" if self.wall_s else ""
        return f"{said}{score}, {self.steps:,} steps{time}"


def read_result(
    number: int,
    values: Mapping[str, Any],
    path: Path,
    metric: str,
    ended: tuple[State, str] | None = None,
) -> TrialResult | None:
    """Return the outcome of a run from its files; None if it has not finished.

    Args:
        number: Number of the trial.
        values: Values of the trial.
        path: The run's directory.
        metric: ``evaluation.metric``.
        ended: State and error of a trial that has ended without finishing.
    """
    summary = read_object(path / "summary.json")
    if not summary and ended is None:
        return None
    finished: tuple[State, str] = ("finished", "")
    state, error = finished if summary or ended is None else ended
    trained = training_values(path, metric)
    score = _score(summary, metric) if summary else None
    if score is None and trained:
        score = trained[-1][1]
    steps = summary.get("steps", trained[-1][0] if trained else 0)
    return TrialResult(
        number, values, path, state, error, score, steps, float(summary.get("wall_s", 0.0))
    )


def _score(summary: Mapping[str, Any], metric: str) -> float | None:
    """Return the score of a finished run."""
    if metric == RETURN_MEAN:
        found = summary.get("eval_return_mean")
    else:
        found = (summary.get("eval_info") or {}).get(metric.removeprefix(INFO))
    return float(found) if is_number(found) else None


def training_values(path: Path, metric: str, kind: str = "training") -> list[tuple[int, float]]:
    """Return a metric in a run's rows of the given kind, with the steps; empty if there is none."""
    with suppress(OSError):
        rows = (row for row in read_rows(path / "metrics.jsonl") if row.get("kind") == kind)
        return [(row["steps"], float(row[metric])) for row in rows if is_number(row.get(metric))]
    return []


@dataclass(frozen=True)
class SweepReport:
    """All trials of a sweep.

    Attributes:
        directory: Directory of the sweep.
        metric: Metric of the scores.
        trials: Trials that have ended, by number.
        command: The command line that repeats it.
    """

    directory: Path
    metric: str
    trials: Sequence[TrialResult]
    command: str = ""

    @cached_property
    def _groups(self) -> list[list[TrialResult]]:
        """The groups of trials that differ only in their seed, the best first."""
        groups: dict[str, list[TrialResult]] = {}
        for trial in self.trials:
            groups.setdefault(json.dumps(_without_seed(trial)), []).append(trial)
        return sorted(
            groups.values(), key=lambda group: statistics.fmean(_scores(group) or [-math.inf])
        )[::-1]

    @property
    def best(self) -> TrialResult | None:
        """The finished trial with the highest score."""
        finished = [trial for trial in self.trials if _scores([trial])]
        return max(finished, key=lambda trial: _scores([trial]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        trials = [
            {
                "number": trial.number,
                "values": dict(trial.values),
                "run": str(trial.path),
                "state": trial.state,
                "error": trial.error,
                "score": trial.score,
                "steps": trial.steps,
                "wall_s": trial.wall_s,
            }
            for trial in self.trials
        ]
        groups = [
            {
                "values": _without_seed(group[0]),
                "trials": [trial.number for trial in group],
                "scores": (scores := _scores(group)),
                "mean": statistics.fmean(scores) if scores else None,
                "std": statistics.pstdev(scores) if scores else None,
            }
            for group in self._groups
        ]
        return {
            "directory": str(self.directory),
            "metric": self.metric,
            "best": self.best.number if self.best else None,
            "groups": groups,
            "trials": trials,
            **circumstances("optuna", command=self.command),
        }

    def to_rich(self) -> Table:
        """Return the table that the command line prints."""
        keys = list(dict.fromkeys(key for trial in self.trials for key in _without_seed(trial)))
        table = Table(title=f"Sweep {self.directory}", title_justify="left")
        for key in keys:
            table.add_column(key, justify="right")
        for column in ("runs", f"{self.metric}, mean ± std", "lowest … highest", "steps/s"):
            table.add_column(column, justify="right")
        rows = [_cells(group) for group in self._groups[:_LISTED]]
        has_remarks = any(remark for *_, remark in rows)
        if has_remarks:
            table.add_column("unfinished")
        for group, cells in zip(self._groups, rows, strict=False):
            shown = cells if has_remarks else cells[:-1]
            table.add_row(*(_shown(group[0].values.get(key)) for key in keys), *shown)
        return table

    def draw(self) -> Path | None:
        """Write learning curves of the best groups into the directory; None if there are none."""
        runs = []
        for trial in (each for group in self._groups[:_DRAWN] for each in group):
            with suppress(ConfigError):
                read_curve(trial.path, "training", self.metric)
                runs.append(trial.path)
        if not runs:
            return None
        picture = self.directory / "curves.png"
        plot_runs(runs, picture, metric=self.metric)
        return picture


def _without_seed(trial: TrialResult) -> dict[str, Any]:
    return {key: value for key, value in trial.values.items() if key != "seed"}


def _scores(group: Sequence[TrialResult]) -> list[float]:
    return [t.score for t in group if t.state == "finished" and t.score is not None]


def _cells(group: Sequence[TrialResult]) -> list[str]:
    """Return the cells of a group after its values."""
    scores = _scores(group)
    spread = f"{min(scores):,.4g} … {max(scores):,.4g}" if len(scores) > 1 else ""
    score = f"{statistics.fmean(scores):,.4g}" if scores else ""
    score += f" ± {statistics.pstdev(scores):,.3g}" if len(scores) > 1 else ""
    speeds = [trial.steps / trial.wall_s for trial in group if trial.wall_s > 0]
    others = [trial.state for trial in group if trial.state != "finished"]
    remark = ", ".join(f"{others.count(state)} {state}" for state in dict.fromkeys(others))
    speed = f"{statistics.fmean(speeds):,.0f}" if speeds else ""
    return [str(len(group)), score, spread, speed, remark]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)
