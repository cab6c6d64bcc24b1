"""HalfCheetah, Hopper, Walker2d and Swimmer: planar robots that are rewarded for moving forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    inside,
)


@dataclass(frozen=True, kw_only=True)
class RunnerParameters:
    """Common parts of gymnasium's planar robots; defaults of HalfCheetah."""

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True


@dataclass(frozen=True, kw_only=True)
class HealthyParameters(RunnerParameters):
    """A robot that is rewarded for being healthy, whose episode may end when it is not."""

    ctrl_cost_weight: float = 1e-3
    reset_noise_scale: float = 5e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: Range = (0.8, 2.0)
    healthy_angle_range: Range = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class HopperParameters(HealthyParameters):
    """A healthy hopper's state is bounded, too."""

    healthy_state_range: Range = (-100.0, 100.0)
    healthy_z_range: Range = (0.7, float("inf"))
    healthy_angle_range: Range = (-0.2, 0.2)


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

    @dataclass(frozen=True, kw_only=True)
    class Params(RunnerParameters):
        xml_file: str = "half_cheetah.xml"
        frame_skip: int = 5


class HalfCheetahV4(HalfCheetahV5):
    """Gymnasium's HalfCheetah-v4."""

    id = "HalfCheetah-v4"

    class Params(RunnerParameters):
        """Gymnasium's keyword arguments."""


class SwimmerV5(_Runner):
    """Gymnasium's Swimmer-v5."""

    id = "Swimmer-v5"
    xml_file = "swimmer.xml"
    frame_skip = 4
    _skipped = 2

    @dataclass(frozen=True, kw_only=True)
    class Params(RunnerParameters):
        xml_file: str = "swimmer.xml"
        frame_skip: int = 4
        ctrl_cost_weight: float = 1e-4


class SwimmerV4(SwimmerV5):
    """Gymnasium's Swimmer-v4."""

    id = "Swimmer-v4"

    @dataclass(frozen=True, kw_only=True)
    class Params(RunnerParameters):
        ctrl_cost_weight: float = 1e-4


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

    @dataclass(frozen=True, kw_only=True)
    class Params(HopperParameters):
        xml_file: str = "hopper.xml"
        frame_skip: int = 4

    def healthy(self, now: Fields) -> NDArray[np.bool_]:
        """Return flags of upright robots in a bounded state, ``[n]``."""
        bounds = self.params.healthy_state_range
        bounded = inside(now.qpos[:, 2:], bounds).all(1) & inside(now.qvel, bounds).all(1)
        return super().healthy(now) & bounded


class HopperV4(HopperV5):
    """Gymnasium's Hopper-v4."""

    id = "Hopper-v4"

    class Params(HopperParameters):
        """Gymnasium's keyword arguments."""

    _healthy_is_paid_always = True


class Walker2dV5(_Healthy):
    """Gymnasium's Walker2d-v5."""

    id = "Walker2d-v5"
    xml_file = "walker2d_v5.xml"

    @dataclass(frozen=True, kw_only=True)
    class Params(HealthyParameters):
        xml_file: str = "walker2d_v5.xml"
        frame_skip: int = 4


class Walker2dV4(Walker2dV5):
    """Gymnasium's Walker2d-v4, with the friction that version 5 corrected."""

    id = "Walker2d-v4"
    xml_file = "walker2d.xml"

    class Params(HealthyParameters):
        """Gymnasium's keyword arguments."""

    _healthy_is_paid_always = True
