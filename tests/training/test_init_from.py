"""Runs that begin with the weights of other runs."""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from rich.console import Console

from fastrl import load_policy, resume, train
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.training import CheckpointStore
from tests.training.clockwork import small_run


def first_weights(run):
    """Return the parameters with which a run began: those of its first checkpoint."""
    return CheckpointStore(run / "checkpoints").load(f"step_{0:012d}").model


def test_a_run_begins_with_the_weights_and_statistics_of_another(trained, tmp_path):
    told = io.StringIO()
    config = small_run(tmp_path / "new", total_steps=128, seed=9, init_from=str(trained))
    run = train(config, console=Console(file=told, width=200)).path
    given, found = load_policy(trained).model.state_dict(), first_weights(run)
    assert given.keys() == found.keys()
    assert all(torch.equal(given[name], found[name]) for name in given)
    assert float(found["normalizers.0.count"]) == 64
    store = CheckpointStore(run / "checkpoints")
    assert store.load("last").steps == 128
    assert not torch.equal(store.load("last").model["actor_head.bias"], found["actor_head.bias"])
    assert f"begins with the weights of step_000000000064 of '{trained}'" in told.getvalue()


def test_all_else_is_new(trained, tmp_path):
    config = small_run(tmp_path / "new", total_steps=64, init_from=str(trained))
    state = CheckpointStore(train(config).path / "checkpoints").load(f"step_{0:012d}").state
    plain = train(small_run(tmp_path / "plain", total_steps=64)).path
    wanted = CheckpointStore(plain / "checkpoints").load(f"step_{0:012d}").state
    assert str(state["learner"]) == str(wanted["learner"])


def test_a_checkpoint_can_be_named(trained, tmp_path):
    first = trained / "checkpoints" / f"step_{0:012d}"
    run = train(small_run(tmp_path / "new", total_steps=64, seed=9, init_from=str(first))).path
    given, found = first_weights(trained), first_weights(run)
    assert all(torch.equal(given[name], found[name]) for name in given)


def test_a_resumed_run_goes_on_with_its_own(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    run = train(small_run(tmp_path / "new", total_steps=64, init_from=str(other))).path
    shutil.rmtree(other)
    assert resume(run, ["total_steps=128"]).outcome.steps == 128


def test_a_run_that_had_no_checkpoint_yet_begins_with_them(trained, tmp_path):
    run = train(small_run(tmp_path / "new", total_steps=64, init_from=str(trained))).path
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "summary.json"):
        (run / name).unlink()
    given, found = load_policy(trained).model.state_dict(), first_weights(resume(run).path)
    assert all(torch.equal(given[name], found[name]) for name in given)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            ModelConfig(hidden_sizes=(8,)),
            r"normalizers\.0\.count is not of this model, normalizers\.0\.mean is not of this ",
        ),
        (
            ModelConfig(hidden_sizes=(8, 8), normalize_observations=True),
            r"actor_body\.mlp\.2\.bias is missing, actor_body\.mlp\.2\.weight is missing, ",
        ),
        (
            ModelConfig(hidden_sizes=(9,), normalize_observations=True),
            r"actor_body\.mlp\.0\.bias is \(8,\), not \(9,\), actor_body\.mlp\.0\.weight is ",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(trained, tmp_path, model, told):
    config = small_run(tmp_path / "new", model=model, init_from=str(trained))
    start = r"^init_from: checkpoint step_\d+ belongs to another model: "
    with pytest.raises(ConfigError, match=start + told):
        train(config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nowhere", "^init_from: 'nowhere' is not the directory of a run"),
        ("{run}/checkpoints/step_9", "^init_from: no checkpoint 'step_9' in"),
    ],
)
def test_what_is_not_there_is_one_line(trained, tmp_path, given, told):
    config = small_run(tmp_path / "new", init_from=given.format(run=trained))
    with pytest.raises(ConfigError, match=told):
        train(config)
