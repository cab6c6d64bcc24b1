"""A task that only a memory solves: learnt with one, and not without."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from fastrl.config import Config, EnvConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.learning import build_learner
from fastrl.sampling import make_plan, make_sampler

STEPS = 4


class Recall(gymnasium.Env[Any, Any]):
    """Shows a sign in the first observation of an episode, and rewards it as every action."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.sign, self.time = int(self.np_random.integers(2)), 0
        return np.array([2 * self.sign - 1, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        ends = self.time == STEPS
        observation = np.array([0, self.time / STEPS], np.float32)
        return observation, float(action == self.sign) / STEPS, ends, False, {}


@pytest.mark.parametrize(
    ("recurrent", "least", "most"), [("gru", 0.95, 1.0), ("lstm", 0.95, 1.0), (None, 0.5, 0.75)]
)
def test_only_a_memory_recalls(recurrent, least, most):
    config = Config(
        env=EnvConfig(id=f"{__name__}:Recall"),
        sampler=SamplerConfig(kind="serial", num_envs=16, num_env_workers=1, rollout_length=16),
        model=ModelConfig(recurrent=recurrent, hidden_sizes=(16,), recurrent_size=16),
        algorithm=PPOConfig(
            learning_rate=0.01, sequence_length=8, minibatch_size=64, epochs=8, gamma=0.9
        ),
    )
    plan = make_plan(config)
    with make_sampler(config, plan) as sampler:
        learner = build_learner(config, plan.env_spec)
        for _ in range(30):
            rollout = sampler.collect()
            learner.update(rollout)
            sampler.publish(learner.weights())
        returns = np.concatenate([sampler.collect().episodes.returns for _ in range(4)])
    assert least <= returns.mean() <= most
