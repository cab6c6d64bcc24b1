"""Small environments whose episodes are known in advance, and runs of them."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from fastrl.config import (
    CheckpointConfig,
    Config,
    EnvConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    PPOConfig,
    SamplerConfig,
)

EPISODE = 4


class Clockwork(gymnasium.Env):
    """Deterministic environment with episodes of 4 steps.

    Where rollouts are whole episodes, environments that start anew between two rollouts are in
    the state in which they would have been anyway.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(-10, 10, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step, self._sum = 0, 0
        return self._observe(), {}

    def step(self, action):
        self._step += 1
        self._sum += int(action)
        over = self._step == EPISODE
        reward = float(int(action) == self._step % 3)
        cut = over and self._sum % 2 == 0
        return self._observe(), reward, over and not cut, cut, {}

    def render(self):
        return np.full((24, 32, 3), 60 * self._step, np.uint8)

    def _observe(self):
        return np.array([self._step, self._sum, 1.0], np.float32)


class Uneven(gymnasium.Env):
    """Environment with episodes of 1 to 40 steps by their seed; a good action has the reward 1."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 41))
        return self._observe(), {}

    def step(self, action):
        self._left -= 1
        return self._observe(), float(action), self._left == 0, False, {}

    def _observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Endless(Clockwork):
    """Environment that never ends, with the reward 1 in every step."""

    def step(self, action):
        super().step(action)
        return self._observe(), 1.0, False, False, {}

    def _observe(self):
        return np.array([self._step % 7, 1.0, 1.0], np.float32)


class EndlessUndefined(Endless):
    """Observes a NaN in its 20th step, and only there."""

    def _observe(self):
        return super()._observe() * (np.nan if self._step == 20 else 1.0)


class EndlessUnbounded(Endless):
    """Gives an infinite reward in its 25th step."""

    def step(self, action):
        observation, reward, *over, info = super().step(action)
        return observation, np.inf if self._step == 25 else reward, *over, info


class Breaking(Clockwork):
    """Raises in its 30th step."""

    def __init__(self):
        super().__init__()
        self._left = 30

    def step(self, action):
        self._left -= 1
        if not self._left:
            raise RuntimeError("the simulator exploded")
        return super().step(action)


class Overflowing(Breaking):
    """Gives a reward in its 30th step that makes the loss overflow."""

    def step(self, action):
        try:
            return super().step(action)
        except RuntimeError:
            return self._observe(), 1e18, True, False, {}


class Undefined(Breaking):
    """Observes a NaN in its 30th step, and only there."""

    def step(self, action):
        try:
            return super().step(action)
        except RuntimeError:
            return self._observe() * np.nan, 0.0, False, False, {}


class Unrewarded(Breaking):
    """Gives a NaN reward in its 30th step."""

    def step(self, action):
        try:
            return super().step(action)
        except RuntimeError:
            return self._observe(), np.nan, False, False, {}


class Unbounded(Breaking):
    """Gives an infinite reward in its 30th step."""

    def step(self, action):
        try:
            return super().step(action)
        except RuntimeError:
            return self._observe(), np.inf, False, False, {}


def small_run(path, **changes):
    """Return a run of 8 rollouts of 64 steps that uses everything a checkpoint stores."""
    sections = {
        "seed": 3,
        "run_dir": str(path),
        "total_steps": 512,
        "env": EnvConfig(id="tests.training.clockwork:Clockwork"),
        "sampler": SamplerConfig(
            kind="serial", envs_per_worker=4, num_env_workers=2, rollout_length=8, lock_step=True
        ),
        "model": ModelConfig(
            hidden_sizes=(8,),
            conv_layers=((4, 3, 2),),
            conv_features=8,
            normalize_observations=True,
        ),
        "algorithm": PPOConfig(
            epochs=2,
            minibatch_size=16,
            learning_rate=0.01,
            learning_rate_schedule="linear",
            clip_schedule="linear",
            entropy_coef=0.01,
            entropy_schedule="linear",
            normalize_rewards=True,
        ),
        "evaluation": EvaluationConfig(enabled=False),
        "checkpoint": CheckpointConfig(every_steps=64, keep_last=100),
        "logging": LoggingConfig(tensorboard=False, every_steps=64),
    }
    return Config(**(sections | changes))
