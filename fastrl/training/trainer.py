"""The training loop: collect, update, publish."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastrl.learning import Learner
from fastrl.sampling import Sampler
from fastrl.training.interrupts import Interrupts
from fastrl.training.window import Update


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
            breaks the waiting off.
    """

    def __init__(
        self, sampler: Sampler, learner: Learner, total_steps: int, interrupts: Interrupts
    ) -> None:
        self._sampler, self._learner = sampler, learner
        self._total_steps, self._interrupts = total_steps, interrupts
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
        with self._interrupts.breakable():
            rollout = self._sampler.collect()
        collected_s = time.perf_counter()
        lag = self._version - float(rollout.policy_version.double().mean())
        metrics = self._learner.update(rollout)
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
