from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.envs.batched_env import BatchedEnv, StepViews
from fastrl.envs.classic_control.control_batch import (
    ClassicControlBatch,
    Options,
    new_streams,
    peek,
)
from fastrl.envs.tensor import Randomized, make_tensor
from fastrl.errors import ArgumentError, EnvError, SpaceError
from tests.envs.classic_control.gymnasium_twin import FIRST, NAMES
from tests.envs.stepping import assert_same, random_actions, rows, run, views

SEEDS = (3, 14, 15, 92, 65)


def stream_of(name, seeds, steps=80, options=None):
    env = ClassicControlBatch(name, len(seeds), options)
    actions = random_actions(env.spec, 5, steps)
    return run(env, seeds, [tuple(leaf[: len(seeds)] for leaf in action) for action in actions])


@pytest.mark.parametrize("name", FIRST)
def test_is_a_batched_env_that_keeps_the_contract(name):
    assert isinstance(ClassicControlBatch(name, 1), BatchedEnv)
    stream_of(name, SEEDS, steps=600)


def test_episodes_depend_on_the_own_seed_only():
    together = stream_of("CartPole-v1", SEEDS)
    alone = stream_of("CartPole-v1", SEEDS[:1])
    assert together.episodes > alone.episodes > 0
    for ours, theirs in zip(together.observations, alone.observations, strict=True):
        np.testing.assert_array_equal(ours[0][:1], theirs[0])


def test_same_seeds_give_the_same_episodes():
    assert_same(stream_of("CartPole-v1", SEEDS), stream_of("CartPole-v1", SEEDS))
    first, second = (np.zeros((1, 4), np.float32) for _ in range(2))
    ClassicControlBatch("CartPole-v1", 1).reset([1], (first,))
    ClassicControlBatch("CartPole-v1", 1).reset([2], (second,))
    assert (first != second).all()


# Enough environments that a second thread is worth waking, and fewer of them than threads.
@pytest.mark.parametrize(("n", "threads"), [(9_001, 2), (2, 8)])
def test_threads_change_nothing(n, threads):
    results = []
    for num_threads in (1, threads):
        env = ClassicControlBatch("Acrobot-v1", n, Options(num_threads=num_threads))
        results.append(run(env, range(n), random_actions(env.spec, n, 4)))
        env.close()
        env.close()
    assert_same(*results)
    assert_same(results[0], run(env, range(n), random_actions(env.spec, n, 4)))  # by one thread


def test_an_environment_is_no_different_at_the_end_of_a_long_batch():
    # Neither in the last, shorter block nor in the lanes that fill no vector.
    n = 1027
    env = ClassicControlBatch("Acrobot-v1", n)
    observation = rows(env.spec.observation, n)
    env.reset([7] * n, observation)
    actions = np.tile(np.array([0, 2, 1]), 20)
    for action in actions:
        seen = views(env.spec, n, (np.full(n, action),))
        env.step(seen)
        assert (seen.observation[0] == seen.observation[0][0]).all()


def test_next_episode_begins_from_the_next_numbers_of_the_stream():
    env, params = make_tensor("CartPole-v1")
    batch = ClassicControlBatch("CartPole-v1", len(SEEDS))
    observation = rows(batch.spec.observation, len(SEEDS))
    batch.reset(SEEDS, observation)
    numbers = peek(new_streams(SEEDS), slice(None), 8)
    first, _ = env.reset(torch.from_numpy(numbers[:, :4]), params)
    np.testing.assert_allclose(observation[0], first, atol=1e-8)

    second, _ = env.reset(torch.from_numpy(numbers[:, 4:]), params)
    waiting = np.ones(len(SEEDS), bool)
    while waiting.any():
        seen = views(batch.spec, len(SEEDS), (np.ones(len(SEEDS), np.int64),))
        batch.step(seen)
        over = seen.terminated & waiting
        np.testing.assert_allclose(seen.observation[0][over], second[over], atol=1e-8)
        waiting &= ~over


def test_views_may_have_gaps_between_rows():
    n = len(SEEDS)
    plain = views(ClassicControlBatch("Pendulum-v1", n).spec, n, (np.full((n, 1), 1.5, "f4"),))
    gaps = StepViews(
        action=(np.full((2 * n, 1), 1.5, np.float32)[::2],),
        observation=(np.zeros((2 * n, 3), np.float32)[::2],),
        reward=np.zeros(2 * n, np.float32)[::2],
        terminated=np.zeros(2 * n, bool)[::2],
        truncated=np.zeros(2 * n, bool)[::2],
        final_observation=(np.zeros((2 * n, 3), np.float32)[::2],),
    )
    for seen in (plain, gaps):
        env = ClassicControlBatch("Pendulum-v1", n)
        env.reset(SEEDS, seen.observation)
        env.step(seen)
    np.testing.assert_allclose(gaps.observation[0], plain.observation[0], atol=1e-6)
    np.testing.assert_allclose(gaps.reward, plain.reward, atol=1e-6)
    assert not gaps.observation[0].base[1::2].any()


