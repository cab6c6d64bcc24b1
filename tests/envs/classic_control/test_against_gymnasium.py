from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrl.envs.classic_control.batch import ClassicControlBatch
from fastrl.envs.tensor import make_tensor
from tests.envs.classic_control.gymnasium_twin import (
    NAMES,
    SOLVED,
    GymnasiumTwin,
    random_actions,
    skilled_actions,
)
from tests.envs.stepping import views

# Of 1 + the magnitude. Every step is held against double precision, from the same state; Acrobot's
# goes through four stages with velocities of up to 28 rad/s.
TOLERANCE = {name: 5e-7 for name in NAMES} | {"Acrobot-v1": 4e-6}


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
    """Steps the compiled loops, which are given samples of a policy and keep them inside bounds."""

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


def play(player, name, behaviour, num_envs, episodes):
    """Play beside gymnasium until ``episodes`` have ended; return their mean return."""
    twin = GymnasiumTwin(name, num_envs)
    rng = np.random.default_rng(1)
    limit = make_tensor(name)[0].spec.max_episode_steps
    ages, returns, finished = np.zeros(num_envs, int), np.zeros(num_envs), []
    while len(finished) < episodes:
        actions = behaviour(name, np.asarray(player.observation), rng)
        expected, expected_reward, expected_end = twin.step(player.state(), player.inside(actions))
        reached, reward, terminated, truncated = player.step(actions)
        ages += 1
        returns += reward

        error = np.abs(reached - expected) / (1 + np.abs(expected))
        assert error.max() < TOLERANCE[name]
        np.testing.assert_allclose(reward, expected_reward, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(terminated, expected_end)
        np.testing.assert_array_equal(truncated, (ages == limit) & ~expected_end)

        ended = terminated | truncated
        finished += returns[ended].tolist()
        ages[ended], returns[ended] = 0, 0
    return np.mean(finished)


PLAYERS = pytest.mark.parametrize("player", [TensorPlayer, BatchPlayer])


@PLAYERS
@pytest.mark.parametrize("name", NAMES)
def test_random_play_equals_gymnasium(name, player):
    play(player(name, 8, seed=3), name, random_actions, 8, 8)


@PLAYERS
@pytest.mark.parametrize("name", NAMES)
def test_skilled_play_equals_gymnasium_and_solves_the_task(name, player):
    assert play(player(name, 8, seed=5), name, skilled_actions, 8, 16) > SOLVED[name]


@pytest.mark.slow
@PLAYERS
@pytest.mark.parametrize("behaviour", [random_actions, skilled_actions])
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_episodes_equal_gymnasium(name, behaviour, player):
    play(player(name, 250, seed=7), name, behaviour, 250, 1000)
