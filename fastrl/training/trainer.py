"""The training loop: collect, update, publish."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from fastrl.arguments import methods, whole
from fastrl.errors import FastrlError
from fastrl.learning import Learner
from fastrl.sampling import Sampler
from fastrl.shared.rollout_buffer import Rollout
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.window import Update

_SKIPPED_IN_A_ROW = 10
_SLOW_S = 0.5
"""A copy of the state takes milliseconds: nothing beside an update of this length."""
_LOGGER = logging.getLogger(__name__)


class Trainer:
    """Alternates between a sampler and a learner until enough steps were learnt from.

    In synchronous mode the sampler waits for the weights of each update. In asynchronous mode it
    samples the next rollout meanwhile, and the learner learns from weights one update old.

    Args:
        sampler: Started, with the learner's weights.
        learner: Its counter of steps says where the run is.
        total_steps: Steps at which to end. The last rollout is learnt from whole, so the run may
            end up to one rollout beyond.
        interrupts: Looked at between rollouts; one that comes while a rollout is waited for
            breaks the waiting off, unless the rollout comes soon.
        skip_bad_updates: Leave out updates that end in a loss or in parameters that are not
            finite, up to 10 in a row. Costs a copy of the learner's state before each update.
        receive: Called with each rollout; what it returns is learnt from.
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
    ) -> None:
        methods("sampler", sampler, ("collect", "publish"))
        methods("learner", learner, ("update", "weights"))
        whole("total_steps", total_steps)
        self._sampler, self._learner = sampler, learner
        self._total_steps, self._interrupts = total_steps, interrupts
        self._skip_bad_updates, self._skipped = skip_bad_updates, 0
        self._receive, self._update_s, self._collect_s = receive, 0.0, math.inf
        self._version = sampler.publish(learner.weights())

    def run(self, after_update: Callable[[Update], bool]) -> bool:
        """Train; return whether it went on to the end, rather than being interrupted.

        Args:
            after_update: Told of each update; training ends when it returns True.

        Raises:
            StopSignal: An interrupt broke off a rollout. The learner is as after the last update.
            WorkerError: A worker failed. The learner is as after the last update.
            FastrlError: Learning diverged.
        """
        while self._learner.steps < self._total_steps:
            if after_update(self._step()):
                return True
            if self._interrupts.requested is not None:
                return False
        return True

    def _step(self) -> Update:
        began_s = time.perf_counter()
        with self._interrupts.awaited(self._collect_s):
            rollout = self._sampler.collect()
        collected_s = time.perf_counter()
        self._collect_s = collected_s - began_s
        if self._receive is not None:
            with self._interrupts.hurried():
                rollout = self._receive(rollout)
        lag = self._version - float(rollout.policy_version.double().mean())
        metrics = self._update(rollout)
        self._version = self._sampler.publish(self._learner.weights())
        return Update(
            steps=self._learner.steps,
            updates=self._learner.updates,
            num_steps=rollout.num_steps,
            episodes=rollout.episodes,
            metrics=metrics,
            policy_lag=lag,
            sampling_s=collected_s - began_s,
            learning_s=time.perf_counter() - collected_s,
        )

    def _update(self, rollout: Rollout) -> dict[str, float]:
        """Learn, or leave the learner as it was.

        Its state is copied where it may be needed: if bad updates are skipped, and if an update
        takes so long that SIGTERM might have to break it off.
        """
        is_slow = self._update_s > _SLOW_S
        if self._skipped:
            # What the learner knows of unfinished episodes lacks the rollout that was left out.
            restarted = torch.ones_like(rollout.terminated[0])
            rollout = dataclasses.replace(rollout, restarted=restarted)
        before = self._learner.state_dict() if self._skip_bad_updates or is_slow else None
        began_s = time.perf_counter()
        try:
            with self._interrupts.hurried() if before is not None else nullcontext():
                metrics = self._learner.update(rollout)
        except StopSignal:
            assert before is not None
            self._learner.load_state_dict(before)
            raise
        except FastrlError as error:
            self._skipped += 1
            if before is None or not self._skip_bad_updates or self._skipped > _SKIPPED_IN_A_ROW:
                raise
            _LOGGER.warning("update %d is left out: %s", before["updates"], error)
            steps, updates = before["steps"] + rollout.num_steps, before["updates"] + 1
            self._learner.load_state_dict({**before, "steps": steps, "updates": updates})
            return {"skipped_updates": 1.0}
        self._skipped, self._update_s = 0, time.perf_counter() - began_s
        return metrics | {"skipped_updates": 0.0} if self._skip_bad_updates else metrics