def test_time_limit_can_be_changed():
    stream = stream_of("Pendulum-v1", SEEDS, 14, Options(max_episode_steps=7))
    assert [truncated.all() for truncated in stream.truncated] == ([False] * 6 + [True]) * 2
    assert not np.any(stream.terminated)


def test_actions_are_clipped_or_squashed():
    n, steep = 2, (np.full((2, 1), 1.0, np.float32),)
    rewards = {}
    for bounds in ("clip", "squash"):
        env = ClassicControlBatch("MountainCarContinuous-v0", n, Options(action_bounds=bounds))
        env.reset([1, 2], rows(env.spec.observation, n))
        seen = views(env.spec, n, steep)
        env.step(seen)
        rewards[bounds] = seen.reward
    np.testing.assert_allclose(rewards["clip"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(rewards["squash"], -0.1 * np.tanh(1) ** 2, rtol=1e-6)


def test_parameters_are_shared_or_one_for_each_environment():
    def reached(**params):
        env = ClassicControlBatch("CartPole-v1", 3, Options(params=params))
        env.reset([4, 4, 4], rows(env.spec.observation, 3))
        seen = views(env.spec, 3, (np.ones(3, np.int64),))
        env.step(seen)
        return seen.observation[0]

    usual, strong = reached(), reached(force_mag=20)
    mixed = reached(force_mag=[10, 20, 10])
    assert (usual[:, 1] < strong[:, 1]).all()
    np.testing.assert_allclose(mixed[[0, 2]], usual[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], strong[1], rtol=1e-6)


def test_states_can_be_read_and_put_back():
    n = 9_000
    env = ClassicControlBatch("Acrobot-v1", n, Options(num_threads=2))
    observation = rows(env.spec.observation, n)
    env.reset(range(n), observation)
    saved, state = env.get_state(), env.state()
    np.testing.assert_allclose(observation[0][:, 4], state.velocity1)
    results = []
    for _ in range(2):
        env.set_state(saved)
        seen = views(env.spec, n, (np.arange(n) % 3,))
        env.step(seen)
        results.append(seen.observation[0])
    np.testing.assert_array_equal(*results)
    assert (env.state().time == 1).all()
    assert env.params().gravity == pytest.approx(9.8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "CartPole-v2",
            Options(),
            "'CartPole-v2' is not a tensor environment; did you mean 'Cart",
        ),
        ("CartPole-v1", Options(params={"lenght": 1}), "has no parameter 'lenght'; did you mean"),
        ("CartPole-v1", Options(params={"length": "x"}), "length: expected a finite number"),
        ("CartPole-v1", Options(params={"length": [1, 2]}), "or 4 of them"),
        (
            "CartPole-v1",
            Options(max_episode_steps=0),
            "max_episode_steps must be a whole number of at",
        ),
        ("CartPole-v1", Options(num_threads=None), "num_threads must be a whole number of at"),
        ("CartPole-v1", Options(params={"sutton_barto_reward": {}}), "expected true or false"),
        ("CartPole-v1", Options(params={"kinematics_integrator": [["euler"], []]}), "'euler' or"),
        ("CartPole-v1", Options(expose_params="no"), "expose_params must be a bool, got 'no'"),
        ("CartPole-v1", Options(randomize="length"), "expected distributions by name, got 'leng"),
        ("Pendulum-v1", Options(action_bounds="squish"), "'squash' or None, got 'squish'"),
        ("CartPole-v1", Options(num_threads=0), "num_threads must be a whole number of at least"),
        ("CartPole-v1", Options(expose_params=True), "no parameters to expose"),
        ("CartPole-v1", Options(randomize={"mass": {}}), "unknown parameter 'mass'"),
    ],
)
def test_wrong_options_say_what_would_be_right(name, options, message):
    with pytest.raises((ArgumentError, EnvError), match=message):
        ClassicControlBatch(name, 4, options)


