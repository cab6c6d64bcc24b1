"""Three-dimensional OpenSimplex noise, bit for bit equal to that of the package ``opensimplex``.

Space is filled with cells of a sheared cubic grid, each split into two tetrahedra and an
octahedron. A point's value is the sum over the corners of its solid, and two corners nearby, of
``(2 - distance²)⁴`` times a pseudo-random gradient. Sums and differences are in the order of the
package, since floating-point addition is not associative.
"""

from __future__ import annotations

from math import floor

import numpy as np
from numpy.typing import NDArray
from opensimplex import constants

from fastrl.envs.crafter_native.world_compiler import compiled, int64

PERMUTATION_SIZE = 256

_STRETCH = constants.STRETCH_CONSTANT3
_SQUISH = constants.SQUISH_CONSTANT3
_NORM = constants.NORM_CONSTANT3
# One row per value of the permutation, which saves a division.
_GRADIENTS = np.resize(constants.GRADIENTS3, (PERMUTATION_SIZE, 3)).astype(np.float64)
_LCG_FACTOR, _LCG_STEP = int64(6364136223846793005), int64(1442695040888963407)

Permutation = NDArray[np.int64]
# A corner of the grid, or a point relative to one.
Corner = tuple[int, int, int]
Point = tuple[float, float, float]


@compiled
def seed_permutation(seed: int, source: Permutation, permutation: Permutation) -> None:
    """Write the permutation that ``OpenSimplex(seed)`` shuffles; arrays are ``[256] int64``."""
    for index in range(PERMUTATION_SIZE):
        source[index] = index
    state = int64(seed)
    for _ in range(3):
        state = state * _LCG_FACTOR + _LCG_STEP
    for last in range(PERMUTATION_SIZE - 1, -1, -1):
        state = state * _LCG_FACTOR + _LCG_STEP
        # The package adds 31 to an unbounded integer; here the sum must not wrap.
        chosen = (state % (last + 1) + 31) % (last + 1)
        permutation[last] = source[chosen]
        source[chosen] = source[last]


@compiled
def noise3(permutation: Permutation, x: float, y: float, z: float) -> float:
    """Return the noise at a point, between -1 and 1."""
    stretch = (x + y + z) * _STRETCH
    stretched = (x + stretch, y + stretch, z + stretch)
    cell = (
        int64(floor(stretched[0])),
        int64(floor(stretched[1])),
        int64(floor(stretched[2])),
    )
    squish = (cell[0] + cell[1] + cell[2]) * _SQUISH
    inside = (stretched[0] - cell[0], stretched[1] - cell[1], stretched[2] - cell[2])
    point = (x - (cell[0] + squish), y - (cell[1] + squish), z - (cell[2] + squish))
    depth = inside[0] + inside[1] + inside[2]
    if depth <= 1:
        value = _near_tetrahedron(permutation, cell, point, inside, 1 - depth)
    elif depth >= 2:
        value = _far_tetrahedron(permutation, cell, point, inside, 3 - depth)
    else:
        value = _octahedron(permutation, cell, point, inside)
    noise: float = value / _NORM
    return noise


@compiled
def _near_tetrahedron(
    permutation: Permutation, cell: Corner, point: Point, inside: Point, origin_score: float
) -> float:
    """Sum for a point in the tetrahedron at the cell's corner (0, 0, 0)."""
    a, a_score, b, b_score = 1, inside[0], 2, inside[1]
    if a_score >= b_score and inside[2] > b_score:
        b, b_score = 4, inside[2]
    elif a_score < b_score and inside[2] > a_score:
        a, a_score = 4, inside[2]
    value = _at(permutation, cell, point, 0, 0, 0)
    value += _at(permutation, cell, point, 1, 0, 0)
    value += _at(permutation, cell, point, 0, 1, 0)
    value += _at(permutation, cell, point, 0, 0, 1)
    if origin_score > a_score or origin_score > b_score:
        closest = b if b_score > a_score else a
        if closest == 1:
            value += _at(permutation, cell, point, 1, -1, 0)
            value += _at(permutation, cell, point, 1, 0, -1)
        elif closest == 2:
            value += _at(permutation, cell, point, -1, 1, 0)
            value += _at(permutation, cell, point, 0, 1, -1)
        else:
            value += _at(permutation, cell, point, -1, 0, 1)
            value += _at(permutation, cell, point, 0, -1, 1)
    else:
        x, y, z = _bits(a | b)
        value += _at(permutation, cell, point, x, y, z)
        value += _at(permutation, cell, point, 2 * x - 1, 2 * y - 1, 2 * z - 1)
    return value


