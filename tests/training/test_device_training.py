"""Whole runs with `sampler: device`: nothing else of training knows the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrl.config import load_config
from fastrl.envs.tensor import TENSOR_ENVS
from fastrl.errors import ConfigError
from fastrl.training.run import evaluate_run, record_run, resume, train

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


SHORT = ("total_steps=64", "sampler.envs_per_worker=2", "evaluation.final_episodes=1")


@pytest.mark.parametrize(
    "name",
    [
        name if name == "Pendulum-v1" else pytest.param(name, marks=pytest.mark.slow)
        for name in TENSOR_ENVS
    ],
)
def test_what_evaluates_and_records_takes_the_same_parameters_as_what_samples(tmp_path, name):
    first = {"Acrobot-v1": "mass1", "CartPole-v1": "masscart", "Pendulum-v1": "mass"}
    scaled = first.get(name, "max_speed")
    changes = (
        f"env.id={name}",
        "env.kwargs={expose_params: true}",
        f"env.randomize={{{scaled}: {{uniform: [0.05, 0.06]}}, gravity: {{choice: [5.0]}}}}",
        "env.max_episode_steps=5",
        "evaluation.video=true",
    )
    trained = train(config(tmp_path, *SHORT, *changes))
    again = evaluate_run(trained.path, checkpoint="last").result
    assert again == trained.outcome.evaluation
    assert again.lengths <= (5,)
    path, returns = record_run(trained.path, video=tmp_path / "found.gif", episodes=1)
    assert path.stat().st_size > 0
    assert len(returns) == 1


def test_parameters_reach_the_evaluation(tmp_path):
    trained = train(config(tmp_path, *SHORT, "env.kwargs={theta_threshold: 1.0e-6}"))
    assert trained.outcome.evaluation.lengths == (1,)


def test_evaluation_in_other_spaces_is_refused_before_training(tmp_path):
    changes = ("env.randomize={length: {uniform: [0.4, 0.6]}}", "total_steps=100000000")
    with pytest.raises(ConfigError, match=r"evaluation\.env_kwargs: .* observation space"):
        train(config(tmp_path, *changes, "evaluation.env_kwargs={expose_params: true}"))


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
