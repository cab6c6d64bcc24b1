"""The compiled loops against PyTorch's cells, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastrl.config import ModelConfig
from fastrl.models.inference.lanes import LANES
from fastrl.models.recurrent import Core, RecurrentCore

KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks are tiny here: on a busy machine threads wait for each other, 100 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def core_of(kind: str, size: int, layers: int = 1) -> RecurrentCore:
    torch.manual_seed(0)
    config = ModelConfig(recurrent=kind, recurrent_size=size, recurrent_layers=layers)
    core = RecurrentCore(5, config)
    for parameter in core.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return core


def inputs_of(core: RecurrentCore, length: int, rows: int) -> tuple[torch.Tensor, ...]:
    features = torch.randn(length, rows, 5, requires_grad=True)
    state = torch.randn(rows, core.state_size, requires_grad=True)
    return features, state, torch.rand(length, rows) > 0.3


def results_of(sequence, core, features, state, keep) -> list[torch.Tensor]:
    """Return what a sequence gives, and the gradient of a function of all of it."""
    outputs, after = sequence(features, state, keep)
    weights = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    total = (outputs * weights).sum() + after.square().sum()
    gradients = torch.autograd.grad(total, [features, state, *core.parameters()])
    return [outputs, after, *gradients]


@KINDS
@pytest.mark.parametrize(("size", "layers"), [(1, 1), (LANES, 2), (LANES + 3, 2), (3 * LANES, 1)])
@pytest.mark.parametrize("rows", [1, 8, 20])
def test_loops_equal_cells(kind, size, rows, layers):
    core = core_of(kind, size, layers)
    inputs = inputs_of(core, 6, rows)
    for keep in (inputs[2], None):
        found = results_of(core.sequence, core, *inputs[:2], keep)
        expected = results_of(lambda *x: Core.sequence(core, *x), core, *inputs[:2], keep)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@KINDS
def test_gradients_equal_finite_differences(kind):
    core = core_of(kind, LANES)
    features, state, keep = inputs_of(core, 5, 3)
    weights = torch.randn(5, 3, LANES, dtype=torch.float64)
    last = torch.randn(3, core.state_size, dtype=torch.float64)

    def total() -> torch.Tensor:
        outputs, after = core.sequence(features, state, keep)
        return (outputs.double() * weights).sum() + (after.double() * last).sum()

    leaves = [features, state, *core.parameters()]
    for leaf, gradient in zip(leaves, torch.autograd.grad(total(), leaves), strict=True):
        direction = torch.randn_like(leaf)
        step = 2e-2 / float(direction.norm())
        with torch.no_grad():
            leaf += step * direction
            above = total()
            leaf -= 2 * step * direction
            below = total()
            leaf += step * direction
        slope = (above - below) / (2 * step)
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


@KINDS
def test_all_lengths_and_rows_use_no_memory_of_others(kind):
    """Rows beside a block's are read, so that what is there must not matter."""
    core = core_of(kind, LANES)
    features, state, keep = inputs_of(core, 4, 11)
    outputs, after = core.sequence(features, state, keep)
    for rows in (slice(0, 1), slice(3, 8), slice(2, 11)):
        some, some_after = core.sequence(features[:, rows], state[rows], keep[:, rows])
        assert torch.equal(some, outputs[:, rows])
        assert torch.equal(some_after, after[rows])


@KINDS
def test_infinite_inputs_saturate(kind):
    core = core_of(kind, LANES)
    with torch.no_grad():
        outputs, after = core.sequence(torch.full((3, 2, 5), 1e30), core.initial_state(2))
    assert outputs.isfinite().all()
    assert outputs.abs().max() <= 1
    assert after.isfinite().all()
