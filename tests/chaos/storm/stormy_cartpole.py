"""A CartPole whose simulator raises, hangs or aborts occasionally."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from gymnasium.envs.classic_control.cartpole import CartPoleEnv

_EVERY = 20_000
"""Mean steps of one environment between two faults."""


class StormyCartPole(CartPoleEnv):
    """CartPole that fails at random, differently in each process."""

    def __init__(self, *, calm: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._chance = 0.0 if calm else 1 / _EVERY
        self._pick = random.Random(f"{os.getpid()} {time.monotonic_ns()}")

    def step(self, action: Any) -> Any:
        """Step, or fail."""
        if self._pick.random() < self._chance:
            kind = self._pick.choice(("raise", "hang", "abort"))
            if kind == "raise":
                raise RuntimeError("the pole broke")
            if kind == "abort":
                os.abort()
            time.sleep(600)
        return super().step(action)


def make(**kwargs: Any) -> StormyCartPole:
    """Return a `StormyCartPole`."""
    return StormyCartPole(**kwargs)
