"""Resuming, evaluating and plotting a damaged run directory end with one line."""

from __future__ import annotations

import io
import json
import os
import shutil

import pytest
from rich.console import Console

from fastrl.errors import FastrlError
from fastrl.training import CheckpointError, evaluate_run, resume
from fastrl.training.plotting import plot_runs


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def last_checkpoint(run):
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def commands(run):
    return (
        lambda: evaluate_run(run, episodes=1),
        lambda: plot_runs([run], run.parent / "curve.png"),
        lambda: resume(run, ["total_steps=96"]),
    )


def told_by(command):
    try:
        command()
    except FastrlError as error:
        return str(error)
    return None


def attempts(run):
    """Return what each command says; None where it succeeds."""
    said = [told_by(command) for command in commands(run)]
    assert all(told is None or len(told.splitlines()) == 1 for told in said)
    return said


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def make_directory(path):
    path.unlink()
    path.mkdir()


def make_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def make_sparse(path):
    os.truncate(path, 2**42)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [make_pipe, make_endless, make_directory, make_loop, make_sparse, cut_short]
)
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
def test_damaged_checkpoint_is_refused(run, name, damage):
    damage(last_checkpoint(run) / name)
    evaluated, plotted, resumed = attempts(run)
    assert plotted is None
    for told in (evaluated, resumed):
        if "symbolic link" in told:
            continue
        assert "is damaged" in told
        assert "the one before it is" in told or "there is no older one" in told


@pytest.mark.parametrize(
    "damage", [make_pipe, make_endless, make_directory, make_loop, make_sparse]
)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_what_is_no_file_is_not_waited_for(run, name, damage):
    damage(run / name)
    assert any(attempts(run))


def test_pipe_in_place_of_the_log_of_faults_is_refused(run):
    os.mkfifo(run / "faults.jsonl")
    with pytest.raises(
        FastrlError, match=r"faults\.jsonl' cannot be written: it is not a regular file"
    ):
        resume(run, ["total_steps=96"])


def test_log_of_faults_that_cannot_be_read_does_not_keep_a_run_from_going_on(run):
    (run / "faults.jsonl").touch()
    make_sparse(run / "faults.jsonl")
    said = io.StringIO()
    done = resume(run, ["total_steps=128"], console=Console(file=said, width=300))
    assert done.outcome.steps == 128
    assert "restarts are counted from 0, as '" in said.getvalue()


@pytest.mark.parametrize("row", [[1], [1, 2, 3], [2, 3], [-1, -1], [1.5, 1], [True, 1], "12", None])
def test_figures_of_episodes_that_make_no_sense_are_refused(run, row):
    meta = last_checkpoint(run) / "meta.json"
    about = json.loads(meta.read_text())
    meta.write_text(json.dumps({**about, "episode_info": {"is_success": row}}))
    with pytest.raises(CheckpointError, match="holds no state of this run"):
        resume(run, ["total_steps=96"])


def test_checkpoint_under_another_name_is_refused(run):
    last = last_checkpoint(run)
    last.rename(last.with_name("step_000000000999"))
    with pytest.raises(CheckpointError, match=r"meta\.json is that of step_000000000064"):
        resume(run, ["total_steps=2000"])


def test_run_whose_checkpoints_are_gone_does_not_begin_anew(run):
    shutil.rmtree(run / "checkpoints")
    metrics = (run / "metrics.jsonl").read_bytes()
    assert metrics
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        resume(run, ["total_steps=96"])
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_rows_of_metrics_that_make_no_sense_are_left_out(run):
    path = run / "metrics.jsonl"
    whole = path.read_text()
    rows = [
        '{"kind": "training", "steps": ' + "9" * 400 + ', "return_mean": 1.0}',
        '{"kind": "training", "steps": 10, "return_mean": ' + "1" * 400 + "}",
        '{"kind": "training", "steps": true, "return_mean": 1e999}',
        json.dumps({"kind": [], "steps": -3, "return_mean": float("nan")}),
        "[" * 100_000,
        "null",
        "\0",
    ]
    path.write_text("\n".join([*rows, whole]))
    assert attempts(run) == [None, None, None]
