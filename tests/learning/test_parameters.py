"""Parameters as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrl.errors import ConfigError
from fastrl.learning.parameters import FlatParameters


def test_parameters_keep_their_values_and_become_views():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    flat = FlatParameters(layer.parameters())
    assert flat.value.tolist() == [*weight.flatten().tolist(), *bias.tolist()]
    flat.value += 1
    torch.testing.assert_close(layer.weight.detach(), weight + 1)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert flat.value[-2:].tolist() == bias.tolist()


def test_autograd_writes_into_the_vector():
    layer = nn.Linear(3, 2)
    flat = FlatParameters(layer.parameters())
    layer(torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert flat.gradient.tolist() == [1, 2, 3, 1, 2, 3, 1, 1]


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_does_what_torch_does(max_norm):
    torch.manual_seed(0)
    mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    flat = FlatParameters(mine.parameters())
    for layer in (mine, theirs):
        layer(torch.ones(3)).square().sum().backward()
    norm = flat.clip_gradient(max_norm)
    expected_norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(norm, expected_norm)
    torch.testing.assert_close(mine.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(mine.bias.grad, theirs.bias.grad)


def test_gradient_is_left_alone_without_a_bound():
    layer = nn.Linear(1, 1)
    flat = FlatParameters(layer.parameters())
    flat.gradient.fill_(300.0)
    assert flat.clip_gradient(None).item() == pytest.approx(300 * 2**0.5)
    assert flat.gradient.tolist() == [300, 300]


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    assert len(FlatParameters(layer.parameters()).value) == 2


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Identity(), "found none"),
        (
            nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()),
            "found torch.float32 on cpu, torch.float64 on cpu",
        ),
    ],
)
def test_models_that_are_no_single_vector_are_refused(layer, found):
    with pytest.raises(ConfigError, match=found):
        FlatParameters(layer.parameters())
