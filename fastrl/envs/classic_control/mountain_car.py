"""MountainCar: an underpowered car has to gain momentum to get out of a valley.

After Moore (1990), as in gymnasium's ``MountainCar-v0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.tensor.base import TensorEnv, columns, no_time, uniform
from fastrl.spec import EnvSpec

VALLEY = {
    "min_position": -1.2,
    "max_position": 0.6,
    "max_speed": 0.07,
    "goal_velocity": 0.0,
    "gravity": 0.0025,
    "reset_low": -0.6,
    "reset_high": -0.4,
}
"""Parameters that both tasks in this valley have, with their values."""

ORDERED = (("min_position", "max_position"), ("reset_low", "reset_high"))
"""Parameters of both tasks of which the first must not be above the second."""


def observation_space(low: Mapping[str, float], high: Mapping[str, float]) -> spaces.Box:
    """Return the space of positions and velocities for parameters within bounds."""
    least = min(low["min_position"], low["reset_low"])
    greatest = max(high["max_position"], high["reset_high"])
    speed = high["max_speed"]
    return spaces.Box(
        np.array([least, -speed], np.float32), np.array([greatest, speed], np.float32)
    )


OBSERVATION_SPACE = observation_space(VALLEY, VALLEY)


class MountainCarState(NamedTuple):
    """Car, ``[*]`` each.

    Attributes:
        position: Along the horizontal axis.
        velocity: Change of the position per step.
        time: Steps since the episode began, int32.
    """

    position: Tensor
    velocity: Tensor
    time: Tensor


class MountainCarParams(NamedTuple):
    """Parameters, each a tensor that broadcasts against the state.

    Attributes:
        min_position: The left wall, where the car stops.
        max_position: The end on the right.
        max_speed: Bound of the velocity.
        goal_velocity: The least velocity at which the goal counts.
        gravity: Acceleration that the steepest slope gives.
        reset_low: Least first position.
        reset_high: Greatest first position.
        goal_position: Where the episode terminates.
        force: Acceleration that the motor gives.
        max_episode_steps: Time limit, int32.
    """

    min_position: Tensor
    max_position: Tensor
    max_speed: Tensor
    goal_velocity: Tensor
    gravity: Tensor
    reset_low: Tensor
    reset_high: Tensor
    goal_position: Tensor
    force: Tensor
    max_episode_steps: Tensor


class MountainCar(TensorEnv[MountainCarState, MountainCarParams]):
    """``MountainCar-v0``. Actions push left (0), not (1), right (2); every step costs 1."""

    spec = EnvSpec("MountainCar-v0", OBSERVATION_SPACE, spaces.Discrete(3), 200)
    state_type = MountainCarState
    params_type = MountainCarParams
    defaults: ClassVar = {
        **VALLEY,
        "goal_position": 0.5,
        "force": 0.001,
        "max_episode_steps": 200,
    }
    non_negative = frozenset({"max_speed"})
    ordered = ORDERED
    noise_size = 1

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Discrete]:
        """See `TensorEnv.spaces_within`."""
        return observation_space(low, high), spaces.Discrete(3)

    def initial(self, noise: Tensor, params: MountainCarParams) -> MountainCarState:
        """See `TensorEnv.initial`."""
        position = uniform(noise[..., 0], params.reset_low, params.reset_high)
        return MountainCarState(position, torch.zeros_like(position), no_time(position))

    def transition(
        self, state: MountainCarState, action: Tensor, params: MountainCarParams
    ) -> tuple[MountainCarState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        velocity = state.velocity + (
            (action - 1) * params.force - torch.cos(3 * state.position) * params.gravity
        )
        velocity = torch.clamp(velocity, -params.max_speed, params.max_speed)
        position = torch.clamp(state.position + velocity, params.min_position, params.max_position)
        velocity = stopped_by_wall(position, velocity, params.min_position)
        terminated = (position >= params.goal_position) & (velocity >= params.goal_velocity)
        reached = MountainCarState(position, velocity, state.time + 1)
        return reached, -torch.ones_like(position), terminated

    def observe(self, state: MountainCarState) -> Tensor:
        """Return ``[*, 2]``: position, velocity."""
        return columns(*state[:2])


def stopped_by_wall(position: Tensor, velocity: Tensor, min_position: Tensor) -> Tensor:
    """Return the velocity after the car may have hit the left wall."""
    return torch.where((position == min_position) & (velocity < 0), 0.0, velocity)
