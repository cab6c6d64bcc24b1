"""Style of all plots: fastrl's lines are bold, and each method has its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, ACCENT, PLAIN = "#343a40", "#0b7285", "#adb5bd"
IDEAL = "ideal"
"""Label of calculated lines, like ``ideal: …``; the legend shows one of them."""

Line = tuple[Sequence[float], Sequence[float]]
"""The x and y of the points."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above the axes.
        xlabel: Below them.
        ylabel: Beside them.
        lines: By label.
        log: Whether both axes are logarithmic.
        ticks: Marks of a logarithmic x, beside a y from 0, in place of ``log``.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Mapping[str, Line] = field(default_factory=dict)
    log: bool = True
    ticks: Sequence[float] = ()


def curves(rows: Sequence[Sequence[Panel]], path: Path, title: str = "") -> None:
    """Write a picture with rows of panels and one legend.

    matplotlib is imported here, since worker processes import modules beside this one.
    """
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    size = (max(8.0, 4.4 * columns), 4.2 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    labels = list(dict.fromkeys(label for row in rows for panel in row for label in panel.lines))
    for axes_of_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_of_row, row, strict=True):
            _draw(axes, panel, labels)
    drawn = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    shown = {label if not label.startswith(IDEAL) else IDEAL: drawn[label] for label in labels}
    columns = min(6, max(1, len(shown)))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns, fontsize=8)
    figure.suptitle(title, fontsize=10, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def where(found: Mapping[str, Any]) -> str:
    """Return a title with the machine and date of a file's measurements."""
    used = found["machine"]
    return f"{used['cores']} cores, {used['cpu']}, {found['date']}"


def plain(axes: Axes, lines: Literal["x", "y", "both"] = "both") -> None:
    """Remove the frame's top and right sides, and draw the grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=lines, color=PLAIN, linestyle=":", linewidth=0.8)


def _draw(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    from matplotlib import colormaps

    colours = [*colormaps["tab10"].colors, *colormaps["Dark2"].colors]
    for label, (x, y) in panel.lines.items():
        colour, style, width = colours[labels.index(label) % len(colours)], "o--", 1.0
        if label.startswith("fastrl"):
            style, width = "o-", 2.0
        elif label.startswith(IDEAL):
            colour, style = INK, ":"
        axes.plot(x, y, style, color=colour, linewidth=width, markersize=3, label=label)
    if panel.ticks:
        axes.set(xscale="log", ylim=(0, None))
        axes.set_xticks(panel.ticks, [f"{tick:,}" for tick in panel.ticks])
        axes.minorticks_off()
    elif panel.log:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.set_title(panel.title, fontsize=10)
    plain(axes)
