"""Parameters as one vector; optimisers against torch's own and numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrl.config import PPOConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning.gradients import Adam, FlatParameters, RMSprop, build_optimizer


def flat_of(*values: float) -> FlatParameters:
    return FlatParameters([nn.Parameter(torch.tensor(values))])


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_equals_that_of_torch_with_changing_step_sizes(betas, weight_decay):
    random = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=random)
    flat = FlatParameters([nn.Parameter(start.clone())])
    mine = Adam(flat, eps=1e-5, betas=betas, weight_decay=weight_decay)
    parameter = nn.Parameter(start.clone())
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    theirs = kind([parameter], betas=betas, eps=1e-5, weight_decay=weight_decay)
    for step in range(20):
        parameter.grad = torch.randn(50, generator=random)
        flat.gradient.copy_(parameter.grad)
        theirs.param_groups[0]["lr"] = learning_rate = 0.1 / (step + 1)
        mine.step(learning_rate)
        theirs.step()
    torch.testing.assert_close(flat.value, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_rmsprop_has_epsilon_inside_the_root_and_starts_at_1():
    flat = flat_of(0.0)
    optimizer = RMSprop(flat, eps=0.24)
    flat.gradient.fill_(2.0**0.5 * 5)
    optimizer.step(0.1)
    # The running square is 0.99 · 1 + 0.01 · 50 = 1.49; with epsilon its root is 1.3153.
    assert flat.value.item() == pytest.approx(-0.1 * 7.0710678 / 1.3152946)
    flat.gradient.zero_()
    optimizer.step(0.1)
    assert flat.value.item() == pytest.approx(-0.1 * 7.0710678 / 1.3152946)
    assert optimizer.state_dict()["square"].item() == pytest.approx(1.49 * 0.99)


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_weight_decay_shrinks_every_parameter_without_a_gradient(kind):
    flat = flat_of(1.0, -2.0)
    kind(flat, eps=1e-5, weight_decay=0.5).step(0.1)
    assert flat.value.tolist() == pytest.approx([0.95, -1.9])


@pytest.mark.parametrize(
    ("section", "build"),
    [
        ({"adam_betas": [0.5, 0.6]}, lambda flat: Adam(flat, 0.3, (0.5, 0.6), 0.2)),
        ({"optimizer": "rmsprop"}, lambda flat: RMSprop(flat, 0.3, 0.2)),
    ],
    ids=["adam", "rmsprop"],
)
def test_keys_of_the_section_reach_the_optimizer(section, build):
    section = PPOConfig(**section, weight_decay=0.2, optimizer_eps=0.3)
    configured, built = flat_of(1.0), flat_of(1.0)
    for flat, optimizer in (
        (configured, build_optimizer(configured, section)),
        (built, build(built)),
    ):
        for gradient in (2.0, -1.0):
            flat.gradient.fill_(gradient)
            optimizer.step(0.1)
    assert configured.value.item() == built.value.item() != 1.0


def test_rmsprop_with_the_square_of_epsilon_comes_to_steps_as_torchs():
    """Which is how settings found with torch's own are carried over."""
    random = torch.Generator().manual_seed(0)
    scale = torch.logspace(-5, 0, 50)
    flat, parameter = FlatParameters([nn.Parameter(torch.zeros(50))]), nn.Parameter(torch.zeros(50))
    mine = RMSprop(flat, eps=1e-5**2)
    theirs = torch.optim.RMSprop([parameter], lr=1e-3, eps=1e-5)
    for _ in range(4000):
        parameter.grad = scale * torch.randn(50, generator=random)
        flat.gradient.copy_(parameter.grad)
        before = flat.value.clone(), parameter.detach().clone()
        mine.step(1e-3)
        theirs.step()
    step, wanted = flat.value - before[0], parameter.detach() - before[1]
    # Where gradients are no larger than epsilon, a sum and a root of squares differ by up to √2.
    ratio = step / wanted
    assert ratio.min() > 0.95
    assert ratio.max() < 1.45
    assert (ratio[scale > 1e-3] - 1).abs().max() < 0.05


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_optimizer_goes_on_from_its_state(kind):
    flat, other = flat_of(1.0, 2.0), flat_of(1.0, 2.0)
    optimizers = [kind(f, eps=1e-5) for f in (flat, other)]
    flat.gradient.copy_(torch.tensor([0.3, -0.1]))
    optimizers[0].step(0.01)
    state = optimizers[0].state_dict()
    other.value.copy_(flat.value)
    optimizers[0].step(0.01)
    optimizers[1].load_state_dict(state)
    other.gradient.copy_(flat.gradient)
    optimizers[1].step(0.01)
    assert flat.value.tolist() == other.value.tolist()


@pytest.mark.parametrize("other", [RMSprop(flat_of(1.0), 1e-5), Adam(flat_of(1.0, 2.0), 1e-5)])
def test_state_of_another_optimizer_is_refused(other):
    with pytest.raises(FastrlError, match="the optimiser's state does not fit"):
        Adam(flat_of(1.0), 1e-5).load_state_dict(other.state_dict())


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
    assert norm == pytest.approx(expected_norm.item())
    torch.testing.assert_close(mine.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(mine.bias.grad, theirs.bias.grad)


def test_gradient_is_left_alone_without_a_bound():
    layer = nn.Linear(1, 1)
    flat = FlatParameters(layer.parameters())
    flat.gradient.fill_(300.0)
    assert flat.clip_gradient(None) == pytest.approx(300 * 2**0.5)
    assert flat.gradient.tolist() == [300, 300]


def test_adam_steps_parameters_of_float64():
    flat = FlatParameters(nn.Linear(2, 1, bias=False).double().parameters())
    before = flat.value.clone()
    flat.gradient.fill_(1.0)
    Adam(flat, eps=1e-8).step(0.5)
    torch.testing.assert_close(flat.value, before - 0.5)


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
