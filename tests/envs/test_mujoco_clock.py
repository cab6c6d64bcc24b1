"""MuJoCo does not read the clock where its timers are not read."""

import time
from pathlib import Path

import gymnasium
import mujoco
import pytest

import fastrl
from fastrl.config import load_config
from fastrl.envs.mujoco_clock import stop_timers, untimed
from fastrl.sampling import make_sampler

HOPPER = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "hopper.xml"


class Timed(gymnasium.RewardWrapper):
    """Rewards what MuJoCo's timer has counted."""

    def reward(self, reward):
        return self.unwrapped.data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration


def timed_hopper():
    return Timed(gymnasium.make("Hopper-v5"))


@pytest.fixture(autouse=True)
def _timers_are_on():
    """Other tests of the process may have stopped them."""
    if mujoco.get_mjcb_time() is None:
        mujoco.set_mjcb_time(time.perf_counter)


@pytest.fixture
def step():
    """Make a step; return whether the timer has counted it."""
    model = mujoco.MjModel.from_xml_path(str(HOPPER))
    data = mujoco.MjData(model)
    timer = data.timer[mujoco.mjtTimer.mjTIMER_STEP]

    def once(_=0):
        before = timer.duration
        mujoco.mj_step(model, data)
        return timer.duration > before

    return once


def test_a_step_goes_untimed_and_the_next_one_does_not(step):
    assert not untimed(step)(0)
    assert step()


def test_timers_stay_off_once_they_are_stopped(step):
    def stopped(_):
        stop_timers()
        return step(), step()

    assert untimed(stopped)(0) == (False, False)
    assert step()


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_env_workers_step_untimed(num_model_workers):
    config = load_config(
        overrides=[
            f"env.id={__name__}:timed_hopper",
            "sampler.envs_per_worker=2",
            "sampler.num_env_workers=1",
            f"sampler.num_model_workers={num_model_workers}",
            "sampler.rollout_length=4",
        ]
    )
    with make_sampler(config) as sampler:
        assert not sampler.collect().reward.any()


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_vector_environments_step_untimed(backend, step):
    with fastrl.make_vec(timed_hopper, 2, backend=backend) as envs:
        envs.reset(seed=0)
        _, rewards, *_ = envs.step(envs.action_space.sample())
    assert not rewards.any()
    assert step()
