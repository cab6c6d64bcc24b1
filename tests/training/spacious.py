"""An environment with any spaces, whose rewards encode the actions."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from fastrl.spaces import flatten

IMAGE = spaces.Box(0, 255, (9, 9, 3), np.uint8)
KINDS = {
    "clipped": (
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(np.float32([-0.02, -np.inf]), np.float32([0.01, 0.03])),
    ),
    "squashed": (
        spaces.Box(-5, 5, (2, 3), np.float64),
        spaces.Box(np.array([-1.0, 0.0]), np.array([2.0, 5.0]), dtype=np.float64),
    ),
    "discrete": (spaces.Discrete(5, start=2), spaces.Discrete(4, start=-1)),
    "multi_discrete": (
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [-2, 0]])),
        spaces.MultiDiscrete([3, 4], start=[1, -2], dtype=np.int32),
    ),
    "multi_binary": (spaces.MultiBinary(4), spaces.MultiBinary((2, 2))),
    "image": (IMAGE, spaces.Discrete(3)),
    "scalar": (
        spaces.Box(-100, 100, (), np.int16),
        spaces.Box(-1, 1, (1,), np.float64),
    ),
    "nested": (
        spaces.Dict(
            {
                "camera": IMAGE,
                "arm": spaces.Tuple([spaces.Box(-2, 2, (2,)), spaces.Discrete(3, start=1)]),
            }
        ),
        spaces.Dict(
            {
                "gripper": spaces.Discrete(2),
                "joints": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3)]),
            }
        ),
    ),
}
SQUASHED = ("squashed", "scalar")


class Spacious(gymnasium.Env):
    """Observes samples of its space, for 3 to 8 steps by the seed."""

    def __init__(self, kind):
        self.observation_space, self.action_space = KINDS[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(3, 9))
        return self._observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._left -= 1
        numbers = np.concatenate([np.ravel(x) for x in flatten(self.action_space, action)])
        reward = float(numbers @ np.arange(1, len(numbers) + 1))
        return self._observed(), reward, self._left == 0, False, {}

    def _observed(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()
