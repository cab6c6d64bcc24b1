"""Every file under configs/ is loaded, and says what its name promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastrl.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RESULTS = CONFIGS.parent / "results"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_file_is_a_configuration(path):
    config = load_config(path)
    assert config.topology.num_envs >= 1


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("cartpole_ppo", "CartPole-v1"),
        ("cartpole_a2c", "CartPole-v1"),
        ("cartpole_throughput", "CartPole-v1"),
        ("halfcheetah_v5_throughput", "HalfCheetah-v5"),
        ("crafter_throughput", "Crafter-v1"),
        ("breakout_throughput", "ALE/Breakout-v5"),
    ],
)
def test_file_names_its_environment(name, env_id):
    assert load_config(CONFIGS / f"{name}.yaml").env.id == env_id


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("learning_*.json")), ids=lambda path: path.stem
)
def test_no_default_decides_what_network_a_published_result_was_learnt_with(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    config = load_config(CONFIGS.parent / found["config"], found["overrides"])
    assert isinstance(config.model.shared_body, bool)


def test_cartpole_ppo_has_the_settings_of_its_source():
    config = load_config(CONFIGS / "cartpole_ppo.yaml")
    assert config.total_steps == 100_000
    assert config.topology.num_envs == 8
    assert config.sampler.rollout_length == 32
    assert config.model.hidden_sizes == (64, 64)
    assert not config.model.shared_body
    algorithm = config.algorithm
    assert algorithm.name == "ppo"
    assert (algorithm.epochs, algorithm.minibatch_size) == (20, 256)
    assert (algorithm.gamma, algorithm.gae_lambda, algorithm.entropy_coef) == (0.98, 0.8, 0.0)
    assert (algorithm.learning_rate, algorithm.learning_rate_schedule) == (0.001, "linear")
    assert (algorithm.clip_range, algorithm.clip_schedule) == (0.2, "linear")


def test_cartpole_a2c_has_the_settings_of_its_source():
    config = load_config(CONFIGS / "cartpole_a2c.yaml")
    assert config.total_steps == 500_000
    assert (config.topology.num_envs, config.sampler.rollout_length) == (8, 5)
    algorithm = config.algorithm
    assert (algorithm.name, algorithm.optimizer) == ("a2c", "rmsprop")
    assert (algorithm.learning_rate, algorithm.gae_lambda) == (0.0007, 1.0)
