"""Finds the fastest candidate by few, short and noisy measurements on a machine that drifts.

Every candidate is measured next to the best so far (the incumbent), in short turns, and only the
ratio of the two counts: what slows the whole machine down cancels. A candidate that looks slower is
dropped after a short window or two; one that looks faster is measured for longer. Of equally fast
ones the smaller is better. Which candidate comes next is a guess of `fastrl.tuning.surrogate`. The
search ends when no neighbour of the incumbent is faster by more than the noise, nor a few guesses
from elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastrl.tuning.budget import Budget
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.finding import TIME_IS_UP, Finding, Settings
from fastrl.tuning.race import Noise, Race, Verdict
from fastrl.tuning.space import Space
from fastrl.tuning.surrogate import Surrogate
from fastrl.tuning.trials import (
    Journal,
    Measure,
    MemoryJournal,
    Replay,
    Trial,
    TrialError,
    attempt_beside,
)

_UNLIKELY_STD = 2.5
"""Candidates that are guessed this many standard deviations below the best are left out."""
_WORTH_A_DOUBT = 0.004
"""Expected improvement in log speed below which nobody looks elsewhere."""
_A_STEP = 0.02
"""Gain in log speed after which it is worth looking elsewhere again."""
_PATIENCE = 30
"""Candidates without such a gain after which the rest is taken for equally good."""
_PER_DOUBLING = 0.005
"""Log speed that a doubling of all environments, or of all processes, must be worth."""
_POOL = 500
"""Candidates, drawn at random where there are more, among which is looked elsewhere."""


class _BudgetSpentError(Exception):
    """No time is left for another trial."""


@dataclass
class _Known:
    """What is known of the candidates, in log speed relative to the first incumbent.

    What larger candidates must be faster by, see `_burden`, is taken off.
    """

    score: dict[Candidate, float] = field(default_factory=dict)
    variance: dict[Candidate, float] = field(default_factory=dict)
    failed: dict[Candidate, Trial] = field(default_factory=dict)
    fps: dict[Candidate, list[float]] = field(default_factory=dict)


class Search:
    """One search; `run` may be interrupted, and `finding` then tells the best so far.

    Args:
        space: Where to search.
        default: Where to begin, and what to compare with.
        measure: Samples as a candidate says.
        settings: How to search.
        journal: Keeps the trials; what it has recorded is not measured again.
        clock: Seconds of a monotonic clock.
        watch: Called after every trial.
    """

    def __init__(
        self,
        space: Space,
        default: Candidate,
        measure: Measure,
        settings: Settings | None = None,
        *,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Trial], None] | None = None,
    ) -> None:
        self._space, self._default, self._measure = space, default, measure
        self._settings = settings or Settings()
        self._journal = journal or MemoryJournal()
        self._clock, self._watch = clock, watch
        self._replay = Replay(self._journal.recorded(), self._settings.limit_s)
        self._rng = np.random.default_rng(self._settings.seed)
        self._noise = Noise()
        self._known = _Known()
        self._pool: list[Candidate] | None = None
        self._trials: list[Trial] = []
        self._path: list[Candidate] = []
        self._final: tuple[list[float], list[float]] = ([], [])
        self._num_final = 0
        self._budget = Budget(self._settings)
        self._ended = "interrupted"
        self._failures = 0

    @property
    def incumbent(self) -> Candidate | None:
        """The best so far, None before the first trial has succeeded."""
        return self._path[-1] if self._path else None

    @property
    def spent_s(self) -> float:
        """Wall time of all trials so far."""
        return self._budget.spent_s

    def run(self) -> Finding:
        """Search to the end.

        Raises:
            TrialError: No candidate could be measured.
        """
        self._ended = "interrupted"
        try:
            self._begin()
            if self.incumbent is None:
                raise TrialError(f"nothing could be measured: {self._trials[-1].error}")
            for seed in self._space.seeds(self._default)[: self._settings.num_seeds]:
                if self._affords(seed):
                    self._challenge(seed)
            while self._step():
                pass
            self._ended = "no neighbour is faster"
        except _BudgetSpentError:
            self._ended = TIME_IS_UP
        if self.incumbent is None:
            raise TrialError(f"nothing could be measured: {self._trials[-1].error}")
        self._compare_with_default()
        return self.finding()

    def finding(self) -> Finding:
        """Return the best so far.

        Raises:
            TrialError: No trial has succeeded yet.
        """
        best = self.incumbent
        if best is None:
            raise TrialError("nothing has been measured yet")
        best_fps, default_fps = self._final
        if not best_fps:
            # Windows of the default are from other minutes unless it is the best.
            best_fps = self._known.fps[best]
            default_fps = best_fps if best == self._default else []
        return Finding(
            best=best,
            default=self._default,
            best_fps=tuple(best_fps),
            default_fps=tuple(default_fps),
            trials=tuple(self._trials),
            path=tuple(self._path),
            spent_s=self.spent_s,
            ended=self._ended,
            num_final=self._num_final,
        )

    def _begin(self) -> None:
        """Measure the default, or where that fails the first seed that does not."""
        for candidate in (self._default, *self._space.seeds(self._default)):
            # However little time there is, the default is measured once.
            must = candidate == self._default
            trial = self._visit(candidate, None, self._settings.window_s, must=must)
            if trial.fps is not None:
                self._known.score[candidate] = 0.0
                self._known.variance[candidate] = 0.0
                self._path.append(candidate)
                return

    def _step(self) -> bool:
        """Challenge the incumbent with the most promising candidate; False if none is left.

        Raises:
            _BudgetSpentError: Only such are left that take longer to start than there is time.
        """
        incumbent = self._path[-1]
        near = [c for c in self._space.neighbours(incumbent) if self._is_open(c)]
        far = [c for c in self._candidates() if self._is_open(c)]
        if not near and not far:
            return False
        near = [c for c in near if self._affords(c)]
        left = list(dict.fromkeys([*near, *filter(self._affords, far)]))
        if not left:
            raise _BudgetSpentError
        best = self._known.score[incumbent]
        guess = self._surrogate().guess(left)
        gains = guess.improvement(best)
        # A neighbour is passed over only where what lies around it says that it is slower.
        doubtful = guess.mean + _UNLIKELY_STD * guess.std > best
        useful = gains > _WORTH_A_DOUBT
        if self._failures >= self._settings.num_doubts:
            useful[len(near) :] = False
        useful[: len(near)] |= doubtful[: len(near)]
        if not useful.any() or self._failures >= _PATIENCE:
            return False
        gains[~useful] = -1.0
        chosen = left[int(np.argmax(gains))]
        self._challenge(chosen)
        gained = self._known.score.get(chosen, -math.inf) - best
        self._failures = 0 if gained > _A_STEP else self._failures + 1
        return True

    def _challenge(self, candidate: Candidate) -> bool:
        """Race a candidate against the incumbent; return whether it has taken its place."""
        incumbent = self._path[-1]
        if not self._is_open(candidate):
            return False
        race = Race(self._noise, self._settings.window_s)
        while race.verdict is Verdict.OPEN:
            trial = self._visit(candidate, incumbent, race.next_window_s)
            if trial.fps is None or not trial.reference_fps:
                return False
            lead = math.log(trial.fps / trial.reference_fps) - _burden(candidate, incumbent)
            race.add(lead, trial.seconds)
            # What was found holds even if the time is up before the race is decided.
            self._known.score[candidate] = self._known.score[incumbent] + race.lead
            self._known.variance[candidate] = race.variance
        if race.verdict is Verdict.WON:
            self._path.append(candidate)
            return True
        return False

    def _compare_with_default(self) -> None:
        """Measure best and default in turn; the default wins a draw that it does not lose."""
        best = self._path[-1]
        best_fps, default_fps = self._final
        reference = None if best == self._default else self._default
        if self._default in self._known.failed:
            reference = None
        leads: list[float] = []
        for number in range(self._settings.final_rounds):
            if number and not self._budget.affords_final(best):
                break
            trial = self._visit(best, reference, 2 * self._settings.window_s, must=True)
            self._num_final += 1
            if trial.fps is None:
                break
            best_fps.append(trial.fps)
            if trial.reference_fps is not None:
                default_fps.append(trial.reference_fps)
                leads.append(math.log(trial.fps / trial.reference_fps))
        if reference is None:
            default_fps[:] = best_fps if best == self._default else []
        elif not best_fps or (
            leads and (np.median(leads) < 0 or np.median(best_fps) < np.median(default_fps))
        ):
            best_fps[:] = default_fps or self._known.fps[self._default]
            default_fps[:] = best_fps
            self._path.append(self._default)

    def _visit(
        self,
        candidate: Candidate,
        reference: Candidate | None,
        seconds: float,
        *,
        must: bool = False,
    ) -> Trial:
        """Return a recorded trial, or make one; failures are part of it.

        Raises:
            _BudgetSpentError: It would take longer than what is left, unless it must be.
        """
        trial = self._replay.take((candidate, reference, seconds))
        if trial is None:
            if not must and not self._affords(candidate, seconds):
                raise _BudgetSpentError
            trial = self._make_trial(candidate, reference, seconds)
            self._journal.add(trial)
        self._budget.spend(trial)
        self._trials.append(trial)
        if trial.error:
            self._known.failed[candidate] = trial
        if trial.fps is not None:
            self._known.fps.setdefault(candidate, []).append(trial.fps)
            if reference is not None and trial.reference_fps is not None:
                self._known.fps.setdefault(reference, []).append(trial.reference_fps)
        if self._watch is not None:
            self._watch(trial)
        return trial

    def _make_trial(
        self, candidate: Candidate, reference: Candidate | None, seconds: float
    ) -> Trial:
        start = self._clock()
        own, beside = attempt_beside(self._measure, candidate, reference, seconds)
        failed = own.error or beside.error
        return Trial(
            candidate,
            reference,
            seconds,
            fps=own.fps or None,
            reference_fps=beside.fps if reference and not failed else None,
            cost_s=self._clock() - start,
            error=failed if own.error or not failed else f"beside it, {failed}",
            exhausted=own.exhausted,
            notes=own.notes,
        )

    def _affords(self, candidate: Candidate, seconds: float | None = None) -> bool:
        """Say whether there is time for a trial with that window, by default a race's first."""
        return self._budget.affords(candidate, self.incumbent, seconds or self._settings.window_s)

    def _is_open(self, candidate: Candidate) -> bool:
        """Say whether a candidate was not measured yet and is not bound to fail."""
        known = self._known
        if candidate in known.score or candidate in known.failed:
            return False
        return not any(_is_harder(candidate, failed) for failed in self._exhausted())

    def _exhausted(self) -> Iterator[Candidate]:
        return (c for c, trial in self._known.failed.items() if trial.exhausted)

    def _surrogate(self) -> Surrogate:
        known = self._known
        scores, variances = dict(known.score), dict(known.variance)
        worst = min(scores.values()) - math.log(2)
        for candidate in known.failed:
            scores[candidate], variances[candidate] = worst, 1.0
        return Surrogate(scores, variances)

    def _candidates(self) -> Sequence[Candidate]:
        if self._pool is None:
            found = list(self._space.all())
            if len(found) > _POOL:
                chosen = self._rng.choice(len(found), _POOL, replace=False)
                found = [found[i] for i in sorted(chosen)]
            self._pool = found
        return self._pool


def _burden(candidate: Candidate, other: Candidate) -> float:
    """Return the log speed by which a candidate must be faster than another one to be as good.

    Of equals the smaller one is better: it starts sooner, takes less memory, and its rollouts are
    either shorter or fewer.
    """

    def doublings(c: Candidate) -> float:
        return math.log2(c.num_envs * (c.num_env_workers + c.num_model_workers))

    return _PER_DOUBLING * (doublings(candidate) - doublings(other))


def _is_harder(candidate: Candidate, failed: Candidate) -> bool:
    """Say whether a candidate asks for all that another one asks for, or more."""
    return (
        candidate.but(envs_per_worker=1) == failed.but(envs_per_worker=1)
        and candidate.envs_per_worker >= failed.envs_per_worker
    )