IMPOSSIBLE = [
    ("CartPole-v1", {"masscart": 0.0}, "masscart must be above 0, got 0"),
    ("CartPole-v1", {"masspole": [0.1, -0.5]}, "masspole must be at least 0, got values from -0.5"),
    ("CartPole-v1", {"tau": 0}, "tau must be above 0"),
    ("CartPole-v1", {"length": 1e39}, "env.kwargs.length: expected a finite number"),
    ("CartPole-v1", {"length": "0.5"}, "env.kwargs.length: expected a finite number"),
    ("CartPole-v1", {"length": True}, "env.kwargs.length: expected a finite number"),
    ("Pendulum-v1", {"mass": -1.0}, "'Pendulum-v1': mass must be above 0, got -1"),
    ("Acrobot-v1", {"mass2": -1.0}, "mass2 must be above 0"),
    ("MountainCar-v0", {"min_position": 1.0}, "min_position must not be above max_position"),
    ("MountainCarContinuous-v0", {"max_speed": -1.0}, "max_speed must be at least 0"),
]


@pytest.mark.parametrize(("name", "params", "message"), IMPOSSIBLE)
def test_impossible_parameters_are_refused(name, params, message):
    with pytest.raises(EnvError, match=message):
        ClassicControlBatch(name, 2, Options(params=params))


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ({"normal": [0.1, 0.1]}, "masspole must be at least 0, got values from -0.4"),
        ({"choice": [0.1, -1]}, "masspole must be at least 0, got values from -1 to 0.1"),
        ({"uniform": [-0.1, 1]}, "masspole must be at least 0, got values from -0.1 to 1"),
    ],
)
def test_distributions_of_impossible_parameters_are_refused(distribution, message):
    specification = {"masspole": distribution}
    with pytest.raises(EnvError, match=message):
        ClassicControlBatch("CartPole-v1", 2, Options(randomize=specification))
    with pytest.raises(EnvError, match=message):
        Randomized(make_tensor("CartPole-v1")[0], specification)


BOUNDING = {
    "Acrobot-v1": ("max_velocity1", "max_velocity2", "reset_bound"),
    "CartPole-v1": ("x_threshold", "theta_threshold", "reset_bound"),
    "MountainCar-v0": ("max_speed", "min_position", "reset_low"),
    "MountainCarContinuous-v0": ("max_speed", "max_position", "max_action"),
    "Pendulum-v1": ("max_speed", "max_torque", "reset_speed"),
}


@pytest.mark.parametrize("name", FIRST)
@settings(max_examples=8)
@given(st.data(), st.sampled_from(["shared", "each", "uniform", "choice"]))
def test_spaces_hold_what_is_observed_and_taken_for_any_parameters(name, data, kind):
    env, _ = make_tensor(name)
    which = data.draw(st.sampled_from(BOUNDING[name]))
    scale = data.draw(st.floats(0.5, 4.0))
    far = abs(env.defaults[which]) * scale
    if which in ("min_position", "reset_low"):
        far = -max(far, 0.7)
    values = sorted([env.defaults[which], far])
    given_ = {
        "shared": Options(params={which: far}),
        "each": Options(params={which: values}),
        "uniform": Options(randomize={which: {"uniform": values}}),
        "choice": Options(randomize={which: {"choice": values}}),
    }[kind]
    batch = ClassicControlBatch(name, 2, given_)
    seen, action = batch.spec.observation_space, batch.spec.action_space
    for observation in stream_of(name, [1, 2], 60, given_).observations:
        assert (observation[0] >= seen.low - 1e-6).all()
        assert (observation[0] <= seen.high + 1e-6).all()
    if which in ("max_torque", "max_action"):
        least = far if kind == "shared" else values[1]
        assert action.high == pytest.approx(least)
        assert action.low == pytest.approx(-least)


@pytest.mark.parametrize("name", NAMES)
def test_spaces_of_the_usual_parameters_are_gymnasiums(name):
    original = gymnasium.make(name)
    for env in (ClassicControlBatch(name, 2), make_tensor(name)[0].within({})):
        assert env.spec.observation_space == original.observation_space
        assert env.spec.action_space == original.action_space


def test_torque_beyond_the_usual_reaches_the_pendulum():
    low, high = (
        ClassicControlBatch("Pendulum-v1", 1, Options(params={"max_torque": m})) for m in (2.0, 5.0)
    )
    after = []
    for env in (low, high):
        seen = views(env.spec, 1, (np.full((1, 1), 5.0, np.float32),))
        env.reset([0], seen.observation)
        env.step(seen)
        after.append(seen.observation[0][0, 2])
    assert after[1] - after[0] == pytest.approx(3 / 1.0 * 3.0 * 0.05, rel=1e-4)


