from __future__ import annotations

from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch

import fastrl
from fastrl.envs import EnvFactory
from fastrl.envs.classic_control.control_batch import build
from fastrl.envs.tensor import RandomPolicy, Rollouts, make_tensor
from tests.envs.stepping import random_actions, run

POSITIONS = {
    "CartPoleNoVel-v1": [0, 2],
    "PendulumNoVel-v1": [0, 1],
    "MountainCarContinuousNoVel-v0": [0],
}
ALL = pytest.mark.parametrize(("name", "columns"), POSITIONS.items())
FIRST = pytest.mark.parametrize(
    ("name", "columns"),
    [
        pytest.param(*task, marks=pytest.mark.slow if number else ())
        for number, task in enumerate(POSITIONS.items())
    ],
)


def full(name):
    return name.replace("NoVel", "")


@FIRST
def test_batch_is_the_full_task_without_velocities(name, columns):
    task, whole = (build(each, 7, max_episode_steps=20) for each in (name, full(name)))
    space = whole.spec.observation_space
    assert task.spec.observation_space == gymnasium.spaces.Box(
        space.low[columns], space.high[columns]
    )
    assert task.spec.action_space == whole.spec.action_space
    actions = random_actions(whole.spec, 7, 50)
    found, expected = (run(each, range(7), actions) for each in (task, whole))
    assert expected.episodes >= 14
    for ours, theirs in zip(found.observations, expected.observations, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0][:, columns])
    for ours, theirs in zip(found.finals, expected.finals, strict=True):
        assert ours.keys() == theirs.keys()
        for env in ours:
            np.testing.assert_array_equal(ours[env][0], theirs[env][0][columns])
    for flow in ("rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, flow), getattr(expected, flow))


@ALL
@pytest.mark.parametrize("compiled", [False, True])
def test_tensor_program_is_the_full_task_without_velocities(name, columns, compiled):
    rollouts = []
    for each in (name, full(name)):
        env, params = make_tensor(each, compiled=compiled)
        params = params._replace(max_episode_steps=torch.tensor(10, dtype=torch.int32))
        maker = Rollouts(env, RandomPolicy(env.spec), params)
        generator = torch.Generator().manual_seed(2)
        start = maker.start(8, generator)
        rollouts.append(maker.run(None, start, maker.draw_noise(25, 8, generator))[0])
    ours, theirs = rollouts
    torch.testing.assert_close(ours.observation[""], theirs.observation[""][..., columns])
    torch.testing.assert_close(
        ours.final_observation[""], theirs.final_observation[""][..., columns]
    )
    torch.testing.assert_close(ours.reward, theirs.reward)


@ALL
def test_python_environment_is_gymnasiums_without_velocities(name, columns):
    task, whole = (gymnasium.make(each, disable_env_checker=True) for each in (name, full(name)))
    assert task.spec.max_episode_steps == whole.spec.max_episode_steps
    assert task.observation_space == make_tensor(name)[0].spec.observation_space
    task.action_space.seed(0)
    np.testing.assert_array_equal(task.reset(seed=3)[0], whole.reset(seed=3)[0][columns])
    for _ in range(12):
        action = task.action_space.sample()
        ours, *rest = task.step(action)
        theirs, *expected = whole.step(action)
        np.testing.assert_array_equal(ours, theirs[columns])
        assert rest == expected
    again = gymnasium.make(task.spec)
    np.testing.assert_array_equal(again.reset(seed=3)[0], task.reset(seed=3)[0])


@FIRST
def test_every_way_to_build_knows_them(name, columns):
    for each in (name, f"fastrl/{name}"):
        with fastrl.make_vec(each, 2) as envs:
            assert envs.reset(seed=0)[0].shape == (2, len(columns))
        assert EnvFactory(each).probe().observation_space.shape == (len(columns),)


def test_parameters_widen_the_space_as_in_the_full_task():
    batch = build("CartPoleNoVel-v1", 1, x_threshold=5.0)
    assert batch.spec.observation_space.high[0] == 10


@pytest.mark.skipif(find_spec("pygame") is None, reason="needs the extra 'video'")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", POSITIONS)
def test_picture_is_that_of_the_full_task(name):
    pictures = []
    for each in (name, full(name)):
        env = EnvFactory(f"fastrl/{each}").single(render_mode="rgb_array")
        env.reset(seed=0)
        env.step(env.action_space.sample() * 0)
        pictures.append(env.render())
        env.close()
    np.testing.assert_array_equal(*pictures)
