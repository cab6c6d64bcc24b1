"""Ids, and gymnasium's own interfaces to the batched environments."""

from __future__ import annotations

import warnings
from contextlib import closing
from functools import partial

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fastrl
from fastrl.envs import EnvFactory
from fastrl.envs.mujoco import ENVIRONMENTS, HalfCheetahV5, build
from fastrl.errors import ArgumentError, EnvError


def test_every_version_that_gymnasium_can_build_is_there():
    robots = {name for name in gymnasium.registry if name.endswith(("-v4", "-v5"))}
    robots = {name for name in robots if "mujoco" in str(gymnasium.spec(name).entry_point)}
    robots = {name for name in robots if not name.startswith("fastrl/")}

    assert robots - set(ENVIRONMENTS) == {"Pusher-v4"}
    assert len(ENVIRONMENTS) == 21


@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5", "Reacher-v4"])
def test_make_vec_streams_what_gymnasiums_vector_env_does(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = gymnasium.make_vec(f"fastrl/{name}", num_envs=3, max_episode_steps=30)
        theirs = SyncVectorEnv(
            [lambda: gymnasium.make(name, max_episode_steps=30)] * 3,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    ours.action_space.seed(0)
    assert np.array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    ends = 0
    for _ in range(70):
        action = ours.action_space.sample()
        mine, his = ours.step(action), theirs.step(action)
        assert np.array_equal(mine[0], his[0])
        assert mine[1] == pytest.approx(his[1], abs=1e-9)
        assert np.array_equal(mine[2], his[2])
        assert np.array_equal(mine[3] | mine[2], his[3] | his[2])
        assert ("final_obs" in mine[4]) == ("final_obs" in his[4])
        for index in np.flatnonzero(mine[2] | mine[3]):
            ends += 1
            assert np.array_equal(mine[4]["final_obs"][index], his[4]["final_obs"][index])
    assert ends
    ours.close()
    theirs.close()


def test_make_vec_takes_gymnasiums_arguments_and_gives_terms_on_request():
    envs = gymnasium.make_vec(
        "fastrl/HalfCheetah-v5", num_envs=2, ctrl_cost_weight=2.0, info=True, width=64
    )
    envs.reset(seed=0)

    *_, infos = envs.step(np.ones((2, 6), np.float32))

    assert infos["reward_ctrl"].tolist() == [-12.0, -12.0]


def test_single_environment_of_an_id_is_gymnasiums_own():
    single = gymnasium.make("fastrl/HalfCheetah-v5").unwrapped

    assert type(single) is type(gymnasium.make("HalfCheetah-v5").unwrapped)


def test_factory_builds_classes_by_their_import_path():
    factory = EnvFactory("fastrl.envs.mujoco:HalfCheetahV5", {"ctrl_cost_weight": 0.0})

    env = factory.batched(5)

    assert isinstance(env, HalfCheetahV5)
    assert env.num_envs == 5
    assert factory.probe().max_episode_steps == 1000


def test_what_concerns_rendering_only_is_left_to_gymnasium():
    assert build("fastrl/Reacher-v5", 1, render_mode="rgb_array", camera_id=-1).num_envs == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'?"),
        ("Pusher-v4", "it needs MuJoCo before 3.0, use 'Pusher-v5'"),
    ],
)
def test_unknown_id_says_what_would_be_right(name, message):
    with pytest.raises(EnvError) as caught:
        build(name, 1)

    assert message in str(caught.value)


@pytest.fixture
def drawn():
    """Build an environment that is looked at; skip where no OpenGL works."""

    def build(make, name, **kwargs):
        envs = make(name, render_mode="rgb_array", width=64, height=48, **kwargs)
        envs.reset(seed=0)
        try:
            envs.render()
        except EnvError as error:
            if "cannot render" not in str(error):
                raise
            pytest.skip(str(error))
        return envs

    return build


def test_every_environment_of_a_vector_is_drawn_with_its_own_parameters(drawn):
    sizes = {"geom_size": {"scale": {"choice": [1.0, 2.0]}, "shared": True, "every": "env"}}
    kwargs = {"num_envs": 8, "randomize": sizes, "reset_noise_scale": 0.0}
    with closing(drawn(gymnasium.make_vec, "fastrl/HalfCheetah-v5", **kwargs)) as envs:
        pictures = envs.render()
        assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 8
        drawn_sizes = envs.unwrapped.batched.physics.parameter("geom_size")[:, 1, 0].tolist()
        assert len(set(drawn_sizes)) == 2
        for size, picture in zip(drawn_sizes, pictures, strict=True):
            alike = np.array_equal(picture, pictures[0])
            assert alike == (size == drawn_sizes[0])
        for _ in range(10):
            envs.step(envs.action_space.sample())
        assert not np.array_equal(envs.render()[0], pictures[0])


@pytest.mark.parametrize(
    "view",
    [
        {"camera_name": "track", "visual_options": {int(mujoco.mjtVisFlag.mjVIS_JOINT): True}},
        {"default_camera_config": {"distance": 6.0, "azimuth": 30.0}, "max_geom": 500},
    ],
)
def test_cameras_are_gymnasiums(drawn, view):
    with (
        closing(drawn(gymnasium.make_vec, "fastrl/HalfCheetah-v5", num_envs=1, **view)) as ours,
        closing(drawn(gymnasium.make, "fastrl/HalfCheetah-v5", **view)) as theirs,
    ):
        difference = np.abs(ours.render()[0].astype(int) - theirs.render())
        assert difference.max() <= 1


def test_single_environment_of_an_id_refuses_what_the_batch_refuses():
    for wrong, message in (
        ({"frame_skip": 2.5}, "frame_skip should be like 5, got 2.5"),
        ({"camera_id": 3}, "no camera 3"),
        ({"ctrl_cost_weigh": 1.0}, "did you mean 'ctrl_cost_weight'"),
    ):
        with pytest.raises(EnvError, match=message):
            gymnasium.make("fastrl/HalfCheetah-v5", **wrong)


def test_vector_without_a_render_mode_is_not_drawn():
    with closing(gymnasium.make_vec("fastrl/HalfCheetah-v5", num_envs=2)) as envs:
        assert envs.render() is None
    with pytest.raises(
        (ArgumentError, EnvError), match="render_mode must be 'rgb_array' or None, got 'human'"
    ):
        gymnasium.make_vec("fastrl/HalfCheetah-v5", num_envs=2, render_mode="human")


@pytest.fixture
def no_screen(monkeypatch):
    """Take away the screen, and what was chosen instead of it."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_single_environment_is_drawn_without_a_screen(drawn, no_screen):
    drawn(gymnasium.make_vec, "fastrl/HalfCheetah-v5", num_envs=1).close()
    with closing(gymnasium.make("fastrl/HalfCheetah-v5", render_mode="rgb_array")) as env:
        env.reset(seed=0)
        assert env.render().std() > 0


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_gymnasiums_robots_are_drawn_without_a_screen(drawn, no_screen, backend):
    drawn(gymnasium.make_vec, "fastrl/HalfCheetah-v5", num_envs=1).close()
    make = partial(fastrl.make_vec, backend=backend, render_mode="rgb_array")
    with closing(make("HalfCheetah-v5", num_envs=2)) as envs:
        envs.reset(seed=0)
        assert all(picture.std() > 0 for picture in envs.render())
