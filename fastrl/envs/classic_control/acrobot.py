"""Acrobot: swing the free end of two links above a line, by torque at the joint between them.

Dynamics of Sutton and Barto's book, after Sutton (1996), integrated by one fourth-order
Runge-Kutta step, as in gymnasium's ``Acrobot-v1``.
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

_MAX_VELOCITY_1 = 4 * math.pi
_MAX_VELOCITY_2 = 9 * math.pi
_HIGH = np.array([1.0, 1.0, 1.0, 1.0, _MAX_VELOCITY_1, _MAX_VELOCITY_2], np.float32)


class _Body(NamedTuple):
    """Terms of the accelerations that depend only on parameters, ``[*]`` each."""

    own1: Tensor  # inertia of both links about the hinge without what depends on the joint's angle
    own2: Tensor  # inertia of the second link about the joint
    coupling: Tensor  # change of both with the joint's angle
    weight1: Tensor  # greatest torque of gravity at the hinge, of the first link and the joint
    weight2: Tensor  # greatest torque of gravity on the second link
    thrown: Tensor  # ``coupling``, or 0 in the paper, which left this term out


class AcrobotState(NamedTuple):
    """Two links, ``[*]`` each."""

    theta1: Tensor  # angle of the first link from hanging down in rad, within ± π
    theta2: Tensor  # angle of the second link from the first in rad, within ± π
    velocity1: Tensor  # change of ``theta1`` in rad/s
    velocity2: Tensor  # change of ``theta2`` in rad/s
    time: Tensor  # steps since the episode began, int32


class AcrobotParams(NamedTuple):
    """Parameters; the numbers are gymnasium's."""

    gravity: Parameter = 9.8  # in m/s²
    length1: Parameter = 1.0  # length of the first link in m
    mass1: Parameter = 1.0  # mass of the first link in kg
    mass2: Parameter = 1.0  # mass of the second link in kg
    center1: Parameter = 0.5  # distance of the first link's centre of mass from its hinge in m
    center2: Parameter = 0.5  # distance of the second link's centre of mass from the joint in m
    inertia: Parameter = 1.0  # moment of inertia of either link in kg·m²
    dt: Parameter = 0.2  # time between two steps in s
    torque: Parameter = 1.0  # torque of actions 0 and 2 in N·m
    max_velocity1: Parameter = _MAX_VELOCITY_1  # bound of ``velocity1`` in rad/s
    max_velocity2: Parameter = _MAX_VELOCITY_2  # bound of ``velocity2`` in rad/s
    # height of the free end above which the episode terminates, in links
    goal_height: Parameter = 1.0
    reset_bound: Parameter = 0.1  # first values are uniform within ± this
    reset_center: Parameter = 0.0  # centre of the first values
    # 0 for the dynamics of the ``book``, 1 for those of the paper (``nips``)
    book_or_nips: Parameter = 0.0
    max_episode_steps: Parameter = 500  # time limit, int32


