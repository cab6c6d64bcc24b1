"""Numbers that are not finite are found wherever they are, and by whoever answers for them."""

import math

import numpy as np
import pytest
import torch

from fastrl.shared.finite import FiniteCheck, is_finite

LENGTH, SLOTS = 10, 6
MINE = slice(2, 4)
BAD = (math.nan, math.inf, -math.inf)


def a_check(width: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, FiniteCheck]:
    """Return observations ``[T + 1, B, width]`` and the check of two slots of them."""
    observation = torch.zeros(LENGTH + 1, SLOTS, width, dtype=dtype)
    reward = torch.zeros(LENGTH, SLOTS)
    return observation, FiniteCheck([[observation, reward]], MINE)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("t", range(LENGTH + 1))
def test_a_number_is_found_in_every_step(bad: float, t: int):
    observation, check = a_check(3)
    assert check.passes(0)
    observation[t, 3, 2] = bad
    assert not check.passes(0)


@pytest.mark.parametrize("slot", range(SLOTS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_others_slots_are_not_looked_at(slot: int, dtype: torch.dtype):
    observation, check = a_check(3, dtype)
    observation[5, slot, 2] = math.nan

    assert check.passes(0) == (slot not in range(MINE.start, MINE.stop))


def test_large_numbers_are_finite():
    observation, check = a_check(64)
    observation.fill_(torch.finfo(torch.float32).max)

    assert check.passes(0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_whole_arrays_are_looked_at(dtype: type):
    numbers = np.full((10, 20, 5), np.finfo(dtype).max, dtype)
    assert is_finite(numbers)
    for bad in BAD:
        numbers[6, 1, 4] = bad
        assert not is_finite(numbers)
