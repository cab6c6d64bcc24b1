"""Learning curves of runs as a picture."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrl.config import Config
from fastrl.envs.families import NAMESPACE
from fastrl.errors import ConfigError
from fastrl.training.durable import writing
from fastrl.training.journal import FINAL
from fastrl.training.metrics import read_rows
from fastrl.training.run_directory import find_run, read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values, ``[rows]`` each."""

FORMATS = (".png", ".pdf", ".svg")
"""Endings of the files that a picture can be written to."""

_POINTS = 300
_FEW_POINTS = 20
_KEYS_SHOWN = 3
_LABEL_WIDTH, _LEGEND_WIDTH = 60, 100
"""Characters in a line of a label, and in a row of the legend."""
_LABEL_LINES = 4
_STYLES = ("-", "--", ":", "-.")
"""Line styles; the next one is used when the colours are used up."""
_OWN_KEYS = {"seed", "run_dir", "evaluation", "checkpoint", "logging"}
"""Keys in which runs of one curve may differ."""


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
        kind: Which rows of metrics: ``training`` or ``evaluation``.
        metric: Which value of these rows, such as ``info/is_success``.
        title: Of the picture; by default what all runs have in common.

    Raises:
        ConfigError: There is no such run, or it has no such rows, or the file cannot be written.
    """
    if isinstance(runs, str | Path):
        runs = [runs]
    groups: dict[str, list[tuple[Config, Path]]] = {}
    for path in dict.fromkeys(find_run(run) for run in runs):
        config = read_config(path)
        family = json.dumps(_shared_keys(config), sort_keys=True)
        groups.setdefault(family, []).append((config, path))
    common, labels = _labels([members[0][0] for members in groups.values()])
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


def draw_curves(
    curves: Mapping[str, Sequence[Curve]],
    output: Path,
    ylabel: str = "return",
    title: str = "",
    finals: Mapping[str, Sequence[Curve]] | None = None,
) -> None:
    """Draw the mean of each group of curves, and a band of one standard deviation to both sides.

    Args:
        curves: Of all seeds, by label.
        output: A file that ends in .png, .pdf or .svg.
        ylabel: Label of the vertical axis.
        title: Of the picture.
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
        with writing(output, ConfigError):
            figure.savefig(output, dpi=150)
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
    """Return a text in lines of limited width, in which matplotlib finds no formulas."""
    lines = textwrap.wrap(text, _LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder=" …")
    shown = "\n".join(lines).replace("$", r"\$")
    # Legends omit labels that begin with an underscore.
    return f" {shown}" if shown.startswith("_") else shown


def _width(label: str) -> int:
    return max(len(line) for line in label.split("\n"))


def read_curve(path: Path, kind: str, metric: str = "return_mean") -> Curve:
    """Return a metric of a run.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    curve, others = _read(path, kind, metric)
    if len(curve[0]):
        return curve
    if metric == "return_mean":
        raise ConfigError(f"'{path}' has no {kind} returns yet")
    known = f"; there are {', '.join(sorted(others))}" if others else ""
    raise ConfigError(f"'{path}' has no {kind} metric '{metric}'{known}")


def _read(path: Path, kind: str, metric: str) -> tuple[Curve, set[str]]:
    """Return a metric of a run, which may have no row, and the names of all metrics there."""
    rows: list[tuple[float, float]] = []
    others: set[str] = set()
    try:
        for row in read_rows(path / "metrics.jsonl"):
            if row.get("kind") == kind:
                others |= row.keys()
                if _is_number(row.get(metric)):
                    rows.append((row["steps"], row[metric]))
    except OSError as error:
        raise ConfigError(f"metrics of '{path}' cannot be read: {error.strerror}") from None
    steps, values = np.array(rows, np.float64).reshape(-1, 2).T
    return (steps, values), others - {"kind", "steps"}


def _is_number(value: object) -> bool:
    # Python's integers may be larger than any float.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def mean_curve(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return steps, mean and standard deviation over curves, at steps that all of them cover."""
    if len(curves) == 1:
        steps, returns = curves[0]
        return steps, returns, np.zeros_like(returns)
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    steps = np.linspace(first, last, _POINTS) if first < last else np.array([first])
    returns = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, returns.mean(0), returns.std(0)


def curve_name(env: str, algorithm: str) -> str:
    """Return the label of a curve; fastrl's compiled environments are labelled as the originals."""
    return f"{env.removeprefix(NAMESPACE)} {algorithm.upper()}"


def _shared_keys(config: Config) -> dict[str, Any]:
    """Return the keys in which the runs of one curve agree, dotted."""
    return dict(_leaves(config.model_dump(mode="json", exclude=_OWN_KEYS)))


def _labels(configs: Sequence[Config]) -> tuple[str, list[str]]:
    """Return a common title, and for each configuration a label of what distinguishes it.

    Environment and algorithm are the title where all agree, else part of the labels. Of the keys
    that differ, labels name those that distinguish most configurations.
    """
    names = [curve_name(config.env.id, config.algorithm.name) for config in configs]
    trees = [_shared_keys(config) for config in configs]
    is_same = len(set(names)) == 1
    parts: list[tuple[str, ...]] = [() if is_same else (name,) for name in names]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    chosen: list[str] = []
    while len(set(parts)) < len(parts) and len(chosen) < _KEYS_SHOWN:
        best = max(keys, key=lambda key: len(set(_with(parts, trees, key))))
        finer = _with(parts, trees, best)
        if len(set(finer)) == len(set(parts)):
            break
        parts = finer
        chosen.append(best)
    lacking = ", ".join(f"{_short(trees, key)} not set" for key in chosen)
    labels = [", ".join(each) or lacking for each in parts]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, #{number}".lstrip(", ") for number, label in enumerate(labels, 1)]
    return (names[0] if is_same else ""), labels


def _with(
    labels: Sequence[tuple[str, ...]], trees: Sequence[Mapping[str, Any]], key: str
) -> list[tuple[str, ...]]:
    """Return labels that name one more key."""
    short = _short(trees, key)
    return [
        (*parts, f"{short}={_shown(tree[key])}") if key in tree else parts
        for parts, tree in zip(labels, trees, strict=True)
    ]


def _short(trees: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the last part of a key if no other key ends with it, else the key."""
    last = key.rpartition(".")[2]
    alike = {each for tree in trees for each in tree if each.rpartition(".")[2] == last}
    return last if len(alike) == 1 else key


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a configuration by its dotted key."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
