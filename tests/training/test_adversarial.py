"""GAIL and AIRL as runs: ends of episodes, a kill in the middle, and what they learn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from fastrl.config import load_config
from fastrl.datasets import DatasetWriter, Episode
from fastrl.spec import EnvSpec
from fastrl.training import record_function, resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.ledge import STEPS, demonstrate
from tests.training.test_resume import assert_same

CONFIGS = Path(__file__).parents[2] / "configs"
LEDGE = (
    "env.id=tests.training.ledge:Ledge", "sampler.kind=serial", "sampler.num_envs=8",
    "sampler.rollout_length=64", "logging.tensorboard=false", "algorithm.minibatch_size=128",
    "algorithm.learning_rate=1e-3", "algorithm.discriminator_updates=10",
    "evaluation.enabled=false",
)  # fmt: skip


def run_of(path, name, *changes):
    """Train on the ledge; return the path of the run."""
    dataset = path / "demonstrations"
    if not dataset.exists():
        demonstrate(dataset)
    overrides = [*LEDGE, f"algorithm.name={name}", f"dataset.path={dataset}", *changes]
    return train(load_config(None, overrides)).path


def lengths(path):
    return [row["length_mean"] for row in read_rows(path / "metrics.jsonl")]


@pytest.mark.parametrize("name", ["gail", pytest.param("airl", marks=pytest.mark.slow)])
def test_episodes_that_end_in_the_absorbing_state_are_not_shortened(tmp_path, name):
    """All rewards are negative, so a fall is good where nothing follows it."""
    keys = ("algorithm.reward=negative", "total_steps=5120", "logging.every_steps=512")
    absorbing, ignored = (
        lengths(run_of(tmp_path, name, *keys, f"algorithm.episode_ends={ends}",
                       f"run_dir={tmp_path / ends}"))
        for ends in ("absorbing", "ignored")
    )  # fmt: skip
    assert absorbing[-1] > 0.8 * STEPS
    assert ignored[-1] < 0.5 * STEPS


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_exactly(tmp_path):
    keys = ("total_steps=3072", "checkpoint.every_steps=512", "checkpoint.keep_last=9")
    whole = run_of(tmp_path, "gail", *keys, f"run_dir={tmp_path / 'whole'}")
    killed = tmp_path / "killed"
    overrides = [*LEDGE, "algorithm.name=gail", *keys, f"run_dir={killed}"]
    overrides += [f"dataset.path={tmp_path / 'demonstrations'}"]
    command = [sys.executable, "-m", "fastrl", "train", *overrides]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        until_s = time.monotonic() + 60
        while not (killed / "checkpoints" / "step_000000001024").exists():
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    assert not (killed / "summary.json").exists()
    resume(killed)
    expected, found = (
        CheckpointStore(path / "checkpoints").load("step_000000003072") for path in (whole, killed)
    )
    assert_same(dict(expected.model), dict(found.model))
    assert_same(expected.state["learner"], found.state["learner"])


def cartpole_demonstrations(path, episodes=20):
    """Write episodes of a controller that keeps the pole up for 500 steps."""
    env = gymnasium.make("CartPole-v1")
    spec = EnvSpec("CartPole-v1", env.observation_space, env.action_space)
    with DatasetWriter(path, spec) as writer:
        for seed in range(episodes):
            seen, actions, truncated = [env.reset(seed=seed)[0]], [], False
            while not truncated:
                place, speed, angle, spin = seen[-1]
                actions.append(int(0.05 * place + 0.1 * speed + angle + 0.5 * spin > 0))
                observation, _, terminated, truncated, _ = env.step(actions[-1])
                assert not terminated
                seen.append(observation)
            ones = np.ones(len(actions), np.float32)
            writer.add([Episode({"": np.stack(seen)}, {"": np.array(actions)}, ones, False)])
    env.close()
    return path


def learnt(tmp_path, name, seed, *changes):
    """Return the mean return of the final evaluation of a run of its configuration."""
    dataset = cartpole_demonstrations(tmp_path / "demonstrations")
    run = (f"dataset.path={dataset}", f"run_dir={tmp_path / 'run'}", f"seed={seed}")
    config = load_config(CONFIGS / f"cartpole_{name}.yaml", [*run, *changes])
    return train(config).outcome.evaluation.return_mean


@pytest.mark.timeout(300)
def test_a_short_run_of_gail_learns(tmp_path):
    """Chance keeps the pole up for some 22 steps."""
    changes = ("total_steps=49152", "sampler.kind=serial", "env.id=fastrl/CartPole-v1")
    changes += ("algorithm.learning_rate_schedule=constant", "algorithm.clip_schedule=constant")
    evaluation = ("evaluation.every_steps=1000000", "evaluation.final_episodes=20")
    assert learnt(tmp_path, "gail", 0, *changes, *evaluation, "logging.tensorboard=false") > 90


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
def test_gail_balances_the_pole_within_its_steps(tmp_path, seed):
    assert learnt(tmp_path, "gail", seed, "evaluation.stop_at=500") >= 475


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
def test_airl_learns_within_its_steps(tmp_path, seed):
    assert learnt(tmp_path, "airl", seed, "evaluation.stop_at=300") >= 300


def steer(observation):
    """Push the point of `Reach` straight to its goal: about -6 per episode."""
    return np.clip((observation[2:] - observation[:2]) / 0.1, -1, 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_airl_steers_by_continuous_actions(tmp_path):
    """Chance is worth about -40."""
    env, dataset = "env.id=tests.training.reach:Reach", tmp_path / "set"
    record_function(load_config(None, [env]), f"{__name__}:steer", dataset, episodes=40)
    config = load_config(
        None,
        [env, f"dataset.path={dataset}", f"run_dir={tmp_path / 'run'}", "total_steps=60000",
         "sampler.kind=serial", "sampler.num_envs=16", "sampler.rollout_length=128",
         "model.hidden_sizes=[32, 32]", "algorithm.name=airl", "algorithm.minibatch_size=256",
         "algorithm.learning_rate=1e-3", "algorithm.gamma=0.9",
         "algorithm.discriminator_updates=60", "algorithm.discriminator_learning_rate=3e-3",
         "evaluation.every_steps=1000000",
         "evaluation.final_episodes=40", "logging.tensorboard=false"],
    )  # fmt: skip
    assert train(config).outcome.evaluation.return_mean > -17
