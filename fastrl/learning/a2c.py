"""Advantage actor-critic."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.config import A2CConfig
from fastrl.learning.algorithm import ObjectiveSettings, Prepared, Scheduled
from fastrl.learning.batch import Experience
from fastrl.learning.objective import PolicyGradient
from fastrl.learning.returns import VTraceSettings, next_values, vtrace
from fastrl.models.policy import PolicyModel


class A2C(PolicyGradient[A2CConfig]):
    """One gradient step over each whole rollout.

    Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), algorithm S3, in its synchronous form.
    With ``vtrace``, rollouts of an older policy are corrected as in Espeholt et al. 2018: values
    and log-probabilities are computed anew by the policy that learns. Only V(final observation)
    of truncated episodes stays the older policy's, since rollouts do not hold that observation.
    """

    section_type = A2CConfig

    def objective_settings(self, scheduled: Scheduled) -> ObjectiveSettings:
        """Return the plain policy gradient."""
        return ObjectiveSettings(
            clip_range=None,
            clip_value_range=None,
            entropy_coef=scheduled["entropy_coef"],
            value_coef=self.section.value_coef,
            normalize_advantage=self.section.normalize_advantage,
        )

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return advantages and value targets, by V-trace where the section says so."""
        if not self.section.vtrace:
            return super().prepare(experience, policy)
        log_prob, value = _evaluated_anew(experience, policy)
        terminated, truncated = experience["terminated"], experience["truncated"]
        target, advantage = vtrace(
            log_prob - experience["log_prob"],
            experience["reward"],
            value[:-1],
            next_values(value, experience["final_value"], terminated, truncated),
            terminated | truncated,
            VTraceSettings(self.section.gamma, self.section.gae_lambda),
        )
        return self.prepared(experience, advantage, target)


def _evaluated_anew(experience: Experience, policy: PolicyModel) -> tuple[Tensor, Tensor]:
    """Return log_prob ``[T, B]`` and value ``[T+1, B]`` of the policy that learns.

    Both are where the rollout is: on the CPU, unless it was sampled on the learner's device.
    """
    there = experience["log_prob"].device
    observation = {k: v.to(experience.device) for k, v in experience.observation.items()}
    action = {k: v.to(experience.device) for k, v in experience.action.items()}
    before = {path: leaf[:-1] for path, leaf in observation.items()}
    log_prob, _, value = policy.evaluate(before, action)
    last = policy.value({path: leaf[-1:] for path, leaf in observation.items()})
    return log_prob.to(there), torch.cat([value, last]).to(there)
