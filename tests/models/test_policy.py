import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.global_streams import seeded_weights
from fastrl.models import ActorCritic, build_model
from fastrl.models.policy import initial_state
from fastrl.spec import EnvSpec
from fastrl.system import torch_threads

SPEC = EnvSpec("test", spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))


class Doubled(ActorCritic):
    """A user's model: the usual one, whose value is multiplied."""

    def __init__(self, env_spec, factor=2.0):
        super().__init__(env_spec, ModelConfig(hidden_sizes=(8,)))
        self.factor = factor

    def forward(self, observation):
        parameters, value = super().forward(observation)
        return parameters, value * self.factor


class Halfway(torch.nn.Module):
    def __init__(self, env_spec):
        super().__init__()

    def act(self, observation, noise):
        raise NotImplementedError

    def value(self, observation):
        raise NotImplementedError


def raising(env_spec):
    raise RuntimeError("no weights\nhere")


def ending(env_spec):
    sys.exit(0)


@pytest.fixture(autouse=True)
def my_models(monkeypatch):
    """A module of the user's, importable as 'my_models'."""
    module = types.ModuleType("my_models")
    module.Doubled, module.Halfway, module.NotAModule = Doubled, Halfway, lambda env_spec: 7
    module.raising, module.ending = raising, ending
    monkeypatch.setitem(sys.modules, "my_models", module)


def test_initial_weights_do_not_depend_on_the_number_of_threads():
    def weights(threads):
        with torch_threads(threads), torch.random.fork_rng():
            torch.manual_seed(0)
            found = build_model(SPEC, ModelConfig(hidden_sizes=(64, 64))).state_dict()
            assert torch.get_num_threads() == threads
            return torch.cat([each.flatten() for each in found.values()])

    assert torch.equal(weights(1), weights(2))


def test_weights_of_several_threads_are_those_of_their_seeds():
    def weights(seed):
        with seeded_weights(seed):
            found = build_model(SPEC, ModelConfig()).state_dict()
        return torch.cat([each.flatten() for each in found.values()])

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(weights, [*range(4)] * 4))
    assert all(torch.equal(each, weights(i % 4)) for i, each in enumerate(found))


def test_other_defaults_of_torch_are_one_line(monkeypatch):
    with torch.device("meta"), pytest.raises(ConfigError, match="default device is meta"):
        build_model(SPEC, ModelConfig())
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    with pytest.raises(ConfigError, match=r"default dtype is torch\.float64"):
        build_model(SPEC, ModelConfig())


def test_without_a_class_path_the_model_is_an_actor_critic():
    model = build_model(SPEC, ModelConfig(hidden_sizes=(8, 8, 8)))
    assert type(model) is ActorCritic
    assert len(model.actor_body.mlp) == 6


def test_a_class_of_the_users_own_is_built_with_its_kwargs():
    config = ModelConfig(class_path="my_models:Doubled", kwargs={"factor": 3.0})
    model = build_model(SPEC, config)
    assert isinstance(model, Doubled)
    observation = {"": torch.randn(4, 3)}
    parameters, value = model(observation)
    assert parameters.shape == (4, 2)
    assert value.shape == (4,)
    # What truncated episodes and rollouts end with is the same value.
    assert torch.equal(model.value(observation), value)


@pytest.mark.parametrize(
    ("class_path", "kwargs", "message"),
    [
        ("no_such_module:Net", {}, "No module named 'no_such_module'"),
        ("my_models:Net", {}, "no attribute 'Net'"),
        ("my_models:Doubled", {"fcator": 1}, "fcator"),
        ("my_models:NotAModule", {}, "must be a torch.nn.Module, got int"),
        ("my_models:raising", {}, "cannot be built: RuntimeError: no weights here"),
        ("my_models:ending", {}, "cannot be built: SystemExit: 0"),
        ("numpy:ufunc", {}, "does not take model.kwargs"),
        ("builtins:dict", {}, "'builtins' is part of Python's standard library"),
        ("tests.models.broken_module:Net", {}, "cannot be imported: ValueError: not today"),
        ("my_models:Halfway", {}, "lacks the methods draw_noise, evaluate, mode"),
    ],
)
def test_a_wrong_class_is_refused_in_one_line(class_path, kwargs, message):
    config = ModelConfig(class_path=class_path, kwargs=kwargs)
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(SPEC, config)
    assert class_path in str(caught.value)
    assert "\n" not in str(caught.value)


class Remembering(Doubled):
    def initial_state(self, n):
        return torch.ones(n, 7)


def test_episodes_begin_in_the_state_that_the_policy_says_of_size_0_without_memory():
    assert torch.equal(initial_state(Remembering(SPEC), 3), torch.ones(3, 7))
    for model in (build_model(SPEC, ModelConfig()), Halfway(SPEC)):
        state = initial_state(model, 3)
        assert (state.shape, state.dtype) == ((3, 0), torch.float32)
