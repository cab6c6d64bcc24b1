from __future__ import annotations

import sys
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.config import EnvConfig
from fastrl.envs import BatchedEnv, EnvFactory, GymLoop, GymVector
from fastrl.errors import ArgumentError, EnvError, SpaceError
from fastrl.imports import how_to_install
from fastrl.spec import EnvSpec
from tests.counting_env import CountingEnv, decode
from tests.envs.stepping import random_actions, run


class Doubled(gymnasium.ObservationWrapper):
    """A user's wrapper: shows, by a doubled step count, that it is there."""

    def observation(self, observation):
        return observation * np.array([1, 1, 2, 1], np.float32)


class Scaled(gymnasium.RewardWrapper):
    """Multiplies rewards."""

    def __init__(self, env, *, factor):
        super().__init__(env)
        self._factor = factor

    def reward(self, reward):
        return self._factor * reward


class EveryOther(gymnasium.Wrapper):
    """Repeats each action, so that an outer step is two inner ones."""

    def step(self, action):
        first = self.env.step(action)
        return first if first[2] or first[3] else self.env.step(action)


def make_vector(num_envs, **kwargs):
    return SyncVectorEnv(
        [lambda: CountingEnv(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )


def make_fixed_vector():
    return make_vector(3)


class Native:
    """A user's own batched environment."""

    def __init__(self, num_envs, randomize=None, max_episode_steps=40):
        env = CountingEnv()
        self.num_envs, self.randomize = num_envs, randomize
        self.spec = EnvSpec("native", env.observation_space, env.action_space, max_episode_steps)

    def reset(self, seeds, observation):
        observation[0][:] = 0

    def step(self, views):
        raise NotImplementedError

    def close(self):
        pass


def make_seeded(num_envs, seeds=None):
    """Like EnvPool: seeded when built, and never after."""

    class Seeded(SyncVectorEnv):
        def reset(self, *, seed=None, options=None):
            assert seed is None
            return super().reset(seed=seeds, options=options)

    return Seeded([CountingEnv] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def make_nothing():
    return 3


HERE = "tests.envs.test_make"
SCALED = f"{HERE}:Scaled"


@pytest.mark.parametrize(
    ("name", "limit"),
    [("CartPole-v1", 500), ("HalfCheetah-v5", 1000), ("gymnasium:Pendulum-v1", 200)],
)
def test_registered_ids_are_probed(name, limit):
    spec = EnvFactory(name).probe()
    with gymnasium.make(name) as env:
        assert spec == EnvSpec(name, env.observation_space, env.action_space, limit)


def test_config_describes_the_factory():
    config = EnvConfig(
        id="CartPole-v1",
        kwargs={"sutton_barto_reward": True},
        wrappers=["gymnasium.wrappers:FlattenObservation"],
        max_episode_steps=9,
        action_bounds="squash",
    )
    assert EnvFactory.from_config(config) == EnvFactory(
        "CartPole-v1",
        {"sutton_barto_reward": True},
        ("gymnasium.wrappers:FlattenObservation",),
        9,
        "squash",
    )


@pytest.mark.parametrize(
    "name", ["tests.counting_env:make", "tests.counting_env:CountingEnv", CountingEnv]
)
def test_factories_get_their_keyword_arguments(name):
    factory = cloudpickle.loads(cloudpickle.dumps(EnvFactory(name, {"length": 2})))
    loop = factory.batched(2)
    assert isinstance(loop, GymLoop)
    stream = run(loop, (1, 2), random_actions(loop.spec, 2, 4))
    assert [row.all() for row in stream.terminated] == [False, True, False, True]


def test_lambda_travels_and_has_a_name():
    factory = cloudpickle.loads(cloudpickle.dumps(EnvFactory(lambda: CountingEnv(length=3))))
    assert "lambda" in factory.probe().id


def test_workers_step_the_bare_env():
    loop = EnvFactory("CartPole-v1").batched(2)
    assert all(env is env.unwrapped for env in loop._envs)


def test_single_env_keeps_its_time_limit_and_nothing_else():
    env = EnvFactory("CartPole-v1", max_episode_steps=7).single(render_mode="rgb_array")
    assert isinstance(env, TimeLimit)
    assert env.env is env.unwrapped
    assert env.render_mode == "rgb_array"
    assert env.spec.max_episode_steps == 7


def test_wrappers_that_a_factory_adds_for_nothing_are_taken_off():
    env = EnvFactory(lambda: gymnasium.make("CartPole-v1")).batched(1)._envs[0]
    assert not isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker)
    assert EnvFactory(lambda: gymnasium.make("CartPole-v1")).probe().max_episode_steps == 500


def test_users_wrappers_stay_in_order():
    wrappers = (f"{HERE}:Doubled", "gymnasium.wrappers:RecordEpisodeStatistics")
    loop = EnvFactory("tests.counting_env:make", wrappers=wrappers).batched(1)
    outer = loop._envs[0]
    assert isinstance(outer, gymnasium.wrappers.RecordEpisodeStatistics)
    stream = run(loop, (1,), random_actions(loop.spec, 1, 3))
    assert decode("vector", (stream.observations[3][0][0],)).step == 6


@settings(max_examples=10)
@given(factors=st.lists(st.integers(-9, 9), max_size=3), limit=st.integers(1, 9))
def test_wrappers_take_their_arguments_from_a_configuration(factors, limit):
    scaled = [{"path": SCALED, "kwargs": {"factor": factor}} for factor in factors]
    # One without arguments may be written either way.
    plain = [f"{HERE}:Doubled", {"path": f"{HERE}:EveryOther"}]
    config = EnvConfig.model_validate(
        {"id": "CartPole-v1", "wrappers": [*scaled, *plain], "max_episode_steps": 2 * limit}
    )
    env = EnvFactory.from_config(config).single()
    env.reset(seed=0)
    assert env.step(0)[1] == np.prod(factors)
    names = [type(each).__name__ for each in (env, env.env)]
    assert names == ["EveryOther", "Doubled"]


def test_arguments_of_a_wrapper_may_be_given_from_python_too():
    wrapper = {"path": Scaled, "kwargs": {"factor": 3}}
    env = EnvFactory("CartPole-v1", wrappers=[wrapper]).single()
    by_path = fastrl.make_vec(
        "CartPole-v1", 1, backend="serial", wrappers=[wrapper | {"path": SCALED}]
    )
    env.reset(seed=0), by_path.reset(seed=0)
    assert env.step(0)[1] == by_path.step(np.zeros(1, int))[1][0] == 3
    by_path.close()


def test_time_limit_beneath_a_wrapper_counts_the_steps_beneath_it():
    factory = EnvFactory("Pendulum-v1", wrappers=(f"{HERE}:EveryOther",), max_episode_steps=6)
    loop = factory.batched(1)
    assert loop.spec.max_episode_steps == 6
    stream = run(loop, (1,), random_actions(loop.spec, 1, 6))
    assert [bool(row[0]) for row in stream.truncated] == [False, False, True] * 2


def test_time_limit_of_the_config_replaces_that_of_a_factory():
    factory = EnvFactory(lambda: gymnasium.make("Pendulum-v1"), max_episode_steps=300)
    loop = factory.batched(1)
    assert loop.spec.max_episode_steps == 300
    stream = run(loop, (1,), random_actions(loop.spec, 1, 301))
    assert [t + 1 for t, row in enumerate(stream.truncated) if row[0]] == [300]


def test_factory_of_vector_env_is_told_how_many():
    env = EnvFactory(f"{HERE}:make_vector", {"length": 2}).batched(3)
    assert isinstance(env, GymVector)
    assert env.num_envs == 3
    assert env.spec.observation_space.shape == (4,)


def test_vector_env_of_the_wrong_size_is_refused():
    with pytest.raises(EnvError, match="has 3 environments, but 2 were requested"):
        EnvFactory(f"{HERE}:make_fixed_vector").batched(2)


def test_vector_env_has_no_single_one():
    with pytest.raises(EnvError, match="is a vector environment"):
        EnvFactory(f"{HERE}:make_vector").single()


def test_env_that_is_seeded_when_built_is_built_anew():
    env = EnvFactory(f"{HERE}:make_seeded").batched(2)
    stream = run(env, (8, 9), random_actions(env.spec, 2, 1))
    assert [decode("vector", (row,)).tag for row in stream.observations[0][0]] == [8, 9]


def test_native_env_is_used_as_it_is():
    factory = EnvFactory(Native, randomize={"gravity": [9, 10]}, max_episode_steps=5)
    env = factory.batched(4)
    assert isinstance(env, Native)
    assert isinstance(env, BatchedEnv)
    assert env.num_envs == 4
    assert env.randomize == {"gravity": [9, 10]}
    assert factory.probe().max_episode_steps == 5


def test_what_is_not_configured_keeps_the_factorys_default():
    assert EnvFactory(Native).probe().max_episode_steps == 40


def test_vector_entry_point_of_gymnasium():
    factory = EnvFactory("vector:CartPole-v1", max_episode_steps=9)
    assert factory.probe().max_episode_steps == 9
    assert factory.batched(4).num_envs == 4


@pytest.mark.parametrize("name", ["crafter.Env", "crafter:Env", "Crafter", "Crafter-v1"])
def test_crafter_has_several_names(name):
    spec = EnvFactory(name, {"area": (16, 16)}).probe()
    assert spec.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert spec.action_space == spaces.Discrete(17)
    assert spec.max_episode_steps == 10_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole", "unknown environment 'CartPole'; did you mean 'CartPole-v1'"),
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("gymnasium:CartPole-v9", "neither has nor registers .* did you mean 'CartPole-v1'"),
        ("numpy:zzzz", "^module 'numpy' neither has nor registers 'zzzz'"),
        ("numpy:pi", "^'numpy:pi' is not an environment: pi cannot be called$"),
        ("math:sqrt", "'math' is part of Python's standard library$"),
        ("tests.counting_env:mak", "did you mean 'make'"),
        ("./here.py:make", r"env\.id: .*: './here\.py' is not a module; write 'package"),
        ("here.py:make", r"env\.id: .*: 'here\.py' is not a module; write 'package"),
        ("no_such_module:make", "env.id: .* 'no_such_module' cannot be imported"),
        ("vector:Pendulum-v1", "has no vector environment of its own"),
        ("vector:CartPole-v7", "did you mean 'CartPole-v1'"),
        (f"{HERE}:make_nothing", "returned a int; expected a gymnasium or gym environment"),
    ],
)
def test_wrong_id_is_refused_in_one_line(name, message):
    with pytest.raises(EnvError, match=message) as caught:
        EnvFactory(name).probe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 3, ["CartPole-v1"], {"id": "CartPole-v1"}])
