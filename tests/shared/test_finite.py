"""NaN and infinities are found."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.shared.table import Schema, Table
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

SPEC = EnvSpec("test", spaces.Box(-1, 1, (3,)), spaces.Discrete(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_of_several_numbers_that_are_not_finite_the_first_cause_is_found(bad):
    table = Table(Schema(SPEC), 10, 6)
    bank = table.banks[0]
    bank.reward.fill_(torch.finfo(torch.float32).max)
    assert table.first_bad_number(0) is None
    bank.observation[""][7] = math.nan
    bank.value[6] = math.nan
    bank.log_prob[6, 4] = bad
    found = table.first_bad_number(0)
    assert (found.field, found.where) == ("log_prob", (6, 4))
    assert str(found.value) == str(bad)


@pytest.mark.parametrize("step", [0, 9, 10, 30])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_large_banks_are_checked_in_parts(step, bad):
    spec = EnvSpec("test", spaces.Box(-1, 1, (64, 64, 4)), spaces.Discrete(2))
    table = Table(Schema(spec), 30, 2)
    observation = table.banks[0].observation[""]
    observation.fill_(torch.finfo(torch.float32).max)
    tracemalloc.start()
    assert table.is_finite(0, slice(0, 2))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < observation.numel() / 2
    observation[step, 1, 63, 63, 3] = bad
    assert not table.is_finite(0, slice(0, 2))
    assert table.is_finite(0, slice(0, 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_integers_and_extras_of_any_float_are_checked(dtype):
    extras = {"force": TensorSpec((2,), getattr(torch, np.dtype(dtype).name))}
    spec = EnvSpec("test", spaces.Box(0, 255, (4,), np.uint8), spaces.Discrete(2), extras=extras)
    table = Table(Schema(spec), 5, 3)
    table.banks[0].observation[""].fill_(255)
    assert table.is_finite(0, slice(0, 3))
    table.banks[0].force[4, 2, 1] = -math.inf
    assert not table.is_finite(0, slice(0, 3))
    assert table.first_bad_number(0).where == (4, 2, 1)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_only_the_given_slots_are_checked(step):
    table = Table(Schema(SPEC), 10, 6)
    assert table.is_finite(0, slice(0, 6))
    table.banks[0].observation[""][step, 3, 2] = torch.nan
    assert [table.is_finite(0, slice(slot, slot + 1)) for slot in range(6)].index(False) == 3
    assert not table.is_finite(0, slice(2, 4))
    assert table.is_finite(1, slice(2, 4))
