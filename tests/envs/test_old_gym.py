"""Old environments are first-class: gym 0.26 itself, and what was written for it and before it."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.envs import EnvFactory, LegacyGymEnv
from fastrl.errors import EnvError
from tests.envs.stepping import assert_same, random_actions, run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gym = pytest.importorskip("gym")

from tests.envs import old_gym

WRAPPERS = [
    gym.wrappers.RecordEpisodeStatistics,
    gym.wrappers.NormalizeObservation,
    gym.wrappers.NormalizeReward,
    gym.wrappers.FlattenObservation,
    gym.wrappers.TimeAwareObservation,
    partial(gym.wrappers.TransformReward, f=lambda reward: 2 * reward),
    partial(gym.wrappers.TransformObservation, f=lambda observation: observation / 2),
]
CLASSIC = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "FrozenLake-v1",
    "Blackjack-v1",
]


@pytest.fixture(scope="module", autouse=True)
def _names_are_missing():
    """Remove what other libraries, skrl among them, have brought back for the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(np, "bool8", raising=False)
        yield


def name_of(wrap):
    return getattr(wrap, "func", wrap).__name__


def wrapped_cartpole(wrap, **kwargs):
    return wrap(gym.make("CartPole-v1", **kwargs))


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize("made", ["id", "factory with gym's checker"])
def test_gym_s_environments_move_like_gymnasium_s(name, made):
    kind = f"gym:{name}" if made == "id" else partial(gym.make, name, disable_env_checker=False)
    loop = EnvFactory(kind, max_episode_steps=13).batched(2)
    actions = random_actions(loop.spec, 2, 40)
    expected = run(EnvFactory(name, max_episode_steps=13).batched(2), (1, 2), actions)
    assert_same(run(loop, (1, 2), actions), expected)


@pytest.mark.parametrize("kind", old_gym.ALL)
@settings(max_examples=5)
@given(seeds=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=2, unique=True))
def test_seed_decides_what_happens(kind, seeds):
    factory = EnvFactory(kind)
    actions = random_actions(factory.probe(), 2, 30)
    found = run(factory.batched(2), seeds, actions)
    assert_same(run(factory.batched(2), seeds, actions), found)
    first = found.observations[0][0][:, 0]
    assert first[0] != first[1]
    assert found.observations[-1][0][0, 0] != first[0]


def test_seed_of_a_wrapper_that_hands_nothing_on_reaches_the_environment():
    factory = EnvFactory(lambda: old_gym.SeedlessWrapper(old_gym.Named26()))
    actions = random_actions(factory.probe(), 2, 3)
    found = run(factory.batched(2), (1, 2), actions)
    assert_same(run(factory.batched(2), (1, 2), actions), found)
    assert len(np.unique(found.observations[0][0][:, 0])) == 2


def test_seed_reaches_a_reset_that_takes_any_keywords_as_gymnasium_gives_it():
    new = np.random.Generator(np.random.PCG64(np.random.SeedSequence(7))).random()
    assert LegacyGymEnv(old_gym.Gym26()).reset(seed=7)[0][0] == new


def test_options_reach_environments_that_take_them_and_no_others():
    LegacyGymEnv(old_gym.Named26()).reset(options={"level": 1})
    LegacyGymEnv(old_gym.Gym21()).reset(options={})
    with pytest.raises(EnvError, match=r"takes no options, got .*level"):
        LegacyGymEnv(old_gym.Gym21()).reset(options={"level": 1})


@pytest.mark.parametrize("wrap", WRAPPERS, ids=name_of)
@pytest.mark.parametrize("where", ["factory", "wrapper", "function"])
def test_gym_s_wrappers_work_wherever_they_are_named(wrap, where):
    kind, wrappers = {
        "factory": (partial(wrapped_cartpole, wrap), ()),
        "wrapper": ("gym:CartPole-v1", (wrap,)),
        "function": ("gym:CartPole-v1", (lambda env: wrap(env),)),
    }[where]
    loop = EnvFactory(kind, wrappers=wrappers).batched(2)
    assert loop.spec.max_episode_steps == 500
    stream = run(loop, (1, 2), random_actions(loop.spec, 2, 40))
    direct = wrapped_cartpole(wrap, disable_env_checker=True)
    observation, _ = direct.reset(seed=2)
    np.testing.assert_allclose(stream.observations[0][0][1], observation, rtol=1e-6)
    envs = fastrl.make_vec(kind, 2, backend="serial", wrappers=wrappers)
    seen, _ = envs.reset(seed=[1, 2])
    assert seen.shape == stream.observations[0][0].shape
    np.testing.assert_allclose(seen[1], observation, rtol=1e-6)
    envs.close()


def test_gym_s_wrappers_of_actions_find_gym_s_spaces():
    rescale = partial(gym.wrappers.RescaleAction, min_action=-1, max_action=1)
    factory = EnvFactory("gym:Pendulum-v1", {}, (gym.wrappers.ClipAction, rescale), 9)
    assert factory.probe().action_space == gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    assert factory.probe().max_episode_steps == 9


def test_gym_s_statistics_are_told_at_the_end():
    factory = EnvFactory(
        "gym:CartPole-v1",
        wrappers=("gym.wrappers:RecordEpisodeStatistics",),
        episode_info=("episode/r", "episode/l"),
    )
    envs = fastrl.make_vec("gym:CartPole-v1", 1, wrappers=factory.wrappers, backend="serial")
    envs.reset(seed=0)
    for _ in range(100):
        *_, infos = envs.step(np.ones(1, np.int64))
        if "episode" in infos:
            break
    assert infos["episode"]["l"][0] > 5
    envs.close()


