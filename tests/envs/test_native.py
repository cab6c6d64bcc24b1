"""fastrl's own environments by id: in configurations, samplers and gymnasium's registry."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl import load_config, make_sampler
from fastrl.envs import EnvFactory
from fastrl.envs.catalogue import list_environments
from fastrl.envs.classic_control.control_batch import ClassicControlBatch
from fastrl.envs.crafter_native import CrafterBatch
from fastrl.envs.crafter_native.worlds_by_id import CrafterEnv
from fastrl.envs.families import NAMESPACE, NativeFamily
from fastrl.envs.family import family_of, own_families
from fastrl.envs.mujoco import ENVIRONMENTS, HalfCheetahV5
from fastrl.envs.tensor import TENSOR_ENVS
from fastrl.envs.vector_facade import SingleBatchedEnv
from fastrl.errors import ArgumentError, EnvError
from tests.envs.stepping import assert_same, random_actions, run, views

FAMILIES = [each for each in own_families() if isinstance(each, NativeFamily)]
NAMES = [NAMESPACE + name for family in FAMILIES for name in family.names()]
SMALL_NETWORK = ["model.conv_layers=[[4, 3, 2]]", "model.conv_features=8"]


def test_families_name_all_that_they_have():
    assert sorted(NAMES) == sorted(
        NAMESPACE + name for name in (*ENVIRONMENTS, *TENSOR_ENVS, "Crafter-v1")
    )


def test_catalogue_lists_them_with_their_time_limits():
    found = {each.id: each for each in list_environments(NAMESPACE)}
    assert sorted(found) == sorted(NAMES)
    assert not any(each.problem for each in found.values())
    for name, listing in found.items():
        original = gymnasium.spec(name.removeprefix(NAMESPACE))
        assert listing.max_episode_steps == original.max_episode_steps


def test_ids_are_known_to_gymnasium_once_fastrl_is_imported():
    code = (
        "import sys, gymnasium, fastrl.envs\n"
        "assert not {'mujoco', 'numba'} & set(sys.modules), 'imported before it is needed'\n"
        "for name in ('fastrl/Hopper-v5', 'fastrl/CartPole-v1'):\n"
        "    print(gymnasium.make_vec(name, num_envs=2).reset(seed=0)[0].shape)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "(2, 11)\n(2, 4)\n", done.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fastrl/HalfCheetah-v5", HalfCheetahV5),
        ("fastrl/Crafter-v1", CrafterBatch),
        ("fastrl/CartPole-v1", ClassicControlBatch),
    ],
)
def test_factory_builds_the_batch(name, kind):
    factory = EnvFactory(name, max_episode_steps=7)
    env = factory.batched(3)
    assert isinstance(env, kind)
    assert env.num_envs == 3
    assert env.spec == factory.probe()
    assert env.spec.max_episode_steps == 7
    stream = run(env, [1, 2, 3], random_actions(env.spec, 3, 7))
    assert stream.truncated[-1].any()


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v4"])
def test_batch_is_the_gymnasium_loop_of_the_same_seeds(name):
    ours, loop = (EnvFactory(each).batched(2) for each in (NAMESPACE + name, name))
    taken = random_actions(loop.spec, 2, 60)
    mine, its = run(ours, [3, 4], taken), run(loop, [3, 4], taken)
    np.testing.assert_array_equal(mine.terminated, its.terminated)
    np.testing.assert_allclose(mine.rewards, its.rewards, rtol=1e-6, atol=1e-6)
    for here, there in zip(mine.observations, its.observations, strict=True):
        np.testing.assert_array_equal(here[0], there[0])


def test_batch_of_crafter_equals_single_worlds_of_the_same_seeds():
    kwargs = {"area": (16, 16), "length": 20}
    ours, loop = (EnvFactory(each, kwargs).batched(2) for each in ("fastrl/Crafter-v1", "Crafter"))
    assert ours.spec.episode_info == loop.spec.episode_info
    taken = random_actions(loop.spec, 2, 50)
    assert_same(run(ours, [3, 4], taken), run(loop, [3, 4], taken))


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.id=fastrl/HalfCheetah-v5", "env.max_episode_steps=9"],
        ["env.id=fastrl/Walker2d-v5", "env.randomize={body_mass: {scale: {uniform: [0.5, 2]}}}"],
        ["env.id=fastrl/Crafter-v1", "env.kwargs={area: [16, 16], length: 9, symbolic: true}"],
    ],
    ids=lambda each: each[0] + each[1][:16],
)
def test_every_topology_samples_the_same(overrides):
    common = ["sampler.num_env_workers=1", "sampler.envs_per_worker=8", "sampler.rollout_length=8"]
    common += ["env.episode_info=[]", *SMALL_NETWORK, *overrides]
    topologies = (
        ["sampler.kind=serial"],
        ["sampler.num_model_workers=0"],
        ["sampler.num_model_workers=1", "sampler.groups=2"],
    )
    told, seen = [], []
    for topology in topologies:
        with make_sampler(load_config(None, [*common, *topology])) as sampler:
            rollouts = [sampler.collect() for _ in range(3)]
            seen.append(np.array([rollout.reward.numpy().copy() for rollout in rollouts]))
            told.append(sum(len(rollout.episodes) for rollout in rollouts))
    for rewards in seen:
        np.testing.assert_array_equal(rewards, seen[0])
    assert "randomize" in overrides[1] or min(told) >= 16


def test_achievements_arrive_with_the_episodes():
    overrides = ["env.id=fastrl/Crafter-v1", "sampler.kind=serial", "sampler.rollout_length=64"]
    overrides += ["env.kwargs={area: [16, 16], length: 60, symbolic: true}"]
    overrides += ["sampler.num_env_workers=1", "sampler.envs_per_worker=4"]
    config = load_config(None, [*overrides, *SMALL_NETWORK])
    with make_sampler(config) as sampler:
        episodes = [sampler.collect().episodes for _ in range(2)]
    assert sum(map(len, episodes)) > 0
    for each in episodes:
        assert len(each.info) == 22
        # Each first unlocking is worth 1, health lost and won 0.1.
        unlocked = sum((counts > 0).astype(int) for counts in each.info.values())
        assert (np.abs(each.returns - unlocked) < 1.01).all()
        assert all((counts >= 0).all() for counts in each.info.values())


def test_single_environment_is_the_original():
    cheetah = EnvFactory("fastrl/HalfCheetah-v5").single()
    assert type(cheetah.unwrapped) is type(gymnasium.make("HalfCheetah-v5").unwrapped)
    assert isinstance(EnvFactory("fastrl/Crafter-v1").single().unwrapped, CrafterEnv)


def test_single_environment_draws_parameters_as_the_batch_does():
    factory = EnvFactory(
        "fastrl/Hopper-v5",
        {"healthy_reward": 2.0},
        randomize={"body_mass": {"scale": {"uniform": [0.5, 2]}}},
        max_episode_steps=3,
    )
    single, batch = factory.single(), factory.batched(1)
    assert isinstance(single.unwrapped, SingleBatchedEnv)
    taken = random_actions(batch.spec, 1, 3)
    stream = run(batch, [5], taken)
    single.reset(seed=5)
    for t, action in enumerate(taken):
        # Samplers keep actions inside their space before an environment sees them.
        observation, reward, *ends, _ = single.step(np.clip(action[0][0], -1, 1))
        assert reward == pytest.approx(stream.rewards[t][0], rel=1e-6)
    assert ends == [False, True]
    np.testing.assert_allclose(stream.finals[-1][0][0], observation, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "same_as"), [({"num_threads": 2}, 3.0), ({"action_bounds": "clip"}, 1.0)]
)
def test_single_robot_takes_the_arguments_of_a_batch(kwargs, same_as):
    single = EnvFactory("fastrl/HalfCheetah-v5", kwargs).single()
    original = gymnasium.make("HalfCheetah-v5")
    for env in (single, original):
        env.reset(seed=0)
    reward = single.step(np.full(6, 3.0, np.float32))[1]
    assert reward == pytest.approx(original.step(np.full(6, same_as, np.float32))[1], abs=1e-9)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (EnvFactory("fastrl/HalfCheeta-v5"), "did you mean 'fastrl/HalfCheetah-v5'"),
        (EnvFactory("fastrl/Hopper-v5", {"healthy_rewards": 1.0}), "did you mean 'healthy_reward'"),
        (EnvFactory("fastrl/Crafter-v1", {"lenght": 1}), "did you mean 'length'"),
        (EnvFactory("fastrl/Crafter-v1", randomize={"x": {"set": 1}}), "no parameters that can be"),
        (
            EnvFactory("fastrl/Hopper-v5", randomize={"mass": {"set": 1}}),
            "the model's field 'mass'",
        ),
        (EnvFactory("fastrl/Hopper-v5", wrappers=["tests:x"]), "takes no wrappers of single"),
    ],
)
def test_mistakes_say_what_would_be_right(factory, message):
    with pytest.raises(EnvError) as caught:
        factory.batched(2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("fastrl/Hopper-v5", "num_envs", 1.5),
        ("fastrl/Hopper-v5", "num_threads", True),
        ("fastrl/CartPole-v1", "num_threads", 0.5),
        ("fastrl/CartPole-v1", "max_episode_steps", "2"),
        ("fastrl/Crafter-v1", "num_envs", 1.5),
        ("fastrl/Crafter-v1", "max_episode_steps", "2"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(name, argument, value):
    message = rf"^{argument} must be a whole number of at least 1.*, got {value!r}$"
    with pytest.raises(ArgumentError, match=message):
        gymnasium.make_vec(name, **{"num_envs": 1, argument: value})


@pytest.mark.parametrize("name", ["fastrl/Hopper-v5", "fastrl/Crafter-v1"])
def test_time_limit_may_be_lifted_by_minus_one_only(name):
    gymnasium.make_vec(name, num_envs=1, max_episode_steps=-1).close()
    with pytest.raises((ArgumentError, EnvError), match=r"at least 1, or -1 for no limit, got -3$"):
        gymnasium.make_vec(name, num_envs=1, max_episode_steps=-3)


FAMILY_OF = {
    "fastrl/CartPole-v1": {},
    "fastrl/Pendulum-v1": {"autoreset_mode": "NextStep", "max_episode_steps": 3},
    "fastrl/Acrobot-v1": {"randomize": {"mass1": {"uniform": [0.5, 2.0]}}},
    "fastrl/InvertedPendulum-v5": {"max_episode_steps": 3},
    "fastrl/Crafter-v1": {"area": (16, 16), "symbolic": True, "length": 3},
}


@pytest.mark.parametrize("name", FAMILY_OF)
@settings(max_examples=4)
@given(
    seed=st.one_of(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 99), min_size=2, max_size=2)),
    steps=st.integers(0, 5),
)
def test_reset_without_a_seed_goes_on_from_the_seeds_before(name, seed, steps):
    def played(seed):
        env = gymnasium.make_vec(name, num_envs=2, **FAMILY_OF[name])
        env.action_space.seed(0)
        seen = [env.reset(seed=seed)[0]]
        seen += [env.step(env.action_space.sample())[0] for _ in range(steps)]
        seen += [env.reset()[0], env.reset()[0]]
        env.close()
        return [np.concatenate([np.ravel(leaf) for leaf in _leaves(each)]) for each in seen]

    first = played(seed)
    np.testing.assert_array_equal(first, played(seed))
    assert not np.array_equal(first[-1], first[-2])
    seeds = seed if isinstance(seed, list) else [seed, seed + 1]
    np.testing.assert_array_equal(first, played(seeds))


def test_later_resets_of_robots_are_those_of_gymnasiums_vector_env():
    ours = gymnasium.make_vec("fastrl/InvertedPendulum-v5", num_envs=2)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make("InvertedPendulum-v5")] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    for seed in ([5, 3], None, None, 4, None):
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])


@pytest.mark.parametrize("name", ["fastrl/Pendulum-v1", "fastrl/Crafter-v1"])
def test_single_environments_go_on_as_well(name):
    def played():
        env = gymnasium.make(name, disable_env_checker=True)
        seen = [env.reset(seed=3)[0], env.step(env.action_space.sample())[0] * 0]
        return [*seen, env.reset()[0], env.reset()[0]]

    np.testing.assert_array_equal(played(), played())


@pytest.mark.parametrize("seed", [-1, "abc", [1], [1, None], [0.5, 1], 1.5])
def test_seeds_that_are_none_are_refused(seed):
    env = gymnasium.make_vec("fastrl/CartPole-v1", num_envs=2)
    with pytest.raises(ArgumentError, match="seed"):
        env.reset(seed=seed)


@pytest.mark.parametrize("name", ["CartPole-v1", "InvertedPendulum-v5", "Crafter-v1"])
@pytest.mark.parametrize("limit", [2**31 - 1, 2**31, 2**70])
def test_time_limits_of_any_size_are_kept_or_refused(name, limit):
    kwargs = {"area": (9, 9), "symbolic": True} if name == "Crafter-v1" else {}
    family = family_of(f"fastrl/{name}")
    build = partial(family.build, name, 1, max_episode_steps=limit, **kwargs)
    if limit >= 2**31 and name != "InvertedPendulum-v5":
        with pytest.raises(
            (ArgumentError, EnvError), match="max_episode_steps must be at most 2,147,483,647"
        ):
            build()
        return
    env = build()
    discrete = env.spec.action_space.shape == ()
    seen = views(env.spec, 1, (np.zeros(1, np.int64) if discrete else np.zeros((1, 1)),))
    env.reset([0], seen.observation)
    env.step(seen)
    assert not seen.truncated.any()


def _leaves(observation):
    return observation.values() if isinstance(observation, dict) else [observation]
