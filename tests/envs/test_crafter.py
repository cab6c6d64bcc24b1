from __future__ import annotations

import copy

import numpy as np
import pytest

from fastrl.envs import EnvFactory
from fastrl.envs.crafter_native.worlds_by_id import CrafterEnv
from fastrl.errors import EnvError
from tests.envs.crafter_native.reference import ITEMS, original
from tests.envs.stepping import random_actions, run

SMALL = {"area": (24, 24)}


def compare(ours, theirs, seed, actions, wish=None):
    """Step both, and compare all they say; ``wish`` changes the player of both before a step.

    It returns items, and whether the player sleeps.
    """
    frame, _ = ours.reset(seed=seed)
    np.testing.assert_array_equal(frame, theirs.reset())
    deaths = 0
    for t, action in enumerate(actions):
        if wish is not None:
            given, theirs._player.sleeping = wish(t)
            theirs._player.inventory.update(given)
            worlds = ours.batched._worlds
            worlds.record["sleeping"] = theirs._player.sleeping
            for name, amount in given.items():
                worlds.inventory[0, ITEMS.index(name)] = amount
        frame, reward, terminated, truncated, info = ours.step(action)
        expected, their_reward, over, their_info = theirs.step(action)
        np.testing.assert_array_equal(frame, expected, err_msg=f"step {t}")
        assert frame.flags.c_contiguous
        assert reward == their_reward
        assert (terminated or truncated) == bool(over)
        assert terminated == (their_info["discount"] == 0)
        assert {*info, "semantic"} == set(their_info)
        assert (info["discount"], info["reward"]) == (their_info["discount"], their_info["reward"])
        assert info["achievements"] == their_info["achievements"]
        assert info["inventory"] == their_info["inventory"]
        assert (info["player_pos"] == their_info["player_pos"]).all()
        if "semantic" in info:
            np.testing.assert_array_equal(info["semantic"], their_info["semantic"])
        if over:
            deaths += terminated
            np.testing.assert_array_equal(ours.reset()[0], theirs.reset())
    return deaths


def test_episodes_are_those_of_the_original():
    actions = np.random.default_rng(0).integers(17, size=420)
    ours = CrafterEnv(semantic=True, **SMALL)
    assert compare(ours, original(3, **SMALL), 3, actions) >= 1


def test_days_nights_and_sleep_are_drawn_as_in_the_original():
    def wish(t):
        given = {"health": 9, "food": 9, "drink": 9, "energy": 2, "sapling": 5, "stone": t % 10}
        return given, 120 <= t % 300 < 220

    actions = np.random.default_rng(1).integers(1, 9, size=320)
    compare(CrafterEnv(**SMALL), original(5, **SMALL), 5, actions, wish)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (80, 50)},
        {"size": (100, 130), "view": (11, 9)},
        {"view": (5, 7), "size": (64, 64)},
        {"reward": False},
        {"length": 20},
    ],
)
def test_options_are_those_of_the_original(options):
    options = {**SMALL, **options}
    env = CrafterEnv(**options)
    actions = np.random.default_rng(2).integers(17, size=40)
    compare(env, original(11, **options), 11, actions)
    assert env.observation_space.contains(env.reset(seed=11)[0])


def test_edge_of_the_world_is_drawn_as_in_the_original():
    compare(CrafterEnv(area=(7, 7)), original(1, area=(7, 7)), 1, [1] * 6 + [3] * 8 + [2] * 8)


def test_death_terminates_and_the_time_limit_truncates():
    env = CrafterEnv(length=3, **SMALL)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env.reset()
    env.batched._worlds.inventory[0, 0] = 0
    _, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["discount"]) == (True, False, 0)


def test_death_at_the_time_limit_terminates():
    env = CrafterEnv(length=1, **SMALL)
    env.reset(seed=0)
    env.batched._worlds.inventory[0, 0] = 0
    assert env.step(0)[2:4] == (True, False)


def test_time_limit_of_the_config_is_kept_by_the_loop():
    factory = EnvFactory("crafter.Env", SMALL, max_episode_steps=7)
    loop = factory.batched(1)
    assert loop.spec.max_episode_steps == 7
    stream = run(loop, (1,), random_actions(loop.spec, 1, 15))
    assert [t + 1 for t, row in enumerate(stream.truncated) if row[0]] == [7, 14]


def test_seed_starts_over_and_no_seed_goes_on():
    env = CrafterEnv(**SMALL)
    first, second = env.reset(seed=4)[0], env.reset()[0]
    assert not (first == second).all()
    assert (env.reset(seed=4)[0] == first).all()
    assert (env.reset()[0] == second).all()
    assert CrafterEnv(**SMALL).reset()[0].shape == first.shape


def test_semantic_map_only_where_asked_for():
    env = CrafterEnv(semantic=True, **SMALL)
    env.reset(seed=0)
    assert env.step(0)[4]["semantic"].shape == (24, 24)
    env = CrafterEnv(**SMALL)
    env.reset(seed=0)
    assert "semantic" not in env.step(0)[4]


def test_render_shows_the_last_frame_and_disturbs_nothing():
    env = CrafterEnv(render_mode="rgb_array", **SMALL)
    other = CrafterEnv(**SMALL)
    with pytest.raises(EnvError, match="before its first reset"):
        env.render()
    frame = env.reset(seed=2)[0]
    other.reset(seed=2)
    for _ in range(200):
        np.testing.assert_array_equal(env.render(), frame)
        env.render()[:] = 0
        frame = env.step(1)[0]
        np.testing.assert_array_equal(frame, other.step(1)[0])
    assert other.render() is None


def test_copied_world_goes_on_alone():
    env = CrafterEnv(**SMALL)
    env.reset(seed=2)
    other = copy.deepcopy(env)
    frames = [env.step(1)[0] for _ in range(20)]
    for frame in frames:
        np.testing.assert_array_equal(other.step(1)[0], frame)


def test_symbols_are_observed_and_not_drawn():
    env = CrafterEnv(symbolic=True, **SMALL)
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert env.observation_space.contains(env.step(0)[0])
    with pytest.raises(EnvError, match="symbolic=True are not drawn"):
        CrafterEnv(symbolic=True, render_mode="rgb_array")
