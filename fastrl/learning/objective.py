"""The loss that PPO and A2C minimise, in two forms that agree.

`objective` is a composition of `fastrl.learning.losses` for autograd: on a GPU, and compiled.
On the CPU, where small networks are dominated by the cost of launching operations,
`fastrl.learning.kernels.objective_gradient` computes the same with its gradient in one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.learning import losses

METRICS = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
"""What is reported about each minibatch, in the order of the metrics' vector."""
APPROX_KL = METRICS.index("approx_kl")

COLUMNS = ("old_log_prob", "advantage", "target", "old_value")
"""Columns of the table of constants of each transition, ``[N, 4] float32``."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights and bounds of the loss.

    Numbers with a schedule may be tensors ``[]``, so that a graph is compiled once for all.

    Attributes:
        clip_range: ε of PPO; None for the plain policy gradient of A2C.
        clip_value_range: How far a value may move from the old one; None for no bound.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the value loss.
        normalize_advantage: Whether to standardise the advantages of each minibatch.
    """

    clip_range: float | Tensor | None
    clip_value_range: float | None
    entropy_coef: float | Tensor
    value_coef: float
    normalize_advantage: bool

    def with_tensors(self, device: torch.device) -> ObjectiveSettings:
        """Return the same with tensors for what has a schedule."""
        return replace(
            self,
            clip_range=None if self.clip_range is None else _tensor(self.clip_range, device),
            entropy_coef=_tensor(self.entropy_coef, device),
        )

    def as_array(self) -> NDArray[np.float64]:
        """Return what the kernels take, in the order of the attributes; infinite for None."""
        bounds = (self.clip_range, self.clip_value_range)
        numbers = [math.inf if bound is None else bound for bound in bounds]
        return np.array(
            [*numbers, self.entropy_coef, self.value_coef, self.normalize_advantage], np.float64
        )


def _tensor(number: float | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float32, device=device)


def objective(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    columns: Tensor,
    settings: ObjectiveSettings,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a minibatch and what is reported about it.

    The loss is policy loss + ``value_coef`` · value loss - ``entropy_coef`` · entropy (Schulman et
    al. 2017, equation 9).

    Args:
        log_prob: ``[n] float32`` of the taken actions under the policy that learns.
        entropy: ``[n] float32``.
        value: ``[n] float32``.
        columns: ``[n, 4] float32``; see `COLUMNS`.
        settings: Weights and bounds.

    Returns:
        The differentiable loss ``[]``, and constants ``[6] float32``; see `METRICS`.
    """
    old_log_prob, advantage, target, old_value = columns.unbind(1)
    if settings.normalize_advantage:
        advantage = losses.normalize_advantage(advantage)
    if settings.clip_range is None:
        policy_loss = losses.policy_gradient_loss(log_prob, advantage)
        fraction = torch.zeros_like(policy_loss)
    else:
        policy_loss = losses.ppo_loss(log_prob, old_log_prob, advantage, settings.clip_range)
        fraction = losses.clip_fraction(log_prob, old_log_prob, settings.clip_range)
    if settings.clip_value_range is None:
        value_loss = losses.value_loss(value, target)
    else:
        value_loss = losses.clipped_value_loss(value, old_value, target, settings.clip_value_range)
    entropy_loss = losses.entropy_loss(entropy)
    loss = policy_loss + settings.value_coef * value_loss + settings.entropy_coef * entropy_loss
    kl = losses.approx_kl(log_prob, old_log_prob)
    reported = [loss, policy_loss, value_loss, -entropy_loss, kl, fraction]
    return loss, torch.stack([metric.detach() for metric in reported])
