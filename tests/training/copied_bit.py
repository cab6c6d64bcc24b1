"""A task without memory: copy the first bit of each observation, twenty times in an episode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 20


class CopiedBit(gymnasium.Env[Any, Any]):
    """Shows random bits as the bounds of a Box; the reward is 1 if the first bit is copied.

    Args:
        dtype: Dtype of the Box.
        low: Value of a bit 0.
        high: Value of a bit 1.
        shape: Shape of the Box. All numbers of an image are the same.
        unbounded: Whether the Box has no bounds.
    """

    action_space = spaces.Discrete(2)

    def __init__(
        self,
        dtype: str = "uint8",
        low: float = 0,
        high: float = 1,
        shape: Any = (8,),
        unbounded: bool = False,
    ) -> None:
        bounds = (-np.inf, np.inf) if unbounded else (low, high)
        self.observation_space = spaces.Box(*bounds, tuple(shape), np.dtype(dtype).type)
        self._shown = np.array([low, high], dtype)
        self._bit = self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Show the first bits."""
        super().reset(seed=seed)
        self._step = 0
        return self._show(), {}

    def step(self, action: Any) -> Any:
        """Reward the copy and show other bits."""
        reward = float(action == self._bit)
        self._step += 1
        return self._show(), reward, self._step == LENGTH, False, {}

    def _show(self) -> np.ndarray:
        shape = self.observation_space.shape
        bits = self.np_random.integers(0, 2, 1 if len(shape) > 1 else shape)
        self._bit = int(bits[0])
        return np.array(np.broadcast_to(self._shown[bits], shape))
