"""Environments as pure functions of tensors; see `base` for the contract."""

from fastrl.envs.tensor.base import TensorEnv
from fastrl.envs.tensor.make import TENSOR_ENVS, make_tensor
from fastrl.envs.tensor.policy import ModulePolicy, RandomPolicy, TensorPolicy
from fastrl.envs.tensor.randomize import Randomized
from fastrl.envs.tensor.rollout import Noise, Rollouts, Start, TensorRollout, rollout

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
