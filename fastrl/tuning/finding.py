"""What a search is told, and what it has found."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
        default_fps: Windows of the default; empty where it failed, or where the search was
            interrupted before the two were compared.
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
        """Frames per second of the default, None without ``default_fps``."""
        return float(np.median(self.default_fps)) if self.default_fps else None

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default the best is; None where the default failed.

        Where both were compared at the end, the ratio of `fps_median` to `default_fps_median`.
        """
        ratios = self.ratios()
        if self.best not in ratios or self.default not in ratios:
            return None
        return ratios[self.best] / ratios[self.default]

    def ratios(self) -> dict[Candidate, float]:
        """Return how many times as fast as the first candidate each one is.

        The first candidate is the default unless that failed. Frames per second would show how the
        machine's speed changed meanwhile, so ratios of adjacent windows are multiplied along the
        path. At its end stands the comparison of the last incumbent with the default; what the
        chain differs by from it is spread evenly over the path.
        """
        links = _links(self.searched)
        correction, on_path = self._correction(links), set(self.path)
        logs: dict[Candidate, float] = {}
        for candidate, link in links.items():
            if link.reference is None:
                logs[candidate] = 0.0
                continue
            start = logs.setdefault(link.reference, 0.0)
            logs[candidate] = start + link.lead + (correction if candidate in on_path else 0.0)
        return {candidate: math.exp(log) for candidate, log in logs.items()}

    def _correction(self, links: dict[Candidate, _Link]) -> float:
        """Return what each step of the path must be longer by, in log speed."""
        final = [t for t in self.trials[len(self.searched) :] if t.fps and t.reference_fps]
        if not final:
            return 0.0
        steps, link = [], links.get(final[0].candidate)
        while link is not None and link.reference is not None:
            steps.append(link.lead)
            link = links.get(link.reference)
        fps, reference_fps = zip(*((t.fps, t.reference_fps) for t in final), strict=True)
        lead = math.log(np.median(fps) / np.median(reference_fps))
        return (lead - sum(steps)) / len(steps) if steps else 0.0


@dataclass(frozen=True)
class _Link:
    """A candidate's race.

    Attributes:
        reference: What it ran against; None for what was measured alone.
        lead: Mean log ratio of the two, weighted by time, as in `Race.lead`.
    """

    reference: Candidate | None
    lead: float


def _links(trials: Iterable[Trial]) -> dict[Candidate, _Link]:
    """Return the races of candidates that have not failed, oldest first."""
    races: dict[Candidate, list[Trial]] = {}
    for trial in trials:
        if trial.fps and (trial.reference is None or trial.reference_fps):
            races.setdefault(trial.candidate, []).append(trial)
    links = {}
    for candidate, race in races.items():
        leads = [math.log((t.fps or 1.0) / (t.reference_fps or t.fps or 1.0)) for t in race]
        lead = float(np.average(leads, weights=[t.seconds for t in race]))
        links[candidate] = _Link(race[0].reference, lead)
    return links
