"""Policies that imitate: from demonstrations to what plays the environment."""

from __future__ import annotations

import os
import shutil
import socket

import h5py
import numpy as np
import pytest

from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.training import record_dataset, record_function, resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.test_resume import assert_same

CONFIGS = os.path.join(os.path.dirname(__file__), "..", "..", "configs")


def lean(observation):
    """Keep a pole up by its angle and its speed: 500 in every episode."""
    return int(observation[2] + 0.5 * observation[3] > 0)


@pytest.fixture(scope="module")
def leaning(tmp_path_factory):
    """Return a dataset of 20 episodes of CartPole."""
    path = tmp_path_factory.mktemp("sets") / "leaning"
    config = load_config(None, ["env.id=CartPole-v1"])
    found = record_function(config, f"{__name__}:lean", path, episodes=20)
    assert found.returns.tolist() == [500.0] * 20
    return path


def cloning(path, run, *overrides):
    return load_config(
        os.path.join(CONFIGS, "cartpole_bc.yaml"),
        [f"dataset.path={path}", f"run_dir={run}", "evaluation.final_episodes=10",
         "logging.tensorboard=false", *overrides],
    )  # fmt: skip


def test_a_clone_of_cartpole_stands_and_is_improved_by_ppo(leaning, tmp_path):
    run = train(cloning(leaning, tmp_path / "bc", "total_steps=36000", "seed=1"))
    assert run.outcome.evaluation.return_mean > 400
    rows = [row for row in read_rows(run.path / "metrics.jsonl") if row["kind"] == "training"]
    assert rows[-1]["validation_loss"] < 0.4
    assert rows[-1]["episodes"] == 0
    overrides = [f"init_from={run.path}", f"run_dir={tmp_path / 'ppo'}", "total_steps=2048",
                 "model.hidden_sizes=[32, 32]", "logging.tensorboard=false",
                 "evaluation.final_episodes=10"]  # fmt: skip
    improved = train(load_config(os.path.join(CONFIGS, "cartpole_ppo.yaml"), overrides))
    assert improved.outcome.evaluation.return_mean > 100


def test_a_resumed_clone_is_that_of_one_session(leaning, tmp_path):
    overrides = ("evaluation.enabled=false", "dataset.episodes=3", "algorithm.patience=null")
    train(cloning(leaning, tmp_path / "whole", "total_steps=4000", *overrides))
    train(cloning(leaning, tmp_path / "parts", "total_steps=2000", *overrides))
    resume(tmp_path / "parts", ["total_steps=4000"])
    whole, parts = (
        CheckpointStore(tmp_path / name / "checkpoints").load("last") for name in ("whole", "parts")
    )
    assert_same(whole.model, parts.model)
    assert_same(whole.state["learner"], parts.state["learner"])


def test_patience_ends_a_run_before_its_last_step(leaning, tmp_path):
    overrides = ("evaluation.enabled=false", "dataset.episodes=2", "algorithm.patience=2",
                 "algorithm.learning_rate=0.3", "total_steps=100000")  # fmt: skip
    run = train(cloning(leaning, tmp_path / "run", *overrides))
    assert run.outcome.steps < 100_000
    [last] = CheckpointStore(run.path / "checkpoints").names()[-1:]
    assert last == f"step_{run.outcome.steps:012d}"


def test_what_cannot_be_cloned_is_one_line(leaning, tmp_path):
    for overrides, message in (
        (["env.id=Acrobot-v1"], "dataset.path: .* is not of 'Acrobot-v1': observation is Box"),
        (["dataset.episodes=21"], "has 20 episodes; 21 expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(cloning(leaning, tmp_path / "run", *overrides))
        assert not (tmp_path / "run").exists()
    for overrides, message in (
        (["dataset=null"], "dataset: must name demonstrations with algorithm.name: bc"),
        (["dataset.id=some/set-v0"], "dataset.path: must be given, or dataset.id, and not both"),
        (["cluster={address: local}"], "cluster: must be null with algorithm.name: bc"),
        (["algorithm.validation_fraction=0"], "algorithm.patience: must be null"),
        (
            ["model.recurrent=gru", "algorithm.sequence_length=5"],
            r"algorithm.minibatch_size: must be a multiple of .* \(5\), got 32",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            cloning(leaning, tmp_path / "run", *overrides)


def test_what_is_wrong_with_a_late_episode_is_found_before_the_run_has_a_directory(
    leaning, tmp_path
):
    for name, change, message in (
        ("nan", lambda rows: rows["rewards"].__setitem__(3, np.nan), "reward has a number that"),
        ("lost", lambda rows: rows.__delitem__("actions"), ".*actions"),
    ):
        path = shutil.copytree(leaning, tmp_path / name)
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            change(file["episode_19"])
        with pytest.raises(ConfigError, match=f"dataset.path: episode 19 of .*{message}"):
            train(cloning(path, tmp_path / "run"))
        assert not (tmp_path / "run").exists()


def test_a_remote_id_without_network_is_one_line(tmp_path, monkeypatch):
    def unreachable(*arguments):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    config = cloning("unused", tmp_path / "run", "dataset.path=null", "dataset.id=some/set-v0")
    with pytest.raises(ConfigError, match=r"'some/set-v0' is not among .* network is unreachable"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_clones_of_a_trained_policy_reach_500_with_five_seeds(tmp_path):
    expert = train(load_config(os.path.join(CONFIGS, "cartpole_ppo.yaml"),
                               [f"run_dir={tmp_path / 'expert'}"]))  # fmt: skip
    assert expert.outcome.evaluation.return_mean == 500
    record_dataset(expert.path, tmp_path / "set", episodes=20)
    returns = [
        train(cloning(tmp_path / "set", tmp_path / f"bc-{seed}", f"seed={seed}",
                      "evaluation.final_episodes=100")).outcome.evaluation.return_mean
        for seed in range(5)
    ]  # fmt: skip
    assert np.array_equal(returns, [500.0] * 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_clones_of_halfcheetah_reach_nine_tenths_of_their_expert(tmp_path):
    """Trains an expert first, which takes most of the time."""
    expert = train(
        load_config(
            os.path.join(CONFIGS, "halfcheetah_v4_ppo_cleanrl.yaml"),
            ["env.id=fastrl/HalfCheetah-v5", f"run_dir={tmp_path / 'expert'}",
             "sampler.num_envs=8", "sampler.rollout_length=256", "algorithm.minibatch_size=256",
             "total_steps=400000", "evaluation.enabled=false"],
        )
    )  # fmt: skip
    recorded = record_dataset(expert.path, tmp_path / "set", episodes=25)
    config = load_config(
        os.path.join(CONFIGS, "cartpole_bc.yaml"),
        ["env.id=fastrl/HalfCheetah-v5", f"dataset.path={tmp_path / 'set'}", "dataset.episodes=25",
         f"run_dir={tmp_path / 'clone'}", "model.hidden_sizes=[256, 256]", "total_steps=1150000",
         "model.normalize_observations=true", "model.log_std_bounds=[-3, 2]",
         "algorithm.minibatch_size=256", "algorithm.patience=null",
         "evaluation.every_steps=1150000", "evaluation.final_episodes=20"],
    )  # fmt: skip
    clone = train(config)
    assert clone.outcome.evaluation.return_mean >= 0.9 * recorded.returns.mean()
