"""Asynchronous proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastrl.config import APPOConfig
from fastrl.learning.algorithm import Batch, Experience, Prepared
from fastrl.learning.off_policy import corrected, recent, stale_fraction, vtrace_settings
from fastrl.learning.ppo import PPO
from fastrl.models.policy import PolicyModel


class APPO(PPO):
    """PPO for rollouts of an older policy, with targets and advantages by V-trace.

    The policy at the start of the update takes the place of the one that acted: the clip range, the
    KL divergence and the range of values are measured from it, and its advantages are weighted by
    its truncated probability ratio to the one that acted. That is the decoupled objective of Hilton
    et al. 2021 (https://arxiv.org/abs/2110.00641), equation 5, whose proximal policy is the
    learner's. Rollouts of the newest policy are learnt from as PPO does.
    """

    section_type = APPOConfig
    section: APPOConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return targets, advantages, and log-probabilities and values of the newest policy."""
        section = self.section
        found = corrected(experience, policy, vtrace_settings(section), section.minibatch_size)
        # Equal to V-trace's own advantage at λ = 1, and to that of GAE on the newest policy.
        prepared = self.prepared(experience, found.target - found.value, found.target)
        fields = {**prepared.fields, "log_prob": found.log_prob, "value": found.value}
        stale = stale_fraction(experience, section.max_policy_lag)
        return Prepared(fields, {**prepared.metrics, **stale})

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every row once that is not older than ``max_policy_lag``, shuffled."""
        return recent(super().minibatches(batch, generator), batch, self.section.max_policy_lag)
