"""What each cell of the view shows, as numbers: its material and the sprite of its object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.compiled import compiled, int64
from fastrl.envs.crafter_native.player import RIPE_AGE
from fastrl.envs.crafter_native.state import World
from fastrl.envs.crafter_native.textures import SPRITES, Geometry

_COW, _ZOMBIE, _SKELETON, _PLANT, _RIPE, _ARROW, _PLAYER, _ASLEEP = map(
    SPRITES.index,
    (
        *("cow", "zombie", "skeleton", "plant", "plant-ripe"),
        *("arrow-left", "player-left", "player-sleep"),
    ),
)


@compiled
def draw_map(here: World, layout: Geometry, cells: NDArray[np.uint8]) -> None:
    """Write the symbols of all cells in view into ``cells``, ``[rows, columns, 2] uint8``."""
    player = here.objects[world.PLAYER_INDEX]
    columns, rows = layout.grid
    for row in range(rows):
        for column in range(columns):
            x = player.x + column - columns // 2
            y = player.y + row - rows // 2
            material, sprite = symbols_at(here, x, y)
            cells[row, column, 0] = material
            cells[row, column, 1] = sprite


@compiled
def symbols_at(here: World, x: int, y: int) -> tuple[int, int]:
    """Return the material of a cell, and which of `SPRITES` shows the object on it."""
    if not world.inside(here, x, y):
        return rules.OUTSIDE, 0
    return int64(here.material[x, y]), _sprite_at(here, x, y)


@compiled
def _sprite_at(here: World, x: int, y: int) -> int:
    """Return which of `SPRITES` shows the object on a cell of the world."""
    thing = here.objects[here.object_at[x, y]]
    kind = thing.kind
    if kind == 0:
        return 0
    if kind == rules.PLAYER:
        if here.record.sleeping:
            return _ASLEEP
        return _PLAYER + _direction(here.record.facing_x, here.record.facing_y)
    if kind == rules.ARROW:
        return _ARROW + _direction(thing.facing_x, thing.facing_y)
    if kind == rules.PLANT:
        return _RIPE if thing.timer > RIPE_AGE else _PLANT
    if kind == rules.COW:
        return _COW
    return _ZOMBIE if kind == rules.ZOMBIE else _SKELETON


@compiled
def _direction(dx: int, dy: int) -> int:
    """Return left, right, up or down as 0 to 3."""
    if dx != 0:
        return 1 if dx > 0 else 0
    return 3 if dy > 0 else 2
