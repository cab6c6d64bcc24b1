"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fastrl.config import A2CConfig, EnvConfig, FaultsConfig, SamplerConfig
from fastrl.errors import ConfigError
from fastrl.training import resume, train
from fastrl.training.checkpoint import CheckpointError, CheckpointStore
from fastrl.training.metrics import read_rows
from fastrl.training.run_directory import RunDirectory
from tests.training.clockwork import small_run

LAST = "step_000000000512"
MIDDLE = "step_000000000192"
# What of a row does not depend on how fast the machine is.
REPRODUCIBLE = (
    "steps",
    "updates",
    "episodes",
    "loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
    "learning_rate",
    "gradient_norm",
)


def flat(tree, path=""):
    """Return all leaves of nested dicts and lists by path."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {k: v for key, value in items for k, v in flat(value, f"{path}/{key}").items()}


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[path]), path
        else:
            assert value == other[path], path


def final_state(path):
    found = CheckpointStore(path / "checkpoints").load(LAST)
    return {"model": dict(found.model), "learner": found.state["learner"]}


def rows_after(path, steps):
    return [
        {name: row[name] for name in REPRODUCIBLE}
        for row in read_rows(path / "metrics.jsonl")
        if row["steps"] > steps
    ]


SAMPLERS = {
    "serial": {"kind": "serial"},
    "processes": {"kind": "process"},
    "model worker": {"kind": "process", "num_model_workers": 1, "groups": 2},
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_resumed_run_equals_one_never_stopped(tmp_path, kind):
    sampler = SamplerConfig(
        envs_per_worker=4, num_env_workers=2, rollout_length=8, lock_step=True, **SAMPLERS[kind]
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(small_run(whole, sampler=sampler))
    shutil.copytree(whole, stopped)
    resume(stopped, checkpoint=MIDDLE)
    assert_same(final_state(whole), final_state(stopped))
    assert len(rows_after(whole, 192)) == 5
    assert rows_after(whole, 192) == rows_after(stopped, 192)


def test_resumed_a2c_run_equals_one_never_stopped(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    algorithm = A2CConfig(learning_rate_schedule="linear", normalize_rewards=True)
    train(small_run(whole, algorithm=algorithm))
    shutil.copytree(whole, stopped)
    resume(stopped, checkpoint=MIDDLE)
    assert_same(final_state(whole), final_state(stopped))


ALGORITHMS = {
    "ppo": small_run(None).algorithm,
    "a2c": A2CConfig(learning_rate_schedule="linear", normalize_rewards=True),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "kind", ["serial", pytest.param("processes", marks=pytest.mark.slow), "model worker"]
)
def test_run_goes_on_exactly_from_every_update(tmp_path, kind, algorithm):
    sampler = SamplerConfig(
        envs_per_worker=4, num_env_workers=2, rollout_length=8, lock_step=True, **SAMPLERS[kind]
    )
    whole, total = tmp_path / "whole", 256
    train(small_run(whole, sampler=sampler, algorithm=ALGORITHMS[algorithm], total_steps=total))
    names = CheckpointStore(whole / "checkpoints").names()
    assert len(names) == 5
    expected = CheckpointStore(whole / "checkpoints").load("last")
    for name in names[:-1]:
        stopped = tmp_path / name
        shutil.copytree(whole, stopped)
        resume(stopped, checkpoint=name)
        found = CheckpointStore(stopped / "checkpoints").load("last")
        assert_same(dict(expected.model), dict(found.model))
        assert_same(expected.state["learner"], found.state["learner"])


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(small_run(tmp_path / name, seed=seed))
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    one, other = (final_state(tmp_path / name)["model"] for name in "ac")
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_environments_are_seeded_anew(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    before = CheckpointStore(path / "checkpoints").load(LAST).state["env_seeds"].tolist()
    resume(path, checkpoint=MIDDLE)
    after = CheckpointStore(path / "checkpoints").load(LAST).state["env_seeds"].tolist()
    assert len({*before, *after}) == 16


def discounted_sums(path, name):
    """Return the sum of discounted rewards of every unfinished episode, as the learner knows it."""
    state = CheckpointStore(path / "checkpoints").load(name).state
    return state["learner"]["reward_scaler"]["so_far"].tolist()


def geometric(steps, gamma=0.99):
    return pytest.approx([sum(gamma**step for step in range(steps))] * 8, rel=1e-5)


@pytest.mark.parametrize("kind", ["serial", "process"])
def test_rewards_of_lost_episodes_do_not_count_for_those_that_follow(tmp_path, kind):
    path = tmp_path / "run"
    env = EnvConfig(id="tests.training.clockwork:Endless")
    sampler = SamplerConfig(kind=kind, envs_per_worker=4, num_env_workers=2, rollout_length=8)
    train(small_run(path, env=env, sampler=sampler, total_steps=192))
    assert discounted_sums(path, MIDDLE) == geometric(24)
    resume(path, ["total_steps=256"])
    assert discounted_sums(path, "step_000000000256") == geometric(8)


def test_rewards_of_an_update_that_is_left_out_do_not_count(tmp_path):
    path = tmp_path / "run"
    env = EnvConfig(id="tests.training.clockwork:EndlessUndefined")
    faults = FaultsConfig(bad_numbers="skip_update")
    train(small_run(path, env=env, faults=faults, total_steps=256))
    assert discounted_sums(path, MIDDLE) == geometric(16)
    assert discounted_sums(path, "step_000000000256") == geometric(8)


def test_counts_go_on(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    first = CheckpointStore(path / "checkpoints").load(LAST).about
    done = resume(path, ["total_steps=1024"])
    last = CheckpointStore(path / "checkpoints").load("last").about
    assert done.outcome.steps == last["steps"] == 1024
    assert (first["updates"], last["updates"]) == (8, 16)
    assert (first["episodes"], last["episodes"]) == (128, 256)
    assert last["wall_s"] > first["wall_s"]
    steps = [row["steps"] for row in read_rows(path / "metrics.jsonl")]
    assert steps == list(range(64, 1025, 64))


def test_rows_beyond_the_checkpoint_and_half_a_row_are_dropped(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "training", "steps": 576, "lo')
    resume(path, checkpoint=MIDDLE)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == list(range(64, 513, 64))


def test_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path):
    path = tmp_path / "run"
    config = small_run(path)
    RunDirectory.create(path, config).close()
    done = resume(path)
    assert done.outcome.steps == 512


def test_finished_run_is_not_resumed_without_more_steps(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    with pytest.raises(ConfigError, match=r"has trained its 512 steps; to go on: .*total_steps"):
        resume(path)


def test_damaged_checkpoint_is_refused_and_the_one_before_works(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    model = path / "checkpoints" / LAST / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"is damaged.*the one before it is step_0+448"):
        resume(path, ["total_steps=1024"])
    done = resume(path, checkpoint="step_000000000448")
    assert done.outcome.steps == 512


def test_checkpoint_of_another_environment_or_model_is_refused(tmp_path):
    path = tmp_path / "run"
    train(small_run(path))
    with pytest.raises(CheckpointError, match=r"is of the environment 'tests.*Clockwork'"):
        resume(path, ["env.id=CartPole-v1"], checkpoint=MIDDLE)
    with pytest.raises(CheckpointError, match=f"checkpoint {MIDDLE}: .*another model"):
        resume(path, ["model.hidden_sizes=[9]"], checkpoint=MIDDLE)
    # A refused resume changes nothing.
    assert resume(path, checkpoint=MIDDLE).outcome.steps == 512
