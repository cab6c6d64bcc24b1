"""What cannot be meant is refused in one line that says what would be right."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

import fastrl
from fastrl.errors import ArgumentError
from fastrl.vector import make_concurrent


def refusal(call, *args, **kwargs):
    with pytest.raises(ArgumentError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("env", [None, 3, {"id": "CartPole-v1"}, [None]])
def test_environment_is_an_id_or_a_factory(env):
    told = refusal(fastrl.make_vec, env, 1)
    assert told.startswith("env must be an id such as 'CartPole-v1', a factory or a list of fact")


def test_list_of_factories_has_one_for_each_environment():
    def factory():
        return gymnasium.make("CartPole-v1")

    told = refusal(fastrl.make_vec, [factory, factory], 3)
    assert told == "num_envs: got 3 for a list of 2 factories"
    assert refusal(fastrl.make_vec, []) == "num_envs must be a whole number of at least 1, got 0"


@pytest.mark.parametrize("make", [fastrl.make_vec, make_concurrent])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 2.5}, "num_envs must be a whole number of at least 1, got 2.5"),
        ({"num_envs": "4"}, "num_envs must be a whole number of at least 1, got '4'"),
        ({"num_envs": -1}, "num_envs must be a whole number of at least 1, got -1"),
        ({"timeout_s": -1}, "timeout_s must be a number of seconds above 0, got -1"),
        ({"timeout_s": "x"}, "timeout_s must be a number of seconds above 0, got 'x'"),
        ({"timeout_s": float("nan")}, "timeout_s must be a number of seconds above 0, got nan"),
        (
            {"env_kwargs": "length"},
            "env_kwargs must be a mapping, a list of mappings or a function",
        ),
        ({"env_kwargs": 3}, "env_kwargs must be a mapping, a list of mappings or a function"),
        ({"env_kwargs": {"length": {"unifrom": [1, 2]}}}, "did you mean 'uniform'?"),
        (
            {"env_kwargs": {"g": {"choice": []}}},
            "env_kwargs.g.choice: expected a list of the values",
        ),
        (
            {"env_kwargs": {"g": {"log_uniform": [-1, 2]}}},
            "g.log_uniform: expected [lowest, highest] above 0",
        ),
        (
            {"env_kwargs": {"g": {"normal": [0, -1]}}},
            "expected [mean, standard deviation of at least 0]",
        ),
        ({"env_kwargs_seed": -1}, "env_kwargs_seed must be a whole number of at least 0, got -1"),
        ({"autoreset_mode": "NxtStep"}, "autoreset_mode must be one of same_step, next_step, dis"),
        (
            {"autoreset": "same_step", "autoreset_mode": "NextStep"},
            "autoreset_mode contradicts autoreset='same_step'; leave one of them out",
        ),
        ({"wrappers": "module:Wrapper"}, "wrappers must be a list of callables or paths"),
        ({"wrappers": [lambda env: None]}, "returned a NoneType, not an environment"),
    ],
)
def test_argument_is_refused_by_its_name(make, arguments, message):
    assert message in refusal(make, "CartPole-v1", **{"num_envs": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 1.5}, "num_workers must be a whole number of at least 1, got 1.5"),
        ({"start_timeout_s": 0}, "start_timeout_s must be a number of seconds above 0, got 0"),
        ({"close_timeout_s": 0}, "close_timeout_s must be a number of seconds above 0, got 0"),
    ],
)
def test_argument_of_workers_is_refused_by_its_name(arguments, message):
    assert refusal(fastrl.make_vec, "CartPole-v1", 2, backend="processes", **arguments) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "threads", "vectorization_mode": "sync"},
            "vectorization_mode='sync' contradicts backend='threads'; leave one of them out",
        ),
        (
            {"vectorization_mode": "asinc"},
            "vectorization_mode must be 'sync' or 'async' or 'vector_entry_point', got 'asinc'; "
            "did you mean 'async'?",
        ),
        (
            {"autoreset_mode": "Disabled", "vector_kwargs": {"autoreset_mode": "NextStep"}},
            "vector_kwargs['autoreset_mode'] contradicts autoreset='disabled'; leave one of them "
            "out",
        ),
        (
            {"copy": False, "vector_kwargs": {"copy": True}},
            "vector_kwargs['copy'] contradicts copy=False; leave one of them out",
        ),
        (
            {"observation_mode": "same", "vector_kwargs": {"observation_mode": "different"}},
            "vector_kwargs['observation_mode'] contradicts observation_mode='same'; leave one of "
            "them out",
        ),
        ({"vector_kwargs": "copy"}, "vector_kwargs must be a mapping, got 'copy'"),
        (
            {"vector_kwargs": {"worker": print}},
            "vector_kwargs: 'worker' is unknown here; known are autoreset_mode, copy, "
            "observation_mode, shared_memory, context, daemon",
        ),
        (
            {"observation_mode": "some"},
            "observation_mode must be 'same', 'different' or a tuple of the observation space of "
            "all environments and that of one, got 'some'",
        ),
        (
            {"observation_mode": (Box(-1, 1, (2, 3)), Box(-1, 1, (3,)))},
            "observation_mode: the space of one environment, Box(-1.0, 1.0, (3,), float32), has "
            "another shape or dtype than that of the environments, Box(",
        ),
    ],
)
def test_names_of_gymnasium_are_refused_where_they_are_unknown_or_contradict(arguments, message):
    assert refusal(fastrl.make_vec, "CartPole-v1", 2, **arguments).startswith(message)


@pytest.mark.parametrize("name", ["vectorization_mode", "vector_kwargs"])
def test_awaited_environments_have_no_backend(name):
    told = refusal(make_concurrent, "CartPole-v1", 2, **{name: "sync"})
    assert told == f"make_concurrent takes no {name}: calls overlap in this process"


@pytest.mark.parametrize("seed", [-1, "a", 0.5, [0, -1], [0, "b"], [0, 1.5]])
def test_seed_that_is_none_leaves_the_environments_as_they_are(seed):
    envs = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    envs.reset(seed=0)
    assert refusal(envs.reset, seed=seed).startswith("seed must be a whole number")
    envs.step(np.array([0, 1]))


@pytest.mark.parametrize("autoreset", ["NextStep", "NEXT_STEP", AutoresetMode.NEXT_STEP])
def test_autoreset_may_be_called_as_in_gymnasium(autoreset):
    envs = fastrl.make_vec("CartPole-v1", 2, backend="serial", autoreset=autoreset)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_first_results_and_seeds_that_fit_no_row_leave_the_environments_as_they_are():
    envs = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    assert "numbers below 2**63" in refusal(envs.async_reset, seed=2**63)
    envs.async_reset(seed=0)
    assert refusal(envs.recv, 1.5) == "batch_size must be a whole number of at least 1, got 1.5"
    assert refusal(envs.recv, 0) == "batch_size must be a whole number of at least 1, got 0"
    assert len(envs.recv(2)[0]) == 2


def test_options_that_are_none_leave_the_environments_as_they_are():
    envs = fastrl.make_vec("CartPole-v1", 2, backend="serial")
    envs.reset(seed=0)
    assert refusal(envs.reset, options=3) == "options must be a mapping, got 3"
    envs.step(np.array([0, 1]))


TAKEN = "the adapter for Stable-Baselines3 takes the result of fastrl.make_vec, got {}"


def test_sb3_adapter_takes_vector_environments_of_fastrl_only():
    pytest.importorskip("stable_baselines3")
    to_sb3 = fastrl.vector.to_sb3
    others = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    assert refusal(to_sb3, others) == TAKEN.format("SyncVectorEnv")
    assert refusal(to_sb3, "CartPole-v1") == TAKEN.format("str")
    others.close()


class Missing:
    """Finds no module of a package, as where that is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize(
    ("adapter", "library", "package"),
    [("sb3", "stable_baselines3", "stable-baselines3"), ("tianshou", "tianshou", "tianshou")],
)
def test_adapters_say_what_to_install(adapter, library, package, monkeypatch):
    monkeypatch.delitem(sys.modules, f"fastrl.vector.{adapter}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(library), *sys.meta_path])
    with pytest.raises(
        ModuleNotFoundError, match=f"to_{adapter} needs .*: pip install .?{package}"
    ):
        getattr(fastrl.vector, f"to_{adapter}")
