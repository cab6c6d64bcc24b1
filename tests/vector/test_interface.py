"""What gymnasium promises of a vector environment, on every backend."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from weakref import WeakValueDictionary

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode

import fastrl
from fastrl.errors import ConfigError, EnvError
from fastrl.vector import ArgumentError
from tests.vector.envs import KeyedEnv, OtherSpaceEnv, TellingEnv, WordyEnv

BACKENDS = ("serial", "threads", "processes")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=BACKENDS)
def telling(request):
    """One vector environment for all tests that leave it as it was."""
    envs = fastrl.make_vec(TellingEnv, 3, backend=request.param, num_workers=2)
    yield envs
    envs.close()


def zeros(envs):
    return np.zeros(envs.action_space.shape)


def test_seeds_are_consecutive_or_given_one_by_one(telling):
    first, _ = telling.reset(seed=4)
    again, _ = telling.reset(seed=[4, 5, 6])
    other, _ = telling.reset()
    for key in ("place", "mode"):
        assert np.array_equal(first[key], again[key])
    assert not np.array_equal(other["place"], first["place"])
    assert telling.get_attr("np_random_seed") == telling.np_random_seed == (4, 5, 6)
    telling.seed([7, 8, 9])
    telling.reset()
    assert telling.np_random_seed == (7, 8, 9)
    assert len(telling.np_random) == 3


def test_options_reach_every_environment(telling):
    _, infos = telling.reset(seed=0, options={"speed": 2})
    assert infos["options"].tolist() == ["{'speed': 2}"] * 3
    assert telling.get_attr("options") == ({"speed": 2},) * 3


def test_methods_are_called_with_their_arguments_and_attributes_read(telling):
    telling.reset(seed=0)
    assert telling.call("add", 2, second=3) == (5, 5, 5)
    assert telling.call("bound") == telling.get_attr("bound") == (9.0, 9.0, 9.0)


def test_attributes_are_set_for_all_or_one_by_one(telling):
    telling.set_attr("bound", [1, 2, 3])
    assert telling.get_attr("bound") == (1, 2, 3)
    telling.set_attr("bound", 9.0)
    assert telling.get_attr("bound") == (9.0, 9.0, 9.0)
    with pytest.raises(ValueError, match="got 2 for 3 environments"):
        telling.set_attr("bound", [1, 2])


def test_unknown_attributes_fan_out(telling):
    telling.reset(seed=0)
    assert telling.bound == (9.0, 9.0, 9.0)
    assert telling.add(1) == (1, 1, 1)
    assert not hasattr(telling, "wings")
    assert telling.action_space.sample().shape == (3, 2)


def test_function_runs_in_every_environment(telling):
    telling.reset(seed=0)
    assert telling.parallel(lambda env, number: number * env.bound, [1, 2, 3]) == (9.0, 18.0, 27.0)
    assert telling.parallel(lambda env, _: env.count) == (0, 0, 0)
    with pytest.raises(ArgumentError, match="arguments: got 1 for 3"):
        telling.parallel(lambda env, number: number, [1])


def test_error_of_a_call_is_raised_here_and_nothing_else_is_harmed(telling):
    telling.reset(seed=0)
    with pytest.raises(LookupError, match="nothing there") as caught:
        telling.call("fail")
    assert "raised by env 0" in caught.value.__notes__[0]
    with pytest.raises(AttributeError):
        telling.get_attr("wings")
    assert telling.call("add", 1) == (1, 1, 1)


@pytest.mark.parametrize("name", ["reset", "step", "close"])
def test_lifecycle_is_not_called_past_the_vector_env(telling, name):
    with pytest.raises(ValueError, match=f"use {name}"):
        telling.call(name)


def test_pictures_of_all_environments(backend):
    with_pictures = fastrl.make_vec(TellingEnv, 2, backend=backend, render_mode="rgb_array")
    with_pictures.reset(seed=0)
    frames = with_pictures.render()
    assert with_pictures.render_mode == "rgb_array"
    assert [frame.shape for frame in frames] == [(4, 5, 3)] * 2
    assert with_pictures.metadata["render_fps"] == 7
    assert with_pictures.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert "autoreset_mode" not in TellingEnv.metadata
    with_pictures.close()


def test_calls_that_were_not_begun_or_are_under_way_are_refused(telling):
    telling.reset(seed=0)
    for name in ("step_wait", "reset_wait", "call_wait", "recv"):
        with pytest.raises(NoAsyncCallError):
            getattr(telling, name)()
    telling.step_async(zeros(telling))
    for refused in (
        lambda: telling.step_async(zeros(telling)),
        telling.reset_async,
        lambda: telling.call_async("add", 1),
        lambda: telling.set_attr("bound", 1),
        lambda: telling.send(zeros(telling)),
    ):
        with pytest.raises(AlreadyPendingCallError):
            refused()
    with pytest.raises(NoAsyncCallError):
        telling.reset_wait()
    assert len(telling.step_wait()) == 5


def test_nothing_works_after_close(backend):
    envs = fastrl.make_vec(TellingEnv, 2, backend=backend)
    envs.reset()
    pids = envs.pids().values()
    envs.close()
    envs.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    for refused in (envs.reset, envs.render, lambda: envs.step(np.zeros((2, 2))), envs.step_wait):
        with pytest.raises(ClosedEnvironmentError):
            refused()


def test_close_while_a_step_is_under_way(backend):
    envs = fastrl.make_vec(TellingEnv, 2, backend=backend)
    envs.reset()
    pids = envs.pids().values()
    envs.step_async(zeros(envs))
    envs.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(ClosedEnvironmentError):
        envs.step_wait()


def test_forgotten_vector_env_is_closed(backend):
    envs = fastrl.make_vec(TellingEnv, 2, backend=backend)
    pids, alive = list(envs.pids().values()), weakref.ref(envs)
    del envs
    gc.collect()
    assert alive() is None
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_first_step_needs_a_reset(backend):
    envs = fastrl.make_vec(TellingEnv, 2, backend=backend)
    with pytest.raises(ArgumentError, match="reset the environments before"):
        envs.step(zeros(envs))
    envs.reset()
    envs.step(zeros(envs))
    envs.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 2)), r"shape \(2, 2\); expected \(3, 2\)"),
        (np.zeros(3), r"shape \(3,\); expected \(3, 2\)"),
        (0.5, r"shape \(\); expected \(3, 2\)"),
        ([[1, 2], [3], [4, 5]], "ragged"),
        (np.full((3, 2), 1j), "dtype complex128; expected float64"),
        ({"left": 1}, "dtype object|shape"),
    ],
)
def test_actions_that_do_not_fit_are_refused_before_any_step(telling, actions, message):
    telling.reset(seed=0)
    with pytest.raises(ArgumentError, match=message):
        telling.step(actions)
    assert telling.get_attr("count") == (0, 0, 0)


@pytest.mark.parametrize(("value", "shown"), [(300, "300"), (-1, "-1")])
def test_integers_that_do_not_fit_are_refused(backend, value, shown):
    envs = fastrl.make_vec(lambda: KeyedEnv(lamp=value), 2, backend=backend)
    envs.reset(seed=0)
    with pytest.raises(
        EnvError,
        match=rf"env [01] .* at '3/lamp' with the number {shown}, which does not fit uint8",
    ):
        envs.step(envs.action_space.sample())
    envs.close()


def test_actions_that_their_dtype_does_not_hold_are_refused():
    envs = fastrl.make_vec(KeyedEnv, 2, backend="serial")
    envs.reset(seed=0)
    actions = {1: np.array([[0, 300], [1, 1]]), (2, "b"): np.zeros(2, np.int64)}
    with pytest.raises(ArgumentError, match="at '1' hold the number 300, which does not fit int8"):
        envs.step(actions)
    envs.close()


def test_keys_of_dicts_are_what_they_were(backend):
    envs = fastrl.make_vec(KeyedEnv, 2, backend=backend, autoreset="same_step")
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    for _ in range(3):
        actions = envs.action_space.sample()
        observation, *_, infos = envs.step(actions)
        assert envs.observation_space.contains(observation)
    assert infos["final_obs"][1].keys() == {3, 4}
    for index, action in enumerate(envs.get_attr("action")):
        assert action.keys() == actions.keys()
        assert np.array_equal(action[1], actions[1][index])
    envs.close()


def test_keys_of_dicts_are_what_they_were_for_sends():
    envs = fastrl.make_vec(KeyedEnv, 2, backend="threads", num_workers=2)
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    envs.send({key: part[:1] for key, part in actions.items()}, [0])
    assert envs.recv()[0].keys() == {3, 4}
    envs.close()


def test_actions_of_an_empty_space_are_refused_in_one_line():
    class Idle(WordyEnv):
        action_space = gymnasium.spaces.Dict()

    envs = fastrl.make_vec(Idle, 2, backend="serial")
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match="do not have the form"):
        envs.step({})
    envs.close()


def test_whole_numbers_are_asked_for_where_the_space_is_discrete():
    envs = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match="dtype float64; expected int64"):
        envs.step(np.array([0.0, 1.0]))
    for actions in ([0, 1], (0, 1), torch.tensor([0, 1]), np.array([0, 1], np.int32)):
        envs.step(actions)


def test_environment_may_keep_the_action_it_was_given(backend):
    envs = fastrl.make_vec(TellingEnv, 2, backend=backend, autoreset="same_step")
    envs.reset(seed=0)
    for number in range(3):
        envs.step(np.full((2, 2), number / 10))
    kept = envs.get_attr("seen")[1]
    assert [float(action[0]) for action in kept] == [0.0, 0.1, 0.2]
    envs.close()


def test_copies_stay_and_views_hold_until_the_second_step(backend):
    actions = np.zeros(2, np.int64)
    for copy in (True, False):
        envs = fastrl.make_vec("CartPole-v1", 2, backend=backend, copy=copy)
        first, _ = envs.reset(seed=0)
        as_it_was = first.copy()
        envs.step(actions)
        assert np.array_equal(first, as_it_was)
        envs.step(actions)
        assert np.array_equal(first, as_it_was) is copy
        envs.close()


def test_views_hold_through_a_partial_reset_and_the_first_results(backend):
    mask = np.array([True, False, False])
    for steps in (1, 2):
        envs = fastrl.make_vec(
            "CartPole-v1", 3, backend=backend, copy=False, autoreset="disabled", num_workers=2
        )
        envs.reset(seed=0)
        for _ in range(steps):
            last = envs.step(np.zeros(3, np.int64))[0]
        as_it_was = last.copy()
        envs.send(np.zeros(1, np.int64), [1])
        sent = envs.recv()[0]
        assert np.array_equal(last, as_it_was)
        seen, _ = envs.reset(options={"reset_mask": mask})
        assert np.array_equal(seen[1:], [sent[0], as_it_was[2]])
        still = seen.copy()
        envs.reset(options={"reset_mask": ~mask})
        assert np.array_equal(seen, still)
        envs.close()


def test_tensors_of_torch_go_in_and_come_out():
    with_arrays = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    for copy in (True, False):
        envs = fastrl.make_vec("CartPole-v1", 2, backend="serial", output="torch", copy=copy)
        first, _ = envs.reset(seed=0)
        assert isinstance(first, torch.Tensor)
        assert np.array_equal(first, with_arrays.reset(seed=0)[0])
        seen = envs.step(torch.tensor([1, 0]))
        expected = with_arrays.step(np.array([1, 0]))
        for ours, theirs in zip(seen[:4], expected[:4], strict=True):
            assert isinstance(ours, torch.Tensor)
            assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reset_mask": [True, False, True]}, TypeError, "array of bool"),
        ({"reset_mask": np.array([1, 0, 1])}, TypeError, "array of bool"),
        ({"reset_mask": np.array([True])}, ValueError, r"shape \(3,\)"),
        ({"reset_mask": np.zeros(3, bool)}, ValueError, "selects no environment"),
    ],
)
def test_masks_that_do_not_fit_are_refused(telling, options, error, message):
    telling.reset(seed=0)
    with pytest.raises(error, match=message):
        telling.reset(options=options)
    with pytest.raises(ValueError, match="got 2 seeds for 3"):
        telling.reset(seed=[1, 2])
    telling.step(zeros(telling))


@pytest.mark.parametrize(
    ("env", "backend"),
    [
        *((TellingEnv, backend) for backend in BACKENDS),
        ("fastrl/CartPole-v1", "native"),
        ("Crafter-v1", "native"),
    ],
)
def test_first_reset_is_one_of_all_environments(env, backend):
    envs = fastrl.make_vec(env, 3, backend=backend, num_workers=2)
    some = np.array([True, False, True])
    with pytest.raises(ValueError, match="reset all environments before some of them"):
        envs.reset(seed=1, options={"reset_mask": some})
    with pytest.raises(ValueError, match="reset the environments before the first step"):
        envs.step(envs.action_space.sample())
    envs.reset(options={"reset_mask": np.ones(3, np.bool_)})
    envs.reset(options={"reset_mask": some})
    envs.step(envs.action_space.sample())
    envs.close()


def test_options_of_the_caller_are_left_as_they_are(telling):
    telling.reset(seed=0)
    options = {"reset_mask": np.array([True, False, False])}
    telling.reset(options=options)
    assert set(options) == {"reset_mask"}


def test_environments_must_have_spaces_and_be_different_objects(backend):
    one = TellingEnv()
    with pytest.raises(EnvError, match="env 1 is the same object as env 0"):
        fastrl.make_vec(lambda: one, 2, backend=backend, num_workers=1)

    class Bare(TellingEnv):
        observation_space = None

    with pytest.raises(EnvError, match="has the observation_space None; it must be a gymn"):
        fastrl.make_vec(Bare, 2, backend=backend)


def test_environments_must_have_the_same_spaces(backend):
    for other, mode in (({"bound": 2.0}, "same"), ({"size": 2}, None), ({"size": 2}, "different")):
        factories = [OtherSpaceEnv, partial(OtherSpaceEnv, **other)]
        with pytest.raises(EnvError, match=r"env 1 of .* has the observation_space"):
            fastrl.make_vec(factories, backend=backend, observation_mode=mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "thread"}, "did you mean 'threads'"),
        ({"autoreset": "samstep"}, "did you mean 'same_step'"),
        ({"output": "jax"}, "output must be 'numpy' or 'torch', got"),
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1"),
        ({"num_workers": 0}, "num_workers must be a whole number of at least 1"),
        ({"env_kwargs": [{}]}, "got 1 mappings for 2"),
    ],
)
def test_arguments_that_are_wrong_are_refused_in_a_line(arguments, message):
    given = {"num_envs": 2, "backend": "serial"} | arguments
    with pytest.raises(ConfigError, match=message) as caught:
        fastrl.make_vec("CartPole-v1", **given)
    assert "\n" not in str(caught.value)


def test_unknown_environment_is_named_with_the_nearest():
    with pytest.raises(EnvError, match="did you mean 'CartPole-v1'"):
        fastrl.make_vec("CartPole-1", 2)


def test_gymnasiums_specification_and_lists_of_factories_are_taken():
    from_spec = fastrl.make_vec(gymnasium.spec("CartPole-v1"), 2, backend="serial")
    from_list = fastrl.make_vec([lambda: gymnasium.make("CartPole-v1")] * 3, backend="serial")
    assert (from_spec.num_envs, from_list.num_envs) == (2, 3)
    assert np.array_equal(from_spec.reset(seed=0)[0], from_list.reset(seed=0)[0][:2])


def test_specification_may_differ_from_the_registered_one():
    given = gymnasium.make(
        "CartPole-v1", max_episode_steps=4, disable_env_checker=True, sutton_barto_reward=True
    )
    spec = gymnasium.wrappers.TimeAwareObservation(given).spec
    envs = fastrl.make_vec(spec, 2, backend="serial")
    assert envs.single_observation_space.shape == (5,)
    envs.reset(seed=0)
    steps = [envs.step(np.array([0, 1])) for _ in range(4)]
    assert [truncated.tolist() for _, _, _, truncated, _ in steps] == [[False] * 2] * 3 + [
        [True] * 2
    ]
    assert steps[0][1].tolist() == [0.0, 0.0]


def test_auto_takes_one_process_for_quick_environments_and_several_for_slow_ones(monkeypatch):
    monkeypatch.setattr("fastrl.vector.choice.usable_cores", lambda: 2)
    monkeypatch.setattr("fastrl.vector.choice.wake_s", lambda: 3e-5)
    quick = fastrl.make_vec("CartPole-v1", 2)
    slow = fastrl.make_vec("HalfCheetah-v5", 64)
    assert (quick.backend, slow.backend) == ("serial", "processes")
    slow.close()


def test_gymnasiums_wrappers_of_vector_environments_go_around_it(backend):
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        fastrl.make_vec("CartPole-v1", 2, backend=backend)
    )
    envs.reset(seed=0)
    lengths = []
    for _ in range(60):
        *_, infos = envs.step(np.zeros(2, np.int64))
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert len(lengths) > 5
    assert set(lengths) <= set(range(7, 13))
    envs.close()


def test_time_limit_tells_its_steps_to_those_who_ask(backend):
    envs = fastrl.make_vec("CartPole-v1", 2, backend=backend)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(np.array([0, 1]))
    assert envs.get_attr("_elapsed_steps") == (4, 4)
    envs.set_attr("_max_episode_steps", [5, 500])
    assert envs.step(np.array([0, 1]))[3].tolist() == [True, False]
    envs.close()


@pytest.mark.timeout(30)
def test_environments_dropped_unclosed_are_collected_while_others_are_built(monkeypatch):
    class Collecting(WeakValueDictionary):
        def get(self, *args):
            gc.collect()
            return super().get(*args)

    monkeypatch.setattr("fastrl.envs.agreement._OWNERS", Collecting())
    dropped = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    dropped.itself = dropped
    gone = weakref.ref(dropped)
    del dropped
    with fastrl.make_vec("CartPole-v1", 2, backend="serial") as envs:
        envs.reset(seed=0)
    assert gone() is None
