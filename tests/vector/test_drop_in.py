"""What is written for gymnasium's `make_vec` and `SyncVectorEnv` works with `fastrl.make_vec`."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import VectorizeMode
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from tests.counting_env import CountingEnv
from tests.vector.envs import OtherSpaceEnv
from tests.vector.test_same_as_gymnasium import assert_same

BACKENDS = ("serial", "threads", "processes")


@pytest.mark.parametrize(
    ("said", "backend"),
    [
        ("sync", "serial"),
        (VectorizeMode.ASYNC, "processes"),
        ("vector_entry_point", "native"),
        (None, "serial"),
    ],
)
def test_vectorization_modes_are_backends(said, backend):
    with fastrl.make_vec("CartPole-v1", 2, vectorization_mode=said) as envs:
        assert envs.backend == backend


def test_name_that_says_the_same_as_ours_is_no_contradiction():
    with fastrl.make_vec(
        "CartPole-v1",
        num_envs=2,
        backend="serial",
        vectorization_mode="sync",
        autoreset="next_step",
        autoreset_mode=AutoresetMode.NEXT_STEP,
        wrappers=None,
    ) as envs:
        assert envs.autoreset_mode is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("name", ["sync", "async"])
def test_vector_kwargs_are_those_of_gymnasium(name):
    given = {"autoreset_mode": "Disabled", "copy": False, "observation_mode": "different"}
    given |= {"shared_memory": True, "context": None, "daemon": True} if name == "async" else {}
    arguments = dict(num_envs=2, vectorization_mode=name, vector_kwargs=given)
    theirs = gymnasium.make_vec("CartPole-v1", **arguments)
    with fastrl.make_vec("CartPole-v1", **arguments) as ours:
        assert ours.autoreset_mode is theirs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert ours.observation_mode == theirs.observation_mode == "different"
        assert ours.observation_space == theirs.observation_space
        first, _, third = [ours.reset(seed=0)[0] for _ in range(3)]
        assert np.shares_memory(first, third)
    theirs.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_mode_is_an_attribute_and_in_the_metadata(backend, mode):
    with fastrl.make_vec("CartPole-v1", 2, backend=backend, autoreset_mode=mode) as envs:
        assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is mode


def test_vector_env_of_gymnasium_is_a_direct_base():
    assert VectorEnv in fastrl.vector.FastVectorEnv.__bases__


def test_environments_are_at_hand_where_the_caller_steps_them():
    with fastrl.make_vec("CartPole-v1", 3, backend="serial") as envs:
        envs.reset(seed=0)
        envs.step(np.zeros(3, np.int64))
        assert [env.spec.id for env in envs.envs] == ["CartPole-v1"] * 3
        assert [env.get_wrapper_attr("_elapsed_steps") for env in envs.envs] == [1] * 3
        envs.envs[1].unwrapped.length = 4.0
        assert envs.get_attr("length") == (0.5, 4.0, 0.5)


@pytest.mark.parametrize("backend", ["threads", "processes", "native"])
def test_environments_are_not_at_hand_elsewhere(backend):
    with fastrl.make_vec("CartPole-v1", 2, backend=backend) as envs:
        assert not hasattr(envs, "envs")
        envs.reset(seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_of_factories_may_have_different_bounds(backend):
    factories = [partial(OtherSpaceEnv, bound=bound, size=2) for bound in (1.0, 5.0, 3.0)]
    theirs = SyncVectorEnv(factories, observation_mode="different")
    for mode in (None, "different"):
        with fastrl.make_vec(factories, backend=backend, observation_mode=mode) as ours:
            assert ours.observation_mode == "different"
            assert ours.observation_space == theirs.observation_space
            assert ours.single_observation_space == theirs.single_observation_space
            assert ours.reset(seed=0)[0].shape == (3, 2)
    theirs.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_observation_spaces_of_the_caller_are_taken(backend):
    spaces = Box(0, 7, (2, 1), np.float64), Box(0, 7, (1,), np.float64)
    factories = [OtherSpaceEnv, partial(OtherSpaceEnv, bound=5.0)]
    theirs = SyncVectorEnv(factories, observation_mode=spaces)
    with fastrl.make_vec(factories, backend=backend, observation_mode=spaces) as ours:
        assert ours.observation_space == theirs.observation_space == spaces[0]
        assert ours.single_observation_space == theirs.single_observation_space == spaces[1]
        assert ours.reset(seed=0)[0] in spaces[0]
    theirs.close()


def stepped_alike(ours, theirs, steps=40):
    """Compare every step of two vector environments; return how many ended an episode."""
    theirs.action_space.seed(3)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    assert_same(ours.reset(seed=5), theirs.reset(seed=5))
    ends = 0
    for step in range(steps):
        actions = theirs.action_space.sample()
        expected = theirs.step(actions)
        assert_same(ours.step(actions), expected, f"step {step}")
        ends += int((expected[2] | expected[3]).any())
    ours.close(), theirs.close()
    return ends


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_default_arguments_give_the_steps_of_sync_vector_env(backend):
    build = partial(gymnasium.make, "CartPole-v1", max_episode_steps=11)
    ours = fastrl.make_vec([build] * 3, backend=backend)
    assert stepped_alike(ours, SyncVectorEnv([build] * 3)) >= 3


def test_ids_alone_give_the_steps_of_gymnasiums_make_vec():
    theirs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    assert stepped_alike(fastrl.make_vec("CartPole-v1", 3), theirs) >= 3


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    ending=st.sampled_from(["terminated", "truncated", "alternate"]),
    limit=st.one_of(st.none(), st.integers(1, 6)),
)
def test_episodes_of_any_length_end_as_in_sync_vector_env(lengths, ending, limit):
    builds = [partial(limited, length=each, ending=ending, limit=limit) for each in lengths]
    ours = fastrl.make_vec(builds, backend="serial")
    assert stepped_alike(ours, SyncVectorEnv(builds), steps=15) > 0


def limited(*, limit, **kwargs):
    env = CountingEnv(**kwargs)
    return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("fastrl/CartPole-v1", AutoresetMode.NEXT_STEP),
        ("fastrl/HalfCheetah-v5", AutoresetMode.SAME_STEP),
        ("fastrl/Crafter-v1", AutoresetMode.SAME_STEP),
    ],
)
def test_batch_that_knows_only_one_autoreset_mode_has_it_by_default(name, mode):
    with fastrl.make_vec(name, 2) as envs:
        assert envs.backend == "native"
        assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is mode
    if mode is AutoresetMode.SAME_STEP:
        with pytest.raises(fastrl.vector.ArgumentError, match="only the autoreset mode SAME"):
            fastrl.make_vec(name, 2, backend="native", autoreset="next_step")
