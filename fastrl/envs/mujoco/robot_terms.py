"""Common parts of first states, health, rewards and observations of gymnasium's robots."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import field, make_dataclass
from inspect import signature
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import MujocoBatchedEnv, Step
from fastrl.envs.mujoco.physics import Fields, Floats

Range = tuple[float, float]


def gymnasium_arguments(path: str, **constants: Any) -> type[Any]:
    """Return a dataclass of the keyword arguments by which steps of gymnasium's robot differ.

    Args:
        path: Module and class in ``gymnasium.envs.mujoco``, such as ``ant_v5:AntEnv``.
        **constants: Attributes of the dataclass: numbers which are no arguments of this version.
    """
    known = signature(load_env_creator(f"gymnasium.envs.mujoco.{path}")).parameters.values()
    arguments: list[tuple[str, Any, Any]] = []
    for each in known:
        if each.default is not each.empty and each.name != "default_camera_config":
            is_weight = type(each.default) is int and each.annotation in (float, each.empty)
            default = float(each.default) if is_weight else each.default
            kind = type(default) if each.annotation is each.empty else each.annotation
            arguments.append((each.name, kind, field(default=default)))
    name = path.replace(":", "_")
    return make_dataclass(name, arguments, namespace=constants, frozen=True, kw_only=True)


class Robot(MujocoBatchedEnv):
    """A robot whose first state is the model's own, with noise."""

    params: Any
    time_limit = 1000
    _has_normal_velocities = False
    """Whether the noise of first velocities is normal."""

    def initial(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Return positions and velocities with uniform noise in [-scale, scale).

        The scale is the parameter ``reset_noise_scale``, and the deviation of normal noise.
        """
        model, scale = self.physics.model, self.params.reset_noise_scale
        qpos = self.physics.initial_qpos + generator.uniform(-scale, scale, model.nq)
        if self._has_normal_velocities:
            return qpos, scale * generator.standard_normal(model.nv)
        return qpos, generator.uniform(-scale, scale, model.nv)


class HealthyRobot(Robot):
    """A robot that is rewarded for being healthy, whose episode may end when it is not."""

    _healthy_is_paid_always = False
    """Version 4 also rewards health in the step that ends an episode as unhealthy."""

    @abstractmethod
    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of healthy robots, ``[n]``."""

    def terminated(self, now: Fields) -> NDArray[np.bool_] | None:
        """Return flags of robots whose episode ends, ``[n]``; None if health does not matter."""
        return ~self.healthy(now) if self.params.terminate_when_unhealthy else None

    def reward_of_health(self, step: Step) -> NDArray[Any]:
        """Return the reward for being healthy, ``[n]``."""
        healthy = self.healthy(step.now) if step.terminated is None else ~step.terminated
        if self._healthy_is_paid_always and self.params.terminate_when_unhealthy:
            healthy = np.ones_like(healthy)
        reward: NDArray[Any] = self.params.healthy_reward * healthy
        return reward


def control_cost(weight: float, action: NDArray[Any]) -> NDArray[Any]:
    """Return the weighted sum of squares of each row, ``[n]``, in the action's own dtype.

    Gymnasium squares and adds float32 actions in float32, which changes the eighth digit.
    """
    squares: NDArray[Any] = np.square(action).sum(1)
    return weight * squares


def inside(values: NDArray[Any], bounds: Range) -> NDArray[np.bool_]:
    """Return flags of values strictly between two bounds."""
    low, high = bounds
    return (low < values) & (values < high)


def flat(field: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """Return ``[n, bodies * k]`` of ``[n, bodies, k]`` from body ``first`` on; a view."""
    return field.reshape(len(field), -1)[:, first * field.shape[2] :]