@pytest.mark.parametrize("action", [5, -1, 1000])
def test_discrete_actions_that_are_none_step_nothing(action):
    env = ClassicControlBatch("CartPole-v1", 3)
    seen = views(env.spec, 3, (np.array([0, 1, action]),))
    env.reset([1, 2, 3], seen.observation)
    before = env.state()
    with pytest.raises(EnvError, match=f"env 2 of 'CartPole-v1': action {action} is not one of 0"):
        env.step(seen)
    with pytest.raises(EnvError, match="actions are of dtype float64; expected int64"):
        env.step(dataclasses.replace(seen, action=(np.zeros(3),)))
    assert all(torch.equal(a, b) for a, b in zip(before, env.state(), strict=True))


def test_single_environment_refuses_actions_that_are_none():
    env = gymnasium.make("fastrl/CartPole-v1")
    env.reset(seed=0)
    for action in (2, -1, 0.5, "left", [0, 1]):
        with pytest.raises((ArgumentError, EnvError), match="action"):
            env.unwrapped.step(action)


@pytest.mark.parametrize(
    "field", ["action", "observation", "reward", "terminated", "truncated", "final_observation"]
)
def test_views_that_do_not_fit_are_refused(field):
    env = ClassicControlBatch("Pendulum-v1", 3)
    seen = views(env.spec, 3, (np.zeros((3, 1), np.float32),))
    env.reset([1, 2, 3], seen.observation)
    value = getattr(seen, field)
    short = tuple(leaf[:1] for leaf in value) if isinstance(value, tuple) else value[:1]
    with pytest.raises(EnvError, match="steps action, observation"):
        env.step(dataclasses.replace(seen, **{field: short}))
    for chosen in (np.ones(1, np.bool_), np.array([0, 1, 2])):
        with pytest.raises(EnvError, match="expected a mask"):
            env.restart(seen.observation, chosen)
    with pytest.raises(EnvError, match="expected observations"):
        env.reset([1, 2, 3], (seen.observation[0][:2],))
    with pytest.raises(EnvError, match="the state's array 'state' must be"):
        env.set_state(ClassicControlBatch("Pendulum-v1", 2).get_state())


def test_misuse_is_an_error():
    env = ClassicControlBatch("CartPole-v1", 2)
    seen = views(env.spec, 2, (np.zeros(2, np.int64),))
    with pytest.raises(EnvError, match="stepped before its first reset"):
        env.step(seen)
    with pytest.raises(EnvError, match="expected 2 seeds, got 3"):
        env.reset([1, 2, 3], seen.observation)
    with pytest.raises(ArgumentError, match="num_envs must be a whole number"):
        ClassicControlBatch("CartPole-v1", 0)
    assert issubclass(SpaceError, EnvError)


def randomized(**kwargs):
    ranges = {"length": {"uniform": [0.4, 0.6]}, "masspole": {"log_uniform": [0.05, 0.2]}}
    return Options(randomize=ranges, expose_params=True, **kwargs)


def test_randomised_parameters_are_observed_and_drawn_anew_for_every_episode():
    env = ClassicControlBatch("CartPole-v1", 5, randomized())
    assert env.randomized == ("masspole", "length")
    stream = run(env, SEEDS, random_actions(env.spec, 5, 80))
    assert stream.episodes > 5
    for before, after, finals in zip(
        stream.observations, stream.observations[1:], stream.finals, strict=False
    ):
        changed = (before[1] != after[1]).any(axis=1)
        assert set(np.flatnonzero(changed)) == set(finals)
        for index, (_, params) in finals.items():
            np.testing.assert_array_equal(params, before[1][index])
    params = np.concatenate([observation[1] for observation in stream.observations])
    low, high = params.min(axis=0), params.max(axis=0)
    assert 0.05 <= low[0] < 0.08 < high[0] < 0.2
    assert 0.4 <= low[1] < 0.45 < 0.55 < high[1] < 0.6


def test_randomised_parameters_move_the_environment():
    env = ClassicControlBatch("CartPole-v1", 5, randomized())
    env.reset(SEEDS, rows(env.spec.observation, 5))
    state, params = env.state(), env.params()
    seen = views(env.spec, 5, (np.ones(5, np.int64),))
    env.step(seen)
    program, _ = make_tensor("CartPole-v1")
    reached, _, _ = program.transition(state, torch.ones(5, dtype=torch.int64), params)
    np.testing.assert_allclose(seen.observation[0], program.observe(reached), atol=1e-6)
    np.testing.assert_array_equal(seen.observation[1][:, 1], params.length)


def test_threads_change_nothing_where_parameters_are_random():
    streams = [stream_of("CartPole-v1", SEEDS, options=randomized(num_threads=k)) for k in (1, 2)]
    assert_same(*streams)
