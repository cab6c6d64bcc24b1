"""Draws the player's view: a picture of the cells around it and of its items, or their symbols.

At night, light is mixed with noise from the world's random stream, so drawing a picture advances
it. Arithmetic is that of the original and of its image library: float64, float32 for
blending colour with grey, and the integer weights of grey; fractions are truncated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.player import RIPE_AGE
from fastrl.envs.crafter_native.rng import Stream, fill_uniform, skip_uniform
from fastrl.envs.crafter_native.textures import SPRITES, Geometry, Pictures
from fastrl.envs.crafter_native.world import World
from fastrl.envs.crafter_native.world_compiler import compiled, float32, int32, int64, uint8

_DARK = 0.5
_NOISE_LOW, _NOISE_SPAN = 32.0, 95.0
_COLOR_LEFT = float32(0.4)
_NIGHT_GREEN, _NIGHT_BLUE, _SLEEP_BLUE = 0.5 * 16, 0.5 * 64, 16
_GREY_RED, _GREY_GREEN, _GREY_BLUE, _GREY_HALF = 19595, 38470, 7471, 0x8000

_COW, _ZOMBIE, _SKELETON, _PLANT, _RIPE, _ARROW, _PLAYER, _ASLEEP = map(
    SPRITES.index,
    (
        *("cow", "zombie", "skeleton", "plant", "plant-ripe"),
        *("arrow-left", "player-left", "player-sleep"),
    ),
)

Image = NDArray[np.uint8]


class RenderScratch(NamedTuple):
    """Temporary memory for drawing a picture."""

    noise: NDArray[np.float64]  # ``[view_y, view_x] float64``
    words: Stream  # ``[2 * view_x * view_y] uint32``


def render_scratch(pictures: Pictures) -> RenderScratch:
    """Return scratch for pictures of a size."""
    noise = np.zeros(pictures.vignette.shape)
    return RenderScratch(noise, np.zeros(2 * noise.size, np.uint32))


@compiled
def draw(
    here: World,
    daylight: float,
    layout: Geometry,
    pictures: Pictures,
    scratch: RenderScratch,
    image: Image,
) -> None:
    """Write the whole picture into ``image``, ``[height, 3 * width] uint8``."""
    _draw_border(layout, image)
    _draw_cells(here, layout, pictures, image)
    _draw_items(here, layout, pictures, image)
    height, width = pictures.vignette.shape
    left, top = 3 * layout.border[0], layout.border[1]
    if daylight < _DARK:
        fill_uniform(here.stream, _NOISE_LOW, _NOISE_SPAN, scratch.words, scratch.noise)
    for y in range(height):
        row = image[top + y, left : left + 3 * width]
        if daylight < _DARK:
            _light_night(row, scratch.noise[y], pictures.vignette[y], daylight)
        else:
            _light_day(row, daylight)
        if here.record.sleeping:
            _close_eyes(row)


@compiled
def skip_picture(here: World, daylight: float, layout: Geometry) -> None:
    """Advance the random stream as `draw` does."""
    if daylight < _DARK:
        cells = layout.grid[0] * layout.grid[1]
        skip_uniform(here.stream, cells * layout.unit[0] * layout.unit[1])


@compiled
def _draw_border(layout: Geometry, image: Image) -> None:
    """Blacken the pixels around the view."""
    left, top = 3 * layout.border[0], layout.border[1]
    right = left + 3 * layout.grid[0] * layout.unit[0]
    bottom = top + (layout.grid[1] + layout.item_rows) * layout.unit[1]
    image[:top] = 0
    image[bottom:] = 0
    for y in range(top, bottom):
        image[y, :left] = 0
        image[y, right:] = 0


@compiled
def _draw_cells(here: World, layout: Geometry, pictures: Pictures, image: Image) -> None:
    player = here.objects[world.PLAYER_INDEX]
    columns, rows = layout.grid
    for column in range(columns):
        for row in range(rows):
            x = player.x + column - columns // 2
            y = player.y + row - rows // 2
            material, sprite = symbols_at(here, x, y)
            _paste(pictures.cells[material, sprite], layout, column, row, image)


@compiled
def _draw_items(here: World, layout: Geometry, pictures: Pictures, image: Image) -> None:
    columns, rows = layout.grid
    for index in range(columns * layout.item_rows):
        # Cells after the last item are black, like an item that the player does not have.
        item = min(index, rules.NUM_ITEMS - 1)
        amount = int64(here.inventory[item]) if index == item else 0
        cell = pictures.items[item, amount]
        _paste(cell, layout, index % columns, rows + index // columns, image)


@compiled
def _paste(cell: Image, layout: Geometry, column: int, row: int, image: Image) -> None:
    left = 3 * (layout.border[0] + column * layout.unit[0])
    top = layout.border[1] + row * layout.unit[1]
    height, width = cell.shape
    for y in range(height):
        for x in range(width):
            image[top + y, left + x] = cell[y, x]


@compiled
def _light_day(row: Image, daylight: float) -> None:
    """Apply daylight to a row of pixels."""
    dark = 1 - daylight
    for pixel in range(len(row) // 3):
        red = int32(row[3 * pixel])
        green = int32(row[3 * pixel + 1])
        blue = int32(row[3 * pixel + 2])
        grey = _grey(red, green, blue)
        row[3 * pixel] = _mix(daylight, red, dark, _fade(red, grey))
        row[3 * pixel + 1] = _mix(daylight, green, dark, _fade(green, grey) + _NIGHT_GREEN)
        row[3 * pixel + 2] = _mix(daylight, blue, dark, _fade(blue, grey) + _NIGHT_BLUE)


@compiled
def _light_night(
    row: Image,
    noise: NDArray[np.float64],
    vignette: NDArray[np.float64],
    daylight: float,
) -> None:
    """Apply the light of the night to a row of pixels."""
    dark, amount = 1 - daylight, 2 * (0.5 - daylight)
    for pixel in range(len(row) // 3):
        red = int32(row[3 * pixel])
        green = int32(row[3 * pixel + 1])
        blue = int32(row[3 * pixel + 2])
        covered = amount * vignette[pixel]
        seen, cover = 1 - covered, covered * noise[pixel]
        noisy_red = int32(seen * red + cover)
        noisy_green = int32(seen * green + cover)
        noisy_blue = int32(seen * blue + cover)
        grey = _grey(noisy_red, noisy_green, noisy_blue)
        row[3 * pixel] = _mix(daylight, red, dark, _fade(noisy_red, grey))
        row[3 * pixel + 1] = _mix(daylight, green, dark, _fade(noisy_green, grey) + _NIGHT_GREEN)
        row[3 * pixel + 2] = _mix(daylight, blue, dark, _fade(noisy_blue, grey) + _NIGHT_BLUE)


@compiled
def _close_eyes(row: Image) -> None:
    """Turn a row of pixels grey and dark."""
    for pixel in range(len(row) // 3):
        grey = _grey(
            int32(row[3 * pixel]),
            int32(row[3 * pixel + 1]),
            int32(row[3 * pixel + 2]),
        )
        row[3 * pixel] = uint8(grey >> 1)
        row[3 * pixel + 1] = uint8(grey >> 1)
        row[3 * pixel + 2] = uint8((grey + _SLEEP_BLUE) >> 1)


@compiled
def _grey(red: int, green: int, blue: int) -> int:
    weighted = red * _GREY_RED + green * _GREY_GREEN + blue * _GREY_BLUE + _GREY_HALF
    return int32(int32(weighted) >> 16)


@compiled
def _fade(channel: int, grey: int) -> float:
    """Return half of a channel that keeps 0.4 of its colour."""
    blended = float32(grey) + _COLOR_LEFT * float32(int32(channel - grey))
    return 0.5 * int32(blended)


@compiled
def _mix(daylight: float, channel: int, dark: float, night: float) -> int:
    return uint8(int32(daylight * channel + dark * night))


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
    """Return the material of a cell, and the index in `SPRITES` of the object on it."""
    if not world.inside(here, x, y):
        return rules.OUTSIDE, 0
    return int64(here.material[x, y]), _sprite_at(here, x, y)


@compiled
def _sprite_at(here: World, x: int, y: int) -> int:
    """Return the index in `SPRITES` of the object on a cell of the world."""
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
