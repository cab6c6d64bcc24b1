"""Actions beyond the actuators' ranges: MuJoCo clamps them, and costs are of what was given."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.envs import EnvFactory
from fastrl.envs.mujoco import ENVIRONMENTS, HalfCheetahV5
from fastrl.errors import ArgumentError
from tests.envs.mujoco.reference import originals
from tests.envs.stepping import views

# Version 4 is said to be out of date.
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date")


def assert_equal_steps(name, step, reset, num_envs, actions):
    """Hold rewards and observations against gymnasium's, through the first episodes."""
    singles = originals(name, num_envs, {})
    assert np.array_equal(reset(), [each.reset(seed=seed)[0] for seed, each in enumerate(singles)])
    going = np.ones(num_envs, bool)
    for action in actions:
        seen, rewards, terminated, truncated = step(action)
        for index in np.flatnonzero(going):
            observation, reward, *ends, _ = singles[index].step(action[index])
            assert rewards[index] == pytest.approx(reward, rel=1e-12, abs=1e-9)
            assert terminated[index] == ends[0]
            going[index] = not any(ends)
            if going[index]:
                assert np.abs(seen[index] - observation).max() < 1e-9
        going &= ~(terminated | truncated)


def drawn(space, reach, dtype, num_envs, steps=6, seed=0):
    shape = (steps, num_envs, *space.shape)
    return np.random.default_rng(seed).uniform(-reach, reach, shape).astype(dtype)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_robot_in_a_vector_is_gymnasiums(name):
    with closing(gymnasium.make_vec(f"fastrl/{name}", num_envs=2)) as envs:
        actions = drawn(envs.single_action_space, 3.0, np.float32, 2)
        assert_equal_steps(
            name, lambda action: envs.step(action)[:4], lambda: envs.reset(seed=0)[0], 2, actions
        )


@settings(max_examples=15, derandomize=True)
@given(
    name=st.sampled_from(sorted(ENVIRONMENTS)),
    reach=st.sampled_from([0.5, 1.0, 3.0, 1e3, 1e9]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_actions_of_any_size_and_precision_are_gymnasiums(name, reach, dtype, seed):
    with closing(gymnasium.make_vec(f"fastrl/{name}", num_envs=1)) as envs:
        actions = drawn(envs.single_action_space, reach, dtype, 1, seed=seed)
        assert_equal_steps(
            name, lambda action: envs.step(action)[:4], lambda: envs.reset(seed=0)[0], 1, actions
        )


@pytest.mark.parametrize("backend", ["native", "serial"])
def test_make_vec_takes_them_as_gymnasium_does(backend):
    make = fastrl.make_vec
    with closing(make("fastrl/HalfCheetah-v5", num_envs=2, backend=backend)) as envs:
        actions = drawn(envs.single_action_space, 3.0, np.float32, 2)
        assert_equal_steps(
            "HalfCheetah-v5",
            lambda action: envs.step(action)[:4],
            lambda: envs.reset(seed=0)[0],
            2,
            actions,
        )


@pytest.mark.parametrize(
    "make",
    [
        HalfCheetahV5.single,
        lambda: gymnasium.make("fastrl/HalfCheetah-v5"),
        lambda: gymnasium.make("fastrl/HalfCheetah-v5", randomize={"body_mass": {"scale": 1.0}}),
        lambda: EnvFactory("fastrl/HalfCheetah-v5").single(),
    ],
)
def test_single_environment_takes_them_as_gymnasiums_does(make):
    with closing(make()) as env:

        def step(action):
            seen, reward, *ends, _ = env.step(action[0])
            return seen[None], [reward], *(np.array([end]) for end in ends)

        actions = drawn(env.action_space, 3.0, np.float64, 1)
        assert_equal_steps("HalfCheetah-v5", step, lambda: env.reset(seed=0)[0][None], 1, actions)


def test_single_environment_refuses_actions_of_another_shape():
    with closing(HalfCheetahV5.single()) as env:
        env.reset(seed=0)
        for action in (0.5, np.zeros(1), np.zeros((1, 6))):
            with pytest.raises(ArgumentError, match=r"actions have the shape .*; expected \(6,\)"):
                env.step(action)


@pytest.mark.parametrize("name", ["fastrl/HalfCheetah-v5", "HalfCheetah-v5", HalfCheetahV5])
def test_sampler_clips_them_before_any_environment_sees_them(name):
    env = EnvFactory(name).batched(1)
    given, within = (np.full((1, 6), size, np.float32) for size in (3.0, 1.0))
    env.reset([0], (np.zeros((1, 17), np.float32),))
    original = gymnasium.make("HalfCheetah-v5")
    original.reset(seed=0)
    seen = views(env.spec, 1, (given,))
    env.step(seen)

    _, reward, *_ = original.step(within[0])
    assert seen.reward[0] == pytest.approx(reward, abs=1e-6)
    env.close()


def test_squashed_actions_reach_a_robot_by_its_class():
    env = EnvFactory(HalfCheetahV5, action_bounds="squash").batched(1)
    by_id = EnvFactory("fastrl/HalfCheetah-v5", action_bounds="squash").batched(1)
    rewards = []
    for each in (env, by_id):
        each.reset([0], (np.zeros((1, 17), np.float32),))
        seen = views(each.spec, 1, (np.full((1, 6), 0.5, np.float32),))
        each.step(seen)
        rewards.append(seen.reward[0])

    assert rewards[0] == rewards[1]
