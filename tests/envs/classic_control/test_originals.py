"""What gymnasium's own arguments and options do, here as there."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import fastrl
from fastrl.config import EnvConfig
from fastrl.envs.classic_control.control_batch import build
from fastrl.envs.tensor.tensor_by_id import configured
from fastrl.errors import EnvError
from tests.envs.classic_control.gymnasium_twin import GymnasiumTwin, random_actions
from tests.envs.classic_control.players import put
from tests.envs.stepping import views

N = 64
SPREADS = {
    "Acrobot-v1": (3.0, 3.0, 5.0, 5.0),
    "CartPole-v1": (2.4, 2.0, 0.2, 2.0),
    "MountainCar-v0": (0.6, 0.07),
    "MountainCarContinuous-v0": (0.6, 0.07),
    "Pendulum-v1": (3.1, 8.0),
}
# Here, and what is set at gymnasium's environment.
ARGUMENTS = [
    ("CartPole-v1", {"sutton_barto_reward": True}, {"_sutton_barto_reward": True}),
    (
        "CartPole-v1",
        {"kinematics_integrator": "semi-implicit"},
        {"kinematics_integrator": "semi-implicit"},
    ),
    ("CartPole-v1", {"theta_threshold_radians": 0.1}, {"theta_threshold_radians": 0.1}),
    ("Pendulum-v1", {"g": 3.0, "m": 2.0, "l": 1.5}, {"g": 3.0, "m": 2.0, "l": 1.5}),
    ("MountainCar-v0", {"goal_velocity": 0.03}, {"goal_velocity": 0.03}),
    ("MountainCarContinuous-v0", {"goal_velocity": 0.03}, {"goal_velocity": 0.03}),
    ("Acrobot-v1", {"book_or_nips": "nips"}, {"book_or_nips": "nips"}),
    ("Acrobot-v1", {"book_or_nips": "book"}, {}),
]


def tensor_step(name, kwargs, states, actions):
    env, params = configured(EnvConfig(id=name, kwargs=kwargs), torch.device("cpu"))
    time = torch.zeros(N, dtype=torch.int32)
    state = env.state_type(*torch.from_numpy(states).unbind(-1), time)
    noise = env.draw_noise((N,))
    _, _, reward, terminated, _, info = env.step(state, torch.from_numpy(actions), noise, params)
    return info["final_observation"].numpy(), reward.numpy(), terminated.numpy()


def batch_step(name, kwargs, states, actions):
    env = build(name, N, action_bounds=None, **kwargs)
    put(env, states)
    seen = views(env.spec, N, (actions,))
    env.advance(seen, restart=False)
    return seen.observation[0], seen.reward, seen.terminated


@pytest.mark.parametrize("step", [tensor_step, batch_step])
@pytest.mark.parametrize(("name", "kwargs", "attributes"), ARGUMENTS)
def test_argument_means_what_it_means_in_gymnasium(name, kwargs, attributes, step):
    rng = np.random.default_rng(0)
    states = (rng.uniform(-1, 1, (N, len(SPREADS[name]))) * SPREADS[name]).astype(np.float32)
    actions = random_actions(name, states, rng)
    twin = GymnasiumTwin(name, N)
    for env in twin._envs:
        for key, value in attributes.items():
            setattr(env, key, value)

    expected, usual = twin.step(states, actions), GymnasiumTwin(name, N).step(states, actions)

    for found, wanted in zip(step(name, kwargs, states, actions), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    changed = any((mine != theirs).any() for mine, theirs in zip(expected, usual, strict=True))
    assert changed == bool(attributes)


def test_arguments_of_each_environment_may_differ():
    env = build("CartPole-v1", 3, kinematics_integrator=["euler", "semi-implicit", "euler"])
    assert env.params().kinematics_integrator.tolist() == [0, 1, 0]
    env = build("CartPole-v1", 2, sutton_barto_reward=[False, True])
    env.reset([0, 0], (np.zeros((2, 4), np.float32),))
    seen = views(env.spec, 2, (np.zeros(2, np.int64),))
    env.step(seen)
    assert seen.reward.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["MountainCarContinuous-v0", "Pendulum-v1"])
def test_actions_behind_gymnasiums_interface_are_taken_as_given(name):
    many = gymnasium.make_vec(f"fastrl/{name}", num_envs=4)
    states = many.reset(seed=0)[0]
    state = torch.stack(many.batched.state()[:-1], dim=-1).numpy()
    actions = np.array([[-3.0], [-0.5], [0.7], [2.5]], np.float32)
    _, rewards, _ = GymnasiumTwin(name, 4).step(state, actions)

    np.testing.assert_allclose(many.step(actions)[1], rewards, rtol=1e-5)

    single = gymnasium.make(f"fastrl/{name}")
    np.testing.assert_array_equal(single.reset(seed=0)[0], states[0])
    assert single.step(actions[0])[1] == pytest.approx(rewards[0], rel=1e-5)


BOUNDS = [
    ("CartPole-v1", {"low": 0.1, "high": 0.2}, [(0.1, 0.2)] * 4),
    ("CartPole-v1", {"high": 0.0}, [(-0.05, 0.0)] * 4),
    ("Acrobot-v1", {"low": -0.4, "high": -0.3}, [(-0.4, -0.3)] * 4),
    ("MountainCar-v0", {"low": 0.2, "high": 0.3}, [(0.2, 0.3), (0, 0)]),
    ("MountainCarContinuous-v0", {"low": -0.9}, [(-0.9, -0.4), (0, 0)]),
    ("Pendulum-v1", {"x_init": 0.1}, [(-0.1, 0.1), (-1.0, 1.0)]),
    ("Pendulum-v1", {"x_init": 0.0, "y_init": 3.0}, [(0, 0), (-3.0, 3.0)]),
]


def assert_spread(states, bounds):
    for quantity, (low, high) in zip(states, bounds, strict=True):
        assert low - 1e-6 <= quantity.min() <= low + 0.1 * (high - low) + 1e-6
        assert high + 1e-6 >= quantity.max() >= high - 0.1 * (high - low) - 1e-6


@pytest.mark.parametrize(("name", "options", "bounds"), BOUNDS)
def test_options_of_reset_say_where_these_episodes_begin(name, options, bounds):
    many = gymnasium.make_vec(f"fastrl/{name}", num_envs=200, max_episode_steps=1)
    usual = many.batched.params()
    many.reset(seed=1, options=options)
    assert_spread([each.numpy() for each in many.batched.state()[:-1]], bounds)
    assert many.batched.params() == usual
    before = torch.stack(many.batched.state()[:-1])
    mask = np.arange(200) < 100
    many.reset(options={"reset_mask": mask, **options})
    after = torch.stack(many.batched.state()[:-1])
    assert_spread(after[:, :100].numpy(), bounds)
    assert torch.equal(after[:, 100:], before[:, 100:])
    # The next episodes begin where they always do.
    plain = gymnasium.make_vec(f"fastrl/{name}", num_envs=200, max_episode_steps=1)
    plain.reset(seed=1)
    many.reset(seed=1, options=options)
    actions = many.action_space.sample()
    np.testing.assert_array_equal(many.step(actions)[0], plain.step(actions)[0])


def test_options_reach_single_environments_and_make_vec():
    single = gymnasium.make("fastrl/CartPole-v1")
    assert single.reset(seed=0, options={"low": 0.2, "high": 0.3})[0].min() >= 0.2
    assert single.reset(options={"low": 0.2, "high": 0.3})[0].max() <= 0.3
    assert abs(single.reset()[0]).max() <= 0.05
    many = fastrl.make_vec("fastrl/CartPole-v1", num_envs=3, backend="native")
    assert many.reset(seed=0, options={"low": 0.2, "high": 0.3})[0].min() >= 0.2
    many.close()


def test_options_and_randomised_bounds_exclude_each_other():
    randomize = {"reset_bound": {"uniform": [0.1, 0.2]}}
    many = gymnasium.make_vec("fastrl/CartPole-v1", num_envs=3, randomize=randomize)
    with pytest.raises(EnvError, match=r"env\.randomize draws 'reset_bound'"):
        many.reset(options={"low": 0.0})


def test_what_is_missing_says_so_on_a_device():
    with pytest.raises(EnvError, match="'Acrobot-v1' has no 'torque_noise_max' here: its steps"):
        configured(
            EnvConfig(id="Acrobot-v1", kwargs={"torque_noise_max": 1.0}), torch.device("cpu")
        )
