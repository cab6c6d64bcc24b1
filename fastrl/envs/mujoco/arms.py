"""Reacher and Pusher: arms that are rewarded for being near a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import MujocoBatchedEnv, Step, Terms
from fastrl.envs.mujoco.physics import Fields, Floats
from fastrl.envs.mujoco.robot_terms import control_cost, gymnasium_arguments


class ReacherV5(MujocoBatchedEnv):
    """Gymnasium's Reacher-v5."""

    id = "Reacher-v5"
    xml_file = "reacher.xml"
    frame_skip = 2
    time_limit = 50
    params: Any
    Params = gymnasium_arguments("reacher_v5:ReacherEnv")

    def fields(self) -> Sequence[str]:
        return ("xpos",)

    def setup(self) -> None:
        model = self.physics.model
        self._fingertip, self._target = (model.body(name).id for name in ("fingertip", "target"))

    def initial(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        model = self.physics.model
        qpos = generator.uniform(-0.1, 0.1, model.nq) + self.physics.initial_qpos
        goal = generator.uniform(-0.2, 0.2, 2)
        while np.linalg.norm(goal) >= 0.2:
            goal = generator.uniform(-0.2, 0.2, 2)
        qpos[-2:] = goal
        qvel = generator.uniform(-0.005, 0.005, model.nv)
        qvel[-2:] = 0.0
        return qpos, qvel

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        angles = now.qpos[:, :2]
        parts = (np.cos(angles), np.sin(angles), now.qpos[:, 2:], now.qvel[:, :2])
        return *parts, self._offset(now)[:, :2]

    def reward(self, step: Step) -> Terms:
        params = self.params
        return {
            "reward_dist": -params.reward_dist_weight * _length(self._offset(step.now)),
            "reward_ctrl": -control_cost(params.reward_control_weight, step.action),
        }

    def _offset(self, now: Fields) -> NDArray[Any]:
        """Return the vector from the target to the fingertip, ``[n, 3]``."""
        return now.xpos[:, self._fingertip] - now.xpos[:, self._target]


class ReacherV4(ReacherV5):
    """Gymnasium's Reacher-v4, whose reward is for the fingertip's position before the step."""

    id = "Reacher-v4"
    Params = gymnasium_arguments("reacher_v4:ReacherEnv")

    def tracked(self, now: Fields) -> NDArray[Any]:
        return self._offset(now)

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        *parts, _ = super().observation(now)
        return *parts, self._offset(now)

    def reward(self, step: Step) -> Terms:
        return {
            "reward_dist": -_length(step.before),
            "reward_ctrl": -control_cost(1.0, step.action),
        }


class PusherV5(MujocoBatchedEnv):
    """Gymnasium's Pusher-v5; version 4 needs MuJoCo before 3.0."""

    id = "Pusher-v5"
    xml_file = "pusher_v5.xml"
    frame_skip = 5
    time_limit = 100
    params: Any
    Params = gymnasium_arguments("pusher_v5:PusherEnv")

    def fields(self) -> Sequence[str]:
        return ("xpos",)

    def setup(self) -> None:
        model = self.physics.model
        self._bodies = [model.body(name).id for name in ("tips_arm", "object", "goal")]

    def initial(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        qpos = self.physics.initial_qpos
        cylinder = _cylinder(generator)
        while np.linalg.norm(cylinder) <= 0.17:
            cylinder = _cylinder(generator)
        qpos[-4:-2] = cylinder
        qpos[-2:] = 0.0
        qvel = generator.uniform(-0.005, 0.005, self.physics.model.nv)
        qvel[-4:] = 0.0
        return qpos, qvel

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        bodies = now.xpos[:, self._bodies].reshape(len(now.xpos), -1)
        return now.qpos[:, :7], now.qvel[:, :7], bodies

    def reward(self, step: Step) -> Terms:
        params = self.params
        arm, cylinder, goal = (step.now.xpos[:, body] for body in self._bodies)
        return {
            "reward_dist": -params.reward_dist_weight * _length(cylinder - goal),
            "reward_ctrl": -control_cost(params.reward_control_weight, step.action),
            "reward_near": -params.reward_near_weight * _length(cylinder - arm),
        }


def _cylinder(generator: np.random.Generator) -> Floats:
    return np.array([generator.uniform(-0.3, 0.0), generator.uniform(-0.2, 0.2)])


def _length(vectors: NDArray[Any]) -> NDArray[Any]:
    lengths: NDArray[Any] = np.sqrt(np.square(vectors).sum(1))
    return lengths
