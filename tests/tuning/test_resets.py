"""Windows of young environments are brought to the rate at which episodes end later on."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fastrl.config import load_config
from fastrl.sampling import SamplerStats
from fastrl.tuning import Candidate
from fastrl.tuning.workbench import Resets, Workbench
from fastrl.workers.handoff import Counter
from tests.tuning.busy import busy

STEP_S, RESET_S, LENGTH = 0.0002, 0.02, 40


class SlowToReset(gymnasium.Env):
    """A reset takes as long as a hundred steps, so a frame 0.2 + 0.5 ms in the long run."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        busy(RESET_S)
        self._left = LENGTH
        return np.zeros(2, np.float32), {}

    def step(self, action):
        busy(STEP_S)
        self._left -= 1
        return np.zeros(2, np.float32), 0.0, self._left == 0, False, {}


def spent(steps, episodes, stepping_s, ending_steps=0, ending_s=0.0):
    row = np.zeros((1, len(Counter)), np.int64)
    row[0, Counter.ENV_STEPS], row[0, Counter.EPISODES] = steps, episodes
    row[0, Counter.STEPPING_NS] = stepping_s * 1e9
    row[0, Counter.ENDING_STEPS], row[0, Counter.ENDING_STEPS_NS] = ending_steps, ending_s * 1e9
    return SamplerStats.of_counters(0, ("env-worker-0",), row)


def test_what_an_end_costs_is_the_difference_to_other_steps():
    # 100 steps of 4 environments; 90 take 1 ms each, 10 with one end each take 21 ms.
    resets = Resets.seen(spent(400, 10, 0.3, 10, 0.21), envs_per_group=4)
    assert resets.per_step == pytest.approx(10 / 400)
    assert resets.seconds == pytest.approx(0.02)


@pytest.mark.parametrize(
    "counted", [spent(400, 0, 0.3), spent(0, 0, 0.0), spent(400, 100, 0.3, 100, 0.3)]
)
def test_nothing_is_corrected_where_ends_cannot_be_told_from_steps(counted):
    resets = Resets.seen(counted, envs_per_group=4, time_limit=50)
    assert resets.per_step >= 1 / 50
    assert resets.usual_s(2.0, spent(1000, 0, 2.0), 2) == 2.0


def test_a_time_limit_is_the_least_rate_of_ends():
    assert Resets.seen(spent(400, 1, 0.3, 1, 0.1), 4, time_limit=20).per_step == 1 / 20


def test_windows_get_the_resets_that_they_lack_and_lose_those_they_have_too_many():
    resets = Resets(per_step=0.01, seconds=0.1)

    def usual_s(spent_s, steps, episodes, in_parallel=1):
        return resets.usual_s(spent_s, spent(steps, episodes, spent_s), in_parallel)

    assert usual_s(1.0, 1000, 0) == pytest.approx(1.0 + 10 * 0.1)
    assert usual_s(1.0, 1000, 0, in_parallel=2) == pytest.approx(1.0 + 10 * 0.1 / 2)
    assert usual_s(3.0, 1000, 20) == pytest.approx(3.0 - 10 * 0.1)
    assert usual_s(1.0, 1000, 50) == 0.25


def test_resets_hide_in_the_time_of_cores_that_are_idle():
    resets, counted = Resets(per_step=0.01, seconds=0.1), spent(1000, 0, 1.0)
    assert resets.usual_s(1.0, counted, 1, idle_s=0.4) == pytest.approx(1.0 + 10 * 0.1 - 0.4)
    assert resets.usual_s(1.0, counted, 2, idle_s=0.4) == pytest.approx(1.0 + (10 * 0.1 - 0.4) / 2)
    assert resets.usual_s(1.0, counted, 1, idle_s=5.0) == 1.0
    assert resets.usual_s(1.0, spent(1000, 12, 1.0), 1, idle_s=5.0) == pytest.approx(0.8)


@pytest.mark.perf
@pytest.mark.parametrize("num_envs", [2, 64])
def test_a_short_window_of_many_young_environments_is_no_faster_than_it_will_be(num_envs):
    config = load_config(None, [f"env.id={__name__}:SlowToReset", "sampler.rollout_length=8"])
    with Workbench(config) as bench:
        bench.calibrate(Candidate(8, 1))
        sample = bench(Candidate(num_envs, 1), 0.2)
    later = 1 / (STEP_S + RESET_S / LENGTH)
    assert 0.6 * later < sample.fps < 1.5 * later
    if num_envs == 64:
        assert sample.notes.seen_fps > 1.8 * later, "it has seen resets, so shows nothing"
