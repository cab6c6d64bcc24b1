"""What a search is told, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrl.tuning.candidate import Candidate
from fastrl.tuning.trials import Trial

TIME_IS_UP = "the time is up"
"""Why a search ended that might have found more."""


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        budget_s: Wall time for all trials, of an earlier search that is gone on with as well.
        window_s: Length of the windows of a first look.
        final_rounds: Windows of the best and of the default, in turn, at the end.
        num_seeds: Usual good choices to begin with.
        num_doubts: Candidates that must fail in a row before only neighbours are tried.
        seed: Of the candidates that are drawn at random.
        limit_s: Least time after which a trial is given up; recorded ones that were given up sooner
            are tried again.
    """

    budget_s: float = 120.0
    window_s: float = 0.4
    final_rounds: int = 3
    num_seeds: int = 6
    num_doubts: int = 12
    seed: int = 0
    limit_s: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What a search has found.

    Attributes:
        best: The fastest candidate; the default where none is faster.
        default: What was asked for.
        best_fps: Windows of the best, next to ``default_fps``.
        default_fps: Windows of the default; empty where it failed.
        trials: All trials, oldest first.
        path: The incumbents, each faster than the one before.
        spent_s: Wall time of the trials.
        ended: Why the search ended.
        num_final: How many of the trials, the last ones, compare the best with the default.
    """

    best: Candidate
    default: Candidate
    best_fps: tuple[float, ...]
    default_fps: tuple[float, ...]
    trials: tuple[Trial, ...]
    path: tuple[Candidate, ...]
    spent_s: float
    ended: str
    num_final: int = 0

    @property
    def searched(self) -> tuple[Trial, ...]:
        """The trials without the comparison at the end."""
        return self.trials[: len(self.trials) - self.num_final]

    @property
    def fps_median(self) -> float:
        """Frames per second of the best."""
        return float(np.median(self.best_fps))

    @property
    def default_fps_median(self) -> float | None:
        """Frames per second of the default, None where it failed."""
        return float(np.median(self.default_fps)) if self.default_fps else None
