"""Runs that were written by an earlier fastrl, kept as they were written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastrl.training import evaluate_run, resume
from fastrl.training.checkpoint import FORMAT_VERSION

RUNS = sorted(Path(__file__).parent.glob("run_of_version_*"))


def test_there_is_one_of_the_present_format():
    assert RUNS[-1].name == f"run_of_version_{FORMAT_VERSION}"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_run_of_an_earlier_version_goes_on(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    played = evaluate_run(path, episodes=2, trust=True)
    assert (played.steps, len(played.result.returns)) == (128, 2)
    done = resume(path, ["total_steps=192"], trust=True)
    assert done.outcome.steps == 192
