"""Losses by numbers worked out by hand, and by what their gradients do."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.learning import losses


def numbers(*values: float, learnt: bool = False) -> torch.Tensor:
    return torch.tensor(values, requires_grad=learnt)


def slope(loss: torch.Tensor, of: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss, of)[0].tolist()


def test_policy_gradient_loss_raises_the_probability_of_good_actions():
    log_prob = numbers(-1.0, -2.0, learnt=True)
    loss = losses.policy_gradient_loss(log_prob, numbers(3.0, -1.0))
    assert loss.item() == 0.5
    assert slope(loss, log_prob) == [-1.5, 0.5]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [
        (1.1, 1.0, -1.1, True),
        (1.5, 1.0, -1.2, False),
        (1.5, -1.0, 1.5, True),
        (0.5, 1.0, -0.5, True),
        (0.5, -1.0, 0.8, False),
        (0.9, -1.0, 0.9, True),
    ],
)
def test_ppo_loss_is_bounded_only_where_that_makes_it_worse(ratio, advantage, loss, has_gradient):
    log_prob = numbers(math.log(ratio), learnt=True)
    found = losses.ppo_loss(log_prob, numbers(0.0), numbers(advantage), 0.2)
    assert found.item() == pytest.approx(loss)
    expected = -advantage * ratio if has_gradient else 0.0
    assert slope(found, log_prob) == pytest.approx([expected])


def test_no_gradient_flows_into_advantages():
    advantage = numbers(1.0, learnt=True)
    log_prob = numbers(0.0, learnt=True)
    for loss in (
        losses.policy_gradient_loss(log_prob, advantage),
        losses.ppo_loss(log_prob, numbers(0.0), advantage, 0.2),
    ):
        assert torch.autograd.grad(loss, advantage, allow_unused=True) == (None,)


def test_value_loss_is_the_mean_square():
    assert losses.value_loss(numbers(1.0, 4.0), numbers(0.0, 1.0)).item() == 5.0


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [(0.1, 0.81, -1.8), (0.5, 0.64, 0.0), (-0.5, 2.25, -3.0), (2.5, 2.25, 3.0)],
    ids=["inside", "went far towards the target", "went far away from it", "went far beyond it"],
)
def test_clipped_value_loss(value, loss, gradient):
    """The old value is 0, the target 1, the bound 0.2."""
    learnt = numbers(value, learnt=True)
    found = losses.clipped_value_loss(learnt, numbers(0.0), numbers(1.0), 0.2)
    assert found.item() == pytest.approx(loss)
    assert slope(found, learnt) == pytest.approx([gradient])


def test_entropy_loss_falls_with_entropy():
    assert losses.entropy_loss(numbers(1.0, 3.0)).item() == -2.0


def test_approx_kl_estimates_the_kl_divergence_without_bias():
    """Weighted by the old probabilities, k3 is the divergence itself."""
    old, new = numbers(0.2, 0.3, 0.5), numbers(0.4, 0.4, 0.2)
    per_action = [losses.approx_kl(new[i : i + 1].log(), old[i : i + 1].log()) for i in range(3)]
    divergence = (old * (old / new).log()).sum()
    assert sum(float(p) * float(k) for p, k in zip(old, per_action, strict=True)) == pytest.approx(
        float(divergence), rel=1e-5
    )
    assert min(per_action) > 0


def test_approx_kl_keeps_its_precision_for_small_moves():
    assert losses.approx_kl(numbers(1e-3), numbers(0.0)).item() == pytest.approx(5e-7, rel=0.1)


def test_clip_fraction_counts_both_sides():
    log_prob = numbers(0.5, 1.1, 1.3, 0.9).log()
    assert losses.clip_fraction(log_prob, torch.zeros(4), 0.2).item() == 0.5


def test_explained_variance():
    target = numbers(1.0, 2.0, 3.0)
    assert losses.explained_variance(target + 5, target).item() == 1.0
    assert losses.explained_variance(torch.zeros(3), target).item() == 0.0
    assert losses.explained_variance(-target, target).item() == -3.0
    assert losses.explained_variance(target, torch.ones(3)).isnan()


def test_normalised_advantages_have_mean_0_and_deviation_1():
    found = losses.normalize_advantage(torch.arange(10.0))
    assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert found.std().item() == pytest.approx(1.0)


@pytest.mark.parametrize("advantage", [0.1, 1000.1, -33_000.0])
@pytest.mark.parametrize("rows", [7, 2048, 8191])
def test_equal_advantages_teach_nothing(rows, advantage):
    """Their mean is rounded, and what is left must not be divided by a deviation as small."""
    assert not losses.normalize_advantage(torch.full((rows,), advantage)).any()


def test_single_advantage_is_left_as_it_is():
    assert losses.normalize_advantage(numbers(3.0)).tolist() == [3.0]


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: losses.policy_gradient_loss(x, y),
        lambda x, y: losses.ppo_loss(x, y, x, 0.2),
        lambda x, y: losses.value_loss(x, y),
        lambda x, y: losses.clipped_value_loss(x, x, y, 0.2),
        lambda x, y: losses.approx_kl(x, y),
        lambda x, y: losses.clip_fraction(x, y, 0.2),
        lambda x, y: losses.explained_variance(x, y),
    ],
)
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"must have the shape of \w+, \[4, 1\]; got \[4\]"):
        loss(torch.zeros(4, 1), torch.zeros(4))
