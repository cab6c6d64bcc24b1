"""Ant: a robot on four legs that is rewarded for moving forward, and observes contacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief, is_whole, nearest
from fastrl.envs.mujoco.batched import Step, Terms
from fastrl.envs.mujoco.physics import Fields
from fastrl.envs.mujoco.robot_terms import HealthyRobot, control_cost, flat, gymnasium_arguments
from fastrl.errors import EnvError


class AntV5(HealthyRobot):
    """Gymnasium's Ant-v5."""

    id = "Ant-v5"
    xml_file = "ant.xml"
    frame_skip = 5
    _has_normal_velocities = True
    Params = gymnasium_arguments("ant_v5:AntEnv")

    def fields(self) -> Sequence[str]:
        return "xpos", "cfrc_ext"

    def setup(self) -> None:
        self._main_body = _body(self.physics.model, self.params.main_body)

    def tracked(self, now: Fields) -> NDArray[Any]:
        return now.xpos[:, self._main_body, 0]

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        skipped = 2 * self.params.exclude_current_positions_from_observation
        parts = (now.qpos[:, skipped:], now.qvel)
        if self.params.include_cfrc_ext_in_observation:
            return *parts, self._contact_forces(now)[:, 6:]
        return parts

    def reward(self, step: Step) -> Terms:
        params = self.params
        velocity = (step.after - step.before) / self.dt
        squares = np.square(self._contact_forces(step.now)).sum(1)
        return {
            "reward_forward": params.forward_reward_weight * velocity,
            "reward_ctrl": -control_cost(params.ctrl_cost_weight, step.action),
            "reward_contact": -params.contact_cost_weight * squares,
            "reward_survive": self.reward_of_health(step),
        }

    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of robots with a finite state and a torso at a healthy height, ``[n]``."""
        low, high = self.params.healthy_z_range
        height = now.qpos[:, 2]
        finite = np.isfinite(now.qpos).all(1) & np.isfinite(now.qvel).all(1)
        healthy: NDArray[np.bool_] = finite & (low <= height) & (height <= high)
        return healthy

    def _contact_forces(self, now: Fields) -> NDArray[Any]:
        low, high = self.params.contact_force_range
        forces: NDArray[Any] = np.clip(flat(now.cfrc_ext), low, high)
        return forces


class AntV4(AntV5):
    """Gymnasium's Ant-v4."""

    id = "Ant-v4"
    _healthy_is_paid_always = True
    Params = gymnasium_arguments("ant_v4:AntEnv")

    def fields(self) -> Sequence[str]:
        return ("xpos", "cfrc_ext") if self.params.use_contact_forces else ("xpos",)

    def setup(self) -> None:
        self._main_body = _body(self.physics.model, "torso")

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        skipped = 2 * self.params.exclude_current_positions_from_observation
        parts = (now.qpos[:, skipped:], now.qvel)
        return (*parts, self._contact_forces(now)) if self.params.use_contact_forces else parts

    def reward(self, step: Step) -> Terms:
        params = self.params
        terms = {
            "reward_forward": (step.after - step.before) / self.dt,
            "reward_survive": self.reward_of_health(step),
            "reward_ctrl": -control_cost(params.ctrl_cost_weight, step.action),
        }
        if params.use_contact_forces:
            squares = np.square(self._contact_forces(step.now)).sum(1)
            terms["reward_contact"] = -params.contact_cost_weight * squares
        return terms


def _body(model: mujoco.MjModel, which: int | str) -> int:
    """Return the index of a body.

    Raises:
        EnvError: The model has no such body.
    """
    index = -1
    if is_whole(which):
        index = int(which)
    elif isinstance(which, str):
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, which)
    if not 0 <= index < model.nbody:
        names = [model.body(each).name for each in range(model.nbody)]
        hint = nearest(str(which), names) or f"; it has {', '.join(names)}"
        raise EnvError(f"main_body: the model has no body {brief(which)}{hint}")
    return index
