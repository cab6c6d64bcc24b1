from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from fastrl.envs import EnvFactory, GymLoop
from fastrl.errors import EnvError, SpaceError
from fastrl.spec import EnvSpec
from tests import counting_env
from tests.counting_env import CountingEnv, Place, decode, length_of, reward_of
from tests.envs.stepping import assert_same, random_actions, rows, run, run_singly, views

KINDS = ("vector", "image", "dict", "tuple", "discrete")


def counting(num_envs=3, **kwargs):
    return EnvFactory("tests.counting_env:make", kwargs).batched(num_envs)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("CartPole-v1", None), ("CartPole-v1", 11), ("HalfCheetah-v5", 17), ("Pendulum-v1", 25)],
)
def test_stream_is_that_of_gymnasium(name, limit):
    seeds, steps = (5, 6, 2**31 + 7), 60
    with EnvLoop(EnvFactory(name, max_episode_steps=limit), len(seeds)) as loop:
        actions = random_actions(loop.spec, len(seeds), steps)
        found = run(loop, seeds, actions)
    expected = run_singly(
        lambda: gymnasium.make(name, max_episode_steps=limit),
        loop.spec,
        seeds,
        [list(inside(loop.spec.action_space, leaf)) for (leaf,) in actions],
    )
    assert_same(found, expected)
    assert found.episodes >= 6


def inside(space, actions):
    """Return what a careful user would give the environment."""
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions


class EnvLoop:
    def __init__(self, factory, num_envs):
        self.env = factory.batched(num_envs)

    def __enter__(self):
        return self.env

    def __exit__(self, *_):
        self.env.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["terminate", "truncate", "alternate"])
def test_every_number_lands_in_its_row(kind, ending):
    num_envs, steps, length = 4, 40, 4
    loop = counting(num_envs, observation=kind, ending=ending, length=length, uneven=True)
    seeds = [100, 7, 3, 2**20 + 5]
    stream = run(loop, seeds, random_actions(loop.spec, num_envs, steps))
    for i, seed in enumerate(seeds):
        tag, episode, step = seed % 2**20, 0, 0
        for t in range(steps):
            over = step + 1 == length_of(tag, episode, length, uneven=True)
            terminates = ending == "terminate" or (ending == "alternate" and episode % 2 == 0)
            assert stream.rewards[t][i] == reward_of(episode, step + 1)
            assert stream.terminated[t][i] == (over and terminates)
            assert stream.truncated[t][i] == (over and not terminates)
            if over:
                assert _told(kind, stream.finals[t][i])[:3] == _known(kind, tag, episode, step + 1)
            episode, step = (episode + 1, 0) if over else (episode, step + 1)
            now = tuple(array[i] for array in stream.observations[t + 1])
            assert _told(kind, now)[:3] == _known(kind, tag, episode, step)


def _told(kind, leaves):
    return decode(kind, leaves)


def _known(kind, tag, episode, step):
    return (-1, -1, step) if kind == "discrete" else (tag, episode, step)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    limit=st.integers(1, 9),
    steps=st.integers(1, 30),
)
def test_time_limit_truncates_each_env_on_its_own_clock(lengths, limit, steps):
    envs = [CountingEnv(length=length) for length in lengths]
    spec = EnvSpec("counting", envs[0].observation_space, envs[0].action_space)
    loop = GymLoop(envs, spec, time_limits=[limit] * len(envs))
    stream = run(loop, range(len(envs)), random_actions(spec, len(envs), steps))
    for i, length in enumerate(lengths):
        end = min(length, limit)
        for t in range(steps):
            over = (t + 1) % end == 0
            # Termination wins where both fall on one step.
            assert stream.terminated[t][i] == (over and length <= limit)
            assert stream.truncated[t][i] == (over and length > limit)
            assert decode("vector", (stream.observations[t + 1][0][i],)).step == (t + 1) % end


def test_second_reset_starts_anew():
    loop = counting(2, length=6)
    actions = random_actions(loop.spec, 2, 15)
    assert_same(run(loop, [3, 4], actions), run(loop, [3, 4], actions))


@pytest.mark.parametrize("action", ["discrete", "box", "multi", "binary", "dict"])
def test_actions_arrive_at_their_env(action):
    loop = counting(3, action=action, ending="never")
    actions = random_actions(loop.spec, 3, 5)
    envs = [CountingEnv(action=action) for _ in range(3)]
    stream = run(loop, range(3), actions)
    for t, leaves in enumerate(actions):
        for i in range(3):
            parts = [np.asarray(leaf[i]) for leaf in leaves]
            sampled = {
                "discrete": lambda p: p[0],
                "box": lambda p: np.clip(p[0], envs[0].action_space.low, envs[0].action_space.high),
                "multi": lambda p: p[0] + np.array([1, 10]),
                "binary": lambda p: p[0],
                "dict": lambda p: {"key": p[0] + 2, "move": np.clip(p[1], [-1, 0], [1, 2])},
            }[action](parts)
            told = decode("vector", (stream.observations[t + 1][0][i],)).last_action
            assert told == counting_env.action_mark(sampled)


