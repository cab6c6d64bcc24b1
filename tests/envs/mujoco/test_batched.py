"""A robot of our own behind `BatchedEnv`: episodes, limits, dtypes and mistakes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fastrl.envs import BatchedEnv, EnvFactory
from fastrl.envs.mujoco import build
from fastrl.errors import ArgumentError, EnvError
from tests.envs.mujoco.conftest import BOTH
from tests.envs.stepping import views


def test_robot_is_a_batched_env_with_the_models_actions(jumper_class):
    env = jumper_class(3)

    assert isinstance(env, BatchedEnv)
    assert env.spec.id == "Jumper"
    assert env.spec.observation_space.shape == (4,)
    assert env.spec.max_episode_steps == 40
    assert env.spec.action_space.low.tolist() == [-1.0]
    assert env.dt == pytest.approx(0.02)


def test_falling_trunk_gains_the_speed_of_gravity(jumper_class, drive):
    driver = drive(jumper_class(1))
    driver.reset()

    seen = driver.step()

    # Two time steps of 0.01 s.
    assert seen[0, 2] == pytest.approx(-9.81 * 0.02, abs=2e-3)


def test_reward_is_the_sum_of_its_terms(jumper_class, drive):
    driver = drive(jumper_class(2))
    driver.reset()

    driver.step(0.5)

    terms = driver.env.info()
    assert terms["effort"] == pytest.approx([-0.0025, -0.0025])
    assert driver.reward == pytest.approx(terms["height"] - 0.0025)
    assert terms["height"].tolist() == driver.observation[:, 0].tolist()


def test_episode_is_truncated_at_the_limit_and_the_next_begins_in_the_same_step(
    jumper_class, drive
):
    driver = drive(jumper_class(2, max_episode_steps=5))
    driver.reset()
    for _ in range(4):
        last = driver.step()
        assert not driver.truncated.any()

    seen = driver.step()

    assert driver.truncated.all()
    assert not driver.terminated.any()
    assert np.abs(seen[:, :2]).max() <= 0.02
    assert (driver.final[:, 0] < last[:, 0]).all()
    driver.step()
    assert not driver.truncated.any()


def test_only_the_episode_that_ended_begins_anew(jumper_class, drive):
    class OneStartsLow(jumper_class):
        drawn = 0

        def initial(self, generator):
            self.drawn += 1
            qpos, qvel = super().initial(generator)
            return (qpos - [0.5, 0.0] if self.drawn == 2 else qpos), qvel

    driver = drive(OneStartsLow(3))
    driver.reset()
    while not driver.step().size or not driver.terminated.any():
        pass

    assert driver.terminated.tolist() == [False, True, False]
    assert np.isnan(driver.final[[0, 2]]).all()
    assert driver.final[1, 0] < -0.6
    assert np.abs(driver.observation[1, :2]).max() <= 0.02
    assert (driver.observation[[0, 2], 2] < -0.1).all()
    # What is told of the step is what was before the new episode.
    assert driver.env.info()["height"][1] == driver.final[1, 0]


def test_termination_wins_over_the_time_limit(jumper_class, drive):
    class Fallen(jumper_class):
        def terminated(self, now):
            return now.qpos[:, 0] < 1.0

    driver = drive(Fallen(2, max_episode_steps=1))
    driver.reset()

    driver.step()

    assert driver.terminated.all()
    assert not driver.truncated.any()


@pytest.mark.parametrize("limit", [2**31, 2**63, np.int32(2**31 - 1), np.int64(2**63 - 1)])
def test_limit_of_any_size_cuts_no_episode_before_its_time(jumper_class, drive, limit):
    driver = drive(jumper_class(1, max_episode_steps=limit))
    driver.reset()
    lengths, steps = [], 0
    while len(lengths) < 2:
        driver.step(-1.0)
        steps += 1
        assert not driver.truncated.any()
        if driver.terminated.any():
            lengths.append(steps)

    assert driver.env.spec.max_episode_steps == limit


@pytest.mark.parametrize(
    ("terms", "reward"),
    [
        ({"first": np.array([True]), "second": np.array([True])}, 2.0),
        ({"first": True, "second": True, "third": False}, 2.0),
        ({"first": np.array([100], np.int8), "second": np.array([100], np.int8)}, 200.0),
        ({"first": np.array([1], np.uint8), "second": np.array([-2], np.int8)}, -1.0),
        ({"first": np.array([2049], np.float16), "second": np.array([1], np.float16)}, 2049.0),
    ],
)
def test_terms_of_any_dtype_are_added_as_numbers(jumper_class, drive, terms, reward):
    driver = drive(type("Odd", (jumper_class,), {"reward": lambda *_: terms})(1))
    driver.reset()

    driver.step()

    assert driver.reward.tolist() == [reward]


def test_model_without_a_time_step_is_refused(jumper_class, tmp_path):
    path = tmp_path / "still.xml"
    text = (tmp_path / "jumper.xml").read_text()
    path.write_text(text.replace('timestep="0.01"', 'timestep="0"'))

    with pytest.raises(EnvError, match=r"the option timestep must be above 0 s, got 0\.0"):
        type("Still", (jumper_class,), {"xml_file": str(path)})(1)


def test_limit_of_minus_one_is_none(jumper_class):
    assert jumper_class(1, -1).spec.max_episode_steps is None


@BOTH
def test_float32_rows_hold_the_rounded_float64_ones(drive):
    exact = drive(build("Ant-v5", 2)).run(20)
    rounded = drive(build("Ant-v5", 2), np.float32).run(20)

    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, exact.astype(np.float32))


@BOTH
def test_seeds_decide_every_episode(jumper_class, drive):
    first, again = (drive(jumper_class(3, max_episode_steps=4)).run(30, seed=3) for _ in range(2))
    other = drive(jumper_class(3, max_episode_steps=4)).run(30, seed=4)

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@BOTH
@pytest.mark.parametrize("name", ["Hopper-v5", "Humanoid-v5"])
def test_an_environment_does_not_depend_on_its_neighbours(name, drive):
    alone = drive(build(name, 1)).run(60)
    driver = drive(build(name, 3))
    driver.reset()
    generator = np.random.default_rng(0)
    space = driver.env.spec.action_space
    actions = generator.uniform(space.low, space.high, (60, 1, *space.shape))
    others = np.zeros((2, *space.shape))

    among = [driver.step(np.concatenate((action, others)))[0] for action in actions]

    assert np.array_equal(alone[:, 0], among)


@BOTH
def test_threads_change_nothing(drive):
    alone = drive(build("Ant-v5", 8)).run(40)
    shared = drive(build("Ant-v5", 8, num_threads=2)).run(40)

    assert np.array_equal(alone, shared)


def test_actions_are_clipped_to_the_actuators_ranges(jumper_class, drive):
    within, beyond = drive(jumper_class(1)), drive(jumper_class(1))
    within.reset()
    beyond.reset()

    assert np.array_equal(within.step(1.0), beyond.step(7.0))


def test_actuators_without_limits_have_unbounded_actions(jumper_class, tmp_path):
    text = (tmp_path / "jumper.xml").read_text().replace(' ctrllimited="true"', "")
    path = tmp_path / "free.xml"
    path.write_text(text.replace(' ctrlrange="-1 1"', ""))

    class Free(jumper_class):
        xml_file = str(path)

    assert Free(1).spec.action_space.high.tolist() == [np.inf]


def test_factory_builds_a_users_class_with_its_arguments(jumper_class):
    @dataclass(frozen=True)
    class Settings:
        gain: float = 1.0
        xml_file: str = jumper_class.xml_file

    class Tuned(jumper_class):
        Params = Settings

    env = EnvFactory(Tuned, {"gain": 2.0}, max_episode_steps=7).batched(4)

    assert env.num_envs == 4
    assert env.params.gain == 2.0
    assert env.spec.max_episode_steps == 7


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"healthy_rewrd": 1.0}, "'Hopper-v5' takes no 'healthy_rewrd'; did you mean 'healthy_re"),
        ({"healthy_z_range": 0.7}, "healthy_z_range should be like (0.7, inf), got 0.7"),
        ({"terminate_when_unhealthy": 1}, "should be like True, got 1"),
        ({"reset_noise_scale": "small"}, "should be like 0.005, got 'small'"),
        ({"xml_file": "./nowhere.xml"}, "nowhere.xml"),
        ({"max_episode_steps": 0}, "of at least 1, or -1 for no limit, got 0"),
        ({"num_threads": 0}, "num_threads must be a whole number of at least 1, got 0"),
        ({"frame_skip": 2.5}, "frame_skip should be like 4, got 2.5"),
        ({"frame_skip": 0}, "frame_skip must be a whole number of at least 1, got 0"),
        ({"ctrl_cost_weight": float("nan")}, "ctrl_cost_weight should be like 0.001, got nan"),
        ({"healthy_reward": float("inf")}, "healthy_reward should be like 1.0, got inf"),
        ({"healthy_z_range": (0.7, float("nan"))}, "should be like (0.7, inf), got (0.7, nan)"),
        ({"reset_noise_scale": -0.1}, "reset_noise_scale must not be negative, got -0.1"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"camera_id": 7}, "the model has no camera 7; it has ['track']"),
        ({"camera_name": "front"}, "the model has no camera 'front'; it has ['track']"),
        ({"camera_id": 0, "camera_name": "track"}, "name two cameras; leave one out"),
        ({"camera_id": "track"}, "camera_id must be a whole number of at least -1, got 'track'"),
        ({"camera_name": 0}, "camera_name must be a str, got 0"),
        ({"default_camera_config": {"distanc": 3}}, "no 'distanc'; did you mean 'distance'"),
        ({"default_camera_config": {"distance": "far"}}, "distance must be a number, got 'far'"),
        ({"default_camera_config": {"lookat": [1, 2]}}, "lookat must be three numbers, got [1, 2]"),
        (
            {"default_camera_config": {"distance": 3}, "camera_id": 0},
            "default_camera_config is for a free camera",
        ),
        ({"visual_options": {99: True}}, "visual_options are true or false by index, 0 to"),
        ({"max_geom": 0}, "max_geom must be a whole number of at least 1"),
    ],
)
def test_mistakes_say_what_would_be_right(kwargs, message):
    with pytest.raises((ArgumentError, EnvError)) as caught:
        build("Hopper-v5", 2, **kwargs)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_body_of_the_ant_names_the_nearest():
    with pytest.raises(EnvError, match="no body 'torsoo'; did you mean 'torso'"):
        build("Ant-v5", 1, main_body="torsoo")


def test_field_that_mujoco_lacks_names_the_nearest(jumper_class):
    class Curious(jumper_class):
        def fields(self):
            return ("xposs",)

    with pytest.raises(EnvError, match="did you mean 'xpos'"):
        Curious(1)


def test_field_that_was_not_asked_for_is_explained(jumper_class):
    class Curious(jumper_class):
        def observation(self, now):
            return (now.xpos[:, 0],)

    with pytest.raises(AttributeError, match="'xpos' is not read; return it from `fields`"):
        Curious(1)


@pytest.mark.parametrize(
    ("name", "returned", "message"),
    [
        ("observation", None, r"observation must return a sequence of arrays (2, k), got None"),
        ("observation", (np.zeros(2),), r"arrays (2, k), got one of (2,) float64"),
        ("observation", (np.zeros((3, 2)),), r"arrays (2, k), got one of (3, 2) float64"),
        ("reward", None, r"reward must return terms by name, each (2,) or a number, got None"),
        ("reward", {}, r"reward must return terms by name, each (2,) or a number, got {}"),
        ("reward", np.zeros(2), r"terms by name, each (2,) or a number, got (2,) float64"),
        ("reward", {"up": np.zeros((2, 1))}, r"a number, got for 'up' (2, 1) float64"),
        ("reward", {"up": "high"}, r"a number, got for 'up' 'high'"),
        ("terminated", np.zeros(2), r"terminated must return None or (2,) bool, got (2,) float64"),
        (
            "terminated",
            np.zeros(3, bool),
            r"terminated must return None or (2,) bool, got (3,) bool",
        ),
        ("initial", None, r"initial must return qpos (2,) and qvel (2,), got None"),
        ("initial", (np.zeros(3), np.zeros(2)), r"qvel (2,), got (3,) float64 and (2,) float64"),
    ],
)
def test_function_that_returns_something_else_is_named(
    jumper_class, drive, name, returned, message
):
    robot = type("Odd", (jumper_class,), {name: lambda *_: returned})
    with pytest.raises(EnvError) as caught:
        drive(robot(2)).run(1)
    assert str(caught.value).startswith(f"'Odd'.{name} must return ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"frame_skip": 0}, "frame_skip must be a whole number of at least 1, got 0"),
        ({"frame_skip": 2.5}, "frame_skip must be a whole number of at least 1, got 2.5"),
        ({"xml_file": ""}, "xml_file: '' is not a file"),
        ({"xml_file": "/"}, "xml_file: '/' is not a file"),
    ],
)
def test_attribute_that_cannot_be_is_named(jumper_class, attributes, message):
    with pytest.raises((ArgumentError, EnvError), match=f"^{message}$"):
        type("Odd", (jumper_class,), attributes)(1)


def test_step_before_the_first_reset_is_refused(jumper_class, drive):
    with pytest.raises(EnvError, match="before its first reset"):
        drive(jumper_class(1)).step()


@pytest.mark.parametrize(
    "field", ["action", "observation", "reward", "terminated", "truncated", "final_observation"]
)
def test_arrays_that_would_be_broadcast_are_refused(jumper_class, field):
    env = jumper_class(3)
    seen = views(env.spec, 3, (np.zeros((3, 1), np.float32),))
    env.reset([1, 2, 3], seen.observation)
    before = env.physics.now.qpos.copy()
    value = getattr(seen, field)
    short = tuple(leaf[:1] for leaf in value) if isinstance(value, tuple) else value[:1]
    with pytest.raises(EnvError, match="steps action, observation"):
        env.step(replace(seen, **{field: short}))
    with pytest.raises(EnvError, match="expected observations"):
        env.reset([1, 2, 3], (seen.observation[0][:1],))
    np.testing.assert_array_equal(before, env.physics.now.qpos)


def test_wrong_number_of_seeds_is_refused(jumper_class):
    with pytest.raises(EnvError, match="expected 2 seeds, got 3"):
        jumper_class(2).reset([1, 2, 3], (np.zeros((2, 4)),))
