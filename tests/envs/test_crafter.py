from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastrl.envs import EnvFactory
from fastrl.envs.crafter import CrafterEnv
from tests.envs.crafter_native.reference import original
from tests.envs.stepping import random_actions, run

SMALL = {"area": (24, 24)}


def compare(ours, theirs, seed, actions, wish=None):
    """Step both, and compare all they say; ``wish`` changes the player of both before a step."""
    frame, _ = ours.reset(seed=seed)
    np.testing.assert_array_equal(frame, theirs.reset())
    deaths = 0
    for t, action in enumerate(actions):
        if wish is not None:
            wish(t, ours._game._player)
            wish(t, theirs._player)
        frame, reward, terminated, truncated, info = ours.step(action)
        expected, their_reward, over, their_info = theirs.step(action)
        np.testing.assert_array_equal(frame, expected, err_msg=f"step {t}")
        assert frame.flags.c_contiguous
        assert reward == their_reward
        assert (terminated or truncated) == bool(over)
        assert terminated == (their_info["discount"] == 0)
        assert info["achievements"] == their_info["achievements"]
        assert info["inventory"] == their_info["inventory"]
        assert (info["player_pos"] == their_info["player_pos"]).all()
        if over:
            deaths += terminated
            np.testing.assert_array_equal(ours.reset()[0], theirs.reset())
    return deaths


def test_episodes_are_those_of_the_original():
    actions = np.random.default_rng(0).integers(17, size=420)
    assert compare(CrafterEnv(**SMALL), original(3, **SMALL), 3, actions) >= 1


def test_days_nights_and_sleep_are_drawn_as_in_the_original():
    def wish(t, player):
        player.inventory.update(health=9, food=9, drink=9, energy=2, sapling=5, stone=t % 12)
        player.sleeping = 120 <= t % 300 < 220

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
    env._game._player.health = 0
    _, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["discount"]) == (True, False, 0)


def test_death_at_the_time_limit_terminates():
    env = CrafterEnv(length=1, **SMALL)
    env.reset(seed=0)
    env._game._player.health = 0
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
    assert env.render() is None
    frame = env.reset(seed=2)[0]
    other.reset(seed=2)
    for _ in range(200):
        np.testing.assert_array_equal(env.render(), frame)
        env.render()[:] = 0
        frame = env.step(1)[0]
        np.testing.assert_array_equal(frame, other.step(1)[0])
    assert other.render() is None


REPLAY = """
import hashlib, sys
junk = [object() for _ in range(int(sys.argv[1]))]
from fastrl.envs.crafter import CrafterEnv
env, digest = CrafterEnv(area=(24, 24)), hashlib.sha256()
digest.update(env.reset(seed=8)[0].tobytes())
junk = [bytearray(k) for k in range(int(sys.argv[1]))]
for t in range(200):
    env._game._player.health = 9
    frame, *_ = env.step(t * 7 % 17)
    digest.update(frame.tobytes())
print(digest.hexdigest())
"""


def test_two_processes_see_the_same_frames(monkeypatch, capsys):
    # Clutter moves the objects to other addresses; with the original's sets the runs diverge.
    command = [sys.executable, "-c", REPLAY, "2345"]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    monkeypatch.setattr(sys, "argv", ["here", "0"])
    exec(REPLAY, {})
    digest = capsys.readouterr().out
    assert digest == other.stdout
    assert len(digest.strip()) == 64
