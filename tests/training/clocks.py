"""Observes the time since 1970, as many tasks that come from logs do."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from tests.training.reach import Reach


class Clock(Reach):
    """The same with the time in seconds, which goes on by 0.1 in a step."""

    def __init__(self):
        super().__init__()
        time = spaces.Box(0.0, np.inf, (1,), np.float64)
        self.observation_space = spaces.Dict(point=self.observation_space, time=time)

    def _observed(self):
        return {"point": super()._observed(), "time": np.array([1.7e9 + 0.1 * self._steps])}
