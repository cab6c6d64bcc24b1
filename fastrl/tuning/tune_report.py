"""The report of a tuning, as JSON, tables and plots."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table

from fastrl.durable import make_directory, write_figure, writing
from fastrl.errors import ConfigError
from fastrl.sampling.sampler import SHARES
from fastrl.system import circumstances
from fastrl.throughput.benchmark import spread
from fastrl.tuning.search import Finding
from fastrl.tuning.space import Candidate
from fastrl.tuning.study import Notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LISTED = 8  # candidates of the table
_NAMED = 8  # lines of a plot with a colour and a name; with GPUs there are many more
_COLUMN_CHARS, _SYMBOL_CHARS = 110, 7  # width of a legend, and of the symbol of an entry
_ADVICE = {
    "env stepping": "only more cores, or an environment that steps many at once "
    "('fastrl envs' lists compiled ones), would be faster",
    "inference": "a smaller network, a GPU, or on a CPU that has it sampler.engine=bfloat16 "
    "for conv nets would help",
    "handoff": "more environments per worker, or sampler.num_model_workers=0, would help",
    "learner": "sampler.mode=async hides sampling behind learning; fewer algorithm.epochs, larger "
    "minibatches or a GPU for algorithm.device would help",
}


@dataclass(frozen=True)
class TuneReport:
    """The result of one tuning.

    Attributes:
        env: Id of the environment.
        objective: ``fps`` or ``train_fps``.
        limit: The physical limit, and the frames per second of the best right after it; None if
            it was not measured.
        command: The command line that repeats it.
    """

    env: str
    objective: str
    finding: Finding
    limit: tuple[float, float] | None = None
    wall_s: float = 0.0
    command: str = ""

    @property
    def base_name(self) -> str:
        """Name of the reference of `Finding.ratios`: the default unless it failed."""
        base = self.finding.path[0]
        return "the default" if base == self.finding.default else base.label

    def ranking(self) -> list[tuple[Candidate, float]]:
        """Return the candidates that never failed, with `Finding.ratios`: the best, then by speed.

        A candidate that lost its race may still have the larger ratio, by less than the noise or
        by less than its size costs.
        """
        found = self.finding
        failed = self._failed() - {found.best}
        ranked = [(c, ratio) for c, ratio in found.ratios.items() if c not in failed]
        return sorted(ranked, key=lambda item: (item[0] != found.best, -item[1]))

    def notes(self) -> Notes:
        """Return the details of the latest window of the best."""
        seen = [t.notes for t in self.finding.trials if t.candidate == self.finding.best and t.fps]
        return seen[-1] if seen else Notes()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        found, notes = self.finding, self.notes()
        limit_fps, beside_fps = self.limit or (None, None)
        trials = [
            {
                **trial.candidate.to_dict(),
                "against": trial.reference.label if trial.reference else None,
                "seconds": trial.seconds,
                "fps": trial.fps,
                "against_fps": trial.reference_fps,
                "cost_s": trial.cost_s,
                "error": trial.error,
            }
            for trial in found.trials
        ]
        return {
            "env": self.env,
            "objective": self.objective,
            "best": found.best.to_dict(),
            "default": found.default.to_dict(),
            "fps_median": found.fps_median,
            "fps": list(found.best_fps),
            "default_fps_median": found.default_fps_median,
            "default_fps": list(found.default_fps),
            "gain": found.gain,
            "limit_fps": limit_fps,
            "fps_beside_limit": beside_fps,
            "efficiency": beside_fps / limit_fps if limit_fps and beside_fps else None,
            "bottleneck": find_bottleneck(found.best, notes) or None,
            "ended": found.ended,
            "path": [candidate.to_dict() for candidate in found.path],
            "ranking": [{**c.to_dict(), "ratio": ratio} for c, ratio in self.ranking()],
            "trials": trials,
            "time_shares": notes.shares or None,
            "wall_s": self.wall_s,
            **circumstances(command=self.command),
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        return Group(self._summary(), self._candidates())

    def _failed(self) -> set[Candidate]:
        return {trial.candidate for trial in self.finding.trials if trial.fps is None}

    def _summary(self) -> Table:
        found = self.finding
        what = "training" if self.objective == "train_fps" else "sampling"
        table = Table(title=f"Tuning of {what} {self.env}", title_justify="left", show_header=False)
        default_fps = "not compared with the best at the end"
        if found.default_fps:
            default_fps = spread(found.default_fps)
        elif found.default in self._failed():
            default_fps = "failed"
        table.add_row("best", found.best.label)
        table.add_row("frames per second", spread(found.best_fps))
        table.add_row("default", found.default.label)
        table.add_row("frames per second", default_fps)
        if found.gain is not None and found.best != found.default:
            table.add_row("gain", f"{found.gain:.2f} ×")
        if self.limit is not None:
            fps, beside_fps = self.limit
            reached = (
                f"right after it the best made {beside_fps:,.0f}, {beside_fps / fps:.1%} of it"
            )
            table.add_row("limit", f"{fps:,.0f}; {reached}")
        if bottleneck := find_bottleneck(found.best, self.notes()):
            table.add_row("bottleneck", bottleneck)
        failed = sum(trial.fps is None for trial in found.trials)
        tried = len({trial.candidate for trial in found.trials})
        numbers = f"{tried} candidates, {len(found.trials)} trials"
        numbers += f", {failed} failed" if failed else ""
        table.add_row("search", f"{numbers}, {found.spent_s:.0f} s; {found.ended}")
        return table

    def _candidates(self) -> Table:
        """Return the fastest candidates with their ratios, see `Finding.ratios`."""
        found, ranked = self.finding, self.ranking()
        table = Table(title="Fastest trials", title_justify="left")
        table.add_column("candidate")
        table.add_column(f"times {self.base_name}", justify="right")
        table.add_column("")
        for candidate, ratio in ranked[:_LISTED]:
            remarks = {"best": candidate == found.best, "default": candidate == found.default}
            remark = ", ".join(name for name, holds in remarks.items() if holds)
            if ratio > ranked[0][1]:
                remark = remark or "not clearly faster"
            table.add_row(candidate.label, f"{ratio:.2f}", remark)
        return table


def find_bottleneck(candidate: Candidate, notes: Notes) -> str:
    """Return one line with the bottleneck of a candidate, and a remedy.

    Env workers that wait for model workers wait for the inference; while model workers
    wait, too, both wait for the handoff. Without ``notes`` the line is empty.
    """
    if "env-worker" not in notes.shares:
        return ""
    kinds = ("env-worker", "model-worker")
    stepper, server = (
        {name: notes.shares.get(kind, {}).get(name, 0.0) for name in SHARES} for kind in kinds
    )
    sampling = 1.0 - notes.learner_share
    parts = {"learner": notes.learner_share, "env stepping": stepper["stepping"] * sampling}
    if candidate.num_model_workers and "model-worker" in notes.shares:
        held_up = (stepper["waiting"] + stepper["handoff"]) * sampling
        computing = server["inference"] / max(1e-9, server["inference"] + server["waiting"])
        parts |= {"inference": held_up * computing, "handoff": held_up * (1 - computing)}
    else:
        parts |= {name: stepper[name] * sampling for name in ("inference", "handoff")}
    name = max(parts, key=lambda part: parts[part])
    advice = _ADVICE[name]
    if name == "inference" and candidate.engine == "bfloat16":
        advice = "a smaller network or a GPU would help"
    return f"{name} ({min(1.0, parts[name]):.0%} of the time); {advice}"


def plot_tuning(report: TuneReport, directory: Path) -> list[Path]:
    """Write three PNGs into a directory, which is created; return their paths.

    Raises:
        ConfigError: They cannot be written.
    """
    from matplotlib.figure import Figure

    with writing(directory, ConfigError):
        make_directory(directory)
    name, paths = report.env.replace("/", "-").replace(":", "-"), []
    for kind, draw in {"fps_over_n": _over_n, "path": _path, "shares": _shares}.items():
        figure = Figure(figsize=(7.0, 4.5), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, report)
        # Below the axes, as points and bars may be anywhere inside.
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            columns = max(1, min(4, _COLUMN_CHARS // (_SYMBOL_CHARS + max(map(len, labels)))))
            figure.legend(loc="outside lower center", fontsize="x-small", ncols=columns)
        paths.append(directory / f"tune_{name}_{kind}.png")
        write_figure(paths[-1], figure, dpi=120)
    return paths


def _over_n(axes: Axes, report: TuneReport) -> None:
    """Draw speed over n, a line for each choice of the rest; the fastest have colours."""
    from matplotlib import colormaps

    lines: dict[Candidate, dict[int, float]] = defaultdict(dict)
    # The best comes first; its line is thick.
    for candidate, ratio in report.ranking():
        lines[candidate.but(envs_per_worker=1)][candidate.envs_per_worker] = ratio
    for number, (kind, points) in enumerate(lines.items()):
        is_named = number < _NAMED
        axes.plot(
            *zip(*sorted(points.items()), strict=True),
            "o-",
            color=colormaps["tab20"](number) if is_named else "lightgrey",
            linewidth=1.0 if number else 2.5,
            label=kind.label.partition(" ")[2] if is_named else "others" * (number == _NAMED),
            zorder=3 if is_named else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="environments per worker, n", ylabel=f"times {report.base_name}")
    axes.set(title=f"{report.env}: trials of the tuner", ylim=(0, None))


def _path(axes: Axes, report: TuneReport) -> None:
    """Draw all trials over time, and the best so far, relative to the first candidate."""
    found, ratios = report.finding, report.finding.ratios
    spent_s, ended_s, points, failed = 0.0, {}, [], []
    for number, trial in enumerate(found.trials):
        spent_s += trial.cost_s
        if number < len(found.searched):
            ended_s[trial.candidate] = spent_s
        if trial.fps is None or (trial.reference is not None and not trial.reference_fps):
            failed.append((spent_s, 0.0))
        else:
            beside = ratios.get(trial.reference or trial.candidate, 1.0)
            points.append((spent_s, beside * trial.fps / (trial.reference_fps or trial.fps)))
    # A smaller candidate may win though it is a little slower.
    best = np.maximum.accumulate([ratios[candidate] for candidate in found.path])
    won_s = [ended_s[candidate] for candidate in dict.fromkeys(found.path)]
    line = ([*won_s, spent_s], [*best[: len(won_s)], best[-1]])
    axes.plot(*line, "-", color="tab:grey", drawstyle="steps-post", label="best so far")
    axes.plot(*zip(*points, strict=True), "o", markersize=4, label="candidate")
    if failed:
        axes.plot(*zip(*failed, strict=True), "x", color="tab:red", label="failed")
    axes.set(xlabel="seconds", ylabel=f"times {report.base_name}")
    axes.set(title=f"{report.env}: the search", ylim=(0, None))


def _shares(axes: Axes, report: TuneReport) -> None:
    """Draw the time shares of the best's processes."""
    shares = report.notes().shares
    left = np.zeros(len(shares))
    for activity in dict.fromkeys(label for found in shares.values() for label in found):
        widths = np.array([found.get(activity, 0.0) for found in shares.values()])
        axes.barh(list(shares), widths, left=left, label=activity)
        left += widths
    title = f"{report.env}: {report.finding.best.label}"
    axes.set(xlabel="share of time", xlim=(0, 1), title=title)
