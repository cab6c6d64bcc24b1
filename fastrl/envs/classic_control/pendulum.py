"""Pendulum: swing a pendulum up and hold it there, by torque at its hinge.

As in gymnasium's ``Pendulum-v1``, except that the angle is kept within ± π: full turns do not
matter, and the precision of float32 is used for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.classic_control import tensor_ops as ops
from fastrl.envs.tensor.base import Parameter, TensorEnv
from fastrl.spec import EnvSpec

_MAX_SPEED = 8.0
_MAX_TORQUE = 2.0
_HIGH = np.array([1.0, 1.0, _MAX_SPEED], np.float32)


class PendulumState(NamedTuple):
    """Pendulum, ``[*]`` each."""

    theta: Tensor  # angle from upright in rad, counter-clockwise
    theta_dot: Tensor  # angular velocity in rad/s
    time: Tensor  # steps since the episode began, int32


class PendulumParams(NamedTuple):
    """Parameters; the numbers are gymnasium's."""

    gravity: Parameter = 10.0  # in m/s²
    mass: Parameter = 1.0  # in kg
    length: Parameter = 1.0  # in m
    dt: Parameter = 0.05  # time between two steps in s
    max_speed: Parameter = _MAX_SPEED  # bound of the angular velocity in rad/s
    max_torque: Parameter = _MAX_TORQUE  # actions are clipped to ± this, in N·m
    reset_angle: Parameter = math.pi  # the first angle is uniform within ± this, in rad
    reset_speed: Parameter = 1.0  # the first angular velocity is uniform within ± this, in rad/s
    max_episode_steps: Parameter = 200  # time limit, int32


class Pendulum(TensorEnv[PendulumState, PendulumParams]):
    """``Pendulum-v1``. The action is a torque; angle, velocity and torque have a cost."""

    spec = EnvSpec(
        "Pendulum-v1",
        spaces.Box(-_HIGH, _HIGH),
        spaces.Box(-_MAX_TORQUE, _MAX_TORQUE, (1,)),
        200,
    )
    state_type = PendulumState
    params_type = PendulumParams
    defaults = PendulumParams()._asdict()
    aliases: ClassVar = {"g": "gravity", "m": "mass", "l": "length"}
    positive = frozenset({"mass", "length", "dt"})
    non_negative = frozenset({"max_speed", "max_torque", "reset_angle", "reset_speed"})
    noise_size = 2
    supports_gradients = True

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Box]:
        """See `TensorEnv.spaces_within`."""
        speed, torque = max(high["max_speed"], high["reset_speed"]), high["max_torque"]
        seen = np.array([1.0, 1.0, speed], np.float32)
        return spaces.Box(-seen, seen), spaces.Box(-torque, torque, (1,))

    def initial(self, noise: Tensor, params: PendulumParams) -> PendulumState:
        """See `TensorEnv.initial`."""
        theta = ops.uniform(noise, 0, -params.reset_angle, params.reset_angle)
        theta_dot = ops.uniform(noise, 1, -params.reset_speed, params.reset_speed)
        return PendulumState(theta, theta_dot, ops.no_time(theta))

    def transition(
        self, state: PendulumState, action: Tensor, params: PendulumParams
    ) -> tuple[PendulumState, Tensor, Tensor]:
        """See `TensorEnv.transition`; the state may have any angle."""
        torque = ops.clip(ops.only(action), -params.max_torque, params.max_torque)
        angle = ops.wrapped(state.theta)
        cost = (
            angle * angle
            + ops.times_square(ops.number(0.1), state.theta_dot)
            + ops.times_square(ops.number(0.001), torque)
        )
        pull = ops.number(3) * params.gravity / (ops.number(2) * params.length)
        twist = ops.number(3) / ops.times_square(params.mass, params.length)
        acceleration = pull * ops.sin(angle) + twist * torque
        theta_dot = ops.clip(
            state.theta_dot + acceleration * params.dt, -params.max_speed, params.max_speed
        )
        theta = ops.wrapped(angle + theta_dot * params.dt)
        return PendulumState(theta, theta_dot, state.time + 1), -cost, ops.never(theta)

    def observe(self, state: PendulumState) -> Tensor:
        """Return ``[*, 3]``: cos(theta), sin(theta), theta_dot."""
        sine, cosine = ops.sincos(state.theta)
        return ops.columns(cosine, sine, state.theta_dot)