def test_attributes_are_read_and_set_where_they_are():
    envs = fastrl.make_vec("gym:CartPole-v1", 2, backend="serial")
    assert envs.get_attr("gravity") == (9.8, 9.8)
    envs.set_attr("gravity", [1.0, 2.0])
    assert envs.get_attr("gravity") == (1.0, 2.0)
    bare = [each.unwrapped.env for each in envs.envs]
    assert [env.gravity for env in bare] == [1.0, 2.0]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        envs.get_attr("nothing")
    envs.close()


def test_attributes_of_wrappers_private_ones_and_methods():
    inner = old_gym.Gym26()
    env = LegacyGymEnv(gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(inner), 8))
    assert (env.get_wrapper_attr("gamma"), env.get_wrapper_attr("_max_episode_steps")) == (0.99, 8)
    env.set_wrapper_attr("gamma", 0.5)
    env.set_wrapper_attr("bonus", 3.0)
    env.set_wrapper_attr("new", 1)
    assert (env.env.env.gamma, inner.bonus, inner.new) == (0.5, 3.0, 1)
    env.reset(seed=0)
    assert env.get_wrapper_attr("_picture")().shape == (64, 64, 3)
    assert env.np_random is inner.np_random
    assert not env.set_wrapper_attr("unknown", 1, force=False)


@pytest.mark.parametrize(
    "make",
    [
        partial(gym.make, "Pendulum-v1"),
        lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("Pendulum-v1")),
        lambda: gym.wrappers.TimeLimit(gym.make("Pendulum-v1"), 100),
    ],
    ids=["outside", "beneath another wrapper", "twice"],
)
@pytest.mark.parametrize("limit", [3, 300])
def test_time_limit_of_the_config_replaces_those_inside(make, limit):
    loop = EnvFactory(make, max_episode_steps=limit).batched(1)
    assert loop.spec.max_episode_steps == limit
    stream = run(loop, (0,), random_actions(loop.spec, 1, limit + 1))
    assert [bool(row[0]) for row in stream.truncated].index(True) == limit - 1


def test_time_limit_inside_is_told_where_there_is_no_other():
    factory = EnvFactory(lambda: gym.wrappers.TimeLimit(old_gym.Gym26(), 4))
    assert factory.probe().max_episode_steps == 4
    inner = EnvFactory(
        "gym:CartPole-v1", wrappers=(partial(gym.wrappers.TimeLimit, max_episode_steps=7),)
    )
    assert inner.probe().max_episode_steps == 7


@pytest.mark.parametrize("kind", ["gym:FastrlGym21Env-v0", "gym:FastrlGym26-v0"])
def test_registered_environments_of_both_protocols_run(kind):
    loop = EnvFactory(kind).batched(1)
    stream = run(loop, (0,), random_actions(loop.spec, 1, 10))
    assert [bool(row[0]) for row in stream.truncated] == [False] * 4 + [True] + [False] * 4 + [True]


@pytest.mark.filterwarnings("ignore:.*doesn't include `render_modes`")
@pytest.mark.parametrize(
    "kind",
    [
        "gym:FastrlGym21Env-v0",
        "gym:FastrlGym26-v0",
        old_gym.Gym21,
        lambda **kwargs: old_gym.Gym21(**kwargs),
        lambda: old_gym.Gym21(),
        old_gym.Gym26,
    ],
)
def test_every_protocol_draws(kind):
    env = EnvFactory(kind).single(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(1)
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 7
    assert "rgb_array" in env.metadata["render_modes"]
    assert (env.render() == 1).all()
    env.close()


def test_new_factory_that_cannot_draw_is_still_refused():
    with pytest.raises(EnvError, match="unexpected keyword argument 'render_mode'"):
        EnvFactory(lambda: gymnasium.make("CartPole-v1")).single(render_mode="rgb_array")


class Asking(old_gym.Gym21):
    """Lets another thread look while it steps."""

    def step(self, action):
        assert np.bool8 is np.bool_
        asked = threading.Thread(target=lambda: self.seen.append(hasattr(np, "bool8")))
        asked.start()
        asked.join()
        return super().step(action)


def test_dropped_names_are_there_for_the_environment_alone():
    seen = []

    def make():
        assert np.bool8
        env = Asking()
        env.seen = seen
        return env

    loop = EnvFactory(make).batched(2)
    run(loop, (0, 1), random_actions(loop.spec, 2, 3))
    assert seen == [False] * 6
    assert not hasattr(np, "bool8")
    with pytest.raises(AttributeError, match=r"np.float_. was removed in the NumPy 2.0 release"):
        np.float_  # noqa: B018
    loop.close()


def test_environments_in_threads_do_not_take_the_names_from_each_other():
    envs = fastrl.make_vec(old_gym.Gym21, 4, backend="threads")
    envs.reset(seed=0)
    for _ in range(30):
        envs.step(np.ones(4, np.int64))
    envs.close()
    assert not hasattr(np, "bool8")


def test_failing_step_hides_the_names_again():
    class Failing(old_gym.Gym21):
        def step(self, action):
            raise ValueError(f"lost {np.bool8(True)}")

    loop = EnvFactory(Failing).batched(1)
    with pytest.raises(EnvError, match="lost True"):
        run(loop, (0,), random_actions(loop.spec, 1, 1))
    assert not hasattr(np, "bool8")


def test_vector_environments_of_old_gym_are_refused_in_one_line():
    def make():
        return gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)

    with pytest.raises(EnvError, match="returned a SyncVectorEnv; expected a gymnasium or gym env"):
        EnvFactory(make).probe()


def test_old_gym_prints_no_notice_beside_fastrl():
    command = [sys.executable, "-W", "ignore", "-c", "import fastrl.envs, gym"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""