class Keeper(gymnasium.Env):
    """Keeps the actions it was given, as environments do that penalise jerk."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.kept = []
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.kept.append(action)
        return action, 0.0, False, False, {}


@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_kept_actions_stay_what_they_were(bounds):
    env = Keeper()
    spec = EnvSpec("keeper", env.observation_space, env.action_space)
    loop = GymLoop([env], spec, action_bounds=bounds)
    loop.reset([0], rows(spec.observation, 1))
    table = np.zeros((1, 2), np.float32)
    for number in (0.25, 0.5, 0.75):
        table[:] = number
        loop.step(views(spec, 1, (table,)))
    kept = [float(action[0]) for action in env.kept]
    assert kept == sorted(set(kept))
    assert not any(np.shares_memory(action, table) for action in env.kept)


class Scripted(gymnasium.Env):
    """Returns what it is told to."""

    def __init__(self, results, space=None, first=None):
        self.observation_space = space or spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.results = iter(results)
        self.first = (
            np.zeros(self.observation_space.shape, self.observation_space.dtype)
            if first is None
            else first
        )
        self.closed = 0

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, action):
        result = next(self.results)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self):
        self.closed += 1


GOOD = (np.ones(2, np.float32), 1.0, False, False, {})


def step_scripted(*results, space=None, first=None):
    """Step one environment per result; all are good but those given."""
    envs = [Scripted([result], space, first) for result in results]
    spec = EnvSpec("scripted", envs[0].observation_space, envs[0].action_space)
    loop = GymLoop(envs, spec)
    loop.reset(range(len(envs)), rows(spec.observation, len(envs)))
    seen = views(spec, len(envs), (np.ones(len(envs), np.int64),))
    loop.step(seen)
    return seen


def observing(observation):
    return (observation, *GOOD[1:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            RuntimeError("the pole\nfell off"),
            r"raised in step\(1\): RuntimeError: the pole fell off",
        ),
        (observing(None), "of shape .* and dtype object: None"),
        (observing(np.ones(3, np.float32)), r"of shape \(3,\)"),
        (observing(np.ones((2, 1), np.float32)), r"of shape \(2, 1\)"),
        (observing([1.0, [2.0]]), "ragged"),
        (observing(np.array(["a", "b"])), "dtype <U1"),
        (observing(torch.ones(2, requires_grad=True)), "that is no array .*requires grad"),
        ((np.ones(2), torch.ones((), requires_grad=True), False, False, {}), "reward tensor"),
        ((np.ones(2), None, False, False, {}), "the reward None"),
        ((np.ones(2), "much", False, False, {}), "the reward 'much'"),
        (
            (np.ones(2), 1.0, False, {}),
            r"returned 4 values from step\(\): \(array.*; expected \(observation, reward, ",
        ),
        (None, r"returned a NoneType from step\(\): None; expected"),
    ],
)
def test_broken_env_is_named_by_its_index(bad, message):
    with pytest.raises(EnvError, match=message) as caught:
        step_scripted(GOOD, GOOD, bad, GOOD)
    assert "env 2 " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reset_without_info_is_rejected():
    class Bare(Scripted):
        def reset(self, **_):
            return self.first

    env = Bare([])
    loop = GymLoop([env], EnvSpec("bare", env.observation_space, env.action_space))
    with pytest.raises(
        EnvError, match=r"^env 0 returned a ndarray from reset\(\): array.*, info\)$"
    ):
        loop.reset([0], rows(loop.spec.observation, 1))


@pytest.mark.parametrize("reward", [np.nan, np.float64("nan"), np.array([np.inf]), -np.inf])
def test_reward_that_is_not_finite_is_left_to_the_finite_check(reward):
    seen = step_scripted(GOOD, (np.ones(2), reward, False, False, {}), GOOD)
    np.testing.assert_array_equal(seen.reward, [GOOD[1], np.asarray(reward).item(), GOOD[1]])


def test_two_wrong_shapes_that_even_out_are_seen():
    with pytest.raises(EnvError, match=r"env 1 .*shape \(3,\)"):
        step_scripted(GOOD, observing(np.ones(3)), observing(np.ones(1)), GOOD)


def test_floats_are_not_written_into_integers():
    space = spaces.Box(0, 255, (2,), np.uint8)
    with pytest.raises(EnvError, match=r"env 1 .*dtype float64"):
        step_scripted(observing(np.array([1, 2], np.uint8)), observing(np.ones(2)), space=space)


INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.bool_]


@given(
    st.sampled_from(INTEGERS),
    st.sampled_from([np.int64, np.int32, np.int16, np.uint16, None]),
    st.integers(-(2**15), 2**31 - 1) | st.integers(-2, 2) | st.sampled_from([255, 256, 300]),
    st.booleans(),
    st.booleans(),
)
def test_integers_arrive_as_they_are_or_are_refused(dtype, given_as, value, nested, late):
    """``given_as`` is None for a list of Python's own numbers."""
    if given_as is not None and not np.iinfo(given_as).min <= value <= np.iinfo(given_as).max:
        value %= 2**15
    box = spaces.Box(0, 1, (2,), dtype)
    space = spaces.Dict({"lamp": box}) if nested else box
    row = [0, value] if given_as is None else np.array([0, value], given_as)
    plain = np.array([0, 1], dtype)
    seen, good = ({"lamp": row}, {"lamp": plain}) if nested else (row, plain)
    results = ([observing(good)] * 3 + [observing(seen)])[:: 1 if late else -1]
    index = 3 if late else 0
    if np.array(value).astype(dtype) != value:
        with pytest.raises(EnvError, match=f"the number {value}, which does not fit") as caught:
            step_scripted(*results, space=space, first=good)
        assert str(caught.value).startswith(f"env {index} returned an observation")
        assert ("at 'lamp'" in str(caught.value)) == nested
    else:
        found = step_scripted(*results, space=space, first=good)
        assert found.observation[0][index].tolist() == [0, value]


