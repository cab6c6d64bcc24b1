"""A task with images only: name the brightest quarter of each."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE, LENGTH = 16, 10


class BrightQuarter(gymnasium.Env[Any, Any]):
    """Shows ten images of noise; the reward is 1 for the right quarter, else 0.

    Args:
        channels_first: Images are ``[1, 16, 16]`` instead of ``[16, 16, 3]``.
    """

    def __init__(self, channels_first: bool = False) -> None:
        self._shape = (1, SIDE, SIDE) if channels_first else (SIDE, SIDE, 3)
        self.observation_space = spaces.Box(0, 255, self._shape, np.uint8)
        self.action_space = spaces.Discrete(4)
        self._shown = self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Show the first image."""
        super().reset(seed=seed)
        self._step = 0
        return self._picture(), {}

    def step(self, action: Any) -> Any:
        """Reward the answer and show another image."""
        reward = float(action == self._shown)
        self._step += 1
        return self._picture(), reward, self._step == LENGTH, False, {}

    def _picture(self) -> np.ndarray:
        self._shown = int(self.np_random.integers(4))
        picture = self.np_random.integers(0, 160, self._shape, np.uint8)
        half = SIDE // 2
        top, left = half * (self._shown // 2), half * (self._shown % 2)
        rows, columns = slice(top, top + half), slice(left, left + half)
        where = (rows, columns) if self._shape[-1] == 3 else (slice(None), rows, columns)
        picture[where] += 60
        return picture
