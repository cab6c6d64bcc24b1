"""Three-dimensional OpenSimplex noise: the package ``opensimplex``, compiled with other options.

Its function is compiled again, with the options of this package and a faster look-up of gradients.
The numbers are equal bit for bit.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from opensimplex import constants, internals

from fastrl.envs.crafter_native.world_compiler import compiled, int64

PERMUTATION_SIZE = 256

# One row per value of the permutation, which saves a division.
_GRADIENTS = np.resize(constants.GRADIENTS3, (PERMUTATION_SIZE, 3)).astype(np.float64)
_LCG_FACTOR, _LCG_STEP = int64(6364136223846793005), int64(1442695040888963407)
_NO_TABLE = 0
"""Placeholder for the package's table of gradient indices."""

Permutation = NDArray[np.int64]


@compiled
def seed_permutation(seed: int, source: Permutation, permutation: Permutation) -> None:
    """Write the permutation of ``OpenSimplex(seed)``; arrays are ``[256] int64``."""
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
def _extrapolate(
    permutation: Permutation, table: int, x: int, y: int, z: int, dx: float, dy: float, dz: float
) -> float:
    """Return the product of the gradient at the corner (x, y, z) with the offset (dx, dy, dz).

    The package's own function, which this replaces, reads the index of the gradient from a
    ``table``.
    """
    index = permutation[x & 0xFF]
    index = permutation[(index + y) & 0xFF]
    index = permutation[(index + z) & 0xFF]
    slope = _GRADIENTS[index, 0] * dx + _GRADIENTS[index, 1] * dy
    total: float = slope + _GRADIENTS[index, 2] * dz
    return total


def _with_own_gradients(function: Any) -> FunctionType:
    """Return the package's function with `_extrapolate` as its callee."""
    plain = getattr(function, "py_func", function)  # of what numba has compiled
    return FunctionType(plain.__code__, plain.__globals__ | {"_extrapolate3": _extrapolate})


_noise3 = compiled(_with_own_gradients(internals._noise3))


@compiled
def noise3(permutation: Permutation, x: float, y: float, z: float) -> float:
    """Return the noise at a point, between -1 and 1."""
    noise: float = _noise3(x, y, z, permutation, _NO_TABLE)
    return noise
