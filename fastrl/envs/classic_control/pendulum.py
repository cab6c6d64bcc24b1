"""Pendulum: swing a pendulum up and hold it there, by torque at its hinge.

As in gymnasium's ``Pendulum-v1``, but that the angle is kept within ± π: nothing depends on full
turns, and single precision is spent on what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.tensor.base import TensorEnv, columns, no_time, uniform
from fastrl.spec import EnvSpec

_MAX_SPEED = 8.0
_MAX_TORQUE = 2.0
_HIGH = np.array([1.0, 1.0, _MAX_SPEED], np.float32)


class PendulumState(NamedTuple):
    """Pendulum, ``[*]`` each.

    Attributes:
        theta: Angle from upright in rad, counter-clockwise.
        theta_dot: Angular velocity in rad/s.
        time: Steps since the episode began, int32.
    """

    theta: Tensor
    theta_dot: Tensor
    time: Tensor


class PendulumParams(NamedTuple):
    """Parameters, each a tensor that broadcasts against the state.

    Attributes:
        gravity: In m/s².
        mass: In kg.
        length: In m.
        dt: Time between two steps in s.
        max_speed: Bound of the angular velocity in rad/s.
        max_torque: Actions are clipped to ± this, in N·m.
        reset_angle: The first angle is uniform within ± this, in rad.
        reset_speed: The first angular velocity is uniform within ± this, in rad/s.
        max_episode_steps: Time limit, int32.
    """

    gravity: Tensor
    mass: Tensor
    length: Tensor
    dt: Tensor
    max_speed: Tensor
    max_torque: Tensor
    reset_angle: Tensor
    reset_speed: Tensor
    max_episode_steps: Tensor


class Pendulum(TensorEnv[PendulumState, PendulumParams]):
    """``Pendulum-v1``. The action is a torque; the reward is minus the cost of being off."""

    spec = EnvSpec(
        "Pendulum-v1",
        spaces.Box(-_HIGH, _HIGH),
        spaces.Box(-_MAX_TORQUE, _MAX_TORQUE, (1,)),
        200,
    )
    state_type = PendulumState
    params_type = PendulumParams
    defaults: ClassVar = {
        "gravity": 10.0,
        "mass": 1.0,
        "length": 1.0,
        "dt": 0.05,
        "max_speed": _MAX_SPEED,
        "max_torque": _MAX_TORQUE,
        "reset_angle": math.pi,
        "reset_speed": 1.0,
        "max_episode_steps": 200,
    }
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
        theta = uniform(noise[..., 0], -params.reset_angle, params.reset_angle)
        theta_dot = uniform(noise[..., 1], -params.reset_speed, params.reset_speed)
        return PendulumState(theta, theta_dot, no_time(theta))

    def transition(
        self, state: PendulumState, action: Tensor, params: PendulumParams
    ) -> tuple[PendulumState, Tensor, Tensor]:
        """See `TensorEnv.transition`; the state may hold any angle."""
        torque = torch.clamp(action[..., 0], -params.max_torque, params.max_torque)
        cost = wrapped(state.theta) ** 2 + 0.1 * state.theta_dot**2 + 0.001 * torque**2
        acceleration = (
            3 * params.gravity / (2 * params.length) * torch.sin(state.theta)
            + 3 / (params.mass * params.length**2) * torque
        )
        theta_dot = torch.clamp(
            state.theta_dot + acceleration * params.dt, -params.max_speed, params.max_speed
        )
        theta = wrapped(state.theta + theta_dot * params.dt)
        reached = PendulumState(theta, theta_dot, state.time + 1)
        return reached, -cost, torch.zeros_like(theta, dtype=torch.bool)

    def observe(self, state: PendulumState) -> Tensor:
        """Return ``[*, 3]``: cos(theta), sin(theta), theta_dot."""
        return columns(torch.cos(state.theta), torch.sin(state.theta), state.theta_dot)


def wrapped(angle: Tensor) -> Tensor:
    """Return the same angle within ± π, in rad; its gradient is 1."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
