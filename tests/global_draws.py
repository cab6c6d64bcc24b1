"""An environment that draws everything from the global random streams of its process."""

from __future__ import annotations

import os
import random
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


def draw():
    """Draw once from each of Python's, NumPy's and torch's streams."""
    return np.array([random.random(), np.random.random(), float(torch.rand(()))], np.float64)


class DrawingEnv(gymnasium.Env):
    """Observes draws, the first from its construction; episodes have uneven lengths.

    Args:
        fails_once: Path of a file; the process that creates it after some steps ends at once.
    """

    observation_space = spaces.Box(0, 1, (3,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, fails_once=None):
        self.built, self.fails_once, self.count = draw(), fails_once, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.built if seed is not None else draw(), {}

    def step(self, action):
        self.count += 1
        if self.fails_once and self.count == 5 and not Path(self.fails_once).exists():
            Path(self.fails_once).touch()
            os._exit(3)
        return draw(), float(np.random.normal()), random.random() < 0.2, False, {}


def states():
    """Return the states of the streams in a comparable form."""
    of_numpy = np.random.get_state(legacy=True)
    return (
        random.getstate(),
        tuple(of_numpy[1]),
        of_numpy[2:],
        tuple(torch.get_rng_state().tolist()),
    )
