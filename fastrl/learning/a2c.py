"""Advantage actor-critic (A2C). Its loss is in `ppo`, its V-trace correction in `off_policy`."""

from __future__ import annotations

from fastrl.config import A2CConfig
from fastrl.learning.algorithm import Experience, Prepared
from fastrl.learning.off_policy import corrected
from fastrl.learning.ppo import PolicyGradient
from fastrl.learning.returns import VTraceSettings
from fastrl.models.policy import PolicyModel


class A2C(PolicyGradient[A2CConfig]):
    """One gradient step over each whole rollout.

    Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), algorithm S3, in its synchronous form.
    With ``vtrace``, rollouts of an older policy are corrected; see `off_policy.corrected`.
    """

    section_type = A2CConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return advantages and value targets, by V-trace where ``vtrace`` is set."""
        if not self.section.vtrace:
            return super().prepare(experience, policy)
        settings = VTraceSettings(self.section.gamma, self.section.gae_lambda)
        found = corrected(experience, policy, settings)
        return self.prepared(experience, found.advantage, found.target)
