import math

import numpy as np
import pytest

pytest.importorskip("numba")

from fastrl.models.inference import lanes
from fastrl.models.inference.lanes import LANE_BYTES, LANES, jitted, load, store


def apply(function, numbers):
    """Return a lane function of all numbers."""

    @jitted
    def loop(source, target, blocks):
        for block in range(blocks):
            store(target + block * LANE_BYTES, function(load(source + block * LANE_BYTES)))

    numbers = np.resize(np.asarray(numbers, np.float32), -(-len(numbers) // LANES) * LANES)
    found = np.empty_like(numbers)
    loop(numbers.ctypes.data, found.ctypes.data, len(numbers) // LANES)
    return numbers.astype(np.float64), found


WIDE = np.concatenate([np.linspace(-100, 100, 200_001), np.geomspace(1e-30, 1, 1000)])


def test_tanh_is_accurate_and_never_leaves_its_range():
    x, found = apply(lanes.tanh, WIDE)
    np.testing.assert_allclose(found, np.tanh(x), atol=4e-7, rtol=4e-7)
    assert np.abs(found).max() <= 1


def test_exp_is_accurate_and_flushes_to_zero():
    x, found = apply(lanes.exp, WIDE[np.abs(WIDE) < 87])
    np.testing.assert_allclose(found, np.exp(x), rtol=2e-7)
    _, found = apply(lanes.exp, [-87.5, -1e9, -math.inf])
    assert set(found) == {0.0}


def test_log_is_accurate():
    x, found = apply(lanes.log, np.geomspace(1e-37, 1e38, 100_001))
    np.testing.assert_allclose(found, np.log(x), atol=2e-7, rtol=2e-7)


def test_sigmoid_and_softplus_are_accurate_and_do_not_overflow():
    x, found = apply(lanes.sigmoid, WIDE[WIDE > -80])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-x)), rtol=4e-7)
    x, found = apply(lanes.softplus, WIDE)
    np.testing.assert_allclose(found, np.logaddexp(0, x), atol=4e-7, rtol=4e-7)


@pytest.mark.parametrize("name", ["tanh", "exp", "sigmoid"])
def test_nan_stays_nan(name):
    _, found = apply(getattr(lanes, name), [math.nan])
    assert np.isnan(found).all()
