"""Proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fastrl.config import PPOConfig
from fastrl.learning.experience import Batch, minibatches
from fastrl.learning.objective import PolicyGradient

_KL_MARGIN = 1.5
"""How far the KL divergence of a minibatch may exceed its target, as OpenAI's baselines allow."""


class PPO(PolicyGradient[PPOConfig]):
    """Several epochs of minibatches over each rollout, with the clipped objective.

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), algorithm 1.
    """

    section_type = PPOConfig
    schedules: ClassVar = {**PolicyGradient.schedules, "clip_range": "clip_schedule"}
    last_epoch_metrics = frozenset({"approx_kl", "clip_fraction"})

    @property
    def epochs(self) -> int:
        """Number of passes over each rollout."""
        return self.section.epochs

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every row once, shuffled; with a memory whole segments."""
        size, sequences = self.section.minibatch_size, (batch.sequence_length, batch.num_slots)
        return minibatches(len(batch), size, generator, batch.device, *sequences)

    def bounds(self) -> Mapping[str, float]:
        """Bound the KL divergence, if there is a target."""
        target = self.section.stopping_kl
        return {} if target is None else {"approx_kl": _KL_MARGIN * target}
