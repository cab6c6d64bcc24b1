"""`fastrl new`: a project that trains at once and passes its own tests."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, capsys):
    assert main(["new", str(tmp_path / "deep" / "mine")]) == 0
    written = capsys.readouterr().out.split()
    assert len(written) == 6
    assert all(Path(file).stat().st_size for file in written)
    return tmp_path / "deep" / "mine"


@pytest.mark.timeout(240)  # of a run of pytest
def test_project_passes_its_own_tests_and_the_linter(project):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, timeout=110, env=env
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    for ruff in (["check", "--select", "E,F,I"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *ruff, "--isolated", "."]
        subprocess.run(command, cwd=project, check=True, timeout=60)


def test_project_trains_and_uses_its_policy(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    keys = ["total_steps=4096", "evaluation.final_episodes=4", "run_dir=first"]
    monkeypatch.setattr(sys, "argv", ["train.py", *keys])
    runpy.run_path("train.py", run_name="__main__")
    assert "0: " in capsys.readouterr().out
    assert main(["record", "first", "--video", "episode.gif"]) == 0
    assert Path("episode.gif").stat().st_size


def test_existing_files_stay(project, capsys):
    before = (project / "reach.py").read_text()
    assert main(["new", str(project)]) == 2
    assert f"'{project}' is not empty" in capsys.readouterr().err
    assert main(["new", str(project / "reach.py")]) == 2
    assert "is not a directory; name a new one" in capsys.readouterr().err
    assert (project / "reach.py").read_text() == before
