"""Compile the kernels once before parallel tests, as ``make test`` does.

On a clean checkout the code for Crafter, classic control and the learners takes two minutes of a
core, and processes that need it at the same time compile it at the same time.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch

import fastrl
from fastrl.config import load_config
from fastrl.envs.tensor import make_tensor

STEPPED = ("fastrl/Crafter-v1", "fastrl/CartPole-v1", "fastrl/Pendulum-v1", "fastrl/Acrobot-v1")
STEPPED += ("fastrl/MountainCar-v0", "fastrl/MountainCarContinuous-v0")
WITHOUT_VELOCITIES = ("CartPoleNoVel-v1", "PendulumNoVel-v1", "MountainCarContinuousNoVel-v0")
STEPPED += tuple(f"fastrl/{name}" for name in WITHOUT_VELOCITIES)
LOOPS = ("CartPole-v1", "Pendulum-v1", *WITHOUT_VELOCITIES)
TRAINED = [
    ("CartPole-v1", "algorithm.name=ppo"),
    ("CartPole-v1", "algorithm.name=a2c"),
    ("Pendulum-v1", "algorithm.name=ppo"),
    ("CartPole-v1", "algorithm.name=ppo", "model.recurrent=gru"),
]
TINY = ("total_steps=64", "sampler=serial", "sampler.num_envs=4", "sampler.rollout_length=16")
TINY += ("evaluation.enabled=false", "logging.tensorboard=false")


def main() -> None:
    for env_id in STEPPED:
        with fastrl.make_vec(env_id, 2, backend="native") as envs:
            envs.reset(seed=0)
            envs.step(envs.action_space.sample())
    for name in LOOPS:
        env, params = make_tensor(name, compiled=True)
        noise = env.draw_noise((2,))
        _, state = env.reset(noise, params)
        action = torch.from_numpy(np.stack([env.spec.action_space.sample()] * 2))
        of_each = type(params)(*(value.repeat(2) for value in params[:-1]), params[-1])
        for given in (params, of_each):
            env.step(state, action, noise, given)
    for number, (env_id, *changes) in enumerate(TRAINED):
        with tempfile.TemporaryDirectory() as directory:
            given = [f"env.id={env_id}", *changes, *TINY, f"run_dir={directory}/{number}"]
            fastrl.train(load_config(overrides=given))


if __name__ == "__main__":
    main()
