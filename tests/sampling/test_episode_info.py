"""Figures that environments tell of their episodes arrive with the right episode."""

import numpy as np
import pytest

from fastrl import load_config, make_sampler
from fastrl.envs import EnvFactory
from fastrl.errors import EnvError

ENV = [
    "env.id=tests.telling_env:TellingEnv",
    "env.episode_info=[count/steps, odd]",
    "sampler.envs_per_worker=4",
    "sampler.num_env_workers=2",
    "sampler.rollout_length=7",
]
NAMES = ("total", "achievements/early", "achievements/late", "count/steps", "odd")


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler.kind=serial"],
        ["sampler.num_model_workers=0"],
        ["sampler.num_model_workers=1", "sampler.groups=2", "sampler.mode=async"],
    ],
    ids=" ".join,
)
def test_figures_are_those_of_the_episode(overrides):
    seen = 0
    with make_sampler(load_config(None, [*ENV, *overrides])) as sampler:
        for _ in range(10):
            episodes = sampler.collect().episodes
            assert tuple(episodes.info) == NAMES
            np.testing.assert_array_equal(episodes.info["total"], episodes.returns)
            np.testing.assert_array_equal(episodes.info["count/steps"], episodes.lengths)
            odd = np.where(episodes.lengths % 2, episodes.lengths, np.nan)
            np.testing.assert_array_equal(episodes.info["odd"], odd)
            seen += len(episodes)
    assert seen > 50


def test_figures_are_told_where_a_time_limit_ends_the_episode():
    overrides = ["env.kwargs={length: 100}", "env.max_episode_steps=3", "sampler.kind=serial"]
    with make_sampler(load_config(None, [*ENV, *overrides])) as sampler:
        episodes = sampler.collect().episodes
    assert set(episodes.info["count/steps"]) == {3.0}
    assert len(episodes) == 16


def test_environments_without_figures_have_none():
    overrides = ["env.id=CartPole-v1", "env.episode_info=[]", "sampler.kind=serial"]
    with make_sampler(load_config(None, [*ENV, *overrides])) as sampler:
        assert sampler.collect().episodes.info == {}


def test_what_is_no_number_is_named():
    factory = EnvFactory("tests.telling_env:TellingEnv", {"length": 1}, episode_info=["count"])
    overrides = [*ENV[:1], "env.kwargs={length: 1}", "env.episode_info=[count]"]
    assert factory.probe().episode_info[-1] == "count"
    config = load_config(None, [*overrides, "sampler.kind=serial"])
    with make_sampler(config) as sampler, pytest.raises(EnvError, match=r"info 'count' is \{"):
        sampler.collect()


def test_batched_environment_must_know_the_name():
    factory = EnvFactory("vector:CartPole-v1", episode_info=["is_success"])
    with pytest.raises(EnvError, match="does not report 'is_success'"):
        factory.probe()
