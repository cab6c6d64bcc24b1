"""Plot of a comparison, drawn from its JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plots import ACCENT, INK, PLAIN, plain
from bench.results import Row

from comparison.report import FASTRL, footer, settings_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW_LABELS = 30
"""Times the axis' start up to which 1, 2 and 5 times each power of ten are written below it."""


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write a point per method on a logarithmic axis, whiskers from minimum to maximum.

    The length of a bar would mean nothing on an axis without a 0.
    matplotlib is imported here, since worker processes of the peers import this package too.
    """
    from matplotlib.figure import Figure

    ranked: list[Row] = sorted(found["results"], key=lambda row: row["fps_median"])
    figure = Figure(figsize=(9, 1.6 + 0.52 * len(ranked)), layout="constrained")
    axes = figure.add_subplot()
    _draw_points(axes, ranked)
    _draw_limit(axes, found)
    most = max(*(row["fps_max"] for row in ranked), found["limit_fps"] or 0)
    _set_scale(axes, ranked[0]["fps_min"] / 1.3, most * 1.2)
    axes.set_title(f"{found['env']}: sampling throughput", loc="left", pad=16)
    figure.supxlabel(footer(found), fontsize=8, color=INK, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_points(axes: Axes, ranked: Sequence[Row]) -> None:
    """Draw the points, their labels at the left and their numbers in a column at the right."""
    medians = [row["fps_median"] for row in ranked]
    spread = [
        [row["fps_median"] - row["fps_min"] for row in ranked],
        [row["fps_max"] - row["fps_median"] for row in ranked],
    ]
    labels = [f"{row['label']}\n{settings_text(row['settings'])}".rstrip() for row in ranked]
    colors = [ACCENT if row["method"] in FASTRL else PLAIN for row in ranked]
    rows = list(range(len(ranked)))
    axes.errorbar(medians, rows, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    axes.scatter(medians, rows, c=colors, s=70, edgecolors=INK, linewidths=0.6, zorder=3)
    plain(axes, lines="y")
    axes.set_yticks(rows, labels, fontsize=8)
    widest = max(len(f"{middle:,.0f}") for middle in medians)
    for place, row in enumerate(ranked):
        axes.annotate(
            f"{row['fps_median']:,.0f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8 + 6.2 * widest, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            fontweight="bold" if row["method"] in FASTRL else "normal",
        )


def _draw_limit(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw the limit of any sampler of this environment, if it was measured."""
    limit = found["limit_fps"]
    if limit is None:
        return
    axes.axvline(limit, color=INK, linestyle="--", linewidth=1, zorder=0)
    axes.annotate(
        f"limit: {limit:,.0f}",
        (limit, 1),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="bottom",
        fontsize=8,
    )


def _set_scale(axes: Axes, first: float, last: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(first, last)
    labelled = (1, 2, 5) if last / first < _FEW_LABELS else (1, 3)
    axes.xaxis.set_major_locator(LogLocator(subs=labelled))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("environment steps per second, policy in the loop")
    axes.tick_params(axis="y", length=0)
