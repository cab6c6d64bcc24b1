"""The limit is measured, or it is said which bare environment could not be."""

import os
import re
import signal
import time

import gymnasium
import psutil
import pytest

from fastrl.config import load_config
from fastrl.envs import EnvFactory
from fastrl.errors import WorkerError
from fastrl.sampling import make_plan
from fastrl.throughput import LimitProbe
from fastrl.throughput.limits import _bare_batch, _bare_env
from tests.sampling.counting import CountingEnvs
from tests.sampling.test_masks import Batch


class Tiring(gymnasium.Wrapper):
    """Cannot go on after a thousand steps."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 1000:
            raise RuntimeError("tired")
        return self.env.step(action)


def tiring_env():
    return Tiring(gymnasium.make("CartPole-v1"))


class Sleepy(gymnasium.Wrapper):
    """Takes 5 ms per step."""

    def step(self, action):
        time.sleep(0.005)
        return self.env.step(action)


def probe(name, *overrides, **kwargs):
    config = load_config(None, [f"env.id={name}", "sampler.num_env_workers=1", *overrides])
    plan = make_plan(config, random_actions=True)
    return LimitProbe(plan, EnvFactory.from_config(config.env), cores=2, **kwargs)


def test_bare_environment_that_raises_is_named():
    with probe(f"{__name__}:tiring_env") as limits, pytest.raises(WorkerError) as caught:
        limits.measure(20.0)
    # All of them tire at once; whichever is heard first.
    assert re.match(r"bare-env-\d failed: RuntimeError: tired\n", str(caught.value))


def test_wrappers_that_are_configured_belong_to_the_bare_environment():
    with probe("CartPole-v1", f"env.wrappers=[{__name__}:Sleepy]") as limits:
        assert limits.measure(0.1).t_step_s > 0.005


def test_what_measures_the_limit_waits_to_be_asked_once_it_is_made():
    with probe("CartPole-v1", f"env.wrappers=[{__name__}:Sleepy]") as limits:
        pids = limits.pids().values()
        before = [psutil.Process(pid).num_ctx_switches().voluntary for pid in pids]
        time.sleep(0.2)
        after = [psutil.Process(pid).num_ctx_switches().voluntary for pid in pids]
    # Stepping would be 40 of them.
    assert max(late - early for late, early in zip(after, before, strict=True)) < 5


def test_a_factory_that_builds_batches_alone_has_a_limit():
    factory = EnvFactory(lambda num_envs: CountingEnvs(num_envs))
    assert _bare_env(factory, 4)(0.001) > 0


def test_bare_environment_that_was_killed_is_named():
    with probe("CartPole-v1") as limits:
        limits.measure(0.01)
        os.kill(limits.pids()["bare-env-1"], signal.SIGKILL)
        with pytest.raises(WorkerError, match="bare-env-1 was killed by SIGKILL"):
            limits.measure(0.01)


def test_bare_environment_that_does_not_answer_is_named():
    with probe("CartPole-v1", timeout_s=0.5) as limits:
        limits.measure(0.01)
        os.kill(limits.pids()["bare-env-0"], signal.SIGSTOP)
        with pytest.raises(WorkerError, match="bare-env-0 did not answer in time"):
            limits.measure(0.01)


def test_bare_environments_get_valid_actions_only():
    with probe("tests.masked_env:CheckingEnv") as limits:
        assert limits.measure(0.05).fps > 0
    _bare_batch(Batch(4))(100)
