from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import fastrl.envs.classic_control.control_batch  # noqa: F401
from fastrl.envs.classic_control.render import Renderer, save_animation
from fastrl.envs.classic_control.screen import quicken
from fastrl.envs.tensor import make_tensor
from fastrl.errors import ArgumentError, ConfigError, EnvError
from tests.envs.classic_control.gymnasium_twin import NAMES

needs_pygame = pytest.mark.skipif(find_spec("pygame") is None, reason="needs the extra 'video'")


@pytest.fixture(autouse=True)
def _quiet():
    # pygame itself imports deprecated modules.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@needs_pygame
@pytest.mark.parametrize("name", NAMES)
def test_picture_is_the_one_that_gymnasium_draws(name):
    theirs = gymnasium.make(name, render_mode="rgb_array")
    theirs.reset(seed=0)
    quantities = torch.from_numpy(np.asarray(theirs.unwrapped.state, np.float64))
    env, _ = make_tensor(name)
    state = env.state_type(*quantities, torch.tensor(0))
    batched = env.state_type(*(torch.stack([q - 0.3, q]) for q in state))
    renderer = Renderer(name)
    np.testing.assert_array_equal(renderer.render(state), theirs.render())
    np.testing.assert_array_equal(renderer.render(batched, 1), theirs.render())
    assert (renderer.render(batched, 0) != theirs.render()).any()
    renderer.close()


@needs_pygame
def test_parameters_show():
    env, params = make_tensor("CartPole-v1")
    _, state = env.reset(torch.full((4,), 0.5), params)
    renderer = Renderer("CartPole-v1")
    long = params._replace(length=torch.tensor([0.5, 1.0]))
    usual, longer = (renderer.render(state, None, params), renderer.render(state, 1, long))
    assert (usual != longer).any()


@needs_pygame
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Acrobot-v1", "length1", 0.5),
        ("CartPole-v1", "length", 1.0),
        ("CartPole-v1", "x_threshold", 4.0),
        ("MountainCar-v0", "goal_position", 0.2),
        ("MountainCarContinuous-v0", "goal_position", 0.2),
    ],
)
def test_picture_without_parameters_is_of_the_usual_ones_whatever_was_drawn_before(
    name, field, value
):
    env, params = make_tensor(name)
    _, state = env.reset(torch.full((env.noise_size,), 0.75), params)
    renderer = Renderer(name)
    usual = renderer.render(state).copy()
    other = renderer.render(state, None, params._replace(**{field: torch.tensor(value)})).copy()
    assert (other != usual).any()
    np.testing.assert_array_equal(renderer.render(state), usual)
    renderer.close()


@needs_pygame
def test_environments_render_themselves():
    many = gymnasium.make_vec("fastrl/Pendulum-v1", num_envs=2, render_mode="rgb_array")
    many.reset(seed=0)
    frames = many.render()
    assert [frame.shape for frame in frames] == [(500, 500, 3)] * 2
    assert (frames[0] != frames[1]).any()
    many.close()

    single = gymnasium.make("fastrl/Pendulum-v1", render_mode="rgb_array")
    single.reset(seed=0)
    np.testing.assert_array_equal(single.render(), frames[0])
    single.step(np.array([2.0], np.float32))
    assert (single.render() != frames[0]).any()
    single.close()
    assert gymnasium.make_vec("fastrl/Pendulum-v1", num_envs=1).render() is None


def pictures():
    return [np.full((48, 64, 3), shade, np.uint8) for shade in (0, 128, 255)]


def test_animation_holds_every_picture(tmp_path):
    save_animation(pictures(), tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size) == (3, (64, 48))


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="needs the extra 'video'")
def test_animation_is_a_video_where_asked_for(tmp_path):
    save_animation(pictures(), tmp_path / "a.mp4", fps=10)
    assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:16]


def test_what_cannot_be_drawn_says_so(tmp_path):
    with pytest.raises(ConfigError, match="must end in"):
        save_animation(pictures(), tmp_path / "a.avi", fps=10)
    with pytest.raises(ArgumentError, match="fps must be a finite number above 0, got 0"):
        save_animation(pictures(), tmp_path / "a.gif", fps=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(EnvError, match="cannot draw 'CartPol'; did you mean 'CartPole-v1'"):
        Renderer("CartPol")


@needs_pygame
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copied_pendulum_draws_its_own_torque(copied):
    env = gymnasium.make("fastrl/Pendulum-v1", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    env.step(np.array([2.0], np.float32))
    env.render()
    other = copied(env)
    other.step(np.array([-2.0], np.float32))
    expected = Renderer("Pendulum-v1").render(other.batched.state(), 0, torque=-2.0)
    np.testing.assert_array_equal(other.render(), expected)


@needs_pygame
def test_cartpole_that_is_drawn_in_part_is_gymnasiums_pixel_for_pixel():
    ours, theirs, others = (
        gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped for _ in range(3)
    )
    for env in (ours, theirs, others):
        env.reset(seed=0)
    quicken(ours)
    quicken(others)
    rng = np.random.default_rng(0)
    for number in range(60):
        state = rng.normal(scale=[1.5, 1, 2, 1])
        seen = []
        for env in (ours, theirs):
            env.state = state
            env.length = 0.5 if number % 3 else 0.9
            others.render()
            seen.append(env.render())
        assert seen[0].dtype == seen[1].dtype
        np.testing.assert_array_equal(*seen)
    picture = seen[0].copy()
    ours.state = np.zeros(4)
    ours.render()
    np.testing.assert_array_equal(picture, seen[0])
    assert ours.surf is None
    ours.close()


@needs_pygame
def test_cartpole_that_gymnasium_draws_in_another_way_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("fastrl.envs.classic_control.screen._POLE", (1, 2, 3))
    ours, theirs = (gymnasium.make("CartPole-v1", render_mode="rgb_array") for _ in "12")
    quicken(ours.unwrapped)
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(2):
        np.testing.assert_array_equal(ours.render(), theirs.render())


@needs_pygame
def test_windows_stay_as_they_are():
    env = gymnasium.make("CartPole-v1", render_mode="human").unwrapped
    quicken(env)
    assert "render" not in vars(env)
