"""Evaluation during training: which policy is next, and which was best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

from fastrl.config import Config
from fastrl.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.evaluator import Evaluator

_POLL_S = 0.02
"""Time between polls for a result; each costs some microseconds."""


class Candidates:
    """Has the policy evaluated when it is due, keeps the best one, and decides when to stop.

    A policy that falls due while another one is being played waits until that one is done; of
    several only the newest is played. Evaluations may be late and fewer, but never delay training.

    All policies play the same episodes. The best has the highest score, by default the mean return
    (``evaluation.metric``); of equal ones it is the later policy. A score that is not finite is
    lower than every other. In a resumed session the best policy so far is played again, since the
    episodes may have changed.

    Attributes:
        passed: The first policy whose evaluation reached ``evaluation.stop_at``, and the result.

    Args:
        config: Says how often, and when to stop.
        evaluator: Plays.
        store: Keeps the best one.
        snapshot: Returns a checkpoint of the run as it is now.
        report: Called with each result, and the steps of the policy.
    """

    def __init__(
        self,
        config: Config,
        evaluator: Evaluator,
        store: CheckpointStore,
        snapshot: Callable[[], Checkpoint],
        report: Callable[[EvaluationResult, int], None],
    ) -> None:
        self._settings, self._keep_best = config.evaluation, config.checkpoint.keep_best
        self._evaluator, self._store = evaluator, store
        self._snapshot, self._report = snapshot, report
        self._due_at: int | None = None
        self._played: Checkpoint | None = None
        self._pending: Checkpoint | None = None
        self._earlier = self._best()
        self._best_score = self._polled_s = -math.inf
        self.passed: tuple[Checkpoint, EvaluationResult] | None = None

    def after_update(self, steps: int, *, is_last: bool = False) -> bool:
        """Begin and end evaluations that are due; return whether training ends.

        Args:
            steps: Environment steps so far.
            is_last: Whether training ends anyway. Its last policy plays the final evaluation, so
                it is not evaluated before that, unless for a video.
        """
        if self._due_at is None:
            # The first call of a session: evaluations that were due before it are skipped.
            self._due_at = self._next_after(steps - 1)
        if self._played is not None and time.monotonic() - self._polled_s >= _POLL_S:
            self._polled_s = time.monotonic()
            self._take(self._evaluator.poll())
        if self.passed is None and steps >= self._due_at:
            self._due_at = self._next_after(steps)
            plays = self._settings.video or not is_last
            self._pending = self._snapshot() if plays else None
        self._play_next()
        return self.passed is not None

    def finish(self) -> None:
        """Wait for the evaluation that is running and for one that is pending."""
        while self._played is not None:
            self._take(self._evaluator.poll(timeout_s=0.1))
            self._play_next()

    def judge(
        self,
        final: Checkpoint,
        result: EvaluationResult,
        play: Callable[[Checkpoint], EvaluationResult],
    ) -> None:
        """Keep the final policy as the best one, unless the best so far has a higher score.

        Both play the same episodes, which are more and others than those of the candidates: the
        highest of many means over few episodes overestimates its policy.

        Args:
            final: The policy that the run ended with.
            result: Its evaluation.
            play: Evaluates a policy in the same episodes.
        """
        best = self._best()
        if best is not None and best.steps != final.steps:
            other = play(best)
            if self._score(other) > self._score(result):
                self._keep(best, other)
                return
        self._keep(final, result)

    def _best(self) -> Checkpoint | None:
        """Return the best checkpoint so far; None if there is none that can be read."""
        if self._keep_best and self._store.best() is not None:
            with suppress(CheckpointError):
                return self._store.load("best")
        return None

    def _keep(self, checkpoint: Checkpoint, result: EvaluationResult) -> None:
        if not self._keep_best or self._score(result) == -math.inf:
            return
        about = {
            "steps": checkpoint.steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "episodes": len(result.returns),
            **result.info_row(),
        }
        self._store.save_best(checkpoint, about)

    def _score(self, result: EvaluationResult) -> float:
        score = result.score(self._settings.metric)
        return score if math.isfinite(score) else -math.inf

    def _next_after(self, steps: int) -> int:
        return (steps // self._settings.every_steps + 1) * self._settings.every_steps

    def _play_next(self) -> None:
        """Start the next evaluation if there is one and none is running."""
        if self._played is not None or self._pending is None or self.passed is not None:
            return
        if self._earlier is not None:
            self._played = self._earlier
        else:
            self._played, self._pending = self._pending, None
        self._evaluator.request(self._played.model, self._played.steps)

    def _take(self, result: EvaluationResult | None) -> None:
        if result is None or self._played is None:
            return
        played, self._played = self._played, None
        score = self._score(result)
        if played is self._earlier:
            self._earlier, self._best_score = None, score
            return
        self._report(result, played.steps)
        if score >= self._best_score:
            self._best_score = score
            self._keep(played, result)
        stop_at = self._settings.stop_at
        if stop_at is not None and score >= stop_at and self.passed is None:
            self.passed = (played, result)
