"""MountainCar: an underpowered car has to gain momentum to get out of a valley.

After Moore (1990), as in gymnasium's ``MountainCar-v0``, and ``MountainCarContinuous-v0``, whose
motor is throttled and costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.classic_control import tensor_ops as ops
from fastrl.envs.tensor.base import Parameter, TensorEnv
from fastrl.spec import EnvSpec


class MountainCarState(NamedTuple):
    """Car, ``[*]`` each."""

    position: Tensor  # along the horizontal axis
    velocity: Tensor  # change of the position per step
    time: Tensor  # steps since the episode began, int32


class MountainCarParams(NamedTuple):
    """Parameters; the numbers are gymnasium's."""

    min_position: Parameter = -1.2  # the left wall, where the car stops
    max_position: Parameter = 0.6  # the end on the right
    max_speed: Parameter = 0.07  # bound of the velocity
    goal_velocity: Parameter = 0.0  # the least velocity at which the goal counts
    gravity: Parameter = 0.0025  # acceleration on the steepest slope
    reset_low: Parameter = -0.6  # least first position
    reset_high: Parameter = -0.4  # greatest first position
    goal_position: Parameter = 0.5  # where the episode terminates
    force: Parameter = 0.001  # acceleration by the motor
    max_episode_steps: Parameter = 200  # time limit, int32


class MountainCarContinuousParams(NamedTuple):
    """Parameters; the numbers are gymnasium's."""

    min_position: Parameter = -1.2  # the left wall, where the car stops
    max_position: Parameter = 0.6  # the end on the right
    max_speed: Parameter = 0.07  # bound of the velocity
    goal_velocity: Parameter = 0.0  # the least velocity at which the goal counts
    gravity: Parameter = 0.0025  # acceleration on the steepest slope
    reset_low: Parameter = -0.6  # least first position
    reset_high: Parameter = -0.4  # greatest first position
    goal_position: Parameter = 0.45  # where the episode terminates
    power: Parameter = 0.0015  # acceleration at full throttle
    max_action: Parameter = 1.0  # the throttle is clipped to ± this
    max_episode_steps: Parameter = 999  # time limit, int32


def _observed(low: Mapping[str, float], high: Mapping[str, float]) -> spaces.Box:
    """Return the space of positions and velocities for parameters within bounds."""
    # A random least position may be drawn above the greatest.
    first = ("reset_low", "reset_high")
    least = [min(low[name] for name in ("min_position", *first)), -high["max_speed"]]
    greatest = [max(high[name] for name in ("max_position", *first)), high["max_speed"]]
    return spaces.Box(np.array(least, np.float32), np.array(greatest, np.float32))


_OBSERVATION_SPACE = _observed(MountainCarParams()._asdict(), MountainCarParams()._asdict())


class _ValleyCar(TensorEnv[MountainCarState, Any]):
    """A car in the valley."""

    state_type = MountainCarState
    ordered = (("min_position", "max_position"), ("reset_low", "reset_high"))
    noise_size = 1

    def initial(self, noise: Tensor, params: Any) -> MountainCarState:
        """See `TensorEnv.initial`."""
        position = ops.uniform(noise, 0, params.reset_low, params.reset_high)
        return MountainCarState(position, ops.filled(position, 0), ops.no_time(position))

    def observe(self, state: MountainCarState) -> Tensor:
        """Return ``[*, 2]``: position, velocity."""
        return ops.columns(state.position, state.velocity)


class MountainCar(_ValleyCar):
    """``MountainCar-v0``. Actions push left (0), not (1), right (2); each step has reward -1."""

    spec = EnvSpec("MountainCar-v0", _OBSERVATION_SPACE, spaces.Discrete(3), 200)
    params_type = MountainCarParams
    defaults = MountainCarParams()._asdict()
    non_negative = frozenset({"max_speed"})

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Discrete]:
        """See `TensorEnv.spaces_within`."""
        return _observed(low, high), spaces.Discrete(3)

    def transition(
        self, state: MountainCarState, action: Tensor, params: MountainCarParams
    ) -> tuple[MountainCarState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        push = ops.number(action - 1) * params.force
        reached, terminated = _driven(state, push, params)
        return reached, ops.filled(reached.position, -1), terminated


class MountainCarContinuous(_ValleyCar):
    """``MountainCarContinuous-v0``.

    The action is the throttle. Each step costs a tenth of the square of the throttle before
    clipping; the goal has a reward of 100.
    """

    spec = EnvSpec("MountainCarContinuous-v0", _OBSERVATION_SPACE, spaces.Box(-1.0, 1.0, (1,)), 999)
    params_type = MountainCarContinuousParams
    defaults = MountainCarContinuousParams()._asdict()
    non_negative = frozenset({"max_speed", "max_action"})
    supports_gradients = True

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Box]:
        """See `TensorEnv.spaces_within`."""
        throttle = high["max_action"]
        return _observed(low, high), spaces.Box(-throttle, throttle, (1,))

    def transition(
        self, state: MountainCarState, action: Tensor, params: MountainCarContinuousParams
    ) -> tuple[MountainCarState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        given = ops.only(action)
        throttle = ops.clip(given, -params.max_action, params.max_action)
        reached, terminated = _driven(state, throttle * params.power, params)
        cost = ops.times_square(ops.number(0.1), ops.as_float(given, reached.position))
        reward = ops.where(terminated, ops.number(100.0), ops.number(0.0)) - cost
        return reached, reward, terminated


def _driven(state: MountainCarState, push: Tensor, valley: Any) -> tuple[MountainCarState, Tensor]:
    """Return the state after a step, and whether the goal is reached, in either task."""
    slope = ops.cos(ops.number(3) * state.position)
    velocity = state.velocity + (push - slope * valley.gravity)
    velocity = ops.clip(velocity, -valley.max_speed, valley.max_speed)
    position = ops.clip(state.position + velocity, valley.min_position, valley.max_position)
    stopped = (position == valley.min_position) & (velocity < ops.number(0))
    velocity = ops.where(stopped, ops.number(0), velocity)
    terminated = (position >= valley.goal_position) & (velocity >= valley.goal_velocity)
    return MountainCarState(position, velocity, state.time + 1), terminated
