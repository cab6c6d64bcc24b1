"""While environments are slow to begin, it is told how many have begun."""

from __future__ import annotations

import io
import re
import time

import gymnasium
import numpy as np
from rich.console import Console

from fastrl.config import load_config
from fastrl.sampling import ProcessSampler, make_plan
from fastrl.training import train

SLOW = ["env.id=tests.sampling.test_starting:SlowToBegin", "sampler.num_env_workers=2"]
SLOW += ["sampler.envs_per_worker=6", "sampler.rollout_length=8"]


class SlowToBegin(gymnasium.Env):
    """Takes a while to be built, and to be reset."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        time.sleep(0.05)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        time.sleep(0.05)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        time.sleep(0.002)
        return np.zeros(1, np.float32), 0.0, False, False, {}


def counts(lines, pattern):
    """Return the numbers that a pattern finds, without repetition."""
    found = [re.search(pattern, line) for line in lines]
    return list(dict.fromkeys(int(match[1]) for match in found if match))


def test_environments_are_counted_while_they_are_built_and_reset():
    plan, lines = make_plan(load_config(None, SLOW)), []
    with ProcessSampler(plan, asynchronous=True) as sampler:
        deadline = time.monotonic() + 60
        while not lines or "12 of 12 environments are reset" not in lines[-1]:
            assert time.monotonic() < deadline, lines[-1]
            lines.append(sampler.starting())
            if lines[-1].startswith("first rollout"):
                break
            time.sleep(0.005)
        sampler.collect()
        assert re.fullmatch(r"first rollout … \d+ of 96 steps", sampler.starting())
    for what in ("built", "reset"):
        seen = counts(lines, rf"(\d+) of 12 environments are {what}")
        assert seen == sorted(seen)
        assert len(seen) > 3
    assert counts(lines, r"workers … (\d) of 2 are ready")[-1] == 2


def test_training_tells_how_many_environments_are_ready(tmp_path):
    said = Console(file=io.StringIO(), width=200)
    options = ["total_steps=96", "logging.every_s=0.05", "evaluation.enabled=false"]
    options += ["algorithm.minibatch_size=48", f"run_dir={tmp_path}"]
    train(load_config(None, [*SLOW, *options]), console=said)
    seen = counts(said.file.getvalue().splitlines(), r"(\d+) of 12 environments are built")
    assert len(seen) > 1
