"""InvertedPendulum and InvertedDoublePendulum: poles on a cart that are rewarded for staying up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.mujoco.batched import Step, Terms
from fastrl.envs.mujoco.physics import Fields
from fastrl.envs.mujoco.robot_terms import Robot, gymnasium_arguments


class InvertedPendulumV5(Robot):
    """Gymnasium's InvertedPendulum-v5."""

    id = "InvertedPendulum-v5"
    xml_file = "inverted_pendulum.xml"
    frame_skip = 2
    Params = gymnasium_arguments("inverted_pendulum_v5:InvertedPendulumEnv")

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        return now.qpos, now.qvel

    def terminated(self, now: Fields) -> NDArray[np.bool_]:
        finite = np.isfinite(now.qpos).all(1) & np.isfinite(now.qvel).all(1)
        return ~finite | (np.abs(now.qpos[:, 1]) > 0.2)

    def reward(self, step: Step) -> Terms:
        assert step.terminated is not None
        return {"reward_survive": (~step.terminated).astype(np.float64)}


class InvertedPendulumV4(InvertedPendulumV5):
    """Gymnasium's InvertedPendulum-v4, which rewards the last step, too."""

    id = "InvertedPendulum-v4"
    Params = gymnasium_arguments("inverted_pendulum_v4:InvertedPendulumEnv", reset_noise_scale=0.01)

    def reward(self, step: Step) -> Terms:
        return {"reward_survive": 1.0}


class InvertedDoublePendulumV5(Robot):
    """Gymnasium's InvertedDoublePendulum-v5."""

    id = "InvertedDoublePendulum-v5"
    xml_file = "inverted_double_pendulum.xml"
    frame_skip = 5
    _has_normal_velocities = True
    _observed_constraint_forces = 1
    Params = gymnasium_arguments("inverted_double_pendulum_v5:InvertedDoublePendulumEnv")

    def fields(self) -> Sequence[str]:
        return "site_xpos", "qfrc_constraint"

    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        angles = now.qpos[:, 1:]
        forces = now.qfrc_constraint[:, : self._observed_constraint_forces]
        trigonometry = (np.sin(angles), np.cos(angles))
        clipped = (np.clip(now.qvel, -10, 10), np.clip(forces, -10, 10))
        return now.qpos[:, :1], *trigonometry, *clipped

    def terminated(self, now: Fields) -> NDArray[np.bool_]:
        return now.site_xpos[:, 0, 2] <= 1

    def reward(self, step: Step) -> Terms:
        assert step.terminated is not None
        alive = self.params.healthy_reward * ~step.terminated
        return {"reward_survive": alive, **_penalties(step.now)}


class InvertedDoublePendulumV4(InvertedDoublePendulumV5):
    """Gymnasium's InvertedDoublePendulum-v4, which rewards the last step, too."""

    id = "InvertedDoublePendulum-v4"
    Params = gymnasium_arguments(
        "inverted_double_pendulum_v4:InvertedDoublePendulumEnv", reset_noise_scale=0.1
    )

    _observed_constraint_forces = 3

    def reward(self, step: Step) -> Terms:
        return {"reward_survive": 10.0, **_penalties(step.now)}


def _penalties(now: Fields) -> Terms:
    """Return the cost of the tip's distance from its place and of the poles' speeds."""
    x, y = now.site_xpos[:, 0, 0], now.site_xpos[:, 0, 2]
    first, second = now.qvel[:, 1], now.qvel[:, 2]
    return {
        "distance_penalty": -(0.01 * x**2 + (y - 2) ** 2),
        "velocity_penalty": -(1e-3 * first**2 + 5e-3 * second**2),
    }
