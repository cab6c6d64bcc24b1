"""Policies: networks, memories, distributions over actions, and the engines that run them."""

from __future__ import annotations

from fastrl.models.distributions import ActionBounds, ActionDistribution
from fastrl.models.inference import (
    EagerEngine,
    InferenceEngine,
    PolicyOutput,
    RandomEngine,
    StagedEngine,
    build_engine,
)
from fastrl.models.networks import RunningNormalizer
from fastrl.models.policy import ActorCritic, PolicyModel, build_model
from fastrl.models.recurrent import Core

__all__ = [
    "ActionBounds",
    "ActionDistribution",
    "ActorCritic",
    "Core",
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
