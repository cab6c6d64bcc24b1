import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.models import RunningNormalizer


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 1000))
def test_statistics_do_not_depend_on_how_the_data_is_split(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 3, generator=generator) * 10 + 1000
    normalizer = RunningNormalizer((3,))
    for batch in rows.split(sizes):
        normalizer.update(batch)
    assert normalizer.count == len(rows)
    torch.testing.assert_close(normalizer.mean, rows.double().mean(0))
    torch.testing.assert_close(normalizer.var, rows.double().var(0, correction=0))


def test_output_has_mean_zero_and_variance_one():
    rows = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.tensor([0.01, 100.0]) + torch.tensor([-50.0, 3.0])
    normalizer = RunningNormalizer((2,))
    normalizer.update(rows)
    normalised = normalizer(rows)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean(0), torch.zeros(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(normalised.std(0), torch.ones(2), atol=1e-2, rtol=0)


def test_a_large_offset_costs_no_precision():
    rows = torch.tensor([1e4, 1e4 + 1, 1e4 + 2])[:, None].repeat(1000, 1)
    normalizer = RunningNormalizer((1,))
    for batch in rows.split(7):
        normalizer.update(batch)
    assert normalizer.var.item() == pytest.approx(2 / 3, rel=1e-9)


def test_nothing_changes_before_the_first_update_and_outliers_are_clipped():
    normalizer = RunningNormalizer((2,))
    torch.testing.assert_close(
        normalizer(torch.tensor([[0.5, -3.0], [99.0, -99.0]])),
        torch.tensor([[0.5, -3.0], [10.0, -10.0]]),
    )


def test_statistics_are_frozen_unless_updated():
    normalizer = RunningNormalizer((2,))
    normalizer.update(torch.randn(5, 2))
    before = copy.deepcopy(normalizer.state_dict())
    normalizer.train()
    normalizer(torch.randn(100, 2))
    normalizer.update(torch.empty(0, 2))
    assert all(torch.equal(before[name], value) for name, value in normalizer.state_dict().items())


def test_statistics_travel_in_the_state_dict():
    source, target = RunningNormalizer((2,)), RunningNormalizer((2,))
    source.update(torch.randn(4, 5, 2) * 3 + 1)
    target.load_state_dict(source.state_dict())
    rows = torch.randn(3, 2)
    assert torch.equal(source(rows), target(rows))
    assert target.count == 20
