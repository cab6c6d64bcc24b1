"""Programs of others run on `fastrl.make_vec` as on gymnasium's `SyncVectorEnv`.

Those of Stable-Baselines3 and Tianshou, which have adapters, are in files of their own.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

import fastrl
from tests.counting_env import CountingEnv
from tests.vector.ppo_loop import train
from tests.vector.test_drop_in import stepped_alike

pytestmark = pytest.mark.others

CARTPOLE = partial(gymnasium.make, "CartPole-v1", max_episode_steps=9)
PENDULUM = partial(gymnasium.make, "Pendulum-v1", max_episode_steps=9)
COUNTING = partial(CountingEnv, length=4, uneven=True, ending="alternate")


@contextmanager
def one_thread():
    """Keep torch to one thread: more only cost time for small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def discrete():
    return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))


def continuous():
    env = gymnasium.make("HalfCheetah-v5", max_episode_steps=21)
    env = gymnasium.wrappers.FlattenObservation(env)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.ClipAction(env))
    clip = partial(np.clip, a_min=-10, a_max=10)
    env = gymnasium.wrappers.TransformObservation(env, clip, env.observation_space)
    env = gymnasium.wrappers.NormalizeReward(env, gamma=0.99)
    return gymnasium.wrappers.TransformReward(env, clip)


@pytest.mark.parametrize(("build", "backend"), [(discrete, "auto"), (continuous, "serial")])
def test_cleanrls_loops_learn_to_the_last_bit_what_they_learn_from_sync_vector_env(build, backend):
    with one_thread():
        theirs = train(SyncVectorEnv([build] * 4))
        ours = train(fastrl.make_vec([build] * 4, backend=backend))
    assert np.array_equal(ours[0], theirs[0])
    assert ours[1:] == theirs[1:]
    weights, returns, lengths, resets = theirs
    assert np.isfinite(weights).all()
    assert len(returns) == len(lengths) >= resets > 15
    assert build is continuous or returns == lengths


def clipped(seen):
    return np.clip(seen, -0.1, 0.1)


IMAGE = partial(COUNTING, observation="image")
WRAPPERS = {
    "ClipAction": (PENDULUM, {}),
    "ClipReward": (PENDULUM, {"max_reward": -1.0}),
    "DictInfoToList": (CARTPOLE, {}),
    "DtypeObservation": (CARTPOLE, {"dtype": np.float64}),
    "FilterObservation": (
        partial(COUNTING, observation="tuple", action="dict"),
        {"filter_keys": [0]},
    ),
    "FlattenObservation": (CARTPOLE, {}),
    "GrayscaleObservation": (IMAGE, {}),
    "HumanRendering": (partial(CARTPOLE, render_mode="rgb_array"), {}),
    "NormalizeObservation": (CARTPOLE, {}),
    "NormalizeReward": (PENDULUM, {}),
    "NumpyToTorch": (CARTPOLE, {}),
    "RecordEpisodeStatistics": (PENDULUM, {}),
    "RescaleAction": (PENDULUM, {"min_action": np.float32(-1), "max_action": np.float32(1)}),
    "RescaleObservation": (PENDULUM, {"min_obs": np.float32(0), "max_obs": np.float32(1)}),
    "ReshapeObservation": (CARTPOLE, {"shape": (2, 2)}),
    "ResizeObservation": (IMAGE, {"shape": (4, 6)}),
    "TransformAction": (PENDULUM, {"func": clipped}),
    "TransformObservation": (CARTPOLE, {"func": clipped}),
    "TransformReward": (CARTPOLE, {"func": clipped}),
    "VectorizeTransformAction": (
        PENDULUM,
        {"wrapper": gymnasium.wrappers.TransformAction, "func": clipped, "action_space": None},
    ),
    "VectorizeTransformObservation": (
        CARTPOLE,
        {
            "wrapper": gymnasium.wrappers.TransformObservation,
            "func": clipped,
            "observation_space": None,
        },
    ),
    "VectorizeTransformReward": (
        CARTPOLE,
        {"wrapper": gymnasium.wrappers.TransformReward, "func": clipped},
    ),
}
NOT_INSTALLED = {"ArrayConversion", "JaxToNumpy", "JaxToTorch", "RecordVideo"}
"""Need jax or moviepy; the first is what `NumpyToTorch` is made of."""


