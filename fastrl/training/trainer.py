"""The training loop: collect, update, publish; `session` runs it."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from fastrl.arguments import methods, whole
from fastrl.errors import EnvError, FastrlError, WorkerError
from fastrl.learning import Learner
from fastrl.learning.off_policy import POLICY_LAG
from fastrl.learning.ranks import Ranks
from fastrl.sampling import Sampler
from fastrl.shared.rollouts import Rollout
from fastrl.training.coordination import meet
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.window import Update

_SKIPPED_IN_A_ROW = 10
_SLOW_S = 0.5
"""Seconds of an update for which a copy of the state, some milliseconds, is negligible."""
_LOGGER = logging.getLogger(__name__)


class Trainer:
    """Alternates between sampling and learning for a number of environment steps.

    In synchronous mode the sampler waits for the weights of each update. In asynchronous mode it
    samples the next rollout during the update, so rollouts come from weights one update old.

    Args:
        sampler: A started sampler with the learner's weights.
        learner: The learner, whose ``steps`` are the progress of the run.
        total_steps: Steps at which to end; the last rollout is learnt from as a whole.
        interrupts: Checked between rollouts. A request during a rollout interrupts it, unless it
            is complete soon.
        skip_bad_updates: Skip updates that end in a loss or in parameters that are not finite, up
            to 10 in a row. Costs a copy of the learner's state before each update.
        receive: Called with each rollout; returns the rollout to learn from.
        ranks: The ranks of the run: an interrupt of one ends all of them after the same
            update, and updates count the steps and episodes of all ranks.
    """

    def __init__(
        self,
        sampler: Sampler,
        learner: Learner,
        total_steps: int,
        interrupts: Interrupts,
        *,
        skip_bad_updates: bool = False,
        receive: Callable[[Rollout], Rollout] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        methods("sampler", sampler, ("collect", "publish"))
        methods("learner", learner, ("update", "weights"))
        whole("total_steps", total_steps)
        self._sampler, self._learner = sampler, learner
        self._total_steps, self._interrupts = total_steps, interrupts
        self._skip_bad_updates, self._skipped = skip_bad_updates, 0
        self._receive, self._update_s, self._collect_s = receive, 0.0, math.inf
        self._ranks = ranks or Ranks()
        self._version = sampler.publish(learner.weights())

    def run(self, after_update: Callable[[Update], bool]) -> bool:
        """Train; return False if it was interrupted.

        Args:
            after_update: Called with each update; training ends when it returns True.

        Raises:
            StopSignal: A rollout was interrupted. The learner's state is that of the last update.
            WorkerError: A worker failed, or a rank is lost. The learner's state is that of the last
                update.
            FastrlError: Learning diverged.
        """
        while self._learner.steps < self._total_steps:
            if after_update(self._step()):
                return True
            # Several ranks end together, in `meet`.
            if self._interrupts.requested is not None and self._ranks.size == 1:
                return False
        return True

    def _step(self) -> Update:
        began_s = time.perf_counter()
        try:
            rollout, collected_s = self._sample()
        except StopSignal:
            meet(self._ranks, None, asked=self._interrupts.requested)
            raise
        lag = self._version - float(rollout.policy_version.double().mean())
        episodes, lag = meet(self._ranks, rollout, lag)
        if lag:
            ages: dict[str, Any] = {POLICY_LAG: self._version - rollout.policy_version}
            rollout = dataclasses.replace(rollout, **ages)
        metrics = self._update(rollout)
        self._version = self._sampler.publish(self._learner.weights())
        return Update(
            steps=self._learner.steps,
            updates=self._learner.updates,
            num_steps=rollout.num_steps * self._ranks.size,
            episodes=episodes,
            metrics=metrics,
            policy_lag=lag,
            sampling_s=collected_s - began_s,
            learning_s=time.perf_counter() - collected_s,
        )

    def _sample(self) -> tuple[Rollout, float]:
        """Return a rollout after ``receive``, and the time of its collection."""
        began_s = time.perf_counter()
        try:
            with self._interrupts.awaited(self._collect_s):
                rollout = self._sampler.collect()
        except (WorkerError, EnvError):
            # A launcher's signal reaches the workers, too.
            if self._ranks.size > 1 and self._interrupts.requested is not None:
                raise StopSignal from None
            raise
        collected_s = time.perf_counter()
        self._collect_s = collected_s - began_s
        if self._receive is not None:
            with self._interrupts.hurried():
                rollout = self._receive(rollout)
        return rollout, collected_s

    def _update(self, rollout: Rollout) -> dict[str, float]:
        """Update the learner; restore its state if the update fails.

        The state is copied before if bad updates are skipped, if an update takes so long that
        SIGTERM might interrupt it, or if there are several ranks, one of which may be lost.
        """
        is_alone = self._ranks.size == 1
        is_slow = self._update_s > _SLOW_S or not is_alone
        if self._skipped:
            # The learner's state of unfinished episodes lacks the rollout that was skipped.
            restarted = torch.ones_like(rollout.terminated[0])
            rollout = dataclasses.replace(rollout, restarted=restarted)
        before = self._learner.state_dict() if self._skip_bad_updates or is_slow else None
        began_s = time.perf_counter()
        try:
            is_hurried = before is not None and is_alone
            with self._interrupts.hurried() if is_hurried else nullcontext():
                metrics = self._learner.update(rollout)
        except (StopSignal, WorkerError):
            assert before is not None
            self._learner.load_state_dict(before)
            raise
        except FastrlError as error:
            self._skipped += 1
            if before is None or not self._skip_bad_updates or self._skipped > _SKIPPED_IN_A_ROW:
                raise
            _LOGGER.warning("update %d is skipped: %s", before["updates"], error)
            steps = before["steps"] + rollout.num_steps * self._ranks.size
            updates = before["updates"] + 1
            self._learner.load_state_dict({**before, "steps": steps, "updates": updates})
            return {"skipped_updates": 1.0}
        self._skipped, self._update_s = 0, time.perf_counter() - began_s
        return metrics | {"skipped_updates": 0.0} if self._skip_bad_updates else metrics
