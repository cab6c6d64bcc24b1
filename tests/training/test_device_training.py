"""Whole runs with `sampler: device`: nothing else of training knows the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrl.config import load_config
from fastrl.training.run import resume, train

CONFIGS = Path(__file__).parents[2] / "configs"


def config(tmp_path, *overrides, name="cartpole_device_ppo"):
    return load_config(
        CONFIGS / f"{name}.yaml",
        [f"run_dir={tmp_path / 'run'}", "logging.tensorboard=false", *overrides],
    )


def test_run_trains_saves_and_goes_on(tmp_path):
    trained = train(
        config(
            tmp_path,
            "total_steps=2000",
            "env.id=fastrl/CartPole-v1",
            "env.kwargs={expose_params: true}",
            "env.randomize={length: {uniform: [0.4, 0.6]}}",
            "model.normalize_observations=true",
            "algorithm.normalize_rewards=true",
            "evaluation.enabled=false",
        )
    )
    assert trained.outcome.steps == 2048
    assert trained.config.sampler.num_env_workers == 1
    again = resume(trained.path, ["total_steps=3000"])
    assert again.outcome.steps == 3072


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_cartpole_is_solved(tmp_path, seed):
    outcome = train(config(tmp_path, f"seed={seed}", "evaluation.every_steps=60000")).outcome
    assert outcome.evaluation.return_mean >= 475


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actor_critic_learns_cartpole(tmp_path):
    changes = (
        *("sampler.kind=device", "sampler.num_env_workers=1", "sampler.envs_per_worker=8"),
        *("total_steps=100000", "evaluation.every_steps=100000"),
    )
    outcome = train(config(tmp_path, *changes, name="cartpole_a2c")).outcome
    assert outcome.evaluation.return_mean >= 150


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pendulum_gets_better(tmp_path):
    changes = (
        *("env.id=Pendulum-v1", "algorithm.gamma=0.9", "algorithm.gae_lambda=0.95"),
        *("model.normalize_observations=true", "algorithm.normalize_rewards=true"),
        *("sampler.rollout_length=64", "algorithm.learning_rate=0.001"),
        *("total_steps=80000", "evaluation.every_steps=80000"),
    )
    outcome = train(config(tmp_path, *changes)).outcome
    # Random actions get -1,200, and so does doing nothing.
    assert outcome.evaluation.return_mean >= -900
