"""Losses and diagnostics of policy-gradient methods as pure, differentiable functions.

All functions take tensors ``[*]`` of equal shape, usually ``[N] float32``, and return
scalars ``[]``. ``log_prob`` belongs to the taken actions under the policy that learns,
``old_log_prob`` under the policy that acted, both in nats. They raise `ArgumentError` if
they get something else, or shapes disagree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fastrl.arguments import same_shapes

_EPSILON = 1e-8


def normalize_advantage(advantage: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1; a single one is unchanged.

    The deviation is the unbiased one, and 1e-8 is added to it. Equal advantages become exactly 0.
    """
    same_shapes(advantage=advantage)
    if advantage.numel() < 2:
        return advantage
    # The mean of equal numbers is rounded, and the remainder divided by as small a deviation is
    # 1 or -1. Relative to the first number they are exactly 0, and so is their mean.
    shifted = advantage - advantage.flatten()[0]
    deviation, mean = torch.std_mean(shifted)
    return (shifted - mean) / (deviation + _EPSILON)


def policy_gradient_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return -E[log π(a|s) · A], whose gradient is the negative policy gradient.

    Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), section 4.

    No gradient flows into ``advantage``.
    """
    same_shapes(log_prob=log_prob, advantage=advantage)
    return -(advantage.detach() * log_prob).mean()


def ppo_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_range: float | Tensor
) -> Tensor:
    """Return -E[min(r A, clip(r, 1 - ε, 1 + ε) A)] with r = π(a|s) / π_old(a|s).

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7.

    ε is ``clip_range``, a number or ``[]``. No gradient flows into ``advantage``.
    """
    same_shapes(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    advantage = advantage.detach()
    ratio = (log_prob - old_log_prob).exp()
    # The smaller of both is bounded above where the advantage is positive, and below elsewhere.
    bound = advantage + clip_range * advantage.abs()
    return -(advantage * ratio).clamp(max=bound).mean()


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Return E[(V(s) - G)²]."""
    same_shapes(value=value, target=target)
    return F.mse_loss(value, target)


def clipped_value_loss(
    value: Tensor, old_value: Tensor, target: Tensor, clip_range: float
) -> Tensor:
    """Return E[max((V - G)², (V_old + clip(V - V_old, -ε, ε) - G)²)].

    This is the maximum, as in PPO's first implementation: no gradient flows once a value has
    moved by more than ε towards its target (Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729, section 3). Equal to `value_loss` if nothing is clipped;
    implementations that halve it need half the ``value_coef`` here.
    """
    same_shapes(value=value, old_value=old_value, target=target)
    clipped = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return torch.max((value - target).square(), (clipped - target).square()).mean()


def entropy_loss(entropy: Tensor) -> Tensor:
    """Return -E[H(π(·|s))]: added to the loss with a positive weight, it rewards entropy."""
    same_shapes(entropy=entropy)
    return -entropy.mean()


def approx_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Return E[(r - 1) - log r] with r = π / π_old: an estimate of KL(π_old, π) that is never < 0.

    The estimator k3 of Schulman 2020 (http://joschu.net/blog/kl-approx.html): unbiased, and of
    lower variance than the mean of -log r.
    """
    same_shapes(log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob
    return (log_ratio.expm1() - log_ratio).mean()


def clip_fraction(log_prob: Tensor, old_log_prob: Tensor, clip_range: float | Tensor) -> Tensor:
    """Return the share of transitions whose probability ratio is further than ε from 1."""
    same_shapes(log_prob=log_prob, old_log_prob=old_log_prob)
    ratio = (log_prob - old_log_prob).exp()
    return ((ratio - 1).abs() > clip_range).mean(dtype=torch.float32)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """Return 1 - Var(G - V) / Var(G): 1 for perfect values, 0 for a constant; NaN if G is one."""
    same_shapes(value=value, target=target)
    variance = target.var(correction=0)
    unexplained = (target - value).var(correction=0)
    return torch.where(variance > 0, 1 - unexplained / variance, torch.nan)
