"""Tianshou sees what its own DummyVectorEnv would show it."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

import fastrl
from fastrl.vector import ArgumentError
from tests.counting_env import CountingEnv
from tests.vector.envs import TellingEnv, WordyEnv
from tests.vector.test_same_as_gymnasium import assert_same

pytest.importorskip("tianshou")

from numba.core.dispatcher import Dispatcher
from tianshou.algorithm import DQN, algorithm_base
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.data.buffer import manager
from tianshou.env import DummyVectorEnv, VectorEnvNormObs
from tianshou.utils.net.common import Net
from tianshou.utils.torch_utils import policy_within_training_step

from fastrl.vector import to_tianshou

pytestmark = pytest.mark.others


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    """Run Tianshou's compiled functions as Python: to compile them takes 20 s."""
    for module in (algorithm_base, manager):
        for name, value in list(vars(module).items()):
            if isinstance(value, Dispatcher):
                monkeypatch.setattr(module, name, value.py_func)


CARTPOLE = partial(gymnasium.make, "CartPole-v1", max_episode_steps=30)
PENDULUM = partial(gymnasium.make, "Pendulum-v1", max_episode_steps=9)


class TellingEnvTianshou(TellingEnv):
    """Without tuples in observations, which Tianshou does not have."""

    observation_space = gymnasium.spaces.Dict(
        {key: TellingEnv.observation_space[key] for key in ("mode", "place")}
    )

    def reset(self, *, seed=None, options=None):
        # Without the options: gymnasium's are empty where only some environments are reset.
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"fresh": True}

    def _observe(self):
        seen = super()._observe()
        return {key: seen[key] for key in ("mode", "place")}


def adapter(env=CARTPOLE, num_envs=3, **kwargs):
    return to_tianshou(
        fastrl.make_vec(env, num_envs, **{"backend": "serial", "autoreset": "disabled"} | kwargs)
    )


def assert_alike(ours, theirs, where):
    """Compare what `reset` or `step` returned; single infos are dicts of numbers of any type."""
    *arrays, infos = ours
    *expected, their_infos = theirs
    for number, (mine, his) in enumerate(zip(arrays, expected, strict=True)):
        if his.dtype == object:
            assert_same(dict(enumerate(mine)), dict(enumerate(his)), f"{where}/{number}")
        else:
            assert_same(mine, his, f"{where}/{number}")
    assert infos.dtype == their_infos.dtype == object
    for mine, his in zip(infos, their_infos, strict=True):
        assert mine.keys() == his.keys()
        for key, value in his.items():
            assert np.array_equal(mine[key], value) or mine[key] == value


@pytest.mark.parametrize(
    ("build", "backend"),
    [
        (CARTPOLE, "serial"),
        (PENDULUM, "serial"),
        (TellingEnvTianshou, "serial"),
        (TellingEnvTianshou, "processes"),
    ],
)
def test_every_step_of_some_environments_is_that_of_dummy_vector_env(build, backend):
    theirs, ours = DummyVectorEnv([build] * 4), adapter(build, 4, backend=backend, num_workers=2)
    assert len(ours) == len(theirs) == 4
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    assert ours.seed(5) == theirs.seed(5)
    assert_alike(ours.reset(), theirs.reset(), "reset")
    rng, ends = np.random.default_rng(0), 0
    for step in range(60):
        ids = rng.permutation(4)[: rng.integers(1, 5)] if step % 3 else None
        count = 4 if ids is None else len(ids)
        actions = [space.sample() for space in theirs.action_space[:count]]
        found, expected = ours.step(np.array(actions), ids), theirs.step(np.array(actions), ids)
        assert_alike(found, expected, f"step {step}")
        done = expected[2] | expected[3]
        ended = np.arange(4)[done] if ids is None else ids[done]
        ends += len(ended)
        if len(ended):
            kwargs = {"seed": step} if step % 2 else {}
            found = ours.reset(ended, **kwargs)
            assert_alike(found, theirs.reset(ended, **kwargs), f"reset {step}")
    assert ends > 3
    ours.close(), theirs.close()


