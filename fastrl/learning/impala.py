"""The importance weighted actor-learner architecture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastrl.config import ImpalaConfig
from fastrl.learning.algorithm import Batch, Experience, Prepared
from fastrl.learning.off_policy import corrected, recent, stale_fraction, vtrace_settings
from fastrl.learning.ppo import PolicyGradient
from fastrl.models.policy import PolicyModel


class Impala(PolicyGradient[ImpalaConfig]):
    """One step along the policy gradient of V-trace over each rollout of an older policy.

    Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561), section 4.2.
    """

    section_type = ImpalaConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the advantages and value targets of V-trace."""
        found = corrected(experience, policy, vtrace_settings(self.section))
        prepared = self.prepared(experience, found.advantage, found.target)
        stale = stale_fraction(experience, self.section.max_policy_lag)
        return Prepared(prepared.fields, {**prepared.metrics, **stale})

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the rows that are not older than ``max_policy_lag``, all at once."""
        return recent(super().minibatches(batch, generator), batch, self.section.max_policy_lag)
