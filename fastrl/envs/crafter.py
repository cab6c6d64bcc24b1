"""Crafter (Hafner, 2021) as a gymnasium environment, replayable from its seed.

The original follows old gym and reports death and the time limit in the same way. Its creatures
are in sets of objects, whose order depends on memory addresses, so two processes with one seed
diverge; here they are ordered. The original also draws a semantic map in every step, which is
optional here, draws tiles again that it has drawn before, and measures the distance of every
creature from the player in every step. The rules, the random stream and every pixel are the same.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import SimpleNamespace
from typing import Any

import crafter
import gymnasium
import numpy as np
from crafter import constants, engine
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import brief, is_whole, nearest_or_all, one_of
from fastrl.errors import EnvError

_KEPT = 1024
"""Number of daylights, and of inventories, whose tiles are cached: 3 to 6 KB each."""

Pixels = NDArray[np.uint8]
Pair = tuple[int, int]
LARGEST = 2**31 - 1
"""Greatest time limit in steps: worlds count them in int32."""
_GREATEST_SIDE = 2**14


@dataclass(frozen=True)
class CrafterOptions:
    """The options of ``crafter.Env`` for a world, with its defaults, and ``symbolic``.

    Attributes:
        area: Width and height of the world, in cells.
        view: Columns and rows of cells in the image, including the rows of the inventory; one
            number stands for both.
        size: Width and height of the image, in pixels; one number stands for both.
        reward: Whether steps are rewarded; else all rewards are 0.
        length: Steps after which an episode is truncated; None or 0 for none.
        symbolic: Observe numbers instead of pixels: ``map``, ``[rows, columns, 2] uint8``, contains
            for each cell in view its material (1 to 12 in the order of crafter's list, 0 beyond
            the world) and the object on it (its position in ``SPRITES`` of
            `fastrl.envs.crafter_native.textures`, which also shows the direction of the player and
            whether it sleeps); ``inventory``, ``[16] uint8``, the items in the order of crafter's
            list; ``daylight``, ``[1] float32``, 0 to 1. The world is the same as with pixels, but
            at night nothing is hidden.
    """

    area: Pair = (64, 64)
    view: Pair = (9, 9)
    size: Pair = (64, 64)
    reward: bool = True
    length: int | None = 10_000
    symbolic: bool = False

    @classmethod
    def of(cls, **options: Any) -> CrafterOptions:
        """Check the options of a user, and return them.

        Raises:
            EnvError: There is no such option, or its value is impossible.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise EnvError(f"Crafter has no option '{name}'{nearest_or_all(name, known)}")
        for name in ("area", "view", "size"):
            if name in options:
                options[name] = _pair(name, options[name])
        for name in ("reward", "symbolic"):
            if not isinstance(options.get(name, True), bool):
                raise EnvError(f"{name}={brief(options[name])}: must be true or false")
        length = options.get("length")
        if length is not None and (not is_whole(length) or not 0 <= length <= LARGEST):
            raise EnvError(
                f"length={brief(length)}: must be a number of steps up to {LARGEST:,}, or null for "
                "no limit"
            )
        return cls(**options)


def _pair(name: str, value: Any) -> Pair:
    both = (value, value) if is_whole(value) and name != "area" else value
    is_pair = isinstance(both, Sequence | np.ndarray) and all(map(is_whole, both))
    if not is_pair or len(both) != 2 or min(both) < 1 or max(both) > _GREATEST_SIDE:
        raise EnvError(
            f"{name}={brief(value)}: must be two whole numbers from 1 to {_GREATEST_SIDE:,}, width "
            "and height"
        )
    return int(both[0]), int(both[1])


class CrafterEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """One Crafter world.

    Observations are ``[height, width, 3] uint8`` images, actions ``Discrete(17)``. The episode
    terminates with the player's death and is truncated after ``length`` steps. ``info`` holds
    ``achievements`` and ``inventory`` (name to count), ``player_pos``, ``discount`` (0 at death),
    ``reward`` and, with that option, the map ``semantic``.

    ``reset(seed=s)`` starts the sequence of worlds of ``crafter.Env(seed=s)``.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "episode_info": tuple(f"achievements/{name}" for name in constants.achievements),
    }

    def __init__(
        self, *, semantic: bool = False, render_mode: str | None = None, **options: Any
    ) -> None:
        """Create the game.

        Args:
            semantic: Whether ``info["semantic"]`` contains the map of materials and creatures.
            render_mode: ``rgb_array`` or None.
            **options: Those of `CrafterOptions`, but ``symbolic``.

        Raises:
            ArgumentError: The render mode is unknown.
            EnvError: There is no such option, its value is impossible, or symbols are requested.
        """
        self.render_mode = one_of("render_mode", render_mode, ("rgb_array", None))
        chosen = CrafterOptions.of(**options)
        if chosen.symbolic:
            raise EnvError("'fastrl/Crafter-v1' with symbolic=True comes in batches only")
        self._semantic = semantic
        game = {name: value for name, value in vars(chosen).items() if name != "symbolic"}
        self._game = _OrderedGame(semantic, seed=0, **game)
        self._seeded = False
        self._frame: NDArray[np.uint8] | None = None
        self.observation_space = spaces.Box(0, 255, (*chosen.size[::-1], 3), np.uint8)
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
        """Step once with one of the 17 actions.

        Raises:
            EnvError: It is outside of the space; the original would count negative ones from the
                end.
        """
        if not 0 <= action < len(constants.actions):
            last = len(constants.actions) - 1
            raise EnvError(f"'Crafter-v1': action {action} is not one of 0 to {last}")
        frame, reward, over, info = self._game.step(action)
        self._frame = frame
        if not self._semantic:
            del info["semantic"]
        info["player_pos"] = info["player_pos"].copy()  # the game changes it
        terminated = info["discount"] == 0
        return frame, float(reward), terminated, bool(over) and not terminated, info

    def render(self) -> Any:
        """Return a copy of the last observation, if ``render_mode`` is ``rgb_array``.

        A new drawing would have other noise at night, and advance the game's random stream.
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
    """A world whose chunks list their creatures in the order in which they were added.

    Args:
        area: Columns and rows.
        reach: Creatures move if their distance from the player is smaller.
    """

    def __init__(self, area: tuple[int, int], reach: int) -> None:
        self._reach = reach
        super().__init__(area, constants.materials, (12, 12))

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._chunks: defaultdict[Any, _OrderedSet] = defaultdict(_OrderedSet)

    @property
    def objects(self) -> list[Any]:
        """Return creatures that may move in this step, in the order in which they were added.

        The game reads this before it moves any creature, and checks each distance again. The
        player, who was added first, moves first, by at most one cell.
        """
        x, y = self._objects[1].pos.tolist()
        left, top = max(0, x - self._reach), max(0, y - self._reach)
        around = self._obj_map[left : x + self._reach + 1, top : y + self._reach + 1]
        xs, ys = around.nonzero()
        near = np.abs(xs + (left - x)) + np.abs(ys + (top - y)) <= self._reach
        return [self._objects[i] for i in sorted(around[xs[near], ys[near]].tolist())]


class _WholeWorld:
    """A world for the original's semantic map, which includes distant creatures."""

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


