"""Step by step the same as gymnasium's SyncVectorEnv, whatever the backend."""

from __future__ import annotations

from functools import partial
from itertools import product

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fastrl
from tests.counting_env import CountingEnv
from tests.vector.envs import QuietEnv, SteadyEnv, TellingEnv, WordyEnv

BACKENDS = ("serial", "threads", "processes")
MODES = {"same_step": AutoresetMode.SAME_STEP, "next_step": AutoresetMode.NEXT_STEP}
COUNTING = partial(CountingEnv, length=4, uneven=True, ending="alternate")
ENVS = {
    "CartPole-v1": partial(gymnasium.make, "CartPole-v1"),
    "short": partial(gymnasium.make, "CartPole-v1", max_episode_steps=7),
    "HalfCheetah-v5": partial(gymnasium.make, "HalfCheetah-v5", max_episode_steps=15),
    "FrozenLake-v1": partial(gymnasium.make, "FrozenLake-v1"),
    "telling": TellingEnv,
    "steady": SteadyEnv,
    "quiet": lambda: gymnasium.wrappers.TimeLimit(QuietEnv(), 1),
    "image": partial(COUNTING, observation="image", action="multi"),
    "tuple": partial(COUNTING, observation="tuple", action="dict"),
    "binary": partial(COUNTING, observation="discrete", action="binary"),
}
CASES = [
    *product(ENVS, ("serial",), MODES),
    # The others differ in what travels, not in how episodes end; processes take a second to start.
    *product(("short", "telling", "tuple"), ("threads",), MODES),
    ("telling", "processes", "same_step"),
    ("steady", "processes", "next_step"),
    ("tuple", "processes", "next_step"),
    ("HalfCheetah-v5", "processes", "same_step"),
]

MIXED = ("/prob", "/mixed")
"""Infos that are now a whole number and now a float: gymnasium cuts some of the floats off."""


def assert_same(ours, theirs, where=""):
    """Compare nested arrays, dicts and tuples, to the last bit and dtype."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, tuple):
        for index, (mine, his) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, his, f"{where}/{index}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        for index, (mine, his) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, his, f"{where}[{index}]")
    elif where.endswith(MIXED):
        assert np.can_cast(theirs.dtype, ours.dtype), where
        assert np.array_equal(ours.astype(theirs.dtype), theirs), where
    else:
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype, where
        assert np.array_equal(ours, theirs), where


@pytest.mark.parametrize(("name", "backend", "mode"), CASES)
def test_every_step_is_that_of_sync_vector_env(name, backend, mode):
    compare(ENVS[name], backend, mode)


def compare(build, backend, mode, num_envs=5, steps=60):
    theirs = SyncVectorEnv([build] * num_envs, autoreset_mode=MODES[mode])
    ours = fastrl.make_vec(build, num_envs, backend=backend, autoreset=mode, num_workers=2)
    with_ends = 0
    try:
        assert ours.observation_space == theirs.observation_space
        assert ours.action_space == theirs.action_space
        assert ours.single_observation_space == theirs.single_observation_space
        assert ours.metadata["autoreset_mode"] is MODES[mode]
        assert ours.num_envs == num_envs
        theirs.action_space.seed(1)
        assert_same(ours.reset(seed=11), theirs.reset(seed=11))
        for step in range(steps):
            actions = theirs.action_space.sample()
            expected = theirs.step(actions)
            assert_same(ours.step(actions), expected, f"step {step}")
            with_ends += bool((expected[2] | expected[3]).any())
            if step == steps // 2:
                assert_same(ours.reset(options={"a": 1}), theirs.reset(options={"a": 1}))
        assert with_ends >= 3
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_spaces_without_arrays_of_fixed_size_travel_as_objects(backend):
    theirs = SyncVectorEnv([WordyEnv] * 3)
    ours = fastrl.make_vec(WordyEnv, 3, backend=backend, num_workers=2)
    assert_same(ours.reset(seed=1), theirs.reset(seed=1))
    for _ in range(12):
        actions = ("a", "bcd", "ef")
        assert_same(ours.step(actions), theirs.step(actions))
    ours.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_resets_are_those_of_sync_vector_env(backend):
    theirs = SyncVectorEnv([TellingEnv] * 4, autoreset_mode=AutoresetMode.DISABLED)
    ours = fastrl.make_vec(
        TellingEnv, 4, backend=backend, num_workers=2, autoreset="disabled", copy=False
    )
    theirs.action_space.seed(0)
    assert_same(ours.reset(seed=[5, 6, 7, 8]), theirs.reset(seed=[5, 6, 7, 8]))
    resets = 0
    for _ in range(40):
        actions = theirs.action_space.sample()
        expected = theirs.step(actions)
        assert_same(ours.step(actions), expected)
        over = expected[2] | expected[3]
        if over.any():
            resets += 1
            given = [dict(options={"reset_mask": over, "x": 2}, seed=[resets] * 4) for _ in "12"]
            assert_same(ours.reset(**given[0]), theirs.reset(**given[1]))
    assert resets > 5
    ours.close()


def test_wrappers_and_time_limits_of_the_call_are_those_of_gymnasium():
    wrapper = gymnasium.wrappers.TimeAwareObservation
    theirs = SyncVectorEnv(
        [lambda: wrapper(gymnasium.make("CartPole-v1", max_episode_steps=9))] * 2
    )
    ours = fastrl.make_vec(
        "CartPole-v1", 2, backend="serial", wrappers=[wrapper], max_episode_steps=9
    )
    by_path = fastrl.make_vec(
        "CartPole-v1",
        2,
        backend="serial",
        wrappers=["gymnasium.wrappers:TimeAwareObservation"],
        max_episode_steps=9,
    )
    assert ours.observation_space == theirs.observation_space
    theirs.reset(seed=0), ours.reset(seed=0), by_path.reset(seed=0)
    for step in range(30):
        actions = np.array([step % 2, step // 2 % 2])
        expected = theirs.step(actions)
        assert_same(ours.step(actions), expected)
        assert_same(by_path.step(actions), expected)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_pictures_are_gymnasiums_bit_for_bit(name):
    ours = fastrl.make_vec(name, 2, backend="serial", render_mode="rgb_array")
    theirs = SyncVectorEnv([partial(gymnasium.make, name, render_mode="rgb_array")] * 2)
    ours.reset(seed=0), theirs.reset(seed=0)
    theirs.action_space.seed(0)
    for _ in range(3):
        actions = theirs.action_space.sample()
        ours.step(actions), theirs.step(actions)
        for mine, his in zip(ours.render(), theirs.render(), strict=True):
            assert mine.dtype == his.dtype
            np.testing.assert_array_equal(mine, his)
    ours.close(), theirs.close()
