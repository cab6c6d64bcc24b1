"""Humanoid and HumanoidStandup: bipeds that observe inertia, actuation and contacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import Step, Terms
from fastrl.envs.mujoco.physics import Fields
from fastrl.envs.mujoco.robot_terms import (
    HealthyRobot,
    Range,
    Robot,
    control_cost,
    flat,
    gymnasium_arguments,
    inside,
)


class _Humanoid(Robot):
    """Observes inertia and velocities of its bodies, actuation and contact forces.

    Unlike version 4, it leaves out the immovable world and the actuation of the free joint.
    """

    frame_skip = 5

    def fields(self) -> Sequence[str]:
        return "xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        params = self.params
        skipped = 2 * params.exclude_current_positions_from_observation
        parts = [now.qpos[:, skipped:], now.qvel]
        if params.include_cinert_in_observation:
            parts.append(flat(now.cinert, 1))
        if params.include_cvel_in_observation:
            parts.append(flat(now.cvel, 1))
        if params.include_qfrc_actuator_in_observation:
            parts.append(now.qfrc_actuator[:, 6:])
        if params.include_cfrc_ext_in_observation:
            parts.append(flat(now.cfrc_ext, 1))
        return parts

    def contact_cost(self, now: Fields, weight: float, bounds: Range) -> NDArray[Any]:
        """Return the weighted sum of squares of contact forces, within bounds, ``[n]``."""
        squares = np.square(flat(now.cfrc_ext)).sum(1)
        cost: NDArray[Any] = np.clip(weight * squares, *bounds)
        return cost


class HumanoidV5(_Humanoid, HealthyRobot):
    """Gymnasium's Humanoid-v5."""

    id = "Humanoid-v5"
    xml_file = "humanoid.xml"
    Params = gymnasium_arguments("humanoid_v5:HumanoidEnv")

    def tracked(self, now: Fields) -> NDArray[Any]:
        # The first coordinate of the centre of mass.
        mass = np.atleast_2d(self.physics.parameter("body_mass"))
        centre: NDArray[Any] = (now.xipos[:, :, 0] * mass).sum(1) / mass.sum(1)
        return centre

    def reward(self, step: Step) -> Terms:
        params = self.params
        velocity = (step.after - step.before) / self.dt
        contact = (params.contact_cost_weight, params.contact_cost_range)
        return {
            "reward_survive": self.reward_of_health(step),
            "reward_forward": params.forward_reward_weight * velocity,
            "reward_ctrl": -control_cost(params.ctrl_cost_weight, step.now.ctrl),
            "reward_contact": -self.contact_cost(step.now, *contact),
        }

    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of robots with a torso at a healthy height, ``[n]``."""
        return inside(now.qpos[:, 2], self.params.healthy_z_range)


class HumanoidV4(HumanoidV5):
    """Gymnasium's Humanoid-v4."""

    id = "Humanoid-v4"
    _healthy_is_paid_always = True
    Params = gymnasium_arguments("humanoid_v4:HumanoidEnv")

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        return _everything(now, 2 * self.params.exclude_current_positions_from_observation)

    def reward(self, step: Step) -> Terms:
        params = self.params
        velocity = (step.after - step.before) / self.dt
        return {
            "reward_linvel": params.forward_reward_weight * velocity,
            "reward_alive": self.reward_of_health(step),
            "reward_quadctrl": -control_cost(params.ctrl_cost_weight, step.now.ctrl),
        }


class HumanoidStandupV5(_Humanoid):
    """Gymnasium's HumanoidStandup-v5."""

    id = "HumanoidStandup-v5"
    xml_file = "humanoidstandup.xml"
    Params = gymnasium_arguments("humanoidstandup_v5:HumanoidStandupEnv")

    def reward(self, step: Step) -> Terms:
        params = self.params
        # Gymnasium accepts the argument uph_cost_weight, but does not use it in the reward.
        height = step.now.qpos[:, 2] / self.physics.parameter("timestep")
        impact = (params.impact_cost_weight, params.impact_cost_range)
        return {
            "reward_linup": height,
            "reward_quadctrl": -control_cost(params.ctrl_cost_weight, step.now.ctrl),
            "reward_impact": -self.contact_cost(step.now, *impact),
            "reward_alive": 1.0,
        }


class HumanoidStandupV4(HumanoidStandupV5):
    """Gymnasium's HumanoidStandup-v4."""

    id = "HumanoidStandup-v4"
    Params = gymnasium_arguments(
        "humanoidstandup_v4:HumanoidStandupEnv",
        ctrl_cost_weight=0.1,
        impact_cost_weight=5e-7,
        impact_cost_range=(-np.inf, 10.0),
        reset_noise_scale=1e-2,
    )

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        return _everything(now, 2)


def _everything(now: Fields, skipped: int) -> Sequence[NDArray[Any]]:
    """Return the observation of version 4, which includes the immovable world's rows."""
    bodies = (flat(now.cinert), flat(now.cvel))
    return now.qpos[:, skipped:], now.qvel, *bodies, now.qfrc_actuator, flat(now.cfrc_ext)
