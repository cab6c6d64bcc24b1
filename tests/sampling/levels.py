"""Environments whose level is set from outside and part of every observation."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

from fastrl.spec import EnvSpec


class Levels(gymnasium.Env):
    """Observes step, level and the number of entries of a map; episodes of 5 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, marker=None):
        self.level, self.noise, self.size = 0, 0.0, 0
        self._marker = marker and Path(marker)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return self._observe(), {}

    def step(self, action):
        self._step += 1
        return self._observe(), float(self.level), self._step == 5, False, {}

    def set_level(self, level, *, noisy=False):
        if level > 90:
            raise ValueError("there are 90 levels")
        self.level, self.noise = level, random.random() if noisy else 0.0

    def rise(self):
        self.level += 1

    def set_map(self, entries):
        self.size = len(entries)

    def die_once(self, level):
        if self._is_first():
            os.kill(os.getpid(), signal.SIGKILL)
        self.level = level

    def hang_once(self, level):
        if self._is_first():
            time.sleep(600)
        self.level = level

    def _is_first(self):
        try:  # atomic, as all workers run this at once
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def get_state(self):
        return [self._step, self.level, self.noise, self.size]

    def set_state(self, state):
        self._step, self.level, self.noise, self.size = state

    def _observe(self):
        return np.array([self._step, self.level, self.noise, self.size], np.float32)


def wrapped(**kwargs):
    """Return a level environment in a wrapper."""
    return gymnasium.wrappers.TimeLimit(Levels(**kwargs), 100)


def vector(num_envs):
    """Return level environments in a gymnasium vector environment."""
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return gymnasium.vector.SyncVectorEnv([Levels] * num_envs, autoreset_mode=mode)


class Batch:
    """Level environments as a batch."""

    def __init__(self, num_envs):
        self.num_envs, self.level = num_envs, 0
        self.spec = EnvSpec("levels", Levels.observation_space, Levels.action_space)

    def reset(self, seeds, observation):
        self.step_number = 0
        self._write(observation)

    def step(self, views):
        self.step_number += 1
        views.reward[:], views.truncated[:] = self.level, False
        views.terminated[:] = self.step_number == 5
        if self.step_number == 5:
            self._write(views.final_observation)
            self.step_number = 0
        self._write(views.observation)

    def set_level(self, level):
        self.level = level

    def close(self):
        """Do nothing: there is nothing to free."""

    def _write(self, rows):
        rows[0][:] = [self.step_number, self.level, 0, 0]
