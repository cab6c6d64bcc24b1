"""What a search has time for, told from what its trials have cost so far."""

from __future__ import annotations

import numpy as np

from fastrl.tuning.candidate import Candidate
from fastrl.tuning.finding import Settings
from fastrl.tuning.trials import Trial

_RECENT = 8
"""Trials that say what one costs as a rule."""


class Budget:
    """The time of a search, of which the comparison of best and default at the end takes a part.

    Args:
        settings: Of the search.

    Attributes:
        spent_s: Wall time of all trials so far.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._recent: list[float] = []
        self._latest: dict[Candidate, float] = {}
        self._starts: list[tuple[int, float]] = []
        self.spent_s = 0.0

    def spend(self, trial: Trial) -> None:
        """Take in what a trial has cost."""
        self.spent_s += trial.cost_s
        # Beside the windows of two candidates: starting them, and waiting until they rest.
        extra_s = trial.cost_s - 2 * trial.seconds
        self._recent = [*self._recent[1 - _RECENT :], extra_s]
        if trial.fps is None:
            return
        if trial.candidate not in self._latest:
            self._starts.append((trial.candidate.num_envs, extra_s))
        self._latest[trial.candidate] = extra_s

    def affords(self, candidate: Candidate, incumbent: Candidate | None, seconds: float) -> bool:
        """Say whether a trial fits in beside the comparison at the end.

        Args:
            candidate: What is tried.
            incumbent: What would be compared with the default.
            seconds: Length of a window.
        """
        cost_s = max(self._usual_s(seconds), 2 * seconds + self._start_s(candidate))
        rounds = self._settings.final_rounds
        final_s = 0.0 if incumbent is None else rounds * self._final_s(incumbent)
        budget_s = self._settings.budget_s
        return self.spent_s + cost_s <= budget_s - min(final_s, budget_s / 4)

    def affords_final(self, best: Candidate) -> bool:
        """Say whether there is time for another round of the comparison at the end."""
        return self.spent_s + self._final_s(best) <= self._settings.budget_s

    def _usual_s(self, seconds: float) -> float:
        """Return what a trial costs as a rule."""
        return 2 * seconds + max(0.0, float(np.median(self._recent)) if self._recent else 0.0)

    def _start_s(self, candidate: Candidate) -> float:
        """Guess how long a candidate takes to start, from the one with most environments so far."""
        if candidate in self._latest or not self._starts:
            return 0.0
        most, longest_s = max(self._starts)
        least_s = min(seconds for _, seconds in self._starts)
        return least_s + (longest_s - least_s) * candidate.num_envs / most

    def _final_s(self, best: Candidate) -> float:
        """Return what a round costs: many environments also take long to come to rest."""
        seconds = 2 * self._settings.window_s
        return max(self._usual_s(seconds), 2 * seconds + self._latest[best])
