"""`auto` takes what a step of all environments is done with soonest."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import fastrl
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import FastrlError
from fastrl.vector import choice as choosing
from fastrl.vector.vector_plan import VectorPlan
from tests.vector.envs import OtherSpaceEnv


class Env(OtherSpaceEnv):
    """Keeps the processor busy, or waits, in every step and reset; a step may end an episode."""

    def __init__(self, busy_s=0.0, waits_s=0.0, reset_s=0.0, length=10**9):
        super().__init__()
        self.busy_s, self.waits_s, self.reset_s, self.left = busy_s, waits_s, reset_s, length
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.left = self.length
        spend(self.reset_s)
        return np.zeros(1), {}

    def step(self, action):
        time.sleep(self.waits_s) if self.waits_s else spend(self.busy_s)
        self.left -= 1
        return np.zeros(1), 0.0, self.left <= 0, False, {}


def spend(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class Tried(Exception):  # noqa: N818
    """A trial was begun."""


def choice(monkeypatch, cores, num_envs, wake_s=5e-5, **env):
    """Return what is chosen without a trial."""

    def refuse(*_):
        raise Tried

    monkeypatch.setattr(choosing, "usable_cores", lambda: cores)
    monkeypatch.setattr(choosing, "wake_s", lambda: wake_s)
    factory = EnvFactory(partial(Env, **env))
    plan = VectorPlan("Env", [factory], num_envs, 1, AutoresetMode.SAME_STEP)
    return choosing.choose_backend(plan, None, refuse)


@pytest.mark.parametrize(
    ("env", "num_envs", "cores", "chosen"),
    [
        ({"busy_s": 5e-6}, 2, 2, ("serial", 1)),
        ({"busy_s": 1e-3}, 16, 1, ("serial", 1)),
        ({"busy_s": 1e-3}, 64, 4, ("processes", 4)),
        ({"waits_s": 5e-3}, 200, 2, ("threads", 200)),
        ({"waits_s": 5e-3}, 200, 1, ("threads", 200)),
        # A reset takes as long as a whole episode, and all workers wait for the one that resets.
        ({"busy_s": 1e-5, "reset_s": 1e-3, "length": 100}, 2, 2, ("serial", 1)),
    ],
)
def test_what_is_clear_is_chosen_without_a_trial(monkeypatch, env, num_envs, cores, chosen):
    assert choice(monkeypatch, cores, num_envs, **env) == chosen


def test_what_is_not_clear_is_tried(monkeypatch):
    with pytest.raises(Tried):
        choice(monkeypatch, 2, 16, busy_s=5e-5)
    assert choice(monkeypatch, 2, 16, wake_s=1e-3, busy_s=5e-5) == ("serial", 1)


def test_a_trial_that_cannot_be_made_leaves_one_process(monkeypatch):
    def refuse(*_):
        raise FastrlError("the port is in use")

    monkeypatch.setattr(choosing, "usable_cores", lambda: 2)
    monkeypatch.setattr(choosing, "wake_s", lambda: 1e-6)
    factory = EnvFactory(partial(Env, busy_s=2e-5))
    plan = VectorPlan("Env", [factory], 2, 1, AutoresetMode.SAME_STEP)
    monkeypatch.setattr(choosing, "_CLEAR", 1e9)
    assert choosing.choose_backend(plan, None, refuse) == ("serial", 1)


@pytest.mark.parametrize(("step_s", "backend"), [(0.03, "processes"), (0.0, "serial")])
def test_a_trial_takes_what_is_quicker_and_leaves_no_trace(monkeypatch, step_s, backend):
    monkeypatch.setattr(choosing, "usable_cores", lambda: 2)
    monkeypatch.setattr(choosing, "wake_s", lambda: 1e-4)
    # Sleeps overlap in two processes even where other programs have the cores.
    monkeypatch.setattr(choosing, "step_cost", lambda *_: choosing.StepCost(1e-3, 1e-3))
    monkeypatch.setattr(choosing, "wake_s", lambda: 1e-4)
    before = np.random.get_state()[1].tolist()
    with fastrl.make_vec(partial(Env, waits_s=step_s), 2, autoreset="disabled") as envs:
        assert (envs.backend, envs.num_envs) == (backend, 2)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize(
    ("name", "shared_s", "shares"),
    [
        ("fastrl/CartPole-v1", 0.5, 2),
        ("fastrl/CartPole-v1", 1.5, 1),
        ("fastrl/HalfCheetah-v5", None, 2),
    ],
)
def test_the_work_of_a_batch_is_shared_only_where_that_is_quicker(
    monkeypatch, name, shared_s, shares
):
    monkeypatch.setattr("fastrl.vector.make_vector.usable_cores", lambda: 2)
    times = iter([[1.0], [1.0, shared_s]])
    monkeypatch.setattr(choosing, "trial", lambda *_: next(times))
    with fastrl.make_vec(name, 4) as envs:
        assert max(envs.plan.num_workers, envs.plan.native.num_threads) == shares


class SleepyEnv(OtherSpaceEnv):
    """Waits for 20 ms in every step."""

    def step(self, action):
        time.sleep(0.02)
        return np.zeros(1), 0.0, False, False, {}


def test_auto_takes_threads_for_environments_that_wait():
    envs = fastrl.make_vec(SleepyEnv, 20)
    assert envs.backend == "threads"
    assert envs.plan.num_workers == 20
    envs.close()


def test_windows_that_wait_for_their_next_frame_need_no_threads():
    class Window(SleepyEnv):
        metadata = {"render_modes": ["human"]}  # noqa: RUF012
        render_mode = "human"

    envs = fastrl.make_vec(Window, 3)
    assert envs.backend != "threads"
    envs.close()


def test_auto_does_not_time_a_single_environment():
    assert fastrl.make_vec(SleepyEnv, 1).backend == "serial"
