"""Environments that only take time: they sleep or compute."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 10
"""Default number of steps of an episode."""


class TimedEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Environment with episodes and steps of a fixed duration.

    Args:
        step_s: Duration of a step.
        steps_per_reset: Duration of a reset, in steps.
        busy: Compute, which needs a core, instead of sleeping, as if waiting for a server.
        length: Steps of an episode.
        size: Size of an observation.
    """

    action_space = spaces.Discrete(2)

    def __init__(
        self,
        step_s: float,
        steps_per_reset: int = 0,
        busy: bool = False,
        length: int = LENGTH,
        size: int = 4,
    ) -> None:
        self.observation_space = spaces.Box(0, 1, (size,), np.float32)
        self._step_s, self._reset_s, self._busy = step_s, steps_per_reset * step_s, busy
        self._steps, self._length = 0, length

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        self._pass(self._reset_s)
        self._steps = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Spend the time of a step."""
        self._pass(self._step_s)
        self._steps += 1
        observation = np.zeros(self.observation_space.shape, np.float32)
        return observation, 1.0, self._steps >= self._length, False, {}

    def _pass(self, seconds: float) -> None:
        if not self._busy:
            if seconds:
                time.sleep(seconds)
            return
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            pass
