"""n Crafter worlds behind `BatchedEnv`, stepped by one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import at_least_one, instance
from fastrl.envs.batched_env import BatchShapes, Rows, StepViews
from fastrl.envs.crafter_native import rules
from fastrl.envs.crafter_native.options import LARGEST, CrafterOptions
from fastrl.envs.crafter_native.picture import render_scratch
from fastrl.envs.crafter_native.textures import SPRITES, Geometry, draw_pictures, geometry
from fastrl.envs.crafter_native.world import PLAYER_INDEX, allocate, load, saved
from fastrl.envs.crafter_native.world_kernels import (
    Game,
    Screens,
    StepResults,
    load_kernels,
    reset_worlds,
    step_worlds,
)
from fastrl.envs.crafter_native.worldgen import world_scratch
from fastrl.envs.state import State, fitting, fitting_list
from fastrl.errors import EnvError
from fastrl.spec import EnvSpec

ID = "fastrl/Crafter-v1"
EPISODE_INFO = tuple(f"achievements/{name}" for name in rules.ACHIEVEMENTS)
"""Names of the achievements' counts."""
_DAY = 300


class CrafterBatch:
    """n Crafter worlds (Hafner, 2021) with the observations of the original.

    With the same seed and actions, pixels, rewards, inventories, achievements, positions and ends
    equal those of ``crafter.Env``, except that the original keeps creatures in sets, whose order
    depends on memory addresses, so that two processes with one seed diverge; here they are in the
    order in which they were added to their chunk.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments, n.
        exact: Rewards may be of any floating dtype; see `BatchedEnv`.
    """

    exact = True

    def __init__(self, num_envs: int, options: CrafterOptions | None = None) -> None:
        """Draw the textures, allocate the worlds and compile the kernels.

        The first start on a machine compiles (about 20 s), later ones load from the disk.

        Args:
            num_envs: Number of environments, n.
            options: Options of the worlds; the original's defaults if None.

        Raises:
            EnvError: The view and the image do not fit together.
        """
        options = instance("options", options or CrafterOptions(), CrafterOptions)
        self.num_envs = at_least_one("num_envs", num_envs)
        layout = geometry(options.view, options.size)
        self.spec = _spec(options, layout)
        self._shapes = BatchShapes(self.spec, num_envs)
        self._dtypes = [leaf.numpy_dtype for leaf in self.spec.observation.values()]
        self._rewarded = options.reward
        self._symbolic = options.symbolic
        self._row = (options.size[1], 3 * options.size[0])
        self._worlds = allocate(num_envs, options.area)
        pictures = draw_pictures(layout)
        self._game = Game(
            reach=2 * max(options.view),
            length=options.length or LARGEST,
            daylight=_daylight(1000),
            symbolic=options.symbolic,
            layout=layout,
            pictures=pictures,
            render_scratch=render_scratch(pictures),
            world_scratch=world_scratch(options.area),
        )
        self._outcome = StepResults(
            reward=np.zeros(num_envs),
            terminated=np.zeros(num_envs, np.bool_),
            truncated=np.zeros(num_envs, np.bool_),
        )
        # Infos at the end of each world's last finished episode.
        self._final = {name: np.zeros_like(each) for name, each in self._now().items()}
        self._actions = np.zeros(num_envs, np.int64)
        self._seeds: list[int] = []
        # Numbers of the next episodes.
        self._episodes: list[int] = []
        # Upper bound of the steps of any world in its episode.
        self._most_steps = 0
        load_kernels(self._worlds, self._game, self._outcome, self._screens(()))

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`.

        Environment i equals ``crafter.Env(seed=seeds[i])`` after ``reset``, and its later
        episodes equal the following ones there.

        Raises:
            EnvError: There is not one seed per environment.
        """
        self._shapes.check_seeds(seeds)
        self._seeds = [int(seed) for seed in seeds]
        self._episodes = [1] * self.num_envs
        self._final["achievements"][:] = 0
        self.restart(observation)

    def restart(
        self,
        observation: Rows,
        chosen: NDArray[np.bool_] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Start the next episode, as ``crafter.Env.reset`` does.

        Args:
            observation: Written for environments whose episode starts.
            chosen: ``[n]``: environments to start; all by default.
            seeds: One for each chosen environment, whose first episode starts.

        Raises:
            EnvError: The environments were never reset, or an array is invalid.
        """
        self._check_seeded()
        self._shapes.check_restart(observation, chosen)
        which = np.flatnonzero(np.ones(self.num_envs) if chosen is None else chosen).tolist()
        for index, seed in zip(which, seeds or (), strict=seeds is not None):
            self._seeds[index], self._episodes[index] = int(seed), 1
        self._begin(which, observation)

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step` and `advance`."""
        self.advance(views, restart=True)

    def advance(self, views: StepViews, *, restart: bool) -> None:
        """Step every environment once.

        Args:
            views: See `StepViews`. If an episode ended and the next has not begun, the
                observation is the final one.
            restart: Begin the next episode if one is done. Otherwise call `restart`.

        Raises:
            EnvError: An action is not one of the 17; the error names its environment, and none was
                stepped. Or the environments were never reset, or the views are invalid.
        """
        self._check_seeded()
        self._shapes.check_views(views)
        if views.action[0].dtype.kind not in "iu":
            raise EnvError(f"actions are of dtype {views.action[0].dtype}; expected int64")
        self._see_ahead()
        np.copyto(self._actions, views.action[0], casting="unsafe")
        rows = tuple(map(np.ascontiguousarray, views.observation))
        outcome = self._outcome
        screens = self._screens(rows)
        ended = step_worlds(self._worlds, self._game, self._actions, outcome, screens)
        if ended < 0:
            index = -1 - ended
            raise EnvError(
                f"env {index} of '{self.spec.id}': action {self._actions[index]} is not one of "
                f"0 to {rules.NUM_ACTIONS - 1}"
            )
        _copy_back(rows, views.observation)
        views.reward[:] = outcome.reward if self._rewarded else 0.0
        views.terminated[:] = outcome.terminated
        views.truncated[:] = outcome.truncated
        if ended and restart:
            over = np.flatnonzero(outcome.terminated | outcome.truncated)
            for name, now in self._now().items():
                self._final[name][over] = now[over]
            if views.episode_info is not None:
                views.episode_info[over] = self._final["achievements"][over]
            for final, seen in zip(views.final_observation, views.observation, strict=True):
                final[over] = seen[over]
            self._begin(over.tolist(), views.observation)

    def info(self) -> dict[str, NDArray[Any]]:
        """Return infos of the last step and of the worlds, one row per environment.

        ``reward`` (also if steps are not rewarded); of the current episode ``achievements`` and
        ``inventory``, counts in crafter's order, ``player_pos`` (x, y) and ``steps``; and at the
        end of the last finished one: ``final_achievements``, ``final_inventory`` and
        ``final_player_pos``.
        """
        return {
            "reward": self._outcome.reward.copy(),
            **{f"final_{name}": each.copy() for name, each in self._final.items()},
            **{name: each.copy() for name, each in self._now().items()},
            "steps": self._worlds.record["steps"].copy(),  # type: ignore[index]
        }

    def semantic(self) -> NDArray[np.uint8]:
        """Return the original's map of materials and creatures, ``[n, width, height]``."""
        worlds = self._worlds
        maps = worlds.material.copy()
        envs, xs, ys = worlds.object_at.nonzero()
        kinds = worlds.objects["kind"][envs, worlds.object_at[envs, xs, ys]]
        maps[envs, xs, ys] = rules.NUM_MATERIALS - 1 + kinds
        return maps

    def get_state(self) -> State:
        """Return the state on which later steps and infos depend; see `fastrl.envs.state`."""
        return {
            "worlds": saved(self._worlds),
            "outcome": {name: each.copy() for name, each in self._results().items()},
            "seeds": list(self._seeds),
            "episodes": list(self._episodes),
        }

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`, after a reset.

        Raises:
            StateError: It belongs to other worlds.
        """
        results = self._results()
        pairs = [(fitting(state["outcome"], name, each), each) for name, each in results.items()]
        seeds, episodes = (
            fitting_list(state, name, int, self.num_envs) for name in ("seeds", "episodes")
        )
        load(self._worlds, state["worlds"])
        for found, live in pairs:
            live[...] = found
        self._seeds, self._episodes = seeds, episodes
        self._most_steps = int(self._worlds.record["steps"].max())  # type: ignore[index]

    def close(self) -> None:
        """Do nothing: there is only memory to free."""

    def _check_seeded(self) -> None:
        if not self._seeds:
            raise EnvError(f"'{self.spec.id}' must be reset with seeds before anything else")

    def _begin(self, which: list[int], observation: Rows) -> None:
        """Start the next episode of some environments, from the seed that the original takes."""
        starting = np.full(self.num_envs, -1)
        for index in which:
            starting[index] = hash((self._seeds[index], self._episodes[index])) % LARGEST
            self._episodes[index] += 1
        if len(which) == self.num_envs:
            self._most_steps = 0
        rows = tuple(map(np.ascontiguousarray, observation))
        reset_worlds(self._worlds, self._game, starting, self._screens(rows))
        _copy_back(rows, observation)

    def _now(self) -> dict[str, NDArray[np.int32]]:
        """Return infos of the worlds."""
        worlds = self._worlds
        player = worlds.objects[:, PLAYER_INDEX]
        return {
            "achievements": worlds.achievements,
            "inventory": worlds.inventory,
            "player_pos": np.stack([player["x"], player["y"]], axis=1),
        }

    def _results(self) -> dict[str, NDArray[Any]]:
        return {**self._outcome._asdict(), **self._final}

    def _see_ahead(self) -> None:
        """Compute the daylight for the next step."""
        self._most_steps += 1
        if self._most_steps < len(self._game.daylight):
            return
        self._most_steps = 1 + int(self._worlds.record["steps"].max())  # type: ignore[index]
        if self._most_steps >= len(self._game.daylight):
            # A power of two, so that a process computes few tables.
            steps = 2 << self._most_steps.bit_length()
            self._game = self._game._replace(daylight=_daylight(steps))

    def _screens(self, rows: Rows) -> Screens:
        """Return rows in the types of the kernels, which are the same for pixels and symbols.

        Raises:
            EnvError: They have another dtype.
        """
        found = [leaf.dtype for leaf in rows]
        if rows and found != self._dtypes:
            raise EnvError(f"'{self.spec.id}' writes observations {self._dtypes}, got {found}")
        image, shown = _NO_IMAGES, (_NO_INVENTORY, _NO_MAPS, _NO_DAYLIGHT)
        if rows and self._symbolic:
            daylight, inventory, cells = rows
            shown = (inventory, cells, daylight)
        elif rows:
            image = rows[0].reshape(self.num_envs, *self._row)
        return Screens(image=image, inventory=shown[0], map=shown[1], daylight=shown[2])


_NO_IMAGES = np.zeros((0, 0, 0), np.uint8)
_NO_MAPS = np.zeros((0, 0, 0, 2), np.uint8)
_NO_INVENTORY = np.zeros((0, rules.NUM_ITEMS), np.uint8)
_NO_DAYLIGHT = np.zeros((0, 1), np.float32)


def _copy_back(contiguous: Rows, rows: Rows) -> None:
    """Copy results to rows that were not contiguous."""
    for source, target in zip(contiguous, rows, strict=True):
        if source is not target:
            target[:] = source


def _spec(options: CrafterOptions, layout: Geometry) -> EnvSpec:
    observation: spaces.Space[Any]
    if options.symbolic:
        columns, rows = layout.grid
        symbols = np.empty((rows, columns, 2), np.uint8)
        symbols[:] = (rules.NUM_MATERIALS - 1, len(SPRITES) - 1)
        observation = spaces.Dict(
            {
                "daylight": spaces.Box(0, 1, (1,), np.float32),
                "inventory": spaces.Box(0, rules.ITEM_MAX.astype(np.uint8), dtype=np.uint8),
                "map": spaces.Box(np.zeros_like(symbols), symbols, dtype=np.uint8),
            }
        )
    else:
        observation = spaces.Box(0, 255, (options.size[1], options.size[0], 3), np.uint8)
    actions = spaces.Discrete(rules.NUM_ACTIONS)
    return EnvSpec(ID, observation, actions, options.length or None, EPISODE_INFO)


@cache
def _daylight(steps: int) -> NDArray[np.float64]:
    """Return the light before each step, ``[steps]``, between 0 and 1.

    Each value is computed by the original's expression on NumPy scalars
    (https://www.desmos.com/calculator/grfbc6rs3h): a compiled cosine may differ in the last bit,
    and pixels are truncated, not rounded, so one bit can change them.
    """
    return np.array([_light(step) for step in range(steps)])


def _light(step: int) -> float:
    progress = (step / _DAY) % 1 + 0.3
    return float(1 - np.abs(np.cos(np.pi * progress)) ** 3)
