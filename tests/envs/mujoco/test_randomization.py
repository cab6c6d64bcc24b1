"""Parameters of the model, drawn for each environment and each episode."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import gymnasium
import mujoco
import numpy as np
import pytest

import fastrl
from fastrl.envs import EnvFactory
from fastrl.envs.mujoco import build
from fastrl.errors import EnvError, FastrlError
from tests.envs.mujoco.conftest import BOTH

pytestmark = BOTH


def test_step_with_drawn_parameters_is_that_of_gymnasium_with_the_same_model(drive):
    randomize = {
        "body_mass": {"scale": {"uniform": [0.7, 1.4]}},
        "geom_friction": {"scale": {"log_uniform": [0.5, 2.0]}, "of": "floor", "shared": True},
        "gravity": {"add": {"normal": [[0, 0, 0], [0, 0, 0.5]]}},
        "actuator_gear": {"scale": {"choice": [0.9, 1.1]}},
        "dof_damping": {"scale": {"uniform": [0.5, 1.5]}, "of": ["bthigh", "fthigh"]},
    }
    driver = drive(build("HalfCheetah-v5", 3, randomize=randomize))
    driver.reset(seed=4)
    physics = driver.env.physics
    singles = [gymnasium.make("HalfCheetah-v5").unwrapped for _ in range(3)]
    for index, single in enumerate(singles):
        for name in randomize:
            owner = single.model.opt if name == "gravity" else single.model
            getattr(owner, name)[:] = physics.parameter(name)[index]
        mujoco.mj_setConst(single.model, single.data)
        single.reset(seed=4 + index)
    generator = np.random.default_rng(0)

    for _ in range(50):
        action = generator.uniform(-1, 1, (3, 6)).astype(np.float32)
        seen = driver.step(action)
        for index, single in enumerate(singles):
            observation, reward, *_ = single.step(action[index])
            assert np.abs(observation - seen[index]).max() < 1e-9
            assert abs(reward - driver.reward[index]) < 1e-9
    assert len({tuple(masses) for masses in physics.parameter("body_mass")}) == 3


def test_first_observation_is_that_of_the_seed_whatever_is_randomised(drive):
    plain = drive(build("Hopper-v5", 2)).reset(seed=9)
    drawn = drive(build("Hopper-v5", 2, randomize={"body_mass": {"scale": 1.5}})).reset(seed=9)

    assert np.array_equal(plain, drawn)


def test_parameters_are_drawn_anew_in_every_episode_unless_they_are_kept(jumper_class, drive):
    randomize = {
        "body_mass": {"scale": {"uniform": [0.5, 2.0]}},
        "geom_friction": {"scale": {"uniform": [0.5, 2.0]}, "every": "env"},
    }
    driver = drive(jumper_class(2, 3, randomize))
    driver.reset()
    physics = driver.env.physics
    mass, friction = (physics.parameter(name).copy() for name in randomize)

    for _ in range(3):
        driver.step()

    assert driver.truncated.all()
    assert (physics.parameter("body_mass")[:, 1:] != mass[:, 1:]).all()
    assert np.array_equal(physics.parameter("geom_friction"), friction)


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("timestep", {"set": 0.0}),
        ("timestep", {"add": {"uniform": [-1.0, 0.0]}}),
        ("body_mass", {"set": -1.0, "of": "trunk"}),
        ("body_mass", {"scale": {"choice": [1.0, 0.0]}}),
        ("body_mass", {"set": {"normal": [-5.0, 0.1]}}),
        ("body_inertia", {"scale": {"uniform": [-0.1, 1.0]}}),
        ("geom_friction", {"add": {"uniform": [-2.0, 0.0]}}),
        ("geom_size", {"scale": -1.0}),
        ("dof_armature", {"set": -0.1}),
    ],
)
def test_values_that_no_model_can_have_are_refused_at_the_start(jumper_class, field, rule):
    with pytest.raises(
        EnvError, match=rf"^randomize\.{field}: must be .*; it may become -?[0-9.]+$"
    ):
        jumper_class(2, randomize={field: rule})


def test_normal_draw_beyond_the_bounds_is_drawn_again(jumper_class, drive):
    randomize = {
        "body_mass": {"set": {"normal": [0.1, 1.0]}, "of": ["trunk", "foot"]},
        "geom_friction": {"scale": {"normal": [0.0, 1.0]}},
        "dof_armature": {"set": {"normal": [0.0, 1.0]}, "shared": True},
    }
    driver = drive(jumper_class(2, 3, randomize))
    for seed in range(30):
        driver.reset(seed)
        assert (driver.env.physics.parameter("body_mass")[:, 1:] > 0).all()
        assert (driver.env.physics.parameter("geom_friction") >= 0).all()
        armature = driver.env.physics.parameter("dof_armature")
        assert (armature >= 0).all()
        assert (armature[:, 0] == armature[:, 1]).all()


def test_parameters_of_each_environment_are_checked_and_their_time_steps_count():
    make = partial(fastrl.make_vec, "fastrl/HalfCheetah-v5", num_envs=2, backend="native")
    with pytest.raises(FastrlError, match=r"'body_mass' of env 1 must be above 0 .*got -1"):
        make(env_kwargs=[{"body_mass": 1.0}, {"body_mass": -1}])
    with pytest.raises(FastrlError, match=r"'body_mass' of env 0 must have the shape \(8,\)"):
        make(env_kwargs=[{"body_mass": [1.0, 2.0]}] * 2)
    usual, quick = gymnasium.make("HalfCheetah-v5"), gymnasium.make("HalfCheetah-v5")
    quick.unwrapped.model.opt.timestep = 0.005
    with closing(make(env_kwargs=[{"timestep": 0.01}, {"timestep": 0.005}])) as envs:
        envs.reset(seed=0)
        action = np.ones((2, 6), np.float32)
        _, rewards, *_ = envs.step(action)
        for seed, single in enumerate((usual, quick)):
            single.reset(seed=seed)
            assert rewards[seed] == pytest.approx(single.step(action[0])[1], abs=1e-9)


def test_draws_are_decided_by_the_seed(jumper_class, drive):
    randomize = {"body_mass": {"scale": {"uniform": [0.5, 2.0]}}}

    def masses(seed):
        driver = drive(jumper_class(2, 3, randomize))
        driver.run(7, seed=seed)
        return driver.env.physics.parameter("body_mass").tolist()

    assert masses(1) == masses(1)
    assert masses(1) != masses(2)


def test_draws_lie_where_the_distribution_says(jumper_class, drive):
    randomize = {
        "body_mass": {"set": {"uniform": [3.0, 4.0]}, "of": ["trunk"]},
        "gravity": {"set": {"uniform": [[0, 0, -12], [0, 0, -8]]}},
        "actuator_gear": {"scale": {"choice": [0.5, 2.0]}, "of": "push"},
        "timestep": {"set": {"choice": [0.005, 0.02]}},
    }
    driver = drive(jumper_class(64, None, randomize))
    driver.reset()
    get = driver.env.physics.parameter

    assert ((get("body_mass")[:, 1] >= 3) & (get("body_mass")[:, 1] < 4)).all()
    assert (get("body_mass")[:, 2] == 0.5).all()
    assert np.ptp(get("gravity")[:, 2]) > 2
    assert (get("gravity")[:, :2] == 0).all()
    assert set(get("actuator_gear")[:, 0, 0]) == {20.0, 80.0}
    assert set(driver.env.dt) == {0.01, 0.04}


def test_time_step_of_an_environment_shows_in_its_reward(drive):
    randomize = {"timestep": {"set": {"choice": [0.005, 0.01]}}}
    driver = drive(build("HalfCheetah-v5", 16, randomize=randomize))
    before = driver.env.physics.now.qpos[:, 0] * 0
    driver.reset()
    before += driver.env.physics.now.qpos[:, 0]

    driver.step(0.1)

    moved = driver.env.physics.now.qpos[:, 0] - before
    assert driver.env.info()["reward_forward"] == pytest.approx(moved / driver.env.dt)
    assert set(driver.env.dt) == {0.025, 0.05}


def test_heavier_body_moves_the_humanoids_centre_of_mass(drive):
    """Its forward reward is the speed of the centre of mass, by each one's own masses."""
    randomize = {"body_mass": {"scale": {"uniform": [0.5, 2.0]}}}
    driver = drive(build("Humanoid-v5", 4, randomize=randomize))
    driver.reset()
    env = driver.env
    masses = env.physics.parameter("body_mass")

    centres = env.tracked(env.physics.now)

    places = env.physics.now.xipos[:, :, 0]
    expected = [np.average(place, weights=mass) for place, mass in zip(places, masses, strict=True)]
    assert centres == pytest.approx(expected)


