"""An environment that reports predictable figures of its episodes."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class TellingEnv(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 9 steps by their seed; actions are rewards.

    Tells the return of the episode, its length as ``count/steps``, whether it got a reward in its
    first step as ``achievements/early`` and in its last as ``achievements/late``, and ``odd``
    after episodes of odd length only.
    """

    metadata: ClassVar = {
        "episode_info": ("total", "achievements/early", "achievements/late"),
    }
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int | None = None) -> None:
        self._given = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._length = self._given or int(self.np_random.integers(1, 10))
        self._rewards: list[int] = []
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self._rewards.append(int(action))
        steps = len(self._rewards)
        info: dict[str, Any] = {
            "total": sum(self._rewards),
            "count": {"steps": steps},
            "achievements": {"early": self._rewards[0], "late": self._rewards[-1]},
        }
        if steps % 2:
            info["odd"] = np.int64(steps)
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, float(action), steps == self._length, False, info
