"""Pictures of a tuning: frames per second over n, the search's path, time shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastrl.tuning.candidate import Candidate
from fastrl.tuning.report import TuneReport

_SIZE = (7.0, 4.5)
_NAMED = 8
"""Lines that have a colour and a name; a machine with GPUs has many more choices."""
_SIGNS, _SYMBOL_SIGNS = 110, 7
"""Letters across a picture in a legend's size, and those that a symbol takes."""


def plot_tuning(report: TuneReport, directory: Path) -> list[Path]:
    """Write three PNGs into a directory, which is made; return where they are."""
    directory.mkdir(parents=True, exist_ok=True)
    name = report.env.replace("/", "-").replace(":", "-")
    pictures = {"fps_over_n": _over_n, "path": _path, "shares": _shares}
    return [
        _save(draw, report, directory / f"tune_{name}_{kind}.png")
        for kind, draw in pictures.items()
    ]


def _save(draw: Callable[[Axes, TuneReport], Any], report: TuneReport, path: Path) -> Path:
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot(), report)
    figure.savefig(path, dpi=120)
    return path


def _over_n(axes: Axes, report: TuneReport) -> None:
    """Draw a line for each choice of all but n, the fastest in colours; the best's is thick."""
    lines: dict[Candidate, dict[int, float]] = defaultdict(dict)
    # The best first, so that its line has a colour.
    for candidate, ratio in report.ranking():
        lines[candidate.but(envs_per_worker=1)][candidate.envs_per_worker] = ratio
    for number, (kind, points) in enumerate(lines.items()):
        is_named, sizes = number < _NAMED, sorted(points)
        axes.plot(
            sizes,
            [points[n] for n in sizes],
            "o-",
            color=colormaps["tab20"](number) if is_named else "lightgrey",
            linewidth=1.0 if number else 2.5,
            label=kind.label.partition(" ")[2] if is_named else "others" * (number == _NAMED),
            zorder=3 if is_named else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="environments per worker, n", ylabel=f"times {report.base_name}")
    axes.set_title(f"{report.env}: trials of the tuner")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _path(axes: Axes, report: TuneReport) -> None:
    """Draw every trial over the time spent, and the fastest winner of a race so far.

    Both relative to the first candidate, as frames per second would rise and fall with the machine.
    """
    found, ratios, ranked = report.finding, report.finding.ratios(), dict(report.ranking())
    lasts = {trial.candidate: number for number, trial in enumerate(found.searched)}
    spent_s, times, own, winners, failed = 0.0, [], [], [], []
    for number, trial in enumerate(found.trials):
        spent_s += trial.cost_s
        if trial.fps is None or (trial.reference is not None and not trial.reference_fps):
            failed.append(spent_s)
            continue
        beside = ratios.get(trial.reference or trial.candidate, 1.0)
        times.append(spent_s)
        own.append(beside * trial.fps / (trial.reference_fps or trial.fps))
        has_won = trial.candidate in found.path and lasts.get(trial.candidate) == number
        winners.append(ranked.get(trial.candidate, 0.0) if has_won else 0.0)
    # A smaller candidate may win though it is a little slower.
    best = np.maximum.accumulate(np.array(winners))
    axes.plot(times, best, "-", color="tab:grey", drawstyle="steps-post", label="best so far")
    axes.plot(times, own, "o", markersize=4, label="candidate")
    if failed:
        axes.plot(failed, [0] * len(failed), "x", color="tab:red", label="failed")
    axes.set(xlabel="seconds", ylabel=f"times {report.base_name}")
    axes.set_title(f"{report.env}: the search")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _shares(axes: Axes, report: TuneReport) -> None:
    """Draw where the time of the best's processes went."""
    shares: dict[str, dict[str, float]] = report.to_dict()["time_shares"] or {}
    left = np.zeros(len(shares))
    activities = list(dict.fromkeys(label for found in shares.values() for label in found))
    for activity in activities:
        widths = np.array([found.get(activity, 0.0) for found in shares.values()])
        axes.barh(list(shares), widths, left=left, label=activity)
        left += widths
    axes.set(
        xlabel="share of time", xlim=(0, 1), title=f"{report.env}: {report.finding.best.label}"
    )
    if activities:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Put the legend below the axes, in which points and bars may be anywhere."""
    assert isinstance(axes.figure, Figure)
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, _SIGNS // (_SYMBOL_SIGNS + max(map(len, labels), default=0))))
    axes.figure.legend(loc="outside lower center", fontsize="x-small", ncols=columns)
