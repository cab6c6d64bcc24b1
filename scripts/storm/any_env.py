"""An environment of any spaces, which follow from a seed."""

from __future__ import annotations

import random
from typing import Any

import gymnasium

from scripts.storm.chance import space


class AnyEnv(gymnasium.Env[Any, Any]):
    """Observes and accepts anything that a space may hold; episodes last 1 to 5 steps."""

    def __init__(self, spaces_seed: int = 0, render_mode: str | None = None) -> None:
        pick = random.Random(spaces_seed)
        self.observation_space, self.action_space = space(pick), space(pick)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        """Begin an episode."""
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 6))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Refuse what is not in the space."""
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self._left -= 1
        return self.observation_space.sample(), 1.0, self._left == 0, False, {}


def make(**kwargs: Any) -> AnyEnv:  # noqa: ANN401
    """Return one."""
    return AnyEnv(**kwargs)