def test_integers_beyond_the_widest_rows_are_refused():
    space = spaces.Box(0, 2**64 - 1, (2,), np.uint64)
    good = observing(np.array([1, 2**63 - 1], np.uint64))
    assert step_scripted(good, space=space).observation[0].tolist() == [[1, 2**63 - 1]]
    with pytest.raises(EnvError, match=r"env 1 .*number 9223372036854775808, which does not"):
        step_scripted(good, observing(np.array([1, 2**63], np.uint64)), space=space)


def test_integer_that_does_not_fit_is_refused_after_a_reset_as_well():
    env = Scripted([], spaces.Box(0, 255, (2,), np.uint8))
    env.reset = lambda **_: (np.array([3, -1]), {})
    spec = EnvSpec("scripted", env.observation_space, env.action_space)
    with pytest.raises(EnvError, match=r"^env 0 .*the number -1, which does not fit uint8"):
        GymLoop([env], spec).reset([1], rows(spec.observation, 1))


def test_keys_of_a_dict_are_what_they_were():
    space = spaces.Dict({2: spaces.Discrete(3), (0, "a"): spaces.Box(-1, 1, (1,), np.float32)})
    seen = []

    class Keyed(Scripted):
        def __init__(self):
            super().__init__([], space, first=space.sample())
            self.action_space = space

        def step(self, action):
            seen.append(action)
            return self.observation_space.sample(), 0.0, False, False, {}

    envs = [Keyed() for _ in range(2)]
    spec = EnvSpec("keyed", space, space)
    assert list(spec.observation) == ["2", "(0, 'a')"]
    run(GymLoop(envs, spec), [0, 1], random_actions(spec, 2, 3))
    assert len(seen) == 6
    assert all(space.contains(action) for action in seen)


def test_original_exception_is_the_cause():
    fault = ZeroDivisionError("by zero")
    with pytest.raises(EnvError) as caught:
        step_scripted(GOOD, fault)
    assert caught.value.__cause__ is fault
    assert fault.__traceback__ is not None


def test_fault_in_reset_is_named():
    loop = counting(2, length=2, fault="raise", fault_in="reset", fault_at=1, fault_tag=9)
    with pytest.raises(EnvError, match=r"env 1 of '.*' raised in reset\(seed=None\): RuntimeError"):
        run(loop, [8, 9], random_actions(loop.spec, 2, 3))


@pytest.mark.parametrize(
    ("observation", "space"),
    [
        ([3, 4], spaces.Box(-9, 9, (2,), np.float32)),
        (np.array([3, 4], np.int64), spaces.Box(0, 255, (2,), np.uint8)),
        (np.array([3, 4], np.float16), spaces.Box(-9, 9, (2,), np.float64)),
        (np.array([3, 4]), spaces.MultiDiscrete([9, 9])),
    ],
)
def test_lists_and_wider_numbers_are_accepted(observation, space):
    seen = step_scripted(observing(observation), observing(observation), space=space)
    assert seen.observation[0].tolist() == [[3, 4], [3, 4]]


