"""Environments as pure functions of tensors; `base` has their base class."""

from fastrl.envs.tensor.base import TensorEnv
from fastrl.envs.tensor.randomize import Randomized
from fastrl.envs.tensor.rollout import Noise, Rollouts, Start, TensorRollout, rollout
from fastrl.envs.tensor.tensor_by_id import TENSOR_ENVS, make_tensor
from fastrl.envs.tensor.tensor_policy import ModulePolicy, RandomPolicy, TensorPolicy

__all__ = [
    "TENSOR_ENVS",
    "ModulePolicy",
    "Noise",
    "RandomPolicy",
    "Randomized",
    "Rollouts",
    "Start",
    "TensorEnv",
    "TensorPolicy",
    "TensorRollout",
    "make_tensor",
    "rollout",
]
