"""Whole runs with `sampler: device`: nothing else of training knows the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrl.config import load_config
from fastrl.training.run import resume, train

CONFIG = Path(__file__).parents[2] / "configs" / "cartpole_device_ppo.yaml"


def config(tmp_path, *overrides):
    return load_config(
        CONFIG, [f"run_dir={tmp_path / 'run'}", "logging.tensorboard=false", *overrides]
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
