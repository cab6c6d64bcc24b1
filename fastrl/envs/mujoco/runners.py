"""HalfCheetah, Hopper, Walker2d and Swimmer: planar robots that are rewarded for moving forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import Step, Terms
from fastrl.envs.mujoco.physics import Fields
from fastrl.envs.mujoco.robot_terms import (
    HealthyRobot,
    Robot,
    control_cost,
    gymnasium_arguments,
    inside,
)


class _Runner(Robot):
    """A robot with a reward for the first coordinate's velocity and a cost of control."""

    _skipped = 1
    """Number of leading positions that may be left out of the observation."""

    def tracked(self, now: Fields) -> NDArray[Any]:
        return now.qpos[:, 0]

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        skipped = self._skipped * self.params.exclude_current_positions_from_observation
        return now.qpos[:, skipped:], now.qvel

    def reward(self, step: Step) -> Terms:
        velocity = (step.after - step.before) / self.dt
        return {
            "reward_forward": self.params.forward_reward_weight * velocity,
            "reward_ctrl": -control_cost(self.params.ctrl_cost_weight, step.action),
        }


class HalfCheetahV5(_Runner):
    """Gymnasium's HalfCheetah-v5."""

    id = "HalfCheetah-v5"
    xml_file = "half_cheetah.xml"
    frame_skip = 5
    _has_normal_velocities = True
    Params = gymnasium_arguments("half_cheetah_v5:HalfCheetahEnv")


class HalfCheetahV4(HalfCheetahV5):
    """Gymnasium's HalfCheetah-v4."""

    id = "HalfCheetah-v4"
    Params = gymnasium_arguments("half_cheetah_v4:HalfCheetahEnv")


class SwimmerV5(_Runner):
    """Gymnasium's Swimmer-v5."""

    id = "Swimmer-v5"
    xml_file = "swimmer.xml"
    frame_skip = 4
    _skipped = 2
    Params = gymnasium_arguments("swimmer_v5:SwimmerEnv")


class SwimmerV4(SwimmerV5):
    """Gymnasium's Swimmer-v4."""

    id = "Swimmer-v4"
    Params = gymnasium_arguments("swimmer_v4:SwimmerEnv")


class _Healthy(_Runner, HealthyRobot):
    """A runner whose episode may end when it is unhealthy."""

    frame_skip = 4

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        skipped = int(self.params.exclude_current_positions_from_observation)
        return now.qpos[:, skipped:], np.clip(now.qvel, -10, 10)

    def reward(self, step: Step) -> Terms:
        return {**super().reward(step), "reward_survive": self.reward_of_health(step)}

    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of upright robots, ``[n]``."""
        params = self.params
        upright = inside(now.qpos[:, 1], params.healthy_z_range)
        return upright & inside(now.qpos[:, 2], params.healthy_angle_range)


class HopperV5(_Healthy):
    """Gymnasium's Hopper-v5."""

    id = "Hopper-v5"
    xml_file = "hopper.xml"
    Params = gymnasium_arguments("hopper_v5:HopperEnv")

    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of upright robots in a bounded state, ``[n]``."""
        bounds = self.params.healthy_state_range
        bounded = inside(now.qpos[:, 2:], bounds).all(1) & inside(now.qvel, bounds).all(1)
        return super().healthy(now) & bounded


class HopperV4(HopperV5):
    """Gymnasium's Hopper-v4."""

    id = "Hopper-v4"
    Params = gymnasium_arguments("hopper_v4:HopperEnv")

    _healthy_is_paid_always = True


class Walker2dV5(_Healthy):
    """Gymnasium's Walker2d-v5."""

    id = "Walker2d-v5"
    xml_file = "walker2d_v5.xml"
    Params = gymnasium_arguments("walker2d_v5:Walker2dEnv")


class Walker2dV4(Walker2dV5):
    """Gymnasium's Walker2d-v4, with the friction that version 5 corrected."""

    id = "Walker2d-v4"
    xml_file = "walker2d.xml"
    Params = gymnasium_arguments("walker2d_v4:Walker2dEnv")

    _healthy_is_paid_always = True
