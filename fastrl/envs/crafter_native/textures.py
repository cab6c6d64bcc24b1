"""Pictures of everything that a cell of the view can show, drawn by the installed ``crafter``."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from crafter import constants, engine
from numpy.typing import NDArray

from fastrl.envs.crafter_native.rules import ITEM_MAX, ITEMS, MATERIALS, OUTSIDE, material_id
from fastrl.errors import EnvError

SPRITES = (
    *("", "cow", "zombie", "skeleton", "plant", "plant-ripe"),
    *("arrow-left", "arrow-right", "arrow-up", "arrow-down"),
    *("player-left", "player-right", "player-up", "player-down", "player-sleep"),
)
"""Textures of objects; the first is none."""

_OUTSIDE_COLOR = 127
_VIGNETTE_WIDTH = 0.5
_MAX_AMOUNT = 9

Pair = tuple[int, int]


class _Subject:
    """The attributes of objects, and of the player, that the original's camera reads."""

    def __init__(self, texture: str = "") -> None:
        self.pos = (0, 0)
        self.texture = texture
        self.sleeping = False


class Geometry(NamedTuple):
    """Layout of the image; pairs are (x, y)."""

    size: Pair  # width and height of the image, in pixels
    unit: Pair  # width and height of a cell, in pixels
    border: Pair  # black pixels left of and above the view
    grid: Pair  # columns and rows of cells of the world
    item_rows: int  # rows of cells of the inventory, below them


class Pictures(NamedTuple):
    """Pixels of every cell that can be shown; rows are top to bottom, pixels red, green, blue."""

    # ``[materials, sprites, unit_y, 3 * unit_x] uint8``, before light and sleep.
    cells: NDArray[np.uint8]
    # ``[items, amounts, unit_y, 3 * unit_x] uint8``; black for an amount of 0.
    items: NDArray[np.uint8]
    # ``[view_y, view_x] float64``: weight of the night's noise in each pixel.
    vignette: NDArray[np.float64]


def geometry(view: Pair, size: Pair) -> Geometry:
    """Return the original's layout of a view in an image.

    Raises:
        EnvError: The view has no row for the world, or the image no pixel for a cell.
    """
    item_rows = -(-len(ITEMS) // view[0])
    if view[1] <= item_rows:
        raise EnvError(
            f"view={view}: the inventory takes {item_rows} of {view[1]} rows; the view must be "
            "higher than that"
        )
    unit = (size[0] // view[0], size[1] // view[1])
    # The number of an item is drawn at 0.6 of a cell, which must be at least a pixel.
    if min(unit) < 2:
        raise EnvError(f"size={size} is too small for view={view}: a cell needs 2 pixels each way")
    border = ((size[0] - unit[0] * view[0]) // 2, (size[1] - unit[1] * view[1]) // 2)
    return Geometry(size, unit, border, (view[0], view[1] - item_rows), item_rows)


@cache
def draw_pictures(layout: Geometry) -> Pictures:
    """Draw all cells with the original's code and textures, once in a process."""
    textures = engine.Textures(constants.root / "assets")
    return Pictures(
        cells=_draw_cells(textures, layout.unit),
        items=_draw_items(textures, layout),
        vignette=_vignette(layout),
    )


def _draw_cells(textures: Any, unit: Pair) -> NDArray[np.uint8]:
    shape = (len(MATERIALS) + 1, len(SPRITES), unit[1], 3 * unit[0])
    cells = np.full(shape, _OUTSIDE_COLOR, np.uint8)
    for material in MATERIALS:
        for index, sprite in enumerate(SPRITES):
            pixels = _draw_cell(textures, unit, material, sprite)
            cells[material_id(material), index] = pixels.reshape(shape[2:])
    assert (cells[OUTSIDE] == _OUTSIDE_COLOR).all()
    return cells


def _draw_cell(textures: Any, unit: Pair, material: str, sprite: str) -> NDArray[np.uint8]:
    """Return ``[unit_y, unit_x, 3]``: a cell in full daylight, which changes no pixel."""
    world = engine.World((1, 1), constants.materials, (1, 1))
    world.daylight = 1.0
    world[0, 0] = material
    if sprite:
        world.add(_Subject(sprite))
    pixels = engine.LocalView(world, textures, (1, 1))(_Subject(), unit)
    return np.asarray(pixels).astype(np.uint8).transpose(1, 0, 2)


def _draw_items(textures: Any, layout: Geometry) -> NDArray[np.uint8]:
    columns, (width, height) = layout.grid[0], layout.unit
    draw = engine.ItemView(textures, (columns, layout.item_rows))
    items = np.zeros((len(ITEMS), _MAX_AMOUNT + 1, height, 3 * width), np.uint8)
    for index, name in enumerate(ITEMS):
        x, y = index % columns * width, index // columns * height
        for amount in range(1, min(int(ITEM_MAX[index]), _MAX_AMOUNT) + 1):
            # The original rounds positions in the whole view, so the whole view is drawn.
            inventory = {each: amount if each == name else 0 for each in ITEMS}
            pixels = draw(inventory, layout.unit)[x : x + width, y : y + height]
            items[index, amount] = pixels.transpose(1, 0, 2).reshape(height, 3 * width)
    return items


def _vignette(layout: Geometry) -> NDArray[np.float64]:
    width, height = (cells * pixels for cells, pixels in zip(layout.grid, layout.unit, strict=True))
    xs, ys = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    return 1 - np.exp(-0.5 * (xs**2 + ys**2) / (_VIGNETTE_WIDTH**2))
