"""Summaries of datasets as a table, a picture and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.table import Table

from fastrl.datasets.files import open_dataset
from fastrl.durable import write_figure
from fastrl.errors import ConfigError
from fastrl.formats import check_ending

_BINS = 30


@dataclass(frozen=True)
class DatasetSummary:
    """Sizes, returns and spaces of a dataset.

    Attributes:
        path: Path of the dataset.
        env: Id of the environment, or of the dataset if it names none.
        returns: ``[E] float64``: sum of rewards of each episode.
        lengths: ``[E] int64``: steps of each episode.
        terminated: Number of episodes that ended in a terminal state; the others were truncated.
        num_bytes: Size of its files.
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        infos: Names of further numbers of each step.
    """

    path: Path
    env: str
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    terminated: int
    num_bytes: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    infos: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "path": str(self.path),
            "env": self.env,
            "episodes": len(self.lengths),
            "steps": int(self.lengths.sum()),
            "terminated": self.terminated,
            "bytes": self.num_bytes,
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "infos": list(self.infos),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
        }

    def to_rich(self) -> Table:
        """Return the table that the command line prints."""
        table = Table("", "", show_header=False, title=f"{self.path}", title_justify="left")
        ended = len(self.lengths) - self.terminated
        for name, text in {
            "environment": self.env,
            "episodes": f"{len(self.lengths):,} ({self.terminated:,} terminated, "
            f"{ended:,} truncated)",
            "steps": f"{int(self.lengths.sum()):,}",
            "return": _spread(self.returns),
            "length": _spread(self.lengths),
            "size": f"{self.num_bytes / 1e6:,.1f} MB",
            "observation": _text(self.observation_space),
            "action": _text(self.action_space),
            "infos": ", ".join(self.infos) or "none",
        }.items():
            table.add_row(name, text)
        return table

    def draw(self, picture: Path) -> None:
        """Write histograms of returns and lengths.

        Args:
            picture: A file that ends in .png, .pdf or .svg.

        Raises:
            ConfigError: It has another ending, or cannot be written.
        """
        check_ending(picture)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, numbers, label in zip(
            figure.subplots(1, 2), (self.returns, self.lengths), ("return", "length"), strict=True
        ):
            axes.hist(numbers, bins=_BINS)
            axes.set_xlabel(label)
            axes.set_ylabel("episodes")
        figure.suptitle(f"{self.env}, {len(self.lengths):,} episodes", parse_math=False)
        write_figure(picture, figure)


def summarize(path: str | Path) -> DatasetSummary:
    """Read a dataset and return what it contains.

    Args:
        path: Directory of the dataset, or of several parts.

    Raises:
        ConfigError: There is no dataset, or it is damaged.
    """
    files = open_dataset(path)
    returns: list[float] = []
    lengths: list[int] = []
    infos: dict[str, None] = {}
    terminated = 0
    for number, episode in enumerate(files.episodes()):
        rewards = episode["rewards"]
        with np.errstate(over="ignore"):  # of float32, which learns from them
            if not np.isfinite(rewards.astype(np.float32)).all():
                raise ConfigError(f"dataset: episode {number} of '{path}' has no finite rewards")
        returns.append(float(rewards.sum(dtype=np.float64)))
        lengths.append(len(rewards))
        terminated += bool(episode["terminations"][-1:].any())
        infos |= dict.fromkeys(_names(episode.get("infos") or {}))
    metadata = files.metadata
    return DatasetSummary(
        path=files.path,
        env=str(metadata.get("fastrl_env") or metadata.get("dataset_id") or files.path.name),
        returns=np.array(returns, np.float64),
        lengths=np.array(lengths, np.int64),
        terminated=terminated,
        num_bytes=files.num_bytes,
        observation_space=files.observation_space,
        action_space=files.action_space,
        infos=tuple(infos),
    )


def _text(space: spaces.Space[Any]) -> str:
    """Return a space on one line; numpy pads the bounds of a ``Box`` to columns."""
    return " ".join(str(space).split())


def _names(infos: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in infos.items():
        nested = isinstance(value, Mapping)
        found += _names(value, f"{prefix}{name}/") if nested else [f"{prefix}{name}"]
    return found


def _spread(numbers: NDArray[Any]) -> str:
    if not len(numbers):
        return "none"
    low, high = numbers.min(), numbers.max()
    return f"{numbers.mean():,.1f} ± {numbers.std():,.1f} ({low:,.1f} … {high:,.1f})"
