"""Classic control without velocities, which a policy without a memory cannot solve.

``CartPoleNoVel-v1``, ``PendulumNoVel-v1`` and ``MountainCarContinuousNoVel-v0`` are the tasks of
these names whose observations lack the velocities. The tensor programs, and with them the compiled
loops, are subclasses of the full tasks; the Python environments are gymnasium's in a wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, Continuous_MountainCarEnv, PendulumEnv
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from torch import Tensor

from fastrl.envs.classic_control import tensor_ops as ops
from fastrl.envs.classic_control.cartpole import CartPole, CartPoleState
from fastrl.envs.classic_control.mountain_car import MountainCarContinuous, MountainCarState
from fastrl.envs.classic_control.pendulum import Pendulum, PendulumState
from fastrl.envs.tensor.base import TensorEnv
from fastrl.spec import EnvSpec


def _columns(space: spaces.Space[Any], columns: Sequence[int]) -> spaces.Box:
    """Return the space of some columns of a vector."""
    assert isinstance(space, spaces.Box)
    return spaces.Box(space.low[[*columns]], space.high[[*columns]], dtype=space.dtype.type)


def _spec(full: EnvSpec, columns: Sequence[int]) -> EnvSpec:
    name = full.id.replace("-", "NoVel-")
    return replace(full, id=name, observation_space=_columns(full.observation_space, columns))


class _NoVelocity(TensorEnv[Any, Any]):
    """Common base of the tasks; the full task is the second base class.

    Attributes:
        positions: Columns of the full task's observation that remain.
    """

    positions: ClassVar[tuple[int, ...]]

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """See `TensorEnv.spaces_within`."""
        seen, action = super().spaces_within(low, high)
        return _columns(seen, self.positions), action


class CartPoleNoVel(_NoVelocity, CartPole):  # type: ignore[misc]
    """``CartPoleNoVel-v1``: the position of the cart and the angle of the pole are observed."""

    positions = (0, 2)
    spec = _spec(CartPole.spec, positions)

    def observe(self, state: CartPoleState) -> Tensor:
        """Return ``[*, 2]``: x, theta."""
        return ops.columns(state.x, state.theta)


class PendulumNoVel(_NoVelocity, Pendulum):  # type: ignore[misc]
    """``PendulumNoVel-v1``: the angle is observed."""

    positions = (0, 1)
    spec = _spec(Pendulum.spec, positions)

    def observe(self, state: PendulumState) -> Tensor:
        """Return ``[*, 2]``: cos(theta), sin(theta)."""
        sine, cosine = ops.sincos(state.theta)
        return ops.columns(cosine, sine)


class MountainCarContinuousNoVel(_NoVelocity, MountainCarContinuous):  # type: ignore[misc]
    """``MountainCarContinuousNoVel-v0``: the position is observed."""

    positions = (0,)
    spec = _spec(MountainCarContinuous.spec, positions)

    def observe(self, state: MountainCarState) -> Tensor:
        """Return ``[*, 1]``: position."""
        return ops.columns(state.position)


class Columns(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Observes some columns of an environment's vector.

    Args:
        env: The environment.
        columns: Observed columns, in order.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], columns: Sequence[int]) -> None:
        RecordConstructorArgs.__init__(self, columns=columns)
        super().__init__(env)
        self._columns = list(columns)
        self.observation_space = _columns(env.observation_space, columns)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Return the columns of ``observation``."""
        return observation[self._columns]


def cartpole(**kwargs: Any) -> Columns:
    """Build ``CartPoleNoVel-v1`` of gymnasium's environment."""
    return Columns(CartPoleEnv(**kwargs), CartPoleNoVel.positions)


def pendulum(**kwargs: Any) -> Columns:
    """Build ``PendulumNoVel-v1`` of gymnasium's environment."""
    return Columns(PendulumEnv(**kwargs), PendulumNoVel.positions)


def mountain_car(**kwargs: Any) -> Columns:
    """Build ``MountainCarContinuousNoVel-v0`` of gymnasium's environment."""
    return Columns(Continuous_MountainCarEnv(**kwargs), MountainCarContinuousNoVel.positions)