def test_factory_passes_the_configurations_distributions(jumper_class):
    factory = EnvFactory(jumper_class, randomize={"body_mass": {"scale": 2.0}})

    env = factory.batched(2)
    env.reset([0, 1], (np.zeros((2, 4)),))

    assert env.physics.parameter("body_mass")[:, 1].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("randomize", "message"),
    [
        ({"body_mas": {"scale": 2.0}}, "'body_mas'"),
        ({"body_mas": {"scale": 2.0}}, "did you mean 'body_mass'?"),
        ({"body_mass": 2.0}, "randomize.body_mass: expected a mapping"),
        ({"body_mass": {"scael": 2.0}}, "unknown key 'scael'; did you mean 'scale'?"),
        ({"body_mass": {"of": "trunk"}}, "expected one of scale, add, set, got []"),
        ({"body_mass": {"scale": 1, "add": 2}}, "expected one of scale, add, set"),
        ({"body_mass": {"scale": 1, "every": "step"}}, "expected one of episode, env"),
        ({"body_mass": {"scale": {"unifrm": [1, 2]}}}, "did you mean 'uniform'?"),
        ({"body_mass": {"scale": {"uniform": [1]}}}, "expected [lowest, highest], got [1]"),
        ({"body_mass": {"scale": {"uniform": ["a", 2]}}}, "expected numbers, got 'a'"),
        ({"body_mass": {"scale": {"choice": []}}}, "expected a list of the values"),
        ({"body_mass": {"scale": 2, "of": "trnk"}}, "no 'trnk'; did you mean 'trunk'?"),
        ({"body_mass": {"scale": 2, "of": 9}}, "does not fit"),
        ({"gravity": {"set": [1, 2]}}, "randomize.gravity: does not fit values of shape (3,)"),
        ({"gravity": {"scale": 2, "of": "x"}}, "its elements have no names; write indices"),
        ({"body_mass": {"scale": float("nan")}}, "expected finite numbers, got nan"),
        ({"body_mass": {"set": {"uniform": [0, float("inf")]}}}, "expected finite numbers"),
        (
            {"body_mass": {"scale": {"log_uniform": [-1, 2]}}},
            "expected [lowest, highest] above 0, got [-1, 2]",
        ),
        ({"body_mass": {"scale": 2, "of": [1.5]}}, "names or whole numbers, got 1.5"),
        ({"body_mass": {"scale": 2, "shared": "no"}}, "shared: expected true or false, got 'no'"),
        ([1], "randomize: expected a mapping of fields, got [1]"),
    ],
)
def test_mistakes_say_what_would_be_right(jumper_class, randomize, message):
    with pytest.raises(EnvError) as caught:
        jumper_class(2, None, randomize)

    assert message in str(caught.value)