def test_rewards_in_arrays_of_one_are_accepted():
    seen = step_scripted(GOOD, (np.ones(2), np.array([2.5]), False, False, {}))
    assert seen.reward.tolist() == [1.0, 2.5]


def test_array_that_the_env_reuses_is_copied_before_the_reset():
    class Reusing(CountingEnv):
        def _observe(self):
            self.array = getattr(self, "array", np.zeros(4, np.float32))
            self.array[:] = super()._observe()
            return self.array

    env = Reusing(length=3)
    spec = EnvSpec("reusing", env.observation_space, env.action_space)
    stream = run(GymLoop([env], spec), [6], random_actions(spec, 1, 3))
    assert decode("vector", stream.finals[2][0])[:3] == (6, 0, 3)
    assert decode("vector", (stream.observations[3][0][0],)) == Place(6, 1, 0, -1)


def test_rows_that_are_not_contiguous_are_written():
    loop = counting(2)
    wide = np.zeros((2, 2, 4), np.float32)
    loop.reset([1, 2], (wide[:, 0],))
    seen = views(loop.spec, 2, (np.zeros(2, np.int64),))
    object.__setattr__(seen, "observation", (wide[:, 0],))
    loop.step(seen)
    assert [decode("vector", (row,)).tag for row in wide[:, 0]] == [1, 2]
    assert not wide[:, 1].any()


def test_close_closes_every_env_once():
    envs = [Scripted([]), Scripted([])]
    loop = GymLoop(envs, EnvSpec("scripted", envs[0].observation_space, envs[0].action_space))
    loop.close()
    loop.close()
    assert [env.closed for env in envs] == [1, 1]


def test_close_closes_every_env_whatever_another_one_does(caplog):
    class Stubborn(Scripted):
        def close(self):
            super().close()
            raise OSError("cannot be closed")

    envs = [Scripted([]), Stubborn([]), Scripted([])]
    loop = GymLoop(envs, EnvSpec("scripted", envs[0].observation_space, envs[0].action_space))
    loop.close()
    assert [env.closed for env in envs] == [1, 1, 1]
    # What the environments were needed for is not lost for it.
    assert "'scripted' raised in close(): OSError: cannot be closed" in caplog.text


def test_unsupported_space_is_named_at_once():
    env = Scripted([], spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(SpaceError, match="Text"):
        GymLoop([env], EnvSpec("text", spaces.Text(5), env.action_space))


class Odd(gymnasium.Env):
    """Raises what is no ordinary exception, or cannot even be printed."""

    observation_space = action_space = spaces.Discrete(2)

    def __init__(self, where, error):
        setattr(self, where, self._fail)
        self._error = error

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 1.0, False, False, {}

    def _fail(self, *args, **kwargs):
        raise self._error


def loop_of(envs):
    """Return a loop over environments, and views for a step of it."""
    spec = EnvSpec("odd", envs[0].observation_space, envs[0].action_space)
    return GymLoop(envs, spec), views(spec, len(envs), (np.ones(len(envs), np.int64),))


class MuteError(Exception):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("where", ["reset", "step"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), r"GeneratorExit at .*test_gym_loop\.py:\d+: raise self\._error"),
        (MuteError(), "MuteError: a MuteError whose text cannot be printed"),
        (ValueError("a\nb"), "ValueError: a b"),
    ],
    ids=lambda found: type(found).__name__,
)
def test_whatever_an_environment_raises_is_told(where, error, told):
    loop, views = loop_of([Odd(where, error)])

    def begin():
        loop.reset([1], views.observation)
        loop.step(views)

    with pytest.raises(EnvError, match=rf"^env 0 of 'odd' raised in {where}\(.*\): {told}$"):
        begin()


def test_interrupt_in_an_environment_is_an_interrupt():
    loop, views = loop_of([Odd("step", KeyboardInterrupt())])
    loop.reset([1], views.observation)
    with pytest.raises(KeyboardInterrupt):
        loop.step(views)


def test_reward_larger_than_any_float_is_refused():
    env = Odd("reset", None)
    del env.reset
    env.step = lambda action: (0, 10**400, False, False, {})
    loop, views = loop_of([env])
    loop.reset([1], views.observation)
    with pytest.raises(EnvError, match="env 0 returned the reward 1000"):
        loop.step(views)
