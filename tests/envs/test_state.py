"""What can be saved of environments comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import random
from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fastrl.envs import state as states
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.mujoco import simulations
from fastrl.envs.state import StateError, load_state, pack, saves, state_of, unpack
from tests.envs.stepping import rows, views

ARRAYS = arrays_of.arrays(
    st.sampled_from(["?", "<i1", "<u8", "<i4", "<f2", "<f4", "<f8", ">f4"]),
    arrays_of.array_shapes(min_dims=0, min_side=0, max_side=3),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
TREES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.lists(inner).map(lambda each: deque(each, maxlen=9))
    ),
    max_leaves=8,
)


def assert_same(one, other):
    if isinstance(one, np.ndarray):
        assert (one.dtype.kind, one.dtype.itemsize) == (other.dtype.kind, other.dtype.itemsize)
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        assert other.flags.writeable
        return
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple | deque):
        assert len(one) == len(other)
        for each, same in zip(one, other, strict=True):
            assert_same(each, same)
    else:
        assert repr(one) == repr(other)


@given(TREES)
def test_plain_data_come_back_as_they_were(state):
    assert_same(state, unpack(pack(state)))


@given(st.binary(max_size=100))
def test_other_bytes_are_an_error(content):
    with pytest.raises(StateError, match="the state is damaged"):
        unpack(content)


def test_generators_go_on_where_they_were():
    numpy, legacy, python = np.random.default_rng(1), np.random.RandomState(1), random.Random(1)
    tensors = torch.Generator().manual_seed(1)

    def drawn(found):
        return [
            found[0].normal(),
            found[1].normal(),
            found[2].gauss(0, 1),
            torch.rand(2, generator=found[3]).tolist(),
        ]

    drawn([numpy, legacy, python, tensors])
    saved = unpack(pack([numpy, legacy, python, tensors]))
    assert drawn(saved) == drawn([numpy, legacy, python, tensors])


def test_tensors_and_numbers_of_numpy_keep_their_types():
    saved = unpack(pack({"tensor": torch.arange(3), "scalar": np.float32(0.1)}))
    assert torch.equal(saved["tensor"], torch.arange(3))
    assert type(saved["scalar"]) is np.float32
    assert saved["scalar"] == np.float32(0.1)


RECURSIVE: list = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"a": [1, {2}]}, r"an object of type set at \['a'\]\[1\]; expected numbers"),
        ({"f": print}, r"builtin_function_or_method at \['f'\]"),
        (np.array([None]), "an array of dtype object;"),
        (np.array(["a"]), "an array of dtype <U1"),
        (torch.zeros(1, dtype=torch.bfloat16), r"a tensor of torch.bfloat16"),
        (RECURSIVE, "nested too deeply"),
        ([10**5000], "cannot be saved"),
    ],
    ids=["set", "function", "objects", "texts", "bfloat16", "recursive", "huge"],
)
def test_what_cannot_be_saved_is_named(state, told):
    with pytest.raises(StateError, match=told):
        pack(state)


class Both:
    def get_state(self):
        return 1

    def set_state(self, state):
        pass


class Positions(Both):
    def set_state(self, qpos, qvel):
        pass


class Needy(Both):
    def get_state(self, kind):
        return kind


class Optional(Both):
    def get_state(self, *, whole=True):
        return whole

    def set_state(self, state, strict=True):
        pass


def test_methods_of_other_arguments_are_not_the_protocol():
    assert saves(Both())
    assert saves(Optional())
    assert not saves(Positions())
    assert not saves(Needy())
    assert not saves(gymnasium.make("CartPole-v1"))


def views_of(env):
    return views(env.spec, env.num_envs, rows(env.spec.action, env.num_envs))


def stepped(env, seen_by, steps, seed):
    """Step with actions drawn by a seed; return all that is observed."""
    pick, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        for action in seen_by.action:
            if action.dtype == np.int64:
                action[...] = pick.integers(0, env.spec.action_space.n, action.shape)
            else:
                action[...] = pick.uniform(-1, 1, action.shape)
        env.step(seen_by)
        seen += [row.copy() for row in (*seen_by.observation, seen_by.reward)]
        seen += [seen_by.terminated.copy(), seen_by.truncated.copy()]
    return seen


def assert_goes_on(factory):
    one, other = factory.batched(3), factory.batched(3)
    ours, others = views_of(one), views_of(other)
    one.reset([1, 2, 3], ours.observation)
    stepped(one, ours, 50, seed=0)
    saved = state_of(one)
    content = pack(saved)
    other.reset([7, 8, 9], others.observation)
    stepped(other, others, 7, seed=1)
    load_state(other, unpack(content))
    expected = stepped(one, ours, 60, seed=2)
    load_state(one, saved)  # these steps have not changed it
    for again in (stepped(other, others, 60, seed=2), stepped(one, ours, 60, seed=2)):
        for each, same in zip(again, expected, strict=True):
            np.testing.assert_array_equal(each, same)
    one.close()
    other.close()


WRAPPERS = ("RecordEpisodeStatistics", "NormalizeObservation", "NormalizeReward")
FACTORIES = {
    **{
        name: EnvFactory(name, max_episode_steps=30)
        for name in (
            *("Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"),
            *("Blackjack-v1", "CliffWalking-v1", "FrozenLake-v1", "MaskedBandit-v0"),
            *(
                "vector:CartPole-v1",
                "fastrl/Acrobot-v1",
                "fastrl/HalfCheetah-v5",
                "fastrl/Humanoid-v5",
            ),
            *("fastrl/Reacher-v4", "fastrl/Swimmer-v5"),
        )
    },
    "Taxi-v4": EnvFactory("Taxi-v4", {"fickle_passenger": True, "is_rainy": True}),
    "Crafter": EnvFactory("fastrl/Crafter-v1", {"symbolic": True, "area": (32, 32)}),
    "wrappers": EnvFactory(
        "CartPole-v1",
        wrappers=[
            *(f"gymnasium.wrappers:{name}" for name in WRAPPERS),
            lambda env: gymnasium.wrappers.TimeLimit(env, 13),
            lambda env: gymnasium.wrappers.DelayObservation(env, 2),
            lambda env: gymnasium.wrappers.FrameStackObservation(env, 3),
            lambda env: gymnasium.wrappers.MaxAndSkipObservation(env, 2),
            lambda env: gymnasium.wrappers.StickyAction(env, 0.3),
            gymnasium.wrappers.TimeAwareObservation,
        ],
    ),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_environments_go_on_where_they_were(name):
    assert_goes_on(FACTORIES[name])


def test_robots_go_on_without_mjbatch(monkeypatch):
    monkeypatch.setattr(simulations, "accelerator", lambda: None)
    scale = {"body_mass": {"scale": {"uniform": [0.5, 2.0]}}}
    assert_goes_on(EnvFactory("fastrl/Hopper-v5", randomize=scale))


def test_state_of_another_environment_is_an_error():
    cart, car = EnvFactory("CartPole-v1").batched(1), EnvFactory("MountainCar-v0").batched(1)
    for env in (cart, car):
        env.reset([0], views_of(env).observation)
    with pytest.raises(StateError, match="belongs to CartPoleEnv, this is MountainCarEnv"):
        load_state(car, state_of(cart))
    native, more = (EnvFactory("fastrl/CartPole-v1").batched(n) for n in (1, 2))
    with pytest.raises(StateError, match=r"'state' must be float32 \(4, 2\), got float32 \(4, 1\)"):
        load_state(more, state_of(native))


def test_crafter_rejects_states_that_lead_out_of_its_arrays():
    env = EnvFactory("fastrl/Crafter-v1", {"symbolic": True, "area": (16, 16)}).batched(1)
    env.reset([0], views_of(env).observation)
    for name, value in (("object_at", 10**6), ("chunk_order", -1), ("stream", 2**32 - 1)):
        state = unpack(pack(state_of(env)))
        state["worlds"][name][...] = value
        with pytest.raises(StateError, match=f"'{name}' is outside"):
            load_state(env, state)


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("fastrl/Crafter-v1", "episodes"),
        *(("fastrl/Hopper-v5", x) for x in ("generators", "tracked")),
    ],
)
def test_damaged_states_are_rejected_when_they_are_loaded(env_id, name):
    env = EnvFactory(env_id).batched(2)
    env.reset([0, 1], views_of(env).observation)
    for damaged in (None, "x", [], [None] * 2, np.zeros(5)):
        with pytest.raises(StateError, match=f"the state's .* '{name}' must"):
            load_state(env, {**state_of(env), name: damaged})
    load_state(env, state_of(env))


def test_times_of_episodes_go_on(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(states.time, "perf_counter", lambda: now[0])
    one, other = (
        gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("FrozenLake-v1"))
        for _ in range(2)
    )
    one.reset(seed=0)
    now[0] = 103.0
    saved = states.layers_state(one)
    now[0] = 7.0
    other.reset(seed=1)
    states.load_layers_state(other, saved)
    assert other.episode_start_time == 4.0
