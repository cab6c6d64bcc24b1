"""Remarks: what a configuration seldom means, and signs that a run does not learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fastrl.config import Config, PPOConfig
from fastrl.models.images import describe_images
from fastrl.spec import EnvSpec

GUIDE = "docs/guide/not_learning.md"

_PATIENCE = 10
"""Rows of metrics in a row that must show a sign before it is reported."""
_UNEXPLAINED = 0.05
_DWARFED = 1000.0


def remarks(config: Config, env_spec: EnvSpec) -> Iterator[str]:
    """Yield what was decided by guess, and what is allowed and yet seldom meant."""
    if config.model.class_path is None:
        yield from describe_images(env_spec.observation_space, config.model)
    transitions = config.sampler.rollout_length * config.topology.num_envs
    algorithm = config.algorithm
    if isinstance(algorithm, PPOConfig) and algorithm.minibatch_size > transitions:
        yield (
            f"algorithm.minibatch_size ({algorithm.minibatch_size:,}) is more than the "
            f"{transitions:,} transitions of a rollout: every epoch is one gradient step"
        )


class LearningSigns:
    """Reports, once each, the signs in the metrics that a policy does not learn.

    Args:
        value_coef: ``algorithm.value_coef``.
        is_body_shared: Whether policy and value share a body, so that a large value loss leaves
            the policy little of it.
    """

    def __init__(self, value_coef: float, is_body_shared: bool) -> None:
        self._value_coef, self._is_body_shared = value_coef, is_body_shared
        self._unexplained = self._dwarfed = 0

    def look(self, row: Mapping[str, float]) -> Iterator[str]:
        """Yield a line for every sign that ten rows of training metrics in a row have shown."""
        explained = row.get("explained_variance", math.nan)
        self._unexplained = self._unexplained + 1 if explained < _UNEXPLAINED else 0
        if self._unexplained == _PATIENCE:
            yield (
                f"explained_variance stays near 0 ({explained:.2g}): the value function predicts "
                f"no returns; see {GUIDE}"
            )
        value_loss = self._value_coef * row.get("value_loss", math.nan)
        policy_loss = max(abs(row.get("policy_loss", math.nan)), 1e-3)
        is_dwarfed = self._is_body_shared and value_loss > _DWARFED * policy_loss
        self._dwarfed = self._dwarfed + 1 if is_dwarfed else 0
        if self._dwarfed == _PATIENCE:
            yield (
                f"the value loss is {value_loss / policy_loss:,.0f} times the policy loss, and "
                f"both train one body: try model.shared_body=false or "
                f"algorithm.normalize_rewards=true; see {GUIDE}"
            )
