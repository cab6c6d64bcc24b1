"""A run directory from elsewhere cannot lead what is written to other files."""

from __future__ import annotations

import os
import shutil

import pytest

from fastrl.errors import FastrlError
from fastrl.training import record_run, resume, train
from tests.training.clockwork import small_run

FILES = (
    ".lock",
    ".config.yaml.partial",
    ".metrics.jsonl.partial",
    ".summary.json.partial",
    ".signature.partial",
    ".spaces.json.partial",
    "config.yaml",
    "faults.jsonl",
    "metrics.jsonl",
    "signature",
    "spaces.json",
    "summary.json",
    "versions.json",
    "wandb.json",
    "checkpoints/best.json",
    "checkpoints/.best.json.partial",
)
DIRECTORIES = ("checkpoints", "checkpoints/.step_000000000128.partial", "tensorboard", "videos")


@pytest.fixture
def run(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    return path


def plant(link, target):
    """Put a link in the place of a file or directory, which becomes its target where it exists."""
    if link.exists() or link.is_symlink():
        shutil.move(link, target)
    elif not target.exists():
        target.write_bytes(b"precious")
    link.symlink_to(target)


def contents(path):
    if path.is_file():
        return path.read_bytes()
    return {each: each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_a_file_is_rejected_and_the_file_unharmed(run, tmp_path, name):
    target = tmp_path / "target"
    plant(run / name, target)
    before = contents(target)
    with pytest.raises(FastrlError, match="symbolic link"):
        resume(run, ["total_steps=128"])
    assert contents(target) == before


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_link_to_a_directory_is_rejected_and_nothing_made_there(run, tmp_path, name):
    target = tmp_path / "target"
    if not (run / name).exists():
        target.mkdir()
    plant(run / name, target)
    before = contents(target)
    with pytest.raises(FastrlError, match="symbolic link"):
        resume(run, ["total_steps=128"])
    assert contents(target) == before
    assert list(target.iterdir()) == [] or before


def test_a_new_run_writes_through_no_link_either(tmp_path):
    for name in (".lock", "checkpoints", ".config.yaml.partial"):
        path = tmp_path / f"run{name}"
        path.mkdir()
        target = tmp_path / f"target{name}"
        target.mkdir() if name == "checkpoints" else target.write_bytes(b"precious")
        (path / name).symlink_to(target)
        with pytest.raises(FastrlError, match="symbolic link"):
            train(small_run(path, total_steps=64))
        assert contents(target) in (b"precious", {})


def test_a_recording_writes_through_no_link(run, tmp_path):
    (tmp_path / "target").mkdir()
    (run / "videos").symlink_to(tmp_path / "target")
    with pytest.raises(FastrlError, match="symbolic link"):
        record_run(run)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_lock_that_is_a_hard_link_to_another_file_changes_nothing(run, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (run / ".lock").unlink(missing_ok=True)
    os.link(target, run / ".lock")
    resume(run, ["total_steps=128"])
    assert target.read_bytes() == b"precious"


def test_links_of_wandb_and_a_link_to_the_whole_run_are_no_harm(run, tmp_path):
    (run / "wandb").mkdir()
    (run / "wandb" / "latest-run").symlink_to(tmp_path)
    (tmp_path / "shortcut").symlink_to(run)
    resume(tmp_path / "shortcut", ["total_steps=128"])
