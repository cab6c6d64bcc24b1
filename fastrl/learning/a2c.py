"""Advantage actor-critic."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.config import A2CConfig
from fastrl.learning.batch import Batch
from fastrl.learning.learner import BaseLearner, averages
from fastrl.learning.objective import ObjectiveSettings
from fastrl.learning.returns import VTraceSettings, next_values, vtrace
from fastrl.shared.rollout_buffer import Rollout


class A2C(BaseLearner[A2CConfig]):
    """One gradient step over each whole rollout.

    Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), algorithm S3, in its synchronous form.
    With ``vtrace``, rollouts of an older policy are corrected as in Espeholt et al. 2018: values
    and log-probabilities are computed anew by the policy that learns. Only V(final observation)
    of truncated episodes stays the older policy's, since rollouts do not hold that observation.
    """

    def _objective_settings(self) -> ObjectiveSettings:
        return ObjectiveSettings(
            clip_range=None,
            clip_value_range=None,
            entropy_coef=self._scheduled("entropy_coef"),
            value_coef=self._algorithm.value_coef,
            normalize_advantage=self._algorithm.normalize_advantage,
        )

    def _advantage_and_target(self, rollout: Rollout, reward: Tensor) -> tuple[Tensor, Tensor]:
        if not self._algorithm.vtrace:
            return super()._advantage_and_target(rollout, reward)
        log_prob, value = self._evaluated_anew(rollout)
        following = next_values(value, rollout.final_value, rollout.terminated, rollout.truncated)
        target, advantage = vtrace(
            log_prob - rollout.log_prob,
            reward,
            value[:-1],
            following,
            rollout.terminated | rollout.truncated,
            VTraceSettings(self._algorithm.gamma, self._algorithm.gae_lambda),
        )
        return advantage, target

    @torch.no_grad()
    def _evaluated_anew(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return log_prob ``[T, B]`` and value ``[T+1, B]`` of the policy that learns.

        Both are where the rollout is: on the CPU, unless it was sampled on the learner's device.
        """
        there = rollout.log_prob.device
        observation = {k: v.to(self._device) for k, v in self._observation(rollout).items()}
        action = {k: v.to(self._device) for k, v in self._action(rollout).items()}
        before = {path: leaf[:-1] for path, leaf in observation.items()}
        log_prob, _, value = self.model.evaluate(before, action)
        last = self.model.value({path: leaf[-1:] for path, leaf in observation.items()})
        return log_prob.to(there), torch.cat([value, last]).to(there)

    def _learn(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        metrics = self._engine.forward(torch.arange(len(batch), device=self._device))
        norm = self._step(learning_rate)
        return {**averages([metrics]), "gradient_norm": float(norm), "gradient_steps": 1.0}