class Acrobot(TensorEnv[AcrobotState, AcrobotParams]):
    """``Acrobot-v1``. Actions 0, 1, 2 apply -1, 0, 1 N·m; a step but the last has reward -1."""

    spec = EnvSpec("Acrobot-v1", spaces.Box(-_HIGH, _HIGH), spaces.Discrete(3), 500)
    state_type = AcrobotState
    params_type = AcrobotParams
    defaults = AcrobotParams()._asdict()
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
        theta1 = ops.uniform(noise, 0, low, high)
        theta2 = ops.uniform(noise, 1, low, high)
        velocity1 = ops.uniform(noise, 2, low, high)
        velocity2 = ops.uniform(noise, 3, low, high)
        return AcrobotState(theta1, theta2, velocity1, velocity2, ops.no_time(theta1))

    def transition(
        self, state: AcrobotState, action: Tensor, params: AcrobotParams
    ) -> tuple[AcrobotState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        torque, body = ops.number(action - 1) * params.torque, _body(params)
        theta1, theta2, velocity1, velocity2, time = state
        # One step of fourth-order Runge-Kutta.
        dt, half = params.dt, ops.number(0.5) * params.dt
        a1, a2 = _accelerations(theta1, theta2, velocity1, velocity2, torque, body)
        v1b, v2b = velocity1 + half * a1, velocity2 + half * a2
        b1, b2 = _accelerations(
            theta1 + half * velocity1, theta2 + half * velocity2, v1b, v2b, torque, body
        )
        v1c, v2c = velocity1 + half * b1, velocity2 + half * b2
        c1, c2 = _accelerations(theta1 + half * v1b, theta2 + half * v2b, v1c, v2c, torque, body)
        v1d, v2d = velocity1 + dt * c1, velocity2 + dt * c2
        d1, d2 = _accelerations(theta1 + dt * v1c, theta2 + dt * v2c, v1d, v2d, torque, body)
        theta1 = ops.wrapped(theta1 + _change(dt, velocity1, v1b, v1c, v1d))
        theta2 = ops.wrapped(theta2 + _change(dt, velocity2, v2b, v2c, v2d))
        velocity1 = velocity1 + _change(dt, a1, b1, c1, d1)
        velocity2 = velocity2 + _change(dt, a2, b2, c2, d2)
        velocity1 = ops.clip(velocity1, -params.max_velocity1, params.max_velocity1)
        velocity2 = ops.clip(velocity2, -params.max_velocity2, params.max_velocity2)
        height = -ops.cos(theta1) - ops.cos(theta1 + theta2)
        terminated = height > params.goal_height
        reached = AcrobotState(theta1, theta2, velocity1, velocity2, time + 1)
        return reached, ops.as_float(terminated, height) - ops.number(1), terminated

    def observe(self, state: AcrobotState) -> Tensor:
        """Return ``[*, 6]``: cosine and sine of both angles, both velocities."""
        sine1, cosine1 = ops.sincos(state.theta1)
        sine2, cosine2 = ops.sincos(state.theta2)
        return ops.columns(cosine1, sine1, cosine2, sine2, state.velocity1, state.velocity2)


def _body(params: AcrobotParams) -> _Body:
    own2 = ops.times_square(params.mass2, params.center2) + params.inertia
    coupling = params.mass2 * params.length1 * params.center2
    own1 = (
        ops.times_square(params.mass1, params.center1)
        + ops.times_square(params.mass2, params.length1)
        + params.inertia
        + own2
    )
    weight1 = params.mass1 * params.center1 + params.mass2 * params.length1
    return _Body(
        own1,
        own2,
        coupling,
        weight1 * params.gravity,
        params.mass2 * params.center2 * params.gravity,
        ops.where(params.book_or_nips == ops.number(0), coupling, ops.number(0.0)),
    )


def _accelerations(
    theta1: Tensor,
    theta2: Tensor,
    velocity1: Tensor,
    velocity2: Tensor,
    torque: Tensor,
    body: _Body,
) -> tuple[Tensor, Tensor]:
    """Return the accelerations of both links, ``[*]`` in rad/s²."""
    two = ops.number(2)
    sine1, cosine1 = ops.sincos(theta1)
    sine2, cosine2 = ops.sincos(theta2)
    d1 = body.own1 + two * body.coupling * cosine2
    d2 = body.own2 + body.coupling * cosine2
    swing = body.coupling * sine2
    # The sine of both angles' sum.
    phi2 = body.weight2 * (sine1 * cosine2 + cosine1 * sine2)
    phi1 = body.weight1 * sine1 + phi2 - swing * velocity2 * (velocity2 + two * velocity1)
    ratio = d2 / d1
    push = ops.times_square(body.thrown * sine2, velocity1)
    acceleration2 = (torque + ratio * phi1 - push - phi2) / (body.own2 - d2 * ratio)
    return -(d2 * acceleration2 + phi1) / d1, acceleration2


def _change(dt: Tensor, k1: Tensor, k2: Tensor, k3: Tensor, k4: Tensor) -> Tensor:
    """Return the change of a quantity over a step, of its four slopes."""
    two, sixth = ops.number(2), ops.number(1 / 6)
    change: Tensor = dt * sixth * (k1 + two * k2 + two * k3 + k4)
    return change