@compiled
def _far_tetrahedron(
    permutation: Permutation, cell: Corner, point: Point, inside: Point, origin_score: float
) -> float:
    """Sum for a point in the tetrahedron at the cell's corner (1, 1, 1)."""
    a, a_score, b, b_score = 6, inside[0], 5, inside[1]
    if a_score <= b_score and inside[2] < b_score:
        b, b_score = 3, inside[2]
    elif a_score > b_score and inside[2] < a_score:
        a, a_score = 3, inside[2]
    value = _at(permutation, cell, point, 1, 1, 0)
    value += _at(permutation, cell, point, 1, 0, 1)
    value += _at(permutation, cell, point, 0, 1, 1)
    value += _at(permutation, cell, point, 1, 1, 1)
    if origin_score < a_score or origin_score < b_score:
        closest = b if b_score < a_score else a
        # Along y a second unit is taken off after the squish; elsewhere both come first.
        second_y = point[1] - 1 - 3 * _SQUISH - 1
        if closest == 3:
            value += _at(permutation, cell, point, 2, 1, 0)
            at_y = (point[0] - 1 - 3 * _SQUISH, second_y, point[2] - 3 * _SQUISH)
            value += _corner(permutation, cell, at_y, 1, 2, 0)
        elif closest == 5:
            value += _at(permutation, cell, point, 2, 0, 1)
            value += _at(permutation, cell, point, 1, 0, 2)
        else:
            at_y = (point[0] - 3 * _SQUISH, second_y, point[2] - 1 - 3 * _SQUISH)
            value += _corner(permutation, cell, at_y, 0, 2, 1)
            value += _at(permutation, cell, point, 0, 1, 2)
    else:
        x, y, z = _bits(a & b)
        value += _at(permutation, cell, point, x, y, z)
        value += _at(permutation, cell, point, 2 * x, 2 * y, 2 * z)
    return value


@compiled
def _octahedron(permutation: Permutation, cell: Corner, point: Point, inside: Point) -> float:
    """Sum for a point in the octahedron between the two tetrahedra."""
    a, a_score, a_far = _side(inside[0] + inside[1], 4, 3)
    b, b_score, b_far = _side(inside[0] + inside[2], 2, 5)
    c, c_score, c_far = _side(inside[1] + inside[2], 1, 6)
    if a_score <= b_score and a_score < c_score:
        a, a_far = c, c_far
    elif a_score > b_score and b_score < c_score:
        b, b_far = c, c_far
    value = _at(permutation, cell, point, 1, 0, 0)
    value += _at(permutation, cell, point, 0, 1, 0)
    value += _at(permutation, cell, point, 0, 0, 1)
    value += _at(permutation, cell, point, 1, 1, 0)
    value += _at(permutation, cell, point, 1, 0, 1)
    value += _at(permutation, cell, point, 0, 1, 1)
    if a_far and b_far:
        x, y, z = _lowest(a & b)
        value += _at(permutation, cell, point, 1, 1, 1)
        value += _at(permutation, cell, point, 2 * x, 2 * y, 2 * z)
    elif not a_far and not b_far:
        x, y, z = _lowest(7 - (a | b))
        value += _at(permutation, cell, point, 0, 0, 0)
        value += _at(permutation, cell, point, 1 - 2 * x, 1 - 2 * y, 1 - 2 * z)
    else:
        x, y, z = _lowest(7 - (a if a_far else b))
        value += _at(permutation, cell, point, 1 - 2 * x, 1 - 2 * y, 1 - 2 * z)
        x, y, z = _lowest(b if a_far else a)
        # Here the units are taken off after the squish.
        beyond = (
            point[0] - 2 * _SQUISH - 2 * x,
            point[1] - 2 * _SQUISH - 2 * y,
            point[2] - 2 * _SQUISH - 2 * z,
        )
        value += _corner(permutation, cell, beyond, 2 * x, 2 * y, 2 * z)
    return value


@compiled
def _side(score: float, near: int, far: int) -> tuple[int, float, bool]:
    """Return the closer of two opposite corners (as bits), how close, and whether it is far."""
    if score > 1:
        return far, score - 1, True
    return near, 1 - score, False


@compiled
def _bits(corner: int) -> Corner:
    return corner & 1, (corner >> 1) & 1, corner >> 2


@compiled
def _lowest(corner: int) -> Corner:
    """Return the lowest bit that is set, the last where none of the first two is."""
    x = corner & 1
    y = (corner >> 1) & 1 & (1 - x)
    return x, y, 1 - x - y


@compiled
def _at(permutation: Permutation, cell: Corner, point: Point, x: int, y: int, z: int) -> float:
    """Contribution of the corner (x, y, z) of a cell to a point relative to the cell."""
    squish = (x + y + z) * _SQUISH
    offset = (point[0] - x - squish, point[1] - y - squish, point[2] - z - squish)
    return _corner(permutation, cell, offset, x, y, z)


@compiled
def _corner(permutation: Permutation, cell: Corner, offset: Point, x: int, y: int, z: int) -> float:
    """Contribution of the corner (x, y, z) of a cell to a point ``offset`` away from it."""
    near = 2 - offset[0] * offset[0] - offset[1] * offset[1] - offset[2] * offset[2]
    # Adding nothing for a far corner is cheaper than a branch that is hard to predict.
    near = max(near, 0.0)
    near *= near
    index = permutation[(cell[0] + x) & 0xFF]
    index = permutation[(index + cell[1] + y) & 0xFF]
    index = permutation[(index + cell[2] + z) & 0xFF]
    slope = _GRADIENTS[index, 0] * offset[0] + _GRADIENTS[index, 1] * offset[1]
    contribution: float = near * near * (slope + _GRADIENTS[index, 2] * offset[2])
    return contribution
