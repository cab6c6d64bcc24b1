"""Proximal policy optimisation, and the loss that it shares with the other policy gradients.

`objective_kernels` computes the same loss with its gradient in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fastrl.config import A2CConfig, ImpalaConfig, PPOConfig
from fastrl.errors import ConfigError
from fastrl.learning import losses
from fastrl.learning.algorithm import (
    Algorithm,
    Batch,
    Experience,
    Loss,
    Minibatch,
    ObjectiveSettings,
    Prepared,
    Scheduled,
)
from fastrl.learning.returns import gae, next_values
from fastrl.models.policy import PolicyModel

SectionT = TypeVar("SectionT", bound=PPOConfig | A2CConfig | ImpalaConfig)
_KL_MARGIN = 1.5
"""Factor by which a minibatch's KL divergence may exceed its target, as in OpenAI's baselines."""


class PolicyGradient(Algorithm[SectionT]):
    """An algorithm whose loss is `objective`, with ``advantage`` and ``target`` as constants."""

    needs = ("log_prob", "value")
    schedules: ClassVar = {**Algorithm.schedules, "entropy_coef": "entropy_schedule"}
    is_mean_over_rows = True

    def __init__(self, section: SectionT) -> None:
        super().__init__(section)
        # Read here, as torch cannot compile a test for a missing attribute.
        self._clips = [getattr(section, name, None) for name in ("clip_range", "clip_value_range")]

    def objective_settings(self, scheduled: Scheduled) -> ObjectiveSettings:
        """Return the weights and bounds of the loss.

        Args:
            scheduled: See `Minibatch.scheduled`; if it contains tensors, so does the result.
        """
        clip_range, clip_value_range = self._clips
        return ObjectiveSettings(
            # The schedules of a subclass may lack some numbers.
            clip_range=scheduled.get("clip_range", clip_range),
            clip_value_range=clip_value_range,
            entropy_coef=scheduled.get("entropy_coef", self.section.entropy_coef),
            value_coef=self.section.value_coef,
            normalize_advantage=self.section.normalize_advantage,
        )

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return generalised advantage estimates, and λ-returns as value targets."""
        reward, value = experience["reward"], experience["value"][:-1]
        ended = experience["terminated"] | experience["truncated"]
        following = next_values(
            experience["value"],
            experience["final_value"],
            experience["terminated"],
            experience["truncated"],
        )
        section = self.section
        advantage = gae(reward, value, following, ended, section.gamma, section.gae_lambda)
        return self.prepared(experience, advantage, advantage + value)

    @staticmethod
    def prepared(experience: Experience, advantage: Tensor, target: Tensor) -> Prepared:
        """Return advantages and value targets, ``[T, B] float32``, and the explained variance."""
        explained = losses.explained_variance(experience["value"][:-1], target)
        fields = {"advantage": advantage, "target": target}
        return Prepared(fields, {"explained_variance": explained})

    def whole(self, minibatch: Minibatch) -> Mapping[str, Tensor]:
        """Standardise the advantages, if the settings say so."""
        if not self.section.normalize_advantage:
            return {}
        return {"advantage": losses.normalize_advantage(minibatch["advantage"])}

    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return `objective` of the policy's outputs for the minibatch."""
        outputs = minibatch.evaluate(policy)
        return objective(*outputs, minibatch, self.objective_settings(minibatch.scheduled))

    def known_objective(self) -> Callable[[Scheduled], ObjectiveSettings] | None:
        """Return `objective_settings`, unless a subclass has a custom loss."""
        kind = type(self)
        is_known = kind.loss is PolicyGradient.loss and kind.whole is PolicyGradient.whole
        return self.objective_settings if is_known else None


def objective(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    minibatch: Minibatch,
    settings: ObjectiveSettings,
) -> Loss:
    """Return the loss of a minibatch and its metrics.

    The loss is policy loss + ``value_coef`` · value loss - ``entropy_coef`` · entropy (Schulman et
    al. 2017, equation 9).

    Args:
        log_prob: ``[n] float32`` of the taken actions under the policy that learns.
        entropy: ``[n] float32``.
        value: ``[n] float32``.
        minibatch: Has the fields ``log_prob`` and ``value`` of the acting policy, ``advantage``,
            standardised if configured, and the value ``target``, ``[n]`` each.
        settings: Weights and bounds; ``normalize_advantage`` is used by `PolicyGradient.whole`.
    """
    old_log_prob, advantage = minibatch["log_prob"], minibatch["advantage"]
    target = minibatch["target"]
    if settings.clip_range is None:
        policy_loss = losses.policy_gradient_loss(log_prob, advantage)
    else:
        policy_loss = losses.ppo_loss(log_prob, old_log_prob, advantage, settings.clip_range)
    if settings.clip_value_range is None:
        value_loss = losses.value_loss(value, target)
    else:
        bound = settings.clip_value_range
        value_loss = losses.clipped_value_loss(value, minibatch["value"], target, bound)
    entropy_loss = losses.entropy_loss(entropy)
    total = torch.add(policy_loss, value_loss, alpha=settings.value_coef)
    total = total + settings.entropy_coef * entropy_loss
    with torch.no_grad():
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": -entropy_loss,
            "approx_kl": losses.approx_kl(log_prob, old_log_prob),
            "clip_fraction": torch.zeros_like(policy_loss)
            if settings.clip_range is None
            else losses.clip_fraction(log_prob, old_log_prob, settings.clip_range),
        }
    return Loss(total, metrics)


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
        """Yield every row once, shuffled; with a memory whole segments.

        Raises:
            ConfigError: ``minibatch_size`` is not a multiple of the segments' length.
        """
        size, length = self.section.minibatch_size, batch.sequence_length
        if size % length:
            raise ConfigError(
                "algorithm.minibatch_size: must be a multiple of the sequences' length "
                f"({length}), got {size}"
            )
        return batch.shuffled(size, generator)

    def bounds(self) -> Mapping[str, float]:
        """Bound the KL divergence, if there is a target."""
        target = self.section.stopping_kl
        return {} if target is None else {"approx_kl": _KL_MARGIN * target}
