"""One environment, to evaluate and to look at."""

from __future__ import annotations

import gc
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fastrl.envs.mujoco import HalfCheetahV5, HopperV5, View
from fastrl.errors import ArgumentError, EnvError


def test_episodes_are_gymnasiums_whenever_they_are_begun():
    ours, theirs = HopperV5.single(), gymnasium.make("Hopper-v5")
    assert np.array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    ours.action_space.seed(0)
    # Episodes end by themselves, and one is given up after four steps.
    for steps in (1000, 4, 1000):
        for _ in range(steps):
            action = ours.action_space.sample()
            mine, his = ours.step(action), theirs.step(action)
            assert np.array_equal(mine[0], his[0])
            assert mine[1] == pytest.approx(his[1], abs=1e-9)
            assert mine[2:4] == his[2:4]
            assert mine[4]["reward_forward"] == pytest.approx(his[4]["reward_forward"], abs=1e-9)
            if mine[2]:
                break
        assert np.array_equal(ours.reset()[0], theirs.reset()[0])


# Gymnasium's robots have no bounds either.
@pytest.mark.filterwarnings("ignore:.*A Box observation space .* is -?infinity")
def test_environment_passes_gymnasiums_own_check():
    check_env(HopperV5.single(), skip_render_check=True)


def test_unknown_render_mode_is_refused():
    with pytest.raises(ArgumentError, match="'rgb_array' or None, got 'human'"):
        HalfCheetahV5.single(render_mode="human")


def test_without_a_render_mode_there_is_no_picture():
    env = HalfCheetahV5.single()
    env.reset(seed=0)

    assert env.render() is None


@pytest.fixture
def photographed(jumper_class):
    """Build a robot that is looked at; skip where no OpenGL works."""

    def build(camera=None, **kwargs):
        view = View(width=96, height=64, camera=camera)
        env = jumper_class.single(render_mode="rgb_array", view=view, **kwargs)
        env.reset(seed=0)
        try:
            env.render()
        except EnvError as error:
            if "cannot render" not in str(error) or "camera" in str(error):
                raise
            pytest.skip(str(error))
        return env

    return build


def test_pictures_show_what_happens(photographed):
    env = photographed()
    first = env.render()
    for _ in range(10):
        env.step(np.zeros(1, np.float32))

    later = env.render()

    assert first.shape == (64, 96, 3)
    assert first.dtype == np.uint8
    assert np.ptp(first) > 50
    assert not np.array_equal(first, later)
    env.close()
    env.close()


def test_pictures_show_the_drawn_parameters(photographed):
    plain = photographed(camera="front").render()
    big = {"geom_size": {"scale": 3.0, "of": "trunk"}}

    assert not np.array_equal(plain, photographed(camera="front", randomize=big).render())


LEFT_OPEN = """
from fastrl.envs.mujoco import HalfCheetahV5
env = HalfCheetahV5.single(render_mode="rgb_array")
env.reset(seed=0)
env.render()
"""


def test_renderer_that_is_left_open_ends_quietly_with_the_process(photographed):
    photographed().close()

    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=100, check=True
    )

    assert done.stderr == ""


def test_renderer_that_is_dropped_is_freed(photographed, recwarn):
    env = photographed()
    picture = env.render()
    del env
    gc.collect()

    assert not recwarn.list
    assert np.array_equal(photographed().render(), picture)


@pytest.mark.parametrize(
    ("backend", "message"),
    [("vulkan", "MUJOCO_GL is 'vulkan'; it may be glfw, egl, osmesa"), ("glfw", "no screen")],
)
def test_backend_that_cannot_work_is_named(jumper_class, monkeypatch, backend, message):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", backend)
    env = jumper_class.single(render_mode="rgb_array")
    env.reset(seed=0)

    with pytest.raises(EnvError, match=message):
        env.render()


def test_renderer_that_fails_leaves_nothing_behind(photographed, monkeypatch, recwarn):
    """Its remains would raise when they are collected, in the code that runs then."""
    photographed().close()

    def fail(*args):
        raise mujoco.FatalError("no buffer")

    with monkeypatch.context() as broken:
        broken.setattr(mujoco, "MjrContext", fail)
        with pytest.raises((EnvError, pytest.skip.Exception), match="no buffer"):
            photographed()
    gc.collect()

    assert not recwarn.list
    photographed().close()


def test_camera_that_the_model_lacks_is_named(jumper_class):
    env = jumper_class.single(render_mode="rgb_array", view=View(camera="top"))
    env.reset(seed=0)

    with pytest.raises(EnvError, match=r"no camera 'top'; it has \['side', 'front'\]"):
        env.render()
