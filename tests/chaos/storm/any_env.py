"""An environment of any spaces, which follow from a seed."""

from __future__ import annotations

import random
from typing import Any

import gymnasium

from tests.chaos.storm.chance import oddity, space


class AnyEnv(gymnasium.Env[Any, Any]):
    """Environment with random spaces and samples of them; episodes last 1 to 5 steps.

    Args:
        spaces_seed: Seed of the spaces.
        odd_seed: Seed of occasional invalid return values; None for none.
        render_mode: As in gymnasium.
    """

    def __init__(
        self,
        spaces_seed: int = 0,
        odd_seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._odd = None if odd_seed is None else random.Random(odd_seed)
        pick = random.Random(spaces_seed)
        self.observation_space, self.action_space = space(pick), space(pick)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 6))
        return self._perhaps_odd((self.observation_space.sample(), {}))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step; raise on an action outside the space."""
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self._left -= 1
        return self._perhaps_odd((self.observation_space.sample(), 1.0, self._left == 0, False, {}))

    def _perhaps_odd(self, returned: Any) -> Any:
        """Replace all, or one part, or leave one out or add one, one time in five."""
        pick = self._odd
        if pick is None or pick.random() < 0.8:
            return returned
        kind, place = pick.randrange(8), pick.randrange(len(returned))
        if kind == 0:
            return oddity(pick)
        if kind == 1:
            return returned[:place] + returned[place + 1 :]
        added = (oddity(pick),)
        return returned[:place] + added + returned[place + (kind != 2) :]


def make(**kwargs: Any) -> AnyEnv:
    """Return an `AnyEnv`."""
    return AnyEnv(**kwargs)
