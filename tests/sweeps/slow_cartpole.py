"""CartPole whose steps take long as long as a file named "slow" is in the current directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gymnasium.envs.classic_control import CartPoleEnv


class SlowCartPole(CartPoleEnv):
    def step(self, action: Any) -> Any:
        if Path("slow").exists():
            time.sleep(0.02)
        return super().step(action)
