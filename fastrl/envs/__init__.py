"""Environments: built by `env_factory`, stepped in batches behind `batched_env`.

The names below cover all uses; fastrl's own batches are in subpackages.
"""

from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.envs.device_env import DeviceEnv, DeviceStep
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.family import Family
from fastrl.envs.gym_loop import GymLoop
from fastrl.envs.gym_vector import GymVector
from fastrl.envs.legacy_gym import LegacyGymEnv
from fastrl.envs.previous_step import PreviousActionReward
from fastrl.envs.tensor.tensor_by_id import make_tensor

__all__ = [
    "ActionBounds",
    "ActionConverter",
    "BatchedEnv",
    "DeviceEnv",
    "DeviceStep",
    "EnvFactory",
    "Family",
    "GymLoop",
    "GymVector",
    "LegacyGymEnv",
    "PreviousActionReward",
    "Rows",
    "StepViews",
    "make_tensor",
]
