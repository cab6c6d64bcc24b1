"""Draws the pictures of Crafter's renderer, pixel for pixel, from cached tiles.

What a cell of the picture shows depends only on its material, the creature on it, the daylight and
whether the player sleeps; only at night noise lies over the whole. So each tile is drawn and lit
once, by Crafter's own functions, and by day a picture is one look-up.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from crafter import constants, engine
from numpy.typing import NDArray

_KEPT = 1024
"""Daylights, and inventories, whose tiles are kept: 3 to 6 KB each."""

Pixels = NDArray[np.uint8]


class CrafterView:
    """Draws pictures of one size; shared by all environments of a process.

    Pictures are ``[y, x, 3]``, as observations are; tiles and what Crafter draws are ``[x, y, 3]``.
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
        # creatures as they are met.
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