def test_what_is_no_id_is_refused(wrong):
    with pytest.raises(EnvError, match=r"^an environment must be an id such as .CartPole-v1."):
        EnvFactory(wrong)


def test_partial_is_called_by_the_name_of_its_function():
    factory = EnvFactory(partial(partial(make_nothing), 3))
    assert factory.name == f"{HERE}:make_nothing"


def test_no_environments_are_refused():
    with pytest.raises(
        ArgumentError, match=r"^num_envs must be a whole number of at least 1, got 0$"
    ):
        EnvFactory("CartPole-v1").batched(0)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("ale_py", "ALE/Breakout-v5", "atari"),
        ("ale_py", "vector:ALE/Breakout-v5", "atari"),
        ("ale_py", "ale_py:ALE/Breakout-v5", "atari"),
        ("gym", "gym:CartPole-v1", "gym"),
        ("envpool", "envpool:CartPole-v1", "compare"),
    ],
)
def test_missing_package_says_how_to_install_it(package, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for registered in [each for each in gymnasium.registry if each.startswith("ALE/")]:
        monkeypatch.delitem(gymnasium.registry, registered)
    with pytest.raises(EnvError, match=f"needs the package '{package}': ") as told:
        EnvFactory(name).probe()
    assert str(told.value).endswith(how_to_install(extra))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (EnvFactory("CartPole-v1", {"colour": 3}), "cannot be built with {'colour': 3}: TypeError"),
        (
            EnvFactory("CartPole-v1", wrappers=("gymnasium.wrappers",)),
            "write 'package.module:name'",
        ),
        (
            EnvFactory("CartPole-v1", wrappers=("gymnasium.wrappers:FlattenObservations",)),
            "env.wrappers: .* did you mean 'FlattenObservation'",
        ),
        (EnvFactory("CartPole-v1", wrappers=("nowhere:f",)), "env.wrappers: .*'nowhere'"),
        (
            EnvFactory("CartPole-v1", wrappers=[{"path": SCALED, "kwargs": {"facto": 2}}]),
            f"env.wrappers: '{SCALED}' takes no argument 'facto'; did you mean 'factor'",
        ),
        (
            EnvFactory("CartPole-v1", wrappers=[{"path": SCALED}]),
            "env.wrappers: Scaled raised TypeError: .* 'factor'",
        ),
        (EnvFactory("CartPole-v1", randomize={"length": 1}), "env.randomize: 'CartPole-v1'"),
        (EnvFactory(CountingEnv, randomize={"length": 1}), "env.randomize: .* takes no argument"),
        (EnvFactory(make_vector, max_episode_steps=3), "env.max_episode_steps: .* vector"),
        (
            EnvFactory("CartPole-v1", action_mask="method"),
            r"env.action_mask: .* no method action_m",
        ),
        (
            EnvFactory(
                "CartPole-v1",
                wrappers=[{"path": "gymnasium.wrappers:ClipAction", "kwargs": {"x": 1}}],
            ),
            "takes no argument 'x'; there are none",
        ),
        (EnvFactory(CountingEnv, {"fault": "raise", "fault_in": "init"}), "RuntimeError: fault"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(factory, message):
    with pytest.raises(EnvError, match=message) as caught:
        factory.batched(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{}, {"path": 3}, {"path": "a:b", "kwargs": [1]}, {"path": "a:b", "args": {}}]
)
def test_a_mapping_that_is_no_wrapper_is_refused_before_anything_is_built(wrong):
    with pytest.raises(EnvError, match=r"env\.wrappers: .* is a mapping of path and kwargs, got"):
        EnvFactory("CartPole-v1", wrappers=[wrong])


@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_environments_without_a_space_are_one_line(space):
    class Spaceless(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

    for wrong in (None, "box"):
        setattr(Spaceless, space, wrong)
        with pytest.raises(EnvError, match=f"Spaceless' has the {space} .*; it must be a gymn"):
            EnvFactory(Spaceless).probe()
        with pytest.raises(EnvError, match=f"Spaceless' has the {space} .*; it must be a gymn"):
            EnvFactory(Spaceless).batched(2)


def test_unsupported_spaces_are_refused_when_probed():
    class Wordy(CountingEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict(note=spaces.Text(4))

    class Empty(CountingEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict(a=spaces.Box(0, 1, (2, 0)), b=spaces.Discrete(2))

    with pytest.raises(SpaceError, match=r"Text.* at 'note'"):
        EnvFactory(Wordy).probe()
    with pytest.raises(SpaceError, match=r"Box.* at 'a' has no elements"):
        EnvFactory(Empty).probe()


def test_squash_is_checked_when_probed():
    class Wide(CountingEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-np.inf, np.inf, (2,))

    with pytest.raises(SpaceError, match="finite bounds"):
        EnvFactory(Wide, action_bounds="squash").probe()


def test_atari_ids_need_no_import():
    pytest.importorskip("ale_py")
    for name in ("ALE/Breakout-v5", "BreakoutNoFrameskip-v4"):
        assert EnvFactory(name).probe().action_space == spaces.Discrete(4)


class Scarce(CountingEnv):
    """There are two of them."""

    open = 0

    def __init__(self, **kwargs):
        if Scarce.open == 2:
            raise OSError("no third simulator")
        super().__init__(**kwargs)
        Scarce.open += 1

    def close(self):
        Scarce.open -= 1


class Untellable(Scarce):
    """Takes actions that have no fixed size."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Text(3)


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [(Scarce, EnvError, "no third simulator"), (Untellable, SpaceError, "Text")],
)
def test_environments_are_closed_where_others_cannot_be_built_or_batched(env, error, message):
    with pytest.raises(error, match=message):
        EnvFactory(env).batched(4)
    assert Scarce.open == 0
