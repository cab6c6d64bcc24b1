"""Gymnasium's MuJoCo robots and custom ones, n in a batch, stepped by compiled code.

They are ``fastrl/HalfCheetah-v5`` and so on, for `fastrl.envs.EnvFactory` and for gymnasium.
A class is a factory too: ``fastrl.envs.mujoco:HalfCheetahV5``.
"""

from fastrl.envs.mujoco.batched import (
    MujocoBatchedEnv,
    Parameters,
    Step,
    Terms,
)
from fastrl.envs.mujoco.physics import Fields, Physics
from fastrl.envs.mujoco.rendering import View
from fastrl.envs.mujoco.robots_by_id import ENVIRONMENTS, build, make_vec

__all__ = [
    "ENVIRONMENTS",
    "Fields",
    "MujocoBatchedEnv",
    "Parameters",
    "Physics",
    "Step",
    "Terms",
    "View",
    "build",
    "make_vec",
]


def __getattr__(name: str) -> type[MujocoBatchedEnv]:
    """Return the class of an environment, such as ``HalfCheetahV5``."""
    found = {env.__name__: env for env in ENVIRONMENTS.values()}
    if name not in found:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return found[name]
