"""Environments that can save their states, and some that cannot."""

from __future__ import annotations

import random
import signal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class Forgetful(gymnasium.Env):
    """Episodes of random lengths, drawn from every random stream; cannot be saved."""

    observation_space = spaces.Box(-10, 10, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self):
        self._own = np.random.default_rng(5)
        self._trail = [0.0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(3, 30))
        self._trail = [float(self._own.uniform())]
        return self._observe(), {}

    def step(self, action):
        self._left -= 1
        drawn = random.random() + np.random.uniform() + float(torch.rand(()))
        self._trail.append(float(action) + drawn)
        over = self._left == 0
        return self._observe(), self._trail[-1], over, False, {"length": len(self._trail)}

    def _observe(self):
        return np.array([self._trail[-1], np.mean(self._trail), len(self._trail) / 30], np.float32)


class Saveable(Forgetful):
    """Variant that can be saved."""

    def get_state(self):
        return {"left": self._left, "trail": self._trail, "own": self._own}

    def set_state(self, state):
        self._left, self._trail, self._own = state["left"], state["trail"], state["own"]


class Interrupting(Saveable):
    """Sends Ctrl-C to the process in a step of the first environment, once."""

    sent = False

    def __init__(self, at=0):
        super().__init__()
        self._until = at

    def step(self, action):
        self._until -= 1
        if self._until == 0 and not Interrupting.sent:
            Interrupting.sent = True
            signal.raise_signal(signal.SIGINT)
        return super().step(action)


class Refusing(Saveable):
    """Variant that rejects its own state."""

    def set_state(self, state):
        raise RuntimeError("no such world")


class Opaque(Saveable):
    """Variant whose state contains something other than plain data."""

    def get_state(self):
        return {**super().get_state(), "lock": object()}


class Delayed(gymnasium.Wrapper):
    """Wrapper that shows the previous observation, and saves its state."""

    def reset(self, **kwargs):
        self._last, info = self.env.reset(**kwargs)
        return self._last, info

    def step(self, action):
        observation, *rest = self.env.step(action)
        shown, self._last = self._last, observation
        return shown, *rest

    def get_state(self):
        return self._last

    def set_state(self, state):
        self._last = state


class Counted(gymnasium.Wrapper):
    """Wrapper that rewards every third step of its count, a plain number."""

    def __init__(self, env):
        super().__init__(env)
        self._count = 0

    def step(self, action):
        self._count += 1
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) + (self._count % 3 == 0), *rest


class Remembering(gymnasium.Wrapper):
    """Wrapper with a list that it does not save."""

    def __init__(self, env):
        super().__init__(env)
        self.seen = []


def wrapped():
    """Return a saveable environment in wrappers of gymnasium and others, each with a state."""
    env = gymnasium.wrappers.TimeLimit(Saveable(), 20)
    env = Counted(Delayed(gymnasium.wrappers.OrderEnforcing(env)))
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env = gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.NormalizeObservation(env))
    return gymnasium.wrappers.FlattenObservation(gymnasium.wrappers.FrameStackObservation(env, 3))


def remembering():
    """Return a saveable environment in a wrapper that is not."""
    return Remembering(Saveable())