class CrafterView:
    """Draws the pictures of Crafter's renderer, pixel for pixel, from cached tiles of one size.

    A cell of the picture depends only on its material, its creature, the daylight and whether the
    player sleeps; at night noise covers the whole picture. So each tile is drawn and lit once, by
    Crafter's own functions, and by day a picture is one look-up. All environments of a process
    share a view.

    Pictures are ``[y, x, 3]``, like observations; tiles and Crafter's drawings are ``[x, y, 3]``.
    """

    def __init__(self, view: tuple[int, int], size: tuple[int, int]) -> None:
        """Draw the tiles of all materials.

        ``view`` are columns and rows of tiles, the inventory's included; ``size`` is in pixels.
        """
        columns, rows = view
        item_rows = -(-len(constants.items) // columns)
        self._grid = (columns, rows - item_rows)
        self._size = size
        self._unit = np.array(size) // view
        self._textures = engine.Textures(constants.root / "assets")
        self._draw_items = engine.ItemView(self._textures, [columns, item_rows])
        self._lighting = engine.LocalView(SimpleNamespace(area=(1, 1)), self._textures, self._grid)
        # Tile k shows material k of the world; then come the void beyond the world's edge, and
        # creatures when they first appear.
        names = (None, *constants.materials)
        tiles = [self._textures.get(name, self._unit)[..., :3] for name in names]
        self._void = len(tiles)
        self._tiles = np.stack([*tiles, np.full_like(tiles[0], 127)])
        self._creature_tiles: dict[tuple[int, str], int] = {}
        self._lit: OrderedDict[tuple[float, bool], Pixels] = OrderedDict()
        self._inventories: OrderedDict[tuple[int, ...], Pixels] = OrderedDict()

    def __call__(self, world: engine.World, player: Any) -> Pixels:
        """Return a new picture ``[height, width, 3]`` of what ``player`` sees and has."""
        seen = self._tiles_in_view(world, player)
        daylight, asleep = float(world.daylight), bool(player.sleeping)
        if daylight < 0.5:
            scene = self._light(_assemble(self._tiles[seen]), daylight, asleep, world)
        else:
            scene = _assemble(self._lit_tiles(daylight, asleep)[seen])
        items = self._inventory(player.inventory)
        width, height = scene.shape[0], scene.shape[1] + items.shape[1]
        left, top = (self._size[0] - width) // 2, (self._size[1] - height) // 2
        picture = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        inside = picture.transpose(1, 0, 2)[left : left + width, top : top + height]
        inside[:, : scene.shape[1]] = scene
        inside[:, scene.shape[1] :] = items
        return picture

    def _tiles_in_view(self, world: engine.World, player: Any) -> NDArray[np.intp]:
        columns, rows = self._grid
        left, top = int(player.pos[0]) - columns // 2, int(player.pos[1]) - rows // 2
        inside = (
            slice(max(0, left), max(0, left + columns)),
            slice(max(0, top), max(0, top + rows)),
        )
        materials, creatures = world._mat_map[inside], world._obj_map[inside]
        shown: NDArray[np.intp] = materials.astype(np.intp)
        for x, y in zip(*creatures.nonzero(), strict=True):
            texture = world._objects[creatures[x, y]].texture
            shown[x, y] = self._creature_tile(int(materials[x, y]), texture)
        if shown.shape == self._grid:
            return shown
        tiles = np.full(self._grid, self._void)
        x, y = max(0, -left), max(0, -top)
        tiles[x : x + shown.shape[0], y : y + shown.shape[1]] = shown
        return tiles

    def _creature_tile(self, material: int, texture: str) -> int:
        key = (material, texture)
        if key not in self._creature_tiles:
            self._creature_tiles[key] = len(self._tiles)
            tile = self._tiles[material].copy()
            engine._draw_alpha(tile, (0, 0), self._textures.get(texture, self._unit))
            self._tiles = np.concatenate([self._tiles, tile[None]])
        return self._creature_tiles[key]

    def _lit_tiles(self, daylight: float, asleep: bool) -> Pixels:
        key = (daylight, asleep)
        lit = self._lit.get(key)
        if lit is None or len(lit) < len(self._tiles):
            flat = self._tiles.reshape(-1, *self._tiles.shape[2:])
            lit = self._light(flat, daylight, asleep).reshape(self._tiles.shape)
            _keep(self._lit, key, lit)
        return lit

    def _light(
        self, colours: Pixels, daylight: float, asleep: bool, world: engine.World | None = None
    ) -> Pixels:
        self._lighting._world = world
        lit = self._lighting._light(colours, daylight)
        if asleep:
            lit = self._lighting._sleep(lit)
        return np.asarray(lit).astype(np.uint8)

    def _inventory(self, inventory: dict[str, int]) -> Pixels:
        key = tuple(inventory.values())
        drawn = self._inventories.get(key)
        if drawn is None:
            drawn = self._draw_items(inventory, self._unit)
            _keep(self._inventories, key, drawn)
        return drawn


@cache
def crafter_view(view: tuple[int, int], size: tuple[int, int]) -> CrafterView:
    """Return this process's view of these sizes; see `CrafterView`."""
    return CrafterView(view, size)


def _assemble(tiles: Pixels) -> Pixels:
    """Join ``[columns, rows, x, y, 3]`` to one picture ``[columns * x, rows * y, 3]``."""
    columns, rows, x, y, _ = tiles.shape
    return tiles.transpose(0, 2, 1, 3, 4).reshape(columns * x, rows * y, 3)


def _keep(kept: OrderedDict[Any, Pixels], key: object, drawn: Pixels) -> None:
    kept[key] = drawn
    if len(kept) > _KEPT:
        kept.popitem(last=False)
