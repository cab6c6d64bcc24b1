"""MountainCarContinuous: MountainCar with a motor that is throttled, and whose use costs.

As in gymnasium's ``MountainCarContinuous-v0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.classic_control.mountain_car import (
    OBSERVATION_SPACE,
    ORDERED,
    VALLEY,
    MountainCarState,
    observation_space,
    stopped_by_wall,
)
from fastrl.envs.tensor.base import TensorEnv, columns, no_time, uniform
from fastrl.spec import EnvSpec


class MountainCarContinuousParams(NamedTuple):
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
        power: Acceleration that the motor gives at full throttle.
        max_action: The throttle is clipped to ± this.
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
    power: Tensor
    max_action: Tensor
    max_episode_steps: Tensor


class MountainCarContinuous(TensorEnv[MountainCarState, MountainCarContinuousParams]):
    """``MountainCarContinuous-v0``.

    The action is the throttle. Each step costs a tenth of its square, as it was given rather than
    as it was clipped; the goal is worth 100.
    """

    spec = EnvSpec("MountainCarContinuous-v0", OBSERVATION_SPACE, spaces.Box(-1.0, 1.0, (1,)), 999)
    state_type = MountainCarState
    params_type = MountainCarContinuousParams
    defaults: ClassVar = {
        **VALLEY,
        "goal_position": 0.45,
        "power": 0.0015,
        "max_action": 1.0,
        "max_episode_steps": 999,
    }
    non_negative = frozenset({"max_speed", "max_action"})
    ordered = ORDERED
    noise_size = 1
    supports_gradients = True

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Box]:
        """See `TensorEnv.spaces_within`."""
        throttle = high["max_action"]
        return observation_space(low, high), spaces.Box(-throttle, throttle, (1,))

    def initial(self, noise: Tensor, params: MountainCarContinuousParams) -> MountainCarState:
        """See `TensorEnv.initial`."""
        position = uniform(noise[..., 0], params.reset_low, params.reset_high)
        return MountainCarState(position, torch.zeros_like(position), no_time(position))

    def transition(
        self, state: MountainCarState, action: Tensor, params: MountainCarContinuousParams
    ) -> tuple[MountainCarState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        given = action[..., 0]
        throttle = torch.clamp(given, -params.max_action, params.max_action)
        velocity = state.velocity + (
            throttle * params.power - params.gravity * torch.cos(3 * state.position)
        )
        velocity = torch.clamp(velocity, -params.max_speed, params.max_speed)
        position = torch.clamp(state.position + velocity, params.min_position, params.max_position)
        velocity = stopped_by_wall(position, velocity, params.min_position)
        terminated = (position >= params.goal_position) & (velocity >= params.goal_velocity)
        reward = torch.where(terminated, 100.0, 0.0) - 0.1 * given.to(position.dtype) ** 2
        return MountainCarState(position, velocity, state.time + 1), reward, terminated

    def observe(self, state: MountainCarState) -> Tensor:
        """Return ``[*, 2]``: position, velocity."""
        return columns(*state[:2])
