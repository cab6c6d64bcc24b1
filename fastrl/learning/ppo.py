"""Proximal policy optimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.config import PPOConfig
from fastrl.learning.batch import Batch
from fastrl.learning.learner import BaseLearner, averages
from fastrl.learning.objective import APPROX_KL, ObjectiveSettings
from fastrl.shared.minibatches import minibatches

_KL_MARGIN = 1.5
"""How far the KL divergence of a minibatch may exceed its target, as OpenAI's baselines allow."""


class PPO(BaseLearner[PPOConfig]):
    """Several epochs of minibatches over each rollout, with the clipped objective.

    Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), algorithm 1.

    What `update` returns are means over all minibatches, but for ``approx_kl`` and
    ``clip_fraction``, which are over those of the last epoch: how far the policy has moved in all.
    """

    def _objective_settings(self) -> ObjectiveSettings:
        return ObjectiveSettings(
            clip_range=self._scheduled("clip_range"),
            clip_value_range=self._algorithm.clip_value_range,
            entropy_coef=self._scheduled("entropy_coef"),
            value_coef=self._algorithm.value_coef,
            normalize_advantage=self._algorithm.normalize_advantage,
        )

    def _learn(self, batch: Batch, learning_rate: float) -> dict[str, float]:
        reported: list[Tensor] = []
        norms: list[Tensor] = []
        epoch_start = 0
        for _ in range(self._algorithm.epochs):
            epoch_start = len(reported)
            order = minibatches(
                len(batch), self._algorithm.minibatch_size, self._generator, self._device
            )
            for index in order:
                reported.append(self._engine.forward(index))
                if self._moved_too_far(reported[-1]):
                    return self._report(reported, epoch_start, norms)
                norms.append(self._step(learning_rate))
        return self._report(reported, epoch_start, norms)

    def _moved_too_far(self, metrics: Tensor) -> bool:
        # Without a target nothing waits here for the device.
        target = self._algorithm.target_kl
        return target is not None and float(metrics[APPROX_KL]) > _KL_MARGIN * target

    def _report(
        self, reported: list[Tensor], epoch_start: int, norms: list[Tensor]
    ) -> dict[str, float]:
        last_epoch = averages(reported[epoch_start:])
        moved = {name: last_epoch[name] for name in ("approx_kl", "clip_fraction")}
        return {
            **averages(reported),
            **moved,
            "gradient_norm": float(torch.stack(norms).mean()) if norms else 0.0,
            "gradient_steps": float(len(norms)),
            "clip_range": self._scheduled("clip_range"),
        }
