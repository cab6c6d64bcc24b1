"""Environments that fail, or take long, where there are many of them."""

import time

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
