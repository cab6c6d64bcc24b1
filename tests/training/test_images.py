"""Agents learn from pictures, through the conv net that images get by default."""

from __future__ import annotations

import pytest

from fastrl.config import load_config
from fastrl.training import train
from tests.training.bright_quarter import LENGTH

SETTINGS = {
    "ppo": [
        "algorithm.epochs=4",
        "algorithm.minibatch_size=128",
        "algorithm.learning_rate=1e-3",
        # Without it some seeds never try one of the four answers.
        "algorithm.entropy_coef=0.01",
        "sampler.rollout_length=32",
        "total_steps=8192",
    ],
    "a2c": [
        "algorithm.learning_rate=2e-3",
        "algorithm.optimizer=adam",
        "sampler.rollout_length=5",
        "total_steps=20000",
    ],
}


def evaluated_return(tmp_path, algorithm, seed, *changes):
    """Return the mean return of fifty deterministic episodes after training."""
    settings = [
        "env.id=tests.training.bright_quarter:BrightQuarter",
        f"algorithm.name={algorithm}",
        "algorithm.gamma=0",
        "model.conv_features=64",
        "sampler.envs_per_worker=16",
        "sampler.num_env_workers=1",
        "evaluation.every_steps=1000000",
        "evaluation.final_episodes=50",
        "logging.tensorboard=false",
        f"seed={seed}",
        f"run_dir={tmp_path / 'run'}",
    ]
    config = load_config(None, [*settings, *SETTINGS[algorithm], *changes])
    return train(config).outcome.evaluation.return_mean


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_agent_learns_to_tell_pictures_apart(tmp_path, algorithm, seed):
    # Who guesses gets a quarter of it.
    assert evaluated_return(tmp_path, algorithm, seed) >= 0.9 * LENGTH


def test_channels_may_come_first(tmp_path):
    changes = ["env.kwargs.channels_first=true", "evaluation.final_episodes=20"]
    assert evaluated_return(tmp_path, "ppo", 0, *changes) >= 0.9 * LENGTH
