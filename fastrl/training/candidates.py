"""Evaluation while training goes on: which policy is next, and which was best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fastrl.config import Config
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.evaluator import Evaluator

_POLL_S = 0.02
"""Time between looks for a result; each costs some microseconds."""


class Candidates:
    """Has a policy evaluated whenever it is due, keeps the best one, and says when to stop.

    A policy that is due while another one is still being played is evaluated as it is when that
    one is done: evaluations may come late and be fewer, but never hold up training.

    Attributes:
        passed: The first policy whose evaluation reached ``evaluation.stop_at``, and the result.

    Args:
        config: Says how often, and when to stop.
        evaluator: Plays.
        store: Keeps the best one.
        snapshot: Returns a checkpoint of the run as it is now.
        report: Told of each result, with the steps of the policy.
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
        self._keep_best = config.checkpoint.keep_best
        self._evaluator, self._store = evaluator, store
        self._snapshot, self._report = snapshot, report
        self._due_at: int | None = None
        self._played: Checkpoint | None = None
        self._looked_s = -math.inf
        self.passed: tuple[Checkpoint, EvaluationResult] | None = None

    def after_update(self, steps: int) -> bool:
        """Do what is due after so many steps; return whether training is to stop.

        Raises:
            WorkerError: The evaluation process failed.
        """
        if self._due_at is None:
            # The first call of a session: whatever was due before is not made up for.
            self._due_at = self._next_after(steps - 1)
        if self._played is not None and self._may_look():
            self._take(self._evaluator.poll())
        if self.passed is None and self._played is None and steps >= self._due_at:
            self._due_at = self._next_after(steps)
            self._played = self._snapshot()
            self._evaluator.request(self._played.model, steps)
        return self.passed is not None

    def finish(self) -> None:
        """Wait for the evaluation that is under way, if there is one.

        Raises:
            WorkerError: The evaluation process failed.
        """
        while self._played is not None:
            self._take(self._evaluator.poll(timeout_s=0.1))

    def keep_first(self, checkpoint: Checkpoint, result: EvaluationResult) -> None:
        """Keep a checkpoint if none has been evaluated before."""
        if self._keep_best and self._store.best() is None:
            self._keep(checkpoint, result)

    def _keep(self, checkpoint: Checkpoint, result: EvaluationResult) -> None:
        about = {
            "steps": checkpoint.steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "episodes": len(result.returns),
        }
        self._store.save_best(checkpoint, about)

    def _next_after(self, steps: int) -> int:
        return (steps // self._every_steps + 1) * self._every_steps

    def _may_look(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s < _POLL_S:
            return False
        self._looked_s = now_s
        return True

    def _take(self, result: EvaluationResult | None) -> None:
        if result is None or self._played is None:
            return
        played, self._played = self._played, None
        self._report(result, played.steps)
        best = self._store.best()
        if self._keep_best and (best is None or result.return_mean > best["return_mean"]):
            self._keep(played, result)
        reached = self._stop_at is not None and result.return_mean >= self._stop_at
        if reached and self.passed is None:
            self.passed = (played, result)
