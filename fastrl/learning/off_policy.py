"""APPO and IMPALA: V-trace for rollouts of an older policy, and a bound on its age."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastrl.config import APPOConfig, ImpalaConfig
from fastrl.learning.algorithm import Batch, Experience, Prepared
from fastrl.learning.ppo import PPO, PolicyGradient
from fastrl.learning.returns import VTraceSettings, next_values, vtrace
from fastrl.models.policy import PolicyModel

POLICY_LAG = "policy_lag"
"""Field ``[T, B] int64``: age of the acting policy, in updates of the learner."""


class APPO(PPO):
    """PPO for rollouts of an older policy, with targets and advantages by V-trace.

    The policy at the start of the update replaces the one that acted: the clip range, the KL
    divergence and the range of values are relative to it, and advantages are weighted by its
    truncated probability ratio to the one that acted. This is the decoupled objective of Hilton et
    al. 2021 (https://arxiv.org/abs/2110.00641), equation 5, whose proximal policy is the learner's.
    PPO learns in the same way from rollouts of the newest policy.
    """

    section_type = APPOConfig
    section: APPOConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return targets, advantages, and log-probabilities and values of the newest policy."""
        section = self.section
        found = corrected(experience, policy, vtrace_settings(section), section.minibatch_size)
        # Equal to V-trace's own advantage at λ = 1, and to GAE for the newest policy.
        prepared = self.prepared(experience, found.target - found.value, found.target)
        fields = {**prepared.fields, "log_prob": found.log_prob, "value": found.value}
        excluded = stale_fraction(experience, section.max_policy_lag)
        return Prepared(fields, {**prepared.metrics, **excluded})

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every row that is not older than ``max_policy_lag`` once, shuffled."""
        return recent(super().minibatches(batch, generator), batch, self.section.max_policy_lag)


class Impala(PolicyGradient[ImpalaConfig]):
    """One step along the policy gradient of V-trace over each rollout of an older policy.

    Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561), section 4.2.
    """

    section_type = ImpalaConfig

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the advantages and value targets of V-trace."""
        found = corrected(experience, policy, vtrace_settings(self.section))
        prepared = self.prepared(experience, found.advantage, found.target)
        excluded = stale_fraction(experience, self.section.max_policy_lag)
        return Prepared(prepared.fields, {**prepared.metrics, **excluded})

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the rows that are not older than ``max_policy_lag``, all at once."""
        return recent(super().minibatches(batch, generator), batch, self.section.max_policy_lag)


class Corrected(NamedTuple):
    """Corrected fields of an older policy's rollout, all ``[T, B] float32``.

    Attributes:
        log_prob: Log-probability of the actions under the policy that learns.
        value: V(observation) of the policy that learns.
        target: Value target by V-trace.
        advantage: Advantage by V-trace.
    """

    log_prob: Tensor
    value: Tensor
    target: Tensor
    advantage: Tensor


def vtrace_settings(section: APPOConfig | ImpalaConfig) -> VTraceSettings:
    """Return a section's settings of V-trace."""
    return VTraceSettings(section.gamma, section.gae_lambda, section.rho_clip, section.c_clip)


def corrected(
    experience: Experience,
    policy: PolicyModel,
    settings: VTraceSettings,
    rows_at_once: int | None = None,
) -> Corrected:
    """Return targets and advantages by V-trace (Espeholt et al. 2018) for a rollout.

    The policy that learns computes values and log-probabilities again. Only V(final observation) of
    truncated episodes comes from the older policy, since rollouts do not hold that observation, and
    so do the states of a memory before each segment and after the last.

    Args:
        experience: The rollout.
        policy: The policy that learns.
        settings: Settings of V-trace.
        rows_at_once: Transitions that the policy evaluates at a time; None for all.
    """
    log_prob, value = _evaluated_anew(experience, policy, rows_at_once)
    terminated, truncated = experience["terminated"], experience["truncated"]
    target, advantage = vtrace(
        log_prob - experience["log_prob"],
        experience["reward"],
        value[:-1],
        next_values(value, experience["final_value"], terminated, truncated),
        terminated | truncated,
        settings,
    )
    return Corrected(log_prob, value[:-1], target, advantage)


def stale(lag: Tensor, max_lag: int) -> Tensor:
    """Return a mask of the steps that are too old to learn from, ``[*] bool``.

    A step is too old if its policy is more than ``max_lag`` updates older than the learner's and a
    newer one acted elsewhere in the rollout: the newest steps are always learnt from.

    Args:
        lag: ``[*] int64``; see `POLICY_LAG`.
        max_lag: The bound in updates.
    """
    return lag > lag.min().clamp(min=max_lag)


def stale_fraction(experience: Experience, max_lag: int) -> dict[str, Tensor]:
    """Return the metric ``stale_fraction``, the share of steps that `recent` excludes, ``[]``.

    Args:
        experience: The rollout.
        max_lag: The bound in updates.
    """
    lag, states = (experience.fields.get(name) for name in (POLICY_LAG, "policy_state"))
    if lag is None:
        return {"stale_fraction": torch.zeros(())}
    segment_length = 1 if states is None else len(lag) // (len(states) - 1)
    return {"stale_fraction": stale(lag[::segment_length], max_lag).float().mean()}


def recent(minibatches: Iterator[Tensor], batch: Batch, max_lag: int) -> Iterator[Tensor]:
    """Yield minibatches without the rows that are `stale`; with a memory whole segments.

    Args:
        minibatches: Rows ``[n] int64``; see `Algorithm.minibatches`.
        batch: The rollout. Without the field `POLICY_LAG` no step is stale.
        max_lag: The bound in updates.
    """
    if POLICY_LAG not in batch.fields:
        yield from minibatches
        return
    # Steps of a segment may differ in age; the first one is the oldest.
    lag, first = batch.fields[POLICY_LAG], batch.all_rows()[: len(batch) // batch.sequence_length]
    excluded = torch.zeros_like(lag, dtype=torch.bool)
    excluded[first] = stale(lag[first], max_lag)
    for rows in minibatches:
        by_time = rows.view(batch.sequence_length, -1)
        kept = by_time[:, ~excluded[by_time[0]]]
        if kept.numel():
            yield kept.flatten()


def _evaluated_anew(
    experience: Experience, policy: PolicyModel, rows_at_once: int | None
) -> tuple[Tensor, Tensor]:
    """Return log_prob ``[T, B]`` and value ``[T+1, B]`` of the policy that learns.

    Both are on the rollout's device: the CPU, unless it was sampled on the learner's device.
    """
    batch = experience.on_device()
    found = batch.evaluated(policy, rows_at_once)
    last = {path: leaf[-1].to(experience.device) for path, leaf in experience.observation.items()}
    if batch.sequences is None:
        last_value = policy.value(last)
    else:
        last_value = policy.value(last, state=batch.sequences.state[-1])
    there = experience["log_prob"]
    log_prob, value = (x.view(there.shape).to(there.device) for x in found)
    return log_prob, torch.cat([value, last_value[None].to(there.device)])
