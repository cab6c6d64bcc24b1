"""Advantage actor-critic."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.config import A2CConfig
from fastrl.learning.algorithm import Prepared
from fastrl.learning.experience import Experience, Minibatch
from fastrl.learning.objective import PolicyGradient
from fastrl.learning.returns import VTraceSettings, next_values, vtrace
from fastrl.models.policy import PolicyModel


class A2C(PolicyGradient[A2CConfig]):
    """One gradient step over each whole rollout.

    Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), algorithm S3, in its synchronous form.
    With ``vtrace``, rollouts of an older policy are corrected as in Espeholt et al. 2018: the
    policy that learns computes values and log-probabilities again. Only V(final observation) of
    truncated episodes stays that of the older policy, since rollouts do not hold that observation,
    and so do the states of a memory before each segment and after the last.
    """

    section_type = A2CConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return advantages and value targets, by V-trace where ``vtrace`` is set."""
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
    batch = experience.batch(lambda leaves: [leaf.to(experience.device) for leaf in leaves], {})
    rows = batch.all_rows()
    log_prob, _, value = Minibatch(batch, rows, {}).evaluate(policy)
    last = {path: leaf[-1].to(experience.device) for path, leaf in experience.observation.items()}
    if batch.sequences is None:
        last_value = policy.value(last)
    else:
        last_value = policy.value(last, state=batch.sequences.state[-1])
    there = experience["log_prob"]
    in_time = (torch.empty_like(x).index_copy(0, rows, x) for x in (log_prob, value))
    log_prob, value = (x.view(there.shape).to(there.device) for x in in_time)
    return log_prob, torch.cat([value, last_value[None].to(there.device)])
