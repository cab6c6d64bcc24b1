"""Crafter (Hafner, 2021) as a gymnasium environment, replayable from its seed.

The original follows old gym and reports death and the time limit alike. Its creatures live in sets
of objects, whose order depends on memory addresses, so two processes with one seed diverge; here
they are kept in order. It also draws a semantic map in every step, which is left out unless asked,
draws tiles that it has drawn before, and measures in every step how far each creature of the world
is from the player. The rules, the random stream and every pixel are the original's.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import crafter
import gymnasium
import numpy as np
from crafter import constants, engine
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.envs.crafter_view import crafter_view
from fastrl.errors import EnvError


class CrafterEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One Crafter world.

    Observations are ``[height, width, 3] uint8`` images, actions ``Discrete(17)``. The episode
    terminates with the player's death and is truncated after ``length`` steps. ``info`` holds
    ``achievements`` and ``inventory`` (name to count), ``player_pos``, ``discount`` (0 at death),
    ``reward`` and, with that option, the map ``semantic``.

    ``reset(seed=s)`` starts the worlds that ``crafter.Env(seed=s)`` goes through, from the first.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "episode_info": tuple(f"achievements/{name}" for name in constants.achievements),
    }

    def __init__(
        self,
        *,
        size: tuple[int, int] = (64, 64),
        length: int | None = 10_000,
        semantic: bool = False,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the game.

        Args:
            size: Width and height of the image.
            length: Time limit in steps; None for none.
            semantic: Whether ``info["semantic"]`` holds the map of materials and creatures.
            render_mode: ``rgb_array`` or None.
            **kwargs: ``area``, ``view`` and ``reward`` of ``crafter.Env``.
        """
        self.render_mode = render_mode
        self._semantic = semantic
        self._game = _OrderedGame(semantic, size=tuple(size), length=length, seed=0, **kwargs)
        self._seeded = False
        self._frame: NDArray[np.uint8] | None = None
        self.observation_space = spaces.Box(0, 255, (*size[::-1], 3), np.uint8)
        self.action_space = spaces.Discrete(len(constants.actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the next world; with a seed, the first one of that seed."""
        super().reset(seed=seed, options=options)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31 - 1))
        if seed is not None:
            self._game.start_over(seed)
            self._seeded = True
        frame: NDArray[np.uint8] = self._game.reset()
        self._frame = frame
        return frame, {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one of the 17 actions.

        Raises:
            EnvError: It is outside the space; the original would count negative ones from the end.
        """
        if not 0 <= action < len(constants.actions):
            last = len(constants.actions) - 1
            raise EnvError(f"'Crafter-v1': action {action} is not one of 0 to {last}")
        frame, reward, over, info = self._game.step(action)
        self._frame = frame
        if not self._semantic:
            del info["semantic"]
        info["player_pos"] = info["player_pos"].copy()  # the game's own until the player moves
        terminated = info["discount"] == 0
        return frame, float(reward), terminated, bool(over) and not terminated, info

    def render(self) -> Any:
        """Return a copy of the last observation, where ``render_mode`` is ``rgb_array``.

        Drawing it anew would draw other noise at night, and move the game's random stream.
        """
        if self.render_mode != "rgb_array" or self._frame is None:
            return None
        return self._frame.copy()


class _OrderedSet(dict[Any, None]):
    """The part of a set that Crafter uses, iterated in the order of insertion."""

    def add(self, item: object) -> None:
        self[item] = None

    def remove(self, item: object) -> None:
        del self[item]


class _World(engine.World):  # type: ignore[misc]
    """A world whose chunks list their creatures in the order in which they came.

    Args:
        area: Columns and rows.
        reach: Creatures move where their distance from the player is below it.
    """

    def __init__(self, area: tuple[int, int], reach: int) -> None:
        self._reach = reach
        super().__init__(area, constants.materials, (12, 12))

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: defaultdict[Any, _OrderedSet] = defaultdict(_OrderedSet)

    @property
    def objects(self) -> list[Any]:
        """Return those that may move in this step, in the order in which they came.

        The game reads this before it moves any creature, and checks each distance again. The
        player, who came first, moves first, by one cell at most.
        """
        x, y = self._objects[1].pos.tolist()
        left, top = max(0, x - self._reach), max(0, y - self._reach)
        around = self._obj_map[left : x + self._reach + 1, top : y + self._reach + 1]
        xs, ys = around.nonzero()
        near = np.abs(xs + (left - x)) + np.abs(ys + (top - y)) <= self._reach
        return [self._objects[i] for i in sorted(around[xs[near], ys[near]].tolist())]


class _WholeWorld:
    """A world as the original's semantic map reads it: with the creatures that are far away."""

    def __init__(self, world: _World) -> None:
        self._world = world

    @property
    def _mat_map(self) -> NDArray[np.uint8]:
        materials: NDArray[np.uint8] = self._world._mat_map
        return materials

    @property
    def objects(self) -> list[Any]:
        return [thing for thing in self._world._objects if thing]


class _OrderedGame(crafter.Env):  # type: ignore[misc]
    """The original game on an ordered world and a faster canvas."""

    _sem_view: Any

    def __init__(self, semantic: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._world = _World(self._area, reach=2 * int(max(self._view)))
        self._sem_view._world = _WholeWorld(self._world)
        if not semantic:
            self._sem_view = lambda: None
        self._draw = crafter_view(tuple(self._view.tolist()), tuple(self._size.tolist()))

    def start_over(self, seed: int) -> None:
        self._seed, self._episode = seed, 0

    def _obs(self) -> NDArray[np.uint8]:
        return self._draw(self._world, self._player)
