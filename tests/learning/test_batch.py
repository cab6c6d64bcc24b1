"""Tensors of any dtype and shape reach the device unchanged."""

from __future__ import annotations

import pytest
import torch

from fastrl.learning.algorithm import Transfer


def tensors(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randn(5, 3, generator=random),
        torch.randint(0, 255, (7,), generator=random, dtype=torch.uint8),
        torch.randint(-9, 9, (5, 2), generator=random),
        torch.rand(3, generator=random) < 0.5,
        torch.randn(6, 4, generator=random).t(),
        torch.zeros(0, 3),
    ]


def test_nothing_is_copied_on_the_cpu():
    given = tensors(0)
    found = Transfer(torch.device("cpu"))(given)
    assert [t.data_ptr() for t in found] == [t.data_ptr() for t in given]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_staged_tensors_arrive_unchanged_again_and_again(device):
    transfer = Transfer(torch.device(device), staged=True)
    for seed in range(3):
        given = tensors(seed)
        found = transfer(given)
        assert {t.device.type for t in found} == {device}
        for there, here in zip(found, given, strict=True):
            torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)


def test_larger_and_smaller_rollouts_fit():
    transfer = Transfer(torch.device("cpu"), staged=True)
    for size in (3, 1000, 5):
        (found,) = transfer([torch.full((size,), float(size))])
        assert found.tolist() == [size] * size
