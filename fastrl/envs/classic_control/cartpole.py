"""CartPole: balance a pole on a cart by pushing the cart left or right.

Dynamics after Barto, Sutton and Anderson (1983), as in gymnasium's ``CartPole-v1``.
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

_X_THRESHOLD = 2.4
_THETA_THRESHOLD = 12 * 2 * math.pi / 360
_THRESHOLDS = ("x_threshold", "theta_threshold")
_HIGH = np.array([2 * _X_THRESHOLD, np.inf, 2 * _THETA_THRESHOLD, np.inf], np.float32)


class CartPoleState(NamedTuple):
    """Cart and pole, ``[*]`` each."""

    x: Tensor  # position of the cart in m
    x_dot: Tensor  # its velocity in m/s
    theta: Tensor  # angle of the pole from upright in rad, clockwise
    theta_dot: Tensor  # its angular velocity in rad/s
    time: Tensor  # steps since the episode began, int32


class CartPoleParams(NamedTuple):
    """Parameters; the numbers are gymnasium's."""

    gravity: Parameter = 9.8  # in m/s²
    masscart: Parameter = 1.0  # mass of the cart in kg
    masspole: Parameter = 0.1  # mass of the pole in kg
    length: Parameter = 0.5  # half the pole's length in m
    force_mag: Parameter = 10.0  # force of a push in N
    tau: Parameter = 0.02  # time between two steps in s
    # angle beyond which the episode terminates, in rad
    theta_threshold: Parameter = _THETA_THRESHOLD
    x_threshold: Parameter = _X_THRESHOLD  # position beyond which the episode terminates, in m
    reset_bound: Parameter = 0.05  # first values are uniform within ± this
    reset_center: Parameter = 0.0  # centre of the first values
    # 0 for ``euler``; 1 for ``semi-implicit``, which moves by the velocities after the step
    kinematics_integrator: Parameter = 0.0
    # with 1, rewards are 0, and -1 for the step that terminates
    sutton_barto_reward: Parameter = 0.0
    max_episode_steps: Parameter = 500  # time limit, int32


class CartPole(TensorEnv[CartPoleState, CartPoleParams]):
    """``CartPole-v1``. Actions are 0 (push left) and 1 (push right); each step has reward 1."""

    spec = EnvSpec("CartPole-v1", spaces.Box(-_HIGH, _HIGH), spaces.Discrete(2), 500)
    state_type = CartPoleState
    params_type = CartPoleParams
    defaults = CartPoleParams()._asdict()
    aliases: ClassVar = {"theta_threshold_radians": "theta_threshold"}
    switches: ClassVar = {
        "kinematics_integrator": {"euler": 0.0, "semi-implicit": 1.0},
        "sutton_barto_reward": {},
    }
    positive = frozenset({"masscart", "length", "tau"})
    non_negative = frozenset({"masspole", "theta_threshold", "x_threshold", "reset_bound"})
    noise_size = 4

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Box, spaces.Discrete]:
        """See `TensorEnv.spaces_within`."""
        first = max(high["reset_center"], -low["reset_center"]) + high["reset_bound"]
        bounds = [max(2 * high[name], first) for name in _THRESHOLDS]
        seen = np.array([bounds[0], np.inf, bounds[1], np.inf], np.float32)
        return spaces.Box(-seen, seen), spaces.Discrete(2)

    def initial(self, noise: Tensor, params: CartPoleParams) -> CartPoleState:
        """See `TensorEnv.initial`."""
        low = params.reset_center - params.reset_bound
        high = params.reset_center + params.reset_bound
        x = ops.uniform(noise, 0, low, high)
        x_dot = ops.uniform(noise, 1, low, high)
        theta = ops.uniform(noise, 2, low, high)
        theta_dot = ops.uniform(noise, 3, low, high)
        return CartPoleState(x, x_dot, theta, theta_dot, ops.no_time(x))

    def transition(
        self, state: CartPoleState, action: Tensor, params: CartPoleParams
    ) -> tuple[CartPoleState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        sine, cosine = ops.sincos(state.theta)
        force = ops.where(action == 1, params.force_mag, -params.force_mag)
        total_mass = params.masspole + params.masscart
        polemass_length = params.masspole * params.length
        push = (force + ops.times_square(polemass_length, state.theta_dot) * sine) / total_mass
        theta_acceleration = (params.gravity * sine - cosine * push) / (
            params.length
            * (ops.number(4 / 3) - ops.times_square(params.masspole, cosine) / total_mass)
        )
        x_acceleration = push - polemass_length * theta_acceleration * cosine / total_mass
        x_dot = state.x_dot + params.tau * x_acceleration
        theta_dot = state.theta_dot + params.tau * theta_acceleration
        explicit = params.kinematics_integrator == ops.number(0)
        x = state.x + params.tau * ops.where(explicit, state.x_dot, x_dot)
        theta = state.theta + params.tau * ops.where(explicit, state.theta_dot, theta_dot)
        terminated = (abs(x) > params.x_threshold) | (abs(theta) > params.theta_threshold)
        usual = params.sutton_barto_reward == ops.number(0)
        last = ops.number(0) - ops.as_float(terminated, x_dot)
        reward = ops.where(usual, ops.filled(x_dot, 1), last)
        return CartPoleState(x, x_dot, theta, theta_dot, state.time + 1), reward, terminated

    def observe(self, state: CartPoleState) -> Tensor:
        """Return ``[*, 4]``: x, x_dot, theta, theta_dot."""
        return ops.columns(state.x, state.x_dot, state.theta, state.theta_dot)
