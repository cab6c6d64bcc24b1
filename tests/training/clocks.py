"""Environments that observe the time since 1970, like many tasks built from logs."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from tests.training.reach import Reach


class Clock(Reach):
    """Variant with the time in seconds, 0.1 per step."""

    def __init__(self):
        super().__init__()
        time = spaces.Box(0.0, np.inf, (1,), np.float64)
        self.observation_space = spaces.Dict(point=self.observation_space, time=time)

    def _observed(self):
        return {"point": super()._observed(), "time": np.array([1.7e9 + 0.1 * self._steps])}
