"""A training run under faults, of which every step is checked."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fastrl.envs import make_tensor
from fastrl.shared.rollouts import Rollout
from fastrl.throughput.measure import ThroughputMeter
from fastrl.training import session
from fastrl.training.window import Update
from tests.chaos.storm.weather import Storm

DEADLINE_S = 1.0
SCORE = 475.0
UNLIMITED = 100_000
_LEARNT = 0.9 * SCORE
"""Mean return of sampled actions from which the likeliest ones score."""


class Witness:
    """Checks `fastrl.training.train` while it trains CartPole, within a ``with`` block.

    Attributes:
        storm: Injects faults into env workers, model workers and a throughput process.
        checked: Number of checked transitions.
        misplaced: Number of them that do not lead from one observation to the next.

    Args:
        faults: Number of logged faults after which the storm ends and training continues.
        log: The run's ``faults.jsonl``.
        until_s: Time at which to give up.
        seed: Seed of the storm.
    """

    def __init__(self, faults: int, log: Path, until_s: float, seed: int) -> None:
        self._faults, self._log, self._until_s, self._seed = faults, log, until_s, seed
        self._env, self._params = make_tensor("CartPole-v1")
        self._return = 0.0
        self.checked = self.misplaced = 0
        self.storm: Storm
        self._patches = ExitStack()

    def __enter__(self) -> Witness:
        """Wrap the sampler of the run."""
        make_sampler, after_update = session.make_sampler, session.TrainingSession.after_update

        def observed(*args: Any, **kwargs: Any) -> Any:
            sampler = make_sampler(*args, **kwargs)
            collect = sampler.collect
            sampler.collect = lambda: self._look_at(collect())  # type: ignore[method-assign]
            self._meter = ThroughputMeter(sampler.counters)
            self._patches.callback(self._meter.close)
            self.storm = Storm(
                sampler,
                self._seed,
                pause_s=(0.0, 0.1),
                deadline_s=DEADLINE_S,
                extra_pids=self._meter.pids,
            )
            return sampler

        def until_enough(training: Any, update: Update) -> bool:
            return bool(after_update(training, update)) or self._is_over(update)

        self._patches.enter_context(patch.object(session, "make_sampler", observed))
        self._patches.enter_context(
            patch.object(session.TrainingSession, "after_update", until_enough)
        )
        measuring = sys.modules[ThroughputMeter.__module__]
        self._patches.enter_context(patch.object(measuring, "_RESTARTS", UNLIMITED))
        return self

    def __exit__(self, *_: object) -> None:
        """End the storm."""
        self.storm.__exit__()
        self._patches.close()

    def _is_over(self, update: Update) -> bool:
        if update.updates == 1:
            self.storm.__enter__()
        self._meter.count_since(time.monotonic_ns())
        del self._meter.readings[:-100]
        returns = update.episodes.returns
        if len(returns):
            self._return += 0.02 * (float(returns.mean()) - self._return)
        if not self.storm.over and self._count() >= self._faults:
            self.storm.__exit__()
        learnt = self.storm.over and self._return >= _LEARNT
        return learnt or time.monotonic() > self._until_s

    def _count(self) -> int:
        return self._log.read_bytes().count(b"\n") if self._log.exists() else 0

    def _look_at(self, rollout: Rollout) -> Rollout:
        """Compute every transition again from its observation and its action."""
        observed, action = rollout.observation, rollout.action
        assert isinstance(observed, torch.Tensor)
        step = torch.zeros(observed.shape[1]).int()
        goes_on = ~(rollout.terminated | rollout.truncated)
        for t in range(len(goes_on)):
            state = self._env.state_type(*observed[t].unbind(-1), step)
            reached, _, _ = self._env.transition(state, action[t], self._params)
            expected = self._env.observe(reached)
            right = torch.isclose(expected, observed[t + 1], rtol=1e-4, atol=1e-4).all(-1)
            self.misplaced += int((goes_on[t] & ~right).sum())
        self.checked += int(goes_on.sum())
        return rollout
