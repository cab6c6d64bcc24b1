"""Subclasses of the wrappers that are taken off do all that they add."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

import fastrl
from fastrl.envs import EnvFactory
from tests.envs.stepping import random_actions, run

BASES = (TimeLimit, OrderEnforcing, PassiveEnvChecker)
LIMIT = 4


class CountingSteps(gymnasium.Env):
    """Observes its number of steps, and never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, False, False, {}


def paid(wrapper, result):
    observation, reward, *flags = result
    return observation, reward + 10, *flags


def overriding(base, method):
    def step(self, action):
        return paid(self, base.step(self, action))

    def reset(self, **kwargs):
        observation, info = base.reset(self, **kwargs)
        return observation - 100, info

    return type(
        f"{base.__name__}Of{method}", (base,), {method: {"step": step, "reset": reset}[method]}
    )


def wrapped(base, method):
    """Return a factory of an environment with a subclass beneath the wrappers of gymnasium."""

    cls = overriding(base, method)

    def make():
        env = CountingSteps()
        env = cls(env, LIMIT) if base is TimeLimit else cls(TimeLimit(env, LIMIT))
        return OrderEnforcing(PassiveEnvChecker(env))

    return make


def replaced():
    """Return an environment on whose time limit the methods were replaced."""
    env = TimeLimit(CountingSteps(), LIMIT)
    step, reset = env.step, env.reset

    def start(**kwargs):
        observation, info = reset(**kwargs)
        return observation - 100, info

    env.step, env.reset = lambda action: paid(env, step(action)), start
    return env


FACTORIES = {
    f"{base.__name__} {method}": (wrapped(base, method), method)
    for base in BASES
    for method in ("step", "reset")
} | {"replaced": (replaced, "both")}


@pytest.mark.parametrize("steps", [None, 3, 6])
@pytest.mark.parametrize("name", FACTORIES)
def test_what_a_subclass_overrides_is_called(name, steps):
    make, method = FACTORIES[name]
    expected_reward = 1.0 if method == "reset" else 11.0
    first = 0.0 if method == "step" else -100.0
    length = steps or LIMIT

    envs = fastrl.make_vec(
        make, 2, backend="serial", max_episode_steps=steps, autoreset="same_step"
    )
    observation, _ = envs.reset(seed=0)
    assert observation.ravel().tolist() == [first, first]
    for count in range(1, 2 * length + 1):
        observation, reward, _, truncated, _ = envs.step(np.zeros(2, np.int64))
        assert reward.tolist() == [expected_reward] * 2
        assert truncated.all() == (count % length == 0)
        assert observation[0, 0] == (first if count % length == 0 else count % length)

    loop = EnvFactory(make, max_episode_steps=steps).batched(2)
    stream = run(loop, (1, 2), random_actions(loop.spec, 2, 2 * length))
    assert stream.observations[0][0].ravel().tolist() == [first, first]
    for count in range(1, 2 * length + 1):
        assert stream.rewards[count - 1].tolist() == [expected_reward] * 2
        assert stream.truncated[count - 1].all() == (count % length == 0)


def test_the_exact_types_are_taken_off_by_both():
    make = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    loop = EnvFactory(make).batched(1)
    assert loop._envs[0] is loop._envs[0].unwrapped
    envs = fastrl.make_vec(make, 1, backend="serial")
    assert envs._driver._group._steps[0].__self__ is envs.envs[0].unwrapped
