"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fastrl.config import A2CConfig, EnvConfig, FaultsConfig, SamplerConfig
from fastrl.training import resume, train
from fastrl.training.checkpoint import CheckpointError, CheckpointStore
from fastrl.training.metrics import read_rows
from fastrl.training.run_directory import RunDirectory
from fastrl.workers.plan import SamplingPlan
from tests.training.clockwork import small_run

LAST = "step_000000000512"
MIDDLE = "step_000000000192"


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


@pytest.fixture
def run(whole, tmp_path):
    """Return a copy of a finished run of 512 steps."""
    return shutil.copytree(whole, tmp_path / "run")


SAMPLERS = {
    "serial": {"kind": "serial"},
    "processes": {"kind": "process"},
    "model worker": {"kind": "process", "num_model_workers": 1, "groups": 2},
}


ALGORITHMS = {
    "ppo": small_run(None).algorithm,
    "a2c": A2CConfig(learning_rate_schedule="linear", normalize_rewards=True),
}


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("serial", "ppo"),
        ("serial", "a2c"),
        pytest.param("processes", "ppo", marks=pytest.mark.slow),
        pytest.param("model worker", "a2c", marks=pytest.mark.slow),
    ],
)
def test_run_goes_on_exactly_from_its_checkpoints(tmp_path, kind, algorithm):
    sampler = SamplerConfig(
        envs_per_worker=4, num_env_workers=2, rollout_length=8, lock_step=True, **SAMPLERS[kind]
    )
    whole, total = tmp_path / "whole", 256
    train(small_run(whole, sampler=sampler, algorithm=ALGORITHMS[algorithm], total_steps=total))
    names = CheckpointStore(whole / "checkpoints").names()
    assert len(names) == 5
    expected = CheckpointStore(whole / "checkpoints").load("last")
    for name in names[:-1:2]:
        stopped = tmp_path / name
        shutil.copytree(whole, stopped)
        resume(stopped, checkpoint=name)
        found = CheckpointStore(stopped / "checkpoints").load("last")
        assert_same(dict(expected.model), dict(found.model))
        assert_same(expected.state["learner"], found.state["learner"])


def test_same_seed_gives_the_same_run_and_another_seed_another(whole, tmp_path):
    for name, seed in (("same", 3), ("other", 4)):
        train(small_run(tmp_path / name, seed=seed))
    assert_same(final_state(whole), final_state(tmp_path / "same"))
    one, other = (final_state(path)["model"] for path in (whole, tmp_path / "other"))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_environments_are_seeded_anew(tmp_path, monkeypatch):
    path, seeds, env_seeds = tmp_path / "run", set(), SamplingPlan.env_seeds

    def noted(*arguments):
        found = env_seeds(*arguments)
        seeds.update(found)
        return found

    monkeypatch.setattr(SamplingPlan, "env_seeds", noted)
    train(small_run(path))
    assert len(seeds) == 8
    resume(path, ["checkpoint.environments=false"], checkpoint=MIDDLE)
    assert len(seeds) == 16


def discounted_sums(path, name):
    """Return the sum of discounted rewards of every unfinished episode, as the learner knows it."""
    state = CheckpointStore(path / "checkpoints").load(name).state
    return state["learner"]["reward_scaler"]["so_far"].tolist()


def geometric(steps, gamma=0.99):
    return pytest.approx([sum(gamma**step for step in range(steps))] * 8, rel=1e-5)


@pytest.mark.parametrize("kind", ["serial", pytest.param("process", marks=pytest.mark.slow)])
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


def test_counts_go_on(run):
    first = CheckpointStore(run / "checkpoints").load(LAST).about
    done = resume(run, ["total_steps=1024"])
    last = CheckpointStore(run / "checkpoints").load("last").about
    assert done.outcome.steps == last["steps"] == 1024
    assert (first["updates"], last["updates"]) == (8, 16)
    assert (first["episodes"], last["episodes"]) == (128, 256)
    assert last["wall_s"] > first["wall_s"]
    steps = [row["steps"] for row in read_rows(run / "metrics.jsonl")]
    assert steps == list(range(64, 1025, 64))


def test_rows_beyond_the_checkpoint_and_half_a_row_are_dropped(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "training", "steps": 576, "lo')
    resume(run, checkpoint=MIDDLE)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == list(range(64, 513, 64))


def test_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path):
    path = tmp_path / "run"
    config = small_run(path)
    RunDirectory.create(path, config).close()
    done = resume(path)
    assert done.outcome.steps == 512


def test_damaged_checkpoint_is_refused_and_the_one_before_works(run):
    model = run / "checkpoints" / LAST / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"is damaged.*the one before it is step_0+448"):
        resume(run, ["total_steps=1024"])
    done = resume(run, checkpoint="step_000000000448")
    assert done.outcome.steps == 512


def test_checkpoint_of_another_environment_or_model_is_refused(run):
    with pytest.raises(CheckpointError, match=r"is of the environment 'tests.*Clockwork'"):
        resume(run, ["env.id=CartPole-v1"], checkpoint=MIDDLE)
    with pytest.raises(CheckpointError, match=f"checkpoint {MIDDLE}: .*another model"):
        resume(run, ["model.hidden_sizes=[9]"], checkpoint=MIDDLE)
    # A refused resume changes nothing.
    assert resume(run, checkpoint=MIDDLE).outcome.steps == 512
