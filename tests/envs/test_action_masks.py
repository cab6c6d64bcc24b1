"""Masks of environments: where they are found, in which forms, and what is said of wrong ones."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fastrl.envs.action_masks import find_source, flat_mask, valid_sample
from fastrl.envs.catalogue import list_environments
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import EnvError, SpaceError
from fastrl.spec import EnvSpec
from tests.masked_env import SPACES, CheckingEnv, known_mask, make_vector, options

PATH = "tests.masked_env:CheckingEnv"


def of(source, **kwargs):
    return EnvFactory(PATH, {"source": source, **kwargs})


@pytest.mark.parametrize(
    ("source", "found"), [("key", "observation"), ("info", "info"), ("method", "method")]
)
def test_sources_are_found(source, found):
    spec = of(source).probe()
    assert (spec.mask_source, spec.action_mask) == (found, "action_mask")
    assert spec.inputs.keys() == {"seen" if source == "key" else "observation"}
    assert spec.choices == (5,)
    vector = EnvFactory(lambda num_envs: make_vector(num_envs, source=source)).probe()
    assert (vector.mask_source, vector.observation) == (found, spec.observation)


def test_the_key_goes_before_the_info_and_that_before_the_method():
    class Both(CheckingEnv):
        def _info(self):
            return {"action_mask": self._mask()}

    assert find_source(Both(source="key")) == "observation"
    assert find_source(Both(source="method")) == "info"


def test_methods_are_found_beneath_wrappers_and_time_limits():
    def make():
        env = gymnasium.wrappers.TransformReward(CheckingEnv(source="method"), float)
        return gymnasium.wrappers.TimeLimit(env, 3)

    factory = EnvFactory(make)
    spec = factory.probe()
    assert (spec.mask_source, spec.max_episode_steps) == ("method", 3)
    loop = factory.batched(2)
    assert [type(env).__name__ for env in loop._envs] == ["MaskInObservation"] * 2
    loop.close()


def test_environments_are_not_probed_again_where_the_source_is_known():
    resets = []

    class Counted(CheckingEnv):
        def reset(self, **kwargs):
            resets.append(kwargs)
            return super().reset(**kwargs)

    factory = EnvFactory(lambda: Counted(source="info"))
    known = factory.with_masks_of(factory.probe())
    assert len(resets) == 1
    loop, single = known.batched(3), known.single()
    assert (
        loop.spec.observation
        == EnvSpec("", single.observation_space, single.action_space).observation
    )
    assert len(resets) == 1
    loop.close()


@pytest.mark.parametrize(
    ("env_id", "source"),
    [
        ("CartPole-v1", "observation"),
        ("CartPole-v1", "method"),
        ("fastrl/CartPole-v1", "observation"),
    ],
)
def test_configured_source_that_does_not_exist_is_rejected(env_id, source):
    with pytest.raises(EnvError, match=r"^env.action_mask: .*'(fastrl/)?CartPole-v1' ha"):
        EnvFactory(env_id, action_mask=source).probe()
    known = EnvFactory(env_id)
    known.with_masks_of(known.probe()).batched(1).close()


def test_environments_without_discrete_actions_have_no_mask():
    assert EnvFactory("Pendulum-v1").probe().action_mask is None
    spec = EnvFactory("CartPole-v1").probe()
    assert spec.action_mask is None
    assert spec.inputs == spec.observation
    assert spec.input_space is spec.observation_space


def test_taxi_says_its_mask_in_its_info():
    assert EnvFactory("Taxi-v4").probe().mask_source == "info"
    (listing,) = list_environments("Taxi-v4")
    assert listing.masks == "info['action_mask']"
    assert all(not each.masks for each in list_environments("CartPole"))


def test_old_gym_environments_have_masks_too():
    class Old:
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

        def reset(self):
            return np.zeros(2, np.float32)

        def step(self, action):
            assert action == 1
            return np.zeros(2, np.float32), 0.0, False, {}

        def action_masks(self):
            return np.array([0, 1, 0])

    factory = EnvFactory(lambda: Old())
    assert factory.probe().mask_source == "method"
    env = factory.single()
    observation, _ = env.reset(seed=0)
    assert observation["action_mask"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("space", "mask", "flat"),
    [
        (spaces.Discrete(3, start=4), [1, 0, 1], [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0, 0, 1, 1], bool), [1, 0, 0, 1, 1]),
        (spaces.Discrete(3), np.array([1, 0, 1], np.float32), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), (np.array([1, 0]), np.array([0, 1, 1])), [1, 0, 0, 1, 1]),
        (
            spaces.MultiDiscrete([[1, 2], [2, 1]]),
            ((np.ones(1), np.array([0, 1])), (np.array([1, 0]), np.ones(1))),
            None,
        ),
        (
            SPACES["nested"],
            {"move": np.array([1, 0, 0, 1]), "tools": (([1, 0], [0, 0, 1]), None)},
            [1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1],
        ),
        (
            SPACES["nested"],
            {"move": None, "box": None, "tools": (np.array([1, 0, 0, 0, 1]), [0, 1])},
            [1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1],
        ),
    ],
)
def test_masks_are_one_array_or_nested_like_the_actions(space, mask, flat):
    found = flat_mask(space, mask).astype(int).tolist()
    assert found == ([1, 0, 1, 1, 0, 1] if flat is None else flat)


@pytest.mark.parametrize(
    ("space", "mask"),
    [
        (spaces.Discrete(3), [1, 0]),
        (spaces.Discrete(3), [0.5, 1, 1]),
        (spaces.Discrete(3), None),
        (spaces.MultiDiscrete([2, 3]), ([1, 0], [1, 0])),
        (SPACES["nested"], {"move": [1, 0, 0]}),
        (SPACES["nested"], "no mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line(space, mask):
    if mask is None:
        assert flat_mask(space, mask).all()
        return
    with pytest.raises(EnvError, match=r"expected an array \(\d+,\) of 0 and 1") as caught:
        flat_mask(space, mask)
    assert "\n" not in str(caught.value)


class Wrong(CheckingEnv):
    """Its mask is too short, wherever it is."""

    def _mask(self):
        return super()._mask()[:-1]

    def __init__(self, source):
        super().__init__(source=source)
        if source == "key":
            mask = spaces.Box(0, 1, (4,), np.int8)
            self.observation_space = spaces.Dict(action_mask=mask, seen=spaces.Box(-1, 1, (2,)))


@pytest.mark.parametrize("source", ["key", "info"])
def test_a_mask_of_wrong_size_says_what_is_expected(source):
    with pytest.raises((EnvError, SpaceError), match=r"expected .*\(5,\).*env.action_mask=off"):
        EnvFactory(lambda: Wrong(source)).probe()


def test_a_mask_of_wrong_size_in_a_step_names_the_environment():
    loop = EnvFactory(lambda: Wrong("method")).batched(2)
    with pytest.raises(EnvError, match=r"env 0 of .* raised in reset.*expected an array \(5,\)"):
        loop.reset([1, 2], tuple(np.zeros((2, n), t) for n, t in ((2, np.float32), (5, np.bool_))))
    loop.close()


def test_a_mask_that_is_missing_in_a_step_is_one_line():
    class Forgetting(CheckingEnv):
        def step(self, action):
            *step, _ = super().step(action)
            return *step, {}

    env = EnvFactory(lambda: Forgetting(source="info", length=2)).single()
    observation, _ = env.reset(seed=1)
    action = 3 + int(observation["action_mask"].argmax())
    with pytest.raises(EnvError, match="its info has no 'action_mask'"):
        env.step(action)


def test_masks_nested_in_an_observation_become_one_array():
    class Nested(gymnasium.Env):
        action_space = spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([2, 3])])
        bits = spaces.MultiBinary
        observation_space = spaces.Dict(
            action_mask=spaces.Tuple([bits(2), spaces.Tuple([bits(2), bits(3)])]),
            seen=spaces.Box(-1, 1, (2,)),
        )

        def reset(self, *, seed=None, options=None):
            mask = (np.array([1, 0]), (np.array([0, 1]), np.array([1, 1, 0])))
            return {"action_mask": mask, "seen": np.zeros(2, np.float32)}, {}

    factory = EnvFactory(lambda: Nested())
    spec = factory.probe()
    assert spec.observation["action_mask"].shape == (7,)
    observation, _ = factory.single().reset()
    assert observation["action_mask"].tolist() == [1, 0, 0, 1, 1, 1, 0]


def test_masks_of_floats_become_bits():
    class Floats(CheckingEnv):
        def __init__(self):
            super().__init__()
            mask = spaces.Box(0, 1, (5,), np.float32)
            self.observation_space = spaces.Dict({**self.observation_space, "action_mask": mask})

        def _mask(self):
            return super()._mask().astype(np.float32)

    loop = EnvFactory(lambda: Floats()).batched(2)
    seen = [np.zeros((2, *leaf.shape), leaf.numpy_dtype) for leaf in loop.spec.observation.values()]
    loop.reset([1, 2], tuple(seen))
    mask = seen[list(loop.spec.observation).index("action_mask")]
    assert [row.tolist() for row in mask] == [known_mask((5,), s, 0).tolist() for s in (1, 2)]


@pytest.mark.parametrize("name", SPACES)
def test_random_valid_actions(name):
    space, uniform = SPACES[name], iter(np.random.default_rng(0).random(10_000).tolist())
    sizes = EnvSpec("", spaces.Discrete(2), space).choices
    for step in range(100):
        mask, start = known_mask(sizes, 3, step), 0
        action = valid_sample(space, mask, uniform)
        assert space.contains(action)
        for size, option in zip(sizes, options(space, action), strict=True):
            assert mask[start + option]
            start += size
