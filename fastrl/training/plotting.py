"""Learning curves of one or several runs as a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.config import Config
from fastrl.envs.native import NAMESPACE
from fastrl.errors import ConfigError
from fastrl.training.metrics import read_rows
from fastrl.training.run_directory import find_run, read_config

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and returns, ``[rows]`` each."""

_POINTS = 300
_KEYS_SHOWN = 3
_OWN_KEYS = {"seed", "run_dir", "evaluation", "checkpoint", "logging"}
"""Keys in which runs of one curve may differ."""


def plot_runs(runs: Sequence[str | Path], output: Path, kind: str = "training") -> None:
    """Draw the return over steps, one curve per configuration.

    Runs whose configurations differ in the seed, or in what does not change learning, become one
    curve: the mean of their returns, and a band of one standard deviation to both sides.

    Args:
        runs: Directories of runs, or their names under ``runs/``.
        output: The PNG.
        kind: Which rows of metrics: ``training`` (mean over the last 100 episodes) or
            ``evaluation``.

    Raises:
        ConfigError: There is no such run, or it has no such rows, or the file cannot be written.
    """
    if isinstance(runs, str | Path):
        runs = [runs]
    groups: dict[str, list[tuple[Config, Curve]]] = {}
    for path in dict.fromkeys(find_run(run) for run in runs):
        config = read_config(path)
        groups.setdefault(_family(config), []).append((config, read_curve(path, kind)))
    labels = _labels([members[0][0] for members in groups.values()])
    curves = [[curve for _, curve in members] for members in groups.values()]
    draw_curves(
        dict(zip(labels, curves, strict=True)),
        output,
        "return" if kind == "training" else f"return ({kind})",
    )


def draw_curves(
    curves: Mapping[str, Sequence[Curve]], output: Path, ylabel: str = "return"
) -> None:
    """Draw the mean of each group of curves, and a band of one standard deviation to both sides.

    Args:
        curves: Those of all seeds, by what the legend says.
        output: The PNG.
        ylabel: What the curves show.

    Raises:
        ConfigError: The file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for label, seeds in curves.items():
        steps, mean, spread = mean_curve(seeds)
        many = f" ({len(seeds)} seeds)" if len(seeds) > 1 else ""
        (line,) = axes.plot(steps, mean, label=label + many)
        if len(seeds) > 1:
            axes.fill_between(
                steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, lw=0
            )
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise ConfigError(f"'{output}' cannot be written: {error.strerror or error}") from None
    finally:
        plt.close(figure)


def read_curve(path: Path, kind: str) -> Curve:
    """Return the returns of a run.

    Raises:
        ConfigError: There are none, or they cannot be read.
    """
    try:
        rows = [
            (row["steps"], row["return_mean"])
            for row in read_rows(path / "metrics.jsonl")
            if row.get("kind") == kind and _is_number(row.get("return_mean"))
        ]
    except OSError as error:
        raise ConfigError(f"metrics of '{path}' cannot be read: {error.strerror}") from None
    if not rows:
        raise ConfigError(f"'{path}' has no {kind} returns yet")
    steps, returns = np.array(rows, np.float64).T
    return steps, returns


def _is_number(value: object) -> bool:
    # Python's integers may be larger than any float.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def mean_curve(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return steps, mean and standard deviation over curves, where all of them have values."""
    if len(curves) == 1:
        steps, returns = curves[0]
        return steps, returns, np.zeros_like(returns)
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    steps = np.linspace(first, max(first, last), _POINTS)
    returns = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, returns.mean(0), returns.std(0)


def curve_name(env: str, algorithm: str) -> str:
    """Return what a legend says; that an environment is compiled here is no matter of learning."""
    return f"{env.removeprefix(NAMESPACE)} {algorithm.upper()}"


def _family(config: Config) -> str:
    """Return what runs of one curve have in common, as text."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude=_OWN_KEYS)
    return json.dumps(tree, sort_keys=True)


def _labels(configs: Sequence[Config]) -> list[str]:
    """Return a name for each configuration, with the keys that tell it from its namesakes."""
    names = [curve_name(config.env.id, config.algorithm.name) for config in configs]
    keys = [_flat(config) for config in configs]
    labels = []
    for name, own in zip(names, keys, strict=True):
        namesakes = [each for other, each in zip(names, keys, strict=True) if other == name]
        differing = [
            f"{key}={json.dumps(value)}"
            for key, value in own.items()
            if any(each.get(key) != value for each in namesakes)
        ]
        more = ", …" if len(differing) > _KEYS_SHOWN else ""
        told = ", ".join(differing[:_KEYS_SHOWN]) + more
        labels.append(f"{name}, {told}" if told else name)
    return labels


def _flat(config: Config) -> dict[str, Any]:
    """Return what tells a curve from others, by dotted key."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude=_OWN_KEYS)
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        section = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): each for name, each in section.items()}
    return flat
