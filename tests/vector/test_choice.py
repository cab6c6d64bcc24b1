"""`auto` takes what a step of all environments is done with soonest."""

from __future__ import annotations

import time

import numpy as np
import pytest

import fastrl
from fastrl.vector.choice import StepCost, cheapest
from tests.vector.envs import OtherSpaceEnv


@pytest.mark.parametrize(
    ("cost", "num_envs", "cores", "chosen"),
    [
        (StepCost(5e-6, 5e-6), 16, 2, "serial"),
        (StepCost(5e-6, 5e-6), 1024, 2, "processes"),
        (StepCost(1e-3, 1e-3), 16, 2, "processes"),
        (StepCost(1e-3, 1e-3), 16, 1, "serial"),
        # Half of the time is spent in resets: rare ones are waited for, frequent ones are shared.
        (StepCost(2e-4, 4e-4, ends=1e-3, reset_s=0.2), 8, 2, "serial"),
        (StepCost(2e-4, 4e-4, ends=0.5, reset_s=4e-4), 64, 2, "processes"),
        (StepCost(5e-3, 1e-5, True), 200, 2, "threads"),
        (StepCost(5e-3, 1e-5, True), 200, 1, "threads"),
        (StepCost(5e-3, 1e-5, True), 1, 2, "serial"),
        (StepCost(5e-3, 2e-3, True), 200, 64, "processes"),
    ],
)
def test_cheapest_backend_is_chosen(cost, num_envs, cores, chosen):
    assert cheapest(cost, num_envs, cores) == chosen


def test_idle_threads_of_torch_cost_room_where_there_are_no_cores_for_them():
    cost = StepCost(4e-5, 4e-5)
    assert cheapest(cost, 16, cores=2) == "processes"
    assert cheapest(cost, 16, cores=2, idle_threads=1) == "serial"
    assert cheapest(cost, 16, cores=4, idle_threads=1) == "processes"
    assert cheapest(cost, 64, cores=2, idle_threads=1) == "processes"


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
