"""Gymnasium's wrappers of vector environments, around what samplers step."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from fastrl.envs import EnvFactory
from fastrl.errors import EnvError
from tests.counting_env import CountingEnv
from tests.envs.stepping import assert_same, random_actions, run

SEEDS = (3, 4, 5)
RESET_BY_MASK = (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)
OPTIONS = {"observation": "vector", "uneven": True, "ending": "alternate", "length": 4}


def counting(num_envs, mode=AutoresetMode.NEXT_STEP):
    return SyncVectorEnv([partial(CountingEnv, **OPTIONS)] * num_envs, autoreset_mode=mode)


def played(env, *used, steps=50):
    made = EnvFactory(env, wrappers=used).batched(len(SEEDS))
    found = run(made, SEEDS, random_actions(made.spec, len(SEEDS), steps))
    return found, made._env


@pytest.mark.parametrize("mode", RESET_BY_MASK)
@pytest.mark.parametrize(
    "wrapper",
    [
        partial(wrappers.TransformObservation, func=lambda seen: 2 * seen),
        partial(
            wrappers.VectorizeTransformObservation,
            wrapper=gymnasium.wrappers.TransformObservation,
            func=lambda seen: 2 * seen,
            observation_space=None,
        ),
    ],
)
def test_observations_are_transformed_from_reset_to_end(wrapper, mode):
    bare, _ = played(partial(counting, mode=mode))
    found, _ = played(partial(counting, mode=mode), wrapper)
    assert found.episodes == bare.episodes > 20
    for ours, plain in zip(found.observations, bare.observations, strict=True):
        np.testing.assert_array_equal(ours[0], 2 * plain[0])
    for ours, plain in zip(found.finals, bare.finals, strict=True):
        assert ours.keys() == plain.keys()
        for index in plain:
            np.testing.assert_array_equal(ours[index][0], 2 * plain[index][0])


@pytest.mark.parametrize("env", [counting, "vector:CartPole-v1"])
@pytest.mark.parametrize("beneath", [(), (wrappers.RecordEpisodeStatistics,)])
@pytest.mark.parametrize("above", [(), (wrappers.DictInfoToList,), (wrappers.NormalizeReward,)])
def test_normalised_observations_count_every_observation_once(env, beneath, above):
    used = (*beneath, wrappers.NormalizeObservation, *above)
    found, env = played(env, *used, steps=120)
    while not isinstance(env, wrappers.NormalizeObservation):
        env = env.env
    assert found.episodes > 3
    assert round(env.obs_rms.count) == len(SEEDS) * (1 + 120) + found.episodes


@pytest.mark.parametrize("mode", RESET_BY_MASK)
def test_normalised_rewards_are_those_of_resets_in_the_same_step(mode):
    same_step, _ = played(partial(counting, mode=AutoresetMode.SAME_STEP), wrappers.NormalizeReward)
    found, _ = played(partial(counting, mode=mode), wrappers.NormalizeReward)
    assert_same(found, same_step)


def test_infos_as_a_list_are_refused_where_they_are_needed():
    with pytest.raises(EnvError, match="infos as a list; expected a dict, so leave out DictInfo"):
        played(partial(counting, mode=AutoresetMode.SAME_STEP), wrappers.DictInfoToList)


@pytest.mark.parametrize(
    ("env", "wrapper", "message"),
    [
        (
            "vector:CartPole-v1",
            "gymnasium.wrappers:TimeAwareObservation",
            "TimeAwareObservation wraps single environments and 'vector:CartPole-v1' is a vector",
        ),
        (
            "CartPole-v1",
            partial(wrappers.NormalizeObservation, epsilon=1e-6),
            "NormalizeObservation wraps vector environments and 'CartPole-v1' is not one",
        ),
    ],
)
def test_wrappers_of_the_other_kind_are_refused(env, wrapper, message):
    with pytest.raises(EnvError, match=message):
        EnvFactory(env, wrappers=(wrapper,)).batched(2)


class Squeezed(gymnasium.vector.VectorWrapper):
    """Returns one number for all environments in one place."""

    def __init__(self, env, place):
        super().__init__(env)
        self.place = place

    def step(self, actions):
        result = list(self.env.step(actions))
        result[self.place] = result[self.place][:1]
        return tuple(result)


@pytest.mark.parametrize(("place", "name"), [(1, "rewards"), (2, "terminated"), (3, "truncated")])
def test_one_number_for_all_environments_is_refused(place, name):
    message = rf"returned {name} of shape \(1,\); expected \(3,\)"
    with pytest.raises(EnvError, match=message):
        played(counting, partial(Squeezed, place=place))
