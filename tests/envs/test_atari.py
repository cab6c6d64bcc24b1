from __future__ import annotations

from collections import Counter

import gymnasium
import numpy as np
import pytest

from fastrl.config import load_config
from fastrl.envs import EnvFactory
from fastrl.envs.atari import sb3_atari
from tests.config.test_files import CONFIGS

pytest.importorskip("ale_py")
pytest.importorskip("cv2")


def breakout_of_sb3():
    wrappers = pytest.importorskip("stable_baselines3.common.atari_wrappers")
    game = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return wrappers.AtariWrapper(game)


def lives_of(env):
    return env.unwrapped.ale.lives()


def test_breakout_ppo_plays_the_game_of_sb3():
    """Rewards, ends and lives are the same at every step; shades of grey differ a little."""
    ours = EnvFactory.from_config(load_config(CONFIGS / "breakout_ppo.yaml").env).single()
    theirs = breakout_of_sb3()
    seen, _ = ours.reset(seed=5)
    expected, _ = theirs.reset(seed=5)
    rng = np.random.default_rng(0)
    at_ends = Counter()
    for _ in range(400):
        assert np.abs(seen[-1].astype(float) - expected[:, :, 0]).mean() < 2
        action = int(rng.integers(4))
        seen, *told, _ = ours.step(action)
        expected, *wanted, _ = theirs.step(action)
        assert told == wanted
        assert lives_of(ours) == lives_of(theirs)
        if any(told[1:]):
            at_ends[lives_of(ours)] += 1
            seen, _ = ours.reset()
            expected, _ = theirs.reset()
            assert not seen[:-1].any()
            assert lives_of(ours) == lives_of(theirs)
    assert at_ends.keys() == {0, 1, 2, 3, 4}


def test_seed_begins_a_new_game_and_its_time_too():
    env = sb3_atari("ALE/Breakout-v5", img_size=20)

    def play():
        env.reset(seed=3)
        steps = 0
        while not env.step(0)[2]:
            steps += 1
        return lives_of(env), steps

    assert play() == play()


def test_evaluation_plays_whole_games_for_their_score():
    config = load_config(CONFIGS / "breakout_ppo.yaml")
    options = {**config.env.kwargs, **config.evaluation.env_kwargs, "img_size": 20}
    env = EnvFactory(config.env.id, options).single()
    env.reset(seed=0)
    over, total = False, 0.0
    for step in range(2000):
        _, reward, over, _, _ = env.step((1, 2, 3)[step % 3])
        total += reward
        if over:
            break
    assert over
    assert lives_of(env) == 0