def test_every_vector_wrapper_of_gymnasium_is_tried():
    assert set(WRAPPERS) | NOT_INSTALLED == set(wrappers.__all__)


@pytest.mark.parametrize("name", WRAPPERS)
def test_vector_wrappers_give_what_they_give_around_sync_vector_env(name, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(wrappers.common, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    build, kwargs = WRAPPERS[name]
    wrap = partial(getattr(wrappers, name), **kwargs)
    ours = fastrl.make_vec(build, 3, backend="serial")
    theirs = SyncVectorEnv([build] * 3)
    assert stepped_alike(wrap(ours), wrap(theirs)) >= 3


@pytest.mark.parametrize("mode", ["disabled", "same_step"])
@pytest.mark.parametrize("build", [CARTPOLE, PENDULUM])
def test_torchrl_rolls_out_what_it_rolls_out_on_sync_vector_env(build, mode):
    torchrl = pytest.importorskip("torchrl.envs")

    def rolled_out(envs):
        env = torchrl.GymWrapper(envs)
        env.set_seed(3)
        torch.manual_seed(1)
        found = env.rollout(60, break_when_any_done=False)
        env.close()
        assert found.batch_size == (3, 60)
        return dict(found.items(include_nested=True, leaves_only=True))

    theirs = rolled_out(SyncVectorEnv([build] * 3, autoreset_mode=AutoresetMode[mode.upper()]))
    ours = rolled_out(fastrl.make_vec(build, 3, backend="serial", autoreset=mode))
    assert set(ours) == set(theirs)
    for key, expected in theirs.items():
        assert torch.equal(ours[key], expected), key
    assert theirs["next", "done"].sum() >= 18


def test_torchrl_collects_from_processes():
    torchrl = pytest.importorskip("torchrl.envs")
    envs = fastrl.make_vec(
        CARTPOLE, 4, backend="processes", num_workers=1, autoreset="disabled", output="numpy"
    )
    env = torchrl.GymWrapper(envs)
    found = env.rollout(100, break_when_any_done=False)
    steps, following = found["observation"][:, 1:], found["next", "observation"][:, :-1]
    done = found["next", "done"][:, :-1, 0]
    assert done.sum() > 30
    assert torch.equal(steps[~done], following[~done])
    assert not (steps[done] == following[done]).all(-1).any()
    assert (steps[done].abs() <= 0.05).all()
    env.close()


@pytest.mark.parametrize(
    ("build", "backend"),
    [(CARTPOLE, "serial"), (PENDULUM, "serial"), (PENDULUM, "processes")],
)
def test_skrl_steps_what_it_steps_on_sync_vector_env(build, backend):
    skrl = pytest.importorskip("skrl.envs.wrappers.torch")

    def stepped(envs):
        env = skrl.wrap_env(envs, verbose=False)
        assert type(env).__name__ == "GymnasiumWrapper"
        assert env.num_envs == 3
        env.action_space.seed(2)
        found = [env.reset()[0]]
        for _ in range(50):
            actions = torch.tensor(np.array([env.action_space.sample() for _ in range(3)]))
            found += env.step(actions.reshape(3, -1))[:4]
        env.close()
        return found

    theirs = stepped(SyncVectorEnv([build] * 3))
    ours = stepped(fastrl.make_vec(build, 3, backend=backend, num_workers=1))
    assert len(ours) == len(theirs)
    assert all(map(torch.equal, ours, theirs))
    assert sum(int(each.sum()) for each in theirs[4::4]) > 9
