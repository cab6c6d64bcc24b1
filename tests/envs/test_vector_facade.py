"""Any batched environment as gymnasium's vector environment."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastrl.envs import EnvFactory
from fastrl.envs.vector_facade import BatchedVectorEnv
from fastrl.errors import ArgumentError, EnvError


class Nested(gymnasium.Env):
    """Observes a step count twice, in float64 and as an integer; ends after three steps."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(-9, 9, (2,), np.float64), "count": spaces.Discrete(10)}
    )
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        assert action in (5, 6, 7)
        self.count += 1
        return self._observation(), float(action), self.count == 3, False, {}

    def _observation(self):
        return {"place": np.full(2, self.count / 3), "count": self.count}


def facade(num_envs, *, exact=False, **kwargs):
    batch = EnvFactory(Nested).batched(num_envs)
    batch.exact = exact
    return BatchedVectorEnv(batch, **kwargs)


def test_streams_are_those_of_gymnasiums_vector_env():
    ours = BatchedVectorEnv(EnvFactory("CartPole-v1").batched(3))
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    ours.action_space.seed(0)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    assert np.array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    ends = 0
    for _ in range(80):
        action = ours.action_space.sample()
        mine, his = ours.step(action), theirs.step(action)
        for ours_part, theirs_part in zip(mine[:4], his[:4], strict=True):
            assert np.array_equal(ours_part, theirs_part)
        assert ("final_obs" in mine[4]) == ("final_obs" in his[4])
        for index in np.flatnonzero(mine[2]):
            ends += 1
            assert mine[4]["_final_obs"][index]
            assert np.array_equal(mine[4]["final_obs"][index], his[4]["final_obs"][index])
    assert ends > 3


def test_nested_observations_and_shifted_actions_keep_their_form():
    envs = facade(2)
    envs.reset(seed=0)

    seen, reward, *_ = envs.step(np.array([5, 7]))

    assert reward.tolist() == [5.0, 7.0]
    assert seen["count"].tolist() == [1, 1]
    assert seen["place"].shape == (2, 2)
    assert envs.observation_space.contains(seen)


def test_last_observation_of_an_episode_is_in_the_infos():
    envs = facade(2)
    envs.reset(seed=0)
    for _ in range(3):
        seen, _, terminated, _, infos = envs.step(np.array([5, 5]))

    assert terminated.all()
    assert seen["count"].tolist() == [0, 0]
    assert infos["final_obs"][1]["count"] == 3
    assert infos["_final_obs"].all()


def test_dtypes_are_the_tables_unless_exactness_is_asked_for():
    rounded, exact = facade(1), facade(1, exact=True)

    for envs, dtype in ((rounded, np.float32), (exact, np.float64)):
        envs.reset(seed=0)
        seen, reward, *_ = envs.step(np.array([5]))
        assert seen["place"].dtype == dtype
        assert reward.dtype == dtype
        assert envs.observation_space.contains(seen)


def test_observations_are_copies_unless_asked_otherwise():
    for copy in (True, False):
        envs = facade(1, copy=copy)
        first, _ = envs.reset(seed=0)
        envs.step(np.array([5]))
        assert first["count"][0] == (0 if copy else 1)


def test_seeds_are_consecutive_or_given_one_by_one():
    envs = BatchedVectorEnv(EnvFactory("CartPole-v1").batched(2))

    together, _ = envs.reset(seed=4)
    apart, _ = envs.reset(seed=[4, 5])
    unseeded, _ = envs.reset()

    assert np.array_equal(together, apart)
    assert not np.array_equal(unseeded, apart)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"seed": [1]}, "seed: got 1 seeds for 2 environments"),
        ({"seed": 1, "options": {"speed": 2}}, "takes no options, got ['speed']"),
        ({"options": {"reset_mask": np.array([True, False])}}, "resets all environments together"),
    ],
)
def test_mistakes_in_a_reset_are_refused(reset, message):
    envs = facade(2)
    envs.reset(seed=0)
    with pytest.raises(ArgumentError) as caught:
        envs.reset(**reset)

    assert message in str(caught.value)


def test_unknown_info_is_rejected():
    with pytest.raises(EnvError, match="has no info"):
        facade(1, info=True)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (None, "actions are of dtype object; expected int64"),
        (np.full(2, 5.0), "actions are of dtype float64; expected int64"),
        (np.full(3, 5), r"actions have the shape \(3,\); expected \(2,\)"),
        (np.full((2, 1), 5), r"actions have the shape \(2, 1\); expected \(2,\)"),
        (5, r"actions have the shape \(\); expected \(2,\)"),
    ],
)
def test_actions_that_do_not_fit_are_refused_before_any_step(actions, message):
    envs = facade(2)
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match=f"^{message}$"):
        envs.step(actions)
    observation, *_ = envs.step([5, 6])
    assert observation["count"].tolist() == [1, 1]


def test_environments_that_cannot_go_on_draw_later_seeds_from_the_first():
    def drawn():
        envs = BatchedVectorEnv(EnvFactory("CartPole-v1").batched(2))
        return [envs.reset(seed=seed)[0] for seed in ([4, 9], None, None)]

    first = drawn()
    np.testing.assert_array_equal(first, drawn())
    assert not np.array_equal(first[1], first[2])


def test_action_of_the_step_that_resets_is_ignored():
    envs = gymnasium.make_vec(
        "fastrl/CartPole-v1", 2, max_episode_steps=1, autoreset_mode="NextStep"
    )
    envs.reset(seed=0)
    envs.step([0, 1])
    _, reward, _, truncated, _ = envs.step([-1, 9])
    assert reward.tolist() == [0, 0]
    assert not truncated.any()
    with pytest.raises(EnvError, match="action -1 is not one of 0 to 1"):
        envs.step([-1, 9])


def test_picture_before_the_first_reset_is_an_error():
    envs = facade(1, render_mode="rgb_array")
    with pytest.raises(EnvError, match="was drawn before its first reset"):
        envs.render()
