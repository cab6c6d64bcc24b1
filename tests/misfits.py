"""Environments that violate their contract, in every way that has its own message."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

GOOD = (np.zeros(2, np.float32), 0.0, False, False, {})


def _with(place, value):
    return lambda: (*GOOD[:place], value, *GOOD[place + 1 :])


def _raise():
    raise RuntimeError("the simulator exploded")


MISFITS = {
    "shape": _with(0, np.zeros(3, np.float32)),
    "dtype": _with(0, np.array(["a", "b"])),
    "no array": _with(0, None),
    "ragged": _with(0, [[1.0], [2.0, 3.0]]),
    "no reward": _with(1, None),
    "text as reward": _with(1, "much"),
    "two rewards": _with(1, np.zeros(2)),
    "two flags": _with(2, np.zeros(2, bool)),
    "no info": lambda: GOOD[:4],
    "error": _raise,
}
RESET_MISFITS = {
    "shape": lambda: (np.zeros(3, np.float32), {}),
    "no array": lambda: (None, {}),
    "no info": lambda: np.zeros(2, np.float32),
    "error": _raise,
}


class MisfitEnv(gymnasium.Env):
    """Violates its contract in step 2 with a given seed, or in a given reset.

    Args:
        kind: Kind of violation, of `MISFITS` or `RESET_MISFITS`.
        seed: Seed of the environment that violates it.
        in_reset: Number of the reset that violates it; None if a step does.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(9)

    def __init__(self, kind, seed, in_reset=None):
        self.kind, self.odd, self.in_reset = kind, seed, in_reset
        self.resets = self.steps = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeded = self.seeded if seed is None else seed
        self.resets += 1
        if self.seeded == self.odd and self.resets == self.in_reset:
            return RESET_MISFITS[self.kind]()
        return GOOD[0], {}

    def step(self, action):
        self.steps += 1
        if self.seeded == self.odd and self.in_reset is None and self.steps == 1:
            return MISFITS[self.kind]()
        return *GOOD[:2], self.steps == 1, *GOOD[3:]
