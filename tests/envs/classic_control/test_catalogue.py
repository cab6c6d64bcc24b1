from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import fastrl.envs.classic_control.control_batch as catalogue
from fastrl.envs.batched_env import BatchedEnv
from fastrl.envs.family import own_families
from fastrl.envs.gym_vector import GymVector
from fastrl.errors import ArgumentError, EnvError
from fastrl.spec import EnvSpec
from tests.envs.classic_control.gymnasium_twin import NAMES
from tests.envs.stepping import assert_same, random_actions, run

N = 6
MODES = pytest.mark.parametrize("mode", ["SameStep", "NextStep"])


def vector(name="CartPole-v1", n=N, **kwargs):
    return gymnasium.make_vec(f"fastrl/{name}", num_envs=n, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_make_vec_builds_gymnasiums_spaces_and_limit(name):
    ours, theirs = vector(name), gymnasium.make(name)
    assert ours.num_envs == N
    assert ours.single_observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.action_space
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, infos = ours.reset(seed=0)
    assert observation in ours.observation_space
    assert infos == {}
    ours.close()


@MODES
@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0"])
def test_both_modes_give_the_streams_of_the_batch(name, mode):
    limit = 20
    batch = catalogue.build(f"fastrl/{name}", N, max_episode_steps=limit)
    assert isinstance(batch, BatchedEnv)
    spec = EnvSpec(name, batch.spec.observation_space, batch.spec.action_space, limit)
    env = vector(name, autoreset_mode=mode, max_episode_steps=limit)
    actions = random_actions(spec, N, 70)
    # The facade's seeds are consecutive from the first.
    found = run(GymVector(env, spec), range(9, 9 + N), actions)
    expected = run(batch, range(9, 9 + N), actions)
    assert expected.episodes >= 3 * N
    assert_same(found, expected)


def test_next_step_mode_spends_a_step_on_the_reset():
    env = vector("Pendulum-v1", n=2, autoreset_mode=AutoresetMode.NEXT_STEP, max_episode_steps=3)
    env.reset(seed=1)
    actions = np.full((2, 1), 2.0, np.float32)
    steps = [env.step(actions) for _ in range(7)]
    assert [truncated.all() for *_, truncated, _ in steps] == [
        step in (3, 7) for step in range(1, 8)
    ]
    assert [(reward == 0).all() for _, reward, *_ in steps] == [step == 4 for step in range(1, 8)]
    assert all(infos == {} for *_, infos in steps)
    again = vector("Pendulum-v1", n=2, max_episode_steps=3)
    again.reset(seed=1)
    for _ in range(3):
        first, *_, infos = again.step(actions)
    np.testing.assert_array_equal(infos["final_obs"], steps[2][0])
    np.testing.assert_array_equal(first, steps[3][0])


def test_some_environments_can_be_reset():
    env = vector(n=3)
    env.reset(seed=4)
    before, *_ = env.step(np.array([0, 1, 0]))
    after, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert (after[0] != before[0]).all()
    np.testing.assert_array_equal(after[1:], before[1:])


def test_returned_arrays_are_the_callers():
    env = vector(n=2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.array([0, 1]))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space")
@pytest.mark.parametrize("name", NAMES)
def test_make_builds_a_proper_single_environment(name):
    env = gymnasium.make(f"fastrl/{name}")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
    assert terminated or steps == gymnasium.spec(name).max_episode_steps


def test_single_environment_is_the_batch_of_its_seed():
    single, many = gymnasium.make("fastrl/CartPole-v1"), vector(n=3)
    observation, _ = single.reset(seed=5)
    batch, _ = many.reset(seed=[4, 5, 6])
    np.testing.assert_array_equal(observation, batch[1])
    for action in np.tile([0, 1, 1], 40):
        observation, _, terminated, _, _ = single.step(action)
        batch, _, ended, _, infos = many.step(np.array([action] * 3))
        assert terminated == ended[1]
        final = infos["final_obs"][1] if terminated else batch[1]
        np.testing.assert_array_equal(observation, final)
        if terminated:
            observation, _ = single.reset()
            np.testing.assert_array_equal(observation, batch[1])


def test_parameters_and_randomisation_are_arguments():
    env = vector(
        "Pendulum-v1", length=2.0, randomize={"mass": {"uniform": [1, 2]}}, expose_params=True
    )
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "params"}
    assert (env.batched.params().length == 2).all()
    np.testing.assert_array_equal(observation["params"][:, 0], env.batched.params().mass)
    single = gymnasium.make("fastrl/Pendulum-v1", length=2.0)
    assert single.unwrapped.batched.params().length == 2


def test_registering_again_changes_nothing():
    before = dict(gymnasium.registry)
    for family in own_families():
        family.register()
    assert gymnasium.registry == before


def test_id_may_name_the_module_that_registers_it():
    script = """
import gymnasium
env = gymnasium.make_vec("fastrl.envs:fastrl/Pendulum-v1", num_envs=2)
assert env.reset(seed=0)[0].shape == (2, 3)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=100)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vector(autoreset_mode="Disabled"), "must be SameStep or NextStep for"),
        (lambda: vector(render_mode="human"), "render_mode must be 'rgb_array' or None"),
        (lambda: vector(lenght=1), "no parameter 'lenght'; did you mean 'length'"),
        (lambda: catalogue.build("fastrl/CartPole-v7", 1), "did you mean 'CartPole-v1'"),
        (lambda: vector().reset(options={"reset_mask": [1]}), "must be an array of bool"),
        (
            lambda: vector().reset(options={"lower": 1}),
            "no reset option 'lower'; did you mean 'low",
        ),
        (lambda: vector().reset(options={"low": 1}), "'low' must not be above 'high', got 1.0 and"),
        (lambda: vector().reset(options={"low": "a"}), "'low' must be a number, got 'a'"),
        (
            lambda: vector().reset(options={"reset_mask": np.arange(N) < 2}),
            "reset all environments before some of them",
        ),
        (lambda: gymnasium.make("fastrl/CartPole-v1").reset(options={"x": 1}), "no reset option"),
        (
            lambda: vector("Pendulum-v1").reset(options={"x_init": -1}),
            "must not be negative, got -1",
        ),
        (
            lambda: vector(kinematics_integrator="rk4"),
            "expected 'euler' or 'semi-implicit', got 'rk4'",
        ),
        (lambda: vector(sutton_barto_reward=0.5), "expected true or false, got 0.5"),
        (
            lambda: vector("Acrobot-v1", torque_noise_max=1.0),
            "'Acrobot-v1' has no 'torque_noise_max'",
        ),
        (lambda: vector("Pendulum-v1", g=1.0, gravity=2.0), "'gravity' is another name of a param"),
        (lambda: vector(theta_threshold_radians=-1), "theta_threshold_radians must be at least 0"),
        (lambda: vector("Pendulum-v1", l="x"), r"env\.kwargs\.l: expected a finite number"),
        (lambda: catalogue.build(None, 1), "name must be a str, got None"),
    ],
)
def test_misuse_says_what_would_be_right(build, message):
    with pytest.raises((ArgumentError, EnvError), match=message):
        build()


def test_some_environments_start_over_from_seeds_of_their_own():
    env = gymnasium.make_vec("fastrl/CartPole-v1", 3)
    first, _ = env.reset(seed=[1, 2, 3])
    later, _ = env.reset()
    mask = np.array([True, False, True])
    again, _ = env.reset(seed=[1, 3], options={"reset_mask": mask})
    assert np.array_equal(again[mask], first[mask])
    assert np.array_equal(again[1], later[1])
