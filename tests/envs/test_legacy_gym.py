from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces

from fastrl.envs import EnvFactory, LegacyGymEnv
from fastrl.envs.legacy_gym import convert_space
from fastrl.errors import EnvError, SpaceError
from tests.counting_env import CountingEnv
from tests.envs.stepping import assert_same, random_actions, run


# Named as gym names them, which is all that the adapter looks at.
class Box:
    def __init__(self, low, high, shape, dtype):
        self.low = np.full(shape, low, dtype)
        self.high = np.full(shape, high, dtype)
        self.shape, self.dtype = shape, np.dtype(dtype)


class Discrete:
    def __init__(self, n, **attributes):
        self.n = n
        vars(self).update(attributes)


class MultiDiscrete:
    nvec = np.array([2, 3])


class MultiBinary:
    n = 4


class Dict:
    def __init__(self, spaces):
        self.spaces = spaces


class Tuple(Dict):
    pass


class BoxSpace(tuple):
    low, high, shape, dtype = 0, 255, (4, 4, 3), np.uint8


class Special(Box):
    """A user's subclass."""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Box(-2, 2, (3,), np.float32), spaces.Box(-2, 2, (3,), np.float32)),
        (Special(-2, 2, (3,), np.float64), spaces.Box(-2, 2, (3,), np.float64)),
        (BoxSpace(), spaces.Box(0, 255, (4, 4, 3), np.uint8)),
        (Discrete(5), spaces.Discrete(5)),
        (Discrete(5, start=2), spaces.Discrete(5, start=2)),
        (MultiDiscrete(), spaces.MultiDiscrete([2, 3])),
        (MultiBinary(), spaces.MultiBinary(4)),
        (
            Dict({"b": Discrete(2), "a": Tuple([Discrete(3), MultiBinary()])}),
            spaces.Dict(
                [
                    ("b", spaces.Discrete(2)),
                    ("a", spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(4)])),
                ]
            ),
        ),
    ],
)
def test_old_spaces_become_equal_new_ones(old, new):
    assert convert_space(old) == new


def test_unknown_spaces_are_rejected():
    with pytest.raises(SpaceError, match="supported are Box, Discrete"):
        convert_space(SimpleNamespace(n=3))


class Old:
    """The protocol of gym 0.21: four values, seeded by a method."""

    metadata = None

    def __init__(self, **kwargs):
        self.inner = CountingEnv(**kwargs)
        self.action_space = Discrete(5)
        self.observation_space = Box(-(2**31), 2**31 - 1, (4,), np.float32)
        self.next_seed = None

    def seed(self, seed=None):
        self.next_seed = seed

    def reset(self):
        seed, self.next_seed = self.next_seed, None
        return self.inner.reset(seed=seed)[0]

    def step(self, action):
        observation, reward, terminated, truncated, info = self.inner.step(action)
        if terminated or truncated:
            # What gym's TimeLimit wrapper does.
            info = {"TimeLimit.truncated": truncated}
        return observation, reward, terminated or truncated, info


class Middle(Old):
    """The protocol of gym 0.26: five values and a seed for reset, without gymnasium's class."""

    seed = property()

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)

    def step(self, action):
        return self.inner.step(action)


class Unseeded(Old):
    seed = None


@pytest.mark.parametrize("kind", [Old, Middle])
def test_old_env_gives_the_stream_of_the_new_one(kind):
    options = {"ending": "alternate", "length": 3, "uneven": True}
    loop = EnvFactory(kind, options).batched(3)
    actions = random_actions(loop.spec, 3, 30)
    expected = run(EnvFactory(CountingEnv, options).batched(3), (5, 6, 7), actions)
    assert_same(run(loop, (5, 6, 7), actions), expected)
    assert any(truncated.any() for truncated in expected.truncated)


def test_time_limit_of_the_config_applies_to_old_envs():
    loop = EnvFactory(Old, {"ending": "never"}, max_episode_steps=4).batched(1)
    assert loop.spec.max_episode_steps == 4
    stream = run(loop, (1,), random_actions(loop.spec, 1, 8))
    assert [bool(row[0]) for row in stream.truncated] == [False, False, False, True] * 2


def test_env_without_seed_runs():
    env = LegacyGymEnv(Unseeded())
    observation, info = env.reset(seed=3)
    assert observation.shape == (4,)
    assert info == {}


def test_observation_that_looks_like_a_pair_is_one_observation():
    class Pair(Old):
        def __init__(self):
            self.action_space = Discrete(2)
            self.observation_space = Tuple([Discrete(3), Dict({"x": Discrete(2)})])

        def reset(self):
            return (2, {"x": 1})

    observation, info = LegacyGymEnv(Pair()).reset()
    assert observation == (2, {"x": 1})
    assert info == {}


def test_strange_step_is_refused():
    class Strange(Old):
        def step(self, action):
            return 1, 2, 3

    with pytest.raises(EnvError, match=r"^env 0 returned 3 values from step\(\): \(1, 2, 3\); exp"):
        run(EnvFactory(Strange).batched(1), [0], [(np.zeros(1, np.int64),)])


def test_time_limit_of_old_gym_is_known():
    class Registered(Old):
        spec = SimpleNamespace(id="Counting-v0", max_episode_steps=9)

    assert EnvFactory(Registered).probe().max_episode_steps == 9


def test_gym_itself():
    pytest.importorskip("gym")
    loop = EnvFactory("gym:CartPole-v1", max_episode_steps=13).batched(2)
    actions = random_actions(loop.spec, 2, 60)
    expected = run(EnvFactory("CartPole-v1", max_episode_steps=13).batched(2), (1, 2), actions)
    assert_same(run(loop, (1, 2), actions), expected)
