"""Pictures of a tuning: frames per second over n, the search's path, time shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastrl.tuning.candidate import Candidate
from fastrl.tuning.report import TuneReport

_SIZE = (7.0, 4.5)


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
    """Draw a line for each choice of all but n; the best's is thick."""
    lines: dict[Candidate, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for candidate, speeds in _relative_speeds(report).items():
        kind = candidate.but(envs_per_worker=1)
        lines[kind][candidate.envs_per_worker] += speeds
    best = report.finding.best.but(envs_per_worker=1)
    for kind, points in lines.items():
        sizes = sorted(points)
        axes.plot(
            sizes,
            [float(np.median(points[n])) for n in sizes],
            "o-",
            linewidth=2.5 if kind == best else 1.0,
            label=kind.label.partition(" ")[2],
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="environments per worker, n", ylabel="times the first candidate")
    axes.set_title(f"{report.env}: trials of the tuner")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small", ncols=2)


def _relative_speeds(report: TuneReport) -> dict[Candidate, list[float]]:
    """Return speeds relative to the first candidate's, by the ratios of adjacent windows.

    Frames per second themselves would show how the machine's speed changed meanwhile.
    """
    speeds: dict[Candidate, list[float]] = defaultdict(list)
    # The comparison of best and default at the end is no link of the chain.
    for trial in report.finding.searched:
        if trial.fps is None:
            continue
        if trial.reference is None or not trial.reference_fps:
            speeds[trial.candidate].append(1.0)
        else:
            base = float(np.median(speeds[trial.reference] or [1.0]))
            speeds[trial.candidate].append(base * trial.fps / trial.reference_fps)
    return speeds


def _path(axes: Axes, report: TuneReport) -> None:
    """Draw every trial over the time spent, and the incumbent it was compared with."""
    spent_s, times, own, others, failed = 0.0, [], [], [], []
    for trial in report.finding.trials:
        spent_s += trial.cost_s
        if trial.fps is None:
            failed.append(spent_s)
            continue
        times.append(spent_s)
        own.append(trial.fps)
        others.append(trial.reference_fps or trial.fps)
    axes.plot(times, others, "-", color="tab:grey", label="best so far, measured beside it")
    axes.plot(times, own, "o", markersize=4, label="candidate")
    if failed:
        axes.plot(failed, [0] * len(failed), "x", color="tab:red", label="failed")
    axes.set(xlabel="seconds", ylabel="frames per second", title=f"{report.env}: the search")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


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
        axes.legend(fontsize="small", ncols=len(activities), loc="upper center")
