"""DAgger learns the expert's actions in the states of the policy, and goes on after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fastrl import make_plan, make_sampler
from fastrl.config import Config, load_config, save_config
from fastrl.datasets import load_demonstrations
from fastrl.errors import ConfigError
from fastrl.training import load_policy, record_dataset, resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.dagger_sampler import expert_share
from tests.counting_env import decode
from tests.datasets import playing
from tests.training.clockwork import small_run
from tests.training.test_imitation import CONFIGS
from tests.training.test_resume import assert_same

FUNCTION = "tests.datasets.playing:by_place"


def counting(run, policy=FUNCTION, **changes):
    return Config(
        run_dir=str(run),
        env={"id": playing.COUNTING, "kwargs": {"length": 5, "uneven": True, **changes}},
        sampler={"envs_per_worker": 2, "num_env_workers": 2, "rollout_length": 8},
        algorithm={"name": "dagger", "expert_policy": policy, "beta_rollouts": 1},
    )


def on_disk(run):
    return load_demonstrations(run / "demonstrations")


@pytest.mark.parametrize("kind", ["process", "serial"])
def test_its_rows_are_the_states_of_the_policy_with_the_actions_of_the_expert(kind, tmp_path):
    config = counting(tmp_path)
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"kind": kind})})
    with make_sampler(config, make_plan(config)) as sampler:
        state_dict = make_plan(config).build_model().state_dict()
        sampler.publish(state_dict)
        first = sampler.collect()
        assert (len(first.reward), first.num_steps) == (32, 32)
        sampler.publish(state_dict)
        second = sampler.collect()
        assert (len(second.reward), second.num_steps) == (64, 32)
    rows, labels = second.observation[:-1, 0].numpy(), second.action[:, 0].numpy()
    assert labels.tolist() == [playing.by_place(row) for row in rows]
    assert torch.equal(second.observation[:32], first.observation[:32])

    # The environment says which actions were taken: first the expert's, then the policy's.
    found, agreed = on_disk(tmp_path), []
    following = found.next_observation[""].numpy()
    for row, (before, after, label) in enumerate(zip(rows, following, labels, strict=True)):
        here, there = decode("vector", (before,)), decode("vector", (after,))
        assert (there.tag, there.episode, there.step) == (here.tag, here.episode, here.step + 1)
        agreed.append(there.last_action == label)
        assert row >= 32 or agreed[-1]
    assert 0 < sum(agreed[32:]) < 32
    assert np.array_equal(found.observation[""].numpy(), rows)


def test_nested_actions_are_labelled_leaf_by_leaf(tmp_path):
    policy = "tests.datasets.playing:by_parts"
    config = counting(tmp_path, policy, observation="tuple", action="dict")
    with make_sampler(config, make_plan(config)) as sampler:
        sampler.collect()
    found = on_disk(tmp_path)
    steps = found.observation["1"][:, 0]
    assert torch.equal(found.action["key"], steps % 4)
    assert torch.equal(found.action["move"][:, 1], steps % 4 / 4)


def test_the_share_of_the_expert_falls_by_equal_steps():
    section = counting("x").algorithm.model_copy(update={"beta_rollouts": 4})
    assert [expert_share(section, n) for n in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def run_of(path, expert, **changes):
    return small_run(
        path,
        total_steps=512,
        algorithm={"name": "dagger", "expert": str(expert), "epochs": 1, "beta_rollouts": 3},
        evaluation={"enabled": False},
        **changes,
    )


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "run"
    train(small_run(path, total_steps=64))
    return path


def test_a_run_is_an_expert_that_takes_its_most_probable_actions(expert, tmp_path):
    train(run_of(tmp_path / "run", expert))
    found = on_disk(tmp_path / "run")
    assert len(found) == 512
    actions, _ = load_policy(expert).act(found.observation[""].numpy())
    assert np.array_equal(actions, found.action[""].numpy())


def test_a_run_that_was_killed_goes_on_as_if_it_was_not(expert, tmp_path):
    run, whole = tmp_path / "killed", tmp_path / "whole"
    save_config(run_of(run, expert), tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrl", "train", tmp_path / "config.yaml", "total_steps=100000",
         "checkpoint.every_steps=64"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline, shards = time.monotonic() + 60, run / "demonstrations"
    while not shards.is_dir() or len(list(shards.iterdir())) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed = CheckpointStore(run / "checkpoints")
    before = killed.load(killed.names()[-1]).steps
    assert before > 0
    steps = before + 64
    resume(run, [f"total_steps={steps}"])
    assert len(on_disk(run)) == steps
    train(run_of(whole, expert).model_copy(update={"total_steps": steps}))
    one, other = CheckpointStore(whole / "checkpoints").load("last"), killed.load("last")
    assert_same(one.model, other.model)
    assert_same(one.state["learner"], other.state["learner"])


def test_an_expert_that_does_not_fit_is_one_line(expert, tmp_path):
    run = tmp_path / "run"
    for config, message in (
        (
            run_of(run, tmp_path / "none"),
            "algorithm.expert: '[^']*none' is not the directory of a run",
        ),
        (
            counting(run, "tests.datasets.playing:nothing"),
            "algorithm.expert_policy: .* cannot be imported",
        ),
        (
            counting(run).model_copy(update={"algorithm": run_of(run, expert).algorithm}),
            "algorithm.expert: .* is not of 'tests.counting_env:make': observation is Box",
        ),
        (
            counting(run).model_copy(
                update={"model": counting(run).model.model_copy(update={"recurrent": "gru"})}
            ),
            "algorithm.name: dagger learns policies without a memory",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config)
        assert not run.exists()
    for override in ("algorithm.expert_policy=a:b", "algorithm.expert=null"):
        with pytest.raises(ConfigError, match=r"algorithm\.expert: must be given"):
            load_config(os.path.join(CONFIGS, "cartpole_dagger.yaml"), [override])


def imitating(run, *overrides):
    return load_config(
        os.path.join(CONFIGS, "cartpole_dagger.yaml"),
        [f"run_dir={run}", "evaluation.final_episodes=20", "logging.tensorboard=false", *overrides],
    )


def test_dagger_keeps_the_pole_up(tmp_path):
    config = imitating(
        tmp_path, "algorithm.expert=null",
        "algorithm.expert_policy=tests.training.test_imitation:lean",
        "total_steps=3072", "algorithm.beta_rollouts=3", "evaluation.every_steps=3072",
    )  # fmt: skip
    assert train(config).outcome.evaluation.return_mean > 400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dagger_reaches_the_expert_with_half_of_the_steps_of_cloning(tmp_path):
    expert = train(
        load_config(os.path.join(CONFIGS, "cartpole_ppo.yaml"), [f"run_dir={tmp_path / 'expert'}"])
    )
    assert expert.outcome.evaluation.return_mean == 500
    recorded = record_dataset(expert.path, tmp_path / "set", episodes=20)
    returns = [
        train(
            imitating(tmp_path / f"run-{seed}", f"algorithm.expert={expert.path}", f"seed={seed}",
                      f"total_steps={recorded.lengths.sum() // 2}")
        ).outcome.evaluation.return_mean
        for seed in range(5)
    ]  # fmt: skip
    assert returns == [500.0] * 5
