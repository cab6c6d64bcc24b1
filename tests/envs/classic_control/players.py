"""Play fastrl's environments beside gymnasium's, and compare every step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fastrl.envs.classic_control.control_batch import ClassicControlBatch
from fastrl.envs.tensor import make_tensor
from tests.envs.classic_control.gymnasium_twin import NAMES, GymnasiumTwin
from tests.envs.stepping import views

# Of 1 + the magnitude. Every step is compared with double precision, from the same state; Acrobot's
# goes through four stages with velocities of up to 28 rad/s.
TOLERANCE = {name: 5e-7 for name in NAMES} | {"Acrobot-v1": 4e-6}


def put(env: ClassicControlBatch, states: np.ndarray) -> None:
    """Set the states ``[n, S]`` of environments, at the start of their episodes."""
    saved = env.get_state()
    env.set_state({**saved, "state": states.T.astype(np.float32), "time": 0 * saved["time"]})


class Comparison(NamedTuple):
    """Results of a play.

    Attributes:
        episodes: Episodes that ended.
        steps: Steps of all environments.
        largest_error: Largest error of an observation, relative to 1 + its magnitude.
        return_mean: Mean return of the episodes.
    """

    episodes: int
    steps: int
    largest_error: float
    return_mean: float


class TensorPlayer:
    """Steps the tensor program, which takes actions as they are."""

    def __init__(self, name, num_envs, seed):
        self.env, self.params = make_tensor(name)
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = (num_envs,)
        self.observation, self.now = self.env.reset(self._noise(), self.params)

    def state(self):
        return torch.stack(self.now[:-1], dim=-1).numpy()

    def inside(self, actions):
        return actions

    def step(self, actions):
        self.observation, self.now, reward, terminated, truncated, info = self.env.step(
            self.now, torch.from_numpy(actions), self._noise(), self.params
        )
        return [x.numpy() for x in (info["final_observation"], reward, terminated, truncated)]

    def _noise(self):
        return self.env.draw_noise(self.shape, self.generator)


class BatchPlayer:
    """Steps the compiled loops, which clip the samples of a policy to the bounds."""

    def __init__(self, name, num_envs, seed):
        self.env = ClassicControlBatch(name, num_envs)
        self.observation = np.zeros((num_envs, *self.env.spec.observation_space.shape), np.float32)
        self.env.reset(range(seed, seed + num_envs), (self.observation,))

    def state(self):
        return torch.stack(self.env.state()[:-1], dim=-1).numpy()

    def inside(self, actions):
        space = self.env.spec.action_space
        return np.clip(actions, space.low, space.high) if space.shape else actions

    def step(self, actions):
        seen = views(self.env.spec, len(actions), (actions,))
        self.env.step(seen)
        ended = (seen.terminated | seen.truncated)[:, None]
        self.observation = seen.observation[0]
        reached = np.where(ended, seen.final_observation[0], self.observation)
        return reached, seen.reward, seen.terminated, seen.truncated


def play(player, name, behaviour, num_envs, episodes) -> Comparison:
    """Play beside gymnasium until ``episodes`` have ended.

    Raises:
        AssertionError: A step differs by more than float32 rounding.
    """
    twin = GymnasiumTwin(name, num_envs)
    rng = np.random.default_rng(1)
    limit = make_tensor(name)[0].spec.max_episode_steps
    ages, returns, finished = np.zeros(num_envs, int), np.zeros(num_envs), []
    largest_error, steps = 0.0, 0
    while len(finished) < episodes:
        actions = behaviour(name, np.asarray(player.observation), rng)
        expected, expected_reward, expected_end = twin.step(player.state(), player.inside(actions))
        reached, reward, terminated, truncated = player.step(actions)
        ages += 1
        steps += num_envs
        returns += reward

        error = float((np.abs(reached - expected) / (1 + np.abs(expected))).max())
        assert error < TOLERANCE[name]
        largest_error = max(largest_error, error)
        np.testing.assert_allclose(reward, expected_reward, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(terminated, expected_end)
        np.testing.assert_array_equal(truncated, (ages == limit) & ~expected_end)

        ended = terminated | truncated
        finished += returns[ended].tolist()
        ages[ended], returns[ended] = 0, 0
    return Comparison(len(finished), steps, largest_error, float(np.mean(finished)))
