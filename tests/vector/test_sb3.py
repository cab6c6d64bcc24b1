"""Stable-Baselines3 sees what its own DummyVecEnv would show it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import fastrl
from fastrl.vector import ArgumentError
from tests.vector.envs import TellingEnv

pytest.importorskip("stable_baselines3")

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from fastrl.vector import to_sb3

pytestmark = pytest.mark.others


def adapter(env="CartPole-v1", num_envs=3, **kwargs):
    return to_sb3(
        fastrl.make_vec(env, num_envs, **{"backend": "serial", "autoreset": "same_step"} | kwargs)
    )


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_every_step_is_that_of_dummy_vec_env(backend):
    theirs = DummyVecEnv([TellingEnvSb3] * 3)
    ours = adapter(TellingEnvSb3, backend=backend)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.seed(4) == theirs.seed(4)
    first, expected = ours.reset(), theirs.reset()
    assert all(np.array_equal(first[key], expected[key]) for key in expected)
    assert ours.reset_infos == theirs.reset_infos
    rng, ends = np.random.default_rng(0), 0
    for _ in range(50):
        actions = rng.uniform(-1, 1, (3, 2))
        seen, reward, done, infos = ours.step(actions)
        expected = theirs.step(actions)
        assert all(np.array_equal(seen[key], expected[0][key]) for key in seen)
        assert np.array_equal(reward, expected[1])
        assert reward.dtype == expected[1].dtype
        assert np.array_equal(done, expected[2])
        ends += done.sum()
        for mine, his in zip(infos, expected[3], strict=True):
            assert set(mine) == set(his)
            assert mine["TimeLimit.truncated"] == his["TimeLimit.truncated"]
            assert mine["count"] == his["count"]
            assert mine["nested"] == his["nested"]
            if "terminal_observation" in his:
                for key, value in his["terminal_observation"].items():
                    assert np.array_equal(mine["terminal_observation"][key], value)
        assert ours.reset_infos == theirs.reset_infos
    assert ends > 10
    ours.close()


class TellingEnvSb3(TellingEnv):
    """Without nesting in observations, which SB3 does not have."""

    observation_space = gymnasium.spaces.Dict(
        {key: TellingEnv.observation_space[key] for key in ("mode", "place")}
    )

    def _observe(self):
        seen = super()._observe()
        return {key: seen[key] for key in ("mode", "place")}


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_attributes_and_methods_of_some_environments(backend):
    envs = adapter(TellingEnv, backend=backend, wrappers=[Monitor], render_mode="rgb_array")
    envs.reset()
    envs.set_attr("bound", 3.0, indices=[0, 2])
    assert envs.get_attr("bound") == [3.0, 9.0, 3.0]
    assert envs.get_attr("bound", indices=[1, 0]) == [9.0, 3.0]
    assert envs.get_attr("bound", indices=1) == [9.0]
    assert envs.get_attr("bound", indices=[-1, -2]) == [3.0, 9.0]
    envs.set_attr("bound", 3.0, indices=-1)
    with pytest.raises(ArgumentError, match="expected whole numbers below 3"):
        envs.get_attr("bound", indices=[0, 3])
    assert envs.env_method("add", 1, second=2, indices=[2]) == [3]
    assert envs.env_is_wrapped(Monitor) == [True] * 3
    assert envs.env_is_wrapped(gymnasium.wrappers.TimeLimit, indices=0) == [False]
    assert envs.has_attr("bound")
    assert not envs.has_attr("wings")
    assert envs.render_mode == "rgb_array"
    assert envs.render().shape == (8, 10, 3)
    envs.close()


def test_environments_are_not_reset_behind_the_back_of_the_adapter():
    envs = adapter(num_envs=2)
    envs.reset()
    with pytest.raises(ArgumentError, match="use reset"):
        envs.env_method("reset", indices=[0])


def test_picture_of_one_native_environment():
    envs = adapter("fastrl/CartPole-v1", 3, backend="native", render_mode="rgb_array")
    envs.reset()
    (picture,) = envs.env_method("render", indices=[1])
    assert np.array_equal(picture, envs.get_images()[1])
    envs.close()


def test_policy_is_evaluated_in_native_environments():
    envs = VecMonitor(adapter("CartPole-v1", 2, backend="native"))
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=16, device="cpu")
    mean, _ = evaluate_policy(model, envs, n_eval_episodes=2)
    assert mean > 5
    assert envs.env_is_wrapped(Monitor, indices=[0]) == [False]
    envs.close()


def test_options_are_used_once():
    envs = adapter(TellingEnv)
    envs.set_options({"speed": 2})
    envs.reset()
    assert envs.get_attr("options") == [{"speed": 2}] * 3
    envs.reset()
    assert envs.get_attr("options") == [None] * 3
    envs.set_options([{"speed": 1}, {}, {}])
    with pytest.raises(ArgumentError, match="same options"):
        envs.reset()


def test_what_does_not_suit_sb3_is_refused():
    with pytest.raises(ArgumentError, match="autoreset='same_step'"):
        adapter(autoreset="next_step")
    with pytest.raises(ArgumentError, match="output='numpy'"):
        adapter(output="torch")


@pytest.mark.parametrize(("algorithm", "copy"), [(PPO, True), (A2C, False)])
def test_algorithms_learn_the_same_as_on_dummy_vec_env(algorithm, copy, tmp_path_factory):
    def learned(envs):
        more = {"batch_size": 24, "n_epochs": 2} if algorithm is PPO else {}
        model = algorithm("MlpPolicy", envs, n_steps=16, seed=1, device="cpu", **more)
        model.learn(90)
        assert str(tmp_path_factory.getbasetemp()) in model.logger.dir
        return np.concatenate([each.detach().ravel() for each in model.policy.parameters()])

    ours = learned(adapter(copy=copy))
    theirs = learned(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 3))
    assert np.array_equal(ours, theirs)


def test_sb3s_own_wrappers_go_around_it():
    envs = VecNormalize(VecFrameStack(VecMonitor(adapter(num_envs=2)), 3))
    envs.seed(0)
    assert envs.reset().shape == (2, 12)
    lengths = []
    for _ in range(40):
        _, _, _, infos = envs.step(np.zeros(2, np.int64))
        lengths += [info["episode"]["l"] for info in infos if "episode" in info]
    assert len(lengths) > 4
    assert set(lengths) <= set(range(7, 13))
