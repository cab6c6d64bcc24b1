"""Environments that fail or are slow in large numbers."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.tuning.busy import busy


class CountedEnv(gymnasium.Env):
    """Does nothing."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, step_s=0.0):
        self._step_s = step_s

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        time.sleep(self._step_s)
        return np.zeros(1, np.float32), 0.0, False, False, {}


built = 0


def make():
    """Return an environment, up to eight times in a process."""
    global built
    built += 1
    if built > 8:
        raise RuntimeError("too many on purpose")
    return CountedEnv()


class FailsOnce(CountedEnv):
    """Ends its process in a step, or sleeps for a minute, unless another one did so before."""

    def __init__(self, flag, sleeps):
        super().__init__()
        self._flag, self._sleeps, self._left = Path(flag), sleeps, 20

    def step(self, action):
        self._left -= 1
        if not self._left and not self._flag.exists():
            self._flag.touch()
            if self._sleeps:
                time.sleep(60)
            os._exit(3)
        return super().step(action)


def failing_once(flag, sleeps):
    """Return the overrides of an environment that fails or is late in one step."""
    kwargs = f"{{flag: {flag}, sleeps: {sleeps}}}"
    name = "env.id=tests.tuning.failing_env:FailsOnce"
    deadlines = ["env.step_timeout_s=0.5", "env.reset_timeout_s=0.5"] if sleeps == "true" else []
    return [name, f"env.kwargs={kwargs}", *deadlines]


class BusyEnv(CountedEnv):
    """Computes in every step."""

    def step(self, action):
        busy(0.005)
        return super().step(action)


def make_busy():
    """Return an environment of which 32 compute for a sixth of a second in a step."""
    return BusyEnv()


def make_slow_to_build():
    """Return an environment of which 16 take seconds to build."""
    time.sleep(0.1)
    return CountedEnv()


def make_slow():
    """Return an environment of which 64 take seconds for a step."""
    return CountedEnv(step_s=0.03)
