"""Policies: distributions, networks, the actor-critic, and the engines that run it."""

from __future__ import annotations

from fastrl.models.action_parts import ActionBounds
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.distributions import ActionDistribution
from fastrl.models.inference import (
    EagerEngine,
    InferenceEngine,
    PolicyOutput,
    RandomEngine,
    StagedEngine,
    build_engine,
)
from fastrl.models.normalization import RunningNormalizer
from fastrl.models.policy import PolicyModel, build_model

__all__ = [
    "ActionBounds",
    "ActionDistribution",
    "ActorCritic",
    "EagerEngine",
    "InferenceEngine",
    "PolicyModel",
    "PolicyOutput",
    "RandomEngine",
    "RunningNormalizer",
    "StagedEngine",
    "build_engine",
    "build_model",
]
