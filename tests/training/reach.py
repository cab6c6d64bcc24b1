"""A point to push to a goal: about -40 per episode for random actions, -10 for a good policy."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class Reach(gymnasium.Env):
    """Observes the point and the goal, ``[4]``; the action ``[2]`` is a velocity."""

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._point, self._goal = self.np_random.uniform(-1, 1, (2, 2))
        self._steps = 0
        return self._observed(), {}

    def step(self, action):
        self._point = np.clip(self._point + 0.1 * np.clip(action, -1, 1), -1, 1)
        self._steps += 1
        distance = float(np.linalg.norm(self._point - self._goal))
        return self._observed(), -distance, False, self._steps == 40, {}

    def _observed(self):
        return np.concatenate([self._point, self._goal]).astype(np.float32)


class Noise(Reach):
    """Variant with random rewards, which nothing can predict."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(self.np_random.normal()) * 100, terminated, truncated, info
