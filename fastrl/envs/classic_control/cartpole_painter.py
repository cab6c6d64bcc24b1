"""CartPole drawn as gymnasium draws it, pixel for pixel, but only where something has moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHITE, _BLACK, _POLE, _AXLE = (255, 255, 255), (0, 0, 0), (202, 152, 101), (129, 132, 203)
_CART_SIZE, _POLE_WIDTH, _TRACK_Y = (50.0, 30.0), 10.0, 100
_MARGIN = 2
"""Pixels by which smoothed edges may reach beyond the corners."""

Point = tuple[float, float]
Pixel = tuple[int, tuple[int, int, int, int]]


class CartPolePainter:
    """Keeps the last picture it drew, of whichever environment, and draws only what differs.

    Gymnasium fills, turns upside down and copies all 600×400 pixels for every picture, which is
    nearly all of the time that it takes.

    Args:
        size: Width and height.
        pixel: Bits and masks of a pixel of `surface`; None for bytes as they lie in a picture.

    Attributes:
        surface: The picture.
        pixels: ``[height, width, 3]`` uint8 view of it; None where it has another format.
    """

    def __init__(self, size: tuple[int, int], pixel: Pixel | None = None) -> None:
        import pygame

        self._pygame, self._size = pygame, size
        width, height = size
        self._canvas = pygame.Surface(self._size)
        self._canvas.fill(_WHITE)
        self.pixels: NDArray[np.uint8] | None = None
        if pixel is None:
            self.pixels = np.full((height, width, 3), 255, np.uint8)
            buffer: Any = self.pixels
            self.surface = pygame.image.frombuffer(buffer, self._size, "RGB")
        else:
            self.surface = pygame.Surface(self._size, 0, *pixel)
        self._everything = self._canvas.get_rect()
        self._changed = self._everything

    def paint(self, env: Any) -> None:  # noqa: ANN401
        """Draw one of gymnasium's ``CartPoleEnv``."""
        erased = self._changed
        self._canvas.fill(_WHITE, erased)
        drawn = self._draw(env)
        seen = drawn.colliderect(self._everything)  # an impossible state may be beside the screen
        self._changed = (
            drawn.clip(self._everything) if seen else self._pygame.Rect(erased[:2], (0, 0))
        )
        dirty = erased.union(self._changed)
        # Drawn with y upwards, as gymnasium does, so that edges are smoothed to the same side.
        flipped = self._pygame.transform.flip(self._canvas.subsurface(dirty), False, True)
        self.surface.blit(flipped, (dirty.x, self._size[1] - dirty.bottom))

    def _draw(self, env: Any) -> Any:  # noqa: ANN401
        """Draw the things; return the rectangle that they cover, but for the track."""
        from pygame import gfxdraw

        canvas = self._canvas
        position, _, angle, _ = env.state
        scale = self._size[0] / (2 * env.x_threshold)
        center = position * scale + self._size[0] / 2.0
        half, quarter = _CART_SIZE[1] / 2, _CART_SIZE[1] / 4
        cart = [
            (x + center, y + _TRACK_Y)
            for x, y in _corners(-_CART_SIZE[0] / 2, _CART_SIZE[0] / 2, -half, half)
        ]
        thick, length = _POLE_WIDTH / 2, scale * (2 * env.length)
        axle_y = _TRACK_Y + quarter
        pole = [
            (x + center, y + _TRACK_Y + quarter)
            for x, y in self._turned(_corners(-thick, thick, -thick, length - thick), -angle)
        ]
        for shape, color in ((cart, _BLACK), (pole, _POLE)):
            gfxdraw.aapolygon(canvas, shape, color)
            gfxdraw.filled_polygon(canvas, shape, color)
        axle = int(center), int(axle_y), int(thick)
        gfxdraw.aacircle(canvas, *axle, _AXLE)
        gfxdraw.filled_circle(canvas, *axle, _AXLE)
        gfxdraw.hline(canvas, 0, self._size[0], _TRACK_Y, _BLACK)
        return self._around([*cart, *pole, (center - thick, axle_y), (center + thick, axle_y)])

    def _turned(self, points: list[Point], radians: float) -> list[Point]:
        vectors = (self._pygame.math.Vector2(point).rotate_rad(radians) for point in points)
        return [(vector[0], vector[1]) for vector in vectors]

    def _around(self, points: list[Point]) -> Any:  # noqa: ANN401
        columns = [list(column) for column in zip(*points, strict=True)]
        left, bottom = (math.floor(min(column)) - _MARGIN for column in columns)
        right, top = (math.ceil(max(column)) + _MARGIN + 1 for column in columns)
        return self._pygame.Rect(left, bottom, right - left, top - bottom)


def _corners(left: float, right: float, bottom: float, top: float) -> list[Point]:
    return [(left, bottom), (left, top), (right, top), (right, bottom)]
