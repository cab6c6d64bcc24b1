"""Gymnasium's MuJoCo robots, n simulations at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrl.envs.family import Vector
from fastrl.envs.native import NativeFamily

_ROBOTS = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
    "InvertedPendulum", "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip


class Mujoco(NativeFamily):
    """``fastrl/HalfCheetah-v5`` and others."""

    module = "fastrl.envs.mujoco.catalogue"
    ids = (*(f"{robot}-{version}" for robot in _ROBOTS for version in ("v4", "v5")), "Pusher-v5")
    shares_threads = True

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vector:
        """Build a vector environment whose simulations differ in fields of the model."""
        vector = super().vector(name, num_envs, {}, **kwargs)
        if each:
            physics = vector.batched.physics  # type: ignore[attr-defined]
            for field, values in each.items():
                physics.assign(field, values)
            physics.derive(np.ones(num_envs, np.bool_))
        return vector


FAMILY = Mujoco()
