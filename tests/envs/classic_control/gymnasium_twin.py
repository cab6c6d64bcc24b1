"""Gymnasium's environments set to given states: the reference for fastrl's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastrl.config import ModelConfig
from fastrl.envs.tensor import TENSOR_ENVS, make_tensor
from fastrl.models import ActorCritic

TRAINED = Path(__file__).parent / "trained"
NAMES = sorted(name for name in TENSOR_ENVS if "NoVel" not in name)
FIRST = [
    name if name in ("CartPole-v1", "Pendulum-v1") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
"""Parameters of long tests: a task per kind of action; the rest are marked slow."""


class GymnasiumTwin:
    """n of gymnasium's environments, which start each step from given states."""

    def __init__(self, name: str, num_envs: int) -> None:
        self._envs = [
            gymnasium.make(name, disable_env_checker=True).unwrapped for _ in range(num_envs)
        ]
        for env in self._envs:
            env.reset(seed=0)

    def step(self, states, actions):
        """Return observations, rewards and terminations after one step from ``states [n, k]``."""
        results = []
        for env, state, action in zip(self._envs, states, actions, strict=True):
            env.state = np.asarray(state, np.float64)
            env.steps_beyond_terminated = None
            results.append(env.step(action)[:3])
        observations, rewards, terminated = zip(*results, strict=True)
        return (
            np.stack(observations),
            np.array(rewards, np.float64),
            np.array(terminated, np.bool_),
        )


def random_actions(name: str, observations, rng):
    """Return random actions; continuous ones reach beyond their bounds."""
    n = len(observations)
    match name:
        case "CartPole-v1":
            return rng.integers(0, 2, n)
        case "MountainCar-v0" | "Acrobot-v1":
            return rng.integers(0, 3, n)
        case "Pendulum-v1":
            return rng.uniform(-2.5, 2.5, (n, 1)).astype(np.float32)
    return rng.uniform(-1.25, 1.25, (n, 1)).astype(np.float32)


def skilled_actions(name: str, observations, rng):
    """Return the actions of a controller that solves the task with the return `SOLVED`."""
    match name:
        case "CartPole-v1":
            x, x_dot, theta, theta_dot = observations.T
            return (0.05 * x + 0.1 * x_dot + theta + 0.3 * theta_dot > 0).astype(np.int64)
        case "MountainCar-v0":
            return np.where(observations[:, 1] >= 0, 2, 0)
        case "MountainCarContinuous-v0":
            return np.where(observations[:, 1:] >= 0, 1.0, -1.0).astype(np.float32)
        case "Acrobot-v1":
            return np.where(observations[:, 5] > 0, 2, 0)
    cosine, sine, velocity = observations.T
    # Pump energy until upright is within reach, then hold it there.
    energy = velocity**2 / 6 + 5 * cosine - 5
    pump = np.where(velocity * energy <= 0, 2.0, -2.0)
    hold = -10 * np.arctan2(sine, cosine) - 2 * velocity
    return np.where(cosine > 0.92, hold, pump)[:, None].astype(np.float32)


def trained_actions(name: str, observations, rng):
    """Return samples of a policy that `train.py` trained."""
    model = _trained(name)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.inference_mode():
        noise = model.draw_noise((len(observations),), generator)
        action = model.act({"": torch.from_numpy(np.asarray(observations))}, noise).action
    return action[""].numpy()


@cache
def _trained(name: str) -> ActorCritic:
    weights = load_file(TRAINED / f"{name}.safetensors")
    config = ModelConfig(
        hidden_sizes=(32,),
        shared_body=False,
        normalize_observations=any("normalizers" in key for key in weights),
    )
    model = ActorCritic(make_tensor(name)[0].spec, config)
    model.load_state_dict(weights)
    return model.eval()


SOLVED = {
    "Acrobot-v1": -100,
    "CartPole-v1": 475,
    "MountainCar-v0": -130,
    "MountainCarContinuous-v0": 88,
    "Pendulum-v1": -200,
}
"""Lower bound of the mean return of `skilled_actions`."""

LEARNT = {
    "Acrobot-v1": -120,
    "CartPole-v1": 450,
    "MountainCar-v0": -150,
    "MountainCarContinuous-v0": 60,
    "Pendulum-v1": -300,
}
"""Lower bound of the mean return of `trained_actions`, which are noisy samples."""