@pytest.mark.parametrize("how", [{"n_step": 200}, {"n_episode": 7}])
def test_collector_fills_the_buffer_as_from_dummy_vector_env(how):
    def collected(envs):
        net = Net(state_shape=(4,), action_shape=2, hidden_sizes=(8,))
        space = gymnasium.spaces.Discrete(2)
        policy = DiscreteQLearningPolicy(model=net, action_space=space, eps_training=0.5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for each in net.parameters():
                torch.nn.init.normal_(each)
        envs.seed(3)
        for each in (space, *envs.action_space):
            each.seed(1)
        buffer = VectorReplayBuffer(900, 4)
        collector = Collector(policy, envs, buffer)
        collector.reset()
        told = [collector.collect(**how), collector.collect(**how, random=True)]
        rows = {key: buffer[:][key] for key in ("obs", "act", "rew", "terminated", "obs_next")}
        envs.close()
        return rows, [(each.n_collected_steps, each.returns.tolist()) for each in told]

    ours, theirs = collected(adapter(num_envs=4)), collected(DummyVectorEnv([CARTPOLE] * 4))
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    assert sum(len(returns) for _, returns in ours[1]) >= 10


def test_algorithm_trains():
    net = Net(state_shape=(4,), action_shape=2, hidden_sizes=(8,))
    space = gymnasium.spaces.Discrete(2)
    policy = DiscreteQLearningPolicy(model=net, action_space=space, eps_training=0.5)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3))
    envs = VectorEnvNormObs(adapter("CartPole-v1", 4, backend="processes", num_workers=1))
    buffer = VectorReplayBuffer(900, 4)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset()
    before = [each.detach().clone() for each in net.parameters()]
    collector.collect(n_step=100)
    with policy_within_training_step(policy):
        algorithm.update(buffer, sample_size=32)
    assert not all(map(torch.equal, before, net.parameters()))
    envs.close()


def test_attributes_of_some_environments():
    envs = adapter(TellingEnvTianshou, render_mode="rgb_array")
    envs.reset()
    envs.set_env_attr("bound", 3.0, [0, 2])
    assert envs.get_env_attr("bound") == [3.0, 9.0, 3.0]
    assert envs.get_env_attr("bound", [1, 0]) == [9.0, 3.0]
    assert envs.get_env_attr("bound", 1) == [9.0]
    assert envs.get_env_attr("bound", [-1, -2]) == [3.0, 9.0]
    assert [picture.shape for picture in envs.render()] == [(4, 5, 3)] * 3
    assert envs.metadata[0]["render_fps"] == 7
    with pytest.raises(ArgumentError, match="expected whole numbers below 3"):
        envs.get_env_attr("bound", [3])
    envs.close()
    assert envs.is_closed


def test_observations_may_be_nested_or_texts():
    class Nested(TellingEnv):
        observation_space = gymnasium.spaces.Dict({"whole": TellingEnv.observation_space})

        def _observe(self):
            return {"whole": super()._observe()}

    for build in (Nested, WordyEnv):
        envs, theirs = adapter(build, 3), DummyVectorEnv([build] * 3)
        found, expected = envs.reset(seed=4), theirs.reset(seed=4)
        assert found[0].shape == expected[0].shape == (3,)
        assert_same(dict(enumerate(found[0])), dict(enumerate(expected[0])))
        envs.close(), theirs.close()


def test_actions_may_be_dictionaries():
    build = partial(CountingEnv, action="dict", length=4)
    envs, theirs = adapter(build, 2), DummyVectorEnv([build] * 2)
    assert_alike(envs.reset(seed=1), theirs.reset(seed=1), "reset")
    actions = [space.sample() for space in theirs.action_space]
    assert_alike(envs.step(actions), theirs.step(actions), "step")
    envs.close(), theirs.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"autoreset": "next_step"}, "autoreset='disabled'"),
        ({"output": "torch"}, "output='numpy'"),
        ({"env": partial(CountingEnv, observation="tuple")}, "no Tuple observations"),
    ],
)
def test_what_does_not_suit_tianshou_is_refused(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        adapter(**kwargs)


def test_what_is_no_vector_environment_of_fastrl_is_refused():
    with pytest.raises(ArgumentError, match="Tianshou takes the result of"):
        to_tianshou(DummyVectorEnv([CARTPOLE]))


def test_arguments_that_fit_nothing_are_refused():
    envs = adapter()
    envs.reset()
    with pytest.raises(ArgumentError, match="reset takes seed and options, got speed"):
        envs.reset(speed=2)
    with pytest.raises(ArgumentError, match="None is not an action"):
        envs.step(None)
    with pytest.raises(ArgumentError, match="actions have the shape"):
        envs.step(np.zeros(2, np.int64), [1])
    envs.close()
