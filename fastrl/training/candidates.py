"""Evaluation while training goes on: which policy is next, and which was best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

from fastrl.config import Config
from fastrl.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fastrl.training.evaluation import INFO, EvaluationResult
from fastrl.training.evaluator import Evaluator

_POLL_S = 0.02
"""Time between looks for a result; each costs some microseconds."""


class Candidates:
    """Has the policy evaluated whenever it is due, keeps the best one, and says when to stop.

    A policy that falls due while another one is being played is kept until that one is done; of
    several only the newest is. Evaluations may come late and be fewer, but never hold up training.

    All policies play the same episodes, and the highest score is the best, the mean return or what
    ``evaluation.metric`` says; of equal ones that is the later policy. A score that is not finite
    is lower than every other. A session that goes on with a run has the best one of before played
    again, since that one may have played other episodes.

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
        self._every_steps, self._stop_at = config.evaluation.every_steps, config.evaluation.stop_at
        self._metric = config.evaluation.metric
        self._keep_best = config.checkpoint.keep_best
        self._evaluator, self._store = evaluator, store
        self._snapshot, self._report = snapshot, report
        self._due_at: int | None = None
        self._played: Checkpoint | None = None
        self._pending: Checkpoint | None = None
        self._earlier = self._best() if self._keep_best else None
        self._best_score = -math.inf
        self._looked_s = -math.inf
        self.passed: tuple[Checkpoint, EvaluationResult] | None = None

    def after_update(self, steps: int) -> bool:
        """Do what is due after so many steps; return whether training is to stop.

        Raises:
            WorkerError: The evaluation process failed.
        """
        if self._due_at is None:
            # The first call of a session: what was due before it is not evaluated.
            self._due_at = self._next_after(steps - 1)
        if self._played is not None and self._may_look():
            self._take(self._evaluator.poll())
        if self.passed is None and steps >= self._due_at:
            self._due_at = self._next_after(steps)
            self._pending = self._snapshot()
        self._play_next()
        return self.passed is not None

    def finish(self) -> None:
        """Wait for the evaluation that is under way and for one that is pending.

        Raises:
            WorkerError: The evaluation process failed.
        """
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

        Both play the same episodes, which are more than those of the candidates and others: the
        highest of many means over few episodes is higher than what its policy is worth.

        Args:
            final: The policy that the run ended with.
            result: Its evaluation.
            play: Evaluates a policy in the same episodes.
        """
        best = self._best() if self._keep_best else None
        if best is not None and best.steps != final.steps:
            other = play(best)
            if self._score(other) > self._score(result):
                self._keep(best, other)
                return
        if self._keep_best and math.isfinite(self._score(result)):
            self._keep(final, result)

    def _best(self) -> Checkpoint | None:
        """Return the best checkpoint so far; None where there is none that can be read."""
        if self._store.best() is None:
            return None
        with suppress(CheckpointError):
            return self._store.load("best")
        return None

    def _keep(self, checkpoint: Checkpoint, result: EvaluationResult) -> None:
        about = {
            "steps": checkpoint.steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "episodes": len(result.returns),
            **{f"{INFO}{name}": mean for name, mean in result.info_means().items()},
        }
        self._store.save_best(checkpoint, about)

    def _score(self, result: EvaluationResult) -> float:
        score = result.score(self._metric)
        return score if math.isfinite(score) else -math.inf

    def _next_after(self, steps: int) -> int:
        return (steps // self._every_steps + 1) * self._every_steps

    def _may_look(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s < _POLL_S:
            return False
        self._looked_s = now_s
        return True

    def _play_next(self) -> None:
        """Start the next evaluation if there is one and none is under way."""
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
        if played is self._earlier:
            self._earlier, self._best_score = None, self._score(result)
            return
        self._report(result, played.steps)
        score = self._score(result)
        if self._keep_best and math.isfinite(score) and score >= self._best_score:
            self._best_score = score
            self._keep(played, result)
        reached = self._stop_at is not None and score >= self._stop_at
        if reached and self.passed is None:
            self.passed = (played, result)
