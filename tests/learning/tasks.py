"""Tasks of one step that reveal any wrong sign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl.learning import build_learner
from fastrl.spec import EnvSpec
from tests.learning.synthetic import CONTINUOUS, DISCRETE, config_of, one_step_rollout


def _bandit(sign: Tensor, action: Tensor) -> Tensor:
    """Task in which arm 2 is right for every observation."""
    return 2.0 * (action == 2) - 1


def _match(sign: Tensor, action: Tensor) -> Tensor:
    """Task in which arm 0 is right for negative observations and arm 2 for positive ones."""
    return sign * (action.float() - 1)


def _push(sign: Tensor, action: Tensor) -> Tensor:
    """Task in which the first number must have the sign of the observation."""
    return (sign * action[..., 0]).sign()


TASKS = {"bandit": (DISCRETE, _bandit), "match": (DISCRETE, _match), "push": (CONTINUOUS, _push)}


def learnt_share(algorithm: Any, task: str, sign: int, updates: int, **model: Any) -> float:
    """Return the mean of reward times sign that the learnt policy gets; it is within ±1."""
    spec: EnvSpec
    spec, reward_of = TASKS[task]
    learner = build_learner(config_of(algorithm, **model), spec)

    def signed(observed: Tensor, action: Tensor) -> Tensor:
        return sign * reward_of(observed, action)

    for seed in range(updates):
        learner.update(one_step_rollout(spec, learner.model, signed, seed))
    rewards = [
        one_step_rollout(spec, learner.model, signed, seed).reward.mean()
        for seed in range(updates, updates + 5)
    ]
    return float(torch.stack(rewards).mean())
