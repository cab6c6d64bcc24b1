"""Environments that only take time: they sleep, compute, or are slow to reset."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 10
"""Steps of an episode."""


class TimedEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Ends every episode after 10 steps.

    Args:
        step_s: Duration of a step.
        reset_s: Duration of a reset.
        busy: Compute for so long, rather than sleep.
    """

    observation_space = spaces.Box(0, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, step_s: float = 0.0, reset_s: float = 0.0, busy: bool = False) -> None:
        self._step_s, self._reset_s, self._busy = step_s, reset_s, busy
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        self._pass(self._reset_s)
        self._steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take the time of a step."""
        self._pass(self._step_s)
        self._steps += 1
        return np.zeros(4, np.float32), 1.0, self._steps >= LENGTH, False, {}

    def _pass(self, seconds: float) -> None:
        if not self._busy:
            if seconds:
                time.sleep(seconds)
            return
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            pass


def sleeping(step_s: float) -> TimedEnv:
    """Return an environment that waits for something else, as for a server."""
    return TimedEnv(step_s)


def computing(step_s: float) -> TimedEnv:
    """Return an environment that needs a core."""
    return TimedEnv(step_s, busy=True)


def slow_to_reset(step_s: float) -> TimedEnv:
    """Return an environment that computes as long for a reset as for its 10 steps."""
    return TimedEnv(step_s, reset_s=LENGTH * step_s, busy=True)
