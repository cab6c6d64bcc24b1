"""Environments with masks that change in every step, which reject invalid actions."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from fastrl.spaces import flatten, leaves, num_choices

NESTED = spaces.Dict(
    [
        ("move", spaces.Discrete(4, start=-1)),
        ("box", spaces.Box(-1, 1, (2,))),
        ("tools", spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Discrete(2)])),
    ]
)
SPACES = {
    "discrete": spaces.Discrete(5, start=3),
    "multi": spaces.MultiDiscrete([3, 4]),
    "nested": NESTED,
}


def known_mask(sizes: tuple[int, ...], seed: int, step: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return the mask of a step, ``[choices]`` int8, with an option for each choice."""
    draws = np.random.default_rng([seed % 2**31, step])
    parts = []
    for size in sizes:
        part = draws.random(size) < 0.4
        part[draws.integers(size)] = True
        parts.append(part)
    return np.concatenate(parts).astype(np.int8)


class CheckingEnv(gymnasium.Env[Any, Any]):
    """Raises on an invalid action; observes its seed and the steps since it was seeded.

    Args:
        actions: One of `SPACES`.
        source: ``key``, ``info`` or ``method``.
        length: Length of an episode in steps.
        empty_at: Step since seeding at which no action is valid; never by default.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        actions: str = "discrete",
        source: str = "key",
        length: int = 7,
        empty_at: int = -1,
        render_mode: str | None = None,
    ) -> None:
        self.action_space, self.source = SPACES[actions], source
        self.length, self.empty_at, self.render_mode = length, empty_at, render_mode
        self.sizes = num_choices(self.action_space)
        plain = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space: spaces.Space[Any] = plain
        if source == "key":
            mask = spaces.Box(0, 1, (sum(self.sizes),), np.int8)
            self.observation_space = spaces.Dict(action_mask=mask, seen=plain)
        if source == "method":
            self.action_masks = self._mask
        self._seed, self._step, self._in_episode = 0, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._step = seed, 0
        self._in_episode = 0
        return self._observed(), self._info()

    def step(self, action: Any) -> Any:
        self._check(action)
        self._step += 1
        self._in_episode += 1
        ended = self._in_episode >= self.length
        return self._observed(), 1.0, ended and self._seed % 2 == 0, ended, self._info()

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)

    def _mask(self) -> Any:
        mask = known_mask(self.sizes, self._seed, self._step)
        return mask * (self._step != self.empty_at)

    def _check(self, action: Any) -> None:
        mask, start = self._mask(), 0
        chosen = list(options(self.action_space, action))
        assert len(chosen) == len(self.sizes)
        for size, option in zip(self.sizes, chosen, strict=True):
            if not mask[start + option]:
                raise RuntimeError(f"the action {action} is invalid")
            start += size

    def _observed(self) -> Any:
        seen = np.array([self._seed % 1000 / 1000, self._step / 100], np.float32)
        return {"action_mask": self._mask(), "seen": seen} if self.source == "key" else seen

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._mask()} if self.source == "info" else {}


def options(space: spaces.Space[Any], action: Any) -> list[int]:
    """Return the chosen options of an action of an environment, counted from 0."""
    found: list[int] = []
    for leaf, part in zip(leaves(space).values(), flatten(space, action), strict=True):
        if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete):
            found += (np.asarray(part) - leaf.start).ravel().tolist()
    return found


def make_vector(
    num_envs: int, actions: str = "discrete", source: str = "info", mode: str = "SameStep"
) -> SyncVectorEnv:
    """Return a gymnasium vector environment."""
    return SyncVectorEnv(
        [lambda: CheckingEnv(actions, source) for _ in range(num_envs)], autoreset_mode=mode
    )
