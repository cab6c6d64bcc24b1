"""CartPole: balance a pole on a cart by pushing the cart left or right.

Dynamics after Barto, Sutton and Anderson (1983), as in gymnasium's ``CartPole-v1``.
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

_X_THRESHOLD = 2.4
_THETA_THRESHOLD = 12 * 2 * math.pi / 360
_THRESHOLDS = ("x_threshold", "theta_threshold")
_HIGH = np.array([2 * _X_THRESHOLD, np.inf, 2 * _THETA_THRESHOLD, np.inf], np.float32)


class CartPoleState(NamedTuple):
    """Cart and pole, ``[*]`` each.

    Attributes:
        x: Position of the cart in m.
        x_dot: Its velocity in m/s.
        theta: Angle of the pole from upright in rad, clockwise.
        theta_dot: Its angular velocity in rad/s.
        time: Steps since the episode began, int32.
    """

    x: Tensor
    x_dot: Tensor
    theta: Tensor
    theta_dot: Tensor
    time: Tensor


class CartPoleParams(NamedTuple):
    """Parameters, each a tensor that broadcasts against the state.

    Attributes:
        gravity: In m/s².
        masscart: Mass of the cart in kg.
        masspole: Mass of the pole in kg.
        length: Half the pole's length in m.
        force_mag: Force of a push in N.
        tau: Time between two steps in s.
        theta_threshold: Angle beyond which the episode terminates, in rad.
        x_threshold: Position beyond which the episode terminates, in m.
        reset_bound: Every quantity of the first state is uniform within ± this.
        reset_center: What that is around.
        kinematics_integrator: 0 for ``euler``; 1 for ``semi-implicit``, which moves by the
            velocities after the step.
        sutton_barto_reward: 1 pays 0 for every step and -1 for the one that terminates.
        max_episode_steps: Time limit, int32.
    """

    gravity: Tensor
    masscart: Tensor
    masspole: Tensor
    length: Tensor
    force_mag: Tensor
    tau: Tensor
    theta_threshold: Tensor
    x_threshold: Tensor
    reset_bound: Tensor
    reset_center: Tensor
    kinematics_integrator: Tensor
    sutton_barto_reward: Tensor
    max_episode_steps: Tensor


class CartPole(TensorEnv[CartPoleState, CartPoleParams]):
    """``CartPole-v1``. Actions are 0 (push left) and 1 (push right); every step is worth 1."""

    spec = EnvSpec("CartPole-v1", spaces.Box(-_HIGH, _HIGH), spaces.Discrete(2), 500)
    state_type = CartPoleState
    params_type = CartPoleParams
    defaults: ClassVar = {
        "gravity": 9.8,
        "masscart": 1.0,
        "masspole": 0.1,
        "length": 0.5,
        "force_mag": 10.0,
        "tau": 0.02,
        "theta_threshold": _THETA_THRESHOLD,
        "x_threshold": _X_THRESHOLD,
        "reset_bound": 0.05,
        "reset_center": 0.0,
        "kinematics_integrator": 0.0,
        "sutton_barto_reward": 0.0,
        "max_episode_steps": 500,
    }
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
        x, x_dot, theta, theta_dot = (uniform(noise[..., index], low, high) for index in range(4))
        return CartPoleState(x, x_dot, theta, theta_dot, no_time(x))

    def transition(
        self, state: CartPoleState, action: Tensor, params: CartPoleParams
    ) -> tuple[CartPoleState, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        sine, cosine = torch.sin(state.theta), torch.cos(state.theta)
        force = torch.where(action == 1, params.force_mag, -params.force_mag)
        total_mass = params.masspole + params.masscart
        polemass_length = params.masspole * params.length
        push = (force + polemass_length * state.theta_dot**2 * sine) / total_mass
        theta_acceleration = (params.gravity * sine - cosine * push) / (
            params.length * (4 / 3 - params.masspole * cosine**2 / total_mass)
        )
        x_acceleration = push - polemass_length * theta_acceleration * cosine / total_mass
        x_dot = state.x_dot + params.tau * x_acceleration
        theta_dot = state.theta_dot + params.tau * theta_acceleration
        explicit = params.kinematics_integrator == 0
        reached = CartPoleState(
            x=state.x + params.tau * torch.where(explicit, state.x_dot, x_dot),
            x_dot=x_dot,
            theta=state.theta + params.tau * torch.where(explicit, state.theta_dot, theta_dot),
            theta_dot=theta_dot,
            time=state.time + 1,
        )
        terminated = (reached.x.abs() > params.x_threshold) | (
            reached.theta.abs() > params.theta_threshold
        )
        usual = params.sutton_barto_reward == 0
        reward = torch.where(usual, torch.ones_like(x_dot), -terminated.to(x_dot.dtype))
        return reached, reward, terminated

    def observe(self, state: CartPoleState) -> Tensor:
        """Return ``[*, 4]``: x, x_dot, theta, theta_dot."""
        return columns(*state[:4])
