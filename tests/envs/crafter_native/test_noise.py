from __future__ import annotations

import numba
import numpy as np
import opensimplex
import pytest
from opensimplex.internals import _noise3

from fastrl.envs.crafter_native import noise


@numba.njit
def seed_permutation(seed, source, permutation):
    noise.seed_permutation(seed, source, permutation)


@numba.njit
def ours(permutation, points, out):
    for i in range(len(points)):
        out[i] = noise.noise3(permutation, points[i, 0], points[i, 1], points[i, 2])


@numba.njit
def theirs(permutation, gradients, points, out):
    for i in range(len(points)):
        out[i] = _noise3(points[i, 0], points[i, 1], points[i, 2], permutation, gradients)


def cells(rng, number):
    """Points like those of a world: quotients of cells by sizes, on whole layers."""
    sizes = rng.choice([3, 5, 6, 7, 8, 9, 15, 25], (number, 1))
    return np.concatenate(
        [rng.integers(0, 200, (number, 2)) / sizes, rng.integers(0, 9, (number, 1))], axis=1
    )


@pytest.mark.parametrize("seed", [0, 3, 953453411, 2**31 - 2, -7, 2**63 - 1])
def test_noise_is_that_of_opensimplex_to_the_last_bit(seed):
    original = opensimplex.OpenSimplex(seed)
    source, permutation = np.zeros((2, noise.PERMUTATION_SIZE), np.int64)
    seed_permutation(seed, source, permutation)
    np.testing.assert_array_equal(permutation, original._perm)
    rng = np.random.default_rng(abs(seed))
    points = np.concatenate([cells(rng, 50_000), rng.uniform(-50, 50, (150_000, 3))])
    found, expected = np.zeros((2, len(points)))
    ours(permutation, points, found)
    theirs(original._perm, original._perm_grad_index3, points, expected)
    np.testing.assert_array_equal(found, expected)
    assert expected.std() > 0.1
