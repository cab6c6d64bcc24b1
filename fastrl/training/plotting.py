"""Plots of the learning curves of runs; `fastrl.curves` reads and averages them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.arguments import file_path, instance
from fastrl.config import Config
from fastrl.curves import Curve, curve_name, curve_of, labels_of, mean_curve, shared_keys
from fastrl.durable import write_figure
from fastrl.errors import ArgumentError, ConfigError
from fastrl.formats import check_ending
from fastrl.runs import find_run, read_config
from fastrl.training.journal import FINAL
from fastrl.training.metrics import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW_POINTS = 20
_LABEL_WIDTH, _LEGEND_WIDTH = 60, 100
"""Most characters in a line of a label, and in a row of the legend."""
_LABEL_LINES = 4
_STYLES = ("-", "--", ":", "-.")
"""Line styles; the next one is used after all colours."""


def plot_runs(
    runs: Sequence[str | Path],
    output: Path,
    kind: str = "training",
    metric: str = "return_mean",
    title: str | None = None,
) -> None:
    """Draw a metric over steps, one curve per configuration.

    Runs whose configurations differ only in the seed, or in keys that do not change learning,
    become one curve: their mean, and a band of one standard deviation to both sides. The
    evaluation after the last step is drawn as a point, since it plays other episodes.

    Args:
        runs: Directories of runs, or their names under ``runs/``.
        output: A file that ends in .png, .pdf or .svg.
        kind: Kind of rows: ``training`` or ``evaluation``.
        metric: Name of a metric in these rows, such as ``info/is_success``.
        title: Title of the picture; by default the values that all runs have in common.

    Raises:
        ConfigError: There is no such run, or it has no such rows, or the file cannot be written.
    """
    output = file_path("output", output)
    check_ending(output)
    runs = [runs] if isinstance(runs, str | Path) else instance("runs", runs, Sequence)
    if not runs:
        raise ArgumentError("runs must name a run, got none")
    groups: dict[str, list[tuple[Config, Path]]] = {}
    for path in dict.fromkeys(find_run(run) for run in runs):
        config = read_config(path)
        family = json.dumps(_shared(config), sort_keys=True)
        groups.setdefault(family, []).append((config, path))
    firsts = [members[0][0] for members in groups.values()]
    names = [curve_name(config.env.id, config.algorithm.name) for config in firsts]
    common, labels = labels_of(names, [_shared(config) for config in firsts])
    curves: dict[str, list[Curve]] = {}
    finals: dict[str, list[Curve]] = {}
    for label, members in zip(labels, groups.values(), strict=True):
        curves[label] = [read_curve(path, kind, metric) for _, path in members]
        if kind == "evaluation":
            found = [_read(path, FINAL, metric)[0] for _, path in members]
            finals[label] = [final for final in found if len(final[0])]
    ylabel = "return" if metric == "return_mean" else metric
    draw_curves(
        curves,
        output,
        ylabel if kind == "training" else f"{ylabel} ({kind})",
        common if title is None else title,
        finals,
    )


def _shared(config: Config) -> dict[str, Any]:
    return shared_keys(config.model_dump(mode="json"))


def draw_curves(
    curves: Mapping[str, Sequence[Curve]],
    output: Path,
    ylabel: str = "return",
    title: str = "",
    finals: Mapping[str, Sequence[Curve]] | None = None,
) -> None:
    """Draw the mean of each group of curves, and a band of one standard deviation to both sides.

    Args:
        curves: Curves of all seeds, by label.
        output: A file that ends in .png, .pdf or .svg.
        ylabel: Label of the vertical axis.
        title: Title of the picture.
        finals: Final evaluations by the same labels, drawn as points.

    Raises:
        ConfigError: The file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(layout="constrained")
    handles: list[Any] = []
    colours = len(mpl.rcParams["axes.prop_cycle"])
    for number, (label, seeds) in enumerate(curves.items()):
        steps, mean, spread = mean_curve(seeds)
        many = f" ({len(seeds)} seeds)" if len(seeds) > 1 else ""
        text = _wrapped(f"{label}{many}")
        marker = "o" if len(steps) == 1 else "." if len(steps) <= _FEW_POINTS else None
        style = _STYLES[number // colours % len(_STYLES)]
        (line,) = axes.plot(steps, mean, style, marker=marker, label=text)
        if text:
            handles.append(line)
        if len(seeds) > 1:
            axes.fill_between(
                steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, lw=0
            )
        for last, value in (finals or {}).get(label, ()):
            axes.plot(last, value, "D", color=line.get_color(), markeredgecolor="black", ms=6)
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(ylabel)
    axes.set_title(_wrapped(title), fontsize="medium")
    axes.grid(alpha=0.3)
    _add_legend(figure, handles, _signs(curves, finals))
    try:
        write_figure(output, figure, dpi=150)
    finally:
        plt.close(figure)


def _signs(
    curves: Mapping[str, Sequence[Curve]], finals: Mapping[str, Sequence[Curve]] | None
) -> list[Any]:
    """Return the entries of the legend beside the curves."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    signs: list[Any] = []
    if any(len(seeds) > 1 for seeds in curves.values()):
        signs.append(Patch(color="grey", alpha=0.3, label="± one standard deviation over seeds"))
    if any((finals or {}).values()):
        signs.append(
            Line2D([], [], ls="", marker="D", color="grey", mec="black", label="final evaluation")
        )
    return signs


def _add_legend(figure: Figure, curves: list[Any], signs: list[Any]) -> None:
    """Put a legend below the axes, as wide as the figure, and make room for it."""
    handles = [*curves, *signs]
    widest = max((_width(each.get_label()) for each in handles), default=0)
    columns = max(1, min(len(handles), _LEGEND_WIDTH // (widest + 6)))
    lines = sum(each.get_label().count("\n") + 1 for each in handles)
    figure.set_size_inches(7.5, 4.5 + 0.2 * lines / columns)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _wrapped(text: str) -> str:
    """Return a text in lines of limited width, with signs of formulas escaped."""
    lines = textwrap.wrap(text, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder=" …")
    shown = "\n".join(lines).replace("$", r"\$")
    # Legends omit labels that begin with an underscore.
    return f" {shown}" if shown.startswith("_") else shown


def _width(label: str) -> int:
    return max(len(line) for line in label.split("\n"))


def read_curve(path: Path, kind: str, metric: str = "return_mean") -> Curve:
    """Return a metric of a run.

    Raises:
        ConfigError: The metric does not exist or cannot be read.
    """
    curve, others = _read(path, kind, metric)
    if kind == "evaluation" and not len(curve[0]):  # a short run has only the final one
        curve, in_final = _read(path, FINAL, metric)
        others |= in_final
    if len(curve[0]):
        return curve
    if metric == "return_mean":
        raise ConfigError(f"'{path}' has no {kind} returns yet")
    known = f"; there are {', '.join(sorted(others))}" if others else ""
    raise ConfigError(f"'{path}' has no {kind} metric '{metric}'{known}")


def _read(path: Path, kind: str, metric: str) -> tuple[Curve, set[str]]:
    """Return a metric of a run, possibly empty, and the names of all its metrics."""
    try:
        rows = [row for row in read_rows(path / "metrics.jsonl") if row.get("kind") == kind]
    except OSError as error:
        raise ConfigError(f"metrics of '{path}' cannot be read: {error.strerror}") from None
    return curve_of(rows, metric), {key for row in rows for key in row} - {"kind", "steps"}
