from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import fastrl.envs.crafter_native  # noqa: F401
from fastrl.envs.crafter_native.worlds_by_id import CrafterEnv
from fastrl.errors import ArgumentError, EnvError
from tests.envs.crafter_native.reference import original

ID = "fastrl/Crafter-v1"
SMALL = {"area": (24, 24)}


def test_make_vec_builds_the_batch_with_the_original_s_spaces():
    env = gymnasium.make_vec(ID, num_envs=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space == CrafterEnv().observation_space
    assert env.single_action_space == CrafterEnv().action_space
    observation, _ = env.reset(seed=[5, 6, 7])
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation[2], original(7).reset())
    env.close()


def test_later_episodes_follow_as_in_the_original():
    env = gymnasium.make_vec(ID, num_envs=2, seed=3, length=2, info=True, **SMALL)
    games = [original(seed, length=2, **SMALL) for seed in (3, 4)]
    observation, _ = env.reset()
    for _ in range(2):
        np.testing.assert_array_equal(observation, [game.reset() for game in games])
        env.step([5, 5])
        told = [game.step(5) for game in games] and [game.step(0) for game in games]
        observation, reward, _, truncated, info = env.step([0, 0])
        assert truncated.all()
        assert reward.tolist() == [each[1] for each in told]
        np.testing.assert_array_equal(info["final_obs"][0], told[0][0])
        expected = [list(each[3]["achievements"].values()) for each in told]
        assert info["final_achievements"].tolist() == expected
        expected = [list(each[3]["inventory"].values()) for each in told]
        assert info["final_inventory"].tolist() == expected
        assert info["final_player_pos"].tolist() == [
            each[3]["player_pos"].tolist() for each in told
        ]
        np.testing.assert_array_equal(observation, [game.reset() for game in games])
        observation, _ = env.reset()


def test_seed_starts_over():
    env = gymnasium.make_vec(ID, num_envs=2, **SMALL)
    first, _ = env.reset(seed=9)
    again, _ = env.reset()
    assert not np.array_equal(first, again)
    np.testing.assert_array_equal(env.reset(seed=9)[0], first)
    np.testing.assert_array_equal(env.reset()[0], again)


def test_without_a_seed_worlds_differ():
    env = gymnasium.make_vec(ID, num_envs=2, **SMALL)
    env.reset()
    # Around the player two worlds may look alike: there is often nothing but grass.
    first, second = env.unwrapped.batched.semantic()
    assert not np.array_equal(first, second)


def test_symbolic_observations_are_dicts():
    env = gymnasium.make_vec(ID, num_envs=2, symbolic=True, **SMALL)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["map"].shape == (2, 7, 9, 2)


def test_make_builds_one_world():
    env = gymnasium.make(ID, **SMALL)
    assert isinstance(env.unwrapped, CrafterEnv)


@pytest.mark.parametrize(
    "limit",
    [
        {"max_episode_steps": 3},
        {"length": 3},
        {"max_episode_steps": 5, "length": 3},
        {"max_episode_steps": 3, "length": None},
    ],
)
def test_time_limit_can_be_given_as_the_original_s_and_as_gymnasium_s(limit):
    env = gymnasium.make_vec(ID, num_envs=1, **limit, **SMALL)
    env.reset(seed=0)
    assert [bool(env.step([0])[3][0]) for _ in range(4)] == [False, False, True, False]


def test_pictures_are_what_the_players_see():
    with pytest.raises(
        (ArgumentError, EnvError), match="render_mode must be 'rgb_array' or None, got 'human'"
    ):
        gymnasium.make_vec(ID, num_envs=1, render_mode="human", **SMALL)
    with pytest.raises(EnvError, match="symbolic=True are not drawn"):
        gymnasium.make_vec(ID, num_envs=1, render_mode="rgb_array", symbolic=True, **SMALL)
    env = gymnasium.make_vec(ID, num_envs=2, render_mode="rgb_array", **SMALL)
    observation, _ = env.reset(seed=0)
    first = env.render()
    np.testing.assert_array_equal(first, observation)
    observation, *_ = env.step([1, 2])
    np.testing.assert_array_equal(env.render(), observation)
    assert not np.array_equal(first, observation)
    env.close()
