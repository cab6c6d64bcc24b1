from __future__ import annotations

import numba
import numpy as np
import pytest

from fastrl.envs.crafter_native import rng

WORDS = np.zeros(20_000, np.uint32)
UNIFORM, BELOW, FILL, SKIP = range(4)


@numba.njit
def draw(stream, kind, bound, words, out):
    """Draw once in each way; compiled functions are called by compiled ones only."""
    if kind == UNIFORM:
        return rng.uniform(stream)
    if kind == BELOW:
        return float(rng.below(stream, bound))
    if kind == FILL:
        rng.fill_uniform(stream, 32.0, 95.0, words, out)
    else:
        rng.skip_uniform(stream, out.size)
    return 0.0


@numba.njit
def seed_stream(stream, seed):
    rng.seed_stream(stream, seed)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 2, 2**32 - 1])
def test_stream_is_that_of_random_state(seed):
    stream, numpy = np.zeros(rng.STREAM_WORDS, np.uint32), np.random.RandomState(seed)
    seed_stream(stream, seed)
    choose = np.random.default_rng(seed)
    none = np.zeros((0, 0))
    for _ in range(1500):
        kind = int(choose.choice(4, p=[0.5, 0.46, 0.02, 0.02]))
        if kind == UNIFORM:
            assert draw(stream, kind, 0, WORDS, none) == numpy.uniform()
        elif kind == BELOW:
            bound = int(choose.choice([1, 2, 3, 4, 5, 32, 33, 100, 144, 2**31 - 1, 2**31]))
            assert draw(stream, kind, bound, WORDS, none) == numpy.randint(0, bound)
        else:
            out = np.zeros(choose.integers(1, 70, size=2))
            expected = numpy.uniform(32, 127, out.T.shape).T
            draw(stream, kind, 0, WORDS, out)
            if kind == FILL:
                np.testing.assert_array_equal(out, expected)
    _, key, position, *_ = numpy.get_state()
    assert stream.tolist() == [*key.tolist(), position]
