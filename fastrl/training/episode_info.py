"""Figures that environments tell of their episodes, such as successes and achievements."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from fastrl.shared.rollout_buffer import Episodes

_RECENT = 100
_ACHIEVEMENT = "achievements/"

Totals = Mapping[str, Sequence[int]]
"""By name: the number of episodes that told the figure, and of those in which it was positive."""


class EpisodeInfo:
    """Follows `Episodes.info` over a run.

    Args:
        totals: Of the episodes before now.
    """

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = {name: list(counts) for name, counts in (totals or {}).items()}
        self._recent: dict[str, deque[float]] = {}

    @property
    def totals(self) -> dict[str, list[int]]:
        """What a later session starts from."""
        return {name: list(counts) for name, counts in self._totals.items()}

    def add(self, episodes: Episodes) -> None:
        """Count episodes in; figures that an episode did not tell are NaN."""
        for name, figures in episodes.info.items():
            told = figures[~np.isnan(figures)]
            counts = self._totals.setdefault(name, [0, 0])
            counts[0] += len(told)
            counts[1] += int(np.count_nonzero(told > 0))
            self._recent.setdefault(name, deque(maxlen=_RECENT)).extend(told.tolist())

    def row(self) -> dict[str, float]:
        """Return the mean of each figure over the last 100 episodes, and the score so far."""
        means = {
            f"info/{name}": sum(figures) / len(figures) if figures else math.nan
            for name, figures in self._recent.items()
        }
        score = self.achievement_score()
        return means if score is None else {**means, "achievement_score": score}

    def shares(self) -> dict[str, float]:
        """Return in which share of all episodes each figure was positive."""
        return {
            name: positive / told for name, (told, positive) in self._totals.items() if told > 0
        }

    def achievement_score(self) -> float | None:
        """Return the score of the achievements, in percent; None where there are none.

        It is the geometric mean of one plus the success rates in percent, minus one, over all
        episodes of training: exp(mean(ln(1 + s))) - 1 (Hafner 2021, "Benchmarking the Spectrum of
        Agent Capabilities", equation 1).
        """
        rates = [
            100 * share for name, share in self.shares().items() if name.startswith(_ACHIEVEMENT)
        ]
        if not rates:
            return None
        return math.expm1(sum(map(math.log1p, rates)) / len(rates))
