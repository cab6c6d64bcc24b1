"""Acrobot: swing the free end of two links above a line, by torque at the joint between them.

Dynamics of Sutton and Barto's book, after Sutton (1996), integrated by one fourth-order
Runge-Kutta step, as in gymnasium's ``Acrobot-v1``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.classic_control.pendulum import wrapped
from fastrl.envs.tensor.base import TensorEnv, columns, no_time, uniform
from fastrl.spec import EnvSpec

_MAX_VELOCITY_1 = 4 * math.pi
_MAX_VELOCITY_2 = 9 * math.pi
_HIGH = np.array([1.0, 1.0, 1.0, 1.0, _MAX_VELOCITY_1, _MAX_VELOCITY_2], np.float32)
_Motion = tuple[Tensor, Tensor, Tensor, Tensor]


class AcrobotState(NamedTuple):
    """Two links, ``[*]`` each.

    Attributes:
        theta1: Angle of the first link from hanging down in rad, within ± π.
        theta2: Angle of the second link from the first in rad, within ± π.
        velocity1: Change of ``theta1`` in rad/s.
        velocity2: Change of ``theta2`` in rad/s.
        time: Steps since the episode began, int32.
    """

    theta1: Tensor
    theta2: Tensor
    velocity1: Tensor
    velocity2: Tensor
    time: Tensor


class AcrobotParams(NamedTuple):
    """Parameters, each a tensor that broadcasts against the state.

    Attributes:
        gravity: In m/s².
        length1: Length of the first link in m.
        mass1: Mass of the first link in kg.
        mass2: Mass of the second link in kg.
        center1: Distance of the first link's centre of mass from its hinge in m.
        center2: Distance of the second link's centre of mass from the joint in m.
        inertia: Moment of inertia of either link in kg·m².
        dt: Time between two steps in s.
        torque: What actions 0 and 2 apply, in N·m.
        max_velocity1: Bound of ``velocity1`` in rad/s.
        max_velocity2: Bound of ``velocity2`` in rad/s.
        goal_height: Height of the free end above which the episode terminates, in links.
        reset_bound: Every quantity of the first state is uniform within ± this.
        reset_center: What that is around.
        book_or_nips: 0 for the dynamics of the ``book``, 1 for those of the paper (``nips``).
        max_episode_steps: Time limit, int32.
    """

    gravity: Tensor
    length1: Tensor
    mass1: Tensor
    mass2: Tensor
    center1: Tensor
    center2: Tensor
    inertia: Tensor
    dt: Tensor
    torque: Tensor
    max_velocity1: Tensor
    max_velocity2: Tensor
    goal_height: Tensor
    reset_bound: Tensor
    reset_center: Tensor
    book_or_nips: Tensor
    max_episode_steps: Tensor


class Acrobot(TensorEnv[AcrobotState, AcrobotParams]):
    """``Acrobot-v1``. Actions 0, 1, 2 apply -1, 0, 1 N·m; every step but the last costs 1."""

    spec = EnvSpec("Acrobot-v1", spaces.Box(-_HIGH, _HIGH), spaces.Discrete(3), 500)
    state_type = AcrobotState
    params_type = AcrobotParams
    defaults: ClassVar = {
        "gravity": 9.8,
        "length1": 1.0,
        "mass1": 1.0,
        "mass2": 1.0,
        "center1": 0.5,
        "center2": 0.5,
        "inertia": 1.0,
        "dt": 0.2,
        "torque": 1.0,
        "max_velocity1": _MAX_VELOCITY_1,
        "max_velocity2": _MAX_VELOCITY_2,
        "goal_height": 1.0,
        "reset_bound": 0.1,
        "reset_center": 0.0,
        "book_or_nips": 0.0,
        "max_episode_steps": 500,
    }
    switches: ClassVar = {"book_or_nips": {"book": 0.0, "nips": 1.0}}
    missing: ClassVar = {
        "torque_noise_max": "its steps are not random; gymnasium's own 'Acrobot-v1' has it"
    }
    positive = frozenset({"length1", "mass1", "mass2", "dt"})
    non_negative = frozenset(
        {"center1", "center2", "inertia", "max_velocity1", "max_velocity2", "reset_bound"}
    )
    noise_size = 4

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Discrete]:
        """See `TensorEnv.spaces_within`."""
        first = max(high["reset_center"], -low["reset_center"]) + high["reset_bound"]
        speeds = [max(high[f"max_velocity{link}"], first) for link in (1, 2)]
        seen = np.array([1.0, 1.0, 1.0, 1.0, *speeds], np.float32)
        return spaces.Box(-seen, seen), spaces.Discrete(3)

    def initial(self, noise: Tensor, params: AcrobotParams) -> AcrobotState:
        """See `TensorEnv.initial`."""
        low = params.reset_center - params.reset_bound
        high = params.reset_center + params.reset_bound
        theta1, theta2, velocity1, velocity2 = (
            uniform(noise[..., index], low, high) for index in range(4)
        )
        return AcrobotState(theta1, theta2, velocity1, velocity2, no_time(theta1))

    def transition(
        self, state: AcrobotState, action: Tensor, params: AcrobotParams
    ) -> tuple[AcrobotState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        torque = (action - 1) * params.torque
        theta1, theta2, velocity1, velocity2 = _integrated(state[:4], torque, params)
        reached = AcrobotState(
            theta1=wrapped(theta1),
            theta2=wrapped(theta2),
            velocity1=torch.clamp(velocity1, -params.max_velocity1, params.max_velocity1),
            velocity2=torch.clamp(velocity2, -params.max_velocity2, params.max_velocity2),
            time=state.time + 1,
        )
        height = -torch.cos(reached.theta1) - torch.cos(reached.theta2 + reached.theta1)
        terminated = height > params.goal_height
        return reached, terminated.to(height.dtype) - 1, terminated

    def observe(self, state: AcrobotState) -> Tensor:
        """Return ``[*, 6]``: cosine and sine of both angles, both velocities."""
        return columns(
            torch.cos(state.theta1),
            torch.sin(state.theta1),
            torch.cos(state.theta2),
            torch.sin(state.theta2),
            state.velocity1,
            state.velocity2,
        )


def _integrated(start: _Motion, torque: Tensor, params: AcrobotParams) -> _Motion:
    """Return angles and velocities after one step of fourth-order Runge-Kutta."""
    dt = params.dt
    k1 = _derivatives(start, torque, params)
    k2 = _derivatives(_moved(start, dt / 2, k1), torque, params)
    k3 = _derivatives(_moved(start, dt / 2, k2), torque, params)
    k4 = _derivatives(_moved(start, dt, k3), torque, params)
    q1, q2, q3, q4 = (
        first + dt / 6 * (a + 2 * b + 2 * c + d)
        for first, a, b, c, d in zip(start, k1, k2, k3, k4, strict=True)
    )
    return q1, q2, q3, q4


def _moved(start: _Motion, dt: Tensor, slope: _Motion) -> _Motion:
    q1, q2, q3, q4 = (first + dt * change for first, change in zip(start, slope, strict=True))
    return q1, q2, q3, q4


def _derivatives(motion: _Motion, torque: Tensor, params: AcrobotParams) -> _Motion:
    """Return the time derivatives of both angles and both velocities."""
    theta1, theta2, velocity1, velocity2 = motion
    sine, cosine = torch.sin(theta2), torch.cos(theta2)
    arm = params.length1 * params.center2
    coupling = params.mass2 * arm * sine
    d1 = (
        params.mass1 * params.center1**2
        + params.mass2 * (params.length1**2 + params.center2**2 + 2 * arm * cosine)
        + 2 * params.inertia
    )
    d2 = params.mass2 * (params.center2**2 + arm * cosine) + params.inertia
    phi2 = params.mass2 * params.center2 * params.gravity * torch.sin(theta1 + theta2)
    phi1 = (
        -coupling * velocity2**2
        - 2 * coupling * velocity2 * velocity1
        + (params.mass1 * params.center1 + params.mass2 * params.length1)
        * params.gravity
        * torch.sin(theta1)
        + phi2
    )
    # The paper left this term out.
    thrown = torch.where(params.book_or_nips == 0, coupling, 0.0) * velocity1**2
    acceleration2 = (torque + d2 / d1 * phi1 - thrown - phi2) / (
        params.mass2 * params.center2**2 + params.inertia - d2**2 / d1
    )
    acceleration1 = -(d2 * acceleration2 + phi1) / d1
    return velocity1, velocity2, acceleration1, acceleration2
